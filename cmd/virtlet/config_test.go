package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/virtlet/virtlet/cmd/internal/setting"
)

// load reads a configuration file with that text and those flags.
func load(t *testing.T, text string, args ...string) (Config, setting.Origins, string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "virtlet.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	bound := defaults()
	flags := pflag.NewFlagSet("virtlet", pflag.ContinueOnError)
	settings(&bound).Bind(flags)
	if err := flags.Parse(args); err != nil {
		return Config{}, nil, file, err
	}
	conf, from, err := loadConfig(file, "/nonexistent", flags)
	return conf, from, file, err
}

func TestConfigFile(t *testing.T) {
	conf, from, file, err := load(t, `
# a comment
state-dir: /srv/virtlet/
cni-bin-dir: [/a, /b]
handlers:
  - vm
default-memory: 1.5Gi
cni-timeout: 90s
accel: tcg
log-level: debug
metrics-address: 127.0.0.1:9617
allow-spoofing: true
nic-offload: false
listen: unix:///run/v/v.sock
image-plain-http-hosts: [registry, "10.0.0.1:80", "::1", "[::1]:80"]
`, "--accel=kvm", "--cni-exclusive", "--image-local-dirs=/x,/y", "--image-local-dirs=/z")
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.StateDir, want.CNIBinDirs, want.Handlers = "/srv/virtlet", []string{"/a", "/b"}, []string{"vm"}
	want.Listen = "/run/v/v.sock"
	want.MetricsAddress = "127.0.0.1:9617"
	want.AllowSpoofing, want.NICOffload = true, false
	want.DefaultMemory, want.CNITimeout, want.CNIExclusive, want.LogLevel = 1536<<20, 90*time.Second, true, "debug"
	want.Accel, want.ImageLocalDirs = "kvm", []string{"/x", "/y", "/z"}
	want.ImagePlainHTTP = []string{"registry", "10.0.0.1:80", "::1", "[::1]:80"}
	if diff := cmp.Diff(want, conf); diff != "" {
		t.Error(diff)
	}
	for key, origin := range map[string]string{"state-dir": file + ":3", "accel": "flag", "run-dir": ""} {
		if from[key] != origin {
			t.Errorf("%s comes from %q, want %q", key, from[key], origin)
		}
	}
}

func TestConfigFile_refused(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"unknown_key":       {"run-dir: /r\nstatedir: /x\n", `:2: unknown key "statedir": did you mean "state-dir"?`},
		"unknown_key_alone": {"frobnicate: 1\n", `:1: unknown key "frobnicate"; ` + "`virtlet config` lists"},
		"key_twice":         {"accel: tcg\naccel: kvm\n", `:2: key "accel" stands there twice`},
		"no_choice":         {"\naccel: kmv\n", `:2: accel: "kmv" is none of auto, kvm, tcg`},
		"relative_path":     {"state-dir: var/lib\n", `:1: state-dir: "var/lib" is not an absolute path`},
		"empty_path":        {"state-dir: ''\n", `:1: state-dir: "" is not an absolute path`},
		"no_value":          {"state-dir:\n", ":1: state-dir: has no value"},
		"list_for_text":     {"qemu: [a]\n", ":1: qemu: expected a single value"},
		"text_for_list":     {"cni-bin-dir: /a\n", ":1: cni-bin-dir: expected a list"},
		"relative_in_list":  {"cni-bin-dir:\n  - /a\n  - b\n", `cni-bin-dir: "b" is not an absolute path`},
		"twice_in_list":     {"handlers: [a, a]\n", `:1: handlers: "a" stands there twice`},
		"no_handler":        {"handlers: []\n", ":1: handlers: is empty"},
		"bad_handler":       {"handlers: [A_b]\n", ":1: handlers: \"A_b\" is not a handler's name"},
		"nested_list":       {"handlers: [[a]]\n", "expected a list of texts"},
		"no_size":           {"default-memory: lots\n", `:1: default-memory: "lots" is not a size`},
		"size_too_small":    {"default-memory: 1Mi\n", `:1: default-memory: "1Mi" is too small: at least`},
		"no_range":          {"vm-users: 70000\n", `:1: vm-users: "70000" is not a range of at least 3 user numbers`},
		"range_backwards":   {"vm-users: 70000-60000\n", `"70000-60000" is not a range of at least 3 user numbers`},
		"range_too_small":   {"vm-users: 70000-70001\n", "is not a range of at least 3 user numbers"},
		"root_in_range":     {"vm-users: 0-70000\n", "from 1000 on"},
		"range_too_far":     {"vm-users: 70000-4294967295\n", "is not a range of at least 3 user numbers"},
		"no_duration":       {"cni-timeout: 90\n", `:1: cni-timeout: "90" is not a length of time`},
		"negative_duration": {"cni-timeout: -1s\n", "is not a length of time"},
		"no_bool":           {"cni-exclusive: maybe\n", `:1: cni-exclusive: "maybe" is neither true nor false`},
		"spoofing_perhaps":  {"allow-spoofing: some\n", `:1: allow-spoofing: "some" is neither true nor false`},
		"socket_too_long":   {"listen: /" + strings.Repeat("x", 107) + "\n", ":1: listen: has 108 bytes; the kernel takes 107"},
		"streams_to_all":    {"streaming-address: 0.0.0.0:1\n", "is not on loopback"},
		"streams_no_port":   {"streaming-address: 127.0.0.1\n", "is not an address such as"},
		"metrics_for_all":   {"metrics-address: ':9617'\n", `:1: metrics-address: ":9617" has no host: 127.0.0.1:9617 is for this host alone`},
		"metrics_no_port":   {"metrics-address: localhost\n", "is not an address such as"},
		"metrics_bad_port":  {"metrics-address: '127.0.0.1:x1'\n", "has no valid port"},
		"relative_program":  {"qemu: bin/qemu\n", "neither a program's name nor an absolute path"},
		"log_level":         {"log-level: loud\n", "none of error, warning, info, debug, trace"},
		"url_for_host":      {"image-plain-http-hosts: ['http://a']\n", `:1: image-plain-http-hosts: "http://a" is not a host`},
		"no_image_name":     {"image-pinned: ['a b']\n", `:1: image-pinned: invalid image name "a b"`},
		"not_a_mapping":     {"- a\n", ":1: expected lines of the form"},
		"two_documents":     {"accel: tcg\n---\naccel: kvm\n", "more than one YAML document"},
		"no_yaml":           {"accel: [\n", "line 1"},
		"all_faults_told":   {"accel: x\nfrob: 1\n", `:2: unknown key "frob"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, file, err := load(t, tc.text)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v\nwant %q", err, tc.want)
			}
		})
	}
}

func TestConfigFile_together(t *testing.T) {
	_, _, _, err := load(t, "state-dir: /x\n", "--run-dir=/x/")
	if err == nil || !strings.Contains(err.Error(), "state-dir and run-dir are both /x") {
		t.Errorf("one directory for both: %v", err)
	}
}

func TestConfigFile_secrets(t *testing.T) {
	_, _, _, err := load(t, "image-pinned: ['https://user:hunter2@host/disk']\n")
	if err == nil || !strings.Contains(err.Error(), "credentials") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("credentials in a name that `virtlet config` prints: %v", err)
	}
}

func TestConfigFile_places(t *testing.T) {
	flags := pflag.NewFlagSet("virtlet", pflag.ContinueOnError)
	none := filepath.Join(t.TempDir(), "none.yaml")
	if conf, _, err := loadConfig("", none, flags); err != nil || cmp.Diff(defaults(), conf) != "" {
		t.Errorf("without a file at the usual place: %v", err)
	}
	if _, _, err := loadConfig(none, none, flags); err == nil || !strings.Contains(err.Error(), none) {
		t.Errorf("a file that was named and is not there: %v", err)
	}
	if conf, _, _, err := load(t, "# nothing but comments\n"); err != nil || cmp.Diff(defaults(), conf) != "" {
		t.Errorf("an empty file: %v", err)
	}
}

func TestFlags_refused(t *testing.T) {
	for flag, want := range map[string]string{
		"--accel=x": "none of", "--cni-bin-dir=a": "not an absolute path", "--no-such": "unknown flag",
	} {
		if _, _, _, err := load(t, "", flag); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", flag, err, want)
		}
	}
}

func TestPrintConfig(t *testing.T) {
	conf, from, _, err := load(t, "accel: tcg\ncni-timeout: 61s\nimage-pinned: ['a:1']\n", "--handlers=,vm", "--run-dir=/tmp/true")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := settings(&conf).Print(&out, from); err != nil {
		t.Fatal(err)
	}
	back, _, _, err := load(t, out.String())
	if err != nil {
		t.Fatalf("%v\nof what was printed:\n%s", err, out.String())
	}
	if diff := cmp.Diff(conf, back); diff != "" {
		t.Error(diff)
	}
	for _, line := range []string{`accel: tcg # .*virtlet\.yaml:1`, `handlers: \["", vm\] # flag`, `qemu-img: qemu-img # default`} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(out.String()) {
			t.Errorf("no line like %q in\n%s", line, out.String())
		}
	}
}

// Every setting must have a default that it accepts itself, and a help text.
func TestSettings(t *testing.T) {
	conf := defaults()
	for _, s := range settings(&conf).Settings {
		if s.Help == "" || s.Name != strings.ToLower(s.Name) {
			t.Errorf("setting %q, help %q", s.Name, s.Help)
		}
		if err := setting.Copy(s.Value, s.Value); err != nil {
			t.Errorf("%s: its default is refused: %v", s.Name, err)
		}
	}
	if diff := cmp.Diff(defaults(), conf); diff != "" {
		t.Error(diff)
	}
}
