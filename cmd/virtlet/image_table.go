package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// shortID is how many digits of an id a table shows.
const shortID = 12

// imageTable shows a line for each name of an image.
func imageTable(w io.Writer, images []listed) error {
	type row struct{ name, rest string }
	var rows []row
	for _, img := range images {
		pinned := ""
		if img.Pinned {
			pinned = "pinned"
		}
		id := strings.TrimPrefix(img.ID, "sha256:")
		rest := strings.Join([]string{
			id[:min(shortID, len(id))], img.Format, bytesText(img.Size), bytesText(img.VirtualSize), img.PulledAt.Local().Format(time.DateTime), pinned,
		}, "\t")
		names := img.Tags
		if len(names) == 0 {
			names = img.Digests
		}
		for _, name := range names {
			rows = append(rows, row{name, rest})
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.rest, b.rest)) })
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tID\tFORMAT\tSIZE\tDISK\tPULLED\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\n", r.name, r.rest)
	}
	return t.Flush()
}
