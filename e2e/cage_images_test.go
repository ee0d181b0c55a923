package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/image"
	"github.com/virtlet/virtlet/e2e/rig"
)

// TestCageImages is the corpus of hostile images: each is refused by the name of its fault, nothing of it is stored, and
// no file that it names is opened. That QEMU opens those files when nobody stops it is seen in the same breath.
func TestCageImages(t *testing.T) {
	r, good := host(t, rig.Options{})
	d := newDecoy(t)
	dir := filepath.Join(r.Dir, "images")
	for _, c := range corpus(t, d, dir) {
		t.Run(c.name, func(t *testing.T) {
			ctx := within(t, time.Minute)
			path := filepath.Join(dir, c.name)
			// Without our checks: the format guessed, the image read.
			out, _ := exec.CommandContext(ctx, "qemu-io", "-r", "-c", "read 0 512", path).CombinedOutput()
			if opens, dials := d.touches(t); c.lures != (opens+int(dials) > 0) {
				t.Errorf("bare QEMU touched the decoy %d times, dialled it %d times: %s", opens, dials, out)
			}
			unchanged(t, r, func() {
				_, err := r.Pull(ctx, path)
				refused(t, err, codes.FailedPrecondition, c.name, c.says)
			})
			d.untouched(t, "pulling it")
			wantImages(ctx, t, r, good)
		})
	}
	t.Run("a_good_image_opens_nothing_else", func(t *testing.T) {
		ctx := within(t, time.Minute)
		p := must[*rig.Pod](t)(r.Boot(ctx, r.PodConfig("good"), rig.ContainerConfig("vm", good)))
		wantNoProbing(t, r, p)
		ok(t, p.Remove(ctx))
		d.untouched(t, "running it")
	})
}

// wantImages checks that these images are stored and nothing else is, whole or in part.
func wantImages(ctx context.Context, t *testing.T, r *rig.Rig, names ...string) {
	t.Helper()
	list, err := r.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	ok(t, err)
	if len(list.Images) != len(names) {
		t.Errorf("%d images are stored, want %q", len(list.Images), names)
	}
	files := must[[]string](t)(filepath.Glob(filepath.Join(r.StateDir(), "images", "*", "*")))
	if len(files) != len(names) {
		t.Errorf("the store holds %q, want %d files", files, len(names))
	}
}

type hostile struct {
	name, says string
	// lures: bare QEMU falls for it.
	lures bool
}

// corpus writes the images into dir.
func corpus(t *testing.T, d *decoy, dir string) []hostile {
	t.Helper()
	var all []hostile
	add := func(name, says string, lures bool) string {
		all = append(all, hostile{name, says, lures})
		return filepath.Join(dir, name)
	}
	create := func(path, size string, options ...string) {
		args := slices.Concat([]string{"create", "-q", "-f", "qcow2"}, options, []string{path, size})
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %q: %v: %s", args, err, out)
		}
	}
	const backing, data = "image names a backing file", "image names an external data file"
	create(add("backing", backing, true), "1M", "-u", "-b", d.file, "-F", "raw")
	create(add("backing-version-2", backing, true), "1M", "-u", "-b", d.file, "-F", "raw", "-o", "compat=0.10")
	create(add("backing-nested", backing, true), "1M", "-u", "-b", filepath.Join(dir, "backing"), "-F", "qcow2")
	create(add("backing-json", backing, true), "1M", "-u", "-F", "raw", "-b",
		`json:{"driver":"raw","file":{"driver":"file","filename":"`+d.file+`"}}`)
	create(add("backing-socket", backing, true), "1M", "-u", "-b", "nbd+unix:///?socket="+d.socket, "-F", "raw")
	create(add("data-file", data, true), "1M", "-o", "data_file="+d.file+",data_file_raw=on")
	create(add("bitmaps", "persistent bitmaps", false), "1M")
	if out, err := exec.Command("qemu-img", "bitmap", "--add", filepath.Join(dir, "bitmaps"), "b").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img bitmap: %v: %s", err, out)
	}
	create(add("larger-than-any", "disk is too large", false), "17T")

	whole := must[[]byte](t)(os.ReadFile(testImage))
	spoil := func(path string, at int, with ...any) {
		b := slices.Clone(whole)
		for _, field := range with {
			n := must[int](t)(binary.Encode(b[at:], binary.BigEndian, field))
			at += n
		}
		ok(t, os.WriteFile(path, b, 0o600))
	}
	const damaged, truncated = "image is damaged", "image is truncated"
	spoil(add("luks", "image is encrypted", false), 32, uint32(2))
	spoil(add("first-level-table-huge", damaged+": a first-level table of", false), 36, uint32(1<<31))
	spoil(add("first-level-table-outside", truncated+": first-level table", false), 40, uint64(1<<40))
	spoil(add("first-level-table-short", damaged+": a first-level table of", false), 24, uint64(1<<43))
	spoil(add("cluster-bits", damaged+": clusters of 2^63 bytes", false), 20, uint32(63))
	spoil(add("snapshots-outside", truncated+": snapshot table", false), 60, uint32(1), uint64(1<<40))
	spoil(add("snapshots-without-end", damaged+": 4294967295 snapshots", false), 60, ^uint32(0))
	ok(t, os.WriteFile(add("cut-in-the-tables", truncated, false), whole[:1<<16], 0o600))
	ok(t, os.WriteFile(add("cut-in-the-data", truncated, false), whole[:len(whole)/2], 0o600))

	ok(t, os.WriteFile(add("vmdk", "it looks like a VMDK image", true), []byte("# Disk DescriptorFile\n"+vmdkOf(d.file)), 0o600))
	ok(t, os.WriteFile(add("vhdx", "it looks like a VHDX image", false), slices.Concat([]byte("vhdxfile"), make([]byte, 1<<20)), 0o600))
	ok(t, os.WriteFile(add("raw-luks", "image is encrypted", false), slices.Concat([]byte("LUKS\xba\xbe"), make([]byte, 1<<20)), 0o600))
	// Where a raw disk begins as a guest's qcow2 header does, it is judged as what it says it is.
	raw := make([]byte, 1<<20)
	copy(raw, qcow2Over(d.file))
	copy(raw[510:], "\x55\xaa")
	ok(t, os.WriteFile(add("raw-with-a-header", backing, true), raw, 0o600))
	d.touches(t) // by qemu-img, which made the data file
	return all
}

// vmdkOf describes a VMDK disk whose content is another file.
func vmdkOf(file string) string {
	return "version=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"" + file + "\" 0\n"
}

// bootOver is where a BIOS that executes the image of qcow2Over comes to. nameAt is where the header says that the name
// stands; its two last bytes are the jump there.
const (
	bootOver = 80
	nameAt   = 0xeb<<8 | (bootOver - 16)
)

// qcow2Over is a qcow2 image of version 2, 1 MiB, all of whose content is in the backing file. The first sector's boot
// code, if executed, loads the second sector and goes on there.
func qcow2Over(file string) []byte {
	const clusterBits, cluster = 16, 1 << 16
	b := make([]byte, nameAt+len(file), 3*cluster)
	be := binary.BigEndian
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 2)
	be.PutUint64(b[8:], nameAt)
	be.PutUint32(b[16:], uint32(len(file)))
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], 1<<20)
	be.PutUint32(b[36:], 1)         // entries of the first-level table,
	be.PutUint64(b[40:], 2*cluster) // which is empty
	be.PutUint64(b[48:], cluster)   // the reference counts, none
	be.PutUint32(b[56:], 1)
	copy(b[bootOver:], []byte{
		0x31, 0xdb, // xor bx, bx
		0x8e, 0xdb, // mov ds, bx
		0x8e, 0xc3, // mov es, bx
		0xbb, 0x00, 0x7c, // mov bx, 0x7c00
		0xb8, 0x01, 0x02, // mov ax, 0x0201: read one sector,
		0xb9, 0x02, 0x00, // mov cx, 2: the second,
		0xb6, 0x00, // mov dh, 0
		0x9c,       // pushf
		0x6a, 0x00, // push 0
		0x68, 0x00, 0x7c, // push 0x7c00: where int 0x13 returns to
		0xff, 0x2e, 0x4c, 0x00, // jmp far [0x13 * 4]
	})
	copy(b[nameAt:], file)
	return b
}

// TestCageImageOfGuest is a guest that writes a qcow2 header to the beginning of its disk, which lies on a raw image. It
// boots from it as before: its disk is what it was declared to be, whatever it holds.
func TestCageImageOfGuest(t *testing.T) {
	r, _ := host(t, rig.Options{})
	d := newDecoy(t)
	base := filepath.Join(r.Dir, "images", "base.raw")
	ctx := within(t, 5*time.Minute)
	must[string](t)(r.Run(ctx, "qemu-img", "convert", "-O", "raw", testImage, base))
	must[string](t)(r.Pull(ctx, base))
	p := boot(t, r, "writer", base)
	wantNoProbing(t, r, p)

	written := qcow2Over(d.file)
	// The boot record of before is kept in the second sector; the first one's table of partitions stays.
	write := "set -e; dd if=/dev/vda of=/dev/vda bs=512 count=1 seek=1 conv=notrunc"
	for _, part := range [][2]int{{0, 110}, {nameAt, len(written)}} {
		var octal strings.Builder
		for _, b := range written[part[0]:part[1]] {
			fmt.Fprintf(&octal, `\0%03o`, b)
		}
		write += fmt.Sprintf("; printf '%%b' '%s' | dd of=/dev/vda bs=1 seek=%d conv=notrunc", octal.String(), part[0])
	}
	must[string](t)(p.Exec(ctx, write+"; sync"))
	qemu := processOf(t, p, "qemu-system")
	before := must[image.Facts](t)(p.Facts(ctx))
	must[string](t)(p.Fetch(ctx, "/reboot"))
	ok(t, r.KillDaemon(ctx))
	ok(t, r.StartDaemon(ctx))
	awaitReboot(ctx, t, p, before)
	if again := processOf(t, p, "qemu-system"); again != qemu {
		t.Errorf("QEMU was process %d and is %d", qemu, again)
	}
	if head := must[string](t)(p.Exec(ctx, "head -c 3 /dev/vda")); head != "QFI" {
		t.Errorf("after the reboot the disk begins with %q", head)
	}
	d.untouched(t, "booting from it")

	// The trap is one: what the guest wrote, taken for what it says it is, opens the file.
	ok(t, p.Stop(ctx, 30))
	d.untouched(t, "stopping it")
	out := filepath.Join(r.Dir, "written.raw")
	defer os.Remove(out)
	must[string](t)(r.Run(ctx, "qemu-img", "convert", "-O", "raw", rootDisk(r, p), out))
	must[string](t)(r.Run(ctx, "qemu-io", "-r", "-c", "read 0 512", out))
	if opens, _ := d.touches(t); opens == 0 {
		t.Error("QEMU does not open the file where the format is guessed, so the test proves nothing")
	}
	ok(t, p.Remove(ctx))

	t.Run("a_raw_image_that_would_be_taken_for_another_format", func(t *testing.T) {
		disguised := make([]byte, 1<<20)
		copy(disguised, "#\n"+vmdkOf(d.file))
		copy(disguised[510:], "\x55\xaa")
		path := filepath.Join(r.Dir, "images", "disguised.raw")
		ok(t, os.WriteFile(path, disguised, 0o600))
		must[string](t)(r.Run(ctx, "qemu-io", "-r", "-c", "read 0 512", path))
		if opens, _ := d.touches(t); opens == 0 {
			t.Error("QEMU does not take it for a VMDK image")
		}
		must[string](t)(r.Pull(ctx, path))
		p := must[*rig.Pod](t)(r.Boot(ctx, r.PodConfig("disguised"), rig.ContainerConfig("vm", path)))
		wantNoProbing(t, r, p)
		ok(t, p.Remove(ctx))
		d.untouched(t, "running it")
	})
}

// wantNoProbing checks that the running QEMU was told the driver of every node, and where every qcow2 node ends, and
// knows its disks by descriptor only.
func wantNoProbing(t *testing.T, r *rig.Rig, p *rig.Pod) {
	t.Helper()
	line := string(must[[]byte](t)(os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", processOf(t, p, "qemu-system")))))
	argv := strings.Split(line, "\x00")
	nodes := 0
	var check func(node map[string]any)
	check = func(node map[string]any) {
		nodes++
		driver := node["driver"]
		name, isFile := node["filename"].(string)
		_, stated := node["backing"]
		switch {
		case driver == nil, driver == "qcow2" && !stated, isFile && !strings.HasPrefix(name, "/dev/fdset/"):
			t.Errorf("QEMU is left to find something out: %v", node)
		}
		for _, child := range node {
			if below, ok := child.(map[string]any); ok {
				check(below)
			}
		}
	}
	for i, arg := range argv {
		switch arg {
		case "-blockdev":
			var node map[string]any
			ok(t, json.Unmarshal([]byte(argv[i+1]), &node))
			check(node)
		case "-drive", "-hda", "-cdrom", "-snapshot", "-pflash":
			t.Errorf("QEMU has %s", arg)
		}
	}
	// Overlay, base and seed, each a format on a file.
	if nodes != 6 {
		t.Errorf("QEMU has %d nodes: %q", nodes, argv)
	}
	if strings.Contains(line, r.StateDir()) {
		t.Errorf("QEMU knows a path of the store: %q", argv)
	}
}
