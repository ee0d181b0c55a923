package translate

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
)

func rulesFor(names ...string) string {
	text := "translations:\n"
	for _, name := range names {
		text += "- {name: " + name + ", url: h.example/" + name + "}\n"
	}
	return text
}

// watched are rules under watch, with what was logged of them.
type watched struct {
	*Rules
	t    *testing.T
	dir  string
	logs *logtest.Hook
}

func watchDir(t *testing.T, dir string) *watched {
	t.Helper()
	log, logs := logtest.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	r, err := Open(dir, Defaults{}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return &watched{Rules: r, t: t, dir: dir, logs: logs}
}

// wait until the names are found, and no others of those that tests use.
func (w *watched) wait(names ...string) {
	w.t.Helper()
	w.until("rules for "+strings.Join(names, ", "), func() bool {
		var found []string
		for name := range w.now.Load().exact {
			found = append(found, name)
		}
		slices.Sort(found)
		return slices.Equal(found, names)
	})
}

// until polls, as a test may: the package has no event for it.
func (w *watched) until(what string, is func() bool) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("no %s; faults %q", what, w.Faults())
		}
	}
}

func (w *watched) do(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) write(name, text string) {
	w.t.Helper()
	writeFiles(w.t, w.dir, name, text)
}

func TestOpen_follows(t *testing.T) {
	for name, play := range map[string]func(w *watched){
		"file_written": func(w *watched) { w.write("b.yaml", rulesFor("b")); w.wait("a", "b") },
		"file_changed": func(w *watched) { w.write("a.yaml", rulesFor("c")); w.wait("c") },
		"file_removed": func(w *watched) { w.do(os.Remove(filepath.Join(w.dir, "a.yaml"))); w.wait() },
		"file_renamed": func(w *watched) {
			w.do(os.Rename(filepath.Join(w.dir, "a.yaml"), filepath.Join(w.dir, "a.off")))
			w.wait()
		},
		"file_moved_in": func(w *watched) {
			w.write("x.tmp", rulesFor("x"))
			w.do(os.Rename(filepath.Join(w.dir, "x.tmp"), filepath.Join(w.dir, "a.yaml")))
			w.wait("x")
		},
		"linked_file_changed": func(w *watched) {
			elsewhere := filepath.Join(w.t.TempDir(), "rules")
			writeFiles(w.t, elsewhere, "r", rulesFor("b"))
			w.do(os.Symlink(filepath.Join(elsewhere, "r"), filepath.Join(w.dir, "b.yaml")))
			w.wait("a", "b")
			writeFiles(w.t, elsewhere, "r", rulesFor("c"))
			w.wait("a", "c")
		},
		"file_written_in_place": func(w *watched) {
			f, err := os.OpenFile(filepath.Join(w.dir, "a.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
			w.do(err)
			defer f.Close()
			w.until("fault", func() bool { return len(w.Faults()) == 1 })
			w.wait("a") // not nothing
			_, err = f.WriteString(rulesFor("b"))
			w.do(err)
			w.wait("b")
		},
		"directory_removed_and_made_again": func(w *watched) {
			w.do(os.RemoveAll(w.dir))
			w.wait()
			w.write("b.yaml", rulesFor("b"))
			w.wait("b")
		},
		"directory_replaced": func(w *watched) {
			other := w.dir + ".new"
			writeFiles(w.t, other, "n.yaml", rulesFor("n"))
			w.do(os.Rename(w.dir, w.dir+".old"))
			w.do(os.Rename(other, w.dir))
			w.wait("n")
			w.write("o.yaml", rulesFor("o"))
			w.wait("n", "o")
		},
		"parent_replaced": func(w *watched) {
			parent := filepath.Dir(w.dir)
			writeFiles(w.t, parent+".new/"+filepath.Base(w.dir), "n.yaml", rulesFor("n"))
			w.do(os.Rename(parent, parent+".old"))
			w.do(os.Rename(parent+".new", parent))
			w.wait("n")
		},
		"credential_locked_away": func(w *watched) {
			path := filepath.Join(w.dir, "s.yaml")
			w.write("s.yaml", "translations: [{name: s, url: 'https://me:"+mark+"@h/x'}]\n")
			w.wait("a", "s")
			w.do(os.Chmod(path, 0o644))
			w.until("fault", func() bool { return len(w.Faults()) == 1 })
			w.wait("a", "s") // as it was
			w.do(os.Chmod(path, 0o600))
			w.until("end of the fault", func() bool { return len(w.Faults()) == 0 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etc", "images.d")
			writeFiles(t, dir, "a.yaml", rulesFor("a"))
			w := watchDir(t, dir)
			w.wait("a")
			play(w)
		})
	}
}

// TestOpen_laterDirectory: neither the directory nor what is above it is there at first.
func TestOpen_laterDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "images.d")
	w := watchDir(t, dir)
	if len(w.Faults()) > 0 {
		t.Errorf("faults %q", w.Faults())
	}
	w.do(os.Mkdir(filepath.Dir(filepath.Dir(dir)), 0o700))
	w.do(os.Mkdir(filepath.Dir(dir), 0o700))
	w.write("a.yaml", rulesFor("a"))
	w.wait("a")
	if _, err := Open("images.d", Defaults{}, nil); err == nil {
		t.Error("a relative path is taken")
	}
}

// TestOpen_configMap changes files as kubelet does in a volume: a link is swapped, no file changes.
func TestOpen_configMap(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volume")
	publish := func(version string, files ...string) {
		t.Helper()
		writeFiles(t, filepath.Join(dir, "..v"+version), files...)
		next := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink("..v"+version, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	publish("1", "a.yaml", rulesFor("one"))
	if err := os.Symlink(filepath.Join("..data", "a.yaml"), filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	w := watchDir(t, dir)
	w.wait("one")
	for _, version := range []string{"two", "three"} {
		publish(version, "a.yaml", rulesFor(version))
		w.wait(version)
	}
	publish("bad", "a.yaml", "rubbish\n")
	w.until("fault", func() bool { return len(w.Faults()) == 1 })
	w.wait("three")
	// A directory that is a link itself.
	linked := filepath.Join(t.TempDir(), "images.d")
	w.do(os.Symlink(dir, linked))
	publish("4", "a.yaml", rulesFor("four"))
	l := watchDir(t, linked)
	l.wait("four")
	publish("5", "a.yaml", rulesFor("five"))
	l.wait("five")
	other := t.TempDir()
	writeFiles(t, other, "o.yaml", rulesFor("other"))
	w.do(os.Symlink(other, linked+".new"))
	w.do(os.Rename(linked+".new", linked))
	l.wait("other")
}

// TestOpen_badFile: a fault is told once for each change, and what the file held before goes on.
func TestOpen_badFile(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, "a.yaml", rulesFor("a"), "b.yaml", "rubbish\n")
	w := watchDir(t, dir)
	w.wait("a")
	if faults := w.Faults(); len(faults) != 1 || !strings.HasSuffix(faults[0].Error(), "(none of the file's rules is in force)") {
		t.Errorf("faults %q", faults)
	}
	w.write("a.yaml", rulesFor("a2")+"- {name: a3}\n")
	w.until("second fault", func() bool { return len(w.Faults()) == 2 })
	w.wait("a")
	if text := w.Faults()[0].Error(); !strings.Contains(text, "a.yaml:3: a translation needs a `url` (the rules that the file had before stay in force)") {
		t.Errorf("fault %q", text)
	}
	for range 3 {
		w.write("c.yaml", rulesFor("c"))
		w.wait("a", "c")
		w.do(os.Remove(filepath.Join(dir, "c.yaml")))
		w.wait("a")
	}
	w.write("a.yaml", rulesFor("a2"))
	w.wait("a2")
	w.write("b.yaml", rulesFor("b"))
	w.wait("a2", "b")
	w.write("b.yaml", rulesFor("a2"))
	w.until("conflict", func() bool { return len(w.Faults()) == 1 })
	if text := w.Faults()[0].Error(); !strings.HasSuffix(text, "b.yaml:2: name a2 has a rule in a.yaml:2 already, which counts; remove one of them") {
		t.Errorf("fault %q", text)
	}
	w.Close()
	warned := map[string]int{}
	for _, e := range w.logs.AllEntries() {
		if e.Level == logrus.WarnLevel {
			warned[e.Message]++
		}
	}
	if len(warned) != 3 {
		t.Errorf("warned of %v", warned)
	}
	for text, times := range warned {
		if times != 1 {
			t.Errorf("%d times: %s", times, text)
		}
	}
}

// TestOpen_unreadable: what cannot be read changes nothing of what is in force.
func TestOpen_unreadable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images.d")
	writeFiles(t, dir, "a.yaml", rulesFor("a"), "b.yaml", rulesFor("b"))
	w := watchDir(t, dir)
	w.wait("a", "b")
	w.do(os.Remove(filepath.Join(dir, "b.yaml")))
	w.do(os.Symlink("nowhere", filepath.Join(dir, "b.yaml")))
	w.until("fault", func() bool {
		return len(w.Faults()) == 1 && strings.Contains(w.Faults()[0].Error(), "b.yaml: reading it: no such file")
	})
	w.wait("a", "b")
	w.do(os.WriteFile(filepath.Join(dir, "big.yaml"), make([]byte, maxFileSize+1), 0o600))
	w.do(os.Mkdir(filepath.Join(dir, "dir.yaml"), 0o700))
	w.until("faults", func() bool { return len(w.Faults()) == 3 })
	w.do(os.Rename(dir, dir+".old"))
	w.do(os.WriteFile(dir, nil, 0o600))
	w.until("fault of the directory", func() bool { return strings.Contains(w.Faults()[0].Error(), "not a directory") })
	w.wait("a", "b")
}

// TestOpen_certificates: files of certificates that a profile names are followed, and clients whose files did not
// change are kept with their connections.
func TestOpen_certificates(t *testing.T) {
	ca, next := testCA(t), testCA(t)
	dir, secret := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	profile := "transports: {'': {tls: {ca: " + secret + "/ca.pem}}}\n"
	writeFiles(t, dir, "a.yaml", rulesFor("a"), "b.yaml", rulesFor("b")+profile)
	w := watchDir(t, dir)
	w.wait("a")
	writeFiles(t, secret, "ca.pem", string(ca.cert))
	w.wait("a", "b")
	client := func() any { to, _, _ := w.Lookup("b"); return to.Client }
	before := client()
	w.write("c.yaml", rulesFor("c"))
	w.wait("a", "b", "c")
	if client() != before {
		t.Error("another file's change made the client anew")
	}
	writeFiles(t, secret, "ca.pem", string(next.cert))
	w.until("new client", func() bool { return client() != before })
	before = client()
	writeFiles(t, secret, "ca.pem", "rubbish")
	w.until("fault", func() bool { return len(w.Faults()) == 1 })
	if client() != before {
		t.Error("the last good certificate is gone")
	}
}

// TestOpen_readers look up while files change, for the race detector.
func TestOpen_readers(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, "a.yaml", rulesFor("a"))
	w := watchDir(t, dir)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, ok, err := w.Lookup("a"); !ok || err != nil || len(w.Faults()) > 0 {
					t.Errorf("%v, %v, %q", ok, err, w.Faults())
					return
				}
			}
		})
	}
	for _, name := range []string{"b", "c", "d"} {
		w.write("b.yaml.tmp", rulesFor(name))
		w.do(os.Rename(filepath.Join(dir, "b.yaml.tmp"), filepath.Join(dir, "b.yaml")))
		w.wait("a", name)
	}
	close(stop)
	readers.Wait()
	w.Close()
	w.Close()
}
