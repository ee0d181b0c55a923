// Package usage is how a program tells people who mistype a command where help is. What cobra says of unknown commands,
// arguments and flags leaves that out. It is used in place of cobra.NoArgs, around its other checks of
// arguments, and once for a program's root command.
package usage

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// suggestionDistance is in how many letters a command may differ from the one that is meant.
const suggestionDistance = 2

// inherited is the part of cobra's help with the root command's flags.
const inherited = "Global Flags:\n{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}"

// Explain makes errors of flags name the command whose help tells more, and those of commands the one that is meant. The
// help of a subcommand does not repeat the root's flags, of which there is one for each setting.
func Explain(root *cobra.Command) {
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), inherited, "The flags of {{.Root.Name}} are for this command, too: see {{.Root.Name}} --help", 1))
	root.SuggestionsMinimumDistance = suggestionDistance
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
}

// Args makes errors of check show how the command is written.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return fmt.Errorf("%w; write %s", err, cmd.UseLine())
		}
		return nil
	}
}

// Group makes a command of its subcommands alone: without one it tells which there are, and an unknown one is a fault.
func Group(cmd *cobra.Command, subcommands ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(subcommands...)
	cmd.SuggestionsMinimumDistance = suggestionDistance
	cmd.Args = unknown
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// NoArgs refuses arguments.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasParent() {
		return fmt.Errorf("%s takes no argument, but was given %q; see %[1]s --help", cmd.CommandPath(), args[0])
	}
	return unknown(cmd, args)
}

// unknown refuses what is no subcommand.
func unknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	meant := ""
	if close := cmd.SuggestionsFor(args[0]); len(close) > 0 {
		meant = fmt.Sprintf(" (did you mean %q?)", close[0])
	}
	return fmt.Errorf("unknown command %q%s; see %s --help", args[0], meant, cmd.CommandPath())
}
