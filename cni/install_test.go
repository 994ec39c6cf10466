package cni

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// TestInstall puts the program into folders of all sorts.
func TestInstall(t *testing.T) {
	lab.NeedRoot(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "xvlan-cni")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("host-local", "another's")
	for _, c := range []struct {
		what   string
		before func()
		says   string
	}{
		{"an empty place", func() {}, "installed"},
		{"again", func() {}, "is there already"},
		{"another version, and what a killed one has left", func() { write("xvlan-cni", "old"); write(".xvlan-cni-123", "half") }, "installed"},
		{"one that cannot be run", func() { err = os.Chmod(path, 0o644) }, "installed"},
		{"a link", func() { write("elsewhere", "kept"); err = errors.Join(os.Remove(path), os.Symlink("elsewhere", path)) }, "installed"},
	} {
		if c.before(); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Install(dir, &out); err != nil || !strings.HasSuffix(out.String(), c.says+"\n") {
			t.Errorf("%s: %v, %q", c.what, err, &out)
		}
		there, err := os.ReadFile(path)
		info, lerr := os.Lstat(path)
		if err != nil || lerr != nil || !bytes.Equal(there, program) || info.Mode() != 0o755 {
			t.Errorf("%s: %v %v %v", c.what, err, lerr, info)
		}
	}
	for name, want := range map[string]string{"host-local": "another's", "elsewhere": "kept"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(text) != want {
			t.Errorf("%s is %q: %v", name, text, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	taken := filepath.Join(t.TempDir(), "xvlan-cni", "in-it")
	if err := os.MkdirAll(taken, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(dir, "none"), path, filepath.Dir(filepath.Dir(taken))} {
		if err := Install(dir, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", dir, err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
			t.Errorf("left are %v", left)
		}
	}
}
