package domain

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

const (
	// maxSerial is the length of a virtio block device's identification.
	maxSerial = 20
	// maxDiskID leaves room for the suffixes of a chain of maxBacking images in QEMU's 31 bytes of a node name.
	maxDiskID  = 16
	maxBacking = 4
	minMTU     = 68
	maxMTU     = 65535
)

// validate reports every fault at once, each naming the part that is wrong.
func (d Domain) validate(f Files) error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if b, err := hex.DecodeString(d.ID); err != nil || len(b) != 32 {
		fault("id %q is not 64 hexadecimal digits", d.ID)
	}
	if d.Name == "" || !printable(d.Name) {
		fault("name %q is empty or not printable", d.Name)
	}
	if !isUUID(d.UUID) {
		fault("uuid %q is not a UUID", d.UUID)
	}
	if d.Accel != KVM && d.Accel != TCG {
		fault("accelerator %q is neither %q nor %q", d.Accel, KVM, TCG)
	}
	if d.CPUs < 1 || d.CPUs > MaxCPUs {
		fault("%d CPUs are not between 1 and %d", d.CPUs, MaxCPUs)
	}
	if strings.Contains(d.CPUModel, "\x00") {
		fault("CPU model contains a zero byte")
	}
	if d.MemoryBytes < MinMemory {
		fault("%d bytes of memory are less than the %d MiB in which a guest boots", d.MemoryBytes, MinMemory>>20)
	}
	if d.TBSizeMiB < 0 {
		fault("translation cache of %d MiB is negative", d.TBSizeMiB)
	}
	if bad := d.validateDisks(); len(bad) > 0 {
		errs = append(errs, bad...)
	} else if got, want := len(f.Images), len(d.Images()); got != want {
		fault("%d image files were given for %d images", got, want)
	}
	errs = append(errs, d.validateNICs(f)...)
	errs = append(errs, f.validate()...)
	if len(errs) > 0 {
		return fmt.Errorf("building the machine of vm %s: %w", d.ID, errors.Join(errs...))
	}
	return nil
}

func (d Domain) validateDisks() []error {
	var errs []error
	disks := d.allDisks()
	if len(disks) > maxDisks {
		errs = append(errs, fmt.Errorf("%d disks, the seed included, are more than the %d that the machine has slots for", len(disks), maxDisks))
	}
	ids, boot := map[string]bool{}, map[int]string{}
	for i, disk := range disks {
		if disk.ID == "" {
			disk.ID = diskID(i)
		}
		fault := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("disk %s: %w", disk.ID, fmt.Errorf(format, args...)))
		}
		if !isID(disk.ID) {
			fault("id %q is not a letter followed by up to %d letters, digits, - or _", disk.ID, maxDiskID-1)
		}
		if ids[disk.ID] || (disk.ID == seedID && d.Seed != "" && i < len(disks)-1) {
			fault("id is used twice")
		}
		ids[disk.ID] = true
		if len(disk.Serial) > maxSerial || !printable(disk.Serial) {
			fault("serial %q is longer than %d bytes or not printable", disk.Serial, maxSerial)
		}
		if disk.BootIndex < 0 {
			fault("boot index %d is negative", disk.BootIndex)
		} else if other, taken := boot[disk.BootIndex]; taken && disk.BootIndex > 0 {
			fault("boot index %d is that of disk %s too", disk.BootIndex, other)
		} else {
			boot[disk.BootIndex] = disk.ID
		}
		if err := checkImage(disk.Path, disk.Format, disk.Backing, 0); err != nil {
			fault("%w", err)
		}
	}
	return errs
}

func checkImage(path string, format Format, backing *Backing, depth int) error {
	switch {
	case !filepath.IsAbs(path) || !utf8.ValidString(path) || strings.Contains(path, "\x00"):
		return fmt.Errorf("path %q is not an absolute path in UTF-8", path)
	case format != QCOW2 && format != Raw:
		return fmt.Errorf("format %q of %s is neither %q nor %q", format, path, QCOW2, Raw)
	case backing != nil && format != QCOW2:
		return fmt.Errorf("%s is %s and cannot lie on another image", path, format)
	case depth > maxBacking:
		return fmt.Errorf("more than %d backing images", maxBacking)
	case backing == nil:
		return nil
	}
	return checkImage(backing.Path, backing.Format, backing.Backing, depth+1)
}

func (d Domain) validateNICs(f Files) []error {
	var errs []error
	if len(d.NICs) > maxNICs {
		errs = append(errs, fmt.Errorf("%d network interfaces are more than the %d that the machine has slots for", len(d.NICs), maxNICs))
	}
	if len(f.NICs) != len(d.NICs) {
		return append(errs, fmt.Errorf("files of %d network interfaces were given for %d", len(f.NICs), len(d.NICs)))
	}
	for i, n := range d.NICs {
		fault := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("network interface %d: %w", i, fmt.Errorf(format, args...)))
		}
		if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			fault("MAC %q is not the address of one Ethernet station", n.MAC)
		}
		if n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU) {
			fault("MTU %d is not between %d and %d", n.MTU, minMTU, maxMTU)
		}
		if n.Queues < 0 {
			fault("%d queues", n.Queues)
		}
		want := max(n.Queues, 1)
		if got := len(f.NICs[i].Tap); got != want {
			fault("%d tap files for %d queues", got, want)
		}
		if got := len(f.NICs[i].Vhost); got != 0 && got != want {
			fault("%d vhost files for %d queues", got, want)
		}
	}
	return errs
}

// validate checks that each number can be a file of its own; the first three are the standard streams.
func (f Files) validate() []error {
	var errs []error
	all := append([]int{f.QMP, f.Events, f.Console}, f.Images...)
	for _, n := range f.NICs {
		all = append(append(all, n.Tap...), n.Vhost...)
	}
	seen := map[int]bool{}
	for _, fd := range all {
		if fd < 3 {
			errs = append(errs, fmt.Errorf("file descriptor %d is a standard stream or none", fd))
		} else if seen[fd] {
			errs = append(errs, fmt.Errorf("file descriptor %d is given twice", fd))
		}
		seen[fd] = true
	}
	return errs
}

func printable(s string) bool {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return false
		}
	}
	return true
}

func isID(s string) bool {
	if len(s) == 0 || len(s) > maxDiskID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9' || c == '-' || c == '_')) {
			return false
		}
	}
	return true
}

func isUUID(s string) bool {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return false
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	return err == nil && len(b) == 16
}
