package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/virtlet/virtlet/cmd/internal/output"
	"github.com/virtlet/virtlet/cmd/internal/setting"
	"github.com/virtlet/virtlet/cmd/internal/usage"
	"github.com/virtlet/virtlet/cmd/internal/version"
)

// program is what this one is called.
const program = "virtlet"

const defaultConfigFile = "/etc/virtlet/virtlet.yaml"

// newRootCommand makes the daemon's command line. Every setting of the configuration file is a flag of the same name.
func newRootCommand() *cobra.Command {
	var file string
	flags := defaults()
	root := &cobra.Command{
		Use:   "virtlet",
		Short: "Run virtual machines as Kubernetes pods",
		Long: "virtlet serves CRI v1 to kubelet and runs each pod's container as a QEMU virtual machine.\n" +
			"Without a subcommand it is the daemon. Stopping it leaves the virtual machines running.",
		Args:          usage.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, _, err := effective(file, cmd.Flags())
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
	root.AddCommand(configCommand(&file), version.Command(program), checkCommand(&file), imageCommand(&file))
	return root
}

// effective is the configuration in force: what the flags set, else the file, else the defaults.
func effective(file string, flags *pflag.FlagSet) (Config, setting.Origins, error) {
	return loadConfig(file, defaultConfigFile, flags)
}

func configCommand(file *string) *cobra.Command {
	return setting.Command(func(cmd *cobra.Command) (setting.Table, setting.Origins, error) {
		conf, from, err := effective(*file, cmd.Flags())
		return settings(&conf), from, err
	})
}

func checkCommand(file *string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell what this host offers to run virtual machines, what it lacks, and what to do about it",
		Long: "check looks at this host with the eyes of the daemon. It changes nothing.\n" +
			"The exit code is 1 when something is missing without which no pod can run.",
		Args: usage.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, _, err := effective(*file, cmd.Flags())
			if err != nil {
				return err
			}
			report := checkHost(cmd.Context(), conf)
			if err := output.Print(cmd.OutOrStdout(), format, report, report.Table); err != nil {
				return err
			}
			return checkError(report)
		},
	}
	output.Flag(cmd, &format)
	return cmd
}
