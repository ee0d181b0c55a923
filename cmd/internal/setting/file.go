// Package setting reads a program's configuration from one table: each setting is a key of a strict YAML file and a flag of
// the same name, with a value that knows what is allowed. Flags win over the file, and the file over the defaults. All that
// is wrong in the file is told at once, each fault with its line, and the outcome can be printed as a file again.
package setting

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// Setting is one key of the configuration file and the flag of the same name. Its value is bound to where it is kept.
type Setting struct {
	Name, Help string
	Value      pflag.Value
}

// Key makes a setting.
func Key(name, help string, value pflag.Value) Setting { return Setting{name, help, value} }

// Table is all there is to set in a program.
type Table struct {
	Program  string
	Settings []Setting
}

// Origins tells for each setting where its value comes from, in words for people.
type Origins map[string]string

// Bind makes a flag of each setting.
func (t Table) Bind(flags *pflag.FlagSet) {
	for _, s := range t.Settings {
		flag := flags.VarPF(s.Value, s.Name, "", s.Help)
		if s.Value.Type() == kindBool {
			flag.NoOptDefVal = "true" // --flag alone
		}
	}
}

// Load sets what the file and the flags say. An empty file name means fallback, which need not exist.
func (t Table) Load(file, fallback string, flags *pflag.FlagSet) (Origins, error) {
	from := Origins{}
	name := file
	if name == "" {
		name = fallback
	}
	b, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && file == "":
	case err != nil:
		return nil, fmt.Errorf("reading the configuration: %w", err)
	default:
		if err := t.readFile(name, b, from); err != nil {
			return nil, err
		}
	}
	for _, s := range t.Settings {
		flag := flags.Lookup(s.Name)
		if flag == nil || !flag.Changed {
			continue
		}
		if err := Copy(s.Value, flag.Value); err != nil {
			return nil, fmt.Errorf("flag --%s: %w", s.Name, err)
		}
		from[s.Name] = "flag"
	}
	return from, nil
}

// Copy sets a value to what another of the same kind holds.
func Copy(to, from pflag.Value) error {
	if l, ok := from.(pflag.SliceValue); ok {
		return to.(pflag.SliceValue).Replace(l.GetSlice())
	}
	return to.Set(from.String())
}

func (t Table) readFile(name string, b []byte, from Origins) error {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // nothing but comments
	} else if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: more than one YAML document, or rubbish after the first", name)
	}
	top := doc.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return nil
	}
	if top.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: expected lines of the form `key: value`", name, top.Line)
	}

	table := map[string]pflag.Value{}
	for _, s := range t.Settings {
		table[s.Name] = s.Value
	}
	var faults []error
	fault := func(n *yaml.Node, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s:%d: %s", name, n.Line, fmt.Sprintf(format, args...)))
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, val := top.Content[i], top.Content[i+1]
		setting, known := table[key.Value]
		switch {
		case !known:
			fault(key, "unknown key %q%s", key.Value, t.suggestion(key.Value))
		case from[key.Value] != "":
			fault(key, "key %q stands there twice (%s)", key.Value, from[key.Value])
		default:
			if err := setNode(setting, val); err != nil {
				fault(val, "%s: %v", key.Value, err)
			}
			from[key.Value] = fmt.Sprintf("%s:%d", name, key.Line)
		}
	}
	return errors.Join(faults...)
}

func setNode(v pflag.Value, n *yaml.Node) error {
	l, isList := v.(*listValue)
	switch {
	case n.Kind == yaml.SequenceNode && isList:
		var items []string
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				return errors.New("expected a list of texts")
			}
			items = append(items, item.Value)
		}
		return l.Replace(items)
	case isList:
		return errors.New("expected a list: [one, two], or one `- item` a line")
	case n.Kind != yaml.ScalarNode:
		return errors.New("expected a single value")
	case n.Tag == "!!null":
		return errors.New("has no value; remove the line to keep the default")
	}
	return v.Set(n.Value)
}

// suggestion names the known key that was probably meant.
func (t Table) suggestion(key string) string {
	plain := func(s string) string {
		return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "").Replace(s))
	}
	for _, s := range t.Settings {
		a, b := plain(key), plain(s.Name)
		if a == b || len(a) > 3 && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a)) {
			return fmt.Sprintf(": did you mean %q?", s.Name)
		}
	}
	return fmt.Sprintf("; `%s config` lists the known ones", t.Program)
}

// Print prints the configuration as a file that can be read back.
func (t Table) Print(w io.Writer, from Origins) error {
	top := &yaml.Node{Kind: yaml.MappingNode}
	for _, s := range t.Settings {
		key := &yaml.Node{Kind: yaml.ScalarNode, Value: s.Name}
		val := &yaml.Node{Kind: yaml.ScalarNode, Value: s.Value.String()}
		switch v := s.Value.(type) {
		case *listValue:
			val = &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
			for _, item := range v.GetSlice() {
				val.Content = append(val.Content, textNode(item))
			}
		case value:
			if v.kind != kindBool && v.kind != kindNumber {
				val = textNode(v.get())
			}
		}
		val.LineComment = "default"
		if origin := from[s.Name]; origin != "" {
			val.LineComment = origin
		}
		top.Content = append(top.Content, key, val)
	}
	enc := yaml.NewEncoder(w)
	if err := enc.Encode(top); err != nil {
		return fmt.Errorf("printing the configuration: %w", err)
	}
	return enc.Close()
}

// textNode is quoted where YAML would take the text for something else.
func textNode(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }
