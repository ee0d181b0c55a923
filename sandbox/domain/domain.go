// Package domain describes one virtual machine as QEMU is to run it, and turns that description into QEMU's argument
// vector by a pure function. Each device is a small type that knows its own arguments; ids and PCI slots are given out
// in a fixed order, so that the same Domain always makes the same machine. It also probes what the host offers to run
// it: the accelerator and the QEMU binary.
package domain

// Accel names what executes the guest's code.
type Accel string

// Auto chooses between the two others by ProbeAccel; a Domain itself is always KVM or TCG.
const (
	Auto Accel = "auto"
	KVM  Accel = "kvm"
	TCG  Accel = "tcg"
)

// Format is the layout of a disk image. QEMU is always told it and never guesses.
type Format = string

// The formats that a disk may have.
const (
	QCOW2 Format = "qcow2"
	Raw   Format = "raw"
)

// Domain is a machine's whole definition. It is kept in records as JSON.
type Domain struct {
	// ID is the VM's id: 64 hexadecimal digits.
	ID string `json:"id"`
	// Name is for people: it shows in the process list and in QEMU's messages.
	Name string `json:"name"`
	// UUID is the SMBIOS system UUID.
	UUID string `json:"uuid"`
	// Accel is KVM or TCG, as ProbeAccel chose.
	Accel Accel `json:"accel"`
	// CPUs is the number of virtual CPUs, 1 to MaxCPUs.
	CPUs int `json:"cpus"`
	// CPUModel in QEMU's words; empty means the host's CPU under KVM, and under TCG what TCG can do without much cost.
	CPUModel string `json:"cpuModel,omitempty"`
	// MemoryBytes of guest RAM, at least MinMemory; the guest gets it rounded down to whole MiB.
	MemoryBytes int64 `json:"memoryBytes"`
	// TBSizeMiB bounds TCG's cache of translated code; 0 means DefaultTBSizeMiB. Not used under KVM.
	TBSizeMiB int `json:"tbSizeMiB,omitempty"`
	// Disks in the order in which the guest sees them (vda, vdb...).
	Disks []Disk `json:"disks,omitempty"`
	// Seed is the path of the cloud-init ISO image, shown to the guest as its last disk; empty means none.
	Seed string `json:"seed,omitempty"`
	// NICs in the order in which the guest sees them.
	NICs []NIC `json:"nics,omitempty"`
}

// Disk is a virtio block device and the image below it.
type Disk struct {
	// ID names the device and its nodes inside QEMU (in QMP events too); empty means diskN by position.
	ID     string `json:"id,omitempty"`
	Path   string `json:"path"`
	Format Format `json:"format"`
	// Backing is what a qcow2 overlay lies on, given by us and never by the image's own header; nil means none.
	Backing  *Backing `json:"backing,omitempty"`
	ReadOnly bool     `json:"readOnly,omitempty"`
	// Serial shows in the guest as /dev/disk/by-id/virtio-SERIAL; at most 20 bytes.
	Serial string `json:"serial,omitempty"`
	// BootIndex orders what the firmware tries, from 1; 0 means never boot from it.
	BootIndex int `json:"bootIndex,omitempty"`
}

// Backing is a read-only image below an overlay; it may itself lie on another.
type Backing struct {
	Path    string   `json:"path"`
	Format  Format   `json:"format"`
	Backing *Backing `json:"backing,omitempty"`
}

// Image is a file that QEMU gets open.
type Image struct {
	Path     string
	ReadOnly bool
}

// Images are all files below the Domain's disks and its seed: each disk's own, then what it lies on.
func (d Domain) Images() []Image {
	var images []Image
	for _, disk := range d.allDisks() {
		images = append(images, Image{disk.Path, disk.ReadOnly})
		for b := disk.Backing; b != nil; b = b.Backing {
			images = append(images, Image{b.Path, true})
		}
	}
	return images
}

// NIC is a virtio network device on taps that are passed in as files.
type NIC struct {
	MAC string `json:"mac"`
	// MTU that the device offers to the guest; 0 means none is offered.
	MTU int `json:"mtu,omitempty"`
	// Queues is the number of queue pairs, each with its own tap file; 0 means 1.
	Queues int `json:"queues,omitempty"`
}

// Files are the file descriptor numbers, in QEMU's process, of what is passed in open.
type Files struct {
	// QMP is a listening unix socket.
	QMP int
	// Events is one end of a connected socket pair: a second QMP monitor, for the recorder of events.
	Events int
	// Console is one end of a connected socket pair: the guest's first serial port.
	Console int
	// NICs in the order of Domain.NICs.
	NICs []NICFiles
	// Images in the order of Domain.Images, each opened for reading and writing, or only for reading, as Images says.
	Images []int
}

// NICFiles are one NIC's taps, one for each queue pair, and its vhost-net files: as many, or none.
type NICFiles struct {
	Tap   []int
	Vhost []int
}
