package node

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// File is a file for the node, with its content given or taken from a file of the host.
type File struct {
	Path    string // absolute, in the node
	Source  string // of the host; "" takes Content
	Content string
	Mode    fs.FileMode // default 0644
}

// Run runs a script by bash -e in the node and returns its standard output. A script that fails is a *ScriptError, which
// holds its standard error. Output is limited to 16 MB.
func (n *Node) Run(ctx context.Context, script string) (string, error) {
	return n.RunInput(ctx, script, nil)
}

// RunInput is Run with a standard input, of some megabytes at most.
func (n *Node) RunInput(ctx context.Context, script string, stdin []byte) (string, error) {
	a := n.agent
	if a == nil {
		return "", ErrNoPower
	}
	return a.run(ctx, stdin, "/bin/bash", "-e", "-u", "-o", "pipefail", "-c", script)
}

// Put writes a file in the node; one of more than some megabytes belongs to Options.Files.
func (n *Node) Put(ctx context.Context, name string, content []byte, mode fs.FileMode) error {
	q := quote(name)
	script := fmt.Sprintf("mkdir -p %s; cat >%s; chmod %o %s", quote(path.Dir(name)), q, mode.Perm(), q)
	if _, err := n.RunInput(ctx, script, content); err != nil {
		return fmt.Errorf("writing %s in the node: %w", name, err)
	}
	return nil
}

// Get reads a file in the node of at most 16 MB.
func (n *Node) Get(ctx context.Context, name string) ([]byte, error) {
	out, err := n.Run(ctx, "cat "+quote(name))
	if err != nil {
		return nil, fmt.Errorf("reading %s in the node: %w", name, err)
	}
	return []byte(out), nil
}

// Await tries the script ten times a second, in the node, until it succeeds, and returns its standard output.
func (n *Node) Await(ctx context.Context, script string) (string, error) {
	limit := 10 * time.Minute
	if end, ok := ctx.Deadline(); ok {
		limit = time.Until(end)
	}
	// A second less than the caller waits, so that the script's last words are heard.
	seconds := max(1, int(limit.Seconds())-1)
	return n.Run(ctx, fmt.Sprintf("words=$(mktemp); trap 'rm -f \"$words\"' EXIT; end=$((SECONDS + %d))\n"+
		"until bash -eu -o pipefail -c %s >\"$words\" 2>&1; do\n"+
		"[ $SECONDS -lt $end ] || { echo \"not within %d s: $(cat \"$words\")\" >&2; exit 1; }; sleep 0.1\ndone; cat \"$words\"",
		seconds, quote(script), seconds))
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// writeTar packs the files for the node.
func writeTar(name string, files []File) (err error) {
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := tar.NewWriter(out)
	for _, f := range files {
		if err := addFile(w, f); err != nil {
			return fmt.Errorf("packing %s: %w", f.Path, err)
		}
	}
	return w.Close()
}

func addFile(w *tar.Writer, f File) error {
	content, size := io.Reader(strings.NewReader(f.Content)), int64(len(f.Content))
	if f.Source != "" {
		in, err := os.Open(f.Source)
		if err != nil {
			return err
		}
		defer in.Close()
		st, err := in.Stat()
		if err != nil {
			return err
		}
		content, size = in, st.Size()
	}
	mode := f.Mode.Perm()
	if mode == 0 {
		mode = 0o644
	}
	h := &tar.Header{Name: strings.TrimPrefix(path.Clean(f.Path), "/"), Mode: int64(mode), Size: size, ModTime: time.Now()}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if n, err := io.Copy(w, content); err != nil || n != size {
		return fmt.Errorf("%d of %d bytes: %w", n, size, err)
	}
	return nil
}
