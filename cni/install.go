package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/xvlan/xvlan/loader"
)

// Install makes a host ready to run the plugin: it copies the running program into
// a folder of plugins, dir, as xvlan-cni, and mounts the bpf file system where it
// is missing, as a plugin cannot that runs with mounts of its own. A runtime that
// calls the plugin meanwhile finds the old one or the new one. It may be
// interrupted and repeated; out is told what was done.
func Install(dir string, out io.Writer) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("install: find the folder of plugins: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("install: %s: not a folder; name the one that the runtime has its plugins in, as /opt/cni/bin", dir)
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("install: find this program: %w", err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		return fmt.Errorf("install: read this program: %w", err)
	}
	path := filepath.Join(dir, pluginName)
	did := "is there already"
	if !same(path, program) {
		did = "installed"
		if err := replace(path, program); err != nil {
			return fmt.Errorf("install: %w", err)
		}
	}
	if err := loader.Mount(); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s %s\n", path, did)
	return nil
}

// pluginName is what the plugin is called in the type of a network's configuration.
const pluginName = "xvlan-cni"

// same tells whether a file, no link to one, is this program and can be run.
func same(path string, program []byte) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != 0o755 {
		return false
	}
	there, err := os.ReadFile(path)
	return err == nil && bytes.Equal(there, program)
}

// replace puts a program in a file's place in one step. What interrupted calls
// have left goes; one that goes on meanwhile fails by that, and can be repeated.
func replace(path string, program []byte) (err error) {
	temp := "." + filepath.Base(path) + "-"
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), temp+"*"))
	for _, file := range left {
		if rerr := os.Remove(file); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return fmt.Errorf("remove what was left: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), temp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(program)
	if err := errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
