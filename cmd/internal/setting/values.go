package setting

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
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

// New makes a value of a kind of its own.
func New(kind string, set func(string) error, get func() string) pflag.Value {
	return value{kind, set, get}
}

// Text is a text that keeps to rules.
func Text(to *string, rules ...func(string) error) pflag.Value {
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

// Path is an absolute path.
func Path(to *string, rules ...func(string) error) pflag.Value {
	v := Text(to, append([]func(string) error{Absolute}, rules...)...).(value)
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

// Choice is one of several texts.
func Choice(to *string, allowed ...string) pflag.Value {
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

// The kinds that YAML has a form for.
const (
	kindBool   = "bool"
	kindNumber = "number"
)

// Bool is true or false; the flag alone is true.
func Bool(to *bool) pflag.Value {
	return value{kindBool, func(s string) error {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		*to = b
		return nil
	}, func() string { return strconv.FormatBool(*to) }}
}

// Count is a whole number from 1 on.
func Count(to *int) pflag.Value {
	return value{kindNumber, func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is not a whole number from 1 on", s)
		}
		*to = n
		return nil
	}, func() string { return strconv.Itoa(*to) }}
}

// Duration is a length of time above nothing.
func Duration(to *time.Duration) pflag.Value {
	return value{"duration", func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 {
			return fmt.Errorf("%q is not a length of time such as 90s or 2m", s)
		}
		*to = d
		return nil
	}, func() string { return to.String() }}
}

// Absolute is the rule that a path begins at the root.
func Absolute(s string) error {
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%q is not an absolute path", s)
	}
	return nil
}

// maxSocketPath is what fits into the kernel's sockaddr_un, in bytes.
const maxSocketPath = 107

// SocketLength is the rule that a socket's path fits.
func SocketLength(s string) error {
	if len(s) > maxSocketPath {
		return fmt.Errorf("has %d bytes; the kernel takes %d for a socket's path", len(s), maxSocketPath)
	}
	return nil
}

// HandlerName is the rule for runtime handlers; an empty one is the default.
func HandlerName(s string) error {
	if len(s) > 63 || slices.ContainsFunc([]rune(s), func(r rune) bool {
		return r != '-' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	}) {
		return fmt.Errorf("%q is not a handler's name: small letters, digits, hyphens and dots", s)
	}
	return nil
}

// listValue is a list of texts: comma-separated as a flag, which may also be given several times; a sequence in the file.
type listValue struct {
	to      *[]string
	rule    func(string) error
	touched bool
}

// List is a list of texts that keep to a rule.
func List(to *[]string, rule func(string) error) pflag.Value { return &listValue{to: to, rule: rule} }

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
