package e2e

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/e2e/rig"
)

// registryOn is a registry of plain http in the rig's host network.
func registryOn(t *testing.T, r *rig.Rig) *registrytest.Registry {
	t.Helper()
	l, err := r.Listen("127.0.0.1:0")
	ok(t, err)
	return registrytest.On(t, l, false)
}

// layerOf is the one layer of an image as a registry has it.
func layerOf(t *testing.T, img registrytest.Image) (digest string, content []byte) {
	t.Helper()
	layers, err := img.Layers()
	ok(t, err)
	hash, err := layers[0].Digest()
	ok(t, err)
	blob, err := layers[0].Compressed()
	ok(t, err)
	content, err = io.ReadAll(blob)
	ok(t, err)
	return hash.String(), content
}

// containerDisk is one of that disk for this machine.
func containerDisk(t *testing.T, disk []byte) registrytest.Image {
	t.Helper()
	return registrytest.NewImage(t, runtime.GOARCH, registrytest.Tar(t, "disk/disk.img", string(disk)))
}

// faultyRegistries are registries with one fault each.
func faultyRegistries(t *testing.T, r *rig.Rig) []brokenPull {
	t.Helper()
	reg := registryOn(t, r)
	at := reg.Host + "/"
	answers := map[string]http.Handler{} // by path, in the registry's place
	reg.Before(func(w http.ResponseWriter, req *http.Request) bool {
		h := answers[req.URL.Path]
		if h != nil {
			h.ServeHTTP(w, req)
		}
		return h != nil
	})
	refuse := func(status int, header ...string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
		})
	}
	seed := byte(150)
	// push puts a new disk into a repository of its own, and returns where its layer is.
	push := func(repo string) (disk, layer []byte, blob, digest string) {
		seed++
		disk = rawDisk(seed, 2<<20)
		img := containerDisk(t, disk)
		digest, layer = layerOf(t, img)
		return disk, layer, "/v2/" + repo + "/blobs/" + digest, reg.Push(t, repo, "v1", img)
	}
	var all []brokenPull

	disk, layer, blob, _ := push("tenth")
	tenth := &source{content: layer, before: everyTenth(layer)}
	answers[blob] = tenth
	all = append(all, recovers("registry_drops_at_each_tenth", at+"tenth:v1", disk).then(func(t *testing.T) {
		if ranges, whole, sent := tenth.account(); whole != 1 || len(ranges) < 8 || sent > int64(len(layer))*11/10 {
			t.Errorf("asked for %q, %d bytes sent", ranges, sent)
		}
	}))
	_, layer, blob, _ = push("other")
	answers[blob] = &source{content: rawDisk(1, len(layer))}
	all = append(all, fails("registry_sends_another_blob", at+"other:v1", codes.Unknown, notAsSigned, digestOf(layer)))
	mirrored, layer, wanted, _ := push("mirrored")
	mirror, other := registryOn(t, r), rawDisk(2, len(layer))
	mirror.Push(t, "mirrored", "v1", containerDisk(t, mirrored))
	mirror.Before(func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path == wanted {
			_, _ = w.Write(other)
		}
		return req.URL.Path == wanted
	})
	hosts(t, r, "mirrored.rig.test", fmt.Sprintf("server = 'http://%s'\n[host.'http://%s']\n", reg.Host, mirror.Host))
	all = append(all, recovers("mirror_sends_another_blob", "mirrored.rig.test/mirrored:v1", mirrored))
	_, layer, blob, _ = push("short")
	answers[blob] = &source{content: layer[:len(layer)-1]}
	all = append(all, fails("registry_sends_a_shorter_blob", at+"short:v1", codes.Unknown, notAsSigned, "and should have"))
	_, _, blob, _ = push("gone")
	answers[blob] = refuse(http.StatusNotFound)
	all = append(all, fails("registry_lacks_a_blob", at+"gone:v1", codes.NotFound, "404"))
	_, _, blob, _ = push("blob-loop")
	answers[blob] = refuse(http.StatusTemporaryRedirect, "Location", blob)
	all = append(all, fails("registry_redirects_in_a_loop", at+"blob-loop:v1", codes.Unknown, unavailable, "redirect"))

	_, _, _, digest := push("manifest")
	answers["/v2/manifest/manifests/"+digest] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = w.Write([]byte(`{"schemaVersion":2}`))
	})
	all = append(all, fails("registry_sends_another_manifest", at+"manifest@"+digest, codes.Unknown, notAsSigned, digest))
	all = append(all, fails("registry_lacks_the_tag", at+"manifest:v2", codes.NotFound, "404", "MANIFEST_UNKNOWN"))
	for repo, c := range map[string]struct {
		answer http.Handler
		code   codes.Code
		words  []string
	}{
		"locked":    {refuse(401, "WWW-Authenticate", `Basic realm="test"`), codes.Unauthenticated, []string{"imagePullSecret"}},
		"forbidden": {refuse(403), codes.Unauthenticated, []string{"403"}},
		"busy":      {refuse(429, "Retry-After", "3600"), codes.Unknown, []string{unavailable, "429"}},
		"broken":    {refuse(500), codes.Unknown, []string{unavailable, "500"}},
	} {
		push(repo)
		answers["/v2/"+repo+"/manifests/v1"] = c.answer
		all = append(all, fails("registry_is_"+repo, at+repo+":v1", c.code, c.words...))
	}
	reg.Push(t, "busybox", "v1", registrytest.NewImage(t, runtime.GOARCH, registrytest.Tar(t, "bin/busybox", "#!")))
	all = append(all, fails("registry_has_a_container_image", at+"busybox:v1", codes.FailedPrecondition, "is a container image, not a VM disk"))
	reg.Push(t, "foreign", "v1", registrytest.NewImage(t, "s390x", registrytest.Tar(t, "disk/disk.img", string(disk))))
	return append(all, fails("registry_has_another_platform", at+"foreign:v1", codes.NotFound, "platform"))
}
