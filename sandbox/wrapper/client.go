package wrapper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// requestTimeout bounds a control request whose context has no deadline.
const requestTimeout = 10 * time.Second

// maxReply bounds a control reply, in bytes.
const maxReply = 1 << 20

// The requests of the control socket. A connection carries one: a JSON line there, a JSON line back. After the
// good reply to an attach the connection is the console, raw in both directions.
type request struct {
	Op string `json:"op"`
}

const (
	opStatus = "status"
	opReopen = "reopen-log"
	opAttach = "attach"
)

type reply struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// Status is what vmwrapper knows while it runs.
type Status struct {
	WrapperPID int       `json:"wrapperPID"`
	QEMUPID    int       `json:"qemuPID"`
	StartedAt  time.Time `json:"startedAt"`
	// Panicked: the guest has reported a kernel panic.
	Panicked bool `json:"panicked,omitempty"`
	// Events are the last QMP events, oldest first.
	Events []Event `json:"events,omitempty"`
	// LogBytes is what was written to the log since the start, over rotations; LogLost is how many bytes of it could
	// not be written and are gone.
	LogBytes int64 `json:"logBytes"`
	LogLost  int64 `json:"logLost,omitempty"`
	// LogError is why the log cannot be written at present.
	LogError string `json:"logError,omitempty"`
	// Attached is the number of attach clients.
	Attached int `json:"attached"`
}

// Query asks a running vmwrapper for its status. The error is ErrNotRunning when there is none.
func Query(ctx context.Context, runDir string) (Status, error) {
	conn, r, err := call(ctx, runDir, opStatus)
	if err != nil {
		return Status{}, fmt.Errorf("asking vmwrapper for its status: %w", err)
	}
	conn.Close()
	if r.Status == nil {
		return Status{}, errors.New("asking vmwrapper for its status: the reply has none")
	}
	return *r.Status, nil
}

// ReopenLog opens the log's path anew, after the log was renamed, and gives vmwrapper, which has no right to it, the file.
// When it returns nil the new file exists and nothing more is written to the old one; on an error the old one stays in
// use.
func ReopenLog(ctx context.Context, runDir, path string) error {
	if path == "" {
		return fmt.Errorf("reopening the log: %w", errNoLog)
	}
	f, err := openAppend(path)
	if err != nil {
		return fmt.Errorf("reopening the log: %w", err)
	}
	defer f.Close()
	conn, _, err := call(ctx, runDir, opReopen, f)
	if err != nil {
		return fmt.Errorf("reopening the log: %w", err)
	}
	return conn.Close()
}

// Attach connects to the VM's console: what is read is the guest's output from now on, preceded by the line that it
// has begun but not ended (a prompt); what is written is typed to the guest. The connection ends with the VM. It is a
// *net.UnixConn, so the input can be closed alone. A reader that falls behind by more than 64 KiB loses output, which a
// marker line tells; one that reads nothing at all for 30 s is disconnected. Beyond 64 clients there is an error. The
// context governs the set-up only.
func Attach(ctx context.Context, runDir string) (net.Conn, error) {
	conn, _, err := call(ctx, runDir, opAttach)
	if err != nil {
		return nil, fmt.Errorf("attaching to the console: %w", err)
	}
	return conn, nil
}

// call sends one request, with the files that go with it, and reads its reply, no byte more. The connection has no
// deadline afterwards.
func call(ctx context.Context, runDir, op string, files ...*os.File) (_ *net.UnixConn, r reply, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	conn, err := dial(ctx, ControlSocket(runDir))
	if err != nil {
		return nil, r, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	interrupt := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	fail := func(doing string, err error) (*net.UnixConn, reply, error) {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, r, fmt.Errorf("%s: %w", doing, err)
	}
	line, _ := json.Marshal(request{Op: op})
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return fail("sending the request", err)
	}
	var from io.Reader = conn
	if op != opAttach {
		from = bufio.NewReader(conn)
	}
	line, err = readLine(from, maxReply)
	if err != nil {
		return fail("reading the reply", err)
	}
	if !interrupt() {
		return fail("reading the reply", context.Canceled)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return fail("reading the reply", err)
	}
	if r.Error != "" {
		return fail("vmwrapper", errors.New(r.Error))
	}
	return conn, r, nil
}

// readLine reads up to and with a newline and takes nothing of what follows it, reading byte by byte: raw console bytes
// may follow on the same connection.
func readLine(from io.Reader, limit int) ([]byte, error) {
	var line []byte
	one := make([]byte, 1)
	for len(line) < limit {
		if _, err := from.Read(one); err != nil {
			return nil, err
		}
		if one[0] == '\n' {
			return line, nil
		}
		line = append(line, one[0])
	}
	return nil, fmt.Errorf("a line of more than %d bytes", limit)
}
