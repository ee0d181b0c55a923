package state

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// holderPath, when set in the environment, turns the test binary into a daemon that holds that database.
const holderPath = "VIRTLET_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(holderPath); path != "" {
		hold(path)
		return
	}
	os.Exit(m.Run())
}

// hold opens the database, says so, and keeps it until standard input ends.
func hold(path string) {
	s, err := Open(path)
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	defer s.Close()
	fmt.Println("open")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func TestOpenLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "virtlet.db")
	short := options{timeout: 100 * time.Millisecond, schema: SchemaVersion}
	t.Run("by_another_process", func(t *testing.T) {
		holder := exec.Command(os.Args[0], "--a-flag-of-the-holder")
		holder.Env = append(os.Environ(), holderPath+"="+path)
		in, err := holder.StdinPipe()
		mustNot(t, err)
		out, err := holder.StdoutPipe()
		mustNot(t, err, holder.Start())
		defer holder.Wait()
		defer in.Close()
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
			t.Fatalf("holder: %q, %v", line, err)
		}
		_, err = open(path, short)
		if !errors.Is(err, ErrLocked) {
			t.Fatalf("error is %v", err)
		}
		for _, want := range []string{path, fmt.Sprintf("pid %d ", holder.Process.Pid), "--a-flag-of-the-holder"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in: %v", want, err)
			}
		}
	})
	t.Run("free_again_after_the_holder_is_gone", func(t *testing.T) {
		reopen(t, path)
	})
	t.Run("by_ourselves", func(t *testing.T) {
		reopen(t, path)
		_, err := open(path, short)
		if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "this very process") {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("two_make_it_at_once", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "virtlet.db")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				s, err := Open(path)
				if err == nil {
					err = errors.Join(s.PutPod(somePod(s.ID())), s.Close())
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if pods, _, err := reopen(t, path).Load(); err != nil || len(pods) != 1 {
			t.Errorf("%d pods, %v: not all saw the same database", len(pods), err)
		}
	})
}

func TestFlockHolders(t *testing.T) {
	const table = `1: POSIX  ADVISORY  WRITE 11 08:02:77 0 EOF
2: FLOCK  ADVISORY  WRITE 12 08:02:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 08:02:77 0 EOF
3: FLOCK  ADVISORY  WRITE 14 08:02:177 0 EOF
4: FLOCK  ADVISORY  WRITE 15 00:1f:77 0 EOF
5: FLOCK  ADVISORY  WRITE 0 08:02:77 0 EOF
`
	diff(t, []int{12, 15}, flockHolders([]byte(table), "77"))
}
