package qmp

import (
	"context"
	"time"
)

// defaultTimeout is how long a command may take when its caller sets no limit. QEMU answers most within a
// millisecond; the limits are for a busy host, and for commands that touch disks or devices.
func defaultTimeout(command string) time.Duration {
	switch command {
	case "blockdev-add", "blockdev-del", "blockdev-reopen", "block_resize", "blockdev-snapshot",
		"device_add", "device_del", "netdev_add", "netdev_del", "object-add", "object-del",
		"query-qmp-schema", "query-named-block-nodes", "query-block", "stop":
		// stop waits until disk requests under way are done.
		return 30 * time.Second
	default:
		return 10 * time.Second
	}
}

// StatusInfo is the reply to query-status.
type StatusInfo struct {
	Status RunState `json:"status"`
	// Running tells that the virtual CPUs run.
	Running bool `json:"running"`
}

// QueryStatus asks what the machine is doing.
func (c *Client) QueryStatus(ctx context.Context) (s StatusInfo, err error) {
	err = c.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// Cont lets the virtual CPUs run (command cont). It succeeds where they do already.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// Stop halts the virtual CPUs and finishes disk requests (command stop). It succeeds where they are halted already.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// SystemPowerdown presses the ACPI power button. Success says nothing about whether the guest will obey; a halted
// guest does not even see it.
func (c *Client) SystemPowerdown(ctx context.Context) error {
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// PressPowerButton presses the ACPI power button in a way that the guest can notice: one that sleeps is woken, one that
// is paused goes on. A guest that never can is ended by quit.
func (c *Client) PressPowerButton(ctx context.Context) error {
	s, err := c.QueryStatus(ctx)
	if err != nil {
		return err
	}
	switch s.Status {
	case RunStatePrelaunch, RunStateShutdown, RunStateGuestPanicked, RunStateInternalError:
		return c.Quit(ctx)
	case RunStateSuspended:
		err = c.Execute(ctx, "system_wakeup", nil, nil)
	case RunStateRunning:
	default:
		err = c.Cont(ctx)
	}
	if err != nil {
		return err
	}
	return c.SystemPowerdown(ctx)
}

// SystemReset resets the machine without asking the guest.
func (c *Client) SystemReset(ctx context.Context) error {
	return c.Execute(ctx, "system_reset", nil, nil)
}

// Quit makes QEMU flush its disks and exit. QEMU emits EventShutdown, answers, then exits and so closes the
// connection; where it was exiting already the error wraps ErrClosed.
func (c *Client) Quit(ctx context.Context) error { return c.Execute(ctx, "quit", nil, nil) }

// Actions is what QEMU is to do of itself; empty fields stay as they are.
type Actions struct {
	Shutdown ShutdownAction `json:"shutdown,omitempty"`
	Reboot   RebootAction   `json:"reboot,omitempty"`
	Panic    PanicAction    `json:"panic,omitempty"`
	Watchdog WatchdogAction `json:"watchdog,omitempty"`
}

// SetAction changes what QEMU does when the guest shuts down, resets itself, panics or hangs (command set-action).
func (c *Client) SetAction(ctx context.Context, a Actions) error {
	return c.Execute(ctx, "set-action", a, nil)
}

// CPUInfo is one virtual CPU, of the reply to query-cpus-fast.
type CPUInfo struct {
	Index int `json:"cpu-index"`
	// ThreadID is the host's thread that runs the CPU (under TCG with one thread, all CPUs share it).
	ThreadID int    `json:"thread-id"`
	QOMPath  string `json:"qom-path"`
}

// QueryCPUsFast lists the virtual CPUs without interrupting them.
func (c *Client) QueryCPUsFast(ctx context.Context) (cpus []CPUInfo, err error) {
	err = c.Execute(ctx, "query-cpus-fast", nil, &cpus)
	return cpus, err
}

// BlockStats is one disk's counters since QEMU's start, of the reply to query-blockstats.
type BlockStats struct {
	// Device is the block backend's name, often empty for nodes given by -blockdev.
	Device   string `json:"device"`
	NodeName string `json:"node-name"`
	// QDev is the QOM path of the guest's device.
	QDev  string        `json:"qdev"`
	Stats BlockCounters `json:"stats"`
}

// BlockCounters counts what the guest asked of a disk.
type BlockCounters struct {
	ReadBytes       uint64 `json:"rd_bytes"`
	WriteBytes      uint64 `json:"wr_bytes"`
	ReadOperations  uint64 `json:"rd_operations"`
	WriteOperations uint64 `json:"wr_operations"`
	FlushOperations uint64 `json:"flush_operations"`
	// ReadTime, WriteTime and FlushTime are what the requests took in all, in nanoseconds.
	ReadTime    uint64 `json:"rd_total_time_ns"`
	WriteTime   uint64 `json:"wr_total_time_ns"`
	FlushTime   uint64 `json:"flush_total_time_ns"`
	ReadErrors  uint64 `json:"failed_rd_operations"`
	WriteErrors uint64 `json:"failed_wr_operations"`
	// WriteHighest is the offset after the last byte ever written, in bytes.
	WriteHighest uint64 `json:"wr_highest_offset"`
}

// QueryBlockStats gives the counters of all disks that the guest has.
func (c *Client) QueryBlockStats(ctx context.Context) (stats []BlockStats, err error) {
	err = c.Execute(ctx, "query-blockstats", nil, &stats)
	return stats, err
}

// BalloonInfo is the reply to query-balloon.
type BalloonInfo struct {
	// Actual is the guest's RAM less what the balloon holds, in bytes.
	Actual uint64 `json:"actual"`
}

// QueryBalloon asks for the balloon's size. Without a balloon device the error has class ErrorDeviceNotActive.
func (c *Client) QueryBalloon(ctx context.Context) (b BalloonInfo, err error) {
	err = c.Execute(ctx, "query-balloon", nil, &b)
	return b, err
}

// KVMInfo is the reply to query-kvm.
type KVMInfo struct {
	// Enabled tells that this machine runs under KVM, Present that QEMU was built with it.
	Enabled bool `json:"enabled"`
	Present bool `json:"present"`
}

// QueryKVM asks whether the machine runs under KVM.
func (c *Client) QueryKVM(ctx context.Context) (k KVMInfo, err error) {
	err = c.Execute(ctx, "query-kvm", nil, &k)
	return k, err
}

// UUIDInfo is the reply to query-uuid.
type UUIDInfo struct {
	UUID string `json:"UUID"`
}

// QueryUUID asks for the machine's UUID (-uuid): by it a QEMU that was found again proves which VM it is.
func (c *Client) QueryUUID(ctx context.Context) (string, error) {
	var u UUIDInfo
	err := c.Execute(ctx, "query-uuid", nil, &u)
	return u.UUID, err
}
