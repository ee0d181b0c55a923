package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const top = "../.."

// TestImports reads the real graph.
func TestImports(t *testing.T) {
	for _, tags := range []string{"", "faultpoints"} {
		t.Run("tags="+tags, func(t *testing.T) {
			g := read(t, tags)
			if len(g) < 100 {
				t.Fatalf("go list tells of %d packages only", len(g))
			}
			for _, fault := range g.Check() {
				t.Error(fault)
			}
		})
	}
}

func TestNoGoFileInRuntime(t *testing.T) {
	// Test files make no package that go list -deps shows.
	if files, err := filepath.Glob(top + "/runtime/*.go"); err != nil || len(files) > 0 {
		t.Errorf("%v, %v: runtime is the standard library's name", files, err)
	}
}

func read(t *testing.T, tags string) Graph {
	t.Helper()
	cmd := exec.Command("go", "list", "-tags="+tags, "-deps", "-json=ImportPath,Imports", "./...")
	cmd.Dir = top
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	g := Graph{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p Package
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return g
		} else if err != nil {
			t.Fatal(err)
		}
		g[p.ImportPath] = p
	}
}

// TestCheck tries the rules on made-up graphs, each "importer > imported imported".
func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		graph []string
		fault string // "" means none
	}{
		"as_designed": {[]string{
			"+cmd/virtlet > +runtime/cri +runtime/state +sandbox/supervisor",
			"+runtime/cri > +sandbox/supervisor +runtime/annotations +cgroups fmt",
			"+sandbox/supervisor > +sandbox/wrapper +sandbox/disk +sandbox/domain +netns +netns/cni +cgroups +qmp",
			"+sandbox/wrapper > +sandbox/domain +netns +qmp",
			"+netns/cni > +netns",
			"+qmp/monitor > +qmp github.com/digitalocean/go-qemu/qmp",
			"github.com/digitalocean/go-qemu/qmp > github.com/digitalocean/go-libvirt",
			"github.com/digitalocean/go-libvirt > github.com/digitalocean/go-libvirt/socket",
			"+e2e > +runtime/cri +e2e/rig +netns",
			"+bench > +e2e/rig",
		}, ""},
		"domain_looks_sideways":       {[]string{"+sandbox/domain > +sandbox/disk"}, "definition is pure"},
		"qmp_looks_up":                {[]string{"+qmp > +sandbox/domain"}, "bottom layer"},
		"cgroups_looks_sideways":      {[]string{"+cgroups > +netns"}, "bottom layer"},
		"netns_looks_sideways":        {[]string{"+netns > +qmp"}, "bottom layer"},
		"sandbox_looks_up":            {[]string{"+sandbox/supervisor > +runtime/state"}, "downward"},
		"runtime_looks_up":            {[]string{"+runtime/image > +cmd/virtlet"}, "downward"},
		"wrapper_takes_cgroups":       {[]string{"+sandbox/wrapper > +cgroups"}, "stay small"},
		"translation_knows_the_store": {[]string{"+runtime/image/translate > +runtime/image"}, "neither the store"},
		"a_source_knows_another":      {[]string{"+runtime/image/source > +runtime/image/translate"}, "none of them"},
		"cri_starts_wrappers":         {[]string{"+runtime/cri > +sandbox/wrapper"}, "supervisor alone"},
		"cri_makes_disks":             {[]string{"+runtime/cri > +sandbox/disk"}, "supervisor alone"},
		"cri_speaks_qmp":              {[]string{"+runtime/cri > +qmp"}, "supervisor alone"},
		"registry_takes_the_store":    {[]string{"+runtime/image/registry > +runtime/image"}, "knows nothing of the store"},
		"image_server_takes_store":    {[]string{"+runtime/image/serve > +runtime/image"}, "no part of the daemon"},
		"image_server_takes_cri":      {[]string{"+cmd/virtlet-images > +runtime/image/serve +runtime/cri"}, "no part of the daemon"},
		"control_reaches_vms":         {[]string{"+runtime/control > +sandbox/supervisor"}, "tells of images alone"},
		"metrics_speak_qmp":           {[]string{"+runtime/metrics > +qmp"}, "supervisor alone"},
		"criproxy_knows_a_runtime":    {[]string{"+runtime/proxy > +runtime/cri"}, "by CRI alone"},
		"criproxy_takes_the_daemon":   {[]string{"+cmd/criproxy > +runtime/state"}, "by CRI alone"},
		"shared_code_knows_a_program": {[]string{"+cmd/internal/setting > +runtime/image"}, "none of them"},
		"criproxy_links_a_database":   {[]string{"+cmd/criproxy > example.org/a", "example.org/a > go.etcd.io/bbolt", "go.etcd.io/bbolt > fmt"}, "links go.etcd.io/bbolt"},
		"program_takes_test_code":     {[]string{"+cmd/virtlet > +e2e/rig"}, "stays out of the programs"},
		"libvirt_by_us":               {[]string{"+sandbox/domain > libvirt.org/go/libvirtxml"}, "nothing of libvirt"},
		"libvirt_rpc_by_us":           {[]string{"+qmp > github.com/digitalocean/go-libvirt"}, "nothing of libvirt"},
		"libvirt_by_another":          {[]string{"example.org/x > github.com/digitalocean/go-libvirt"}, "nothing of libvirt"},
		"go_files_in_runtime":         {[]string{"+runtime > fmt"}, "standard library's"},
		"util":                        {[]string{"+sandbox/util > fmt"}, `"util"`},
		"pkg_on_top":                  {[]string{"+pkg/netns > fmt"}, `"pkg"`},
		"a_new_folder_needs_a_rule":   {[]string{"+agent > +qmp"}, "no rule"},
		"wrapper_links_grpc_far_away": {[]string{"+cmd/vmwrapper > example.org/a", "example.org/a > google.golang.org/grpc/codes", "google.golang.org/grpc/codes > fmt"}, "links google.golang.org/grpc/codes"},
		"similar_names_are_others":    {[]string{"+sandbox/wrapperx > +cgroups", "+cmd/virtlet > google.golang.org/grpcx"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := Graph{}
			for _, line := range tc.graph {
				fields := strings.Fields(strings.ReplaceAll(line, "+", Module+"/"))
				g[fields[0]] = Package{ImportPath: fields[0], Imports: fields[2:]}
			}
			faults := g.Check()
			if tc.fault == "" && len(faults) > 0 || tc.fault != "" && (len(faults) != 1 || !strings.Contains(faults[0], tc.fault)) {
				t.Errorf("got %q; want %q alone", faults, tc.fault)
			}
		})
	}
}
