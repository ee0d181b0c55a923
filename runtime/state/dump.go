package state

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// dump is the document that Dump writes.
type dump struct {
	Path   string           `json:"path"`
	ID     string           `json:"id"`
	Schema int              `json:"schema"`
	Pods   []supervisor.Pod `json:"pods"`
	VMs    []supervisor.VM  `json:"vms"`
	Images []image.Image    `json:"images"`
	// Faults tells of records that cannot be read, without their content.
	Faults []string `json:"faults"`
}

// Dump writes all records, as of one moment, as one indented JSON document for a person who looks for a fault. What
// may be secret is left out or replaced by its size: user-data, ssh keys, the callers' own configurations, and the
// value of every annotation that is not known to be harmless.
func (s *Store) Dump(w io.Writer) error {
	doc := dump{Path: s.path, ID: s.id, Pods: []supervisor.Pod{}, VMs: []supervisor.VM{}, Images: []image.Image{}, Faults: []string{}}
	var bad []error
	err := s.view(func(tx *bolt.Tx) (err error) {
		if doc.Schema, err = schemaOf(tx); err != nil {
			return corrupt(s.path, err)
		}
		for _, p := range collect(tx, bucketPods, func(p supervisor.Pod) string { return p.ID }, &bad) {
			doc.Pods = append(doc.Pods, scrubPod(p))
		}
		for _, v := range collect(tx, bucketVMs, func(v supervisor.VM) string { return v.ID }, &bad) {
			doc.VMs = append(doc.VMs, scrubVM(v))
		}
		doc.Images = append(doc.Images, collect(tx, bucketImages, func(i image.Image) string { return i.ID }, &bad)...)
		return nil
	})
	if err != nil {
		return fmt.Errorf("dumping state: %w", err)
	}
	for _, err := range bad {
		doc.Faults = append(doc.Faults, err.Error())
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("dumping state: %w", err)
	}
	return nil
}

func scrubPod(p supervisor.Pod) supervisor.Pod {
	p.Spec.Annotations = scrubAnnotations(p.Spec.Annotations)
	p.Spec.Config = scrubRaw(p.Spec.Config)
	return p
}

func scrubVM(v supervisor.VM) supervisor.VM {
	c := &v.Spec.Container
	c.Annotations = scrubAnnotations(c.Annotations)
	c.Config = scrubRaw(c.Config)
	v.Spec.SSHKeys = slices.Clone(v.Spec.SSHKeys)
	for i, key := range v.Spec.SSHKeys {
		v.Spec.SSHKeys[i] = withheld(len(key))
	}
	v.Spec.UserData = nil // bytes become base64 in JSON: no place for a remark
	return v
}

// harmless annotations are shown. It is a list of what may be seen, since nobody can list what people put into
// annotations; kubectl's last-applied-configuration repeats all the others.
func harmless() []string {
	return []string{
		"VirtletRootVolumeSize",
		"VirtletVCPUCount",
		"io.kubernetes.container.hash",
		"io.kubernetes.container.restartCount",
		"io.kubernetes.container.terminationMessagePath",
		"io.kubernetes.container.terminationMessagePolicy",
		"io.kubernetes.pod.terminationGracePeriod",
		"kubernetes.io/config.hash",
		"kubernetes.io/config.seen",
		"kubernetes.io/config.source",
		"kubernetes.io/target-runtime",
	}
}

func scrubAnnotations(annotations map[string]string) map[string]string {
	shown := maps.Clone(annotations)
	for name, value := range shown {
		if !slices.Contains(harmless(), name) {
			shown[name] = withheld(len(value))
		}
	}
	return shown
}

func scrubRaw(raw json.RawMessage) json.RawMessage {
	if raw == nil {
		return nil
	}
	return json.RawMessage(`"` + withheld(len(raw)) + `"`)
}

func withheld(bytes int) string {
	return fmt.Sprintf("withheld, %d bytes", bytes)
}
