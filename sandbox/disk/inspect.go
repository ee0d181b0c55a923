package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/virtlet/virtlet/sandbox/domain"
)

// Info is what an image turned out to be.
type Info struct {
	// Format is domain.QCOW2 or domain.Raw, from the content.
	Format string
	// VirtualSize is the disk's size in bytes as a guest sees it.
	VirtualSize int64
}

const (
	sectorSize   = 512
	mbrSignature = "\x55\xaa"
	luksMagic    = "LUKS\xba\xbe"
	inspectTime  = time.Minute
)

// foreign are formats that people offer as disks, recognised to name the fault; they are told by their first bytes.
var foreign = []struct{ magic, what string }{
	{"\x1f\x8b", "a gzip archive; unpack it first"},
	{"\xfd7zXZ\x00", "an xz archive; unpack it first"},
	{"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"},
	{"BZh", "a bzip2 archive; unpack it first"},
	{"PK\x03\x04", "a zip archive; unpack it first"},
	{"KDMV", "a VMDK image; convert it with qemu-img convert -O qcow2"},
	{"# Disk DescriptorFile", "a VMDK image; convert it with qemu-img convert -O qcow2"},
	{"conectix", "a VHD image; convert it with qemu-img convert -O qcow2"},
	{"vhdxfile", "a VHDX image; convert it with qemu-img convert -O qcow2"},
	{"<<< ", "a VDI image; convert it with qemu-img convert -O qcow2"},
	{"QED\x00", "a QED image; convert it with qemu-img convert -O qcow2"},
	{"<!", "a web page, perhaps an error of the server"},
	{"<html", "a web page, perhaps an error of the server"},
	{"{", "a JSON document, perhaps an error of the server"},
}

// Inspect tells what the image at path is, or refuses it with an error that names the fault; the caller, who knows where
// the image came from, names the image. A qcow2 image is parsed by us, and what passes is checked by qemu-img in a cage,
// which must be able to read it. A raw disk is taken only if its first sector is a boot record. Nothing is written; it
// takes at most a minute.
func (i Inspector) Inspect(ctx context.Context, path string) (Info, error) {
	// An absolute path is neither an option nor a protocol to qemu-img.
	path, err := filepath.Abs(path)
	if err != nil {
		return Info{}, err
	}
	info, err := readImage(path)
	if err != nil || info.Format == domain.Raw {
		return info, err
	}
	return info, i.checkQCOW2(ctx, path)
}

// readImage judges an image by its own bytes.
func readImage(path string) (Info, error) {
	// A named pipe must not hold us up; on regular files the flag means nothing.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	if !st.Mode().IsRegular() {
		return Info{}, fmt.Errorf("%w: it is no regular file", ErrNotADisk)
	}
	fileSize := st.Size()
	if fileSize == 0 {
		return Info{}, fmt.Errorf("%w: the file is empty", ErrNotADisk)
	}
	var first [sectorSize]byte
	n, err := f.ReadAt(first[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Info{}, err
	}
	if bytes.HasPrefix(first[:n], []byte(qcow2Magic)) {
		h, err := parseQCOW2(f, fileSize)
		return Info{Format: domain.QCOW2, VirtualSize: int64(h.virtualSize)}, err
	}
	return Info{Format: domain.Raw, VirtualSize: fileSize}, checkRaw(first[:n], fileSize)
}

func checkRaw(first []byte, fileSize int64) error {
	if bytes.HasPrefix(first, []byte(luksMagic)) {
		return fmt.Errorf("%w: it is a LUKS volume", ErrEncrypted)
	}
	for _, f := range foreign {
		if bytes.HasPrefix(first, []byte(f.magic)) {
			return fmt.Errorf("%w: it looks like %s", ErrNotADisk, f.what)
		}
	}
	switch {
	case len(first) < sectorSize:
		return fmt.Errorf("%w: %d bytes are less than a sector", ErrNotADisk, len(first))
	case string(first[sectorSize-2:]) != mbrSignature:
		return fmt.Errorf("%w: it is neither qcow2 nor has it a boot record; if it is a raw disk without one, convert it with qemu-img convert -f raw -O qcow2", ErrNotADisk)
	case fileSize%sectorSize != 0:
		return fmt.Errorf("%w: %d bytes are not whole sectors", ErrTruncated, fileSize)
	case fileSize > MaxVirtualSize:
		return fmt.Errorf("%w: %d bytes, at most %d are taken", ErrTooLarge, fileSize, int64(MaxVirtualSize))
	}
	return nil
}

// checkQCOW2 has qemu-img follow every table of the image to the clusters in the file.
func (i Inspector) checkQCOW2(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, inspectTime)
	defer cancel()
	stdout, err := i.check(ctx, path)
	var failed *toolError
	switch {
	case err == nil:
	case !errors.As(err, &failed):
		return err
	case failed.code == checkFailed && strings.Contains(failed.stderr, "Permission denied"):
		return fmt.Errorf("an image is looked at without rights, so it must be readable by all: %w", err)
	case failed.code == checkFailed, failed.crashed():
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case failed.code == checkCorrupt && strings.Contains(failed.stderr, "exceeding the end of the file"):
		return fmt.Errorf("%w: it has clusters after the end of the file", ErrTruncated)
	case failed.code != checkCorrupt && failed.code != checkLeaks:
		return err
	}
	var report struct {
		Corruptions int64 `json:"corruptions"`
		CheckErrors int64 `json:"check-errors"`
	}
	if jsonErr := json.Unmarshal(stdout, &report); jsonErr != nil {
		return errors.Join(fmt.Errorf("reading the report of qemu-img check: %w", jsonErr), err)
	}
	if faults := report.Corruptions + report.CheckErrors; faults > 0 {
		return fmt.Errorf("%w: qemu-img check finds %d faults", ErrDamaged, faults)
	}
	return nil
}

// Exit codes of qemu-img check. The last two come with a report; leaked clusters only waste space.
const (
	checkFailed  = 1
	checkCorrupt = 2
	checkLeaks   = 3
)
