package wrapper

import (
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// flood writes n times the text, as fast as the console takes it, and returns how long that took.
func flood(t *testing.T, guest net.Conn, text string, n int) time.Duration {
	t.Helper()
	begin := time.Now()
	for range n {
		if _, err := io.WriteString(guest, text); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Wait()
	return time.Since(begin)
}

// timedPort tells how long it was not read.
type timedPort struct {
	net.Conn
	last    time.Time
	longest time.Duration
}

func (p *timedPort) Read(b []byte) (int, error) {
	if !p.last.IsZero() {
		p.longest = max(p.longest, time.Since(p.last))
	}
	n, err := p.Conn.Read(b)
	p.last = time.Now()
	return n, err
}

func TestConsolePace(t *testing.T) {
	slow := LogSpec{Rate: 64 << 10, Burst: 256 << 10}
	line := strings.Repeat("x", 63) + "\n"
	in := func(name string, f func(*testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	// paced checks that what is in the log came no faster than it may, and not much slower.
	paced := func(t *testing.T, spec LogSpec, log *memoryLog, took time.Duration) {
		t.Helper()
		due := time.Duration(float64(int64(log.size)-spec.Burst) / float64(spec.Rate) * float64(time.Second))
		if took < due-time.Second || took > due+time.Second {
			t.Errorf("%d bytes of log took %s, want about %s", log.size, took, due)
		}
	}
	in("what is within the burst is not delayed", func(t *testing.T) {
		_, guest, _ := newPacedGuest(t, slow)
		if took := flood(t, guest, line, 2000); took != 0 {
			t.Errorf("it took %s", took)
		}
	})
	in("a flood comes at the pace, and nothing of it is lost", func(t *testing.T) {
		spec := LogSpec{Rate: slow.Rate, Burst: 16 << 10}
		c, guest, log := newPacedGuest(t, spec)
		client := attachTo(t, c)
		seen := make(chan int)
		go func() {
			n, _ := io.Copy(io.Discard, client)
			seen <- int(n)
		}()
		const lines = 20_000
		paced(t, spec, log, flood(t, guest, line, lines))
		if n := strings.Count(log.String(), "F "+line); n != lines {
			t.Errorf("%d lines in the log, want %d", n, lines)
		}
		guest.Close()
		if n := <-seen; n != lines*len(line) {
			t.Errorf("an attach client saw %d bytes, want %d", n, lines*len(line))
		}
	})
	in("empty lines count as what they are in the log", func(t *testing.T) {
		_, guest, log := newPacedGuest(t, slow)
		paced(t, slow, log, flood(t, guest, strings.Repeat("\n", 64), 1000))
	})
	in("a guest that is slowed down never waits long", func(t *testing.T) {
		guest, end := net.Pipe()
		port := &timedPort{Conn: end}
		c := startConsole(port, &memoryLog{}, LogSpec{Rate: slow.Rate, Burst: 1}.pace())
		flood(t, guest, strings.Repeat(line, 2*consoleRead/len(line)), 20)
		guest.Close()
		<-c.done
		if port.longest < time.Millisecond || port.longest > 20*time.Millisecond {
			t.Errorf("the port was not read for %s, want some time, but 20 ms at most", port.longest)
		}
	})
	in("silence earns a new burst", func(t *testing.T) {
		_, guest, _ := newPacedGuest(t, slow)
		flood(t, guest, line, 4000)
		time.Sleep(time.Duration(slow.Burst/slow.Rate+1) * time.Second)
		if took := flood(t, guest, line, 2000); took != 0 {
			t.Errorf("it took %s", took)
		}
	})
	in("last words are not delayed", func(t *testing.T) {
		c, guest, log := newPacedGuest(t, LogSpec{Rate: MinLogRate, Burst: 1 << 10})
		flood(t, guest, line, 100)
		c.finish()
		if took := flood(t, guest, line, 400); took != 0 {
			t.Errorf("it took %s", took)
		}
		guest.Close()
		<-c.done
		if n := strings.Count(log.String(), "F "+line); n != 500 {
			t.Errorf("%d lines in the log, want 500", n)
		}
	})
}

func TestLogSpec(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec LogSpec
		want string
	}{
		{name: "the defaults"},
		{name: "the least", spec: LogSpec{Rate: MinLogRate, Burst: 1, MaxBytes: MinLogSize}},
		{name: "too slow", spec: LogSpec{Rate: MinLogRate - 1}, want: "log.rate is 11263 bytes; the least is 11264"},
		{name: "too small", spec: LogSpec{MaxBytes: MinLogSize - 1}, want: "log.maxBytes is 65535 bytes; the least is 65536"},
		{name: "negative", spec: LogSpec{Burst: -1}, want: "log.burst is -1 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Job{VMID: "x", QEMU: "/q", RunDir: "/r", UID: 70000, Log: tt.spec}.validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}
