package e2e

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/virtlet/virtlet/e2e/rig"
)

// Words by which kubelet knows a fault. They come with code Unknown.
const (
	unavailable = "RegistryUnavailable: "
	notAsSigned = "SignatureValidationFailed: "
)

// brokenPull is a pull from a source that has a fault: it recovers and brings the content, or it fails with a code and
// words.
type brokenPull struct {
	name  string
	image string

	content []byte

	code  codes.Code
	words []string
	// mend makes a source whole of which a part is kept; whole is then to be had.
	mend  func()
	whole []byte
	// after checks what the source saw.
	after func(*testing.T)
}

// recovers is a pull that brings the content all the same.
func recovers(name, image string, content []byte) brokenPull {
	return brokenPull{name: name, image: image, content: content}
}

// fails is a pull that fails. A code of Unknown has one of kubelet's words as its first.
func fails(name, image string, code codes.Code, words ...string) brokenPull {
	return brokenPull{name: name, image: image, code: code, words: words}
}

// then checks what the source saw.
func (f brokenPull) then(after func(*testing.T)) brokenPull {
	f.after = after
	return f
}

// keeps is for a pull that fails and leaves a part.
func (f brokenPull) keeps(whole []byte, mend func()) brokenPull {
	f.whole, f.mend = whole, mend
	return f
}

// check judges how the pull ended.
func (f brokenPull) check(t *testing.T, r *rig.Rig, id string, err error) {
	t.Helper()
	if f.content != nil {
		if err != nil || id != digestOf(f.content) {
			t.Fatalf("the pull gave %q, %v", id, err)
		}
		wantContent(t, r, f.content)
	} else {
		refused(t, err, f.code, f.words...)
		if f.code == codes.Unknown && !strings.HasPrefix(status.Convert(err).Message(), f.words[0]) {
			t.Errorf("kubelet does not know this: %v", err)
		}
		if img := imageOf(t, r, f.image); img != nil {
			t.Errorf("there is an image of that name: %v", img)
		}
	}
	if f.after != nil {
		f.after(t)
	}
}

// TestImageFaults is a pull through CRI from every kind of broken source: it recovers, or it fails in words that kubelet
// or a person understands, and leaves nothing.
func TestImageFaults(t *testing.T) {
	r := hostWithoutImages(t, rig.Options{Settings: map[string]any{"image-stall-timeout": "2s", "image-max-pulls": 100}})
	all := append(faultyServers(t, r), faultyRegistries(t, r)...)
	// All at the same time, since most of it is pauses between attempts.
	type result struct {
		id  string
		err error
	}
	results := make([]chan result, len(all))
	for i, f := range all {
		results[i] = make(chan result, 1)
		go func() {
			id, err := r.Pull(within(t, patience), f.image)
			results[i] <- result{id, err}
		}()
	}
	for i, f := range all {
		t.Run(f.name, func(t *testing.T) {
			got := <-results[i]
			f.check(t, r, got.id, got.err)
		})
	}
	// A part with an ETag or a digest stays for an hour, for the next attempt.
	kept := slices.DeleteFunc(all, func(f brokenPull) bool { return f.mend == nil })
	if left := parts(t, r); len(left) != 2*len(kept) {
		t.Errorf("%d parts are to be kept, and there are %q", len(kept), left)
	}
	for _, f := range kept {
		t.Run(f.name+"/mended", func(t *testing.T) {
			f.mend()
			pulled(t, r, f.image, f.whole)
		})
	}
	wantEmptyStore(t, r)
}
