package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// Inspector judges images. What it does not read itself, qemu-img reads in a cage: with no right, no network, and nothing
// in reach but the image.
type Inspector struct {
	// QEMUImg is a path, or a name in PATH.
	QEMUImg string
	// Stage is a binary of ours that builds cages (see package cage), Dir a directory that they are built over, UID the
	// user in them. Files beside the image and qemu-img's own libraries are for tests.
	Stage string
	Dir   string
	UID   uint32
	files []string
}

// maxToolOutput bounds what is taken of a tool's output, in bytes.
const maxToolOutput = 1 << 20

// check has qemu-img follow every table of a qcow2 image, and returns its report. The image must be readable by all.
func (i Inspector) check(ctx context.Context, image string) ([]byte, error) {
	program, err := lookTool(i.QEMUImg, "qemu-utils")
	if err != nil {
		return nil, err
	}
	needs, err := domain.Needs(ctx, program)
	if err != nil {
		return nil, err
	}
	spec := cage.Spec{
		Program: program, Args: []string{"check", "--output=json", "-f", domain.QCOW2, image},
		// Its messages are read in English.
		Env: []string{"LC_ALL=C"},
		UID: i.UID, GID: i.UID, Alone: true,
		Files: slices.Concat(needs, i.files, []string{image}), Devices: []cage.Device{cage.Null, cage.Urandom}, Base: i.Dir,
		Limits: cage.Limits{CPU: uint64(inspectTime / time.Second), AddressSpace: 1 << 30, FileSize: 1, OpenFiles: 64},
	}
	stdout, stderr, err := runCaged(ctx, i.Stage, spec)
	if err == nil {
		return stdout, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	code := -1
	if exit, ended := errors.AsType[*exec.ExitError](err); ended {
		code = exit.ExitCode()
	}
	return stdout, &toolError{"check", code, tail(string(stderr)), err}
}

// runCaged runs a program in a cage to its end, or to that of ctx.
func runCaged(ctx context.Context, stage string, spec cage.Spec) (stdout, stderr []byte, err error) {
	if err := os.MkdirAll(spec.Base, 0o700); err != nil {
		return nil, nil, fmt.Errorf("making a directory for a cage: %w", err)
	}
	var readers sync.WaitGroup
	var writers []*os.File
	for _, into := range []*[]byte{&stdout, &stderr} {
		r, w, perr := os.Pipe()
		if perr != nil {
			err = perr
			break
		}
		writers = append(writers, w)
		readers.Go(func() {
			defer r.Close()
			*into, _ = io.ReadAll(io.LimitReader(r, maxToolOutput))
			_, _ = io.Copy(io.Discard, r)
		})
	}
	// Wait, however this ends, for what was written.
	defer readers.Wait()
	closeWriters := func() {
		for _, w := range writers {
			w.Close()
		}
	}
	if err != nil {
		closeWriters()
		return nil, nil, err
	}
	// The kernel ends the program with this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := cage.Start(stage, spec, writers[0], writers[1], nil)
	closeWriters()
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { p.Cmd.Process.Kill() })
	defer stop()
	err = p.Cmd.Wait()
	readers.Wait()
	return stdout, bytes.TrimSpace(stderr), err
}
