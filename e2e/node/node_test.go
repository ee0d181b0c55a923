package node

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestNodePower(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	start := time.Now()
	lap := func(what string) { t.Logf("%6.1f s  %s", time.Since(start).Seconds(), what) }
	image, err := Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lap("image")
	n, err := Start(t.Context(), Options{Image: image, Files: []File{{Path: "/etc/put", Content: "by tar", Mode: 0o600}}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	lap("boot")
	run := func(script string) string {
		out, err := n.Run(t.Context(), script)
		if err != nil {
			t.Error(err)
		}
		return out
	}
	t.Log(run("cat /etc/put; stat -c %a /etc/put; systemctl list-units --failed --no-legend; stat -fc %T /sys/fs/cgroup; ls -l /dev/kvm /dev/vhost-net; free -m; systemd-analyze; systemd-analyze blame | head -20; cat /proc/mounts; lsmod; df -h /"))
	lap("run")
	_, err = n.Run(t.Context(), "echo out; echo err >&2; exit 3")
	var f *Failure
	if !errors.As(err, &f) || f.Code != 3 || f.Stdout != "out\n" || f.Stderr != "err\n" {
		t.Errorf("%v", err)
	}
	run("echo kept >/root/kept; sync; echo lost >/root/lost")
	if err := n.PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	lap("second boot")
	if out := run("ls -l /root"); !strings.Contains(out, "kept") {
		t.Error(out)
	} else {
		t.Log(out)
	}
}
