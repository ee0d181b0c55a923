// Package qmp speaks the QEMU Machine Protocol: typed commands, typed events and the client that carries them over
// one connection. Requests are matched to replies by id, every call obeys its context, and events arrive in QEMU's
// order through bounded buffers that never delay a reply. A client lives as long as its connection; to reconnect
// is to make a new one.
//
// The protocol is described in QEMU's docs/interop/qmp-spec, the commands and events in its QAPI schema.
// The adapter to go-qemu's Monitor interface is the sub-package monitor, which alone links go-qemu: the process
// beside each VM uses this package and must stay small.
package qmp
