package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	ebpflink "github.com/cilium/ebpf/link"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
)

// says checks that a refusal names all pieces, separated by |.
func (r result) says(tb testing.TB, pieces string) {
	tb.Helper()
	for _, piece := range strings.Split(pieces, "|") {
		if !strings.Contains(r.err, piece) {
			tb.Errorf("does not say %q:\n%s", piece, r.err)
		}
	}
}

// A refusal is what a command is refused with: its exit status, and pieces of what it
// says, separated by |.
type refusal struct {
	code int
	says string
}

// refuses checks that commands are refused, and change nothing.
func (w *world) refuses(t *testing.T, commands map[string]refusal) {
	t.Helper()
	before := w.snapshot(t)
	for line, c := range commands {
		t.Run(line, func(t *testing.T) {
			r := w.xvlan(t, strings.Fields(line)...)
			r.refused(t, c.code)
			r.says(t, c.says)
		})
	}
	w.same(t, before)
}

func TestCapacity(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	w.must(t, "parent attach eth0 capacity 2")
	w.must(t, "link add link eth0 c1 type macvlan mode bridge")
	w.must(t, "link add link eth0 c2 type ipvlan mode l2")
	full := w.snapshot(t)
	r := w.xvlan(t, strings.Fields("link add link eth0 c3 type macvlan mode bridge")...)
	r.refused(t, exitFail)
	r.says(t, "parent eth0|all 2|higher capacity")
	w.same(t, full)
	// Whose place is free again is taken by the next.
	w.must(t, "link del c2")
	w.must(t, "link add link eth0 c3 type ipvlan mode l2")
	for _, l := range w.links(t) {
		if l.ID < 1 || l.ID > 2 {
			t.Errorf("%s has id %d", l.Name, l.ID)
		}
	}
	w.must(t, "parent detach eth0")
	w.same(t, before)
}

// What there is no room for in the maps changes nothing.
func TestFull(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	w.must(t, "parent attach eth0 capacity 2")
	w.must(t, "link add link eth0 c1 netns "+w.inside.Name()+" up type ipvlan mode l2")
	w.must(t, "link add link eth0 s1 netns "+w.inside.Name()+" type macvlan mode source macaddr set 02:00:00:00:00:01 02:00:00:00:00:02")
	var addrs, macs []string
	for i := range 1100 { // there are 16 for each, and 1,024 for the host
		addrs = append(addrs, fmt.Sprintf("10.78.%d.%d/16", i/250, i%250+1))
	}
	for i := range 40 { // there are 16 for each
		macs = append(macs, fmt.Sprintf("02:00:00:00:01:%02x", i))
	}
	file := w.fileOf(t, "parents: [{name: eth0, capacity: 2, links: [{name: c1, type: ipvlan, mode: l2, netns: INSIDE, addr: ["+strings.Join(addrs, ", ")+"]}]}]")
	full, config := w.snapshot(t), w.must(t, "config")
	for line, says := range map[string]string{
		"link set s1 type macvlan macaddr set " + strings.Join(macs, " "): "enter source 02:00:00:00:01:|no room|all 32 places|higher capacity",
		"apply -f " + file: "enter 10.78.4.|no room|all 1056 places|higher capacity",
	} {
		r := w.xvlan(t, strings.Fields(line)...)
		r.refused(t, exitFail)
		r.says(t, says)
		w.same(t, full)
		if now := w.must(t, "config"); now != config {
			t.Errorf("it was\n%s\nand is now\n%s", config, now)
		}
		if l := w.links(t); len(l) != 2 || len(l[0].Addrs) != 0 {
			t.Errorf("now there are %+v", l)
		}
	}
	w.must(t, "link del s1")
	alone := w.snapshot(t)
	for line, says := range map[string]string{
		"link add link eth0 s1 type macvlan mode source macaddr set " + strings.Join(macs, " "):   "no room|all 32 places",
		"link add link eth0 c2 up addr " + strings.Join(addrs, " addr ") + " type ipvlan mode l2": "no room|all 1056 places",
	} {
		r := w.xvlan(t, strings.Fields(line)...)
		r.refused(t, exitFail)
		r.says(t, says)
		w.same(t, alone)
	}
	w.must(t, "parent detach eth0")
	w.same(t, before)
}

// Maps that another version has made are left as they are by all commands, and
// packets flow.
func TestOtherSchema(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	w.must(t, "link add link eth0 c1 addr "+subAddr+"/24 netns "+w.inside.Name()+" up type macvlan mode bridge")
	setSchema := func(version uint32) {
		meta, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, w.pins(t)[0], bpf.MapMeta), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer meta.Close()
		record, err := meta.LookupBytes(uint32(0))
		if err != nil {
			t.Fatal(err)
		}
		binary.NativeEndian.PutUint32(record, version)
		if err := meta.Put(uint32(0), record); err != nil {
			t.Fatal(err)
		}
	}
	setSchema(bpf.Schema + 41)
	attached := w.snapshot(t)
	for _, line := range []string{
		"link show", "link show c1", "-j link", "parent show", "link del c1", "link set c1 netns " + w.host.Name(),
		"config", "top -b -n 1", "monitor", "capture c1 -c 1", "trace eth0 hex 0102", "parent upgrade", "parent upgrade eth0",
		"apply -f " + w.fileOf(t, "parents: [{name: eth0, links: [{name: c1, type: macvlan, mode: private}]}]"),
		"link add link eth0 c2 type macvlan mode bridge", "link add --datapath kernel link eth0 c2 type macvlan mode bridge",
		"parent attach eth0", "parent attach eth0 unknown drop", "parent detach eth0",
	} {
		t.Run(line, func(t *testing.T) {
			r := w.xvlan(t, strings.Fields(line)...)
			r.refused(t, exitFail)
			r.says(t, fmt.Sprintf("eth0|%d|%d", bpf.Schema+41, bpf.Schema))
			w.same(t, attached)
		})
	}
	ping(t, w.inside, "c1", wireAddr)
	setSchema(bpf.Schema)
	w.must(t, "link del c1")
	w.same(t, before)
}

// A parent that holds another's XDP program is not xdp's to have, but tc's.
func TestForeignXDP(t *testing.T) {
	w := newWorld(t)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	for _, mode := range []ebpflink.XDPAttachFlags{ebpflink.XDPDriverMode, ebpflink.XDPGenericMode} {
		var held ebpflink.Link
		w.host.Do(t, func() {
			held, err = ebpflink.AttachXDP(ebpflink.XDPOptions{Program: prog, Interface: parentIndex, Flags: mode})
		})
		if err != nil {
			t.Fatal(err)
		}
		before := w.snapshot(t)
		for _, line := range []string{"link add --datapath xdp link eth0 c1 type macvlan mode bridge", "parent attach eth0 --datapath xdp"} {
			r := w.xvlan(t, strings.Fields(line)...)
			r.refused(t, exitFail)
			r.says(t, "eth0|in use by somebody else|another XDP program|--datapath tc")
			w.same(t, before)
		}
		w.must(t, "probe eth0")
		w.must(t, "link add link eth0 c1 netns "+w.inside.Name()+" addr 10.77.0.10/24 up type macvlan mode bridge")
		ping(t, w.inside, "", wireAddr)
		w.must(t, "link del c1")
		w.same(t, before)
		held.Close()
	}
}

// A user without any privilege is told so, and may look.
func TestNoRoot(t *testing.T) {
	w := newWorld(t)
	lab.Veth(t, w.host, "eth1", w.wire, "w1")
	w.must(t, "link add link eth0 c1 type macvlan mode bridge")
	before := w.snapshot(t)
	coverage, err := os.MkdirTemp("", "xvlan-cover-") // where a binary with coverage wants to write
	if err == nil {
		err = os.Chmod(coverage, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(coverage) })
	for line, want := range map[string]string{
		"link add link eth0 c2 type macvlan mode bridge":                   "not permitted|root",
		"link add --datapath kernel link eth1 c2 type macvlan mode bridge": "not permitted|root",
		"link del c1":         "not permitted|root",
		"link set c1 netns 1": "netns 1|not permitted",
		"link show":           "not permitted|root",
		"parent attach eth1":  "not permitted|root",
		"parent detach eth0":  "not permitted|root",
		"parent show":         "not permitted|root",
		"link del nope":       "not permitted|root",
		"link add link nope c2 type macvlan mode bridge":     "parent nope",
		"link add link eth0 c2/ type macvlan mode bridge":    `name "c2/"`,
		"-n " + w.inside.Name() + " link show":               "netns " + w.inside.Name() + "|not permitted",
		"link add link eth1 c2 type ipvlan mode l4":          "mode l4",
		"parent attach eth1 --datapath xdp unknown drop":     "not permitted|root",
		"link add link eth0 c2 type macvlan mode bridge up ": "up|not known",
	} {
		t.Run(line, func(t *testing.T) {
			cmd := command(t, strings.Fields(line)...)
			// By that name the file is found whoever may look into its folder.
			cmd.Path = "/proc/self/exe"
			cmd.Env = append(cmd.Env, "GOCOVERDIR="+coverage)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			r := w.process(t, cmd)
			if r.code == exitOK {
				t.Errorf("succeeds:\n%s", r.out)
			}
			r.refused(t, r.code)
			r.says(t, want)
			w.same(t, before)
		})
	}
	w.must(t, "link del c1")
}

// With CAP_NET_ADMIN alone the kernel's own drivers do, and are said to.
func TestNoBPF(t *testing.T) {
	lab.NeedTool(t, "setpriv")
	if raw, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled"); err == nil && strings.TrimSpace(string(raw)) == "0" {
		t.Log("this kernel lets everybody make BPF maps")
	}
	for _, lost := range []string{"-sys_admin,-bpf,-perfmon", "-sys_admin,-bpf", "-sys_admin,-perfmon"} {
		t.Run(lost, func(t *testing.T) {
			w := newWorld(t)
			lab.Veth(t, w.host, "eth1", w.wire, "w1")
			w.must(t, "link add link eth1 there type macvlan mode bridge")
			before := w.snapshot(t)
			less := func(line string) result {
				args := append([]string{"setpriv", "--bounding-set", lost}, command(t, strings.Fields(line)...).Args...)
				return w.process(t, wrapped(args...))
			}
			r := less("link add link eth0 c1 up addr 10.77.0.10/24 type macvlan mode bridge")
			if r.code != exitOK {
				t.Fatalf("link add: exit status %d\n%s", r.code, r.err)
			}
			lab.Eventually(t, "state of c1", func() bool { return strings.Contains(w.must(t, "link show c1"), "state UP") })
			r = less("-d link show c1")
			if !strings.Contains(r.out, "datapath kernel") || !strings.Contains(r.out, "datapath reason: BPF takes CAP_BPF") {
				t.Errorf("link show: exit status %d\n%s%s", r.code, r.out, r.err)
			}
			if root := w.must(t, "-d link show c1"); root != r.out {
				t.Errorf("root is shown\n%s\nthe others\n%s", root, r.out)
			}
			r = less("link add --datapath tc link eth0 c2 type macvlan mode bridge")
			r.refused(t, exitFail)
			if r = less("link del c1"); r.code != exitOK {
				t.Errorf("link del: exit status %d\n%s", r.code, r.err)
			}
			w.same(t, before)
			for _, line := range []string{"link add link eth0 --datapath tc c2 type macvlan mode bridge", "parent attach eth0 --datapath xdp"} {
				r = less(line)
				r.refused(t, exitFail)
				r.says(t, "datapath|not permitted|CAP_BPF")
			}
			w.same(t, before)
			// What is attached is acted on by maps and programs that are there.
			for _, line := range []string{"link add link eth1 c2 type macvlan mode bridge", "link del there", "link del c2"} {
				if r := less(line); r.code != exitOK {
					t.Errorf("%s: exit status %d\n%s", line, r.code, r.err)
				}
			}
		})
	}
}

// In a mount namespace where the bpf file system is not to be seen, nothing is
// made that would go with it.
func TestPrivateMounts(t *testing.T) {
	lab.NeedTool(t, "unshare")
	w := newWorld(t)
	lab.Veth(t, w.host, "eth1", w.wire, "w1")
	before := w.snapshot(t)
	w.must(t, "link add link eth1 there type macvlan mode bridge")
	attached := w.snapshot(t)
	private := func(line string) result {
		args := []string{"unshare", "-m", "sh", "-c", "umount " + pinDir + ` && exec "$@"`, "sh"}
		return w.process(t, wrapped(append(args, command(t, strings.Fields(line)...).Args...)...))
	}
	for _, line := range []string{
		"link add link eth0 c1 type macvlan mode bridge", "parent attach eth0", "parent detach eth1", "link del there",
		"link add link eth1 c1 type macvlan mode bridge", "link set there netns " + w.inside.Name(),
		"bench eth0", "bench",
	} {
		t.Run(line, func(t *testing.T) {
			r := private(line)
			r.refused(t, exitFail)
			r.says(t, "mount namespace of its own|xvlan -n NETNS|mount -t bpf bpf "+pinDir)
			w.same(t, attached)
		})
	}
	if r := private("probe eth0"); r.code != exitOK || !strings.Contains(r.out, "mount namespace of its own") {
		t.Errorf("probe: %+v", r)
	}
	// `ip netns exec` makes such a namespace too, and leaves /run as it is.
	for _, line := range []string{
		"link add link eth0 c1 up netns " + w.inside.Name() + " addr 10.77.0.10/24 type macvlan mode bridge",
		"link show c1", "link del c1", "link del there",
	} {
		args := append([]string{"ip", "netns", "exec", w.host.Name()}, command(t, strings.Fields(line)...).Args...)
		cmd := wrapped(args...)
		start(t, w.wire.Do, cmd)
		if r := wait(t, cmd); r.code != exitOK || r.err != "" {
			t.Errorf("ip netns exec: %s: %+v", line, r)
		}
		if line == "link show c1" {
			ping(t, w.inside, "", wireAddr)
		}
	}
	w.same(t, before)
}
