package setting

import (
	"github.com/spf13/cobra"

	"github.com/virtlet/virtlet/cmd/internal/usage"
)

// Command is the subcommand that prints the configuration in force. load finds out what that is.
func Command(load func(*cobra.Command) (Table, Origins, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print the effective configuration and where each value comes from",
		Args:  usage.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			table, from, err := load(cmd)
			if err != nil {
				return err
			}
			return table.Print(cmd.OutOrStdout(), from)
		},
	}
}
