// Package monitor lends a qmp.Client to code written for go-qemu: it implements go-qemu's Monitor interface with
// its Event and Version types. It stands apart from package qmp because go-qemu's package links go-libvirt's RPC
// client, which no process beside a VM should carry.
package monitor

import (
	"context"
	"encoding/json"
	"fmt"

	gqmp "github.com/digitalocean/go-qemu/qmp"

	"github.com/virtlet/virtlet/qmp"
)

// Monitor is a go-qemu Monitor over a connected client. The client stays usable beside it.
type Monitor struct {
	client *qmp.Client
}

var _ gqmp.Monitor = (*Monitor)(nil)

// New wraps a client.
func New(client *qmp.Client) *Monitor { return &Monitor{client: client} }

// Connect tells whether the client is connected; connecting was done when it was made.
func (m *Monitor) Connect() error { return m.client.Err() }

// Disconnect closes the client. It may be called repeatedly.
func (m *Monitor) Disconnect() error { return m.client.Close() }

// Run executes one command, given as its QMP object, and returns the reply's object ("return" and its value). The
// command's default deadline applies. A refusal is a *qmp.Error.
func (m *Monitor) Run(command []byte) ([]byte, error) {
	var cmd struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(command, &cmd); err != nil {
		return nil, fmt.Errorf("reading a qmp command: %w", err)
	}
	if cmd.Execute == "" {
		return nil, fmt.Errorf("reading a qmp command: it has no member execute (out-of-band commands are not supported)")
	}
	var args any
	if cmd.Arguments != nil {
		args = cmd.Arguments
	}
	var reply struct {
		Return json.RawMessage `json:"return"`
	}
	if err := m.client.Execute(context.Background(), cmd.Execute, args, &reply.Return); err != nil {
		return nil, err
	}
	return json.Marshal(reply)
}

// Events gives QEMU's events until the context or the connection ends; then the channel is closed. The first call
// on a client whose Subscribe was never called begins with the events since the connection was made. Events
// that were lost because nobody read them are marked by qmp.EventOverflow.
func (m *Monitor) Events(ctx context.Context) (<-chan gqmp.Event, error) {
	sub := m.client.Subscribe()
	out := make(chan gqmp.Event)
	go func() {
		defer close(out)
		defer sub.Close()
		for {
			select {
			case e, ok := <-sub.C():
				if !ok {
					return
				}
				select {
				case out <- event(e):
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// Version is QEMU's version in go-qemu's type.
func (m *Monitor) Version() gqmp.Version {
	ours := m.client.Version()
	v := gqmp.Version{Package: ours.Package}
	v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro = ours.Major, ours.Minor, ours.Micro
	return v
}

// event translates. Data that is no object is dropped: QMP has none such.
func event(e qmp.Event) gqmp.Event {
	g := gqmp.Event{Event: string(e.Name)}
	g.Timestamp.Seconds = e.Time.Unix()
	g.Timestamp.Microseconds = int64(e.Time.Nanosecond()) / 1000
	if e.Data != nil && json.Unmarshal(e.Data, &g.Data) != nil {
		g.Data = nil
	}
	return g
}
