package wrapper

import (
	"os"
	"strings"
	"sync"
)

const (
	// maxStderrFile bounds the file that keeps the beginning of QEMU's standard error, in bytes.
	maxStderrFile = 64 << 10
	// maxStderrTail bounds the end of it that errors and the exit record show, in bytes.
	maxStderrTail = 4 << 10
)

// stderrTail reads a process's standard error to its end.
type stderrTail struct {
	done chan struct{} // closed at the end of the stream

	mu   sync.Mutex
	tail []byte
}

// readStderr reads from the pipe, which it closes, and keeps the beginning in a file at the path.
func readStderr(pipe *os.File, path string) (*stderrTail, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	s := &stderrTail{done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer pipe.Close()
		defer file.Close()
		s.read(pipe, file)
	}()
	return s, nil
}

func (s *stderrTail) read(pipe, file *os.File) {
	room := maxStderrFile
	buf := make([]byte, 2<<10)
	for {
		n, err := pipe.Read(buf)
		if keep := min(n, room); keep > 0 {
			// The file is a convenience: where the disk is full, the tail still has the words.
			_, _ = file.Write(buf[:keep])
			room -= keep
		}
		s.mu.Lock()
		s.tail = append(s.tail, buf[:n]...)
		if cut := len(s.tail) - maxStderrTail; cut > 0 {
			s.tail = append(s.tail[:0], s.tail[cut:]...)
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// lines returns the last lines; the first of them may be cut.
func (s *stderrTail) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := strings.TrimSpace(strings.ToValidUTF8(string(s.tail), "?"))
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}
