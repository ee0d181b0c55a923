package supervisor

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/virtlet/virtlet/netns/cni"
	"github.com/virtlet/virtlet/sandbox/wrapper"
)

// keepingNetwork notes which attachments a GC was told to keep.
type keepingNetwork struct {
	stubNetwork
	kept *[]string
}

func (n keepingNetwork) GC(_ context.Context, keep []cni.Attachment) error {
	for _, a := range keep {
		*n.kept = append(*n.kept, a.PodID)
	}
	return nil
}

// A database from a backup knows nothing of the VMs that were made after it: what runs is not garbage.
func TestCollectGarbage(t *testing.T) {
	var kept []string
	pod, id := newID(), newID()
	s, store := newTestSupervisor(t, keepingNetwork{kept: &kept}, nil, nil)
	dirs := []string{s.cfg.vmRunDir(id), s.cfg.vmDir(id)}
	for _, dir := range dirs {
		if err := makeMarkedDir(dir, markerFile{Store: store.ID(), VM: id, Pod: pod}); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dirs[0]) // its path is too long for a socket's address
	shim, err := net.Listen("unix", filepath.Base(wrapper.ControlSocket(dirs[0])))
	if err != nil {
		t.Fatal(err)
	}
	go answerStatus(shim)

	s.collectGarbage(t.Context())
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("of a VM that runs: %v", err)
		}
	}
	if !slices.Contains(kept, pod) {
		t.Error("the network of a VM that runs is given back")
	}

	_ = shim.Close()
	kept = nil
	s.collectGarbage(t.Context())
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left, though nothing runs there", dir)
		}
	}
	if slices.Contains(kept, pod) {
		t.Error("the network of a removed leftover is kept")
	}
}

// answerStatus is all of a vmwrapper that Query needs.
func answerStatus(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 4096))
		_, _ = conn.Write([]byte(`{"status":{"wrapperPID":1}}` + "\n"))
		_ = conn.Close()
	}
}

func TestStatsOfAVMThatIsJustEnding(t *testing.T) {
	s, _ := newTestSupervisor(t, stubNetwork{}, []Pod{{ID: newID(), State: PodReady}}, nil)
	v := newVM(s.allPods()[0], VM{ID: newID(), State: VMRunning})
	s.addVM(v)
	st, err := s.Stats(t.Context(), v.id())
	if err != nil || st.Cgroup != nil {
		t.Errorf("got %+v, %v", st.Cgroup, err)
	}
}
