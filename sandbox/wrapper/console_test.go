package wrapper

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memoryLog keeps the text of the records.
type memoryLog struct {
	mu   sync.Mutex
	text strings.Builder
	size int // of the records
}

func (l *memoryLog) put(record []byte) {
	_, text, _ := bytes.Cut(record, []byte(" stdout "))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(text)
	l.size += len(record)
}

func (l *memoryLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newGuest gives a console and the guest's end of its line. Everything ends with the test.
func newGuest(t *testing.T) (*console, net.Conn, *memoryLog) { return newPacedGuest(t, LogSpec{}) }

func newPacedGuest(t *testing.T, spec LogSpec) (*console, net.Conn, *memoryLog) {
	guest, port := net.Pipe()
	log := &memoryLog{}
	c := startConsole(port, log, spec.pace())
	t.Cleanup(func() {
		guest.Close()
		<-c.done
	})
	return c, guest, log
}

// attachTo connects a client, whose end is closed with the test.
func attachTo(t *testing.T, c *console) net.Conn {
	theirs, ours := net.Pipe()
	go serveClient(ours, c)
	t.Cleanup(func() { theirs.Close() })
	synctest.Wait()
	return theirs
}

func say(t *testing.T, guest net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(guest, text); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func expect(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	conn.SetReadDeadline(time.Now().Add(time.Second))
	if n, err := io.ReadFull(conn, got); err != nil {
		t.Fatalf("read %q, then %v; want %q", got[:n], err, want)
	}
	if string(got) != want {
		t.Fatalf("read %q, want %q", got, want)
	}
}

func TestConsole(t *testing.T) {
	in := func(name string, f func(*testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	in("a prompt is logged within a second, its line goes on afterwards", func(t *testing.T) {
		_, guest, log := newGuest(t)
		say(t, guest, "login: ")
		time.Sleep(time.Second)
		synctest.Wait()
		if got, want := log.String(), "P login: \n"; got != want {
			t.Fatalf("log is %q, want %q", got, want)
		}
		say(t, guest, "root\r\n")
		if got, want := log.String(), "P login: \nF root\n"; got != want {
			t.Errorf("log is %q, want %q", got, want)
		}
	})
	in("the end of the guest's line is logged", func(t *testing.T) {
		c, guest, log := newGuest(t)
		say(t, guest, "last words")
		guest.Close()
		<-c.done
		if got, want := log.String(), "F last words\n"; got != want {
			t.Errorf("log is %q, want %q", got, want)
		}
	})
	in("clients see raw output from now on, and the line that is begun", func(t *testing.T) {
		c, guest, _ := newGuest(t)
		say(t, guest, "old line\r\nlog")
		say(t, guest, "in: ")
		one := attachTo(t, c)
		expect(t, one, "login: ")
		say(t, guest, "root\r\n\xff")
		two := attachTo(t, c)
		expect(t, one, "root\r\n\xff")
		expect(t, two, "\xff")
		if n := c.attached(); n != 2 {
			t.Errorf("%d clients, want 2", n)
		}
	})
	in("a begun line of any length is shown in part", func(t *testing.T) {
		c, guest, _ := newGuest(t)
		for i := range 100 {
			say(t, guest, fmt.Sprintf("%01023d.", i))
		}
		expect(t, attachTo(t, c), fmt.Sprintf("%01023d.%01023d.%01023d.%01023d.", 96, 97, 98, 99))
	})
	in("what clients type reaches the guest", func(t *testing.T) {
		c, guest, _ := newGuest(t)
		one, two := attachTo(t, c), attachTo(t, c)
		io.WriteString(one, "root\r")
		expect(t, guest, "root\r")
		io.WriteString(two, "ls\r")
		expect(t, guest, "ls\r")
	})
	in("a guest that does not read blocks typing, not output", func(t *testing.T) {
		c, guest, log := newGuest(t)
		typist := attachTo(t, c)
		go typist.Write(make([]byte, 1<<20))
		time.Sleep(3 * inputPatience)
		say(t, guest, "hello\n")
		expect(t, typist, "hello\n")
		if got := log.String(); got != "F hello\n" {
			t.Errorf("log is %q", got)
		}
	})
	in("a client that does not read delays nobody and learns what it missed", func(t *testing.T) {
		c, guest, log := newGuest(t)
		stuck, quick := attachTo(t, c), attachTo(t, c)
		line := strings.Repeat("y", 1023) + "\n"
		const lines = 4 * clientBuffer / 1024
		begin := time.Now()
		for range lines {
			say(t, guest, line)
			expect(t, quick, line)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("the output took %s longer", took)
		}
		if got, want := strings.Count(log.String(), "\n"), lines; got != want {
			t.Errorf("%d lines in the log, want %d", got, want)
		}
		// The first line was on its way when it got stuck; then its buffer filled.
		expect(t, stuck, line+strings.Repeat(line, clientBuffer/1024))
		missed := lines - 1 - clientBuffer/1024
		expect(t, stuck, fmt.Sprintf("\r\n[virtlet: %d bytes not shown: the reader was too slow]\r\n", missed*1024))
		say(t, guest, "live again\n")
		expect(t, stuck, "live again\n")
	})
	in("a client that never reads is disconnected", func(t *testing.T) {
		c, guest, _ := newGuest(t)
		attachTo(t, c)
		say(t, guest, "hello\n")
		time.Sleep(clientPatience - 1)
		synctest.Wait()
		if n := c.attached(); n != 1 {
			t.Fatalf("%d clients before its time, want 1", n)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if n := c.attached(); n != 0 {
			t.Errorf("%d clients after its time, want 0", n)
		}
	})
	in("clients get the last words and then the end", func(t *testing.T) {
		c, guest, _ := newGuest(t)
		client := attachTo(t, c)
		say(t, guest, "bye\n")
		guest.Close()
		got, err := io.ReadAll(client)
		if string(got) != "bye\n" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		if late := attachTo(t, c); late != nil {
			if n, err := late.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("a late client read %d bytes, %v; want the end", n, err)
			}
		}
	})
}

func TestClientLeaves(t *testing.T) {
	guest, port := net.Pipe()
	defer guest.Close()
	c := startConsole(port, &memoryLog{}, LogSpec{}.pace())
	attach := func() (*net.UnixConn, chan struct{}) {
		conn, file, err := socketPair()
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		left := make(chan struct{})
		go func() {
			defer close(left)
			serveClient(theirs, c)
		}()
		return conn.(*net.UnixConn), left
	}
	t.Run("a client that closes is forgotten though the guest is silent", func(t *testing.T) {
		conn, left := attach()
		conn.Close()
		<-left
		if n := c.attached(); n != 0 {
			t.Errorf("%d clients, want 0", n)
		}
	})
	t.Run("a client that closes its input goes on looking", func(t *testing.T) {
		conn, left := attach()
		defer conn.Close()
		io.WriteString(conn, "x")
		expect(t, guest, "x") // it has joined
		conn.CloseWrite()
		io.WriteString(guest, "still there\n")
		expect(t, conn, "still there\n")
		guest.Close()
		<-left
	})
}
