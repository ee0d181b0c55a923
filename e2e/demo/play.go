package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

const (
	hostPort = 8080
	// userData is what a pod's author may tell the guest.
	userData = "#cloud-config\nruncmd:\n- echo 'Hello from cloud-init!' >/dev/console\n"
	// patienceWithGuest is ten times what an emulated guest takes on a quiet machine.
	patienceWithGuest = 2 * time.Minute
	// grace in seconds for a guest to power down.
	grace = 30
)

// play is the pod's life.
func (s *show) play(ctx context.Context) error {
	for _, act := range []func(context.Context) error{
		s.pull, s.run, s.start, s.visit, s.look, s.restart, s.stop, s.remove,
	} {
		if err := act(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
	}
	return nil
}

func (s *show) pull(ctx context.Context) (err error) {
	const path = "images/demo.qcow2"
	address, stop, err := s.rig.ServeImage(s.disk, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	s.image = "http://" + address + "/" + path
	return s.step("PullImage", func() ([]string, error) {
		ref, err := s.rig.Pull(ctx, s.image)
		if err != nil {
			return nil, err
		}
		return []string{s.image, ref}, nil
	})
}

func (s *show) run(ctx context.Context) error {
	conf := s.rig.PodConfig("demo")
	conf.PortMappings = []*runtimeapi.PortMapping{{HostPort: hostPort, ContainerPort: 80}}
	conf.Annotations = map[string]string{"VirtletVCPUCount": "2", "VirtletCloudInitUserData": userData}
	err := s.step("RunPodSandbox", func() (_ []string, err error) {
		if s.pod, err = s.rig.RunPod(ctx, conf); err != nil {
			return nil, err
		}
		return []string{"CNI gave the address " + s.pod.IP + ", node port " + fmt.Sprint(hostPort)}, nil
	})
	if err != nil {
		return err
	}
	return s.step("CreateContainer", func() ([]string, error) {
		if err := s.pod.Create(ctx, rig.ContainerConfig("vm", s.image)); err != nil {
			return nil, err
		}
		return []string{"2 vCPUs, 128 MiB; a root disk on the image, a cloud-init seed"}, nil
	})
}

func (s *show) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patienceWithGuest, fmt.Errorf("the guest was not up within %s", patienceWithGuest))
	defer cancel()
	started := time.Now()
	err := s.step("StartContainer", func() (_ []string, err error) {
		if err := s.pod.Start(ctx); err != nil {
			return nil, err
		}
		if s.qemu, err = s.pod.Process("qemu-system"); err != nil {
			return nil, err
		}
		return []string{fmt.Sprintf("the machine runs: QEMU is process %d", s.qemu)}, nil
	})
	if err != nil {
		return err
	}
	stop := s.wait("The guest's first line on its console", started)
	at, text, err := s.firstLine(ctx)
	stop()
	if err != nil {
		return err
	}
	// The log knows better than we when the line came.
	s.line(at.Sub(s.timeline.start), at.Sub(started), "The guest's first line on its console (since StartContainer)", text)
	stop = s.wait("The guest is up and answers HTTP", started)
	_, err = s.pod.Facts(ctx)
	stop()
	if err != nil {
		return fmt.Errorf("the guest does not answer HTTP: %w", err)
	}
	s.line(time.Since(s.timeline.start), time.Since(started), "The guest has its address by DHCP and answers HTTP (since StartContainer)",
		"http://"+s.pod.IP+"/")
	return nil
}

// firstLine waits for the first line in the log that has text, and returns when it came.
func (s *show) firstLine(ctx context.Context) (at time.Time, text string, err error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if at, text, err = firstText(s.pod.Log()); err != nil || text != "" {
			return at, text, err
		}
		select {
		case <-ctx.Done():
			return at, "", fmt.Errorf("the guest prints nothing: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// firstText is the first line with text in a CRI log, and its time; text is empty while there is none. Blank lines are
// the boot loader's clearing of the screen.
func firstText(log string) (at time.Time, text string, err error) {
	for line := range strings.Lines(log) {
		fields := strings.SplitN(line, " ", 4) // time, stream, P or F, text
		if len(fields) < 4 || !strings.HasSuffix(line, "\n") {
			continue
		}
		if text = strings.TrimSpace(clip(fields[3], width)); text == "" {
			continue
		}
		if at, err = time.Parse(time.RFC3339Nano, fields[0]); err != nil {
			return at, "", fmt.Errorf("reading the log: %w", err)
		}
		return at, text, nil
	}
	return at, "", nil
}

// visit shows the guest's page, by the pod's address and by the node's port.
func (s *show) visit(ctx context.Context) error {
	page, err := s.pod.Fetch(ctx, "/")
	if err != nil {
		return fmt.Errorf("fetching the guest's page: %w", err)
	}
	if !strings.Contains(page, s.pod.IP) {
		return fmt.Errorf("the guest's page does not tell its address %s:\n%s", s.pod.IP, page)
	}
	published := fmt.Sprintf("http://127.0.0.1:%d/", hostPort)
	if _, err := s.rig.Get(ctx, published); err != nil {
		return fmt.Errorf("fetching the guest's page from the node's port: %w", err)
	}
	s.section("The guest's page, http://"+s.pod.IP+"/ (also "+published+" on the node)", page)
	return nil
}

// look shows the log, with a line that was asked for a moment ago, and the statistics.
func (s *show) look(ctx context.Context) error {
	const word = "the demo says hello"
	if _, err := s.pod.Fetch(ctx, "/console?text="+url.QueryEscape(word)); err != nil {
		return fmt.Errorf("making the guest print a line: %w", err)
	}
	if err := s.pod.AwaitLog(ctx, word); err != nil {
		return err
	}
	s.section("The last lines of the pod's log, which is the console", lastLines(s.pod.Log(), 6))
	stats, err := s.stats(ctx)
	if err != nil {
		return fmt.Errorf("asking for statistics: %w", err)
	}
	s.section("What it uses, by CRI's statistics", stats)
	s.header()
	return nil
}

// restart shows that the daemon may come and go.
func (s *show) restart(ctx context.Context) error {
	err := s.step("The daemon was stopped", func() ([]string, error) {
		if err := s.rig.StopDaemon(ctx); err != nil {
			return nil, err
		}
		if _, err := s.pod.Fetch(ctx, "/"); err != nil {
			return nil, fmt.Errorf("the guest does not answer while no daemon runs: %w", err)
		}
		return []string{"the guest goes on answering"}, nil
	})
	if err != nil {
		return err
	}
	if err := s.startDaemon(ctx, "The daemon was started again and is ready"); err != nil {
		return err
	}
	return s.step("It has found the machine as it was", func() ([]string, error) {
		st, err := s.pod.Status(ctx)
		if err != nil {
			return nil, err
		}
		now, err := s.pod.Process("qemu-system")
		if err != nil {
			return nil, err
		}
		if now != s.qemu || st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return nil, fmt.Errorf("the VM is %s, QEMU is process %d and was %d", st.State, now, s.qemu)
		}
		return []string{fmt.Sprintf("%s, QEMU is still process %d", st.State, now)}, nil
	})
}

func (s *show) stop(ctx context.Context) error {
	return s.step("StopContainer: the power button is pressed", func() ([]string, error) {
		if err := s.pod.Stop(ctx, grace); err != nil {
			return nil, err
		}
		st, err := s.pod.Status(ctx)
		if err != nil {
			return nil, err
		}
		if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 0 {
			return nil, fmt.Errorf("the guest did not power down in good order: %s, exit code %d, %s %s", st.State, st.ExitCode, st.Reason, st.Message)
		}
		return []string{fmt.Sprintf("%s, exit code %d, %s", st.State, st.ExitCode, st.Reason)}, nil
	})
}

func (s *show) remove(ctx context.Context) error {
	err := s.step("StopPodSandbox, RemovePodSandbox", func() ([]string, error) { return nil, s.pod.Remove(ctx) })
	if err != nil {
		return err
	}
	return s.step("Nothing left behind, checked", func() ([]string, error) {
		if err := s.rig.Leftovers(); err != nil {
			return nil, err
		}
		return []string{"no process, cgroup, network namespace, mount, link,", "address lease, firewall chain, socket or file of the pod"}, nil
	})
}

// finale is the last line, when the node is gone as well.
func (s *show) finale() {
	fmt.Fprintf(s.out, "\nThe daemon and its node are gone, too: nothing left behind. All in %.0f s.\n", time.Since(s.timeline.start).Seconds())
}
