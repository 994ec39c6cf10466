//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/xvlan/xvlan/lab/vm/spec"
)

const (
	initPackage = "github.com/xvlan/xvlan/lab/vm/init"

	modeDir  = 0o040755
	modeFile = 0o100755
)

// bootModules are those that the way to the root folder and the ports goes by.
// Some kernels have some of them built in.
var bootModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// makeInitrd writes the initramfs of one run to a file without a name, which
// nothing can leave behind.
func makeInitrd(ctx context.Context, o options, k kernel) (*os.File, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	s := spec.Spec{
		Args:    o.args,
		Env:     append(os.Environ(), "XVLAN_VM="+o.kernel),
		Dir:     dir,
		Modules: k.modules,
	}
	if o.nics > 0 {
		s.Load = append(s.Load, "virtio_net")
	}
	specJSON, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	init, err := buildInit(ctx)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp("", "xvlan-initrd-")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	if err == nil {
		err = writeArchive(f, func(a *archive) error {
			a.add("init", modeFile, init)
			a.add(spec.File, modeFile, specJSON)
			a.add("dev", modeDir, nil)
			a.add(spec.ModulesDir, modeDir, nil)
			return addModules(ctx, a, k.modules)
		})
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// buildInit compiles the guest's first process. The module must be the one that
// the runner is called in.
func buildInit(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp("", "xvlan-init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, initPackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS=linux", "GOARCH=amd64")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build init: %w\n%s", err, text)
	}
	return os.ReadFile(out)
}

// addModules adds the modules for booting, unpacked and named in the order in
// which they must be loaded.
func addModules(ctx context.Context, a *archive, dir string) error {
	files, err := moduleFiles(dir)
	if err != nil {
		return err
	}
	for i, file := range files {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if data, err = decompress(ctx, data); err != nil {
			return err
		}
		a.add(fmt.Sprintf("%s/%02d-%s", spec.ModulesDir, i, moduleName(file)), modeFile, data)
	}
	return nil
}

// moduleFiles reads depmod's list and returns the files of bootModules, each
// after those that it depends on.
func moduleFiles(dir string) ([]string, error) {
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	known := map[string][]string{} // a module to its own file and those it needs
	for line := range strings.Lines(string(builtin)) {
		known[moduleName(strings.TrimSpace(line))] = nil
	}
	for line := range strings.Lines(string(dep)) {
		file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		known[moduleName(file)] = append([]string{file}, strings.Fields(needs)...)
	}
	var files []string
	for _, name := range bootModules {
		chain, ok := known[name]
		if !ok {
			return nil, fmt.Errorf("find module %s: not in %s", name, dir)
		}
		for _, file := range slices.Backward(chain) { // depmod lists what is needed last first
			if !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// moduleName returns a module's name as the kernel has it.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// An archive is a cpio file in the kind ("newc") that the kernel unpacks as an
// initramfs. The first error stays.
type archive struct {
	w   *bufio.Writer
	ino int
	err error
}

// writeArchive writes an archive of what fill adds.
func writeArchive(w io.Writer, fill func(*archive) error) error {
	a := &archive{w: bufio.NewWriter(w)}
	if err := fill(a); err != nil {
		return err
	}
	a.add("TRAILER!!!", 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}

// add adds a file or folder; its name's leading slash is left out.
func (a *archive) add(name string, mode int, data []byte) {
	if a.err != nil {
		return
	}
	name = strings.TrimPrefix(name, "/")
	a.ino++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	if _, a.err = io.WriteString(a.w, pad(header)); a.err != nil {
		return
	}
	if _, a.err = a.w.Write(data); a.err != nil {
		return
	}
	_, a.err = io.WriteString(a.w, pad(string(data[len(data)&^3:]))[len(data)&3:])
}

// pad fills up to a multiple of four bytes.
func pad(s string) string { return s + "\x00\x00\x00"[:-len(s)&3] }
