package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/virtlet/virtlet/runtime/image/serve"
)

// CopyImage puts an image file where the daemon takes local images from and returns the name to pull.
func (r *Rig) CopyImage(path, name string) (string, error) {
	dst := filepath.Join(r.Dir, "images", name)
	return dst, copyFile(path, dst)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// ServeImage offers an image file by HTTP in the rig's host network, as virtlet-images does it. It returns the
// server's address (host:port), where the image has that name, and what stops it before the rig's own end.
func (r *Rig) ServeImage(path, name string) (address string, stop func() error, err error) {
	dir := filepath.Join(r.Dir, "served")
	if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
		return "", nil, err
	}
	if err := copyFile(path, filepath.Join(dir, name)); err != nil {
		return "", nil, fmt.Errorf("serving %s: %w", path, err)
	}
	srv, err := serve.New(serve.Config{Dir: dir})
	if err != nil {
		return "", nil, err
	}
	l, err := r.Listen("127.0.0.1:0")
	if err != nil {
		return "", nil, errors.Join(err, srv.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ctx, l) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return errors.Join(<-ended, srv.Close())
	})
	r.Later(stop)
	return l.Addr().String(), stop, nil
}
