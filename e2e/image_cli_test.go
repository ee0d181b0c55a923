package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtlet/virtlet/e2e/rig"
)

// TestImageCommands does with `virtlet image` what a person at a node does: an image from virtlet-images, the same from
// a file, and away with them; and reads the metrics of it.
func TestImageCommands(t *testing.T) {
	const metrics = "127.0.0.1:9617"
	r, pulled := host(t, rig.Options{Settings: map[string]any{"metrics-address": metrics}})
	run := func(args ...string) (stdout, stderr string, code int) {
		t.Helper()
		cmd := r.Command(within(t, patience), r.Bin.Virtlet, append([]string{"image", "--listen", r.Socket()}, args...)...)
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := r.Start(cmd)
		if err == nil {
			err = cmd.Wait()
		}
		exit := (*exec.ExitError)(nil)
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
	}
	good := func(args ...string) string {
		t.Helper()
		out, stderr, code := run(args...)
		if code != 0 {
			t.Fatalf("image %s: exit code %d\n%s", strings.Join(args, " "), code, stderr)
		}
		return out
	}
	good("rm", pulled)
	address, _, err := r.ServeImage(testImage, "test.qcow2")
	ok(t, err)
	served := "virtlet.cloud/" + address + "/test.qcow2"

	out, stderr, code := run("pull", served)
	id := strings.TrimSpace(out)
	if code != 0 || !strings.HasPrefix(id, "sha256:") || !strings.Contains(stderr, served+":latest done") {
		t.Fatalf("pull: exit code %d\n%s%s", code, out, stderr)
	}
	if out := good("import", testImage, "mine"); strings.TrimSpace(out) != id {
		t.Errorf("the same content from a file is %s, want %s", out, id)
	}
	if _, stderr, code := run("import", testImage, "other@sha256:"+strings.Repeat("0", 64)); code != 1 || !strings.Contains(stderr, id) || strings.Contains(stderr, "rpc error") {
		t.Errorf("import of another digest: exit code %d\n%s", code, stderr)
	}
	if _, stderr, code := run("import", filepath.Join(r.Dir, "virtlet.yaml"), "mine"); code != 1 || !strings.Contains(stderr, "virtlet.yaml") {
		t.Errorf("import of what is no disk: exit code %d\n%s", code, stderr)
	}
	var images []struct {
		ID     string
		Tags   []string
		Format string
	}
	ok(t, json.Unmarshal([]byte(good("ls", "-o", "json")), &images))
	if len(images) != 1 || images[0].ID != id || images[0].Format != "qcow2" || len(images[0].Tags) != 2 {
		t.Errorf("lists %+v", images)
	}
	if table := good("ls"); strings.Count(table, strings.TrimPrefix(id, "sha256:")[:12]) != 2 || !strings.Contains(table, "mine:latest") {
		t.Errorf("lists\n%s", table)
	}

	terminal := must[*rig.Session](t)(r.ConverseOnTerminal(within(t, patience), r.Bin.Virtlet, "image", "--listen", r.Socket(), "pull", served))
	t.Cleanup(terminal.Kill)
	await(t, terminal, "done")
	ok(t, terminal.Wait(within(t, patience)))
	if !strings.Contains(terminal.Output(), "\x1b[K") {
		t.Errorf("no bar is drawn on a terminal:\n%s", terminal)
	}

	text := must[string](t)(r.Get(within(t, patience), "http://"+metrics+"/metrics"))
	for _, line := range []string{
		`virtlet_images 1`, `virtlet_image_pulls_total{result="ok",source="http"} 2`, `virtlet_image_pulls_total{result="digest_mismatch",source="file"} 1`,
		`virtlet_image_pulls_total{result="ok",source="file"} 2`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="PullImage",grpc_service="runtime.v1.ImageService",grpc_type="unary"} 3`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("the metrics have no line %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}

	good("rm", "mine")
	if _, _, code := run("rm", served); code != 4 {
		t.Errorf("removing a name that went with the image: exit code %d", code)
	}
	ok(t, r.StopDaemon(within(t, patience)))
	if _, stderr, code := run("ls"); code != 3 || !strings.Contains(stderr, "no daemon listens there") {
		t.Errorf("without a daemon: exit code %d\n%s", code, stderr)
	}
	ok(t, r.StartDaemon(within(t, patience)))
}
