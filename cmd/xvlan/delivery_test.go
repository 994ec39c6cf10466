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

// A sub-interface of a netkit pair, shown as such; where the kernel has none it
// is refused, and nothing is left of it.
func TestLeg(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	line := "link add link eth0 c1 leg netkit netns " + w.inside.Name() + " addr 10.77.0.10/24 up type macvlan mode bridge"
	if !lab.HasKind(t, "netkit") {
		r := w.xvlan(t, strings.Fields(line)...)
		r.refused(t, exitFail)
		r.says(t, "leg netkit|not supported here|Linux has from 6.8|this kernel is built without it|leave it out for veth")
		w.same(t, before)
		r = w.xvlan(t, "apply", "-f", w.fileOf(t, textOf("{name: c0, type: macvlan}, {name: c1, type: macvlan, leg: netkit}")))
		r.refused(t, exitFail)
		r.says(t, ":1:90: link c1: leg netkit: not supported here")
		w.same(t, before)
		return
	}
	w.must(t, "link add link eth0 c2 leg veth type ipvlan mode l2")
	other := w.snapshot(t)
	w.must(t, line)
	ping(t, w.inside, "", wireAddr)
	for name, want := range map[string]string{"c1": "netkit", "c2": "veth"} {
		var links []struct {
			Leg string `json:"leg"`
		}
		unmarshal(t, w.must(t, "-j link show "+name), &links)
		if links[0].Leg != want {
			t.Errorf("the leg of %s is %q, want %q", name, links[0].Leg, want)
		}
		if out := w.must(t, "-d link show "+name); !strings.Contains(out, " leg "+want+" host leg ") {
			t.Errorf("shown as\n%s", out)
		}
	}
	attached := w.snapshot(t)
	r := w.xvlan(t, "link", "set", "c1", "delivery", "xdp")
	r.refused(t, exitFail)
	r.says(t, "delivery xdp|netkit|leg veth")
	w.same(t, attached)
	r = w.xvlan(t, "apply", "-f", w.fileOf(t, textOf("{name: c2, type: ipvlan, mtu: 1400}, {name: c1, type: macvlan, delivery: xdp}")))
	r.refused(t, exitFail)
	r.says(t, "link c1: delivery xdp: not supported here: a netkit's driver has no XDP")
	w.same(t, attached)
	w.must(t, "link del c1")
	w.same(t, other)
	w.must(t, "link del c2")
	w.same(t, before)
}
