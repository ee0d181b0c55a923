package netns

import (
	"slices"

	"github.com/vishvananda/netlink"
)

// handle of the kernel's hash table in which a table's filters stand. Its first 12 bits are the table's number.
func (t table) handle() uint32 { return uint32(t) << 20 }

// classifiers are the filters as the kernel takes them, at the ingress of one link and redirecting to another. Tables
// come before what leads to them.
func classifiers(filters []filter, from, to int) []*netlink.U32 {
	attrs := func(f filter) netlink.FilterAttrs {
		return netlink.FilterAttrs{LinkIndex: from, Parent: netlink.MakeHandle(0xffff, 0), Priority: f.priority, Protocol: f.protocol}
	}
	var tables, out []*netlink.U32
	made := map[table]bool{firstTable: true} // the kernel makes it
	for _, f := range filters {
		if !made[f.table] {
			made[f.table] = true
			a := attrs(f)
			a.Handle = f.table.handle()
			tables = append(tables, &netlink.U32{FilterAttrs: a, Divisor: 1})
		}
		u := &netlink.U32{
			FilterAttrs: attrs(f),
			Hash:        f.table.handle(),
			// Terminal: also what came back from another table without a match. Clipped, because netlink sends as many keys
			// as the slice has room for.
			Sel: &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Keys: slices.Clip(f.keys), Nkeys: uint8(len(f.keys))},
		}
		switch f.verdict {
		case pass:
			u.Actions = []netlink.Action{netlink.NewMirredAction(to)}
		case look:
			u.Link = f.next.handle()
		case keep:
		}
		out = append(out, u)
	}
	return append(tables, out...)
}
