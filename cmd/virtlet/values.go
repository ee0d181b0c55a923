package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/virtlet/virtlet/cmd/internal/setting"
	"github.com/virtlet/virtlet/runtime/annotations"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// size reads a Kubernetes quantity of bytes.
func size(to *int64, least int64) pflag.Value {
	return setting.New("size", func(s string) error {
		n, ok := annotations.Quantity(s, math.MaxInt64)
		if !ok {
			return fmt.Errorf("%q is not a size in bytes such as 512Mi or 64Gi", s)
		}
		if n < least {
			return fmt.Errorf("%q is too small: at least %s", s, resource.NewQuantity(least, resource.BinarySI))
		}
		*to = n
		return nil
	}, func() string { return resource.NewQuantity(*to, resource.BinarySI).String() })
}

// socketPath is the path of a unix socket; unix:// before it, as kubelet and crictl write it, will do.
func socketPath(to *string) pflag.Value {
	path := setting.Path(to, setting.SocketLength)
	return setting.New(path.Type(), func(s string) error { return path.Set(strings.TrimPrefix(s, "unix://")) }, path.String)
}

// leastUser is the least number that may be a VM's user: below are the system's own (login.defs(5)).
const leastUser = 1000

// leastUsers is how many there must be: two for a VM, one that looks at images.
const leastUsers = 3

// userRange reads "first-last".
func userRange(to *supervisor.UserRange) pflag.Value {
	return setting.New("range", func(s string) error {
		first, last, _ := strings.Cut(s, "-")
		from, err := strconv.ParseUint(first, 10, 32)
		if err == nil {
			var end uint64
			if end, err = strconv.ParseUint(last, 10, 32); err == nil && (from < leastUser || end < from+leastUsers-1 || end >= math.MaxUint32) {
				err = errors.New("out of range")
			}
			if err == nil {
				to.First, to.Last = uint32(from), uint32(end)
			}
		}
		if err != nil {
			return fmt.Errorf("%q is not a range of at least %d user numbers from %d on, such as 2000000-2065535", s, leastUsers, leastUser)
		}
		return nil
	}, func() string { return fmt.Sprintf("%d-%d", to.First, to.Last) })
}
