package cri

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/netns"
	"github.com/virtlet/virtlet/runtime/annotations"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// RunPodSandbox makes a pod's network namespace and attaches it to the networks. The VM itself comes with the container.
func (s *Server) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	spec, err := s.podSpec(req)
	if err != nil {
		return nil, err
	}
	p, err := s.machines.RunPod(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: p.ID}, nil
}

// podSpec validates a request and translates it.
func (s *Server) podSpec(req *runtimeapi.RunPodSandboxRequest) (supervisor.PodSpec, error) {
	config, meta := req.GetConfig(), req.GetConfig().GetMetadata()
	if config == nil {
		return supervisor.PodSpec{}, invalid("the sandbox config is missing")
	}
	if meta == nil {
		return supervisor.PodSpec{}, invalid("the sandbox config has no metadata")
	}
	if !slices.Contains(s.cfg.Handlers, req.GetRuntimeHandler()) {
		return supervisor.PodSpec{}, invalid("pod %s/%s: no runtime handler %q here, only %q: correct the RuntimeClass's handler or virtlet's setting `handlers`",
			meta.GetNamespace(), meta.GetName(), req.GetRuntimeHandler(), s.cfg.Handlers)
	}

	var bad faults
	checkName(&bad, "metadata.name", meta.GetName())
	checkName(&bad, "metadata.uid", meta.GetUid())
	checkName(&bad, "metadata.namespace", meta.GetNamespace())
	checkHostname(&bad, config.GetHostname())
	checkAbsolute(&bad, "log_directory", config.GetLogDirectory())
	checkSandboxSecurity(&bad, config.GetLinux())
	ports := portMappings(&bad, config.GetPortMappings())
	dns := dnsConfig(&bad, config.GetDnsConfig())
	bandwidth := podBandwidth(&bad, config.GetAnnotations())
	s.podOptions(&bad, config.GetAnnotations()) // used by CreateContainer; a fault is told before anything is made
	if err := bad.err("pod %s/%s", meta.GetNamespace(), meta.GetName()); err != nil {
		return supervisor.PodSpec{}, err
	}

	echo, err := encodePodEcho(req)
	if err != nil {
		return supervisor.PodSpec{}, err
	}
	return supervisor.PodSpec{
		Name:         meta.GetName(),
		Namespace:    meta.GetNamespace(),
		UID:          meta.GetUid(),
		Attempt:      meta.GetAttempt(),
		Labels:       config.GetLabels(),
		Annotations:  config.GetAnnotations(),
		Hostname:     guestHostname(config.GetHostname(), meta.GetName()),
		LogDirectory: config.GetLogDirectory(),
		CgroupParent: config.GetLinux().GetCgroupParent(),
		Handler:      req.GetRuntimeHandler(),
		DNS:          dns,
		PortMappings: ports,
		Bandwidth:    bandwidth,
		Config:       echo,
	}, nil
}

// podOptions reads Virtlet's own annotations and holds them to what this node allows.
func (s *Server) podOptions(bad *faults, of map[string]string) annotations.Options {
	options, err := annotations.Parse(of)
	bad.addErr(err)
	if options.AllowSpoofing && !s.cfg.AllowSpoofing {
		bad.add("annotation VirtletAllowSpoofing: this node allows no guest to send with the addresses of others: remove it, or set virtlet's `allow-spoofing`")
	}
	return options
}

// maxName bounds the names that come from Kubernetes objects.
const maxName = 253

func checkName(bad *faults, field, value string) {
	switch {
	case value == "":
		bad.add("%s is empty", field)
	case len(value) > maxName:
		bad.add("%s has %d bytes, at most %d are allowed", field, len(value), maxName)
	case strings.ContainsFunc(value, func(r rune) bool { return r == '/' || r <= ' ' || r == 0x7f || r == 0xfffd }):
		bad.add("%s %q: no slashes, spaces or control characters are allowed", field, value)
	}
}

func checkAbsolute(bad *faults, field, value string) {
	if value == "" {
		return
	}
	if strings.ContainsRune(value, 0) || !path.IsAbs(value) || slices.Contains(strings.Split(value, "/"), "..") {
		bad.add("%s %q is not an absolute path without `..`", field, value)
	}
}

// maxHostname is the kernel's limit (HOST_NAME_MAX); maxLabel the DNS's for what stands between two dots.
const (
	maxHostname = 64
	maxLabel    = 63
)

func checkHostname(bad *faults, name string) {
	if name == "" {
		return
	}
	if len(name) > maxHostname {
		bad.add("hostname has %d characters, Linux allows %d", len(name), maxHostname)
		return
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel || label != trimLabel(label) || strings.ContainsFunc(label, func(r rune) bool { return !isLabelRune(r) }) {
			bad.add("hostname %q is not a DNS name: letters, digits, dots and, inside a label, hyphens", name)
			return
		}
	}
}

func isLabelRune(r rune) bool {
	return r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
}

func trimLabel(s string) string { return strings.Trim(s, "-.") }

// guestHostname is the name that was asked for, else one made of the pod's name, as kubelet makes it: its first label's
// worth of characters.
func guestHostname(asked, podName string) string {
	if asked != "" {
		return asked
	}
	name := strings.Map(func(r rune) rune {
		if isLabelRune(r) || r == '.' {
			return r
		}
		return '-'
	}, podName)
	if name = trimLabel(name[:min(len(name), maxLabel)]); name == "" {
		return "vm"
	}
	return name
}

// checkSandboxSecurity refuses what would need a share in the host's kernel. The rest of a security context speaks of
// container processes: the guest's are behind its own kernel, and QEMU is confined always.
func checkSandboxSecurity(bad *faults, linux *runtimeapi.LinuxPodSandboxConfig) {
	sc := linux.GetSecurityContext()
	if sc.GetPrivileged() {
		bad.add("%s", noPrivileged)
	}
	checkNamespaces(bad, sc.GetNamespaceOptions())
	checkProfile(bad, "seccomp", sc.GetSeccomp())
	checkProfile(bad, "apparmor", sc.GetApparmor())
	if len(linux.GetSysctls()) > 0 {
		bad.add("sysctls: the guest has its own kernel; set them in its cloud-init data")
	}
}

const noPrivileged = "privileged: a VM gets no device or namespace of its host, and is root in its own machine without it; remove it"

func checkNamespaces(bad *faults, ns *runtimeapi.NamespaceOption) {
	for _, n := range []struct {
		field string
		mode  runtimeapi.NamespaceMode
	}{
		{"hostNetwork", ns.GetNetwork()}, {"hostPID", ns.GetPid()}, {"hostIPC", ns.GetIpc()},
	} {
		if n.mode == runtimeapi.NamespaceMode_NODE {
			bad.add("%s: a VM has its own kernel and cannot share a namespace of the host", n.field)
		}
	}
	if u := ns.GetUsernsOptions(); u != nil && u.GetMode() != runtimeapi.NamespaceMode_NODE {
		bad.add("hostUsers: false: user namespaces are not supported; a VM is isolated without them")
	}
}

func checkProfile(bad *faults, kind string, p *runtimeapi.SecurityProfile) {
	if p.GetProfileType() == runtimeapi.SecurityProfile_Localhost {
		bad.add("%s profile %q: profiles of the host cannot confine a guest's processes; use RuntimeDefault or none", kind, p.GetLocalhostRef())
	}
}

func portMappings(bad *faults, list []*runtimeapi.PortMapping) []netns.PortMapping {
	var out []netns.PortMapping
	for _, m := range list {
		if m.GetHostPort() == 0 { // declared for people; nothing to map
			continue
		}
		protocol, known := runtimeapi.Protocol_name[int32(m.GetProtocol())]
		switch {
		case !known:
			bad.add("port mapping of host port %d: unknown protocol %d", m.GetHostPort(), m.GetProtocol())
		case !isPort(m.GetHostPort()) || !isPort(m.GetContainerPort()):
			bad.add("port mapping %d -> %d: ports are 1 to 65535", m.GetHostPort(), m.GetContainerPort())
		case m.GetHostIp() != "" && !isAddress(m.GetHostIp()):
			bad.add("port mapping of host port %d: host IP %q is not an address", m.GetHostPort(), m.GetHostIp())
		default:
			out = append(out, netns.PortMapping{
				HostPort: m.GetHostPort(), ContainerPort: m.GetContainerPort(),
				Protocol: strings.ToLower(protocol), HostIP: m.GetHostIp(),
			})
		}
	}
	return out
}

func isPort(p int32) bool { return 1 <= p && p <= math.MaxUint16 }

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func dnsConfig(bad *faults, c *runtimeapi.DNSConfig) netns.DNS {
	for _, server := range c.GetServers() {
		if !isAddress(server) {
			bad.add("DNS server %q is not an address", server)
		}
	}
	return netns.DNS{Servers: c.GetServers(), Searches: c.GetSearches(), Options: c.GetOptions()}
}

// The annotations by which Kubernetes limits a pod's traffic, in bits per second.
const (
	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
)

func podBandwidth(bad *faults, annotations map[string]string) *netns.Bandwidth {
	in, out := bandwidthRate(bad, annotations, ingressBandwidth), bandwidthRate(bad, annotations, egressBandwidth)
	if in == 0 && out == 0 {
		return nil
	}
	b := &netns.Bandwidth{IngressRate: in, EgressRate: out}
	// Kubernetes names no burst and the CNI plugin refuses a rate without one: as much as it takes.
	if in > 0 {
		b.IngressBurst = math.MaxUint32
	}
	if out > 0 {
		b.EgressBurst = math.MaxUint32
	}
	return b
}

func bandwidthRate(bad *faults, given map[string]string, key string) uint64 {
	text, ok := given[key]
	if !ok {
		return 0
	}
	const least, most = 1000, 1_000_000_000_000_000 // kubelet's own bounds
	rate, ok := annotations.Quantity(text, most)
	if !ok || rate < least {
		bad.add("annotation %s: %s is not a rate in bits per second between 1k and 1P", key, strconv.Quote(text))
		return 0
	}
	return uint64(rate)
}

// podEcho is what of a sandbox's config must be told again later. It is encoded the same way each time: the supervisor
// compares it to recognise a repeated request.
type podEcho struct {
	Namespaces *runtimeapi.NamespaceOption         `json:"namespaces,omitempty"`
	Overhead   *runtimeapi.LinuxContainerResources `json:"overhead,omitempty"`
	Resources  *runtimeapi.LinuxContainerResources `json:"resources,omitempty"`
	// Digest of the whole request: equal requests have equal ones.
	Digest string `json:"digest"`
}

func encodePodEcho(req *runtimeapi.RunPodSandboxRequest) (json.RawMessage, error) {
	digest, err := messageDigest(req)
	if err != nil {
		return nil, err
	}
	linux := req.GetConfig().GetLinux()
	return encodeEcho(podEcho{
		Namespaces: linux.GetSecurityContext().GetNamespaceOptions(),
		Overhead:   linux.GetOverhead(),
		Resources:  linux.GetResources(),
		Digest:     digest,
	})
}

func encodeEcho(echo any) (json.RawMessage, error) {
	b, err := json.Marshal(echo)
	if err != nil {
		return nil, fmt.Errorf("encoding the config to be kept: %w", err)
	}
	return b, nil
}

func messageDigest(m proto.Message) (string, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("encoding the request: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}
