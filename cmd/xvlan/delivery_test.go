package main

import (
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// Delivery through a device's driver, said when it is made and later, shown,
// kept by a move, and undone.
func TestDelivery(t *testing.T) {
	lab.NeedTool(t, "ethtool")
	w := newWorld(t)
	before := w.snapshot(t)
	w.host.Run(t, "ethtool", "-K", "eth0", "rxvlan", "off")
	is := func(want string) {
		t.Helper()
		var links []struct {
			Delivery string `json:"delivery"`
		}
		unmarshal(t, w.must(t, "-j link show c1"), &links)
		if links[0].Delivery != want {
			t.Errorf("delivery is %q, want %q", links[0].Delivery, want)
		}
		if out := w.must(t, "-d link show c1"); !strings.Contains(out, " delivery "+want+"\n") {
			t.Errorf("shown as\n%s", out)
		}
	}
	features := func(netns *lab.Netns) string { return netns.Run(t, "ethtool", "-k", "c1") }
	w.must(t, "link add link eth0 c1 delivery xdp datapath xdp type macvlan mode bridge")
	is("xdp")
	on := features(w.host)
	w.must(t, "link set c1 delivery auto")
	is("leg")
	if off := features(w.host); on == off {
		t.Errorf("the device has the same features as before:\n%s", off)
	}
	w.must(t, "link set c1 delivery xdp")
	is("xdp")
	if again := features(w.host); again != on {
		t.Errorf("features of the device are\n%s\nwere\n%s", again, on)
	}
	w.must(t, "link set c1 netns "+w.inside.Name()+" delivery xdp")
	is("xdp")
	w.must(t, "link set c1 type macvlan mode private")
	is("xdp")
	w.must(t, "link set c1 delivery auto")
	is("peer")
	w.must(t, "link del c1")
	w.host.Run(t, "ethtool", "-K", "eth0", "rxvlan", "on")
	w.same(t, before)
}
