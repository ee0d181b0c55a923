package wrapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/virtlet/virtlet/netns"
)

// tapGrace is the time between a tap's end and the news that QEMU has ended.
const tapGrace = 5 * time.Second

// network is the VM's joins to the pod's links, and its DHCP servers. vmwrapper was born in the pod's netns, so the
// specifications name none.
type network struct {
	joins []*netns.Join
	dhcp  []*netns.DHCP
	stop  context.CancelFunc
	serve sync.WaitGroup
}

// openNetwork builds the joins and returns when DHCP listens. After an error nothing of it is left.
func openNetwork(job Job) (_ *network, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	n := &network{stop: cancel}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	for _, spec := range job.joins() {
		spec.Netns = ""
		join, err := netns.OpenJoin(spec)
		if err != nil {
			return nil, fmt.Errorf("joining the VM to link %s: %w", spec.Link.Name, err)
		}
		n.joins = append(n.joins, join)
		server, err := netns.NewDHCP(netns.DHCPSpec{Tap: spec.Tap, Link: spec.Link, DNS: job.DNS, Hostname: job.Hostname})
		if err != nil {
			return nil, fmt.Errorf("answering DHCP on link %s: %w", spec.Link.Name, err)
		}
		n.dhcp = append(n.dhcp, server)
		n.serve.Go(func() {
			err := server.Serve(ctx)
			if err == nil {
				return
			}
			// A tap goes with its QEMU, and stop comes a moment later: no fault. Without one, somebody took the tap away.
			select {
			case <-ctx.Done():
			case <-time.After(tapGrace):
				complain("answering DHCP on link %s: %v", spec.Link.Name, err)
			}
		})
	}
	return n, nil
}

// release closes our copies of the files that QEMU holds: the taps live and die with it.
func (n *network) release() {
	for _, j := range n.joins {
		for _, files := range [][]*os.File{j.TapFiles(), j.VhostFiles()} {
			for _, f := range files {
				f.Close()
			}
		}
	}
}

// close undoes the joins; the links are then as CNI left them.
func (n *network) close() error {
	n.stop()
	for _, d := range n.dhcp {
		d.Close()
	}
	n.serve.Wait()
	var errs []error
	for _, j := range n.joins {
		if err := j.Close(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
