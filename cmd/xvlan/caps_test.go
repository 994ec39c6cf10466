package main

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// capped runs a command as root with these capabilities and no others.
func (w *world) capped(t *testing.T, caps []string, line string) result {
	t.Helper()
	args := []string{"setpriv", "--inh-caps", "-all", "--bounding-set", "-all,+" + strings.Join(caps, ",+")}
	return w.process(t, wrapped(append(args, command(t, strings.Fields(line)...).Args...)...))
}

// What takes which capabilities: with them it is done, and without one it is
// not, or not without complaint.
func TestCapabilities(t *testing.T) {
	lab.NeedTool(t, "setpriv")
	w := newWorld(t)
	w.must(t, "parent attach eth0") // the bpf file system is mounted then
	w.must(t, "parent detach eth0")
	pid := strconv.Itoa(w.inside.Start(t, "sleep", "1000").Process.Pid)
	for _, tt := range []struct{ caps, line, undo string }{
		{"net_admin bpf perfmon", "parent attach eth0 --datapath tc", "parent detach eth0"},
		{"net_admin bpf perfmon", "link add --datapath tc link eth0 c1 addr 10.77.0.10/24 up type macvlan mode bridge", "link del c1"},
		{"net_admin bpf perfmon", "link add --datapath tc link eth0 c1 type ipvlan mode l3s", "link del c1"},
		{"net_admin sys_admin", "link add --datapath tc link eth0 c1 netns " + w.inside.Name() + " type macvlan mode bridge", "link del c1"},
		{"net_admin sys_admin sys_ptrace", "link add --datapath tc link eth0 c1 netns " + pid + " type macvlan mode bridge", "link del c1"},
	} {
		t.Run(tt.line, func(t *testing.T) {
			caps := strings.Fields(tt.caps)
			there := w.snapshot(t)
			for _, lost := range caps {
				r := w.capped(t, slices.DeleteFunc(slices.Clone(caps), func(c string) bool { return c == lost }), tt.line)
				if r.refused(t, exitFail); !strings.Contains(r.err, "not permitted") {
					t.Errorf("without %s: %s", lost, r.err)
				}
				w.same(t, there)
			}
			if r := w.capped(t, caps, tt.line); r.code != exitOK || r.err != "" {
				t.Errorf("with %v: %+v", caps, r)
			}
			w.must(t, tt.undo)
			w.same(t, there)
		})
	}
}

// What serve has in its unit is what it needs to follow.
func TestServeCapabilities(t *testing.T) {
	lab.NeedTool(t, "setpriv")
	w := newWorld(t)
	before := w.snapshot(t)
	w.must(t, "link add link eth0 c1 addr "+subAddr+"/24 netns "+w.inside.Name()+" up type ipvlan mode l2")
	caps := []string{"net_admin", "sys_admin", "net_raw"}
	for i, lost := range append(caps, "") {
		// Its MAC, for the addresses to be announced, and its MTU.
		w.host.Run(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:78:0"+strconv.Itoa(i), "mtu", strconv.Itoa(1400+i))
		r := w.capped(t, slices.DeleteFunc(slices.Clone(caps), func(c string) bool { return c == lost }), "link show")
		if complains := r.code != exitOK || r.err != ""; complains != (lost != "") {
			t.Errorf("without %q: %+v", lost, r)
		}
	}
	r := w.capped(t, caps, "serve --listen 127.0.0.1:0")
	if r.code != exitFail || !strings.Contains(r.err, "CAP_NET_BROADCAST") {
		t.Errorf("serve without net_broadcast: %+v", r)
	}
	unit, err := os.ReadFile("../../systemd/xvlan.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range append(caps, "net_broadcast", "sys_ptrace") {
		if !regexp.MustCompile(`(?m)^CapabilityBoundingSet=.*\bCAP_` + strings.ToUpper(c) + `\b`).Match(unit) {
			t.Errorf("its unit has no %s", c)
		}
	}
	w.host.Run(t, "ip", "link", "set", "eth0", "address", parentMAC, "mtu", "1500")
	w.must(t, "link del c1")
	w.same(t, before)
}
