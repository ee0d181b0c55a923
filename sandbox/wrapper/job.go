// Package wrapper is vmwrapper: the small process between the daemon and one QEMU. It is what conmon is to a
// container: it builds the VM's network join, answers its DHCP, starts QEMU, keeps console, log and QMP events, and
// leaves an exit record, whether or not a daemon lives. The same package holds the daemon's side: Start, ReadExit, and
// the calls over the control socket (Query, Attach, ReopenLog).
package wrapper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// The descriptors on which vmwrapper meets its daemon.
const (
	jobFD   = 3
	readyFD = 4
)

// maxJob bounds the job document, in bytes.
const maxJob = 1 << 20

// Job is all that vmwrapper is told: one JSON document on descriptor 3.
type Job struct {
	VMID    string `json:"vmID"`
	PodID   string `json:"podID"`
	PodName string `json:"podName"`
	// QEMU is the absolute path of the binary, QEMUNeeds what it needs of the host to run (domain.QEMU.Needs).
	QEMU      string   `json:"qemu"`
	QEMUNeeds []string `json:"qemuNeeds,omitempty"`
	// UID is the user and the group that QEMU runs as, WrapperUID that of vmwrapper when all is set up; nothing else on
	// the host has them. WrapperUID 0 leaves vmwrapper root.
	UID        uint32 `json:"uid"`
	WrapperUID uint32 `json:"wrapperUID,omitempty"`
	// MaxFile is the length in bytes up to which QEMU may write a file: its disks. 0 sets no bound.
	MaxFile int64         `json:"maxFile,omitempty"`
	Domain  domain.Domain `json:"domain"`
	// Netns is the path of the pod's network namespace. vmwrapper and QEMU run inside it; empty means the daemon's own.
	Netns string `json:"netns,omitempty"`
	// Links are the pod's interfaces, one for each NIC of Domain and in the same order; Taps are the names of the taps
	// to make for them.
	Links []netns.Interface `json:"links,omitempty"`
	Taps  []string          `json:"taps,omitempty"`
	// MaySpoof lets the guest send with every MAC and address.
	MaySpoof bool `json:"maySpoof,omitempty"`
	// NoOffload makes the guest compute its checksums itself, see netns.JoinSpec.
	NoOffload bool `json:"noOffload,omitempty"`
	// DNS and Hostname are what DHCP tells the guest.
	DNS      netns.DNS `json:"dns"`
	Hostname string    `json:"hostname,omitempty"`
	Log      LogSpec   `json:"log"`
	// RunDir is the VM's own run directory, made 0700 where it is missing. It holds the sockets, the exit record and the
	// event log, and is the daemon's to remove.
	RunDir string `json:"runDir"`
	// OOMEventsFile is a cgroup file with a line "oom_kill N"; empty means OOM kills are not told apart.
	OOMEventsFile string `json:"oomEventsFile,omitempty"`
	// OOMScoreAdj for QEMU, -1000 to 1000. vmwrapper's own is lowered as far as its rights allow.
	OOMScoreAdj int `json:"oomScoreAdj,omitempty"`
}

// LogSpec says where the console log goes.
type LogSpec struct {
	// Path of the CRI log file, absolute. Missing directories are made 0755, the file 0640. The log is appended to.
	// Empty means that no log is kept.
	Path string `json:"path,omitempty"`
	// Rate, in bytes per second, and Burst, in bytes, bound the log's growth: a guest that has more to say is slowed down.
	// MaxBytes is the size at which a log that nobody rotates ends. 0 means DefaultLogRate, eight seconds of the rate, and
	// DefaultLogSize.
	Rate     int64 `json:"rate,omitempty"`
	Burst    int64 `json:"burst,omitempty"`
	MaxBytes int64 `json:"maxBytes,omitempty"`
}

// Ready is vmwrapper's good news: QEMU has answered a QMP command and waits, paused, for cont.
type Ready struct {
	QEMUPID int `json:"qemuPID"`
}

// report is the one line on descriptor 4: one of the two.
type report struct {
	Ready *Ready `json:"ready,omitempty"`
	Error string `json:"error,omitempty"`
}

func readJob(r io.Reader) (Job, error) {
	var j Job
	doc, err := io.ReadAll(io.LimitReader(r, maxJob+1))
	if err != nil {
		return j, fmt.Errorf("reading the job: %w", err)
	}
	if len(doc) == 0 {
		return j, errors.New("reading the job: the daemon went away before it gave one")
	}
	if len(doc) > maxJob {
		return j, fmt.Errorf("reading the job: it is larger than %d bytes", maxJob)
	}
	if err := json.Unmarshal(doc, &j); err != nil {
		return j, fmt.Errorf("reading the job: %w", err)
	}
	return j, j.validate()
}

func (j Job) validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if j.VMID == "" {
		fault("vmID is empty")
	}
	if j.UID == 0 {
		fault("uid is that of root")
	}
	if j.UID == j.WrapperUID {
		fault("vmwrapper and QEMU have the same user %d", j.UID)
	}
	for _, p := range []struct {
		what, path string
		must       bool
	}{{"qemu", j.QEMU, true}, {"runDir", j.RunDir, true}, {"log.path", j.Log.Path, false}} {
		if (p.must || p.path != "") && !filepath.IsAbs(p.path) {
			fault("%s is %q, not an absolute path", p.what, p.path)
		}
	}
	faults = append(faults, j.Log.validate()...)
	if n := len(j.Domain.NICs); len(j.Links) != n || len(j.Taps) != n {
		fault("%d NICs, but %d links and %d taps: each NIC needs one of each", n, len(j.Links), len(j.Taps))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("checking the job of VM %q: %w", j.VMID, err)
	}
	return nil
}

// joins are the tc joins of the job, one for each link.
func (j Job) joins() []netns.JoinSpec {
	specs := make([]netns.JoinSpec, len(j.Links))
	for i, link := range j.Links {
		specs[i] = netns.JoinSpec{Netns: j.Netns, Link: link, Tap: j.Taps[i], Queues: max(1, j.Domain.NICs[i].Queues), MaySpoof: j.MaySpoof, NoOffload: j.NoOffload}
	}
	return specs
}
