package main

import (
	"strconv"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// A parent that is gone is shown to be so, by all that shows it, and its
// sub-interfaces can be changed and deleted; what takes the parent is refused.
func TestParentGone(t *testing.T) {
	w := newWorld(t)
	in := w.inside.Name()
	w.must(t, "parent attach eth0 unknown drop")
	w.must(t, "link add link eth0 c1 netns "+in+" up type macvlan mode bridge")
	w.must(t, "link add link eth0 c2 netns "+in+" up type ipvlan mode l2")
	_, base := w.startServing(t)
	monitor := command(t, "monitor", "links")
	start(t, w.do, monitor)
	defer monitor.Process.Kill() // it ends before, if all is well
	mtu := 1500
	lab.Eventually(t, "monitor has begun to tell", func() bool {
		mtu--
		w.host.Run(t, "ip", "link", "set", "eth0", "mtu", strconv.Itoa(mtu))
		return lab.OutputOf(monitor) != ""
	})
	w.host.Run(t, "ip", "link", "del", "eth0")
	lab.Eventually(t, "metrics tell", func() bool {
		_, scraped := get(t, base+"/metrics")
		return strings.Contains(scraped, "xvlan_parent_present{parent=\"eth0\"} 0\n")
	})
	lab.Eventually(t, "monitor tells", func() bool {
		return strings.Contains(lab.OutputOf(monitor), "eth0 changed: gone none -> yes")
	})
	for line, want := range map[string]string{
		"link show c1":        "macvlan mode bridge datapath tc parent gone\n",
		"-j link show c1":     `"parent_gone": true`,
		"parent show":         "gone: a device of its name will take its place\n",
		"-j parent show eth0": `"gone": true`,
	} {
		if out := w.must(t, line); !strings.Contains(out, want) {
			t.Errorf("%s:\n%s\nhas no %q", line, out, want)
		}
	}
	for _, line := range []string{"link add link eth0 c3 type macvlan mode bridge", "parent attach eth0"} {
		r := w.xvlan(t, strings.Fields(line)...)
		r.refused(t, exitFail)
		r.says(t, "parent eth0|not found")
	}
	w.must(t, "link set c1 type macvlan mode private")
	w.must(t, "link set c2 type ipvlan mode l3")
	w.must(t, "parent upgrade")
	w.must(t, "link del c2")
	w.must(t, "link show c1")

	lab.VethWith(t, w.host, "eth0", w.wire, "w0", lab.VethOptions{MACA: mac(t, parentMAC), MACB: mac(t, wireMAC)})
	w.host.Addr(t, "eth0", hostAddr+"/24")
	w.wire.Addr(t, "w0", wireAddr+"/24")
	w.inside.Addr(t, "c1", subAddr+"/24")
	ping(t, w.inside, "", wireAddr)
	if out := w.must(t, "parent show"); strings.Contains(out, "gone") || !strings.Contains(out, "drop") {
		t.Errorf("it is back:\n%s", out)
	}
	interrupt(t, monitor)
	w.host.Run(t, "ip", "link", "del", "eth0")
	lab.Eventually(t, "it is gone again", func() bool { return strings.Contains(w.must(t, "parent show"), "gone") })
	w.must(t, "parent detach eth0")
	w.xvlan(t, "parent", "detach", "eth0").refused(t, exitFail)
}
