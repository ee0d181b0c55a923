// Package usage is how a program tells people who mistype a command where help is. What cobra says of unknown commands,
// arguments and flags leaves that out. It is used in place of cobra.NoArgs, and once for a program's root command.
package usage

import (
	"fmt"

	"github.com/spf13/cobra"
)

// Explain makes errors of flags name the command whose help tells more.
func Explain(root *cobra.Command) {
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
}

// NoArgs refuses arguments.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasParent() {
		return fmt.Errorf("%s takes no argument, but was given %q; see %[1]s --help", cmd.CommandPath(), args[0])
	}
	meant := ""
	if close := cmd.SuggestionsFor(args[0]); len(close) > 0 {
		meant = fmt.Sprintf(" (did you mean %q?)", close[0])
	}
	return fmt.Errorf("unknown command %q%s; see %s --help", args[0], meant, cmd.CommandPath())
}
