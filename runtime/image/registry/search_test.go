package registry

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/virtlet/virtlet/runtime/image/source"
)

const content = "the disk's content"

// entry is what a tar header has; a zero Typeflag is a regular file with the content.
type entry = tar.Header

// layer makes an archive; regular files have the content, or nothing when their size is -1.
func layer(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		body := ""
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
		}
		if e.Typeflag == tar.TypeReg && e.Size == 0 {
			body = content
		}
		e.Size = int64(len(body))
		if err := w.WriteHeader(&e); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func file(name string) entry { return entry{Name: name} }
func dir(name string) entry  { return entry{Name: name, Typeflag: tar.TypeDir} }
func gone(name string) entry { return entry{Name: name, Size: -1} }
func link(kind byte, name, to string) entry {
	return entry{Name: name, Typeflag: kind, Linkname: to}
}

// find looks for the disk in layers, the topmost first.
func find(layers ...[]byte) (name, got string, err error) {
	var s Search
	for _, l := range layers {
		f, err := s.Layer(bytes.NewReader(l))
		if err != nil {
			return "", "", err
		}
		if f != nil {
			b, err := io.ReadAll(f)
			return f.Name, string(b), err
		}
	}
	return "", "", nil
}

func TestSearch(t *testing.T) {
	for name, tc := range map[string]struct {
		layers [][]byte // the topmost first
		disk   string   // its name; "" means none
	}{
		"as_docker_makes_it":     {[][]byte{layer(t, dir("disk/"), file("disk/a.qcow2"))}, "a.qcow2"},
		"no_entry_of_the_dir":    {[][]byte{layer(t, file("disk/a.qcow2"))}, "a.qcow2"},
		"dot_slash":              {[][]byte{layer(t, dir("./"), dir("./disk/"), file("./disk/a"))}, "a"},
		"absolute":               {[][]byte{layer(t, file("/disk/a"))}, "a"},
		"many_slashes":           {[][]byte{layer(t, file(".//disk///a"))}, "a"},
		"any_name":               {[][]byte{layer(t, file("disk/Ünï cödé.vmdk.bak"))}, "Ünï cödé.vmdk.bak"},
		"hidden_file":            {[][]byte{layer(t, file("disk/.img"))}, ".img"},
		"dots_in_a_name":         {[][]byte{layer(t, file("disk/..a.."))}, "..a.."},
		"long_name":              {[][]byte{layer(t, file("disk/"+strings.Repeat("n", 255)))}, strings.Repeat("n", 255)},
		"others_beside":          {[][]byte{layer(t, file("etc/passwd"), file("disk/a"), file("usr/disk/b"), file("diskette"), file("disk2/c"))}, "a"},
		"links_elsewhere":        {[][]byte{layer(t, link(tar.TypeSymlink, "bin", "usr/bin"), file("disk/a"), link(tar.TypeLink, "b", "disk/a"))}, "a"},
		"global_header":          {[][]byte{layer(t, entry{Typeflag: tar.TypeXGlobalHeader, Name: "disk/x", PAXRecords: map[string]string{"a.b": "c"}}, file("disk/a"))}, "a"},
		"in_a_lower_layer":       {[][]byte{layer(t, file("README")), layer(t), layer(t, file("disk/a"))}, "a"},
		"the_topmost_counts":     {[][]byte{layer(t, file("disk/new")), layer(t, file("disk/old"))}, "new"},
		"other_file_removed":     {[][]byte{layer(t, gone("disk/.wh.b")), layer(t, file("disk/a"), file("disk/b"))}, "a"},
		"removed_and_new":        {[][]byte{layer(t, gone("disk/.wh.a"), file("disk/b")), layer(t, file("disk/a"))}, "b"},
		"removed_link":           {[][]byte{layer(t, gone("disk/.wh.l")), layer(t, link(tar.TypeSymlink, "disk/l", "/etc/shadow"), file("disk/a"))}, "a"},
		"removed_directory":      {[][]byte{layer(t, gone("disk/.wh.d")), layer(t, dir("disk/d/"), file("disk/d/x"), file("disk/a"))}, "a"},
		"removed":                {[][]byte{layer(t, gone("disk/.wh.a")), layer(t, file("disk/a"))}, ""},
		"removed_two_layers_up":  {[][]byte{layer(t, gone("disk/.wh.a")), layer(t), layer(t, file("disk/a"))}, ""},
		"opaque":                 {[][]byte{layer(t, dir("disk/"), gone("disk/.wh..wh..opq")), layer(t, file("disk/a"))}, ""},
		"opaque_keeps_its_own":   {[][]byte{layer(t, file("disk/b"), gone("disk/.wh..wh..opq")), layer(t, file("disk/a"))}, "b"},
		"opaque_root":            {[][]byte{layer(t, gone(".wh..wh..opq")), layer(t, file("disk/a"))}, ""},
		"directory_removed":      {[][]byte{layer(t, gone(".wh.disk")), layer(t, file("disk/a"))}, ""},
		"directory_anew":         {[][]byte{layer(t, gone(".wh.disk"), file("disk/b")), layer(t, file("disk/a"))}, "b"},
		"a_container_image":      {[][]byte{layer(t, dir("etc/"), file("etc/passwd")), layer(t, dir("bin/"))}, ""},
		"empty_directory":        {[][]byte{layer(t, dir("disk/"))}, ""},
		"nothing":                {[][]byte{layer(t)}, ""},
		"not_even_an_end":        {[][]byte{nil}, ""},
		"by_way_of_a_link":       {[][]byte{layer(t, link(tar.TypeSymlink, "d", "disk"), file("d/a"))}, ""},
		"whiteout_elsewhere":     {[][]byte{layer(t, gone("etc/.wh.a"), gone("etc/.wh..wh..opq")), layer(t, file("disk/a"))}, "a"},
		"padding_behind_the_end": {[][]byte{append(layer(t, file("disk/a")), make([]byte, 64<<10)...)}, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			got, b, err := find(tc.layers...)
			if err != nil || got != tc.disk || tc.disk != "" && b != content {
				t.Errorf("got %q with %q, %v; want %q", got, b, err, tc.disk)
			}
		})
	}
}

func TestSearchRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		layer []byte
		fault string
	}{
		"symbolic_link":          {layer(t, link(tar.TypeSymlink, "disk/a", "/etc/shadow")), "a symbolic link"},
		"hard_link":              {layer(t, file("etc/shadow"), link(tar.TypeLink, "disk/a", "etc/shadow")), "a hard link"},
		"hard_link_to_itself":    {layer(t, file("disk/a"), link(tar.TypeLink, "disk/b", "disk/a")), "a hard link"},
		"character_device":       {layer(t, link(tar.TypeChar, "disk/a", "")), "a device"},
		"block_device":           {layer(t, link(tar.TypeBlock, "disk/a", "")), "a device"},
		"fifo":                   {layer(t, link(tar.TypeFifo, "disk/a", "")), "a fifo"},
		"other_type":             {layer(t, entry{Name: "disk/a", Typeflag: 'V'}), "type 'V'"},
		"contiguous":             {layer(t, entry{Name: "disk/a", Typeflag: tar.TypeCont}), "type '7'"},
		"dot_dot_in":             {layer(t, file("etc/../disk/a")), ".."},
		"dot_dot_out":            {layer(t, file("disk/../a")), ".."},
		"dot_dot_before":         {layer(t, file("../disk/a")), ".."},
		"two_files":              {layer(t, file("disk/a"), file("disk/b")), `"disk/b": a second file under /disk, beside "a"`},
		"one_file_twice":         {layer(t, file("disk/a"), file("etc/x"), file("./disk/a")), "a second file"},
		"nested":                 {layer(t, file("disk/images/a")), "directly under /disk"},
		"nested_directory":       {layer(t, dir("disk/images/")), "a directory"},
		"beside_the_disk":        {layer(t, file("disk/a"), dir("disk/images/")), "a directory"},
		"directory_is_a_link":    {layer(t, link(tar.TypeSymlink, "disk", "etc")), "/disk is a symbolic link"},
		"directory_is_a_file":    {layer(t, file("disk")), "/disk is a file"},
		"link_after_the_disk":    {layer(t, file("disk/a"), link(tar.TypeSymlink, "disk", "etc")), "/disk is a symbolic link"},
		"empty_file":             {layer(t, entry{Name: "disk/a", Size: -1}), "an empty file"},
		"a_directory's_name":     {raw(t, "disk/a/", tar.TypeReg), "a directory's name"},
		"name_too_long":          {layer(t, file("disk/"+strings.Repeat("n", 256))), "256 bytes"},
		"removed_afterwards":     {layer(t, file("disk/a"), gone("disk/.wh.a")), "removes it"},
		"removed_before":         {layer(t, gone("disk/.wh.a"), file("disk/a")), "removes it"},
		"too_many_removed":       {layer(t, removals(maxWhiteouts+1)...), "files are removed"},
		"no_archive":             {[]byte(strings.Repeat("QFI\xfb", 1000)), "not a good tar archive"},
		"breaks_off":             {layer(t, file("disk/a"))[:520], "breaks off"},
		"breaks_off_in_a_header": {layer(t, file("etc/a"), file("disk/a"))[:1100], "breaks off"},
		"much_behind_the_end":    {append(layer(t, file("disk/a")), make([]byte, maxAfterTheTar+4096)...), "after the archive's end"},
		"checksum":               {flip(layer(t, file("etc/x"), file("disk/a")), 1024+10), "not a good tar archive"},
	} {
		t.Run(name, func(t *testing.T) {
			got, b, err := find(tc.layer)
			if !errors.Is(err, source.ErrRefused) || !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("got %q with %.100q, %v; want a refusal with %q", got, b, err, tc.fault)
			}
		})
	}
}

func removals(n int) (all []entry) {
	for i := range n {
		all = append(all, gone(fmt.Sprintf("disk/.wh.%d", i)))
	}
	return all
}

func flip(b []byte, at int) []byte {
	b[at] ^= 0x55
	return b
}

// raw writes a header that archive/tar would not.
func raw(t *testing.T, name string, kind byte) []byte {
	t.Helper()
	b := layer(t, file("disk/a__"))
	copy(b, name+"\x00\x00\x00\x00")
	b[156] = kind
	return checksummed(b)
}

// checksummed makes a changed header whole.
func checksummed(b []byte) []byte {
	sum := 8 * int(' ')
	for i, c := range b[:512] {
		if i < 148 || i >= 156 {
			sum += int(c)
		}
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestSearchHidden(t *testing.T) {
	for name, want := range map[string]bool{"disk/.wh..wh..opq": true, ".wh..wh..opq": true, ".wh.disk": true, "disk/.wh.a": false, "etc/.wh..wh..opq": false} {
		var s Search
		if f, err := s.Layer(bytes.NewReader(layer(t, gone(name)))); f != nil || err != nil || s.Hidden() != want {
			t.Errorf("%s hides what lies below: %t, %v; want %t", name, s.Hidden(), err, want)
		}
	}
}

// TestSearchErrorsOfTheSource: what breaks the stream is no fault of the layer.
func TestSearchErrorsOfTheSource(t *testing.T) {
	broken := errors.New("connection reset")
	b := layer(t, file("disk/a"))
	for _, after := range []int{0, 100, 520, 1030, len(b)} {
		r := io.MultiReader(bytes.NewReader(b[:after]), iotest.ErrReader(broken))
		f, err := new(Search).Layer(r)
		if err == nil {
			_, err = io.ReadAll(f)
		}
		if !errors.Is(err, broken) || errors.Is(err, source.ErrRefused) {
			t.Errorf("broken after %d bytes: got %v; want %v", after, err, broken)
		}
	}
}
