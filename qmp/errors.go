package qmp

import (
	"context"
	"errors"
	"fmt"
)

// ErrClosed says that the connection is gone, by Close or by the peer. It always comes with its cause, which
// errors.Is finds too: io.EOF when QEMU exited or hung up, io.ErrUnexpectedEOF when it did so in the middle of a
// message, net.ErrClosed after Close, os.ErrDeadlineExceeded when QEMU stopped reading.
var ErrClosed = errors.New("qmp connection closed")

// ErrProtocol says that the peer sent what is no QMP message. The connection cannot be used further.
var ErrProtocol = errors.New("qmp protocol violated")

// ErrorClass is QAPI's QapiErrorClass. All but ErrorGeneric exist for programs to tell apart.
type ErrorClass string

// The error classes of QAPI.
const (
	ErrorGeneric         ErrorClass = "GenericError"
	ErrorCommandNotFound ErrorClass = "CommandNotFound"
	ErrorDeviceNotActive ErrorClass = "DeviceNotActive"
	ErrorDeviceNotFound  ErrorClass = "DeviceNotFound"
	ErrorKVMMissingCap   ErrorClass = "KVMMissingCap"
)

// Error is QEMU's refusal of a command.
type Error struct {
	Class ErrorClass
	// Desc is QEMU's sentence for people.
	Desc string
	// Command is the name of the refused command.
	Command string
}

// Error gives the command, QEMU's words and the class.
func (e *Error) Error() string {
	return fmt.Sprintf("qmp command %s refused: %s (%s)", e.Command, e.Desc, e.Class)
}

// contextError says why a call was given up. The cause is added where the caller gave one of its own.
func contextError(ctx context.Context) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}
