package cri

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Whatever is logged, at the most talkative level, of calls that carry secrets and fail.
func TestSecretsStayOutOfTheLog(t *testing.T) {
	b := newBench(t)
	pod := b.addPod()
	path, _ := b.pull(t, "disk.img", "content")
	b.machines.fail = errors.New("surprise")
	secret := map[string]string{"VirtletCloudInitUserData": "#cloud-config\npassword: sesame"}

	run, create := kubeletPod(), kubeletContainer(pod.ID, path)
	run.Config.Annotations, create.Config.Annotations, create.Config.Image.Annotations = secret, secret, secret
	create.Config.Envs = []*runtimeapi.KeyValue{{Key: "PASSWORD", Value: []byte("sesame")}}
	_, err1 := b.runtime.RunPodSandbox(t.Context(), run)
	_, err2 := b.runtime.CreateContainer(t.Context(), create)
	_, err3 := b.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: "http://user:sesame@127.0.0.1:1/x?signature=sesame", Annotations: secret},
		Auth:  &runtimeapi.AuthConfig{Username: "user", Password: "sesame", Auth: "sesame", RegistryToken: "sesame"}, SandboxConfig: run.GetConfig(),
	})
	run.Config.Annotations = map[string]string{"VirtletSSHKeys": "sesame", "VirtletVCPUCount": "sesame"} // malformed
	_, err4 := b.runtime.RunPodSandbox(t.Context(), run)
	if status.Code(err4) != codes.InvalidArgument {
		t.Errorf("malformed annotations: %v", err4)
	}
	for _, err := range []error{err1, err2, err3, err4} {
		if err == nil || strings.Contains(err.Error(), "sesame") {
			t.Errorf("error %v", err)
		}
	}
	log := b.log.String()
	if strings.Contains(log, "sesame") {
		t.Errorf("the log holds a secret:\n%s", log)
	}
	for _, want := range []string{"RunPodSandbox", "CreateContainer", "PullImage", "shop/web-0", "surprise"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}

// What a container is made of is told to whoever lists it, and lies in the records.
func TestSecretsStayOutOfTheStatus(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("disk")) }))
	defer srv.Close()
	b := newBench(t)
	pod, name := b.addPod(), strings.Replace(srv.URL, "http://", "http://user:sesame@", 1)+"/disk"
	if _, err := b.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}); err != nil {
		t.Fatal(err)
	}
	create := kubeletContainer(pod.ID, name)
	create.Config.Image.UserSpecifiedImage = "" // crictl's way
	if _, err := b.runtime.CreateContainer(t.Context(), create); err != nil {
		t.Fatal(err)
	}
	list, err := b.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if got := list.GetContainers()[0].GetImage().GetImage(); err != nil || got != srv.URL+"/disk:latest" {
		t.Errorf("image %q, %v", got, err)
	}
}
