package disk

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf16"
)

// An ISO 9660 image (ECMA-119) of a few files in its root directory, with their true names twice: in Rock Ridge for
// Unix guests and in Joliet for others. It is built in memory and holds no time or place of its making, so equal files
// give equal images, and no secret passes through a temporary file.

const (
	isoSector = 2048

	kindPrimary = 1
	kindJoliet  = 2

	sectorPrimary    = 16
	sectorJoliet     = 17
	sectorTerminator = 18
	// A path table for each byte order and each tree, then the root directory of each tree, then the files.
	sectorPathTables = 19
	sectorRoot       = 23
	sectorJolietRoot = 24
	sectorFiles      = 25

	maxName   = 30 // ECMA-119 level 2, without the version
	pathTable = 10 // bytes of a path table that holds the root alone
)

// isoTree is one of the two directory trees over the same files.
type isoTree struct {
	// kind is the type of the tree's volume descriptor; the other numbers are sectors.
	kind       byte
	descriptor int
	root       int
	tables     int
	// encode writes text as the tree's descriptors have it, fill is what pads it.
	encode func(string) []byte
	fill   []byte
	// name is a file's name in a directory record, extra what follows it there.
	name  func(string) []byte
	extra func(record isoRecord) []byte
}

// isoRecord is an entry of a directory. The directory itself and its parent have no name.
type isoRecord struct {
	name   string
	self   bool
	parent bool
	sector int
	size   int
}

func (r isoRecord) isDir() bool { return r.self || r.parent }

// buildISO makes the image. The names must be simple ones, of up to 30 letters, digits, dots, - and _, and differ also
// in upper case with all else as _.
func buildISO(label string, files map[string][]byte) ([]byte, error) {
	names := slices.Sorted(maps.Keys(files))
	if err := checkISONames(names); err != nil {
		return nil, err
	}
	var records []isoRecord
	next := sectorFiles
	for _, name := range names {
		size := len(files[name])
		records = append(records, isoRecord{name: name, sector: next, size: size})
		next += (size + isoSector - 1) / isoSector
	}
	image := make([]byte, next*isoSector)
	for _, r := range records {
		copy(image[r.sector*isoSector:], files[r.name])
	}
	for _, tree := range []isoTree{
		{
			kind: kindPrimary, descriptor: sectorPrimary, root: sectorRoot, tables: sectorPathTables,
			// Linux takes the label as it stands here, and cloud-init looks for one in lower case.
			encode: func(s string) []byte { return []byte(s) }, fill: []byte(" "),
			name: func(s string) []byte { return []byte(isoName(s)) }, extra: rockRidge,
		},
		{
			kind: kindJoliet, descriptor: sectorJoliet, root: sectorJolietRoot, tables: sectorPathTables + 2,
			encode: ucs2, fill: ucs2(" "), name: ucs2, extra: func(isoRecord) []byte { return nil },
		},
	} {
		copy(image[tree.descriptor*isoSector:], tree.volume(label, next))
		for i, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			copy(image[(tree.tables+i)*isoSector:], tree.pathTable(order))
		}
		directory := tree.directory(records)
		if len(directory) > isoSector {
			return nil, fmt.Errorf("building an ISO image: %d files are too many for its directory", len(files))
		}
		copy(image[tree.root*isoSector:], directory)
	}
	copy(image[sectorTerminator*isoSector:], "\xffCD001\x01")
	return image, nil
}

// volume is the tree's volume descriptor (ECMA-119 8.4 and 8.5).
func (t isoTree) volume(label string, sectors int) []byte {
	d := make([]byte, isoSector)
	text := func(from, to int, s string) {
		field := d[from:to]
		for i := range field {
			field[i] = t.fill[i%len(t.fill)]
		}
		copy(field, t.encode(s))
	}
	d[0], d[6] = t.kind, 1
	copy(d[1:], "CD001")
	text(8, 40, "")
	text(40, 72, label)
	both32(d[80:], sectors)
	if t.kind == kindJoliet {
		copy(d[88:], "%/E") // UCS-2 level 3
	}
	both16(d[120:], 1)
	both16(d[124:], 1)
	both16(d[128:], isoSector)
	both32(d[132:], pathTable)
	binary.LittleEndian.PutUint32(d[140:], uint32(t.tables))
	binary.BigEndian.PutUint32(d[148:], uint32(t.tables+1))
	// In its descriptor the root has no system use area.
	copy(d[156:190], isoTree{extra: func(isoRecord) []byte { return nil }}.record(t.self()))
	text(190, 813, "")
	for _, at := range []int{813, 830, 847, 864} {
		copy(d[at:], "0000000000000000") // no time, and an offset from UTC of 0
	}
	d[881] = 1
	return d
}

func (t isoTree) pathTable(order binary.ByteOrder) []byte {
	p := make([]byte, pathTable)
	p[0] = 1
	order.PutUint32(p[2:], uint32(t.root))
	order.PutUint16(p[6:], 1)
	return p
}

func (t isoTree) self() isoRecord { return isoRecord{self: true, sector: t.root, size: isoSector} }

// directory is the root directory. Its records are sorted by their names in this tree.
func (t isoTree) directory(files []isoRecord) []byte {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b isoRecord) int { return strings.Compare(string(t.name(a.name)), string(t.name(b.name))) })
	parent := t.self()
	parent.self, parent.parent = false, true
	var dir []byte
	for _, r := range append([]isoRecord{t.self(), parent}, files...) {
		dir = append(dir, t.record(r)...)
	}
	return dir
}

// record is a directory record (ECMA-119 9.1).
func (t isoTree) record(r isoRecord) []byte {
	var name []byte
	switch {
	case r.self:
		name = []byte{0}
	case r.parent:
		name = []byte{1}
	default:
		name = t.name(r.name)
	}
	b := make([]byte, 33, 255)
	both32(b[2:], r.sector)
	both32(b[10:], r.size)
	copy(b[18:25], isoEpoch)
	if r.isDir() {
		b[25] = 2
	}
	both16(b[28:], 1)
	b[32] = byte(len(name))
	b = append(b, name...)
	if len(name)%2 == 0 {
		b = append(b, 0)
	}
	b = append(b, t.extra(r)...)
	if len(b)%2 != 0 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	return b
}

// isoEpoch is the time of every file: the first of January 1980, UTC.
var isoEpoch = []byte{80, 1, 1, 0, 0, 0, 0}

// rockRidge is the system use area of a record: the true name, and that only root may read it (SUSP 1.12, RRIP 1.12).
func rockRidge(r isoRecord) []byte {
	var b []byte
	if r.self {
		b = append(b, 'S', 'P', 7, 1, 0xbe, 0xef, 0)
	}
	mode, links := 0o100400, 1
	if r.isDir() {
		mode, links = 0o040500, 2
	}
	px := make([]byte, 36)
	copy(px, []byte{'P', 'X', 36, 1})
	both32(px[4:], mode)
	both32(px[12:], links) // user and group stay 0
	b = append(b, px...)
	if !r.isDir() {
		b = append(b, 'N', 'M', byte(5+len(r.name)), 1, 0)
		b = append(b, r.name...)
	}
	if r.self {
		const id = "RRIP_1991A"
		b = append(b, 'E', 'R', byte(8+len(id)), 1, byte(len(id)), 0, 0, 1)
		b = append(b, id...)
	}
	return b
}

// isoName is a name as plain ISO 9660 has it: upper case, one dot, a version.
func isoName(name string) string {
	base, ext, _ := strings.Cut(name, ".")
	plain := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' {
				return r
			}
			return '_'
		}, strings.ToUpper(s))
	}
	return plain(base) + "." + plain(ext) + ";1"
}

func checkISONames(names []string) error {
	seen := map[string]bool{}
	for _, name := range names {
		simple := name != "" && name[0] != '.' && len(name) <= maxName && strings.IndexFunc(name, func(r rune) bool {
			return !(r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune("._-", r))
		}) < 0
		if !simple || seen[isoName(name)] {
			return fmt.Errorf("building an ISO image: file name %q is not simple, or too like another", name)
		}
		seen[isoName(name)] = true
	}
	return nil
}

func ucs2(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.BigEndian.AppendUint16(b, u)
	}
	return b
}

// both16 and both32 write a number in both byte orders, little-endian first.
func both16(b []byte, n int) {
	binary.LittleEndian.PutUint16(b, uint16(n))
	binary.BigEndian.PutUint16(b[2:], uint16(n))
}

func both32(b []byte, n int) {
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.BigEndian.PutUint32(b[4:], uint32(n))
}
