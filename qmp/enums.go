package qmp

// EventName names an event, as QAPI does.
type EventName string

// The events that this project knows. QEMU sends others too.
const (
	// EventShutdown: the machine has shut down; QEMU exits next, unless told to pause. Data: Shutdown.
	EventShutdown EventName = "SHUTDOWN"
	// EventPowerdown: the power button was pressed (system_powerdown). It says nothing about the guest's answer.
	EventPowerdown EventName = "POWERDOWN"
	// EventReset: the machine was reset. Data: Reset.
	EventReset EventName = "RESET"
	// EventStop: the virtual CPUs were stopped.
	EventStop EventName = "STOP"
	// EventResume: the virtual CPUs run.
	EventResume EventName = "RESUME"
	// EventSuspend: the guest sleeps (ACPI S3).
	EventSuspend EventName = "SUSPEND"
	// EventSuspendDisk: the guest hibernated (ACPI S4); a SHUTDOWN follows.
	EventSuspendDisk EventName = "SUSPEND_DISK"
	// EventWakeup: the guest woke from S3.
	EventWakeup EventName = "WAKEUP"
	// EventWatchdog: a watchdog device expired. Data: Watchdog.
	EventWatchdog EventName = "WATCHDOG"
	// EventGuestPanicked: the guest's kernel said over pvpanic that it panicked. Data: GuestPanicked.
	EventGuestPanicked EventName = "GUEST_PANICKED"
	// EventGuestCrashloaded: the guest's kernel panicked and loads its crash kernel. Data: GuestPanicked.
	EventGuestCrashloaded EventName = "GUEST_CRASHLOADED"
	// EventMemoryFailure: the host reported broken memory.
	EventMemoryFailure EventName = "MEMORY_FAILURE"
	// EventBlockIOError: a disk request failed on the host. Data: BlockIOError.
	EventBlockIOError EventName = "BLOCK_IO_ERROR"
	// EventBlockImageCorrupted: a disk image's metadata is broken.
	EventBlockImageCorrupted EventName = "BLOCK_IMAGE_CORRUPTED"
	// EventJobStatusChange: a background job changed its state.
	EventJobStatusChange EventName = "JOB_STATUS_CHANGE"
	// EventDeviceDeleted: the guest let go of a device that was unplugged.
	EventDeviceDeleted EventName = "DEVICE_DELETED"
	// EventDeviceUnplugGuestError: the guest refused to let go of a device.
	EventDeviceUnplugGuestError EventName = "DEVICE_UNPLUG_GUEST_ERROR"
	// EventVSerPortChange: the guest opened or closed a virtio-serial port.
	EventVSerPortChange EventName = "VSERPORT_CHANGE"
	// EventBalloonChange: the balloon has a new size.
	EventBalloonChange EventName = "BALLOON_CHANGE"
	// EventRTCChange: the guest set its clock.
	EventRTCChange EventName = "RTC_CHANGE"
)

// EventOverflow is our own marker, not an event of QEMU's: events were lost here, ask for the state anew.
const EventOverflow EventName = "OVERFLOW"

// RunState is QAPI's RunState: what the virtual machine is doing.
type RunState string

// The run states of QAPI.
const (
	RunStateDebug         RunState = "debug"
	RunStateInMigrate     RunState = "inmigrate"
	RunStateInternalError RunState = "internal-error"
	RunStateIOError       RunState = "io-error"
	RunStatePaused        RunState = "paused"
	RunStatePostMigrate   RunState = "postmigrate"
	RunStatePrelaunch     RunState = "prelaunch"
	RunStateFinishMigrate RunState = "finish-migrate"
	RunStateRestoreVM     RunState = "restore-vm"
	RunStateRunning       RunState = "running"
	RunStateSaveVM        RunState = "save-vm"
	RunStateShutdown      RunState = "shutdown"
	RunStateSuspended     RunState = "suspended"
	RunStateWatchdog      RunState = "watchdog"
	RunStateGuestPanicked RunState = "guest-panicked"
	RunStateColo          RunState = "colo"
)

// ShutdownReason is QAPI's ShutdownCause: why a machine was shut down or reset.
type ShutdownReason string

// The shutdown causes of QAPI.
const (
	ShutdownNone               ShutdownReason = "none"
	ShutdownHostError          ShutdownReason = "host-error"
	ShutdownHostQMPQuit        ShutdownReason = "host-qmp-quit"
	ShutdownHostQMPSystemReset ShutdownReason = "host-qmp-system-reset"
	ShutdownHostSignal         ShutdownReason = "host-signal"
	ShutdownHostUI             ShutdownReason = "host-ui"
	ShutdownGuestShutdown      ShutdownReason = "guest-shutdown"
	ShutdownGuestReset         ShutdownReason = "guest-reset"
	ShutdownGuestPanic         ShutdownReason = "guest-panic"
	ShutdownSubsystemReset     ShutdownReason = "subsystem-reset"
	ShutdownSnapshotLoad       ShutdownReason = "snapshot-load"
)

// ShutdownAction is what QEMU does when the guest shuts down.
type ShutdownAction string

// The shutdown actions of QAPI.
const (
	ShutdownActionPoweroff ShutdownAction = "poweroff" // QEMU exits
	ShutdownActionPause    ShutdownAction = "pause"    // QEMU stays, in RunStateShutdown
)

// RebootAction is what QEMU does when the guest resets itself.
type RebootAction string

// The reboot actions of QAPI.
const (
	RebootActionReset    RebootAction = "reset"
	RebootActionShutdown RebootAction = "shutdown"
)

// PanicAction is what QEMU does when the guest panics.
type PanicAction string

// The panic actions of QAPI.
const (
	PanicActionPause       PanicAction = "pause"        // the guest stays, in RunStateGuestPanicked
	PanicActionShutdown    PanicAction = "shutdown"     // QEMU exits with status 0
	PanicActionExitFailure PanicAction = "exit-failure" // QEMU exits with status 1
	PanicActionNone        PanicAction = "none"         // the guest goes on
)

// WatchdogAction is what QEMU does when a watchdog device expires.
type WatchdogAction string

// The watchdog actions of QAPI.
const (
	WatchdogActionReset     WatchdogAction = "reset"
	WatchdogActionShutdown  WatchdogAction = "shutdown" // ACPI power-down
	WatchdogActionPoweroff  WatchdogAction = "poweroff"
	WatchdogActionPause     WatchdogAction = "pause"
	WatchdogActionDebug     WatchdogAction = "debug" // print a message
	WatchdogActionNone      WatchdogAction = "none"
	WatchdogActionInjectNMI WatchdogAction = "inject-nmi"
)

// GuestPanicAction is what QEMU did about a panic (QAPI's GuestPanicAction).
type GuestPanicAction string

// The guest panic actions of QAPI.
const (
	GuestPanicActionPause    GuestPanicAction = "pause"
	GuestPanicActionPoweroff GuestPanicAction = "poweroff"
	GuestPanicActionRun      GuestPanicAction = "run"
)

// IOOperation is the direction of a disk request.
type IOOperation string

// The operation types of QAPI.
const (
	IOOperationRead  IOOperation = "read"
	IOOperationWrite IOOperation = "write"
)

// BlockErrorAction is what QEMU did about a failed disk request.
type BlockErrorAction string

// The block error actions of QAPI.
const (
	BlockErrorActionIgnore BlockErrorAction = "ignore"
	BlockErrorActionReport BlockErrorAction = "report" // the guest sees an I/O error
	BlockErrorActionStop   BlockErrorAction = "stop"   // the guest is paused, in RunStateIOError
)
