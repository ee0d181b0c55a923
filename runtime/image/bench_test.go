package image

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchServes is the environment's name for the directory that the program serves for a benchmark in another process.
const benchServes = "VIRTLET_BENCH_SERVES"

// TestBenchmarkServer is the other process of BenchmarkPull.
func TestBenchmarkServer(t *testing.T) {
	dir := os.Getenv(benchServes)
	if dir == "" {
		t.Skip("it runs for BenchmarkPull")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(l.Addr())
	files := http.FileServer(http.Dir(dir))
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", strconv.Quote(r.URL.Path))
			files.ServeHTTP(w, r)
		}))
	}()
	_, _ = io.Copy(io.Discard, os.Stdin) // until whoever began this is gone
}

// serveInProcess serves a directory by another process, whose work is not counted here, and returns its address.
func serveInProcess(b *testing.B, dir string) string {
	b.Helper()
	server := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^TestBenchmarkServer$")
	server.Env = append(os.Environ(), benchServes+"="+dir)
	stdin, err := server.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := server.StdoutPipe()
	if err == nil {
		err = server.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = server.Wait()
	})
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(address)
}

// BenchmarkPull pulls a disk of random bytes, and one that holds a program (this one) in what the field packs disks with;
// there the packers themselves are the peers. MiB/cpu-s is what is brought, unpacked, in a second of one core.
func BenchmarkPull(b *testing.B) {
	dir := b.TempDir()
	host := serveInProcess(b, dir)
	b.Run("plain", func(b *testing.B) {
		const size = 256 << 20
		disk := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{}).Read(disk)
		if err := os.WriteFile(filepath.Join(dir, "disk"), disk, 0o600); err != nil {
			b.Fatal(err)
		}
		benchmarkPull(b, host+"/disk", size)
	})
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		b.Fatal(err)
	}
	for _, packer := range []string{"gzip", "zstd", "xz"} {
		b.Run(packer, func(b *testing.B) { benchmarkPacked(b, dir, host, packer, program) })
	}
}

func benchmarkPacked(b *testing.B, dir, host, packer string, program []byte) {
	path, size := filepath.Join(dir, packer), int64(len(program))
	pack := exec.CommandContext(b.Context(), packer, "-c")
	pack.Stdin = bytes.NewReader(program)
	packed, err := pack.Output()
	if err == nil {
		err = os.WriteFile(path, packed, 0o600)
	}
	if err != nil {
		b.Fatalf("%s: %v", packer, err)
	}
	b.Run("pull", func(b *testing.B) { benchmarkPull(b, host+"/"+packer, size) })
	b.Run("peer", func(b *testing.B) {
		b.SetBytes(size)
		var used time.Duration
		for b.Loop() {
			unpack := exec.CommandContext(b.Context(), packer, "-dc", path)
			if err := unpack.Run(); err != nil {
				b.Fatal(err)
			}
			used += unpack.ProcessState.UserTime() + unpack.ProcessState.SystemTime()
		}
		reportPerCPU(b, size, used)
	})
}

func benchmarkPull(b *testing.B, name string, size int64) {
	s, err := Open(Config{Root: b.TempDir(), Store: &memStore{}, Inspector: trusting{}, InUse: func(string) bool { return false }})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.SetBytes(size)
	b.ReportAllocs()
	var used time.Duration
	for b.Loop() {
		begun := cpuTime(b)
		img, err := s.Pull(b.Context(), prefix+name, nil)
		if err != nil {
			b.Fatal(err)
		}
		used += cpuTime(b) - begun
		b.StopTimer()
		if img.Size != size {
			b.Fatalf("%d bytes came, not %d", img.Size, size)
		}
		if err := s.Remove(b.Context(), img.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	reportPerCPU(b, size, used)
}

func reportPerCPU(b *testing.B, size int64, used time.Duration) {
	b.ReportMetric(float64(size)*float64(b.N)/(1<<20)/used.Seconds(), "MiB/cpu-s")
}

// cpuTime is what all threads of this program have had of the CPUs.
func cpuTime(b *testing.B) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

// trusting takes everything for a disk.
type trusting struct{}

func (trusting) Inspect(context.Context, string) (Info, error) {
	return Info{Format: "raw", VirtualSize: 1 << 20}, nil
}
