package qmp

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// schema is QEMU's own description of its commands and events, by name.
type schema map[string]schemaEntity

type schemaEntity struct {
	Name    string         `json:"name"`
	Kind    string         `json:"meta-type"`
	Arg     string         `json:"arg-type"`
	Ret     string         `json:"ret-type"`
	Element string         `json:"element-type"`
	Values  []string       `json:"values"`
	Members []schemaMember `json:"members"`
}

type schemaMember struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

func querySchema(t *testing.T) schema {
	t.Helper()
	q := startQEMU(t, "-machine", "none")
	var entities []schemaEntity
	must(t, q.Execute(t.Context(), "query-qmp-schema", nil, &entities))
	s := make(schema, len(entities))
	for _, e := range entities {
		s[e.Name] = e
	}
	return s
}

// argument is the type of a command's or event's arguments, result that of a command's reply (or of its elements).
func (s schema) argument(name string) schemaEntity { return s[s[name].Arg] }

func (s schema) result(name string) schemaEntity {
	ret := s[s[name].Ret]
	if ret.Kind == "array" {
		ret = s[ret.Element]
	}
	return ret
}

// member is the type of a member.
func (s schema) member(of schemaEntity, name string) schemaEntity {
	i := slices.IndexFunc(of.Members, func(m schemaMember) bool { return m.Name == name })
	if i < 0 {
		return schemaEntity{}
	}
	return s[of.Members[i].Type]
}

// constants gives the values of all string constants in this package's source, by the name of their type.
func constants(t *testing.T) map[string][]string {
	t.Helper()
	files, err := os.ReadDir(".")
	must(t, err)
	found := make(map[string][]string)
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, 0)
		must(t, err)
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			kind, isName := spec.Type.(*ast.Ident)
			value, isLiteral := spec.Values[0].(*ast.BasicLit)
			if !isName || !isLiteral || value.Kind != token.STRING {
				return true
			}
			s, err := strconv.Unquote(value.Value)
			must(t, err)
			found[kind.Name] = append(found[kind.Name], s)
			return true
		})
	}
	return found
}

// TestQEMUSchema holds every constant and every member that we name to QEMU's introspection.
func TestQEMUSchema(t *testing.T) {
	s := querySchema(t)
	ours := constants(t)

	t.Run("events", func(t *testing.T) {
		if len(ours["EventName"]) < 10 {
			t.Fatalf("found only %d event names in the source", len(ours["EventName"]))
		}
		for _, name := range ours["EventName"] {
			if name != string(EventOverflow) && s[name].Kind != "event" {
				t.Errorf("QEMU has no event %s", name)
			}
		}
		if s[string(EventOverflow)].Kind == "event" {
			t.Errorf("QEMU has an event named as our marker, %s", EventOverflow)
		}
	})
	actions := s.argument("set-action")
	for kind, theirs := range map[string]schemaEntity{
		"RunState":         s.member(s.result("query-status"), "status"),
		"ShutdownReason":   s.member(s.argument("SHUTDOWN"), "reason"),
		"ShutdownAction":   s.member(actions, "shutdown"),
		"RebootAction":     s.member(actions, "reboot"),
		"PanicAction":      s.member(actions, "panic"),
		"WatchdogAction":   s.member(actions, "watchdog"),
		"GuestPanicAction": s.member(s.argument("GUEST_PANICKED"), "action"),
		"IOOperation":      s.member(s.argument("BLOCK_IO_ERROR"), "operation"),
		"BlockErrorAction": s.member(s.argument("BLOCK_IO_ERROR"), "action"),
	} {
		t.Run(kind, func(t *testing.T) {
			if theirs.Kind != "enum" || len(ours[kind]) == 0 {
				t.Fatalf("QEMU's type is %q, and %d constants of ours were found", theirs.Kind, len(ours[kind]))
			}
			for _, value := range ours[kind] {
				if !slices.Contains(theirs.Values, value) {
					t.Errorf("QEMU has no value %s; it has %v", value, theirs.Values)
				}
			}
			for _, value := range theirs.Values {
				if !slices.Contains(ours[kind], value) {
					t.Logf("QEMU's value %s has no constant", value)
				}
			}
			delete(ours, kind)
		})
	}
	// No enum may be added without a line above. Error classes are not in the schema: TestQEMUErrors has them.
	delete(ours, "EventName")
	delete(ours, "ErrorClass")
	if len(ours) > 0 {
		t.Errorf("constants that nothing checks: %v", ours)
	}

	for _, tt := range []struct {
		ours   any
		theirs schemaEntity
	}{
		{StatusInfo{}, s.result("query-status")},
		{CPUInfo{}, s.result("query-cpus-fast")},
		{BlockStats{}, s.result("query-blockstats")},
		{BlockCounters{}, s.member(s.result("query-blockstats"), "stats")},
		{BalloonInfo{}, s.result("query-balloon")},
		{KVMInfo{}, s.result("query-kvm")},
		{UUIDInfo{}, s.result("query-uuid")},
		{Actions{}, s.argument("set-action")},
		{Shutdown{}, s.argument("SHUTDOWN")},
		{Reset{}, s.argument("RESET")},
		{GuestPanicked{}, s.argument("GUEST_PANICKED")},
		{GuestPanicked{}, s.argument("GUEST_CRASHLOADED")},
		{BlockIOError{}, s.argument("BLOCK_IO_ERROR")},
		{Watchdog{}, s.argument("WATCHDOG")},
	} {
		kind := reflect.TypeOf(tt.ours)
		t.Run("members_of_"+kind.Name(), func(t *testing.T) {
			for i := range kind.NumField() {
				name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
				if !slices.ContainsFunc(tt.theirs.Members, func(m schemaMember) bool { return m.Name == name }) {
					t.Errorf("QEMU has no member %q for %s; it has %v", name, kind.Field(i).Name, tt.theirs.Members)
				}
			}
		})
	}
	for _, command := range []string{"qmp_capabilities", "cont", "stop", "system_powerdown", "system_wakeup", "system_reset", "quit"} {
		if s[command].Kind != "command" {
			t.Errorf("QEMU has no command %s", command)
		}
	}
}
