package main

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/virtlet/virtlet/runtime/annotations"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// value is a setting's value: how it is written, and how it is read and checked.
type value struct {
	kind string
	set  func(string) error
	get  func() string
}

var (
	_ pflag.Value      = value{}
	_ pflag.SliceValue = (*listValue)(nil)
)

// Set, String and Type are pflag's names.
func (v value) Set(s string) error { return v.set(s) }
func (v value) String() string {
	if v.get == nil { // pflag asks a zero value for its text
		return ""
	}
	return v.get()
}
func (v value) Type() string { return v.kind }

func text(to *string, rules ...func(string) error) pflag.Value {
	return value{"text", func(s string) error {
		for _, rule := range rules {
			if err := rule(s); err != nil {
				return err
			}
		}
		*to = s
		return nil
	}, func() string { return *to }}
}

func path(to *string, rules ...func(string) error) pflag.Value {
	v := text(to, append([]func(string) error{absolute}, rules...)...).(value)
	v.kind = "path"
	set := v.set
	v.set = func(s string) error {
		if s != "" {
			s = filepath.Clean(s)
		}
		return set(s)
	}
	return v
}

func choice(to *string, allowed ...string) pflag.Value {
	return value{"choice", func(s string) error {
		for _, a := range allowed {
			if s == a {
				*to = s
				return nil
			}
		}
		return fmt.Errorf("%q is none of %s", s, strings.Join(allowed, ", "))
	}, func() string { return *to }}
}

const kindBool = "bool"

func boolean(to *bool) pflag.Value {
	return value{kindBool, func(s string) error {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		*to = b
		return nil
	}, func() string { return strconv.FormatBool(*to) }}
}

func duration(to *time.Duration) pflag.Value {
	return value{"duration", func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 {
			return fmt.Errorf("%q is not a length of time such as 90s or 2m", s)
		}
		*to = d
		return nil
	}, func() string { return to.String() }}
}

// count reads a whole number from 1 on.
func count(to *int) pflag.Value {
	return value{"number", func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is not a whole number from 1 on", s)
		}
		*to = n
		return nil
	}, func() string { return strconv.Itoa(*to) }}
}

// size reads a Kubernetes quantity of bytes.
func size(to *int64, least int64) pflag.Value {
	return value{"size", func(s string) error {
		n, ok := annotations.Quantity(s, math.MaxInt64)
		if !ok {
			return fmt.Errorf("%q is not a size in bytes such as 512Mi or 64Gi", s)
		}
		if n < least {
			return fmt.Errorf("%q is too small: at least %s", s, resource.NewQuantity(least, resource.BinarySI))
		}
		*to = n
		return nil
	}, func() string { return resource.NewQuantity(*to, resource.BinarySI).String() }}
}

// leastUser is the least number that may be a VM's user: below are the system's own (login.defs(5)).
const leastUser = 1000

// leastUsers is how many there must be: two for a VM, one that looks at images.
const leastUsers = 3

// userRange reads "first-last".
func userRange(to *supervisor.UserRange) pflag.Value {
	return value{"range", func(s string) error {
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
	}, func() string { return fmt.Sprintf("%d-%d", to.First, to.Last) }}
}

// listValue is a list of texts: comma-separated as a flag, which may also be given several times; a sequence in the file.
type listValue struct {
	to      *[]string
	rule    func(string) error
	touched bool
}

func list(to *[]string, rule func(string) error) pflag.Value { return &listValue{to: to, rule: rule} }

// Set takes the place of the default the first time, and adds from then on.
func (l *listValue) Set(s string) error {
	items := strings.Split(s, ",")
	if s == "" && l.rule("") != nil {
		items = nil // a flag with nothing is the empty list
	}
	if l.touched {
		items = append(l.GetSlice(), items...)
	}
	return l.Replace(items)
}

func (l *listValue) String() string {
	if l.to == nil {
		return ""
	}
	return strings.Join(*l.to, ",")
}

func (l *listValue) Type() string { return "list" }

// GetSlice is a part of pflag.SliceValue, as are Replace and Append.
func (l *listValue) GetSlice() []string { return append([]string{}, *l.to...) }

func (l *listValue) Replace(items []string) error {
	seen := map[string]bool{}
	for _, item := range items {
		if err := l.rule(item); err != nil {
			return err
		}
		if seen[item] {
			return fmt.Errorf("%q stands there twice", item)
		}
		seen[item] = true
	}
	if len(items) == 0 && l.rule("") == nil {
		return errors.New("is empty; name at least one")
	}
	*l.to, l.touched = append([]string(nil), items...), true
	return nil
}

func (l *listValue) Append(item string) error { return l.Replace(append(l.GetSlice(), item)) }
