package domain

import "strconv"

// modern keeps a virtio device to the 1.0 interface; the legacy one is only more to attack.
var modern = prop{"disable-legacy", "on"}

// monitor is a QMP server on a socket that was passed in: listening, or already connected.
type monitor struct {
	id     string
	fd     int
	listen bool
}

func (m monitor) argv() []string {
	props := []prop{{"id", m.id}, {"fd", strconv.Itoa(m.fd)}}
	if m.listen {
		props = append(props, prop{"server", "on"}, prop{"wait", "off"})
	}
	return []string{
		"-chardev", option("socket", props...),
		"-mon", option("", prop{"chardev", m.id}, prop{"mode", "control"}),
	}
}

// console is the guest's first serial port, ttyS0.
type console struct {
	id string
	fd int
}

func (c console) argv() []string {
	return []string{
		"-chardev", option("socket", prop{"id", c.id}, prop{"fd", strconv.Itoa(c.fd)}),
		"-device", option("isa-serial", prop{"id", "serial0"}, prop{"chardev", c.id}),
	}
}

// entropy feeds the guest's random pool from the host's.
type entropy struct{ slot slot }

func (e entropy) argv() []string {
	return []string{
		"-object", option("rng-random", prop{"id", "entropy"}, prop{"filename", "/dev/urandom"}),
		"-device", option("virtio-rng-pci", prop{"id", "rng0"}, prop{"rng", "entropy"}, e.slot.prop(), modern),
	}
}

// balloon lets the guest report pages that it has freed, which QEMU then gives back to the host.
type balloon struct{ slot slot }

func (b balloon) argv() []string {
	return []string{"-device", option("virtio-balloon-pci", prop{"id", "balloon0"}, b.slot.prop(), modern,
		prop{"free-page-reporting", "on"})}
}

// panicNotifier lets the guest's kernel report its panic as a QMP event.
type panicNotifier struct{ slot slot }

func (p panicNotifier) argv() []string {
	return []string{"-device", option("pvpanic-pci", prop{"id", "panic0"}, p.slot.prop())}
}

// generationID tells the guest that it is not the machine that its disk last saw, so that it reseeds its random pool.
type generationID struct{}

func (generationID) argv() []string {
	return []string{"-device", option("vmgenid", prop{"id", "generation0"}, prop{"guid", "auto"})}
}

// nic is a virtio network device on open taps, without an option ROM: nothing boots from the network.
type nic struct {
	NIC
	index int
	files NICFiles
	slot  slot
}

func (n nic) argv() []string {
	index := strconv.Itoa(n.index)
	netdev := []prop{{"id", "net" + index}, {"fds", joinFDs(n.files.Tap)}}
	if len(n.files.Vhost) > 0 {
		netdev = append(netdev, prop{"vhost", "on"}, prop{"vhostfds", joinFDs(n.files.Vhost)})
	}
	dev := []prop{{"id", "nic" + index}, {"netdev", "net" + index}, {"mac", n.MAC}, n.slot.prop(), modern, {"romfile", ""}}
	if n.MTU > 0 {
		dev = append(dev, prop{"host_mtu", strconv.Itoa(n.MTU)})
	}
	if n.Queues > 1 {
		// One interrupt for each queue, one for the control queue, one for changes of configuration.
		dev = append(dev, prop{"mq", "on"}, prop{"vectors", strconv.Itoa(2*n.Queues + 2)})
	}
	return []string{
		"-netdev", option("tap", netdev...),
		"-device", option("virtio-net-pci", dev...),
	}
}
