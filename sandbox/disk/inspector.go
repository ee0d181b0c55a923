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
	"time"

	"github.com/virtlet/virtlet/sandbox/cage"
	"github.com/virtlet/virtlet/sandbox/domain"
)

// Inspector judges images. What it does not read itself, qemu-img reads in a cage: with no right, no network, and nothing
// in reach but the image.
type Inspector struct {
	// QEMUImg is a path, or a name in PATH.
	QEMUImg string
	// Stage finds a binary of ours that builds cages (see package cage), Dir is a directory that they are built over, UID
	// the user in them. Files beside the image and qemu-img's own libraries are for tests.
	Stage func() (string, error)
	Dir   string
	UID   uint32
	files []string
}

// maxToolOutput bounds what is taken of a tool's output, in bytes.
const maxToolOutput = 1 << 20

// check has qemu-img follow every table of a qcow2 image, and returns its report. The image must be readable by all.
func (i Inspector) check(ctx context.Context, image string) ([]byte, error) {
	return i.run(ctx, cage.Spec{
		Args: []string{"check", "--output=json", "-f", domain.QCOW2, image}, Files: []string{image},
		Limits: cage.Limits{CPU: uint64(inspectTime / time.Second), FileSize: 1},
	})
}

// run executes qemu-img in a cage. The specification has its arguments, files, and limits of time and of what it writes.
func (i Inspector) run(ctx context.Context, spec cage.Spec) ([]byte, error) {
	program, err := lookTool(i.QEMUImg, "qemu-utils")
	if err != nil {
		return nil, err
	}
	needs, err := domain.Needs(ctx, program)
	if err != nil {
		return nil, err
	}
	spec.Program, spec.Files = program, slices.Concat(needs, i.files, spec.Files)
	// Its messages are read in English. Its threads share one heap: a few of their own would be all the address space
	// that it has.
	spec.Env = []string{"LC_ALL=C", "MALLOC_ARENA_MAX=1"}
	spec.UID, spec.GID, spec.Alone = i.UID, i.UID, true
	spec.Devices, spec.Base, spec.Profile = []cage.Device{cage.Null, cage.Urandom}, i.Dir, cage.InspectProfile
	// Before the daemon whose child it is, if memory is short.
	spec.OOMScoreAdj = 1000
	spec.Limits.AddressSpace, spec.Limits.OpenFiles = 1<<30, 64
	stage, err := i.Stage()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoCage, err)
	}
	stdout, stderr, err := runCaged(ctx, stage, spec)
	if err == nil {
		return stdout, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, ErrNoCage) {
		return nil, err
	}
	code := -1
	if exit, ended := errors.AsType[*exec.ExitError](err); ended {
		code = exit.ExitCode()
	}
	return stdout, &toolError{spec.Args[0], code, tail(string(stderr)), err}
}

// runCaged runs a program in a cage to its end, or to that of ctx.
func runCaged(ctx context.Context, stage string, spec cage.Spec) (stdout, stderr []byte, err error) {
	if err := os.MkdirAll(spec.Base, 0o700); err != nil {
		return nil, nil, fmt.Errorf("%w: making a directory for it: %w", ErrNoCage, err)
	}
	out, err := newOutput()
	if err != nil {
		return nil, nil, err
	}
	errs, err := newOutput()
	if err != nil {
		out.text()
		return nil, nil, err
	}
	// The kernel ends the program with this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := cage.Start(ctx, stage, spec, out.w, errs.w, nil)
	if err != nil {
		out.text()
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrNoCage, err)
		}
		return nil, errs.text(), err
	}
	stop := context.AfterFunc(ctx, func() { p.Cmd.Process.Kill() })
	defer stop()
	err = p.Cmd.Wait()
	return out.text(), bytes.TrimSpace(errs.text()), err
}

// output takes what a program writes, its first maxToolOutput bytes.
type output struct {
	w    *os.File
	done chan []byte
}

func newOutput() (*output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	o := &output{w: w, done: make(chan []byte, 1)}
	go func() {
		defer r.Close()
		b, _ := io.ReadAll(io.LimitReader(r, maxToolOutput))
		_, _ = io.Copy(io.Discard, r)
		o.done <- b
	}()
	return o, nil
}

// text closes our end and returns what was written when all others are closed too.
func (o *output) text() []byte {
	o.w.Close()
	return <-o.done
}
