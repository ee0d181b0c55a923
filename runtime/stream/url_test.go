package stream

import (
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestURLs(t *testing.T) {
	g := newGuest(t)
	t.Run("are_right_before_serving", func(t *testing.T) {
		s, err := New(Config{}, g, g)
		must(t, err)
		defer s.Close()
		resp, err := s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "vm1", Stdout: true})
		must(t, err)
		if !strings.HasPrefix(resp.GetUrl(), "http://"+s.Address()+"/attach/") || !strings.HasPrefix(s.Address(), "127.0.0.1:") ||
			strings.HasSuffix(s.Address(), ":0") {
			t.Errorf("URL is %s", resp.GetUrl())
		}
	})
	t.Run("work_once", func(t *testing.T) {
		s := newServer(t, g, Config{})
		resp, err := s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "vm1", Stdout: true})
		must(t, err)
		for _, want := range []int{http.StatusBadRequest, http.StatusNotFound} { // a plain GET uses the token up
			r, err := http.Get(resp.GetUrl())
			must(t, err)
			_ = r.Body.Close()
			if r.StatusCode != want {
				t.Errorf("status %d, not %d", r.StatusCode, want)
			}
		}
	})
	t.Run("bad_requests_are_invalid_arguments", func(t *testing.T) {
		s := newServer(t, g, Config{})
		_, none := s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "vm1"})
		_, noID := s.GetAttach(&runtimeapi.AttachRequest{Stdout: true})
		_, mixed := s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "vm1", Tty: true, Stdout: true, Stderr: true})
		_, noPod := s.GetPortForward(&runtimeapi.PortForwardRequest{})
		for _, err := range []error{none, noID, mixed, noPod} {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("error is %v", err)
			}
		}
	})
}

func TestNew(t *testing.T) {
	g := newGuest(t)
	for _, address := range []string{"0.0.0.0:0", "[::]:0", ":10010", "127.0.0.1", "nonsense"} {
		if s, err := New(Config{Address: address}, g, g); err == nil {
			_ = s.Close()
			t.Errorf("%s was taken", address)
		}
	}
	s := newServer(t, g, Config{})
	if _, err := New(Config{Address: s.Address()}, g, g); err == nil || !strings.Contains(err.Error(), s.Address()) {
		t.Errorf("second listener on %s: %v", s.Address(), err)
	}
	if resp, err := http.Get("http://" + s.Address() + "/exec/unknown1"); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("unknown token: %v %v", resp, err)
	}
}
