package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/virtlet/virtlet/e2e/registrytest"
	"github.com/virtlet/virtlet/e2e/rig"
)

// realRegistry is Debian's docker-registry in the rig's host network, by TLS, for one user.
type realRegistry struct {
	rig            *rig.Rig
	host           string
	user, password string
	ca             *authority
}

func newRealRegistry(t *testing.T, r *rig.Rig) *realRegistry {
	t.Helper()
	ctx := within(t, 10*time.Minute)
	program := must[string](t)(registrytest.Unpack(ctx))
	reg := &realRegistry{rig: r, host: "127.0.0.1:5000", user: "puller", password: "s3cret-of-the-test", ca: newAuthority(t)}
	dir := t.TempDir()
	hash := must[[]byte](t)(bcrypt.GenerateFromPassword([]byte(reg.password), bcrypt.MinCost))
	ok(t, os.WriteFile(filepath.Join(dir, "htpasswd"), fmt.Appendf(nil, "%s:%s\n", reg.user, hash), 0o600))
	cert, key := reg.ca.issue(t, "registry.rig.test")
	config := must[[]byte](t)(json.Marshal(map[string]any{ // which is YAML
		"version": "0.1",
		"storage": map[string]any{"filesystem": map[string]any{"rootdirectory": filepath.Join(dir, "data")}},
		"http":    map[string]any{"addr": reg.host, "secret": "of the test", "tls": map[string]any{"certificate": cert, "key": key}},
		"auth":    map[string]any{"htpasswd": map[string]any{"realm": "rig", "path": filepath.Join(dir, "htpasswd")}},
	}))
	path := filepath.Join(dir, "config.yml")
	ok(t, os.WriteFile(path, config, 0o600))
	s := must[*rig.Session](t)(r.Converse(t.Context(), program, "serve", path))
	t.Cleanup(s.Kill)
	must[string](t)(s.Await(ctx, "listening on "+reg.host))
	return reg
}

// push does so by oras: blobs, then the manifest, and returns the manifest's digest.
func (reg *realRegistry) push(ctx context.Context, t *testing.T, name, mediaType string, manifest []byte, blobs ...[]byte) string {
	t.Helper()
	repo := must[*remote.Repository](t)(remote.NewRepository(reg.host + "/" + name))
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: reg.ca.pool(), MinVersion: tls.VersionTLS12},
		DialContext:     func(ctx context.Context, _, addr string) (net.Conn, error) { return reg.rig.Dial(ctx, addr) },
	}
	defer transport.CloseIdleConnections()
	repo.Client = &auth.Client{
		Client:     &http.Client{Transport: transport},
		Credential: auth.StaticCredential(reg.host, auth.Credential{Username: reg.user, Password: reg.password}),
	}
	for _, b := range blobs {
		ok(t, repo.Push(ctx, ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(len(b))}, bytes.NewReader(b)))
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	_, tag, _ := strings.Cut(name, ":")
	ok(t, repo.PushReference(ctx, desc, bytes.NewReader(manifest), tag))
	return desc.Digest.String()
}

// pushContainerDisk pushes one of that disk for this machine.
func (reg *realRegistry) pushContainerDisk(ctx context.Context, t *testing.T, name string, disk []byte) (digest string) {
	t.Helper()
	img := containerDisk(t, disk)
	_, layer := layerOf(t, img)
	config := must[[]byte](t)(img.RawConfigFile())
	return reg.push(ctx, t, name, ocispec.MediaTypeImageManifest, must[[]byte](t)(img.RawManifest()), config, layer)
}

// pushArtifact pushes an OCI artifact whose layer is the disk itself.
func (reg *realRegistry) pushArtifact(ctx context.Context, t *testing.T, name string, disk []byte) (digestOfManifest string) {
	t.Helper()
	manifest := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.virtlet.disk.v1", Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{{MediaType: "application/x-qemu-disk", Digest: digest.FromBytes(disk), Size: int64(len(disk))}},
	}
	manifest.SchemaVersion = 2
	return reg.push(ctx, t, name, ocispec.MediaTypeImageManifest, must[[]byte](t)(json.Marshal(manifest)), ocispec.DescriptorEmptyJSON.Data, disk)
}

// hosts writes a registry's hosts.toml.
func hosts(t *testing.T, r *rig.Rig, registry, text string) {
	t.Helper()
	dir := filepath.Join(r.HostsDir(), registry)
	ok(t, os.MkdirAll(dir, 0o755))
	ok(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600))
}

// TestImageRegistry pulls a containerDisk and an artifact from a real registry with TLS and a password, by CRI as
// kubelet does it, and boots it.
func TestImageRegistry(t *testing.T) {
	docker := filepath.Join(t.TempDir(), "docker.json")
	ok(t, os.WriteFile(docker, []byte("{}"), 0o600))
	r := hostWithoutImages(t, rig.Options{Settings: map[string]any{"image-docker-config": docker}})
	reg := newRealRegistry(t, r)
	ctx := within(t, 5*time.Minute)
	disk, small := must[[]byte](t)(os.ReadFile(testImage)), rawDisk(1, 1<<20)
	name := reg.host + "/vms/test"
	digest := reg.pushContainerDisk(ctx, t, "vms/test:v1", disk)
	artifact := reg.pushArtifact(ctx, t, "vms/artifact:v1", small)

	pull := func(name string, auth *runtimeapi.AuthConfig) (string, error) {
		resp, err := r.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}, Auth: auth})
		return resp.GetImageRef(), err
	}
	good := &runtimeapi.AuthConfig{Username: reg.user, Password: reg.password}
	refusedPull := func(t *testing.T, name string, auth *runtimeapi.AuthConfig, code codes.Code, words ...string) {
		t.Helper()
		_, err := pull(name, auth)
		refused(t, err, code, words...)
		wantImages(ctx, t, r)
	}

	t.Run("an_unknown_CA", func(t *testing.T) {
		hosts(t, r, reg.host, fmt.Sprintf("server = 'https://%s'\n", reg.host)) // else plain http, as of loopback
		refusedPull(t, name+":v1", good, codes.Unknown, unavailable, "certificate signed by unknown authority")
	})
	hosts(t, r, reg.host, fmt.Sprintf("server = 'https://%s'\nca = '%s'\n", reg.host, reg.ca.file))
	t.Run("no_password", func(t *testing.T) {
		refusedPull(t, name+":v1", nil, codes.Unauthenticated, "imagePullSecret")
	})
	t.Run("a_wrong_password", func(t *testing.T) {
		refusedPull(t, name+":v1", &runtimeapi.AuthConfig{Username: reg.user, Password: "wr0ng"}, codes.Unauthenticated, "401", "check the credential for "+reg.host)
	})
	t.Run("no_such_tag", func(t *testing.T) {
		refusedPull(t, name+":v2", good, codes.NotFound, "404", "MANIFEST_UNKNOWN")
	})

	t.Run("by_tag_and_digest", func(t *testing.T) {
		if id := must[string](t)(pull(name+":v1", good)); id != digestOf(disk) {
			t.Errorf("got %s, not %s", id, digestOf(disk))
		}
		if id := must[string](t)(pull(name+"@"+digest, good)); id != digestOf(disk) {
			t.Errorf("by digest got %s, not %s", id, digestOf(disk))
		}
		wantImages(ctx, t, r, name)
		img := imageList(t, r)[0]
		if !hasTags(img, name+":v1") || !slices.Equal(img.RepoDigests, []string{name + "@" + digest}) || img.Size != uint64(len(disk)) {
			t.Errorf("listed is %v", img)
		}
		for _, known := range []string{name + ":v1", name + "@" + digest, img.Id} {
			if got := imageOf(t, r, known); got.GetId() != img.Id {
				t.Errorf("as %s it is %v", known, got)
			}
		}
	})
	t.Run("it_boots", func(t *testing.T) {
		p := boot(t, r, "registry", name+":v1")
		st := must[rig.Status](t)(p.Status(ctx))
		if st.ImageId != digestOf(disk) || st.ImageRef != digestOf(disk) || st.Image.Image != name+":v1" {
			t.Errorf("the container's image is %s, %s, %s", st.ImageId, st.ImageRef, st.Image)
		}
		ok(t, removeImage(ctx, r, name+":v1"))
		if img := imageOf(t, r, name+"@"+digest); img != nil {
			t.Errorf("removed by tag, and yet there: %v", img)
		}
		ok(t, p.Remove(ctx))
		awaitThat(t, "the content goes with its machine", func() bool {
			_, err := os.Stat(contentPath(r, digestOf(disk)))
			return err != nil
		})
	})
	t.Run("an_artifact_by_digest", func(t *testing.T) {
		if id := must[string](t)(pull(reg.host+"/vms/artifact@"+artifact, good)); id != digestOf(small) {
			t.Errorf("got %s, not %s", id, digestOf(small))
		}
		wantContent(t, r, small)
		ok(t, removeImage(ctx, r, digestOf(small)))
	})
	t.Run("a_mirror_that_is_down", func(t *testing.T) {
		mirrored := "registry.rig.test/vms/artifact:v1"
		hosts(t, r, "registry.rig.test", fmt.Sprintf(`
server = 'https://registry.rig.test'
[host.'http://127.0.0.1:1']
dial_timeout = '2s'
[host.'https://%s']
ca = '%s'
`, reg.host, reg.ca.file))
		// A pod's credential is for the registry that the name names.
		refusedPull(t, mirrored, good, codes.Unknown, "127.0.0.1:1", "connection refused", reg.host+" wants a user and a password")
		ok(t, os.WriteFile(docker, must[[]byte](t)(json.Marshal(map[string]any{
			"auths": map[string]any{reg.host: map[string]any{"username": reg.user, "password": reg.password}},
		})), 0o600))
		if id := must[string](t)(pull(mirrored, nil)); id != digestOf(small) {
			t.Errorf("got %s, not %s", id, digestOf(small))
		}
		if img := imageList(t, r)[0]; !hasTags(img, mirrored) {
			t.Errorf("listed is %v", img)
		}
	})
	secretFree(t, r, reg.password, "wr0ng")
	wantEmptyStore(t, r)
}
