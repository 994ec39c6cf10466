package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// units writes the units as they are installed, for this binary, and returns
// their paths.
func units(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	exe, err := os.Executable()
	for _, name := range []string{"xvlan", "xvlan-docker"} {
		if err == nil {
			err = os.Symlink(exe, filepath.Join(dir, name))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../systemd/*")
	if err != nil || len(files) != 4 {
		t.Fatalf("units: %v, %v", files, err)
	}
	for i, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		files[i] = filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(files[i], []byte(strings.ReplaceAll(string(text), "@bindir@", dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// systemd finds nothing wrong with the units, and little that they may do
// beyond what they need.
func TestUnits(t *testing.T) {
	lab.NeedTool(t, "systemd-analyze")
	files := units(t)
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, files...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), filepath.Dir(files[0])) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	for _, file := range files {
		if filepath.Ext(file) != ".service" {
			continue
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=35", file).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security: %v\n%s", err, out)
		}
	}
}
