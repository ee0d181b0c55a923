package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/virtlet/virtlet/netns"
)

// load reads the first valid configuration of ConfDir in lexical order. A file that is not valid is passed over; if
// none is, the error tells what is wrong with each.
func (c *CNI) load() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(c.conf.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("reading the CNI configurations in %s: %w", c.conf.ConfDir, err)
	}
	slices.Sort(files)
	faults := []error{fmt.Errorf("%w in %s: install a network add-on, or put a NAME.conflist there", ErrNoCNIConfig, c.conf.ConfDir)}
	for _, f := range files {
		list, err := loadFile(f)
		if err == nil {
			return list, nil
		}
		faults = append(faults, fmt.Errorf("%s is not valid: %w", filepath.Base(f), err))
	}
	return nil, errors.Join(faults...)
}

func loadFile(path string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(path) == ".conflist" {
		list, err := libcni.NetworkConfFromFile(path)
		if err != nil {
			return nil, err
		}
		return list, valid(list)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	plugin, err := libcni.NetworkPluginConfFromBytes(b)
	if err != nil {
		return nil, err
	}
	list, err := libcni.ConfListFromConf(plugin) //nolint:staticcheck // deprecated with the format, which nodes still have
	if err != nil {
		return nil, err
	}
	return list, valid(list)
}

func valid(list *libcni.NetworkConfigList) error {
	if list.Name == "" {
		return errors.New("the network has no name")
	}
	return nil
}

// A memory is what an attachment was made with. It is written before ADD, so that an ADD cut short at any point (a
// crash, a power cut) can be undone with its own configuration even if the administrator has changed it since.
// The JSON form of a list holds its plugins, those from a folder beside the file included.
type memory struct {
	Attachment Attachment        `json:"attachment"`
	List       json.RawMessage   `json:"list"`
	Plugins    []json.RawMessage `json:"plugins"`
	// BootID is the kernel's, as of the ADD.
	BootID string `json:"bootID"`
}

// errUnknown: nothing is kept about the attachment, or it cannot be read.
var errUnknown = errors.New("the pod is not attached")

func (c *CNI) memoryDir() string { return filepath.Join(c.conf.CacheDir, "attachments") }

func (c *CNI) memoryFile(a Attachment) string {
	return filepath.Join(c.memoryDir(), filepath.Base(a.PodID)+"-"+filepath.Base(a.ifName())+".json")
}

func (c *CNI) remember(list *libcni.NetworkConfigList, a Attachment) error {
	m := memory{Attachment: a, List: list.Bytes, BootID: bootID()}
	for _, p := range list.Plugins {
		m.Plugins = append(m.Plugins, p.Bytes)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding the record of the attachment: %w", err)
	}
	if err := os.MkdirAll(c.memoryDir(), 0o700); err != nil {
		return fmt.Errorf("making the CNI cache: %w", err)
	}
	tmp := c.memoryFile(a) + ".tmp"
	if err := writeSynced(tmp, b); err != nil {
		return errors.Join(fmt.Errorf("recording the attachment: %w", err), os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, c.memoryFile(a)); err != nil {
		return fmt.Errorf("recording the attachment: %w", err)
	}
	return nil
}

// writeSynced writes a file that is whole after a power cut, once it is renamed.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// bootID changes with each boot of the host; "" when the kernel does not tell.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// recall returns the configuration and the arguments of the ADD; of a it keeps what a caller may know better.
func (c *CNI) recall(a Attachment) (*libcni.NetworkConfigList, Attachment, error) {
	m, err := readMemory(c.memoryFile(a))
	if err != nil {
		return nil, a, err
	}
	list, err := m.list()
	if err != nil {
		return nil, a, errUnknown
	}
	if a.Netns != "" {
		m.Attachment.Netns = a.Netns
	}
	return list, m.Attachment, nil
}

func readMemory(path string) (memory, error) {
	var m memory
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &m) != nil || m.Attachment.PodID == "" {
		return memory{}, errUnknown
	}
	return m, nil
}

func (m memory) list() (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(m.List)
	if err != nil {
		return nil, err
	}
	list.Plugins = nil
	for _, b := range m.Plugins {
		p, err := libcni.NetworkPluginConfFromBytes(b)
		if err != nil {
			return nil, err
		}
		list.Plugins = append(list.Plugins, p)
	}
	if len(list.Plugins) == 0 {
		return nil, errUnknown
	}
	return list, nil
}

// remembered lists all attachments on record.
func (c *CNI) remembered() ([]Attachment, error) {
	files, err := filepath.Glob(filepath.Join(c.memoryDir(), "*.json"))
	if err != nil {
		return nil, fmt.Errorf("listing the attachments on record: %w", err)
	}
	var out []Attachment
	for _, f := range files {
		if m, err := readMemory(f); err == nil {
			out = append(out, m.Attachment)
		}
	}
	return out, nil
}

// noBurst lets a limited rate be exceeded for a moment by as much as the plugin can express; it wants some value.
const noBurst = math.MaxUint32

// runtimeConf is what the plugins get besides their configuration. libcni gives each plugin only those capabilities
// that its configuration declares.
func runtimeConf(a Attachment, path string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: a.PodID,
		NetNS:       path,
		IfName:      a.ifName(),
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, // plugins refuse arguments that they do not know otherwise
			{"K8S_POD_NAMESPACE", a.PodNamespace},
			{"K8S_POD_NAME", a.PodName},
			{"K8S_POD_INFRA_CONTAINER_ID", a.PodID},
			{"K8S_POD_UID", a.PodUID},
		},
		CapabilityArgs: map[string]any{},
	}
	var ports []netns.PortMapping
	for _, p := range a.PortMappings {
		if p.HostPort > 0 { // kubelet lists all container ports, most of them without a host port
			p.Protocol = strings.ToLower(p.Protocol)
			ports = append(ports, p)
		}
	}
	if len(ports) > 0 {
		rt.CapabilityArgs["portMappings"] = ports
	}
	if !a.DNS.Empty() {
		rt.CapabilityArgs["dns"] = a.DNS
	}
	if b := a.Bandwidth; b != nil && (b.IngressRate > 0 || b.EgressRate > 0) {
		limits := *b
		if limits.IngressRate > 0 && limits.IngressBurst == 0 {
			limits.IngressBurst = noBurst
		}
		if limits.EgressRate > 0 && limits.EgressBurst == 0 {
			limits.EgressBurst = noBurst
		}
		rt.CapabilityArgs["bandwidth"] = limits
	}
	return rt
}
