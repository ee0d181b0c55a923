// Package arch holds the import graph to the design: who may know whom, and who may be linked by whom. The rules are a
// table over import paths, so that they can be tried on made-up graphs too. The test reads the real graph from go list.
package arch

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Module is this repository's import path.
const Module = "github.com/virtlet/virtlet"

// Package is what go list -json tells of one package, as far as the rules need it.
type Package struct {
	ImportPath string
	// Imports are direct.
	Imports []string
}

// Graph holds packages, ours and others, by import path.
type Graph map[string]Package

// rule says which of our own packages those in one folder may import.
type rule struct {
	// of is the folder, with all below it.
	of string
	// may lists folders of ours, each with all below it; "" alone means all.
	may []string
	why string
}

// The first rule whose folder holds a package is its rule.
var directions = []rule{
	{"sandbox/domain", nil, "a machine's definition is pure"},
	{"sandbox/cage", nil, "a cage knows nothing of what is in it"},
	{"sandbox/wrapper", []string{"sandbox/wrapper", "sandbox/domain", "sandbox/cage", "netns", "qmp"}, "vmwrapper is to stay small"},
	{"sandbox", []string{"sandbox", "netns", "cgroups", "qmp"}, "imports run downward only"},
	{"runtime/cri", []string{"runtime", "sandbox/supervisor", "sandbox/domain", "netns", "cgroups"},
		"CRI reaches a VM through sandbox/supervisor alone"},
	{"runtime/image/source", nil, "what all sources share knows none of them"},
	{"runtime/image/translate", []string{"runtime/image/source"}, "translation knows neither the store nor registries"},
	{"runtime/image/registry", []string{"runtime/image/source"}, "a source of images knows nothing of the store"},
	{"runtime/image/serve", []string{"runtime/image/serve"}, "what serves images is no part of the daemon"},
	{"runtime/control", []string{"runtime/control", "runtime/image"}, "our protocol tells of images alone"},
	{"runtime/metrics", []string{"runtime", "sandbox/supervisor", "sandbox/domain"}, "metrics reach a VM through sandbox/supervisor alone"},
	{"runtime/proxy", nil, "criproxy knows runtimes by CRI alone"},
	{"runtime", []string{"runtime", "sandbox", "netns", "cgroups", "qmp"}, "imports run downward only"},
	{"netns", []string{"netns"}, "the bottom layer imports none of the others"},
	{"cgroups", []string{"cgroups"}, "the bottom layer imports none of the others"},
	{"qmp", []string{"qmp"}, "the bottom layer imports none of the others"},
	{"cmd/virtlet-images", []string{"cmd/internal/usage", "runtime/image/serve"}, "what serves images is no part of the daemon"},
	{"cmd/internal", []string{"cmd/internal"}, "what programs share knows none of them"},
	{"cmd/criproxy", []string{"cmd/internal", "runtime/proxy"}, "criproxy knows runtimes by CRI alone"},
	{"cmd", []string{"cmd", "runtime", "sandbox", "netns", "cgroups", "qmp"}, "what is for tests stays out of the programs"},
	// What drives the whole may know the whole.
	{"e2e", []string{""}, ""},
	{"bench", []string{""}, ""},
}

// badNames tell nothing of what is inside.
var badNames = []string{"util", "utils", "common", "helper", "helpers", "pkg", "misc"}

// light are programs that must stay small, and what they must not link: vmwrapper runs once per VM, and criproxy only passes
// messages on.
var light = map[string][]string{
	"cmd/vmwrapper": {
		"google.golang.org/grpc", "google.golang.org/protobuf", "k8s.io/", "go.etcd.io/",
		"github.com/sirupsen/logrus", "github.com/opencontainers/cgroups", "github.com/containernetworking/",
	},
	"cmd/criproxy": {
		"go.etcd.io/", "k8s.io/apimachinery", "k8s.io/klog", "k8s.io/cri-streaming",
		"github.com/opencontainers/cgroups", "github.com/containernetworking/", "github.com/vishvananda/netlink",
	},
}

// libvirtUser is the one package that may import libvirt: its monitor over libvirt comes with the types that we use, and
// is never called.
const libvirtUser = "github.com/digitalocean/go-qemu/qmp"

// Check gives every breach of the rules, sorted. The graph must be complete but for the standard library.
func (g Graph) Check() []string {
	var faults []string
	for _, p := range g {
		dir, ours := folder(p.ImportPath)
		if ours {
			faults = append(faults, checkNames(dir)...)
		}
		for _, imported := range p.Imports {
			if strings.Contains(imported, "libvirt") && p.ImportPath != libvirtUser && !strings.Contains(p.ImportPath, "go-libvirt") {
				faults = append(faults, fmt.Sprintf("%s imports %s: nothing of libvirt but by %s", p.ImportPath, imported, libvirtUser))
			}
			if to, alsoOurs := folder(imported); ours && alsoOurs {
				faults = append(faults, checkDirection(dir, to)...)
			}
		}
	}
	for dir, heavy := range light {
		for linked := range g.deps(path.Join(Module, dir)) {
			for _, h := range heavy {
				if linked == h || strings.HasPrefix(linked, strings.TrimSuffix(h, "/")+"/") {
					faults = append(faults, fmt.Sprintf("%s links %s: it is to stay small", dir, linked))
				}
			}
		}
	}
	slices.Sort(faults)
	return slices.Compact(faults)
}

func checkNames(dir string) []string {
	var faults []string
	if dir == "runtime" {
		faults = append(faults, "runtime holds Go files: its name is the standard library's, so only its folders do")
	}
	for element := range strings.SplitSeq(dir, "/") {
		if slices.Contains(badNames, element) {
			faults = append(faults, fmt.Sprintf("%s: the name %q tells nothing; a thing lives where it is used", dir, element))
		}
	}
	return faults
}

func checkDirection(from, to string) []string {
	for _, r := range directions {
		if !within(from, r.of) {
			continue
		}
		for _, may := range r.may {
			if within(to, may) {
				return nil
			}
		}
		return []string{fmt.Sprintf("%s imports %s: %s", from, to, r.why)}
	}
	return []string{fmt.Sprintf("%s has no rule: give it one", from)}
}

// deps is all that root links, itself included.
func (g Graph) deps(root string) map[string]bool {
	seen := map[string]bool{}
	todo := []string{root}
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		if seen[p] {
			continue
		}
		if _, known := g[p]; known {
			seen[p] = true
			todo = append(todo, g[p].Imports...)
		}
	}
	return seen
}

// folder is the path of one of our packages below the module.
func folder(importPath string) (dir string, ours bool) {
	if importPath == Module {
		return ".", true
	}
	return strings.CutPrefix(importPath, Module+"/")
}

func within(dir, top string) bool {
	return top == "" || dir == top || strings.HasPrefix(dir, top+"/")
}
