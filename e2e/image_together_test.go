package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/e2e/rig"
)

// TestImageTogether is pulls, removals and creations of machines at the same time.
func TestImageTogether(t *testing.T) {
	r := hostWithoutImages(t, rig.Options{})
	for _, c := range []struct {
		name string
		run  func(*testing.T, *rig.Rig)
	}{
		{"twenty_pulls_fetch_once", twentyPulls},
		{"names_of_one_content", manyNames},
		{"a_cancelled_pull", cancelledPull},
		{"one_of_two_pulls_is_cancelled", oneOfTwoCancelled},
		{"pulls_while_images_are_collected", pullsWhileCollecting},
		{"removed_while_machines_are_created", removedWhileCreating},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.run(t, r)
			removeAll(t, r)
		})
	}
	wantEmptyStore(t, r)
}

func twentyPulls(t *testing.T, r *rig.Rig) {
	const callers = 20
	s := &source{content: rawDisk(1, 8<<20), etag: `"v1"`}
	var calling sync.WaitGroup
	calling.Add(callers)
	s.before = func(int, int, int) bool {
		calling.Wait()
		return true
	}
	name := offer(t, r, s) + "/disk.img"
	errs := make(chan error, callers)
	for range callers {
		go func() {
			calling.Done()
			id, err := r.Pull(within(t, patience), name)
			if err == nil && id != digestOf(s.content) {
				err = fmt.Errorf("got %s", id)
			}
			errs <- err
		}()
	}
	for range callers {
		ok(t, <-errs)
	}
	if _, whole, sent := s.account(); whole != 1 || sent != int64(len(s.content)) {
		t.Errorf("sent %d times, %d bytes of %d", whole, sent, len(s.content))
	}
	wantContent(t, r, s.content)
}

func manyNames(t *testing.T, r *rig.Rig) {
	disk := rawDisk(2, 8<<20)
	at := offer(t, r, &source{content: disk, etag: `"v1"`})
	reg := registryOn(t, r)
	img := containerDisk(t, disk)
	digest, _ := layerOf(t, img)
	names := []string{at + "/a:latest", at + "/b:latest"}
	for _, repo := range []string{"one", "two", "three"} {
		reg.Push(t, repo, "v1", img)
		names = append(names, reg.Host+"/"+repo+":v1")
	}
	errs := make(chan error, len(names))
	for _, name := range names {
		go func() {
			_, err := r.Pull(within(t, patience), name)
			errs <- err
		}()
	}
	for range names {
		ok(t, <-errs)
	}
	list := imageList(t, r)
	if len(list) != 1 || list[0].Id != digestOf(disk) || !hasTags(list[0], names...) {
		t.Errorf("stored are %v, want one image of %q", list, names)
	}
	fetched := 0
	for _, req := range reg.Requests() {
		if req.Method == http.MethodGet && strings.HasSuffix(req.Path, "/blobs/"+digest) {
			fetched++
		}
	}
	if fetched > 1 {
		t.Errorf("the registry's layer was fetched %d times", fetched)
	}
	ok(t, removeImage(t.Context(), r, names[0]))
	for _, name := range names {
		if left := imageOf(t, r, name); left != nil {
			t.Errorf("after the removal by one name, %s is still %s", name, left.Id)
		}
	}
}

// heldSource has sent half of its content when reached is closed, and goes on when release is called.
func heldSource(t *testing.T, seed byte, etag string) (s *source, reached chan struct{}, release func()) {
	t.Helper()
	s = &source{content: rawDisk(seed, 8<<20), etag: etag}
	reached, goOn := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(reached) })
	release = sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(release)
	s.before = func(n, _, at int) bool {
		if n == 1 && at >= len(s.content)/2 {
			once()
			<-goOn
		}
		return true
	}
	return s, reached, release
}

func cancelledPull(t *testing.T, r *rig.Rig) {
	for _, etag := range []string{"", `"v1"`} {
		s, reached, release := heldSource(t, 3, etag)
		name := offer(t, r, s) + "/disk.img"
		ctx, cancel := context.WithCancel(within(t, patience))
		ended := make(chan error, 1)
		go func() {
			_, err := r.Pull(ctx, name)
			ended <- err
		}()
		<-reached
		before := cancelled(r)
		cancel()
		if err := <-ended; status.Code(err) != codes.Canceled {
			t.Errorf("a cancelled pull: %v", err)
		}
		awaitThat(t, "the daemon ends the pull", func() bool { return cancelled(r) > before })
		if img := imageOf(t, r, name); img != nil {
			t.Errorf("there is an image: %v", img)
		}
		if left := parts(t, r); len(left) != 2*len(etag)/4 {
			t.Errorf("with the ETag %s there stay %q", etag, left)
		}
		release()
		pulled(t, r, name, s.content)
		if _, whole, _ := s.account(); etag != "" && whole != 1 {
			t.Error("the next pull began anew")
		}
		ok(t, removeImage(t.Context(), r, name))
	}
}

func oneOfTwoCancelled(t *testing.T, r *rig.Rig) {
	s, reached, release := heldSource(t, 4, "")
	name := offer(t, r, s) + "/disk.img"
	pull := func(ctx context.Context) chan error {
		ended := make(chan error, 1)
		go func() {
			_, err := r.Pull(ctx, name)
			ended <- err
		}()
		return ended
	}
	ctx, cancel := context.WithCancel(within(t, patience))
	first := pull(ctx)
	<-reached
	second := pull(within(t, patience))
	// Requests begin in the order in which they come: once this one is answered, the second pull is under way, too.
	imageList(t, r)
	cancel()
	if err := <-first; status.Code(err) != codes.Canceled {
		t.Errorf("the cancelled pull: %v", err)
	}
	release()
	ok(t, <-second)
	wantContent(t, r, s.content)
}

// awaitThat waits for something that gives no event.
func awaitThat(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx := within(t, patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("never seen: %s", what)
		case <-tick.C:
		}
	}
}

// collectOnce does what kubelet's garbage collection does when the disk is full: all images go that no container has.
func collectOnce(ctx context.Context, r *rig.Rig) (removed int, err error) {
	list, err := r.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return 0, err
	}
	containers, err := r.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return 0, err
	}
	used := map[string]bool{}
	for _, c := range containers.Containers {
		used[c.ImageId] = true
	}
	for _, img := range list.Images {
		if used[img.Id] || img.Pinned {
			continue
		}
		if err := removeImage(ctx, r, img.Id); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

func pullsWhileCollecting(t *testing.T, r *rig.Rig) {
	const rounds = 6
	mux := http.NewServeMux()
	reg := registryOn(t, r)
	at := offer(t, r, mux)
	disks, names := map[string][]byte{}, []string{}
	add := func(name string, disk []byte) {
		disks[name] = disk
		names = append(names, name)
	}
	for i := range byte(2) {
		path, repo := fmt.Sprintf("/%d", i), fmt.Sprintf("vm-%d", i)
		add(at+path, rawDisk(10+i, 4<<20))
		mux.Handle(path, &source{content: disks[at+path], etag: `"v1"`})
		disk := rawDisk(20+i, 4<<20)
		reg.Push(t, repo, "v1", containerDisk(t, disk))
		add(reg.Host+"/"+repo+":v1", disk)
	}
	// A machine's image is not collected, and its content stays.
	used := rawDisk(30, 1<<20)
	mux.Handle("/used", &source{content: used})
	pulled(t, r, at+"/used", used)
	ctx := within(t, patience)
	p := must[*rig.Pod](t)(r.RunPod(ctx, r.PodConfig("user")))
	ok(t, p.Create(ctx, rig.ContainerConfig("vm", at+"/used")))

	done := make(chan struct{})
	collected := make(chan int, 1)
	go func() {
		total := 0
		defer func() { collected <- total }()
		for {
			n, err := collectOnce(ctx, r)
			total += n
			if err != nil {
				t.Errorf("collecting: %v", err)
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	var pulls sync.WaitGroup
	for _, name := range names {
		for range 2 {
			pulls.Go(func() {
				for range rounds {
					if id, err := r.Pull(ctx, name); err != nil || id != digestOf(disks[name]) {
						t.Errorf("pulling %s gave %s, %v", name, id, err)
					}
				}
			})
		}
	}
	pulls.Wait()
	close(done)
	if n := <-collected; n == 0 {
		t.Error("nothing was collected, so the test proves nothing")
	} else {
		t.Logf("%d pulls, %d collected", 2*rounds*len(names), n)
	}
	wantContent(t, r, used)
	ok(t, p.Remove(ctx))
	for name, disk := range disks {
		pulled(t, r, name, disk)
	}
}

func removedWhileCreating(t *testing.T, r *rig.Rig) {
	ctx := within(t, 5*time.Minute)
	name := must[string](t)(r.CopyImage(testImage, "test.qcow2"))
	var pods []*rig.Pod
	var id string
	for _, step := range []string{"create.recorded", "create.overlay", "create.seed", "create.created"} {
		id = must[string](t)(r.Pull(ctx, name))
		p := must[*rig.Pod](t)(r.RunPod(ctx, r.PodConfig(strings.ReplaceAll(step, ".", "-"))))
		pods = append(pods, p)
		arm(t, r, step, "wait")
		created := make(chan error, 1)
		go func() { created <- p.Create(ctx, rig.ContainerConfig("vm", name)) }()
		awaitThat(t, step, func() bool { return reached(r, step) })
		ok(t, removeImage(ctx, r, name))
		if img := imageOf(t, r, name); img != nil {
			t.Errorf("%s: removed, and yet there: %v", step, img)
		}
		ok(t, os.WriteFile(filepath.Join(filepath.Dir(r.FaultFile()), step+".go"), nil, 0o600))
		if err := <-created; err != nil {
			t.Fatalf("creating a machine while its image was removed at %s: %v", step, err)
		}
	}
	if list := imageList(t, r); len(list) != 0 {
		t.Errorf("listed are %v", list)
	}
	last := pods[len(pods)-1]
	ok(t, last.Start(ctx))
	_, err := last.Facts(ctx)
	ok(t, err)
	for i, p := range pods {
		if _, err := os.Stat(contentPath(r, id)); err != nil {
			t.Errorf("%d machines are left, and their disk is gone: %v", len(pods)-i, err)
		}
		ok(t, p.Remove(ctx))
	}
	awaitThat(t, "the content goes with its last machine", func() bool {
		_, err := os.Stat(contentPath(r, id))
		return err != nil
	})
}
