package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virtlet/virtlet/e2e/rig"
)

var updateDocs = flag.Bool("update", false, "write the golden files instead of comparing with them")

// mustPass are critest's specs that run no container, as a focus for ginkgo, which has a prefix of its own before their
// names. Their number is what the pinned critest has of them.
var (
	mustPass      = regexp.MustCompile(`\[k8s\.io\] (Runtime info|PodSandbox runtime should support basic operations|Idempotence (StopPodSandbox|RemovePodSandbox|RemoveContainer|RemoveImage|StopContainer should not return an error if not found))`)
	mustPassCount = 12
)

// withImages are those that TestImageCritest runs, with disk images under the names that they pull.
var (
	withImages      = regexp.MustCompile(`\[k8s\.io\] Image (Manager|Consistency|Identifier Consistency)`)
	withImagesCount = 14
)

// specClass is a class of specs that are not run.
type specClass struct {
	name, reason string
	specs        *regexp.Regexp
}

// bytesOfUpstream is the spec that no other bytes than upstream's can pass.
var bytesOfUpstream = regexp.MustCompile(`Image Manager public image with digest should be pulled and removed`)

// skipped are the classes of critest's other specs, and why a runtime that boots disk images does not run them. A spec
// belongs to the first class that fits.
var skipped = []specClass{
	{
		"Benchmarks",
		"critest runs them only when asked to; see `make bench`",
		regexp.MustCompile(`benchmark about`),
	},
	{
		"Features that Status denies",
		"user namespaces, recursive read-only mounts and the policy for supplemental groups are for processes of the host's kernel; Status says that they are not there, so critest would skip these specs by itself",
		regexp.MustCompile(`UserNamespaces| recursive readonly mount|SupplementalGroupsPolicy`),
	},
	{
		"Profiles and labels of the host",
		"AppArmor, SELinux and seccomp confine processes of the host's kernel, not a guest's; a pod that asks for a Localhost profile is refused with InvalidArgument",
		regexp.MustCompile(`AppArmor|SELinux|SeccompProfilePath`),
	},
	{
		"Shares in the host's kernel",
		"a VM has its own kernel: host namespaces, propagated mounts, sysctls and privileged containers are refused with InvalidArgument",
		regexp.MustCompile(`HostPID|HostIpc is true|HostNetwork is true|host network|Mount Propagation|sysctls|Privileged is true`),
	},
	{
		"Bytes of a public registry",
		"it pulls by a digest that is that of a container image in a public registry; `TestImageRegistry` pulls by digest",
		bytesOfUpstream,
	},
	{
		"Containers' processes",
		"they start programs of a busybox, nginx or pause image and look at them by exec, log or port; a disk image boots its own init instead",
		regexp.MustCompile(`^\[k8s\.io\] (Container|Multiple Containers|Networking|Streaming|Security Context|Idempotence StopContainer)`),
	},
}

// spec is one of critest's.
type spec struct {
	name, state, failure string
	took                 time.Duration
}

// TestPodCritest runs the CRI project's own validation: every spec that needs no container image passes, and every
// other one belongs to a class whose reason docs/conformance.md tells.
func TestPodCritest(t *testing.T) {
	r, _ := host(t, rig.Options{})
	tools := must[rig.Tools](t)(rig.BuildTools(within(t, 10*time.Minute)))

	t.Run("what_is_skipped_has_a_reason", func(t *testing.T) {
		all := critest(t, r, tools, r.Endpoint(), "--ginkgo.dry-run")
		passing, images, classes := classify(t, all)
		if len(passing) != mustPassCount || len(images) != withImagesCount {
			t.Errorf("%d specs are to pass, not %d: %q; %d with images, not %d: %q", len(passing), mustPassCount, passing, len(images), withImagesCount, images)
		}
		list := describe(passing, images, classes)
		t.Logf("of %d specs:\n%s", len(all), list)
		checkDocs(t, list)
	})
	for _, handler := range []string{"virtlet", ""} {
		t.Run(fmt.Sprintf("handler_%q", handler), func(t *testing.T) {
			wantPassed(t, critest(t, r, tools, r.Endpoint(), "--ginkgo.focus="+mustPass.String(), "--runtime-handler="+handler), mustPassCount)
			if err := r.Leftovers(); err != nil {
				t.Error(err)
			}
		})
	}
}

// wantPassed checks that so many specs passed, and none failed.
func wantPassed(t *testing.T, specs []spec, count int) {
	t.Helper()
	passed := 0
	for _, s := range specs {
		switch {
		case s.state == "passed":
			passed++
			t.Logf("passed in %v: %s", s.took.Round(time.Millisecond), s.name)
		case s.failure != "":
			t.Errorf("%s: %s: %s", s.state, s.name, s.failure)
		}
	}
	if passed != count {
		t.Errorf("%d specs passed, not %d", passed, count)
	}
}

// critest runs it against a CRI socket and returns its specs from its report. Whether they passed is for the caller to say.
func critest(t *testing.T, r *rig.Rig, tools rig.Tools, endpoint string, args ...string) []spec {
	t.Helper()
	dir := t.TempDir()
	report := filepath.Join(dir, "report.json")
	cmd := r.Command(within(t, 10*time.Minute), tools.Critest, append(args,
		"--ginkgo.json-report="+report, "--ginkgo.no-color", "--ginkgo.timeout=9m",
		"--runtime-endpoint="+endpoint, "--runtime-service-timeout=5m", "--config="+filepath.Join(dir, "none.yaml"))...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	ok(t, r.Start(cmd))
	ended := cmd.Wait()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("critest (%v) wrote:\n%s", ended, out.String())
		}
	})

	var suites []struct {
		SpecReports []struct {
			LeafNodeType, LeafNodeText, State string
			ContainerHierarchyTexts           []string
			RunTime                           time.Duration
			Failure                           struct{ Message string }
		}
	}
	b := must[[]byte](t)(os.ReadFile(report))
	if err := json.Unmarshal(b, &suites); err != nil || len(suites) != 1 {
		t.Fatalf("critest's report has %d suites: %v", len(suites), err)
	}
	var specs []spec
	for _, s := range suites[0].SpecReports {
		if s.LeafNodeType != "It" {
			if s.State != "passed" {
				t.Errorf("%s %s: %s", s.LeafNodeType, s.State, s.Failure.Message)
			}
			continue
		}
		specs = append(specs, spec{
			name:  strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " "),
			state: s.State, failure: s.Failure.Message, took: s.RunTime,
		})
	}
	slices.SortFunc(specs, func(a, b spec) int { return cmp.Compare(a.name, b.name) })
	return specs
}

// classify returns the specs that are to pass, those that are to pass with images, and those of each class of skipped.
func classify(t *testing.T, all []spec) (passing, images []string, classes [][]string) {
	t.Helper()
	classes = make([][]string, len(skipped))
	for _, s := range all {
		if mustPass.MatchString(s.name) {
			passing = append(passing, s.name)
			continue
		}
		i := slices.IndexFunc(skipped, func(c specClass) bool { return c.specs.MatchString(s.name) })
		switch {
		case i >= 0:
			classes[i] = append(classes[i], s.name)
		case withImages.MatchString(s.name):
			images = append(images, s.name)
		default:
			t.Errorf("neither run nor known why not: %s", s.name)
		}
	}
	return passing, images, classes
}

// describe lists the specs as docs/conformance.md does.
func describe(passing, images []string, classes [][]string) string {
	var b strings.Builder
	list := func(specs []string) {
		for _, s := range specs {
			fmt.Fprintf(&b, "- %s\n", strings.TrimPrefix(s, "[k8s.io] "))
		}
	}
	fmt.Fprintf(&b, "### Passing: %d\n\n", len(passing))
	list(passing)
	fmt.Fprintf(&b, "\n### Passing with disk images: %d\n\nThese pull containerDisks from a local registry, which a `hosts.toml` puts in the place of the public ones.\n\n", len(images))
	list(images)
	for i, c := range skipped {
		fmt.Fprintf(&b, "\n### %s: %d\n\nNot run: %s.\n\n", c.name, len(classes[i]), c.reason)
		list(classes[i])
	}
	return b.String()
}

const conformanceDoc = "../docs/conformance.md"

// checkDocs holds the manual to the list. Hosts with SELinux register more specs: they are not in the manual.
func checkDocs(t *testing.T, list string) {
	t.Helper()
	if strings.Contains(list, "\n- SELinux") {
		t.Log("this host has SELinux: the list in docs/conformance.md is not compared")
		return
	}
	const begin, end = "<!-- critest: begin -->\n", "<!-- critest: end -->\n"
	doc := string(must[[]byte](t)(os.ReadFile(conformanceDoc)))
	head, rest, found := strings.Cut(doc, begin)
	old, tail, closed := strings.Cut(rest, end)
	switch {
	case !found || !closed:
		t.Errorf("%s lacks its markers %q and %q", conformanceDoc, begin, end)
	case *updateDocs:
		ok(t, os.WriteFile(conformanceDoc, []byte(head+begin+list+end+tail), 0o600))
	case old != list:
		t.Errorf("%s is out of date; run the test with -update", conformanceDoc)
	}
}
