package main

import (
	"io"
	"strings"
	"testing"
)

func TestHelp(t *testing.T) {
	for _, tc := range []struct {
		args     []string
		has, not string
	}{
		{[]string{"--help"}, "--vm-users", "for this command, too"},
		{[]string{"image", "pull", "--help"}, "The flags of virtlet are for this command, too: see virtlet --help", "--vm-users"},
		{[]string{"image"}, "watch ", "--vm-users"},
	} {
		var out strings.Builder
		root := newRootCommand()
		root.SetArgs(tc.args)
		root.SetOut(&out)
		if err := root.Execute(); err != nil || !strings.Contains(out.String(), tc.has) || strings.Contains(out.String(), tc.not) {
			t.Errorf("%q: %v\n%s", tc.args, err, out.String())
		}
	}
}

func TestCommandFaults(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown", []string{"frobnicate"}, `unknown command "frobnicate"; see virtlet --help`},
		{"mistyped", []string{"chek"}, `unknown command "chek" (did you mean "check"?); see virtlet --help`},
		{"argument_too_many", []string{"check", "it"}, `virtlet check takes no argument, but was given "it"; see virtlet check --help`},
		{"unknown_of_a_group", []string{"image", "frobnicate"}, `unknown command "frobnicate"; see virtlet image --help`},
		{"mistyped_of_a_group", []string{"image", "pul", "x"}, `unknown command "pul" (did you mean "pull"?); see virtlet image --help`},
		{"argument_missing", []string{"image", "pull"}, "accepts 1 arg(s), received 0; write virtlet image pull NAME [flags]"},
		{"unknown_flag", []string{"version", "--bar"}, `unknown flag: --bar; see virtlet version --help`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := newRootCommand()
			root.SetArgs(tc.args)
			root.SetOut(io.Discard)
			if err := root.Execute(); err == nil || err.Error() != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}
