package supervisor

import (
	"errors"
	"syscall"

	"github.com/virtlet/virtlet/sandbox/disk"
)

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, disk.ErrNoSpace)
}
