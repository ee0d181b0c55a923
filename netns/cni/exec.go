package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// runner runs plugins in place of libcni's own runner, which kills only the plugin when time is up and then waits for
// whatever the plugin started.
type runner struct {
	version.PluginDecoder
}

const (
	// maxOutput bounds what is kept of a plugin's stdout and stderr, in bytes.
	maxOutput = 1 << 20
	// pipeGrace is how long a killed plugin's pipes may stay open in a process that escaped its group.
	pipeGrace = time.Second
	busyTries = 5
)

// FindInPath finds the plugin's file.
func (*runner) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("%w: %q is not in %s: install it there, or correct the CNI configuration or the plugin directories",
			ErrPluginMissing, plugin, strings.Join(dirs, ", "))
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return "", fmt.Errorf("%w: %s is not executable: %w", ErrPluginMissing, path, err)
	}
	return path, nil
}

// ExecPlugin runs a plugin in its own process group, and kills the group when ctx ends. An error names the plugin.
func (*runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	name := filepath.Base(path)
	// PDEATHSIG is sent when the thread that forked ends, not the process: so the thread is held while the plugin runs.
	// A plugin must not go on after us: recovery would run DEL beside its ADD, and lose what that makes afterwards.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for try := 0; ; try++ {
		var stdout, stderr limited
		cmd := exec.CommandContext(ctx, path)
		cmd.Env = environ
		cmd.Stdin = bytes.NewReader(stdin)
		cmd.Stdout = &stdout
		cmd.Stderr = &stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		cmd.WaitDelay = pipeGrace
		cmd.Cancel = func() error {
			err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			if errors.Is(err, syscall.ESRCH) {
				return os.ErrProcessDone
			}
			return err
		}
		err := cmd.Run()
		switch {
		case err == nil || errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil:
			if err := checkOutput(stdout.buf.Bytes()); err != nil {
				return nil, fmt.Errorf("plugin %q: %w", name, err)
			}
			return stdout.buf.Bytes(), nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("plugin %q was killed: %w%s", name, context.Cause(ctx), stderr.tail())
		case errors.Is(err, syscall.ETXTBSY) && try < busyTries: // just being installed
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		default:
			return nil, pluginError(name, err, &stdout, &stderr)
		}
	}
}

// checkOutput refuses a result in whose lists null stands for an entry: libcni would panic, and the daemon with it.
func checkOutput(stdout []byte) error {
	var result struct {
		Interfaces []json.RawMessage `json:"interfaces"`
		IPs        []json.RawMessage `json:"ips"`
		Routes     []json.RawMessage `json:"routes"`
	}
	if json.Unmarshal(stdout, &result) != nil {
		return nil //nolint:nilerr // no result, or one that libcni will refuse
	}
	for _, entry := range slices.Concat(result.Interfaces, result.IPs, result.Routes) {
		if string(entry) == "null" {
			return errors.New("its result has an empty entry (null) among interfaces, ips or routes; this is a fault of the plugin")
		}
	}
	return nil
}

// pluginError is what the plugin says on stdout, as CNI asks of it, or else what it left on stderr.
func pluginError(name string, err error, stdout, stderr *limited) error {
	var e types.Error
	if json.Unmarshal(stdout.buf.Bytes(), &e) == nil && e.Msg != "" {
		return fmt.Errorf("plugin %q: %w", name, &e)
	}
	return fmt.Errorf("plugin %q failed without a CNI error message: %w%s", name, err, stderr.tail())
}

// limited keeps the first maxOutput bytes and swallows the rest, so that a plugin can neither fill our memory nor
// block on a full pipe.
type limited struct{ buf bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.buf.Len(); room > 0 {
		l.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// tail is the end of the output, for an error message.
func (l *limited) tail() string {
	const most = 500
	s := strings.TrimSpace(l.buf.String())
	if s == "" {
		return ""
	}
	if len(s) > most {
		s = "..." + s[len(s)-most:]
	}
	return fmt.Sprintf(" (stderr: %s)", s)
}
