package wrapper

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestConsoleOfVM(t *testing.T) {
	job := newJob(t)
	s, con := boot(t, job)
	t.Run("the log has the prompt within a second", func(t *testing.T) {
		eventually(t, "the prompt in the log", time.Second, func() bool {
			return logText(t, job.Log.Path) == "F test guest is up\nP test> \n"
		})
	})
	t.Run("a late client is shown the prompt, and types", func(t *testing.T) {
		late := attachConsole(t, job)
		late.wait(t, "test> ")
		late.say(t, "hey")
		late.wait(t, "hey")
		con.wait(t, "hey")
		late.say(t, "\r")
		late.wait(t, "test> ")
		con.wait(t, "test> ")
	})
	t.Run("rotation in a flood loses and doubles no line", func(t *testing.T) {
		const rotations = 10
		con.say(t, "f")
		con.wait(t, "line 0000")
		for i := range rotations {
			if err := os.Rename(job.Log.Path, job.Log.Path+"."+strconv.Itoa(i)); err != nil {
				t.Fatal(err)
			}
			if err := ReopenLog(t.Context(), job.RunDir, job.Log.Path); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(job.Log.Path); err != nil {
				t.Fatalf("after ReopenLog: %v", err)
			}
			con.wait(t, "line ")
		}
		con.wait(t, "line 0fff\r\n")
		eventually(t, "the last line in the log", patience, func() bool {
			return strings.Contains(readFile(t, job.Log.Path), "line 0fff\n")
		})
		var all string
		for i := range rotations {
			all += logText(t, job.Log.Path+"."+strconv.Itoa(i))
		}
		all += logText(t, job.Log.Path)
		_, flood, _ := strings.Cut(all, "line 0000\n")
		// On a busy host a line may come in parts.
		flood = "line 0000\n" + regexp.MustCompile(`(?m)^P (.*)\n`).ReplaceAllString(flood, "$1")
		if flood = strings.ReplaceAll(flood, "F ", ""); flood != floodText() {
			t.Errorf("%d bytes of flood in the logs, want %d", len(flood), len(floodText()))
		}
	})
	t.Run("a client that does not read delays neither guest nor log", func(t *testing.T) {
		stuck := attachConsole(t, job)
		for range 6 { // more than its socket and its buffer hold
			con.say(t, "f")
			con.wait(t, "line 0fff\r\n")
		}
		st, err := Query(t.Context(), job.RunDir)
		if err != nil || st.Attached != 2 || st.LogLost != 0 {
			t.Fatalf("status %+v, %v; want 2 clients and nothing lost", st, err)
		}
		eventually(t, "every flood in the log", patience, func() bool {
			return strings.Count(readFile(t, job.Log.Path), "line 0fff\n") == 7
		})
		stuck.wait(t, "the reader was too slow")
		stuck.Close()
	})
	t.Run("a long line is split", func(t *testing.T) {
		con.say(t, "l")
		con.wait(t, "x\r\n")
		// Beside the size, the clock may split it: how often depends on the machine.
		want := strings.Repeat("x", 40000)
		eventually(t, "the line in the log", patience, func() bool {
			var line string
			for part := range strings.Lines(logText(t, job.Log.Path)) {
				tag, text := part[:1], strings.TrimSuffix(part[2:], "\n")
				if len(text) > maxLogText {
					t.Fatalf("a record of %d bytes, more than %d", len(text), maxLogText)
				}
				if line += text; tag == "F" {
					if line == want {
						return true
					}
					line = ""
				}
			}
			return false
		})
	})
	t.Run("clients see the end", func(t *testing.T) {
		con.say(t, "q")
		con.wait(t, "powering off\r\n")
		con.SetReadDeadline(time.Now().Add(patience))
		if n, err := con.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d bytes, %v; want the end", n, err)
		}
		waitExit(t, s, job)
	})
	t.Run("a later VM appends to the log", func(t *testing.T) {
		before := readFile(t, job.Log.Path)
		s, con := boot(t, job)
		con.say(t, "q")
		waitExit(t, s, job)
		after := readFile(t, job.Log.Path)
		if !strings.HasPrefix(after, before) || !strings.Contains(after[len(before):], "test guest is up\n") {
			t.Errorf("log of %d bytes became %d bytes", len(before), len(after))
		}
	})
}

func floodText() string {
	var b bytes.Buffer
	for i := range 4096 {
		b.WriteString("line ")
		b.WriteString(strconv.FormatInt(int64(0x10000+i), 16)[1:])
		b.WriteString("\n")
	}
	return b.String()
}
