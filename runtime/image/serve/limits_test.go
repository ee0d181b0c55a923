package serve

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// dialSite sends text over a new connection and returns it.
func dialSite(t *testing.T, st *site, text string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(st.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestClientThatTakesNothing is cut off, and takes no time of others.
func TestClientThatTakesNothing(t *testing.T) {
	const size = 24 << 20
	st := newSite(t, func(c *Config) { c.StallTimeout = 300 * time.Millisecond })
	st.put("disk", content(size, 1))
	st.put("small", []byte("small"))
	if resp, _ := st.get("HEAD", "/disk"); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	conn := dialSite(t, st, "GET /disk HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, body := st.get("GET", "/small"); body != "small" {
		t.Errorf("another client gets %q", body)
	}
	deadline := time.After(patience)
	for !strings.Contains(st.log.String(), "path=/disk status=200 took") || strings.Count(st.log.String(), "path=/disk") < 2 {
		select {
		case <-st.log.wrote:
		case <-deadline:
			t.Fatalf("the response goes on:\n%s", st.log)
		}
	}
	if n, _ := io.Copy(io.Discard, conn); n >= size {
		t.Errorf("%d bytes in all", n)
	}
}

// smallBuffers is a listener whose connections hold little, so that what is written is soon taken.
type smallBuffers struct{ net.Listener }

const smallBuffer = 64 << 10

func (l smallBuffers) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		err = conn.(*net.TCPConn).SetWriteBuffer(smallBuffer)
	}
	return conn, err
}

// TestClientThatTakesItsTime is served for much longer than it may take nothing.
func TestClientThatTakesItsTime(t *testing.T) {
	const stall = 2 * time.Second
	srv, err := New(Config{Dir: t.TempDir(), StallTimeout: stall})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	body := content(16<<20, 1)
	if err := os.WriteFile(filepath.Join(srv.cfg.Dir, "disk"), body, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, smallBuffers{l}) }()
	defer func() {
		cancel()
		<-served
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err == nil {
		err = conn.(*net.TCPConn).SetReadBuffer(smallBuffer)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /disk HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	start := time.Now()
	var got bytes.Buffer
	for tick := time.NewTicker(60 * time.Millisecond); err == nil; <-tick.C {
		_, err = io.CopyN(&got, resp.Body, 256<<10)
	}
	if !errors.Is(err, io.EOF) || !bytes.Equal(got.Bytes(), body) {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
	if took := time.Since(start); took < stall*3/2 {
		t.Errorf("was over in %s, which shows nothing", took)
	}
}

// TestConnectionIsKept: between two requests a client may pause for longer than within a response.
func TestConnectionIsKept(t *testing.T) {
	st := newSite(t, func(c *Config) { c.StallTimeout, c.HashPatience = 100*time.Millisecond, 50*time.Millisecond })
	conn := dialSite(t, st, "")
	r := bufio.NewReader(conn)
	for range 3 {
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s, %v", resp.Status, err)
		}
		<-time.After(200 * time.Millisecond)
	}
}

// TestClientThatSends: nobody waits for a body.
func TestClientThatSends(t *testing.T) {
	st := newSite(t)
	conn := dialSite(t, st, "PUT /disk HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusMethodNotAllowed || !resp.Close {
		t.Fatal(resp, err)
	}
}

func TestHeaderTooLarge(t *testing.T) {
	st := newSite(t)
	if resp, _ := st.get("GET", "/", "X-Much: "+strings.Repeat("x", 3*maxHeader)); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%d", resp.StatusCode)
	}
}

// TestStop lets what is under way end, and cuts it off when its time is over.
func TestStop(t *testing.T) {
	const size = 24 << 20
	body := content(size, 1)
	begin := func(st *site) *http.Response {
		st.put("disk", body)
		resp, err := http.Get(st.url + "/disk")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	t.Run("a_client_that_reads_on", func(t *testing.T) {
		st := newSite(t)
		resp := begin(st)
		stopped := make(chan error, 1)
		go func() { stopped <- st.stop() }()
		for conn, err := net.Dial("tcp", resp.Request.URL.Host); err == nil; conn, err = net.Dial("tcp", resp.Request.URL.Host) {
			_ = conn.Close() // still listening
		}
		if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	t.Run("a_client_that_does_not", func(t *testing.T) {
		st := newSite(t, func(c *Config) { c.StopTimeout = 50 * time.Millisecond })
		resp := begin(st)
		if err := st.stop(); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(resp.Body); err == nil || len(got) == size {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// TestPrograms: what people and scripts use understands what is served.
func TestPrograms(t *testing.T) {
	for _, program := range []string{"curl", "sha256sum"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	st := newSite(t)
	body := content(3_000_000, 1)
	st.put("disk.qcow2", body)
	st.put("sub/back\\slash and\nnewline", []byte("odd"))
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		return string(out)
	}
	t.Run("curl_resumes", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(dir, "disk.qcow2"), body[:1_234_567], 0o644); err != nil {
			t.Fatal(err)
		}
		run("curl", "-fsS", "-C", "-", "-O", st.url+"/disk.qcow2")
		run("curl", "-fsS", "-O", st.url+"/disk.qcow2.sha256")
		if out := run("sha256sum", "-c", "disk.qcow2.sha256"); out != "disk.qcow2: OK\n" {
			t.Error(out)
		}
	})
	t.Run("curl_takes_a_range", func(t *testing.T) {
		if out := run("curl", "-fsS", "--range", "100-199", st.url+"/disk.qcow2"); out != string(body[100:200]) {
			t.Errorf("%d bytes", len(out))
		}
	})
	t.Run("curl_keeps_what_it_has", func(t *testing.T) {
		run("curl", "-fsS", "--etag-save", "etag", "-o", "first", st.url+"/disk.qcow2")
		if out := run("curl", "-fsS", "--etag-compare", "etag", "-o", "second", "-w", "%{http_code}", st.url+"/disk.qcow2"); out != "304" {
			t.Error(out)
		}
	})
	t.Run("sha256sum_checks_all", func(t *testing.T) {
		run("curl", "-fsS", "-O", st.url+"/SHA256SUMS")
		cmd := exec.CommandContext(t.Context(), "sha256sum", "--strict", "-c", filepath.Join(dir, "SHA256SUMS"))
		cmd.Dir = st.dir
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Count(string(out), ": OK\n") != 2 {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
