package domain

import (
	"strconv"
	"strings"
)

// device is a part of the machine that appears in QEMU's argument vector.
type device interface {
	argv() []string
}

// Args returns QEMU's arguments after the program's name, or every fault of the Domain and the files at once. The
// machine is made stopped: QMP's cont starts it, and set-action decides what a shutdown, a reboot or a panic of the
// guest does. Args has no side effects.
func (d Domain) Args(f Files) ([]string, error) {
	if err := d.validate(f); err != nil {
		return nil, err
	}
	var args []string
	for _, dev := range d.devices(f) {
		args = append(args, dev.argv()...)
	}
	return args, nil
}

// devices lists the machine's parts. It trusts that the Domain and the files are valid.
func (d Domain) devices(f Files) []device {
	nicSlots, systemSlots, diskSlots := slots{next: firstNICSlot}, slots{next: firstSystemSlot}, slots{next: firstDiskSlot}
	devs := []device{
		process{name: d.Name, uuid: d.UUID},
		sandbox{},
		machine{memory: ramID},
		accelerator{accel: d.Accel, tbSizeMiB: d.TBSizeMiB},
		processors{model: d.CPUModel, accel: d.Accel, count: d.CPUs},
		memory{id: ramID, mib: d.MemoryBytes >> 20},
		firmware{},
		monitor{id: "qmp", fd: f.QMP, listen: true},
		monitor{id: "events", fd: f.Events},
		console{id: "console", fd: f.Console},
		entropy{slot: systemSlots.take()},
		balloon{slot: systemSlots.take()},
		panicNotifier{slot: systemSlots.take()},
		generationID{},
	}
	for i, n := range d.NICs {
		devs = append(devs, nic{NIC: n, index: i, files: f.NICs[i], slot: nicSlots.take()})
	}
	images := imageFiles{fds: f.Images}
	for i, disk := range d.allDisks() {
		if disk.ID == "" {
			disk.ID = diskID(i)
		}
		devs = append(devs, blockDevice{Disk: disk, slot: diskSlots.take(), files: images.take(disk)})
	}
	return devs
}

// seedID names the cloud-init disk in QEMU, seedSerial in the guest.
const (
	seedID     = "seed"
	seedSerial = "cidata"
)

// allDisks are the Domain's disks and, last, so that it takes no other's name in the guest, the seed.
func (d Domain) allDisks() []Disk {
	disks := append([]Disk(nil), d.Disks...)
	if d.Seed != "" {
		disks = append(disks, Disk{ID: seedID, Path: d.Seed, Format: Raw, ReadOnly: true, Serial: seedSerial})
	}
	return disks
}

func diskID(index int) string { return "disk" + strconv.Itoa(index) }

// Where the devices lie on the PCI bus. Each kind has its own range, so that one disk more does not rename the guest's
// network interfaces. Slot 0 is the host bridge and 0x1f the chipset.
const (
	firstSystemSlot = 0x01
	firstNICSlot    = 0x08
	firstDiskSlot   = 0x10
	endSlot         = 0x1f

	maxNICs  = firstDiskSlot - firstNICSlot
	maxDisks = endSlot - firstDiskSlot
)

// slots gives out PCI slots in rising order.
type slots struct{ next int }

func (s *slots) take() slot {
	n := s.next
	s.next++
	return slot(n)
}

// slot is a device's place on the root bus.
type slot int

func (s slot) prop() prop { return prop{"addr", "0x" + strconv.FormatInt(int64(s), 16)} }

// prop is one key=value of an option.
type prop struct{ key, value string }

// option writes an option's argument in QEMU's key=value syntax. A comma in a value is doubled, so that no value can
// add a property of its own.
func option(head string, props ...prop) string {
	var b strings.Builder
	b.WriteString(escape(head))
	for _, p := range props {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(p.key)
		b.WriteByte('=')
		b.WriteString(escape(p.value))
	}
	return b.String()
}

func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

func joinFDs(fds []int) string {
	parts := make([]string, len(fds))
	for i, fd := range fds {
		parts[i] = strconv.Itoa(fd)
	}
	return strings.Join(parts, ":")
}
