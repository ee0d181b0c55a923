package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/cmd/internal/checklist"
	"github.com/virtlet/virtlet/cmd/internal/output"
	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/domain"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// goodHost is a prober of a made-up host that lacks nothing.
func goodHost(t *testing.T) prober {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	conf := defaults()
	conf.StateDir, conf.RunDir, conf.Listen = filepath.Join(dir, "state"), filepath.Join(dir, "run"), filepath.Join(dir, "run", "s")
	conf.QEMU = write("qemu", "#!/bin/sh\necho 'QEMU emulator version 8.2.0'\n", 0o700)
	conf.QEMUImg, conf.Wrapper = write("qemu-img", "#!/bin/sh\n", 0o700), write("vmwrapper", "#!/bin/sh\n", 0o700)
	conf.ImageTranslations = filepath.Dir(write("images.d/1.yaml", "translations: [{name: x, url: img.example/x}]", 0o600))
	conf.CNIConfDir, conf.CNIBinDirs = filepath.Dir(write("net.d/1.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"plug"}]}`, 0o600)), []string{dir}
	write("plug", "#!/bin/sh\n", 0o700)
	write("passwd", "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000::/home/alice:/bin/sh\n", 0o600)
	write("subuid", "alice:100000:65536\n", 0o600)
	return prober{
		conf: conf, euid: 0, etc: dir, status: write("status", "Name:\tx\nCapEff:\t000001ffffffffff\n", 0o600),
		tun: write("tun", "", 0o600), vhostNet: write("vhost-net", "", 0o600),
		tryCage:     func(context.Context, Config) error { return nil },
		profileMode: func(string) (string, error) { return "enforce", nil },
		lacking:     func() []string { return nil },
		host:        domain.Host{KVM: write("kvm", "", 0o600), CPUInfo: write("cpuinfo", "flags\t\t: fpu vmx\n", 0o600), Arch: "amd64"},
	}
}

func TestCheck(t *testing.T) {
	type change = func(*prober)
	gone := func(path *string) { *path = "/nonexistent/file" }
	for _, tc := range []struct {
		name   string
		change change
		item   string
		state  checklist.State
		detail string
	}{
		{"not_root", func(p *prober) { p.euid = 1000 }, "rights", stateMissing, "user 1000"},
		{"root_without_rights", func(p *prober) { _ = os.WriteFile(p.status, []byte("CapEff:\t0000000000000000\n"), 0o600) }, "rights", stateMissing, "CAP_NET_ADMIN"},
		{"root", func(*prober) {}, "rights", stateOK, "root"},
		{"users", func(*prober) {}, "vm users", stateOK, "nobody else"},
		{"users_that_an_account_has", func(p *prober) { p.conf.VMUsers.First = 1000 }, "vm users", stateWarning, `"alice"`},
		{"users_that_containers_have", func(p *prober) {
			p.conf.VMUsers = supervisor.UserRange{First: 165535, Last: 165535}
		}, "vm users", stateWarning, "subuid"},
		{"users_beside_containers", func(p *prober) {
			p.conf.VMUsers = supervisor.UserRange{First: 165536, Last: 165536}
		}, "vm users", stateOK, ""},
		{"kvm", func(*prober) {}, "accelerator", stateOK, "kvm"},
		{"no_kvm", func(p *prober) { gone(&p.host.KVM) }, "accelerator", stateWarning, "tcg"},
		{"tcg_wanted", func(p *prober) { p.conf.Accel = "tcg" }, "accelerator", stateOK, "tcg"},
		{"kvm_wanted_in_vain", func(p *prober) { p.conf.Accel = "kvm"; gone(&p.host.KVM) }, "accelerator", stateMissing, "kvm"},
		{"qemu", func(*prober) {}, "qemu", stateOK, "8.2.0"},
		{"no_qemu", func(p *prober) { gone(&p.conf.QEMU) }, "qemu", stateMissing, "not installed"},
		{"old_qemu", func(p *prober) {
			_ = os.WriteFile(p.conf.QEMU, []byte("#!/bin/sh\necho 'QEMU emulator version 5.0.0'\n"), 0o700)
		}, "qemu", stateMissing, "too old"},
		{"no_qemu_img", func(p *prober) { gone(&p.conf.QEMUImg) }, "qemu-img", stateMissing, ""},
		{"no_vmwrapper", func(p *prober) { gone(&p.conf.Wrapper) }, "vmwrapper", stateMissing, ""},
		{"cage", func(*prober) {}, "cage", stateOK, "without rights"},
		{"no_cage", func(p *prober) {
			p.tryCage = func(context.Context, Config) error { return errors.New("changing the root: invalid argument") }
		}, "cage", stateMissing, "changing the root"},
		{"cage_in_which_QEMU_fails", func(p *prober) {
			p.tryCage = func(context.Context, Config) error { return fmt.Errorf("%w: signal: killed", errEnded) }
		}, "cage", stateMissing, "signal: killed"},
		{"cage_without_QEMU", func(p *prober) { p.tryCage = tryCage; gone(&p.conf.QEMU) }, "cage", stateWarning, "not tried: qemu"},
		{"cage_of_no_QEMU", func(p *prober) { p.tryCage = tryCage }, "cage", stateMissing, "caging"},
		{"apparmor", func(*prober) {}, "apparmor", stateOK, "virtlet-qemu (enforce)"},
		{"no_apparmor", func(p *prober) {
			p.profileMode = func(string) (string, error) { return "", cage.ErrAppArmorOff }
		}, "apparmor", stateOK, "off"},
		{"apparmor_without_the_profile", func(p *prober) {
			p.profileMode = func(string) (string, error) { return "", cage.ErrProfileAbsent }
		}, "apparmor", stateWarning, "not loaded"},
		{"apparmor_that_complains", func(p *prober) {
			p.profileMode = func(string) (string, error) { return "complain", nil }
		}, "apparmor", stateWarning, "only complains"},
		{"apparmor_out_of_sight", func(p *prober) {
			p.profileMode = func(string) (string, error) { return "", fmt.Errorf("looking: %w", os.ErrPermission) }
		}, "apparmor", stateWarning, "permission denied"},
		{"cni", func(*prober) {}, "cni", stateOK, ""},
		{"no_cni_config", func(p *prober) { gone(&p.conf.CNIConfDir) }, "cni", stateMissing, "no CNI network configuration"},
		{"no_cni_plugin", func(p *prober) { p.conf.CNIBinDirs = []string{"/nonexistent"} }, "cni", stateMissing, "plug"},
		{"no_tun", func(p *prober) { gone(&p.tun) }, "tun", stateMissing, "no such file"},
		{"no_vhost_net", func(p *prober) { gone(&p.vhostNet) }, "vhost-net", stateWarning, "no such file"},
		{"directory_to_be_made", func(*prober) {}, "state-dir", stateOK, "will be made"},
		{"directory_for_all", func(p *prober) {
			_ = os.MkdirAll(p.conf.StateDir, 0o700)
			_ = os.Chmod(p.conf.StateDir, 0o777)
		}, "state-dir", stateMissing, "chmod"},
		{"image_rules", func(*prober) {}, "image rules", stateOK, "1 in "},
		{"no_memory_controller", func(p *prober) { p.lacking = func() []string { return []string{"memory", "pids"} } }, "cgroups", stateMissing, "no controller memory, pids in sight"},
		{"no_image_rules", func(p *prober) { gone(&p.conf.ImageTranslations) }, "image rules", stateOK, "none in /nonexistent/file"},
		{"bad_image_rules", func(p *prober) {
			_ = os.WriteFile(filepath.Join(p.conf.ImageTranslations, "2.yaml"), []byte("translation: []\n"), 0o600)
		}, "image rules", stateWarning, "2.yaml:1: unknown key"},
		{"socket_free", func(*prober) {}, "socket", stateOK, "is free"},
		{"socket_taken", func(p *prober) {
			_ = os.MkdirAll(p.conf.RunDir, 0o700)
			_ = os.WriteFile(p.conf.Listen, nil, 0o600)
		}, "socket", stateMissing, "no socket"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := goodHost(t)
			tc.change(&p)
			report := p.report(t.Context())
			for _, item := range report.Items {
				if item.Name != tc.item {
					continue
				}
				if item.State != tc.state || !strings.Contains(item.Detail, tc.detail) {
					t.Errorf("got %+v, want %s with %q", item, tc.state, tc.detail)
				}
				if (item.State == stateOK) != (item.Todo == "") {
					t.Errorf("state %s, to do %q", item.State, item.Todo)
				}
				if strings.Contains(item.Detail, "\n") {
					t.Errorf("several lines: %q", item.Detail)
				}
				if tc.state == stateMissing && (report.OK || checkError(report) == nil) {
					t.Error("the check passes all the same")
				}
				return
			}
			t.Errorf("nothing about %q in %+v", tc.item, report.Items)
		})
	}
}

// TestCheckByOrdinaryUser: what such a user may not see is no fault of the host's.
func TestCheckByOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have files that are hidden from others")
	}
	p := goodHost(t)
	p.euid = 65534
	p.profileMode = func(string) (string, error) { return "", os.ErrPermission }
	if err := os.MkdirAll(p.conf.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	// Another user in the eyes of the file system, for this thread alone.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(p.euid); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setfsuid(0) }()
	items := map[string]checkItem{}
	for _, item := range p.report(t.Context()).Items {
		items[item.Name] = item
	}
	for _, name := range []string{"accelerator", "cage", "apparmor", "cni", "tun", "vhost-net", "socket"} {
		if item := items[name]; item.State != stateWarning || item.Todo != rerun {
			t.Errorf("got %+v", item)
		}
	}
}

func TestCheckDiskSpace(t *testing.T) {
	for free, want := range map[int64]checklist.State{0: stateMissing, 1 << 30: stateWarning, 100 << 30: stateOK} {
		if got := judgeSpace("/var", free); got.State != want || !strings.Contains(got.Detail, "/var") {
			t.Errorf("with %d bytes: %+v, want %s", free, got, want)
		}
	}
	if got := diskSpace("/nonexistent"); got.State != stateMissing {
		t.Errorf("without the directory: %+v", got)
	}
}

func TestCheckReport(t *testing.T) {
	report := checklist.Report{Items: []checkItem{
		ok("qemu", "version %s", "8"), warning("vhost-net", "none", "modprobe vhost_net"), missing("tun", "none", "modprobe tun"),
	}}
	var table, machine bytes.Buffer
	if err := output.Print(&table, output.Table, report, report.Table); err != nil {
		t.Fatal(err)
	}
	want := "WHAT       STATE    DETAIL\n" +
		"qemu       ok       version 8\n" +
		"vhost-net  warning  none\n" +
		"                    -> modprobe vhost_net\n" +
		"tun        missing  none\n" +
		"                    -> modprobe tun\n"
	if table.String() != want {
		t.Errorf("got\n%s\nwant\n%s", table.String(), want)
	}
	if err := output.Print(&machine, output.JSON, report, report.Table); err != nil {
		t.Fatal(err)
	}
	var back checklist.Report
	if err := json.Unmarshal(machine.Bytes(), &back); err != nil || len(back.Items) != 3 || back.Items[2] != report.Items[2] {
		t.Errorf("%v of\n%s", err, machine.String())
	}
	if err := checkError(report); err == nil || !strings.Contains(err.Error(), "one thing is missing") {
		t.Errorf("got %v", err)
	}
	if err := checkError(checklist.Report{Items: report.Items[:2]}); err != nil {
		t.Errorf("warnings alone fail the check: %v", err)
	}
}
