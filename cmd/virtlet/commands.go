package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

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
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		// Letters in which a command may differ from the one that is meant.
		SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, _, err := effective(file, cmd.Flags())
			if err != nil {
				return err
			}
			return runDaemon(cmd.Context(), conf)
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	root.PersistentFlags().StringVar(&file, "config", "", "configuration `file`; "+defaultConfigFile+" is read where it exists")
	bind(root.PersistentFlags(), &flags)
	root.PersistentFlags().SortFlags = false
	root.AddCommand(configCommand(&file), versionCommand(), checkCommand(&file), imageCommand(&file))
	return root
}

// noArgs refuses arguments: none of the commands takes any.
func noArgs(cmd *cobra.Command, args []string) error {
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

// bind makes a flag of each setting.
func bind(flags *pflag.FlagSet, conf *Config) {
	for _, s := range settings(conf) {
		flag := flags.VarPF(s.value, s.name, "", s.help)
		if s.value.Type() == kindBool {
			flag.NoOptDefVal = "true" // --flag alone
		}
	}
}

// effective is the configuration in force: what the flags set, else the file, else the defaults.
func effective(file string, flags *pflag.FlagSet) (Config, origins, error) {
	return loadConfig(file, defaultConfigFile, flags)
}

func configCommand(file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print the effective configuration and where each value comes from",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, from, err := effective(*file, cmd.Flags())
			if err != nil {
				return err
			}
			return printConfig(cmd.OutOrStdout(), conf, from)
		},
	}
}

func versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := readVersion()
			return printAs(cmd.OutOrStdout(), output, v, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, v)
				return err
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func checkCommand(file *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell what this host offers to run virtual machines, what it lacks, and what to do about it",
		Long: "check looks at this host with the eyes of the daemon. It changes nothing.\n" +
			"The exit code is 1 when something is missing without which no pod can run.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, _, err := effective(*file, cmd.Flags())
			if err != nil {
				return err
			}
			report := checkHost(cmd.Context(), conf)
			if err := printAs(cmd.OutOrStdout(), output, report, report.table); err != nil {
				return err
			}
			return report.err()
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

const (
	outputTable = "table"
	outputJSON  = "json"
)

func outputFlag(cmd *cobra.Command, output *string) {
	*output = outputTable
	cmd.Flags().VarP(choice(output, outputTable, outputJSON), "output", "o", "output format: table for people, json for programs")
}

// printAs prints for people or for programs.
func printAs(w io.Writer, output string, v any, people func(io.Writer) error) error {
	if output != outputJSON {
		return people(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
