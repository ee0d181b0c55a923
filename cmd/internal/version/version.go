// Package version tells a program's version as the Go toolchain stamped it. The version is semantic, as kubelet demands of a
// runtime. A build without a stamp has one, too.
package version

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virtlet/virtlet/cmd/internal/output"
	"github.com/virtlet/virtlet/cmd/internal/usage"
)

// Version of this program, as the Go toolchain stamped it: a release from its tag, any other build from its commit.
type Version struct {
	program string
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	Arch    string `json:"arch"`
}

// develVersion is a semantic version, which kubelet demands, for a build without a stamp.
const develVersion = "0.0.0-devel"

// Of reads the version of the running program, which is called so.
func Of(program string) Version {
	v := Version{program: program, Version: develVersion, Go: runtime.Version(), Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if stamped, found := strings.CutPrefix(info.Main.Version, "v"); found {
		v.Version = stamped
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	return v
}

func (v Version) String() string {
	s := v.program + " " + v.Version
	if v.Commit != "" {
		s += " (" + v.Commit[:min(len(v.Commit), 12)] + ")"
	}
	return s + fmt.Sprintf(" %s %s", v.Go, v.Arch)
}

// Command is the subcommand that prints it.
func Command(program string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  usage.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := Of(program)
			return output.Print(cmd.OutOrStdout(), format, v, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, v)
				return err
			})
		},
	}
	output.Flag(cmd, &format)
	return cmd
}
