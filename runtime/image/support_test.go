package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const magic = "QFI\xfb"

// fakeDisk makes content that the tests' inspector takes for a disk.
func fakeDisk(seed string, size int) []byte {
	return append([]byte(magic), bytes.Repeat([]byte(seed), size/len(seed)+1)...)[:size]
}

func idOf(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// magicInspector takes everything that begins with the magic bytes for a disk.
type magicInspector struct{}

func (magicInspector) Inspect(_ context.Context, path string) (Info, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Info{}, err
	}
	if !bytes.HasPrefix(content, []byte(magic)) {
		return Info{}, fmt.Errorf("%w: no magic", ErrRefused)
	}
	return Info{Format: "qcow2", VirtualSize: int64(len(content)) * 10}, nil
}

// memStore keeps records in memory and fails on demand.
type memStore struct {
	mu     sync.Mutex
	images map[string]Image
	failAt int // the number of the update, from 1, that fails; 0 for none
	calls  int
	bad    error
}

var errStore = errors.New("store failed")

func (m *memStore) UpdateImages(put []Image, remove []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.calls++; m.calls == m.failAt {
		return errStore
	}
	if m.images == nil {
		m.images = map[string]Image{}
	}
	for _, id := range remove {
		delete(m.images, id)
	}
	for _, img := range put {
		m.images[img.ID] = img.clone()
	}
	return nil
}

func (m *memStore) LoadImages() ([]Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	images := []Image{}
	for _, img := range m.images {
		images = append(images, img.clone())
	}
	return images, m.bad
}

func (m *memStore) ids() []string {
	images, _ := m.LoadImages()
	var ids []string
	for _, img := range images {
		ids = append(ids, img.ID)
	}
	slices.Sort(ids)
	return ids
}

// testService is a Service with the means to look behind it.
type testService struct {
	*Service
	t     *testing.T
	store *memStore
	inUse sync.Map // ids
}

func newService(t *testing.T, change ...func(*Config)) *testService {
	t.Helper()
	return openService(t, t.TempDir(), &memStore{}, change...)
}

func openService(t *testing.T, root string, store *memStore, change ...func(*Config)) *testService {
	t.Helper()
	ts := &testService{t: t, store: store}
	cfg := Config{Root: root, Store: store, Retry: Retry{Attempts: 3, Delay: time.Millisecond, MaxDelay: 50 * time.Millisecond}, Inspector: magicInspector{}, InUse: func(id string) bool {
		_, used := ts.inUse.Load(id)
		return used
	}}
	for _, f := range change {
		f(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	ts.Service = s
	return ts
}

func (ts *testService) pull(name string) Image {
	ts.t.Helper()
	img, err := ts.Pull(ts.t.Context(), name, nil)
	if err != nil {
		ts.t.Fatal(err)
	}
	return img
}

// files lists the store's files, relative to its root.
func (ts *testService) files() []string {
	ts.t.Helper()
	var files []string
	err := filepath.WalkDir(ts.cfg.Root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, ts.cfg.Root+"/"))
		}
		return err
	})
	if err != nil {
		ts.t.Fatal(err)
	}
	return files
}

// wantNothing checks that neither file nor record nor flight is left.
func (ts *testService) wantNothing() {
	ts.t.Helper()
	ts.wantContents()
	if flights, transfers := len(ts.flights.calls), len(ts.transfers.calls); flights+transfers != 0 {
		ts.t.Errorf("%d flights and %d transfers are left", flights, transfers)
	}
	if pulls, meters := len(ts.board.pulls), len(ts.board.meters); pulls+meters != 0 {
		ts.t.Errorf("%d pulls and %d meters are left on the board", pulls, meters)
	}
	if len(ts.held) != 0 {
		ts.t.Errorf("contents are held: %v", ts.held)
	}
}

// wantContents checks that exactly these contents are stored and recorded.
func (ts *testService) wantContents(ids ...string) {
	ts.t.Helper()
	slices.Sort(ids)
	var files []string
	for _, id := range ids {
		files = append(files, "sha256/"+strings.TrimPrefix(id, "sha256:"))
	}
	diff(ts.t, "files", files, ts.files())
	diff(ts.t, "records", ids, ts.store.ids())
}

// server serves disks by path and counts the requests.
type server struct {
	*httptest.Server
	mux      *http.ServeMux
	requests atomic.Int32
}

func newServer(t *testing.T) *server {
	s := &server{mux: http.NewServeMux()}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		s.mux.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) host() string { return strings.TrimPrefix(s.URL, "http://") }

// image is how the names of this server's images begin.
func (s *server) image() string { return prefix + s.host() }

func (s *server) serve(path string, content []byte) {
	s.mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func diff[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: -want +got:\n%s", what, d)
	}
}

// wantError checks the kind of an error, and that its text tells what a person needs.
func wantError(t *testing.T, err, kind error, texts ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error is %v, not %v", err, kind)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in: %v", text, err)
		}
	}
}
