package state

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// TestOpenDamaged cuts a copy of a living database at many lengths: each gives ErrCorrupt, none a panic, and the file
// is not touched.
func TestOpenDamaged(t *testing.T) {
	whole := filledDatabase(t)
	damage := map[string][]byte{
		"empty":      {},
		"not_a_db":   bytes.Repeat([]byte("no database at all. "), 1000),
		"zeroes":     make([]byte, len(whole)),
		"text_short": []byte("hello"),
		"both_metas": overwrite(whole, 0, 8192),
		"all_pages":  overwrite(whole, 8192, len(whole)),
	}
	for _, n := range []int{1, 100, 4095, 4096, 8192, 12288, 16384, len(whole) / 2, len(whole)/2 + 7, len(whole) - 4096} {
		damage[fmt.Sprintf("cut_at_%d", n)] = whole[:n]
	}
	for name, content := range damage {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "virtlet.db")
			mustNot(t, os.WriteFile(path, content, 0o600))
			s, err := Open(path)
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "restore") {
				t.Errorf("error is %v", err)
			}
			after, readErr := os.ReadFile(path)
			mustNot(t, readErr)
			if !bytes.Equal(after, content) {
				t.Error("the file was changed")
			}
			// The lock must be free, or the next attempt would blame another process.
			if _, err := Open(path); !errors.Is(err, ErrCorrupt) {
				t.Errorf("second attempt: %v", err)
			}
		})
	}
	t.Run("one_page_after_another", func(t *testing.T) {
		dir := t.TempDir()
		for page := 2; page < len(whole)/4096; page++ {
			path := filepath.Join(dir, fmt.Sprint(page))
			mustNot(t, os.WriteFile(path, overwrite(whole, page*4096, (page+1)*4096), 0o600))
			s, err := Open(path) // pages that are free may hold anything
			if err == nil {
				if _, _, err := s.Load(); err != nil {
					t.Errorf("page %d: opened, but then %v", page, err)
				}
				_ = s.Close()
			} else if !errors.Is(err, ErrCorrupt) {
				t.Errorf("page %d: %v", page, err)
			}
		}
	})
}

func filledDatabase(t *testing.T) []byte {
	s := openNew(t)
	for i := range 60 {
		id := fmt.Sprintf("%064d", i)
		mustNot(t, s.PutPod(somePod(id)), s.PutVM(someVM(id, id)))
	}
	mustNot(t, s.Close())
	content, err := os.ReadFile(s.Path())
	mustNot(t, err)
	used := len(content)
	for used > 0 && content[used-1] == 0 { // bbolt grows the file ahead of need
		used--
	}
	return content[:min(len(content), (used+4095)/4096*4096)]
}

func overwrite(content []byte, from, to int) []byte {
	c := bytes.Clone(content)
	for i := from; i < to; i++ {
		c[i] = byte(i*7 + 3)
	}
	return c
}

// TestDamageAtWork truncates the file under an open database, as a failing disk would.
func TestDamageAtWork(t *testing.T) {
	s := openNew(t)
	for i := range 60 {
		mustNot(t, s.PutPod(somePod(fmt.Sprint(i))))
	}
	mustNot(t, os.Truncate(s.Path(), 8192))
	if _, _, err := s.Load(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Load: %v", err)
	}
	if err := s.PutPod(somePod("x")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("PutPod: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := Open(s.Path()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Open, when the lock should be free: %v", err)
	}
}

func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	mustNot(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	s, err := Open(filepath.Join(dir, "virtlet.db"))
	mustNot(t, err)
	defer s.Close()
	mustNot(t, s.PutPod(somePod("kept")))
	mustNot(t, os.WriteFile(filepath.Join(dir, "ballast"), nil, 0o600))
	fill(filepath.Join(dir, "ballast"))
	big := somePod("big")
	big.Message = strings.Repeat("x", 200<<10)
	err = s.PutPod(big)
	if !errors.Is(err, supervisor.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("error is %v", err)
	}
	mustNot(t, os.Remove(filepath.Join(dir, "ballast")))
	pods, _, err := s.Load()
	if err != nil || len(pods) != 1 || pods[0].ID != "kept" {
		t.Errorf("pods %v, error %v", pods, err)
	}
}

func TestDiskFull_recordsStillFit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	mustNot(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"))
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	s, err := Open(filepath.Join(dir, "virtlet.db"))
	mustNot(t, err)
	defer s.Close()
	mustNot(t, os.WriteFile(filepath.Join(dir, "ballast"), nil, 0o600))
	fill(filepath.Join(dir, "ballast"))
	for i := range 100 {
		pod := somePod(strconv.Itoa(i))
		pod.Message = strings.Repeat("x", 10<<10)
		if err := s.PutPod(pod); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
}

func fill(path string) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
}
