package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// podman runs podman with its CNI backend in the host, with folders of its own.
func (w *world) podman(t *testing.T, args ...string) (string, error) {
	t.Helper()
	at := func(name string) string { return filepath.Join(w.dir, name) }
	conf := fmt.Sprintf("[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [%q]\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n"+
		"[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\n", w.bin())
	if err := os.WriteFile(at("containers.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	return w.host.Try(t, "env", append([]string{"CONTAINERS_CONF=" + at("containers.conf"), "podman", "--root", at("root"), "--runroot", at("runroot"),
		"--tmpdir", at("tmp"), "--network-config-dir", at("net.d"), "--storage-driver", "vfs", "--runtime", "runc"}, args...)...)
}

// TestPodman has podman run containers on a network of ours: with its address
// and MAC they reach the wire and each other, and go without trace.
func TestPodman(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"podman", "runc", "busybox"} {
		lab.NeedTool(t, tool)
	}
	w := newWorld(t)
	root := filepath.Join(w.dir, "rootfs")
	c := w.net("lan", "mode", "l2", "capabilities", object{"ips": true, "mac": true})
	list, err := json.Marshal(object{"cniVersion": "0.4.0", "name": "lan", "plugins": []object{c}})
	if err != nil {
		t.Fatal(err)
	}
	path, lost := exec.LookPath("busybox")
	busybox, err := os.ReadFile(path)
	if err := errors.Join(lost, err, os.MkdirAll(filepath.Join(root, "bin"), 0o755), os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755),
		os.MkdirAll(filepath.Join(w.dir, "net.d"), 0o755), os.WriteFile(filepath.Join(w.dir, "net.d/lan.conflist"), list, 0o644)); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := w.podman(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	t.Cleanup(func() { _, _ = w.podman(t, "rm", "-f", "-t", "0", "a", "b") }) // they are gone, unless it has failed
	common := []string{"run", "-d", "--cap-add", "NET_RAW", "--security-opt", "seccomp=unconfined", "--network", "lan"}
	run(append(common, "--name", "a", "--rootfs", root, "/bin/busybox", "sleep", "600")...)
	run(append(common, "--name", "b", "--ip", "10.88.0.77", "--mac-address", "02:00:00:00:88:77", "--rootfs", root, "/bin/busybox", "sleep", "600")...)
	for _, addr := range []string{wireAddr, "10.88.0.77"} {
		run("exec", "a", "/bin/busybox", "ping", "-c", "1", "-w", "20", addr)
	}
	ping(t, w.wire, "10.88.0.77")
	if out := run("exec", "b", "/bin/busybox", "ip", "link", "show", "eth0"); !strings.Contains(out, "02:00:00:00:88:77") {
		t.Errorf("b has %s", out)
	}
	if links := w.links(t); len(links) != 2 {
		t.Errorf("there are %v", links)
	}
	run("rm", "-f", "-t", "0", "a", "b")
	w.clean(t)
}
