package image

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
)

// FsInfo is what the store uses of its file system.
type FsInfo struct {
	Time time.Time
	// Mountpoint is where the file system that holds the store is mounted.
	Mountpoint string
	// UsedBytes is what the store has allocated, InodesUsed how many files and directories it has.
	UsedBytes  uint64
	InodesUsed uint64
}

// FsInfo measures the store.
func (s *Service) FsInfo() (FsInfo, error) {
	info := FsInfo{Time: time.Now()}
	mount, err := Mountpoint(s.cfg.Root)
	if err != nil {
		return FsInfo{}, err
	}
	info.Mountpoint = mount
	err = filepath.WalkDir(s.cfg.Root, func(_ string, entry fs.DirEntry, err error) error {
		var file fs.FileInfo
		if err == nil {
			file, err = entry.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a pull ended meanwhile
		}
		if err != nil {
			return err
		}
		if st, ok := file.Sys().(*syscall.Stat_t); ok {
			info.UsedBytes += uint64(st.Blocks) * 512 // st_blocks counts 512-byte units, whatever the block size
			info.InodesUsed++
		}
		return nil
	})
	if err != nil {
		return FsInfo{}, fmt.Errorf("measuring image store %s: %w", s.cfg.Root, err)
	}
	return info, nil
}

// Mountpoint is the longest mount point that path lies at or below.
func Mountpoint(path string) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("finding the file system of %s: %w", path, err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(resolved))
	if err != nil {
		return "", fmt.Errorf("finding the file system of %s: %w", path, err)
	}
	var longest string
	for _, m := range mounts {
		if len(m.Mountpoint) >= len(longest) {
			longest = m.Mountpoint
		}
	}
	if longest == "" {
		return "", fmt.Errorf("no mount point is above %s", path)
	}
	return longest, nil
}
