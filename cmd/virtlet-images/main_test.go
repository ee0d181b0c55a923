package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain is the program itself when a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("VIRTLET_IMAGES_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), "VIRTLET_IMAGES_MAIN=1")
	return cmd
}

// start runs the program and returns its address, as its log tells it, and what ends it as a signal does.
func start(t *testing.T, args ...string) (address string, stop func() error) {
	t.Helper()
	cmd := program(t, append(args, "--listen", "127.0.0.1:0")...)
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(stderr)
	line, err := r.ReadString('\n')
	var first struct{ Address string }
	if err = errors.Join(err, json.Unmarshal([]byte(line), &first)); err != nil || first.Address == "" {
		t.Fatalf("%v: %s", err, line)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	return first.Address, func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		return cmd.Wait()
	}
}

func imageDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "disk"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func fetch(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestProgram(t *testing.T) {
	address, stop := start(t, "--dir", imageDir(t))
	if got := fetch(t, http.DefaultClient, "http://"+address+"/disk"); got != "content" {
		t.Errorf("got %q", got)
	}
	if err := stop(); err != nil {
		t.Errorf("stopped: %v", err)
	}
}

// TestProgram_TLS: a renewed certificate is in force without a restart; a broken one is not taken.
func TestProgram_TLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	pool := x509.NewCertPool()
	newPair(t, pool, 1, cert, key)
	address, stop := start(t, "--dir", imageDir(t), "--tls-cert", cert, "--tls-key", key)
	serial := func() int64 {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
		defer client.CloseIdleConnections()
		resp, err := client.Get("https://" + address + "/disk")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "content" || resp.ProtoMajor != 2 {
			t.Errorf("%q, %v, %s", body, err, resp.Proto)
		}
		return resp.TLS.PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 1 {
		t.Errorf("certificate %d", n)
	}
	newPair(t, pool, 2, cert, key)
	if n := serial(); n != 2 {
		t.Errorf("after the renewal: certificate %d", n)
	}
	if err := os.WriteFile(key, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := serial(); n != 2 {
		t.Errorf("with a broken key: certificate %d", n)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// newPair writes a new certificate for 127.0.0.1, which the pool then trusts.
func newPair(t *testing.T, pool *x509.CertPool, serial int64, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool.AppendCertsFromPEM(certPEM)
	if err := errors.Join(
		os.WriteFile(certFile, certPEM, 0o644),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600),
	); err != nil {
		t.Fatal(err)
	}
}

func TestProgram_refused(t *testing.T) {
	dir := imageDir(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for title, tc := range map[string]struct {
		args []string
		want string
	}{
		"no_dir":         {nil, `"dir" not set`},
		"dir_is_missing": {[]string{"--dir", dir + "/none"}, "no such file"},
		"dir_is_a_file":  {[]string{"--dir", dir + "/disk"}, "not a directory"},
		"key_alone":      {[]string{"--dir", dir, "--tls-key", "x"}, "needed both"},
		"no_certificate": {[]string{"--dir", dir, "--tls-key", "x", "--tls-cert", "x"}, "reading the certificate"},
		"address_taken":  {[]string{"--dir", dir, "--listen", taken.Addr().String()}, "address already in use"},
		"argument":       {[]string{"--dir", dir, "x"}, "unknown command"},
	} {
		t.Run(title, func(t *testing.T) {
			out, err := program(t, tc.args...).CombinedOutput()
			exit := (*exec.ExitError)(nil)
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), tc.want) || !strings.HasPrefix(string(out), "virtlet-images: ") {
				t.Errorf("%v: %s; want %q", err, out, tc.want)
			}
		})
	}
}
