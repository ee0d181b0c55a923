package domain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	intelCPU = "processor\t: 0\nflags\t\t: fpu vme vmx sse2\nvmx flags\t: vnmi\n"
	amdCPU   = "processor\t: 0\nflags\t\t: fpu svm\n"
	plainCPU = "processor\t: 0\nflags\t\t: fpu vme hypervisor\nvmx flags\t: none\n"
	armCPU   = "processor\t: 0\nFeatures\t: fp asimd\n"
)

func TestProbeAccel(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	opens, missing := write("kvm", ""), filepath.Join(dir, "none")
	intel, amd, plain, arm := write("intel", intelCPU), write("amd", amdCPU), write("plain", plainCPU), write("arm", armCPU)
	tests := []struct {
		name    string
		mode    Accel
		host    Host
		want    Accel
		why     string
		wantErr error
	}{
		{"auto_takes_kvm_with_vmx", Auto, Host{opens, intel, "amd64"}, KVM, "vmx", nil},
		{"auto_takes_kvm_with_svm", Auto, Host{opens, amd, "amd64"}, KVM, "svm", nil},
		{"auto_distrusts_a_device_without_vmx_or_svm", Auto, Host{opens, plain, "amd64"}, TCG, "neither vmx nor svm", nil},
		{"auto_without_the_device", Auto, Host{missing, intel, "amd64"}, TCG, "no such file", nil},
		{"auto_without_cpuinfo", Auto, Host{opens, missing, "amd64"}, TCG, "reading the CPU's flags", nil},
		{"auto_with_empty_cpuinfo", Auto, Host{opens, opens, "amd64"}, TCG, "lists no CPU flags", nil},
		{"auto_on_arm64_needs_the_device_alone", Auto, Host{opens, arm, "arm64"}, KVM, "opens", nil},
		{"auto_on_arm64_without_the_device", Auto, Host{missing, arm, "arm64"}, TCG, "no such file", nil},
		{"kvm_is_taken_where_usable", KVM, Host{opens, intel, "amd64"}, KVM, "vmx", nil},
		{"kvm_without_the_device", KVM, Host{missing, intel, "amd64"}, "", "no such file", ErrNoKVM},
		{"kvm_without_vmx_or_svm", KVM, Host{opens, plain, "amd64"}, "", "neither vmx nor svm", ErrNoKVM},
		{"tcg_looks_at_nothing", TCG, Host{missing, missing, "amd64"}, TCG, "configured", nil},
		{"unknown_mode", "xen", Host{opens, intel, "amd64"}, "", `"xen" is none of`, nil},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, why, err := ProbeAccel(tc.mode, tc.host)
			if got != tc.want || (err == nil) != (tc.want != "") || tc.wantErr != nil && !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %q, error %v; want %q, %v", got, err, tc.want, tc.wantErr)
			}
			if err != nil {
				why = err.Error()
			}
			if !strings.Contains(why, tc.why) {
				t.Errorf("reason %q does not contain %q", why, tc.why)
			}
		})
	}
}

func TestProbeQEMU(t *testing.T) {
	dir := t.TempDir()
	script := func(name, body string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	notExecutable := filepath.Join(dir, "plain")
	if err := os.WriteFile(notExecutable, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path string
		version    [3]int
		is         error
		want       string
	}{
		{"oldest", script("ok", "echo 'QEMU emulator version 7.2.0'"), [3]int{7, 2, 0}, nil, ""},
		{"newer", script("new", "echo 'QEMU emulator version 10.1.2 (Debian 1:10.1.2+ds-1)'"), [3]int{10, 1, 2}, nil, ""},
		{"release_candidate", script("rc", "echo 'QEMU emulator version 9.0.0-rc1'"), [3]int{9, 0, 0}, nil, ""},
		{"too_old", script("old", "echo 'QEMU emulator version 7.1.9 (v7.1.9)'"), [3]int{7, 1, 9}, ErrQEMUTooOld, "install QEMU 7.2 or newer"},
		{"missing_path", filepath.Join(dir, "none"), [3]int{}, ErrQEMUMissing, "qemu-system-x86"},
		{"missing_name", "no-such-qemu-anywhere", [3]int{}, ErrQEMUMissing, "qemu-system-x86"},
		{"not_executable", notExecutable, [3]int{}, ErrQEMUMissing, "permission denied"},
		{"another_program", script("other", "echo hello"), [3]int{}, nil, `not answer like QEMU but "hello"`},
		{"broken_version", script("broken", "echo QEMU emulator version x.y"), [3]int{}, nil, "cannot read a version"},
		{"fails", script("fails", "echo libfoo.so missing >&2; exit 127"), [3]int{}, nil, "libfoo.so missing"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			q, err := ProbeQEMU(t.Context(), tc.path)
			if q.Version != tc.version || (err == nil) != (tc.is == nil && tc.want == "") {
				t.Fatalf("got %+v, %v", q, err)
			}
			if err == nil && q.Path != tc.path {
				t.Errorf("path %q", q.Path)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error %v is not %v", err, tc.is)
			}
			if err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not contain %q", err, tc.want)
			}
		})
	}
	t.Run("link", func(t *testing.T) {
		link := filepath.Join(t.TempDir(), "qemu")
		if err := os.Symlink(script("real", "echo 'QEMU emulator version 9.0.0'"), link); err != nil {
			t.Fatal(err)
		}
		if q, err := ProbeQEMU(t.Context(), link); err != nil || filepath.Base(q.Path) != "real" {
			t.Errorf("got %+v, %v; want the path of what the link leads to", q, err)
		}
	})
	t.Run("needs", func(t *testing.T) {
		q, err := ProbeQEMU(t.Context(), qemuBinary)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"libc.so", "ld-linux", "/share/qemu", "/share/seabios"} {
			if !slices.ContainsFunc(q.Needs, func(path string) bool { return strings.Contains(path, want) }) {
				t.Errorf("no %s in %q", want, q.Needs)
			}
		}
	})
	t.Run("hangs", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := ProbeQEMU(ctx, script("hangs", "exec sleep 1000")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v is not the deadline", err)
		}
	})
}
