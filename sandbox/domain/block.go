package domain

import (
	"encoding/json"
	"strconv"
)

// blockDevice is a virtio disk and the graph of nodes below it. Every node's format is stated and every qcow2 node's
// backing too, null included: nothing that an image's header says can open another file.
type blockDevice struct {
	Disk
	slot slot
}

func (b blockDevice) argv() []string {
	graph, err := json.Marshal(imageNode(b.ID, b.Path, b.Format, b.Backing, b.ReadOnly))
	if err != nil {
		panic(err) // structs of strings and booleans always marshal
	}
	dev := []prop{{"id", b.ID}, {"drive", nodeName(b.ID)}, b.slot.prop(), modern,
		// An I/O error goes to the guest, and to us as an event; the machine is not stopped for it.
		{"werror", "report"}, {"rerror", "report"}}
	if b.Serial != "" {
		dev = append(dev, prop{"serial", b.Serial})
	}
	if b.BootIndex > 0 {
		dev = append(dev, prop{"bootindex", strconv.Itoa(b.BootIndex)})
	}
	return []string{"-blockdev", string(graph), "-device", option("virtio-blk-pci", dev...)}
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

func imageNode(id, path string, format Format, backing *Backing, readOnly bool) any {
	discard := "unmap" // what the guest trims is given back to the host
	if readOnly {
		discard = ""
	}
	file := fileNode{Driver: "file", NodeName: id + "-file", Filename: path, ReadOnly: readOnly, Discard: discard}
	if format == Raw {
		return rawNode{Driver: Raw, NodeName: nodeName(id), ReadOnly: readOnly, Discard: discard, File: file}
	}
	node := qcow2Node{Driver: QCOW2, NodeName: nodeName(id), ReadOnly: readOnly, Discard: discard, File: file}
	if backing != nil {
		node.Backing = imageNode(id+"-b", backing.Path, backing.Format, backing.Backing, true)
	}
	return node
}
