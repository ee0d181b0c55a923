package domain

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// qemuNeeds lists the files and folders of the host that QEMU needs to run a machine, beside itself: its libraries, its
// firmware, and the modules by which some distributions ship TCG.
func qemuNeeds(ctx context.Context, program string) ([]string, error) {
	needs, err := Needs(ctx, program)
	if err != nil {
		return nil, err
	}
	if shell, err := scriptShell(program); shell != "" || err != nil {
		return needs, err
	}
	for _, module := range tcgModules(needs) {
		more, err := Libraries(ctx, module)
		if err != nil {
			return nil, err
		}
		needs = append(append(needs, module), more...)
	}
	// "-L help" prints the folders in which QEMU looks for firmware, a line each.
	folders, err := ask(ctx, program, "-L", "help")
	if err != nil {
		return nil, fmt.Errorf("asking %s where its firmware is: %w", program, err)
	}
	for folder := range strings.Lines(folders) {
		folder = filepath.Clean(strings.TrimSpace(folder))
		if st, err := os.Stat(folder); err == nil && st.IsDir() && filepath.IsAbs(folder) && folder != "/" {
			needs = append(needs, folder)
		}
	}
	slices.Sort(needs)
	return slices.Compact(needs), nil
}

// Needs lists the files that a program needs to begin to run: its libraries, or, where somebody put a script before it, the
// script's shell and that one's libraries. What the script needs beyond, nobody can tell.
func Needs(ctx context.Context, program string) ([]string, error) {
	shell, err := scriptShell(program)
	if err != nil {
		return nil, err
	}
	if shell == "" {
		return Libraries(ctx, program)
	}
	needs, err := Libraries(ctx, shell)
	return append(needs, shell), err
}

// tcgModules are QEMU's modules with TCG in them, which lie in a folder "qemu" beside libraries.
func tcgModules(libraries []string) []string {
	var modules []string
	seen := map[string]bool{}
	for _, lib := range libraries {
		for _, dir := range []string{filepath.Dir(lib), "/usr" + filepath.Dir(lib)} {
			if seen[dir] {
				continue
			}
			seen[dir] = true
			found, err := filepath.Glob(filepath.Join(dir, "qemu", "accel-tcg-*.so"))
			if err == nil {
				modules = append(modules, found...)
			}
		}
	}
	return modules
}

// Libraries lists what the dynamic loader opens for a program or a shared object: the loader itself, the libraries by the
// paths at which it looks for them, and its cache. A static program has none.
func Libraries(ctx context.Context, file string) ([]string, error) {
	loader, err := interpreter(ctx, file)
	if err != nil {
		return nil, fmt.Errorf("reading which libraries %s needs: %w", file, err)
	}
	if loader == "" {
		return nil, nil
	}
	list, err := ask(ctx, loader, "--list", file)
	if err != nil {
		return nil, fmt.Errorf("asking %s for the libraries of %s: %w", loader, file, err)
	}
	paths := []string{loader}
	for line := range strings.Lines(list) {
		path, err := listedLibrary(line)
		if err != nil {
			return nil, fmt.Errorf("asking %s for the libraries of %s: %w", loader, file, err)
		}
		if path != "" {
			paths = append(paths, path)
		}
	}
	if _, err := os.Stat(loaderCache); err == nil {
		paths = append(paths, loaderCache)
	}
	return paths, nil
}

// loaderCache tells the loader of libraries outside the standard folders.
const loaderCache = "/etc/ld.so.cache"

// listedLibrary reads a line of the loader's list: "libz.so.1 => /lib/libz.so.1 (0x7f…)", "/lib64/ld.so (0x7f…)", or
// "linux-vdso.so.1 (0x7f…)", which is no file.
func listedLibrary(line string) (string, error) {
	name, path, found := strings.Cut(strings.TrimSpace(line), " => ")
	if !found {
		path = name
	}
	if strings.HasPrefix(path, "not found") {
		return "", fmt.Errorf("%s is missing", name)
	}
	if at := strings.LastIndex(path, " (0x"); at >= 0 {
		path = path[:at]
	}
	if !filepath.IsAbs(path) {
		return "", nil
	}
	return filepath.Clean(path), nil
}

// scriptShell is the program that runs a script, "" where the file is none.
func scriptShell(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// The kernel reads no more of the line (execve(2)).
	var head [256]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	line, found := strings.CutPrefix(string(head[:n]), "#!")
	if !found {
		return "", nil
	}
	line, _, _ = strings.Cut(line, "\n")
	if fields := strings.Fields(line); len(fields) > 0 && filepath.IsAbs(fields[0]) {
		return filepath.Clean(fields[0]), nil
	}
	return "", fmt.Errorf("%s is a script without the path of its shell", file)
}

// interpreter is the dynamic loader that a program names, "" for a static one. A shared object names none: it gets our
// own shell's, the system's.
func interpreter(ctx context.Context, file string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	f, err := elf.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return "", err
		}
		return filepath.Clean(string(bytes.TrimRight(name, "\x00"))), nil
	}
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) == 0 {
		return "", err
	}
	if file == systemShell {
		return "", errors.New("it names no dynamic loader")
	}
	return interpreter(ctx, systemShell)
}

const systemShell = "/bin/sh"

// ask runs a program for what it prints. Without a deadline in ctx it takes at most 10 seconds.
func ask(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", fmt.Errorf("%w: %s", err, firstLine(stderr.String()))
	}
	return stdout.String(), nil
}
