package main

import (
	"github.com/spf13/cobra"

	"github.com/virtlet/virtlet/cmd/internal/output"
	"github.com/virtlet/virtlet/cmd/internal/setting"
	"github.com/virtlet/virtlet/cmd/internal/usage"
	"github.com/virtlet/virtlet/cmd/internal/version"
)

// program is what this one is called.
const program = "criproxy"

const defaultConfigFile = "/etc/virtlet/criproxy.yaml"

// newRootCommand makes the command line. Every setting of the configuration file is a flag of the same name.
func newRootCommand() *cobra.Command {
	var file string
	flags := defaults()
	root := &cobra.Command{
		Use:   program,
		Short: "One CRI endpoint before several runtimes",
		Long: "criproxy serves CRI v1 to kubelet and passes each call to the runtime that it is for.\n" +
			"Without a subcommand it is the daemon. Stopping it touches no pod.",
		Args:          usage.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, _, err := loadConfig(file, defaultConfigFile, cmd.Flags())
			if err != nil {
				return err
			}
			return runDaemon(cmd.Context(), conf)
		},
	}
	usage.Explain(root)
	root.PersistentFlags().StringVar(&file, "config", "", "configuration `file`; "+defaultConfigFile+" is read where it exists")
	settings(&flags).Bind(root.PersistentFlags())
	root.PersistentFlags().SortFlags = false
	root.AddCommand(configCommand(&file), version.Command(program), checkCommand(&file))
	return root
}

func configCommand(file *string) *cobra.Command {
	return setting.Command(func(cmd *cobra.Command) (setting.Table, setting.Origins, error) {
		conf, from, err := loadConfig(*file, defaultConfigFile, cmd.Flags())
		return settings(&conf), from, err
	})
}

func checkCommand(file *string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell what kubelet would see behind the proxy, what is wrong with it, and what to do about it",
		Long: "check asks the runtimes themselves, and then what a proxy makes of their answers. It needs no running criproxy\n" +
			"and changes nothing. The exit code is 1 when kubelet could not work with what it would see.",
		Args: usage.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, _, err := loadConfig(*file, defaultConfigFile, cmd.Flags())
			if err != nil {
				return err
			}
			report, err := checkRuntimes(cmd.Context(), conf)
			if err != nil {
				return err
			}
			if err := output.Print(cmd.OutOrStdout(), format, report, report.Table); err != nil {
				return err
			}
			return checkError(report)
		},
	}
	output.Flag(cmd, &format)
	return cmd
}
