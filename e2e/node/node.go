package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// bootTimeout is generous: a node that boots in 10 s takes a minute on a machine that has much else to do.
const bootTimeout = 4 * time.Minute

// Options of a node; a zero field means the default.
type Options struct {
	Image  Image
	CPUs   int // default 2
	Memory int // MiB, default 2560
	// Files are in the node when Start returns. They are durable there, as if installed long ago.
	Files []File
}

// Node is a virtual machine that is a whole Debian host. Its methods may be called from several goroutines, but for
// PowerCut, Boot and Close.
type Node struct {
	opts Options
	dir  string // overlay, payload, console logs

	boots int
	vm    *process
	agent *agent
}

// Start makes a node with a disk of its own, boots it, and returns when its systemd has started everything.
func Start(ctx context.Context, o Options) (n *Node, err error) {
	if o.CPUs == 0 {
		o.CPUs = 2
	}
	if o.Memory == 0 {
		o.Memory = 2560
	}
	dir, err := os.MkdirTemp("", "virtlet-node-")
	if err != nil {
		return nil, fmt.Errorf("making a node: %w", err)
	}
	n = &Node{opts: o, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("making a node: %w", err), n.Close())
			n = nil
		}
	}()
	overlay := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", o.Image.Disk, "-F", "qcow2", n.disk())
	if out, err := overlay.CombinedOutput(); err != nil {
		return n, fmt.Errorf("making its disk: %w: %s", err, out)
	}
	if err := writeTar(n.payload(), o.Files); err != nil {
		return n, fmt.Errorf("packing its files: %w", err)
	}
	if err := n.Boot(ctx); err != nil {
		return n, err
	}
	if _, err := n.Run(ctx, "tar -x -C / -f "+payloadDevice+" && sync && systemctl daemon-reload"); err != nil {
		return n, fmt.Errorf("unpacking its files: %w", err)
	}
	return n, nil
}

func (n *Node) disk() string    { return filepath.Join(n.dir, "node.qcow2") }
func (n *Node) payload() string { return filepath.Join(n.dir, "payload.tar") }
func (n *Node) console() string { return filepath.Join(n.dir, "console-"+strconv.Itoa(n.boots)+".log") }

// payloadDevice is the disk with Options.Files: a tar archive without a file system.
const payloadDevice = "/dev/disk/by-id/virtio-payload"

// Boot switches the node's power on, and returns when its systemd has started everything.
func (n *Node) Boot(ctx context.Context) error {
	if n.vm != nil {
		return errors.New("booting the node: it runs")
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	n.boots++
	vm, conn, err := launch(n.argv())
	if err != nil {
		return fmt.Errorf("booting the node: %w", err)
	}
	n.vm, n.agent = vm, newAgent(conn)
	if err := n.agent.ping(ctx); err != nil {
		return fmt.Errorf("booting the node: %w%s", err, n.Diagnostics())
	}
	// Degraded is for whoever looks at his own units to judge.
	if out, err := n.Run(ctx, "systemctl is-system-running --wait || true"); err != nil {
		return fmt.Errorf("booting the node: %w%s", err, n.Diagnostics())
	} else if s := strings.TrimSpace(out); s != "running" && s != "degraded" {
		return fmt.Errorf("booting the node: systemd says %q%s", s, n.Diagnostics())
	}
	return nil
}

// argv is the command line of the node's QEMU, whose file descriptor 3 is the guest agent's channel.
//
// The disk's cache mode is writeback with the guest's flushes honoured: when QEMU is killed, what the guest has not
// flushed may be lost, in its own page cache and in QEMU's tables, and what it has flushed is on the disk. That is what
// a power cut does to a disk with a volatile cache.
//
// Five-level paging is off, and the node's KVM shadows its guests' page tables instead of nesting them: QEMU 7.2 emulates
// neither well. With nested tables one guest in 20 hangs or takes the node's kernel with it; with shadowed ones none of 60
// did, and a guest's boot takes a fifth longer.
func (n *Node) argv() []string {
	return []string{
		"qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-name", "virtlet-test-node", "-machine", "q35,vmport=off", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,la57=off",
		"-smp", strconv.Itoa(n.opts.CPUs), "-m", strconv.Itoa(n.opts.Memory),
		"-kernel", n.opts.Image.Kernel, "-initrd", n.opts.Image.Initramfs,
		"-append", "console=ttyS0 quiet loglevel=4 systemd.show_status=auto mitigations=off random.trust_cpu=on panic=-1 kvm_amd.npt=0",
		"-chardev", "file,id=console,path=" + n.console(), "-serial", "chardev:console",
		"-blockdev", "driver=file,node-name=disk-file,filename=" + n.disk(),
		"-blockdev", "driver=qcow2,node-name=disk,file=disk-file,discard=unmap",
		"-device", "virtio-blk-pci,drive=disk,serial=root",
		"-blockdev", "driver=file,node-name=payload-file,filename=" + n.payload() + ",read-only=on",
		"-blockdev", "driver=raw,node-name=payload,file=payload-file,read-only=on",
		"-device", "virtio-blk-pci,drive=payload,serial=payload",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,fd=3", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
	}
}

// PowerCut takes the node's power away: nothing in it has a moment left.
func (n *Node) PowerCut() error {
	if n.vm == nil {
		return nil
	}
	err := n.vm.kill()
	n.agent.close()
	n.vm, n.agent = nil, nil
	return err
}

// Close ends the node and removes everything of it.
func (n *Node) Close() error { return errors.Join(n.PowerCut(), os.RemoveAll(n.dir)) }

// Diagnostics is the end of the node's console, for the message of a failure.
func (n *Node) Diagnostics() string {
	const most = 8 << 10
	b, err := os.ReadFile(n.console())
	if err != nil {
		return "; no console log: " + err.Error()
	}
	if len(b) > most {
		b = b[len(b)-most:]
	}
	text := "; the end of its console:\n" + strings.ReplaceAll(string(b), "\r", "")
	if n.vm != nil {
		text += n.vm.said()
	}
	return text
}
