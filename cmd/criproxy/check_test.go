package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cmd/internal/checklist"
	"github.com/virtlet/virtlet/runtime/proxy"
)

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(one, other *fakeRuntime)
		conf   func(t *testing.T, c *Config)
		item   string
		state  checklist.State
		detail string
	}{
		"a_runtime":           {item: "runtime virtlet", state: checklist.OK, detail: `virtlet 1.2.3 at`},
		"the_default":         {item: "runtime containerd", state: checklist.OK, detail: `essential, handlers ["" "runc"], ready`},
		"handlers":            {item: "handlers", state: checklist.OK, detail: "runc is containerd's, virtlet is virtlet's"},
		"driver":              {item: "cgroup driver", state: checklist.OK, detail: "systemd, says containerd, virtlet"},
		"image_rules":         {item: "images", state: checklist.OK, detail: "virtlet.cloud/ goes to virtlet"},
		"what_kubelet_sees":   {item: "kubelet sees pods", state: checklist.OK, detail: "3 sandboxes, 0 containers"},
		"version_kubelet_has": {item: "kubelet sees the runtime", state: checklist.OK, detail: "containerd 1.2.3"},
		"file_systems":        {item: "kubelet sees file systems", state: checklist.OK, detail: "/containerd, /virtlet;"},

		"down":                {conf: func(_ *testing.T, c *Config) { c.Runtimes[1] = "virtlet=unix:///nonexistent/s" }, item: "runtime virtlet", state: checklist.Missing, detail: "optional: "},
		"lists_with_one_down": {conf: func(_ *testing.T, c *Config) { c.Runtimes[1] = "virtlet=unix:///nonexistent/s" }, item: "kubelet sees pods", state: checklist.Missing, detail: "virtlet"},
		"status_with_one_down": {conf: func(_ *testing.T, c *Config) { c.Runtimes[1] = "virtlet=unix:///nonexistent/s" },
			item: "kubelet sees its status", state: checklist.OK, detail: "virtlet/RuntimeReady=false"},
		"not_ready":           {change: func(_, other *fakeRuntime) { other.notReady = runtimeapi.RuntimeReady }, item: "runtime virtlet", state: checklist.Missing, detail: "RuntimeReady is false:  the reason"},
		"old_api":             {change: func(_, other *fakeRuntime) { other.api = "v1alpha2" }, item: "runtime virtlet", state: checklist.Missing, detail: "speaks CRI v1alpha2"},
		"handlers_overlap":    {change: func(_, other *fakeRuntime) { other.handlers = []string{"runc"} }, item: "handlers", state: checklist.Missing, detail: `"runc" is claimed by containerd and by virtlet`},
		"overlap_is_solved":   {change: func(_, other *fakeRuntime) { other.handlers = []string{"runc", "vm"} }, conf: func(_ *testing.T, c *Config) { c.Handlers = []string{"virtlet=vm"} }, item: "handlers", state: checklist.OK, detail: "vm is virtlet's"},
		"drivers_differ":      {change: func(_, other *fakeRuntime) { other.driver = runtimeapi.CgroupDriver_CGROUPFS }, item: "cgroup driver", state: checklist.Missing, detail: "differ"},
		"driver_to_kubelet":   {change: func(_, other *fakeRuntime) { other.driver = runtimeapi.CgroupDriver_CGROUPFS }, item: "kubelet sees its configuration", state: checklist.Missing, detail: "different cgroup drivers"},
		"no_driver_is_told":   {change: func(one, other *fakeRuntime) { one.noConfig, other.noConfig = true, true }, item: "cgroup driver", state: checklist.Warning, detail: "no runtime tells it"},
		"kubelets_own_driver": {change: func(one, other *fakeRuntime) { one.noConfig, other.noConfig = true, true }, item: "kubelet sees its configuration", state: checklist.Warning, detail: "unknown method"},
		"handler_mistyped":    {conf: func(_ *testing.T, c *Config) { c.Handlers = []string{"virtlet=vitrlet"} }, item: "handlers of virtlet", state: checklist.Warning, detail: `"vitrlet" is given to it, but it tells ["" "virtlet"]`},
		"handler_not_told":    {change: func(_, other *fakeRuntime) { other.handlers = nil }, conf: func(_ *testing.T, c *Config) { c.Handlers = []string{"virtlet=virtlet"} }, item: "handlers", state: checklist.OK, detail: "virtlet is virtlet's"},
		"handlers_unknown":    {conf: func(_ *testing.T, c *Config) { c.Runtimes[1] = "virtlet=unix:///nonexistent/s" }, item: "handlers", state: checklist.Warning, detail: "runc is containerd's; not known are those of virtlet"},
		"old_default":         {change: func(one, _ *fakeRuntime) { one.handlers = nil }, item: "handlers", state: checklist.OK, detail: "virtlet is virtlet's, any other is left to containerd, which tells none; pods"},
		"one_runtime_twice": {conf: func(t *testing.T, c *Config) {
			link := filepath.Join(socketDir(t), "l")
			_, endpoint, _ := strings.Cut(c.Runtimes[0], "="+proxy.EndpointPrefix)
			if err := os.Symlink(endpoint, link); err != nil {
				t.Fatal(err)
			}
			c.Runtimes[1] = "virtlet=" + proxy.EndpointPrefix + link
		}, item: "sockets", state: checklist.Missing, detail: "are one socket"},
	} {
		t.Run(name, func(t *testing.T) {
			one, other := two()
			if tc.change != nil {
				tc.change(one, other)
			}
			conf := defaults()
			conf.Listen = proxy.EndpointPrefix + filepath.Join(socketDir(t), "p")
			conf.Runtimes = []string{"containerd=" + one.serve(t), "virtlet=" + other.serve(t)}
			if tc.conf != nil {
				tc.conf(t, &conf)
			}
			report, err := checkRuntimes(t.Context(), conf)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, item := range report.Items {
				if item.Name != tc.item {
					continue
				}
				found = true
				if item.State != tc.state || !strings.Contains(item.Detail, tc.detail) {
					t.Errorf("%s: %s %s; want %s, %s", item.Name, item.State, item.Detail, tc.state, tc.detail)
				}
				if (item.Todo == "") != (item.State == checklist.OK) {
					t.Errorf("%s: what to do is %q", item.Name, item.Todo)
				}
			}
			if !found {
				t.Errorf("no item %q in %v", tc.item, report.Items)
			}
			broken := tc.state == checklist.Missing || strings.Contains(name, "down") || strings.Contains(name, "unknown")
			if (checkError(report) != nil) != broken || report.OK == broken {
				t.Errorf("the command's error: %v, ok: %t", checkError(report), report.OK)
			}
		})
	}
}
