package supervisor

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/virtlet/virtlet/netns/cni"
)

// Every artefact is found from the pod's or VM's id, so that a later daemon finds it without a record of its own.

const netnsPrefix = "virtlet-"

func (c Config) vmsState() string             { return filepath.Join(c.StateDir, "vms") }
func (c Config) vmsRun() string               { return filepath.Join(c.RunDir, "vms") }
func (c Config) vmDir(id string) string       { return filepath.Join(c.vmsState(), id) }
func (c Config) vmRunDir(id string) string    { return filepath.Join(c.vmsRun(), id) }
func (c Config) rootDisk(id string) string    { return filepath.Join(c.vmDir(id), "root.qcow2") }
func (c Config) seed(id string) string        { return filepath.Join(c.vmDir(id), "seed.iso") }
func (c Config) podNetns(podID string) string { return filepath.Join(c.NetnsDir, netnsPrefix+podID) }

// newID returns 64 random hex digits, the form of id that kubelet and crictl expect of a runtime.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the program instead
	return hex.EncodeToString(b[:])
}

// isID tells an id of ours from any other file name.
func isID(s string) bool {
	if len(s) != 64 {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil && s == strings.ToLower(s)
}

// machineUUID is the SMBIOS UUID of a VM: the first 16 bytes of its id, in the RFC 9562 text form.
func machineUUID(vmID string) string {
	return strings.Join([]string{vmID[:8], vmID[8:12], "4" + vmID[13:16], "8" + vmID[17:20], vmID[20:32]}, "-")
}

// podKey is the name that must be unique among the pods of a node.
func podKey(s PodSpec) string {
	return fmt.Sprintf("%s_%s_%s_%d", s.Name, s.Namespace, s.UID, s.Attempt)
}

// podName is how people call a pod.
func podName(s PodSpec) string { return s.Namespace + "/" + s.Name }

func attachment(p Pod) cni.Attachment {
	return cni.Attachment{
		PodID: p.ID, Netns: p.Netns,
		PodName: p.Spec.Name, PodNamespace: p.Spec.Namespace, PodUID: p.Spec.UID,
		PortMappings: p.Spec.PortMappings, DNS: p.Spec.DNS, Bandwidth: p.Spec.Bandwidth,
	}
}

func ensureDir(dir string) error { return os.MkdirAll(dir, 0o700) }

// marker is the file that tells an artefact's owner. Garbage is only what carries the id of this very store: with a
// new or foreign database nothing matches, so nothing is destroyed.
const marker = "virtlet.json"

type markerFile struct {
	Store string `json:"store"`
	VM    string `json:"vm"`
	Pod   string `json:"pod"`
	// CgroupParent is where the VM's cgroup lies, in the driver's syntax.
	CgroupParent string `json:"cgroupParent,omitempty"`
}

func makeMarkedDir(dir string, m markerFile) error {
	if err := ensureDir(dir); err != nil {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	// Whole or not at all: half a marker would make its directory nobody's for ever.
	part := filepath.Join(dir, "."+marker)
	if err := os.WriteFile(part, b, 0o600); err != nil {
		return err
	}
	return os.Rename(part, filepath.Join(dir, marker))
}

func readMarker(dir string) (markerFile, error) {
	var m markerFile
	b, err := os.ReadFile(filepath.Join(dir, marker))
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(b, &m)
}
