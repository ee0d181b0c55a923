package main

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

// origins tells for each setting where its value comes from, in words for people.
type origins map[string]string

// loadConfig puts the configuration together: flags win over the file, the file over the defaults. An empty file name
// means fallback, which need not exist. All that is wrong in the file is told at once, each with its line.
func loadConfig(file, fallback string, flags *pflag.FlagSet) (Config, origins, error) {
	conf, from := defaults(), origins{}
	name := file
	if name == "" {
		name = fallback
	}
	b, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && file == "":
	case err != nil:
		return conf, nil, fmt.Errorf("reading the configuration: %w", err)
	default:
		if err := readFile(name, b, &conf, from); err != nil {
			return conf, nil, err
		}
	}
	for _, s := range settings(&conf) {
		flag := flags.Lookup(s.name)
		if flag == nil || !flag.Changed {
			continue
		}
		if err := copyValue(s.value, flag.Value); err != nil {
			return conf, nil, fmt.Errorf("flag --%s: %w", s.name, err)
		}
		from[s.name] = "flag"
	}
	return conf, from, conf.check()
}

func copyValue(to, from pflag.Value) error {
	if l, ok := from.(pflag.SliceValue); ok {
		return to.(pflag.SliceValue).Replace(l.GetSlice())
	}
	return to.Set(from.String())
}

func readFile(name string, b []byte, conf *Config, from origins) error {
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
	for _, s := range settings(conf) {
		table[s.name] = s.value
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
			fault(key, "unknown key %q%s", key.Value, suggestion(key.Value, conf))
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
func suggestion(key string, conf *Config) string {
	plain := func(s string) string {
		return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "").Replace(s))
	}
	for _, s := range settings(conf) {
		a, b := plain(key), plain(s.name)
		if a == b || len(a) > 3 && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a)) {
			return fmt.Sprintf(": did you mean %q?", s.name)
		}
	}
	return "; `virtlet config` lists the known ones"
}

// printConfig prints the configuration as a file that can be read back.
func printConfig(w io.Writer, conf Config, from origins) error {
	top := &yaml.Node{Kind: yaml.MappingNode}
	for _, s := range settings(&conf) {
		key := &yaml.Node{Kind: yaml.ScalarNode, Value: s.name}
		val := &yaml.Node{Kind: yaml.ScalarNode, Value: s.value.String()}
		switch v := s.value.(type) {
		case *listValue:
			val = &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
			for _, item := range v.GetSlice() {
				val.Content = append(val.Content, textNode(item))
			}
		case value:
			if v.kind != kindBool {
				val = textNode(v.get())
			}
		}
		val.LineComment = "default"
		if origin := from[s.name]; origin != "" {
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
