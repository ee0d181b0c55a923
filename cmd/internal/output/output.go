// Package output prints the answers of a command: tables for people, JSON for programs.
package output

import (
	"encoding/json"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/cmd/internal/setting"
)

// The formats.
const (
	Table = "table"
	JSON  = "json"
)

// Flag adds the flag that chooses the format.
func Flag(cmd *cobra.Command, output *string) {
	*output = Table
	cmd.Flags().VarP(setting.Choice(output, Table, JSON), "output", "o", "output format: table for people, json for programs")
}

// Print prints for people or for programs.
func Print(w io.Writer, output string, v any, people func(io.Writer) error) error {
	if output != JSON {
		return people(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// IsTerminal tells whether what is written is seen by a person at once.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
