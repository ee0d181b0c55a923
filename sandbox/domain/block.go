package domain

import (
	"encoding/json"
	"strconv"
)

// blockDevice is a virtio disk and the graph of nodes below it. Every node's format is stated and every qcow2 node's
// backing too, null included: nothing that an image's header says can open another file.
type blockDevice struct {
	Disk
	slot  slot
	files []fdset
}

// fdset is an image's open file: QEMU knows it by the number of a set that holds it alone, and never by its path.
type fdset struct{ set, fd int }

func (f fdset) argv() []string {
	return []string{"-add-fd", option("", prop{"fd", strconv.Itoa(f.fd)}, prop{"set", strconv.Itoa(f.set)})}
}

// name opens the file in QEMU, by a dup with the access that the file has.
func (f fdset) name() string { return "/dev/fdset/" + strconv.Itoa(f.set) }

// imageFiles gives out the files of Files.Images in order.
type imageFiles struct {
	fds  []int
	next int
}

// take returns the files of a disk's own image and of all below it.
func (i *imageFiles) take(d Disk) []fdset {
	files := []fdset{i.one()}
	for b := d.Backing; b != nil; b = b.Backing {
		files = append(files, i.one())
	}
	return files
}

func (i *imageFiles) one() fdset {
	i.next++
	return fdset{set: i.next, fd: i.fds[i.next-1]}
}

func (b blockDevice) argv() []string {
	var args []string
	for _, f := range b.files {
		args = append(args, f.argv()...)
	}
	graph, err := json.Marshal(imageNode(b.ID, b.files, b.Format, b.Backing, b.ReadOnly))
	if err != nil {
		panic(err) // structs of strings and booleans always marshal
	}
	dev := []prop{{"id", b.ID}, {"drive", nodeName(b.ID)}, b.slot.prop(), modern,
		// An I/O error goes to the guest, and to us as an event. Only for want of space on the host is the machine
		// paused: that passes, and the guest need not see it.
		{"werror", "enospc"}, {"rerror", "report"}}
	if b.Serial != "" {
		dev = append(dev, prop{"serial", b.Serial})
	}
	if b.BootIndex > 0 {
		dev = append(dev, prop{"bootindex", strconv.Itoa(b.BootIndex)})
	}
	return append(args, "-blockdev", string(graph), "-device", option("virtio-blk-pci", dev...))
}

// nodeName is the name of a disk's topmost node; a device and a node may not share one.
func nodeName(id string) string { return id + "-image" }

// fileNode is a file of the host.
type fileNode struct {
	Driver   string `json:"driver"`
	NodeName string `json:"node-name"`
	Filename string `json:"filename"`
	ReadOnly bool   `json:"read-only"`
	Discard  string `json:"discard,omitempty"`
}

// rawNode is an image without a format.
type rawNode struct {
	Driver   string   `json:"driver"`
	NodeName string   `json:"node-name"`
	ReadOnly bool     `json:"read-only"`
	Discard  string   `json:"discard,omitempty"`
	File     fileNode `json:"file"`
}

// qcow2Node is a qcow2 image. Its backing is always written: null keeps QEMU from opening what the header names.
type qcow2Node struct {
	Driver   string   `json:"driver"`
	NodeName string   `json:"node-name"`
	ReadOnly bool     `json:"read-only"`
	Discard  string   `json:"discard,omitempty"`
	File     fileNode `json:"file"`
	Backing  any      `json:"backing"`
}

func imageNode(id string, files []fdset, format Format, backing *Backing, readOnly bool) any {
	discard := "unmap" // what the guest trims is given back to the host
	if readOnly {
		discard = ""
	}
	file := fileNode{Driver: "file", NodeName: id + "-file", Filename: files[0].name(), ReadOnly: readOnly, Discard: discard}
	if format == Raw {
		return rawNode{Driver: Raw, NodeName: nodeName(id), ReadOnly: readOnly, Discard: discard, File: file}
	}
	node := qcow2Node{Driver: QCOW2, NodeName: nodeName(id), ReadOnly: readOnly, Discard: discard, File: file}
	if backing != nil {
		node.Backing = imageNode(id+"-b", files[1:], backing.Format, backing.Backing, true)
	}
	return node
}
