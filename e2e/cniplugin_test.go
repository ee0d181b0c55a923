package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/invoke"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// testPlugins are the names under which the test binary is a CNI plugin. Each has one subject: twin makes two
// interfaces, faulty does what its conduct file says.
var testPlugins = map[string]func(stdin []byte) error{"twin": twin, "faulty": faulty}

// actAsPlugin does not return when the test binary was started under a plugin's name.
func actAsPlugin() {
	plugin := testPlugins[filepath.Base(os.Args[0])]
	if plugin == nil {
		return
	}
	stdin, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = plugin(stdin)
	}
	if err != nil {
		b, _ := json.Marshal(map[string]any{"cniVersion": "1.0.0", "code": 100, "msg": err.Error()})
		fmt.Println(string(b))
		os.Exit(1)
	}
	os.Exit(0)
}

// pluginDir makes a directory with the test plugins and returns it, and the daemon's setting with which it is searched.
func pluginDir(t *testing.T) (dir string, search []string) {
	t.Helper()
	dir = t.TempDir()
	exe := must[string](t)(os.Executable())
	for name := range testPlugins {
		ok(t, os.Symlink(exe, filepath.Join(dir, name)))
	}
	return dir, []string{dir, "/usr/lib/cni", "/opt/cni/bin"}
}

// twin attaches the pod to each of "networks" in turn, as eth0, net1 and so on. Its result lists all of them, or with
// "silent" the first alone, as meta-plugins do that follow the specification to the letter.
func twin(stdin []byte) error {
	var conf struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Silent     bool             `json:"silent"`
		Networks   []map[string]any `json:"networks"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return err
	}
	first, all := os.Getenv("CNI_IFNAME"), &types100.Result{}
	for i, network := range conf.Networks {
		network["cniVersion"], network["name"] = conf.CNIVersion, conf.Name+strconv.Itoa(i)
		b, err := json.Marshal(network)
		if err != nil {
			return err
		}
		name := first
		if i > 0 {
			name = "net" + strconv.Itoa(i)
		}
		if err := os.Setenv("CNI_IFNAME", name); err != nil {
			return err
		}
		res, err := delegate(network["type"].(string), b)
		if err != nil {
			return fmt.Errorf("network %d: %w", i, err)
		}
		if res != nil && (i == 0 || !conf.Silent) {
			merge(all, res)
		}
	}
	if os.Getenv("CNI_COMMAND") != "ADD" {
		return nil
	}
	all.CNIVersion = conf.CNIVersion
	return all.Print()
}

// delegate runs another plugin with this one's environment.
func delegate(plugin string, conf []byte) (*types100.Result, error) {
	ctx := context.Background()
	switch command := os.Getenv("CNI_COMMAND"); command {
	case "ADD":
		res, err := invoke.DelegateAdd(ctx, plugin, conf, nil)
		if err != nil {
			return nil, err
		}
		return types100.GetResult(res)
	case "DEL":
		return nil, invoke.DelegateDel(ctx, plugin, conf, nil)
	default: // CHECK wants each network's own result, which twin has not kept
		return nil, nil
	}
}

// merge adds the interfaces, addresses and routes of b to a.
func merge(a, b *types100.Result) {
	before := len(a.Interfaces)
	a.Interfaces = append(a.Interfaces, b.Interfaces...)
	for _, ip := range b.IPs {
		if ip.Interface != nil {
			ip.Interface = types100.Int(*ip.Interface + before)
		}
		a.IPs = append(a.IPs, ip)
	}
	a.Routes = append(a.Routes, b.Routes...)
	if before == 0 {
		a.DNS = b.DNS
	}
}

// faulty is a chained plugin that hands on what it is given, but for the commands that the file "conduct" beside it names:
//
//	ADD fail    fails with the message "the fabric controller refuses"
//	DEL hang    never ends, and has a child that does not either; both are in the file "pids"
func faulty(stdin []byte) error {
	dir := filepath.Dir(os.Args[0])
	conduct, err := os.ReadFile(filepath.Join(dir, "conduct"))
	if err != nil {
		return err
	}
	command := os.Getenv("CNI_COMMAND")
	lines := strings.Split(string(conduct), "\n")
	switch {
	case slices.Contains(lines, command+" fail"):
		return fmt.Errorf("the fabric controller refuses %s", command)
	case slices.Contains(lines, command+" hang"):
		child := exec.Command("sleep", "1000")
		child.Stdout = os.Stdout // an open pipe must not keep the caller waiting
		if err := child.Start(); err != nil {
			return err
		}
		pids := fmt.Sprintln(os.Getpid(), child.Process.Pid)
		if err := os.WriteFile(filepath.Join(dir, "pids"), []byte(pids), 0o600); err != nil {
			return err
		}
		return child.Wait()
	case command != "ADD":
		return nil
	}
	var conf struct {
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return err
	}
	fmt.Println(string(conf.PrevResult))
	return nil
}
