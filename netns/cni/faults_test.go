package cni_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/virtlet/virtlet/netns/cni"
)

func TestFaults(t *testing.T) {
	const fail = `[ "$CNI_COMMAND" = FAULT ] && { echo '{"cniVersion":"1.0.0","code":11,"msg":"no luck","details":"today"}'; exit 1; }
[ "$CNI_COMMAND" = ADD ] && { sed 's/.*"prevResult":\({.*}\),"type".*/\1/'; }
exit 0
`
	chained := func(n *node, when, script string) {
		n.plugin("faulty", strings.ReplaceAll(script, "FAULT", when))
		n.write("10-test.conflist", n.bridge("1.0.0", portmap, `{"type":"faulty"}`))
	}
	tests := map[string]struct {
		setUp   func(n *node)
		is      error
		message []string
	}{
		"plugin fails on ADD": {
			setUp:   func(n *node) { chained(n, "ADD", fail) },
			message: []string{`CNI ADD of network "testnet" for pod default/pod-1 (0000`, `plugin "faulty": no luck; today`},
		},
		"plugin dies without a word": {
			setUp:   func(n *node) { chained(n, "ADD", "[ $CNI_COMMAND = FAULT ] && { echo oh dear >&2; exit 3; }; exit 0") },
			message: []string{`plugin "faulty" failed without a CNI error message: exit status 3 (stderr: oh dear)`},
		},
		"plugin hangs with a child": {
			setUp: func(n *node) {
				n.conf.Timeout = 2 * time.Second
				chained(n, "ADD", "[ $CNI_COMMAND = FAULT ] && { sleep 300 & echo $! >>$LOG; echo $$ >>$LOG; wait; }; exit 0")
			},
			is:      context.DeadlineExceeded,
			message: []string{`plugin "faulty" was killed`, "longer than 2s"},
		},
		"plugin prints no JSON": {
			setUp:   func(n *node) { chained(n, "ADD", "[ $CNI_COMMAND = FAULT ] && { echo nonsense; }; exit 0") },
			message: []string{"faulty", "invalid character"},
		},
		"plugin prints without end": {
			setUp: func(n *node) {
				n.conf.Timeout = 2 * time.Second
				chained(n, "ADD", "[ $CNI_COMMAND = FAULT ] && exec cat /dev/zero; exit 0")
			},
			is: context.DeadlineExceeded,
		},
		"no configuration": {
			setUp: func(*node) {}, is: cni.ErrNoCNIConfig,
			message: []string{"put a NAME.conflist there"},
		},
		"configuration is bad JSON": {
			setUp: func(n *node) { n.write("10-test.conflist", `{"cniVersion":`) }, is: cni.ErrNoCNIConfig,
			message: []string{"10-test.conflist is not valid", "unexpected end of JSON input"},
		},
		"configuration without plugins": {
			setUp: func(n *node) { n.write("10-test.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[]}`) }, is: cni.ErrNoCNIConfig,
			message: []string{"no plugins in list"},
		},
		"configuration is a list": {
			setUp: func(n *node) { n.write("10-test.conf", `[]`) }, is: cni.ErrNoCNIConfig,
		},
		"plugin is missing": {
			setUp: func(n *node) { n.write("10-test.conflist", n.bridge("1.0.0", `{"type":"nowhere"}`)) }, is: cni.ErrPluginMissing,
			message: []string{`"nowhere" is not in `, pluginDir, "install it"},
		},
		"plugin is not executable": {
			setUp: func(n *node) {
				chained(n, "ADD", "")
				must(n.t, os.Chmod(filepath.Join(n.conf.BinDirs[0], "faulty"), 0o644))
			},
			is: cni.ErrPluginMissing, message: []string{"not executable"},
		},
		"plugin makes no interface": {
			setUp: func(n *node) {
				n.write("10-test.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"loopback"}]}`)
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			tt.setUp(n)
			a := n.pod()
			start := time.Now()
			err := n.in(func() error {
				_, err := n.cni().Add(context.Background(), a)
				return err
			})
			var e *cni.CNIError
			if !errors.As(err, &e) || e.Op != "ADD" || e.PodID != a.PodID {
				t.Fatalf("error %v", err)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
			for _, m := range tt.message {
				if !strings.Contains(err.Error(), m) {
					t.Errorf("no %q in: %v", m, err)
				}
			}
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("took %s", took)
			}
			for pid := range strings.FieldsSeq(n.log()) {
				if alive(pid) {
					t.Errorf("process %s of the plugin lives on", pid)
				}
			}
			// What could be undone is: DEL of the other plugins ran. A plugin that is missing keeps DEL from being
			// complete, so the pod stays on record and can be deleted once it is there.
			if errors.Is(err, cni.ErrPluginMissing) {
				n.plugin("nowhere", "exit 0")
				n.plugin("faulty", "exit 0")
				must(t, os.Chmod(filepath.Join(n.conf.BinDirs[0], "faulty"), 0o755))
				must(t, n.del(a))
			}
			n.wantNoLeftovers()
		})
	}
}

func TestPluginFailsOnDel(t *testing.T) {
	n := newNode(t)
	n.write("10-test.conflist", n.bridge("1.0.0", `{"type":"`+secondPlugin+`"}`))
	a := n.pod()
	n.add(a)
	broken := filepath.Join(n.conf.BinDirs[0], secondPlugin)
	exe, err := os.Readlink(broken)
	must(t, err)
	must(t, os.Remove(broken))
	n.plugin(secondPlugin, `echo '{"cniVersion":"1.0.0","code":7,"msg":"not today"}'; exit 1`)
	err = n.del(a)
	var e *cni.CNIError
	var p *types.Error
	if !errors.As(err, &e) || e.Op != "DEL" || !errors.As(err, &p) || p.Code != 7 {
		t.Fatalf("error %v", err)
	}
	must(t, os.Remove(broken))
	must(t, os.Symlink(exe, broken))
	must(t, n.del(a))
	n.wantNoLeftovers()
}

func TestContextEnds(t *testing.T) {
	n := newNode(t)
	n.plugin("slow", `[ "$CNI_COMMAND" = ADD ] && { echo started >$LOG; sleep 300; }; exit 0`)
	n.write("10-test.conflist", n.bridge("1.0.0", `{"type":"slow"}`))
	a := n.pod()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for n.log() == "" {
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
	}()
	err := n.in(func() error {
		_, err := n.cni().Add(ctx, a)
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	n.wantNoLeftovers() // undone although the caller's context had ended
}

func alive(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !strings.Contains(string(b), ") Z ")
}
