package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cmd/internal/checklist"
	"github.com/virtlet/virtlet/runtime/proxy"
)

// checkLimit bounds each question: a runtime that takes longer does not answer.
const checkLimit = 5 * time.Second

// runtimeFacts is what one runtime says of itself.
type runtimeFacts struct {
	proxy.Runtime
	down     error
	version  *runtimeapi.VersionResponse
	status   *runtimeapi.StatusResponse
	config   *runtimeapi.RuntimeConfigResponse
	noConfig error
}

// checkRuntimes asks the runtimes, and then a proxy of its own before them.
func checkRuntimes(ctx context.Context, conf Config) (checklist.Report, error) {
	runtimes, err := conf.runtimes()
	if err != nil {
		return checklist.Report{}, err
	}
	var facts []runtimeFacts
	var items []checklist.Item
	for _, r := range runtimes {
		f := askRuntime(ctx, r)
		facts = append(facts, f)
		items = append(items, f.item())
	}
	items = append(items, checkSockets(runtimes, conf.Listen)...)
	items = append(items, checkHandlers(facts)...)
	items = append(items, checkGiven(facts)...)
	items = append(items, checkDriver(facts), imageRules(runtimes))
	seen, err := kubeletsView(ctx, runtimes)
	if err != nil {
		return checklist.Report{}, err
	}
	return checklist.Of(append(items, seen...)), nil
}

// checkError is what makes the command fail.
func checkError(r checklist.Report) error {
	if err := r.Err(); err != nil {
		return fmt.Errorf("kubelet cannot work with this yet: %w", err)
	}
	return nil
}

func dial(endpoint string) (*grpc.ClientConn, error) {
	return grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(proxy.MaxMessage)))
}

func askRuntime(ctx context.Context, r proxy.Runtime) runtimeFacts {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	f := runtimeFacts{Runtime: r}
	conn, err := dial(r.Endpoint)
	if err != nil {
		f.down = err
		return f
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	if f.version, f.down = client.Version(ctx, &runtimeapi.VersionRequest{}); f.down != nil {
		return f
	}
	if f.status, f.down = client.Status(ctx, &runtimeapi.StatusRequest{}); f.down != nil {
		return f
	}
	f.config, f.noConfig = client.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
	return f
}

// item is one line on a runtime.
func (f runtimeFacts) item() checklist.Item {
	name := "runtime " + f.Name
	role := "optional"
	if f.Essential {
		role = "essential"
	}
	if f.down != nil {
		detail := fmt.Sprintf("%s, %s: %s", f.Endpoint, role, status.Convert(f.down).Message())
		return checklist.Fail(name, detail, "start it, or correct the setting `runtime`; until it answers, lists of pods fail and kubelet takes the node for not ready")
	}
	detail := fmt.Sprintf("%s %s at %s, %s, handlers %s", f.version.GetRuntimeName(), f.version.GetRuntimeVersion(), f.Endpoint, role, f.handlerList())
	if v := f.version.GetRuntimeApiVersion(); v != "v1" {
		return checklist.Fail(name, detail+", speaks CRI "+v, "it must speak CRI v1")
	}
	var faults []string
	for _, c := range f.status.GetStatus().GetConditions() {
		if (c.GetType() == runtimeapi.RuntimeReady || c.GetType() == runtimeapi.NetworkReady) && !c.GetStatus() {
			faults = append(faults, fmt.Sprintf("%s is false: %s %s", c.GetType(), c.GetReason(), c.GetMessage()))
		}
	}
	if len(faults) > 0 {
		return checklist.Fail(name, detail+"; "+strings.Join(faults, "; "), "see that runtime's own log")
	}
	return checklist.Pass(name, "%s, ready", detail)
}

func (f runtimeFacts) handlers() []string {
	if len(f.Handlers) > 0 {
		return f.Handlers
	}
	var names []string
	for _, h := range f.status.GetRuntimeHandlers() {
		names = append(names, h.GetName())
	}
	return names
}

func (f runtimeFacts) handlerList() string {
	names := f.handlers()
	if len(names) == 0 {
		return "not told"
	}
	return fmt.Sprintf("%q", names)
}

// checkSockets finds one socket under several names.
func checkSockets(runtimes []proxy.Runtime, listen string) []checklist.Item {
	var items []checklist.Item
	all := append(slices.Clone(runtimes), proxy.Runtime{Name: "criproxy itself (`listen`)", Endpoint: listen})
	for i, r := range all {
		for _, other := range all[:i] {
			one, err := os.Stat(strings.TrimPrefix(r.Endpoint, proxy.EndpointPrefix))
			two, otherErr := os.Stat(strings.TrimPrefix(other.Endpoint, proxy.EndpointPrefix))
			if err == nil && otherErr == nil && os.SameFile(one, two) {
				items = append(items, checklist.Fail("sockets", fmt.Sprintf("%s and %s are one socket", other, r), "give each its own"))
			}
		}
	}
	return items
}

// checkHandlers finds handlers that several runtimes claim.
func checkHandlers(facts []runtimeFacts) []checklist.Item {
	var items []checklist.Item
	owner, given := map[string]string{}, map[string]bool{}
	for _, f := range facts {
		for _, h := range f.Handlers {
			given[h] = true
		}
	}
	var all []string
	for i, f := range facts {
		for _, h := range f.handlers() {
			if h == "" && i > 0 || given[h] && len(f.Handlers) == 0 {
				continue // the default's, or another's by the settings
			}
			if other, taken := owner[h]; taken && other != f.Name {
				items = append(items, checklist.Fail("handlers", fmt.Sprintf("%q is claimed by %s and by %s: pods that ask for it are refused", h, other, f.Name),
					fmt.Sprintf("set `handlers`, such as [%s=%s]", f.Name, h)))
				continue
			}
			owner[h] = f.Name
			if h != "" {
				all = append(all, h+" is "+f.Name+"'s")
			}
		}
	}
	if len(items) > 0 {
		return items
	}
	var unknown []string
	for _, f := range facts {
		if f.down != nil && len(f.Handlers) == 0 {
			unknown = append(unknown, f.Name)
		}
	}
	if len(unknown) > 0 {
		return []checklist.Item{checklist.Warn("handlers", strings.Join(append(all, "not known are those of "+strings.Join(unknown, ", ")), "; "), "start what is down")}
	}
	others := "no other is taken"
	if first := facts[0]; first.down == nil && len(first.handlers()) == 0 {
		others = fmt.Sprintf("any other is left to %s, which tells none", first.Name)
	}
	return []checklist.Item{checklist.Pass("handlers", "%s; pods without one are %s's", strings.Join(append(all, others), ", "), facts[0].Name)}
}

// checkGiven finds handlers that the settings give to a runtime which tells others: pods that ask for them are sent there, and
// refused.
func checkGiven(facts []runtimeFacts) []checklist.Item {
	var items []checklist.Item
	for _, f := range facts {
		var told []string
		for _, h := range f.status.GetRuntimeHandlers() {
			told = append(told, h.GetName())
		}
		for _, h := range f.Handlers {
			if len(told) > 0 && !slices.Contains(told, h) {
				items = append(items, checklist.Warn("handlers of "+f.Name, fmt.Sprintf("%q is given to it, but it tells %q", h, told),
					"correct the setting `handlers`, or that runtime's own"))
			}
		}
	}
	return items
}

// checkDriver compares the cgroup drivers.
func checkDriver(facts []runtimeFacts) checklist.Item {
	const name = "cgroup driver"
	drivers := map[string][]string{}
	for _, f := range facts {
		if f.config != nil {
			d := strings.ToLower(f.config.GetLinux().GetCgroupDriver().String())
			drivers[d] = append(drivers[d], f.Name)
		}
	}
	switch {
	case len(drivers) == 0:
		return checklist.Warn(name, "no runtime tells it", "set kubelet's cgroupDriver to that of the runtimes")
	case len(drivers) > 1:
		return checklist.Fail(name, fmt.Sprintf("they differ: %v", drivers), "configure all runtimes for kubelet's")
	}
	for d, names := range drivers {
		return checklist.Pass(name, "%s, says %s", d, strings.Join(names, ", "))
	}
	return checklist.Item{} // one of the above was it
}

func imageRules(runtimes []proxy.Runtime) checklist.Item {
	var rules []string
	for _, r := range runtimes {
		for _, prefix := range r.Images {
			rules = append(rules, fmt.Sprintf("%s goes to %s", prefix, r.Name))
		}
		for _, value := range r.Annotations {
			rules = append(rules, fmt.Sprintf("%s: %s goes to %s", proxy.TargetAnnotation, value, r.Name))
		}
	}
	return checklist.Pass("images", "%s", strings.Join(append(rules, "all else to "+runtimes[0].Name), ", "))
}

// kubeletsView asks what kubelet asks, through a proxy.
func kubeletsView(ctx context.Context, runtimes []proxy.Runtime) ([]checklist.Item, error) {
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	p, err := proxy.New(proxy.Config{Runtimes: runtimes, Log: logrus.NewEntry(log)})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	dir, err := os.MkdirTemp("", "criproxy-check-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return nil, err
	}
	srv := grpc.NewServer(p.ServerOptions()...)
	defer srv.Stop()
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	conn, err := dial(proxy.EndpointPrefix + l.Addr().String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	rt, images := runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)

	const configuration = "its configuration"
	var items []checklist.Item
	see := func(what string, look func(ctx context.Context) (string, error)) {
		ctx, cancel := context.WithTimeout(ctx, checkLimit)
		defer cancel()
		name := "kubelet sees " + what
		detail, err := look(ctx)
		switch {
		case err == nil:
			items = append(items, checklist.Pass(name, "%s", detail))
		case what == configuration && status.Code(err) == codes.Unimplemented: // kubelet goes by its own, then
			items = append(items, checklist.Warn(name, status.Convert(err).Message(), "see the line on the cgroup driver"))
		default:
			items = append(items, checklist.Fail(name, status.Convert(err).Message(), "see the lines above"))
		}
	}
	see("the runtime", func(ctx context.Context) (string, error) {
		v, err := rt.Version(ctx, &runtimeapi.VersionRequest{})
		return v.GetRuntimeName() + " " + v.GetRuntimeVersion(), err
	})
	see("its status", func(ctx context.Context) (string, error) { return nodeStatus(ctx, rt) })
	see(configuration, func(ctx context.Context) (string, error) {
		c, err := rt.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
		return "cgroup driver " + strings.ToLower(c.GetLinux().GetCgroupDriver().String()), err
	})
	see("pods", func(ctx context.Context) (string, error) {
		pods, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return "", err
		}
		containers, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		return fmt.Sprintf("%d sandboxes, %d containers", len(pods.GetItems()), len(containers.GetContainers())), err
	})
	see("images", func(ctx context.Context) (string, error) {
		list, err := images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		return fmt.Sprintf("%d", len(list.GetImages())), err
	})
	see("file systems", func(ctx context.Context) (string, error) {
		info, err := images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		var mounts []string
		for _, fs := range info.GetImageFilesystems() {
			mounts = append(mounts, fs.GetFsId().GetMountpoint())
		}
		return strings.Join(mounts, ", ") + "; it frees images by how full the first is", err
	})
	select {
	case err := <-failed:
		return nil, err
	default:
		return items, nil
	}
}

// nodeStatus is an error where kubelet would take the node for not ready.
func nodeStatus(ctx context.Context, rt runtimeapi.RuntimeServiceClient) (string, error) {
	resp, err := rt.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return "", err
	}
	var told []string
	ready := map[string]bool{}
	for _, c := range resp.GetStatus().GetConditions() {
		ready[c.GetType()] = c.GetStatus()
		told = append(told, fmt.Sprintf("%s=%t", c.GetType(), c.GetStatus()))
	}
	detail := strings.Join(told, ", ")
	if !ready[runtimeapi.RuntimeReady] || !ready[runtimeapi.NetworkReady] {
		return "", errors.New(detail)
	}
	return detail, nil
}
