package domain

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

const (
	testID   = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	testUUID = "6b3c1f0e-5d2a-4c8e-9b7a-0123456789ab"
)

// testCase is a Domain together with the files that it is started with.
type testCase struct {
	name   string
	domain Domain
	files  Files
}

// testCases are machines of every shape. Their images lie in dir; TestArgs uses a fixed one.
func testCases(dir string) []testCase {
	at := func(name string) string { return filepath.Join(dir, name) }
	base := func(accel Accel) Domain {
		return Domain{ID: testID, Name: "default/web-0", UUID: testUUID, Accel: accel, CPUs: 1, MemoryBytes: 128 << 20}
	}
	files := Files{QMP: 3, Events: 4, Console: 5}

	pod := func(accel Accel) Domain {
		d := base(accel)
		d.CPUs = 2
		d.Disks = []Disk{{ID: "root", Path: at("root.qcow2"), Format: QCOW2, BootIndex: 1,
			Backing: &Backing{Path: at("base.qcow2"), Format: QCOW2}}}
		d.Seed = at("seed.iso")
		d.NICs = []NIC{{MAC: "02:00:00:00:00:01", MTU: 1450, Queues: 1}}
		return d
	}
	podFiles := files
	podFiles.NICs = []NICFiles{{Tap: []int{6}}}

	vhost := pod(KVM)
	vhost.NICs = []NIC{{MAC: "02:00:00:00:00:01", MTU: 1500, Queues: 2}, {MAC: "02:00:00:00:00:02"}}
	vhostFiles := files
	vhostFiles.NICs = []NICFiles{{Tap: []int{6, 7}, Vhost: []int{8, 9}}, {Tap: []int{10}, Vhost: []int{11}}}

	queues := pod(TCG)
	queues.NICs = []NIC{{MAC: "02:00:00:00:00:01", MTU: 9000, Queues: 2}, {MAC: "02:00:00:00:00:02"}}
	queuesFiles := files
	queuesFiles.NICs = []NICFiles{{Tap: []int{6, 7}}, {Tap: []int{8}}}

	disks := base(TCG)
	disks.MemoryBytes = 500_000_000 // not whole MiB, as memory: 500M gives
	disks.CPUModel, disks.TBSizeMiB = "Nehalem", 128
	disks.Disks = []Disk{
		{Path: at("plain.raw"), Format: Raw, BootIndex: 2, Serial: "data-volume"},
		{Path: at("chain.qcow2"), Format: QCOW2, BootIndex: 1, Backing: &Backing{Path: at("root.qcow2"), Format: QCOW2,
			Backing: &Backing{Path: at("base.raw"), Format: Raw}}},
		{ID: "ro", Path: at("base.qcow2"), Format: QCOW2, ReadOnly: true},
	}

	hostile := base(TCG)
	hostile.Name = `x,process=evil "quoted" ümlaut`
	hostile.Disks = []Disk{{Path: at(`a,b"c=d\e.raw`), Format: Raw, Serial: "s,drive=x", BootIndex: 1}}

	cases := []testCase{
		{"bare-tcg", base(TCG), files},
		{"bare-kvm", base(KVM), files},
		{"pod-tcg", pod(TCG), podFiles},
		{"pod-kvm", pod(KVM), podFiles},
		{"queues-tcg", queues, queuesFiles},
		{"queues-vhost-kvm", vhost, vhostFiles},
		{"disks", disks, files},
		{"hostile-values", hostile, files},
	}
	for i := range cases {
		for n := range cases[i].domain.Images() {
			cases[i].files.Images = append(cases[i].files.Images, 20+n)
		}
	}
	return cases
}

func TestArgs(t *testing.T) {
	for _, tc := range testCases("/var/lib/virtlet/vms/" + testID) {
		t.Run(tc.name, func(t *testing.T) {
			args, err := tc.domain.Args(tc.files)
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, tc.name+".golden", oneOptionALine(args))
		})
	}
}

// oneOptionALine puts each option on a line with its argument, so that a golden file reads and compares by line.
func oneOptionALine(args []string) string {
	var b strings.Builder
	for i, arg := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(arg, "-"):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(arg)
	}
	b.WriteByte('\n')
	return b.String()
}

func compareGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (run with -update to accept):\n got:\n%s\nwant:\n%s", path, got, want)
	}
}

func TestArgsRefuses(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*Domain, *Files)
		want  string
	}{
		{"id_that_is_not_hex", func(d *Domain, _ *Files) { d.ID = "web-0" }, "64 hexadecimal digits"},
		{"empty_name", func(d *Domain, _ *Files) { d.Name = "" }, "name"},
		{"name_with_newline", func(d *Domain, _ *Files) { d.Name = "a\nb" }, "not printable"},
		{"uuid", func(d *Domain, _ *Files) { d.UUID = "auto" }, "not a UUID"},
		{"auto_is_no_accelerator", func(d *Domain, _ *Files) { d.Accel = Auto }, `accelerator "auto"`},
		{"no_cpus", func(d *Domain, _ *Files) { d.CPUs = 0 }, "0 CPUs"},
		{"too_many_cpus", func(d *Domain, _ *Files) { d.CPUs = 256 }, "between 1 and 255"},
		{"too_little_memory", func(d *Domain, _ *Files) { d.MemoryBytes = MinMemory - 1 }, "in which a guest boots"},
		{"negative_cache", func(d *Domain, _ *Files) { d.TBSizeMiB = -1 }, "negative"},
		{"relative_path", func(d *Domain, _ *Files) { d.Disks[0].Path = "root.qcow2" }, "absolute path"},
		{"path_that_json_would_change", func(d *Domain, _ *Files) { d.Disks[0].Path = "/a\xff" }, "UTF-8"},
		{"format_left_to_probing", func(d *Domain, _ *Files) { d.Disks[0].Format = "" }, "format"},
		{"backing_format_left_to_probing", func(d *Domain, _ *Files) { d.Disks[0].Backing.Format = "" }, "format"},
		{"raw_overlay", func(d *Domain, _ *Files) { d.Disks[0].Format = Raw }, "cannot lie on another image"},
		{"backing_chain_without_end", func(d *Domain, _ *Files) { b := d.Disks[0].Backing; b.Backing = b }, "more than 4 backing"},
		{"disk_id", func(d *Domain, _ *Files) { d.Disks[0].ID = "0,file=x" }, "id"},
		{"disk_id_twice", func(d *Domain, _ *Files) { d.Disks[1].ID = "root" }, "used twice"},
		{"disk_id_of_the_seed", func(d *Domain, _ *Files) { d.Disks[1].ID = "seed" }, "used twice"},
		{"serial_too_long", func(d *Domain, _ *Files) { d.Disks[0].Serial = strings.Repeat("x", 21) }, "serial"},
		{"boot_index_twice", func(d *Domain, _ *Files) { d.Disks[1].BootIndex = 1 }, "boot index 1 is that of disk root too"},
		{"too_many_disks", func(d *Domain, _ *Files) {
			d.Disks = d.Disks[:1]
			for range maxDisks - 1 {
				d.Disks = append(d.Disks, Disk{Path: "/x", Format: Raw})
			}
		}, "the seed included"},
		{"relative_seed", func(d *Domain, _ *Files) { d.Seed = "seed.iso" }, "absolute path"},
		{"mac", func(d *Domain, _ *Files) { d.NICs[0].MAC = "02:00:00:00:00:01,id=x" }, "MAC"},
		{"multicast_mac", func(d *Domain, _ *Files) { d.NICs[0].MAC = "01:00:00:00:00:01" }, "one Ethernet station"},
		{"mtu", func(d *Domain, _ *Files) { d.NICs[0].MTU = 67 }, "MTU 67"},
		{"fewer_taps_than_queues", func(d *Domain, _ *Files) { d.NICs[0].Queues = 2 }, "1 tap files for 2 queues"},
		{"more_vhosts_than_queues", func(_ *Domain, f *Files) { f.NICs[0].Vhost = []int{8, 9} }, "2 vhost files for 1 queues"},
		{"files_of_one_nic_missing", func(_ *Domain, f *Files) { f.NICs = nil }, "files of 0 network interfaces were given for 1"},
		{"too_many_nics", func(d *Domain, _ *Files) { d.NICs = make([]NIC, maxNICs+1) }, "network interfaces are more than"},
		{"files_of_one_image_missing", func(_ *Domain, f *Files) { f.Images = f.Images[1:] }, "3 image files were given for 4 images"},
		{"descriptor_not_given", func(_ *Domain, f *Files) { f.QMP = 0 }, "file descriptor 0"},
		{"descriptor_twice", func(_ *Domain, f *Files) { f.NICs[0].Tap[0] = f.Console }, "given twice"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			d, f := validPod()
			if _, err := d.Args(f); err != nil {
				t.Fatalf("before it was spoilt: %v", err)
			}
			tc.spoil(&d, &f)
			args, err := d.Args(f)
			if err == nil {
				t.Fatalf("no error; args %q", args)
			}
			if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), d.ID) {
				t.Errorf("error %q does not contain %q and the id", err, tc.want)
			}
		})
	}
}

func TestArgsReportsAllFaultsAtOnce(t *testing.T) {
	_, err := Domain{Seed: "x"}.Args(Files{})
	for _, want := range []string{"id", "name", "uuid", "accelerator", "CPUs", "memory", "seed", "descriptor"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in: %v", want, err)
		}
	}
}

func TestArgsLeavesTheDomainAlone(t *testing.T) {
	d, f := validPod()
	before, _ := json.Marshal(d)
	if _, err := d.Args(f); err != nil {
		t.Fatal(err)
	}
	if after, _ := json.Marshal(d); string(before) != string(after) {
		t.Errorf("was %s, is %s", before, after)
	}
}

func TestDomainSurvivesJSON(t *testing.T) {
	for _, tc := range testCases("/d") {
		b, err := json.Marshal(tc.domain)
		if err != nil {
			t.Fatal(err)
		}
		var back Domain
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(back, tc.domain) {
			t.Errorf("%s: %+v came back as %+v", tc.name, tc.domain, back)
		}
	}
}

func validPod() (Domain, Files) {
	d := Domain{
		ID: testID, Name: "default/web-0", UUID: testUUID, Accel: TCG, CPUs: 1, MemoryBytes: MinMemory,
		Disks: []Disk{
			{ID: "root", Path: "/vm/root.qcow2", Format: QCOW2, BootIndex: 1, Backing: &Backing{Path: "/images/base", Format: QCOW2}},
			{Path: "/dev/data", Format: Raw},
		},
		Seed: "/vm/seed.iso",
		NICs: []NIC{{MAC: "02:00:00:00:00:01"}},
	}
	return d, Files{QMP: 3, Events: 4, Console: 5, NICs: []NICFiles{{Tap: []int{6}}}, Images: []int{20, 21, 22, 23}}
}
