package wrapper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is how a VM ended. It exists only for a VM that had become ready.
type Exit struct {
	// Code is QEMU's exit code, or 128 plus the number of the signal that ended it.
	Code int `json:"code"`
	// Signal that ended QEMU ("SIGKILL"); empty when it exited by itself.
	Signal string `json:"signal,omitempty"`
	// OOMKilled: QEMU died by SIGKILL and the cgroup's count of OOM kills had grown.
	OOMKilled bool `json:"oomKilled,omitempty"`
	// Reason of the last SHUTDOWN event in the words of QAPI's ShutdownCause ("guest-shutdown", "host-qmp-quit",
	// "host-signal"...); empty when QEMU died without one.
	Reason string `json:"reason,omitempty"`
	// GuestInitiated is the event's own word for it: the guest asked for the shutdown.
	GuestInitiated bool `json:"guestInitiated,omitempty"`
	// Panicked: the guest had reported a kernel panic.
	Panicked   bool      `json:"panicked,omitempty"`
	StartedAt  time.Time `json:"startedAt"`
	FinishedAt time.Time `json:"finishedAt"`
	// LogLost is how many bytes of the console log are gone: the disk was too slow or full, or nobody rotated the log.
	LogLost int64 `json:"logLost,omitempty"`
	// Stderr is the tail of QEMU's standard error, in lines.
	Stderr []string `json:"stderr,omitempty"`
	// Events are the last QMP events, oldest first.
	Events []Event `json:"events,omitempty"`
}

// Event is one QMP event as recorded.
type Event struct {
	Name string          `json:"name"`
	Time time.Time       `json:"time"`
	Data json.RawMessage `json:"data,omitempty"`
	// Repeated is how many earlier events of the name within about a second are not told but by this one.
	Repeated int `json:"repeated,omitempty"`
}

// ReadExit returns the exit record of a run directory; errors.Is(err, os.ErrNotExist) while there is none.
func ReadExit(runDir string) (Exit, error) {
	doc, err := readRecord(ExitFile(runDir))
	if err != nil {
		return Exit{}, fmt.Errorf("reading the exit record: %w", err)
	}
	e, err := parseExit(doc)
	if err != nil {
		return Exit{}, fmt.Errorf("reading the exit record %s: %w", ExitFile(runDir), err)
	}
	return e, nil
}

func parseExit(doc []byte) (e Exit, err error) {
	err = json.Unmarshal(doc, &e)
	return e, err
}

// maxRecord bounds an exit record, in bytes.
const maxRecord = 1 << 20

// readRecord reads a file that a process without our rights has written: it may be a link to what is not its own, a pipe
// that never ends, or anything else.
func readRecord(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() > maxRecord {
		return nil, fmt.Errorf("%s is no regular file of at most %d bytes (%w)", path, maxRecord, errors.Join(err, os.ErrInvalid))
	}
	return io.ReadAll(io.LimitReader(f, maxRecord))
}

// write makes the record durable and visible in one step, in the directory dir.
func (e Exit) write(dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing the exit record: %w", err)
		}
	}()
	doc, err := json.Marshal(e)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".exit-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if _, err := tmp.Write(append(doc, '\n')); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), filepath.Join(dir, exitName)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
