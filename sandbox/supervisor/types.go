// Package supervisor keeps the life of pods and their virtual machines: it builds and removes what each needs
// (netns, CNI attachment, root disk, seed, cgroup, vmwrapper), and drives the machine over QMP. It records every
// intent before the deed and every result after it, so that a daemon killed at any point finishes or undoes the
// work on its next start. It knows neither CRI nor gRPC; its callers translate.
package supervisor

import (
	"cmp"
	"encoding/json"
	"errors"
	"time"

	"github.com/virtlet/virtlet/cgroups"
	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// Faults that callers tell apart by errors.Is. Each comes wrapped with what was being done to which pod or VM.
var (
	// ErrNotFound: no pod or VM has that id.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name and attempt are taken.
	ErrExists = errors.New("already exists")
	// ErrState: the pod or VM is in a state that does not allow the request.
	ErrState = errors.New("wrong state")
	// ErrInvalid: the request itself is wrong and will not succeed when repeated.
	ErrInvalid = errors.New("invalid request")
	// ErrBusy: another request for the same name is under way.
	ErrBusy = errors.New("in progress")
	// ErrHost: the host lacks what the request needs (QEMU, CNI configuration, cgroup parent).
	ErrHost = errors.New("host not prepared")
	// ErrNoSpace: a file system or quota is full.
	ErrNoSpace = errors.New("no space left")
	// ErrNotReady: the supervisor has not finished recovery.
	ErrNotReady = errors.New("recovering, not ready yet")
)

// PodSpec is what a caller asks of a pod sandbox.
type PodSpec struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         string            `json:"uid"`
	Attempt     uint32            `json:"attempt"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Hostname of the guest; empty means the pod's name.
	Hostname string `json:"hostname,omitempty"`
	// LogDirectory is an absolute path on the host, below which the VM's log lies.
	LogDirectory string `json:"logDirectory,omitempty"`
	// CgroupParent in the syntax of the cgroup driver; empty means the supervisor's own default.
	CgroupParent string              `json:"cgroupParent,omitempty"`
	Handler      string              `json:"handler,omitempty"`
	DNS          netns.DNS           `json:"dns"`
	PortMappings []netns.PortMapping `json:"portMappings,omitempty"`
	Bandwidth    *netns.Bandwidth    `json:"bandwidth,omitempty"`
	// Config is the caller's own description, kept for it unread.
	Config json.RawMessage `json:"config,omitempty"`
}

// PodState is where a pod stands in its life.
type PodState string

// The states of a pod. Only PodReady takes a VM.
const (
	PodCreating PodState = "creating"
	PodReady    PodState = "ready"
	PodStopping PodState = "stopping"
	PodNotReady PodState = "not-ready"
	PodRemoving PodState = "removing"
)

// Pod is a sandbox: its record and, at the same time, the immutable snapshot that readers get.
type Pod struct {
	ID        string    `json:"id"`
	Spec      PodSpec   `json:"spec"`
	State     PodState  `json:"state"`
	CreatedAt time.Time `json:"createdAt"`
	// BootID is the kernel's boot id under which the netns was made; under another one the netns is gone.
	BootID string `json:"bootID"`
	Netns  string `json:"netns"`
	// Network is what CNI gave; nil before ADD and after DEL.
	Network *netns.Network `json:"network,omitempty"`
	// Released: CNI DEL has succeeded and the netns is removed, so that stopping the pod again has nothing to do.
	Released bool `json:"released,omitempty"`
	// Message tells why a pod is not ready, when that was not asked for.
	Message string `json:"message,omitempty"`
}

// ContainerSpec is the face that a VM shows as a pod's container.
type ContainerSpec struct {
	Name        string            `json:"name"`
	Attempt     uint32            `json:"attempt"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// LogPath is absolute; empty means no log.
	LogPath string `json:"logPath,omitempty"`
	// ImageName is what the caller called the image, ImageID what the store calls it.
	ImageName string `json:"imageName"`
	ImageID   string `json:"imageID"`
	TTY       bool   `json:"tty,omitempty"`
	Stdin     bool   `json:"stdin,omitempty"`
	// Config is the caller's own description, kept for it unread.
	Config json.RawMessage `json:"config,omitempty"`
}

// BaseDisk is a verified image in the store: the backing file of a root disk.
type BaseDisk struct {
	Path   string `json:"path"`
	Format string `json:"format"`
	// VirtualSize in bytes.
	VirtualSize int64 `json:"virtualSize"`
}

// VMSpec is what a caller asks of a VM.
type VMSpec struct {
	Container ContainerSpec `json:"container"`
	Base      BaseDisk      `json:"base"`
	// VCPUs overrides the count derived from the CPU quota; 0 means derive.
	VCPUs int `json:"vcpus,omitempty"`
	// RootSize in bytes; 0 means the image's virtual size.
	RootSize int64    `json:"rootSize,omitempty"`
	SSHKeys  []string `json:"sshKeys,omitempty"`
	UserData []byte   `json:"userData,omitempty"`
	// MaySpoof lets the guest send with every MAC and address.
	MaySpoof bool `json:"maySpoof,omitempty"`
	// Resources as asked; Resources.Memory is the guest's RAM (0 = the configured default).
	Resources cgroups.Limits `json:"resources"`
}

// VMState is where a VM stands in its life.
type VMState string

// The states of a VM. Stopping and removing are intents: recovery carries them on.
const (
	VMCreating VMState = "creating"
	VMCreated  VMState = "created"
	VMStarting VMState = "starting"
	VMRunning  VMState = "running"
	VMStopping VMState = "stopping"
	VMExited   VMState = "exited"
	VMRemoving VMState = "removing"
)

// Reasons of an exit, in the words that kubelet and people know.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
	ReasonPanicked   = "GuestPanicked"
	ReasonHostReboot = "HostRebooted"
)

// Process is a pid that can be trusted: pids are reused, the three together are not.
type Process struct {
	PID int `json:"pid,omitempty"`
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	StartTime uint64 `json:"startTime,omitempty"`
	BootID    string `json:"bootID,omitempty"`
}

// VM is a pod's machine: its record and, at the same time, the immutable snapshot that readers get.
type VM struct {
	ID     string        `json:"id"`
	PodID  string        `json:"podID"`
	Spec   VMSpec        `json:"spec"`
	State  VMState       `json:"state"`
	Domain domain.Domain `json:"domain"`
	// UID is the user, and the group, that its QEMU runs as, WrapperUID those of its vmwrapper.
	UID        uint32    `json:"uid"`
	WrapperUID uint32    `json:"wrapperUID"`
	CreatedAt  time.Time `json:"createdAt"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	ExitCode   int32     `json:"exitCode,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Message    string    `json:"message,omitempty"`
	// Limits that are in force on the VM's cgroup (memory includes QEMU's overhead).
	Limits  cgroups.Limits `json:"limits"`
	Wrapper Process        `json:"wrapper,omitzero"`
	QEMU    Process        `json:"qemu,omitzero"`
	// Condition is a fault that the guest or QEMU reported while running (guest panic, block I/O error); empty when well.
	Condition string `json:"condition,omitempty"`
	// Paused tells that QEMU has paused the machine since the host has no space for what the guest writes, and what ends
	// that; empty while it runs. It goes on by itself.
	Paused string `json:"paused,omitempty"`
}

// Trouble is what a person should know of a VM that runs: its pause, else its Condition; empty when well.
func (v VM) Trouble() string { return cmp.Or(v.Paused, v.Condition) }

// EventType names a change in a pod's or VM's life.
type EventType string

// The events of a life, in order.
const (
	EventCreated EventType = "created"
	EventStarted EventType = "started"
	// EventChanged: a VM that runs is paused for want of space, or goes on.
	EventChanged EventType = "changed"
	EventStopped EventType = "stopped"
	EventDeleted EventType = "deleted"
)

// Event is one change, with the states just after it. VM is nil for an event of the sandbox itself.
type Event struct {
	Type EventType
	Time time.Time
	Pod  Pod
	VM   *VM
}

// Store keeps the records over restarts. Each method is one durable transaction: when it returns nil the change
// survives a power cut. The records given to Put are not retained or changed.
type Store interface {
	// ID is random, made with the store and kept with it: artefacts carry it, so that garbage is known from what belongs
	// to another or an earlier store.
	ID() string
	PutPod(Pod) error
	DeletePod(id string) error
	PutVM(VM) error
	DeleteVM(id string) error
	// Load returns everything that was kept. A record that cannot be read is reported in the error beside the good ones.
	Load() ([]Pod, []VM, error)
}

// Stats is one VM's usage at one moment.
type Stats struct {
	VM   VM
	Time time.Time
	// Cgroup is nil when the VM does not run.
	Cgroup *cgroups.Usage
	// RootDiskBytes is what the overlay has allocated on the host, in bytes.
	RootDiskBytes int64
	// RootDiskPath is where the overlay lies.
	RootDiskPath string
	// Links holds, by the name of the link in the pod's netns, the traffic as the guest sees it.
	Links map[string]netns.LinkStats
}
