package main

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// asSystem runs lines of shell where the mount namespace is the first
// process's, as on a whole system: what it mounts lasts until it ends. XVLAN is
// the command, IN the namespace for sub-interfaces.
func (w *world) asSystem(t *testing.T, lines string) result {
	t.Helper()
	lab.NeedTool(t, "unshare")
	lab.NeedTool(t, "nsenter")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	lines = strings.NewReplacer("XVLAN", exe, "INSIDE", "nsenter --net="+w.inside.Path(), "IN", w.inside.Name(), "BPF", pinDir).Replace(lines)
	return w.process(t, wrapped("unshare", "-mpf", "--mount-proc", "sh", "-c", lines))
}

// When the bpf file system is unmounted, programs and maps go with it. The next
// command says so and removes what reaches nobody any more, and apply makes it
// again.
func TestUnmounted(t *testing.T) {
	if !lab.KernelFrom(t, 6, 6) {
		t.Skip("before Linux 6.6 programs are held by filters, which need no pins")
	}
	w := seal(t)
	before := w.snapshot(t)
	w.do(t, func() {
		if err := unix.Unmount(pinDir, 0); err != nil {
			t.Error(err)
		}
	})
	// The kernel detaches programs in its own time.
	r := w.asSystem(t, `set -e
		soon() { for i in $(seq 400); do "$@" 2>/run/said && break; sleep 0.05; done; cat /run/said >&2; }
		XVLAN link add link eth0 c1 addr 10.77.0.10/24 netns IN up type macvlan mode bridge
		XVLAN link add link eth0 c2 type ipvlan mode l2
		XVLAN config > /run/lan.yaml
		INSIDE ping -q -c1 -w20 -i0.2 10.77.0.254 > /dev/null
		umount BPF
		soon XVLAN link show
		XVLAN link del c1 && exit 1
		XVLAN apply -f /run/lan.yaml
		INSIDE ping -q -c1 -w20 -i0.2 10.77.0.254 > /dev/null
		umount BPF
		soon XVLAN link add link eth0 c1 netns IN type macvlan mode bridge
		XVLAN parent detach eth0`)
	if r.code != exitOK || !strings.HasSuffix(r.out, "\n2 changes made\n") {
		t.Errorf("exit status %d\n%s", r.code, r.out)
	}
	const says = `removed the sub-interfaces, which reached nobody any more; make them again" parent=eth0 removed="c1 c2" file_system=` + pinDir
	if n := strings.Count(r.err, says); n != 2 || strings.Count(r.err, "\n") != 3 || !strings.Contains(r.err, "c1: not found") {
		t.Errorf("it says\n%s", r.err)
	}
	// What is not known any more.
	w.host.Run(t, "ip", "link", "set", "eth0", "allmulticast", "off")
	w.same(t, before)
}

// Where it is unmounted only for some, nothing is removed.
func TestUnmountedHere(t *testing.T) {
	w := seal(t)
	w.must(t, "link add link eth0 c1 addr 10.77.0.10/24 netns "+w.inside.Name()+" up type macvlan mode bridge")
	r := w.asSystem(t, "umount BPF; XVLAN link show")
	r.refused(t, exitFail)
	r.says(t, "parent eth0|programs of xvlan are on it|not under "+pinDir+"|another mount namespace|ip link del xv2-1")
	ping(t, w.inside, "c1", wireAddr)
	w.must(t, "parent detach eth0")
}
