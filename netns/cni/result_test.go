package cni

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/virtlet/virtlet/netns"
)

var update = flag.Bool("update", false, "write golden files")

// Each file in testdata/result holds a plugin's result and what the kernel says; beside it lies what the guest is told.
func TestNetworkFromResult(t *testing.T) {
	files, err := filepath.Glob("testdata/result/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		t.Run(name, func(t *testing.T) {
			var in struct {
				PodDNS netns.DNS
				Result json.RawMessage
				Links  []link
			}
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(b, &in); err != nil {
				t.Fatal(err)
			}
			raw, err := create.CreateFromBytes(in.Result)
			if err != nil {
				t.Fatal(err)
			}
			res, err := types100.GetResult(raw)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			n, err := network(res, in.Links, "/run/netns/pod", "eth0", in.PodDNS)
			if (err != nil) != strings.HasPrefix(name, "error_") {
				t.Fatalf("error: %v", err)
			}
			if err != nil {
				got = "error: " + err.Error() + "\n"
			} else {
				b, err := json.MarshalIndent(n, "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				got = string(b) + "\n"
			}
			golden := filepath.Join("testdata/result", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestCheckOutput(t *testing.T) {
	for output, refused := range map[string]bool{
		``:                            false,
		`no JSON`:                     false,
		`{"supportedVersions":["1"]}`: false,
		`{"interfaces":null,"ips":[],"routes":[{"dst":"0.0.0.0/0"}]}`: false,
		`{"cniVersion":"0.4.0","interfaces":[null]}`:                  true,
		`{"ips":[{"address":"10.1.0.5/24"}, null ]}`:                  true,
		`{"Routes":[null]}`: true,
	} {
		if err := checkOutput([]byte(output)); (err != nil) != refused {
			t.Errorf("%s: %v", output, err)
		}
	}
}
