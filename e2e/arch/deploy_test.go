package arch

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/virtlet/virtlet/sandbox/domain"
)

// TestExampleConfig holds the example configurations to their programs: every key stands there, in a comment, with its default.
func TestExampleConfig(t *testing.T) {
	for _, name := range []string{"virtlet", "criproxy"} {
		t.Run(name, func(t *testing.T) { checkExample(t, name) })
	}
}

func checkExample(t *testing.T, name string) {
	program := filepath.Join(t.TempDir(), name)
	build := exec.Command("go", "build", "-o", program, "./cmd/"+name)
	build.Dir = top
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	effective := func(config []byte) map[string]any {
		t.Helper()
		file := filepath.Join(t.TempDir(), name+".yaml")
		if err := os.WriteFile(file, config, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "config", "--config", file)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr.String())
		}
		values := map[string]any{}
		if err := yaml.Unmarshal(out, &values); err != nil {
			t.Fatal(err)
		}
		return values
	}
	asShipped, err := os.ReadFile(top + "/deploy/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	defaults := effective(asShipped)
	if shown := effective(regexp.MustCompile(`(?m)^#([a-z])`).ReplaceAll(asShipped, []byte("$1"))); !reflect.DeepEqual(shown, defaults) {
		t.Errorf("with the comments taken away:\n%v\nthe defaults:\n%v", shown, defaults)
	}
	for key := range defaults {
		if !bytes.Contains(asShipped, []byte("\n#"+key+":")) {
			t.Errorf("the key %s does not stand there", key)
		}
	}
}

// TestUnitKeepsHostsMounts: in a mount namespace of its own the daemon would pin network namespaces that nobody else
// sees, and CNI plugins and people's `ip netns` would fail.
func TestUnitKeepsHostsMounts(t *testing.T) {
	unit, err := os.ReadFile(top + "/deploy/virtlet.service")
	if err != nil {
		t.Fatal(err)
	}
	makesNamespace := regexp.MustCompile(`^(Private(Tmp|Devices|Mounts|Network|Users|IPC)|Protect(System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc|Hostname|Clock)|ProcSubset|` +
		`(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec|BindReadOnly|Bind)Paths|TemporaryFileSystem|RootDirectory|RootImage|MountFlags|MountImages|MountAPIVFS|DynamicUser|LoadCredential|MemoryDenyWriteExecute)=`)
	want := map[string]bool{"Type=notify": false, "KillMode=process": false, "RuntimeDirectoryPreserve=yes": false, "Delegate=yes": false, "Restart=on-failure": false}
	for line := range strings.Lines(string(unit)) {
		line = strings.TrimSpace(line)
		if makesNamespace.MatchString(line) {
			t.Errorf("%s must not stand there", line)
		}
		if _, ok := want[line]; ok {
			want[line] = true
		}
	}
	for line, found := range want {
		if !found {
			t.Errorf("%s is missing: a restart would take the VMs along, or leave them unfound", line)
		}
	}
}

// TestExamplesParse: the manifests are YAML and the CNI example JSON, of the kinds that their names say.
func TestExamplesParse(t *testing.T) {
	for file, kind := range map[string]string{"runtimeclass.yaml": "RuntimeClass", "examples/pod.yaml": "Pod"} {
		var doc struct {
			Kind    string
			Handler string
			Spec    struct {
				RuntimeClassName string `yaml:"runtimeClassName"`
			}
		}
		b, err := os.ReadFile(filepath.Join(top, "deploy", file))
		if err == nil {
			err = yaml.Unmarshal(b, &doc)
		}
		if err != nil || doc.Kind != kind || doc.Handler+doc.Spec.RuntimeClassName != "virtlet" {
			t.Errorf("%s: %+v, %v", file, doc, err)
		}
	}
	var conf struct {
		Plugins []struct{ Type string }
	}
	b, err := os.ReadFile(top + "/deploy/cni/10-virtlet.conflist")
	if err == nil {
		err = json.Unmarshal(b, &conf)
	}
	if err != nil || len(conf.Plugins) == 0 || conf.Plugins[0].Type != "bridge" {
		t.Errorf("the CNI example: %+v, %v", conf, err)
	}
}

// TestImageServer holds the manifest to what it promises, and its arguments and the recipe's to the program.
func TestImageServer(t *testing.T) {
	type securityContext struct {
		RunAsNonRoot             bool  `yaml:"runAsNonRoot"`
		RunAsUser                int   `yaml:"runAsUser"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
	}
	var manifest struct {
		Kind string
		Spec struct {
			Template struct {
				Spec struct {
					SecurityContext securityContext `yaml:"securityContext"`
					Containers      []struct {
						Args            []string
						SecurityContext securityContext `yaml:"securityContext"`
						VolumeMounts    []struct {
							MountPath string `yaml:"mountPath"`
							ReadOnly  bool   `yaml:"readOnly"`
						} `yaml:"volumeMounts"`
					}
				}
			}
		}
	}
	f, err := os.Open(top + "/deploy/image-server.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for dec := yaml.NewDecoder(f); manifest.Kind != "Deployment"; {
		if err := dec.Decode(&manifest); err != nil {
			t.Fatal(err)
		}
	}
	pod := manifest.Spec.Template.Spec
	if len(pod.Containers) != 1 {
		t.Fatalf("%d containers", len(pod.Containers))
	}
	c := pod.Containers[0]
	if !pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.RunAsUser == 0 || c.SecurityContext.AllowPrivilegeEscalation == nil || *c.SecurityContext.AllowPrivilegeEscalation ||
		!c.SecurityContext.ReadOnlyRootFilesystem || !reflect.DeepEqual(c.SecurityContext.Capabilities.Drop, []string{"ALL"}) {
		t.Errorf("it has more rights than it needs: %+v", pod)
	}
	recipe, err := os.ReadFile(top + "/deploy/image-server.Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	var entrypoint []string
	if m := regexp.MustCompile(`(?m)^ENTRYPOINT (.*)$`).FindSubmatch(recipe); m == nil || json.Unmarshal(m[1], &entrypoint) != nil || len(entrypoint) < 3 {
		t.Fatalf("no entry point in\n%s", recipe)
	}
	if entrypoint[1] != "--dir" || len(c.VolumeMounts) != 1 || c.VolumeMounts[0].MountPath != entrypoint[2] || !c.VolumeMounts[0].ReadOnly {
		t.Errorf("the recipe serves %q, the volume is at %+v", entrypoint, c.VolumeMounts)
	}
	none := filepath.Join(t.TempDir(), "none")
	cmd := exec.Command("go", append(append([]string{"run", "./cmd/virtlet-images"}, append(entrypoint[1:], c.Args...)...), "--dir", none)...)
	cmd.Dir = top
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "opening the directory of images: open "+none) {
		t.Errorf("the program does not take these arguments: %v\n%s", err, out)
	}
}

// TestRuntimeClassOverhead: what the pod's cgroup is given beside the limits is enough for the VMs that the manifest's
// comment names, or the pod's cgroup would be tighter than the VM's.
func TestRuntimeClassOverhead(t *testing.T) {
	var class struct {
		Overhead struct {
			PodFixed map[string]string `yaml:"podFixed"`
		}
	}
	b, err := os.ReadFile(filepath.Join(top, "deploy", "runtimeclass.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &class); err != nil {
		t.Fatal(err)
	}
	fixed, err := resource.ParseQuantity(class.Overhead.PodFixed["memory"])
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []domain.Domain{
		{Accel: domain.KVM, CPUs: 8, MemoryBytes: 24 << 30},
		{Accel: domain.TCG, CPUs: 4, MemoryBytes: 4 << 30},
	} {
		if need := domain.Overhead(d); fixed.Value() < need {
			t.Errorf("%s with %d vCPUs and %d GiB needs %d MiB, podFixed gives %d", d.Accel, d.CPUs, d.MemoryBytes>>30, need>>20, fixed.Value()>>20)
		}
	}
}
