package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

const (
	// maxMessage bounds one incoming message. The largest that QEMU sends is the reply to query-qmp-schema, about
	// 200 KiB.
	maxMessage = 8 << 20
	// maxEventData bounds the data of one event, so that a full ring stays small whatever QEMU sends; real events
	// are below 1 KiB.
	maxEventData = 64 << 10
	// maxEventName bounds its name likewise.
	maxEventName = 64
)

// request is one command as it goes out.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// message is any incoming message; the present members tell which.
type message struct {
	Greeting  *greeting       `json:"QMP"`
	Return    json.RawMessage `json:"return"`
	Error     *wireError      `json:"error"`
	ID        json.RawMessage `json:"id"`
	Event     EventName       `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp timestamp       `json:"timestamp"`
}

type greeting struct {
	Version struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
			Micro int `json:"micro"`
		} `json:"qemu"`
		Package string `json:"package"`
	} `json:"version"`
}

type wireError struct {
	Class ErrorClass `json:"class"`
	Desc  string     `json:"desc"`
}

type timestamp struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

// parse reads one line. What it returns does not alias the line.
func parse(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("%w: reading a message of %d bytes: %w", ErrProtocol, len(line), err)
	}
	return m, nil
}

// id gives the number of the request that a reply belongs to; an id that we cannot have sent is none.
func (m message) id() (uint64, bool) {
	id, err := strconv.ParseUint(string(m.ID), 10, 64)
	return id, err == nil
}

// lineReader frames the incoming stream: QEMU ends each message with CR LF and puts no line break inside one.
// One reader serves the connection from its first byte on, so nothing that came with the greeting is lost.
type lineReader struct {
	buf *bufio.Reader
	max int
}

func newLineReader(r io.Reader, max int) *lineReader {
	return &lineReader{buf: bufio.NewReader(r), max: max}
}

// next returns the next line that is not blank. The slice is valid until the following call.
func (r *lineReader) next() ([]byte, error) {
	for {
		line, err := r.line()
		if err != nil {
			return nil, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}

func (r *lineReader) line() ([]byte, error) {
	line, err := r.buf.ReadSlice('\n')
	if err == nil {
		return line, nil
	}
	// Only long lines are copied; their buffer is not kept, as they are rare.
	var long []byte
	for {
		if len(long)+len(line) > r.max {
			return nil, fmt.Errorf("%w: message is longer than %d bytes", ErrProtocol, r.max)
		}
		long = append(long, line...)
		switch {
		case err == nil:
			return long, nil
		case errors.Is(err, io.EOF):
			if len(bytes.TrimSpace(long)) > 0 {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, io.EOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
		line, err = r.buf.ReadSlice('\n')
	}
}
