package translate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// reader walks a YAML document and collects all that is wrong with it. What it says repeats no value, since any could be
// a secret in the wrong place.
type reader struct {
	path   string
	faults []*fault
}

func (r *reader) fault(n *yaml.Node, format string, args ...any) {
	r.faultAt(n.Line, format, args...)
}

func (r *reader) faultAt(line int, format string, args ...any) {
	r.faults = append(r.faults, &fault{r.path, line, fmt.Sprintf(format, args...)})
}

// yamlFault is how package yaml tells of a syntax error.
var (
	yamlFault  = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)
	yamlQuotes = regexp.MustCompile("['\"`].*['\"`]")
)

// document parses the one document of a file; nil where there is none.
func (r *reader) document(content []byte) *yaml.Node {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(content))
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil // nothing but comments
	}
	if err != nil {
		line, text := 0, "not YAML"
		if m := yamlFault.FindStringSubmatch(err.Error()); m != nil {
			_, _ = fmt.Sscan(m[1], &line)
			text += ": " + yamlQuotes.ReplaceAllString(m[2], "…")
		}
		r.faultAt(line, "%s", text)
		return nil
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		r.faultAt(0, "more than one YAML document, or rubbish after the first; put each into a file of its own")
		return nil
	}
	return doc.Content[0]
}

type fields map[string]func(*yaml.Node)

// mapping hands out the values of a mapping by key. Keys without a value are as if they were not there.
func (r *reader) mapping(n *yaml.Node, known fields) {
	r.pairs(n, func(key, value *yaml.Node) {
		take := known[key.Value]
		if take == nil {
			var names []string
			for name := range known {
				names = append(names, name)
			}
			slices.Sort(names)
			r.fault(key, "unknown key%s; the ones that may stand here are %s", shownKey(key.Value), strings.Join(names, ", "))
			return
		}
		if value.ShortTag() != "!!null" {
			take(value)
		}
	})
}

func (r *reader) pairs(n *yaml.Node, take func(key, value *yaml.Node)) {
	n = resolved(n)
	if n.Kind != yaml.MappingNode {
		r.fault(n, "expected lines of the form `key: value`")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := resolved(n.Content[i]), resolved(n.Content[i+1])
		if key.Kind != yaml.ScalarNode {
			r.fault(key, "expected a name before the colon")
			continue
		}
		if line, twice := seen[key.Value]; twice {
			r.fault(key, "the key%s stands in line %d already; remove one of them", shownKey(key.Value), line)
			continue
		}
		seen[key.Value] = key.Line
		take(key, value)
	}
}

func (r *reader) list(n *yaml.Node, each func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		r.fault(n, "expected a list, one `- item` a line")
		return
	}
	for _, item := range n.Content {
		each(resolved(item))
	}
}

// text takes any single value as it is written.
func (r *reader) text(to *value) func(*yaml.Node) {
	return func(n *yaml.Node) {
		switch n.ShortTag() {
		case "!!str", "!!int", "!!float", "!!bool", "!!timestamp":
			if n.Kind == yaml.ScalarNode {
				*to = value{n.Value, n.Line}
				return
			}
		}
		r.fault(n, "expected a text")
	}
}

func (r *reader) boolean(to *bool) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Decode(to) != nil {
			r.fault(n, "expected true or false")
		}
	}
}

// value is a text and where it stands.
type value struct {
	text string
	line int
}

func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

var keyForm = regexp.MustCompile(`^[A-Za-z_-]{1,24}$`)

func shownKey(key string) string {
	if keyForm.MatchString(key) {
		return fmt.Sprintf(" %q", key)
	}
	return ""
}
