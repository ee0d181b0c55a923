package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// users looks whether somebody has a number in the range of the VMs' users: an account, a group, or a container's range.
func (p prober) users(context.Context) []checkItem {
	const name = "vm users"
	r := p.conf.VMUsers
	for _, file := range []string{"passwd", "group", "subuid", "subgid"} {
		who, err := inRange(p.etc+"/"+file, uint64(r.First), uint64(r.Last), strings.HasPrefix(file, "sub"))
		if err != nil {
			return []checkItem{warning(name, err.Error(), "see the detail")}
		}
		if who != "" {
			return []checkItem{warning(name, fmt.Sprintf("%d-%d holds numbers of %q in %s/%s, who may then signal and trace QEMU processes",
				r.First, r.Last, who, p.etc, file), "set `vm-users` to a range that is nobody's")}
		}
	}
	return []checkItem{ok(name, "%d-%d are nobody else's", r.First, r.Last)}
}

// inRange finds the first line of a file of accounts that touches the range, and gives its name. A line holds one number,
// or, with ranges, the first of some and how many (subuid(5)).
func inRange(file string, first, last uint64, ranges bool) (string, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) < 3 {
			continue
		}
		at, count := 2, uint64(1)
		if ranges {
			at = 1
			if count, err = strconv.ParseUint(fields[2], 10, 32); err != nil || count == 0 {
				continue
			}
		}
		from, err := strconv.ParseUint(fields[at], 10, 32)
		if err == nil && from <= last && from+count-1 >= first {
			return fields[0], nil
		}
	}
	return "", lines.Err()
}
