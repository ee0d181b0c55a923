package supervisor

import (
	"regexp"
	"strings"
	"testing"
)

func TestIDs(t *testing.T) {
	a, b := newID(), newID()
	if a == b || !isID(a) || !isID(b) {
		t.Errorf("ids %q and %q", a, b)
	}
	for _, bad := range []string{"", "abc", strings.Repeat("g", 64), strings.Repeat("A", 64), a + "0", "../" + a[3:]} {
		if isID(bad) {
			t.Errorf("%q passes for an id", bad)
		}
	}
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}$`)
	if u := machineUUID(a); !uuid.MatchString(u) || u != machineUUID(a) {
		t.Errorf("machine UUID %q", u)
	}
}

func TestMarker(t *testing.T) {
	dir := t.TempDir() + "/vm"
	want := markerFile{Store: "s", VM: "v", Pod: "p", CgroupParent: "/kubepods"}
	if err := makeMarkedDir(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := readMarker(dir)
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := readMarker(t.TempDir()); err == nil {
		t.Error("an unmarked directory has a marker")
	}
}
