package registry

import (
	"errors"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/runtime/image/source"
)

func TestNormalize(t *testing.T) {
	sum := "sha256:" + strings.Repeat("ab", 32)
	for ref, want := range map[string]Name{
		"cirros":                         {Host: "docker.io", Path: "library/cirros", Tag: "latest"},
		"cirros:0.6":                     {Host: "docker.io", Path: "library/cirros", Tag: "0.6"},
		"kubevirt/cirros":                {Host: "docker.io", Path: "kubevirt/cirros", Tag: "latest"},
		"index.docker.io/cirros":         {Host: "docker.io", Path: "library/cirros", Tag: "latest"},
		"localhost/vm":                   {Host: "localhost", Path: "vm", Tag: "latest"},
		"localhost:5000/a/b/c:v1":        {Host: "localhost:5000", Path: "a/b/c", Tag: "v1"},
		"[::1]:5000/vm":                  {Host: "[::1]:5000", Path: "vm", Tag: "latest"},
		"quay.io/x/y@" + sum:             {Host: "quay.io", Path: "x/y", Digest: sum},
		"quay.io/x/y:tag@" + sum:         {Host: "quay.io", Path: "x/y", Digest: sum},
		"registry.example.org:5000/x__y": {Host: "registry.example.org:5000", Path: "x__y", Tag: "latest"},
	} {
		got, err := Normalize(ref)
		if err != nil || got != want {
			t.Errorf("Normalize(%q) = %+v, %v; want %+v", ref, got, err, want)
		}
		if again, err := Normalize(got.String()); err != nil || again != got {
			t.Errorf("%s is not canonical: %+v, %v", got, again, err)
		}
	}
	for name, ref := range map[string]string{
		"empty": "", "upper_case": "quay.io/Fedora", "scheme": "https://quay.io/x", "credentials": "user:s3cret@quay.io/x",
		"tag": "quay.io/x:-y", "short_digest": "quay.io/x@sha256:abcd", "sha512": "quay.io/x@sha512:" + strings.Repeat("ab", 64),
		"other_algorithm": "quay.io/x@md5:" + strings.Repeat("ab", 16), "hex_alone": strings.Repeat("ab", 32), "dots": "quay.io/../x", "host_that_is_none": "0.0_e/x",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Normalize(ref)
			if !errors.Is(err, source.ErrInvalidName) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("Normalize(%q) = %+v, %v; want an invalid name", ref, got, err)
			}
		})
	}
}
