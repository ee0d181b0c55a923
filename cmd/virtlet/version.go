package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Version of this program, as the Go toolchain stamped it: a release from its tag, any other build from its commit.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	Arch    string `json:"arch"`
}

// develVersion is a semantic version, which kubelet demands, for a build without a stamp.
const develVersion = "0.0.0-devel"

func readVersion() Version {
	v := Version{Version: develVersion, Go: runtime.Version(), Arch: runtime.GOARCH}
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
	s := "virtlet " + v.Version
	if v.Commit != "" {
		s += " (" + v.Commit[:min(len(v.Commit), 12)] + ")"
	}
	return s + fmt.Sprintf(" %s %s", v.Go, v.Arch)
}
