package wrapper

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
)

// wrapperOOMScore makes vmwrapper the last to be killed for memory: who dies of its guest's hunger is QEMU, and
// somebody must tell.
const wrapperOOMScore = -1000

func lowerOOMScore() error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(wrapperOOMScore)), 0)
}

// oomCounter is an open cgroup file that counts OOM kills (v2 memory.events, v1 memory.oom_control); open, because it
// is read again when the way to it is closed. Nil counts nothing.
type oomCounter struct {
	file   *os.File
	before int64
}

func openOOMCounter(path string) *oomCounter {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	c := &oomCounter{file: f}
	c.before = c.kills()
	return c
}

// rose tells whether there have been kills since the counter was opened.
func (c *oomCounter) rose() bool { return c != nil && c.kills() > c.before }

// kills is 0 where the file does not say.
func (c *oomCounter) kills() int64 {
	var text [4 << 10]byte
	n, err := c.file.ReadAt(text[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0
	}
	for lines := bufio.NewScanner(bytes.NewReader(text[:n])); lines.Scan(); {
		if count, ok := bytes.CutPrefix(lines.Bytes(), []byte("oom_kill ")); ok {
			n, _ := strconv.ParseInt(string(bytes.TrimSpace(count)), 10, 64)
			return n
		}
	}
	return 0
}
