package translate

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long changes are gathered before the rules are read: an editor's or kubelet's change is several.
const settle = 50 * time.Millisecond

// follow reads the rules again whenever something changed where they come from.
func (r *Rules) follow(w *watch) {
	defer close(r.closed)
	defer func() { w.close() }()
	var settled <-chan time.Time
	for {
		changed := false
		select {
		case <-r.closing:
			return
		case e, open := <-w.events():
			changed = !open || w.concerns(e.Name)
			if !open { // the kernel failed it
				w = nil
			}
		case _, changed = <-w.errors(): // too many changes to tell them one by one
		case <-settled:
			settled = nil
			w = r.reload(w)
		}
		if changed && settled == nil {
			settled = time.After(settle)
		}
	}
}

// reload reads the rules and returns a watch over all that they came from, in place of the one before. What changes
// while it works is either read or seen by the watch.
func (r *Rules) reload(before *watch) *watch {
	dirs := []string{r.loader.dir}
	for {
		w, err := newWatch(dirs)
		before.close()
		before = w
		now := r.loader.load()
		if err != nil {
			now.faults = append(now.faults, fmt.Errorf("image translation rules: changes may go unnoticed until virtlet is restarted: watching %s: %w", r.loader.dir, err))
		}
		added := slices.DeleteFunc(slices.Clone(now.dirs), func(dir string) bool { return slices.Contains(dirs, dir) })
		if len(added) == 0 || err != nil {
			r.tell(r.now.Swap(now), now)
			return w
		}
		dirs = append(dirs, added...)
	}
}

// tell logs what is different.
func (r *Rules) tell(before, now *snapshot) {
	if before == nil {
		before = &snapshot{}
	}
	for _, err := range now.faults {
		if !slices.ContainsFunc(before.faults, func(old error) bool { return old.Error() == err.Error() }) {
			r.log.Warn(err)
		}
	}
	for _, note := range now.notes {
		if !slices.Contains(before.notes, note) {
			r.log.Warn(note)
		}
	}
	if !maps.Equal(before.exact, now.exact) || !slices.Equal(before.patterns, now.patterns) {
		r.log.WithField("rules", now.size()).WithField("faults", len(now.faults)).Info("image translation rules read")
	}
	for _, c := range before.clients {
		if !slices.Contains(now.clients, c) {
			c.CloseIdleConnections()
		}
	}
}

// watch sees changes in directories, whether these are there yet or not. A nil watch sees nothing.
type watch struct {
	*fsnotify.Watcher
	dirs []string
}

// newWatch watches directories and all above them. Each is added before the next is looked for, so that what appears
// meanwhile is seen. With an error the watch sees some of it only, or is nil.
func newWatch(dirs []string) (*watch, error) {
	inner, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("%w (see the sysctl fs.inotify.max_user_instances)", err)
	}
	w := &watch{inner, dirs}
	var faults []error
	for _, dir := range dirs {
		for _, d := range lineage(dir) {
			err := w.Add(d)
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err != nil {
				faults = append(faults, fmt.Errorf("%s: %w (see the sysctl fs.inotify.max_user_watches)", d, err))
				break
			}
		}
	}
	return w, errors.Join(faults...)
}

// lineage is a directory with all above it, the root first.
func lineage(dir string) []string {
	all := []string{dir}
	for dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		all = append(all, dir)
	}
	slices.Reverse(all)
	return all
}

// concerns tells whether a change of path can change what is in the directories.
func (w *watch) concerns(path string) bool {
	return slices.ContainsFunc(w.dirs, func(dir string) bool {
		return path == dir || filepath.Dir(path) == dir || strings.HasPrefix(dir, strings.TrimSuffix(path, "/")+"/")
	})
}

func (w *watch) events() <-chan fsnotify.Event {
	if w == nil {
		return nil
	}
	return w.Events
}

func (w *watch) errors() <-chan error {
	if w == nil {
		return nil
	}
	return w.Errors
}

func (w *watch) close() {
	if w != nil {
		_ = w.Watcher.Close()
	}
}
