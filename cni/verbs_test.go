package cni

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// TestCheck finds what has been changed behind the plugin's back, and nothing
// else.
func TestCheck(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	c := w.net("net", "mode", "l2")
	addr := w.attach(t, c, a)
	ip := func(line string) { a.Run(t, "ip", strings.Fields(line)...) }
	for _, wrong := range []struct{ do, undo, says string }{
		{"link set eth0 down", "link set eth0 up", "eth0: it is down"},
		{"link set eth0 mtu 1400", "link set eth0 mtu 1500", ""}, // 1.0.0 does not tell it
		{"addr del " + addr + "/24 dev eth0", "addr add " + addr + "/24 dev eth0", "eth0: it has lost its address " + addr + "/24"},
		{"route replace default dev eth0", "route replace default via " + wireAddr, "route to 0.0.0.0/0"},
	} {
		ip(wrong.do)
		if err := w.check(t, c, a); wrong.says == "" && err != nil {
			t.Errorf("after ip %s: %v", wrong.do, err)
		} else if wrong.says != "" {
			failed(t, err, types.ErrInternal, wrong.says)
		}
		ip(wrong.undo)
		if wrong.do == "link set eth0 down" || strings.HasPrefix(wrong.do, "addr del") {
			ip("route replace default via " + wireAddr)
		}
		if err := w.check(t, c, a); err != nil {
			t.Errorf("after ip %s: %v", wrong.undo, err)
		}
	}
	change := func(fn func(h *loader.Host, sel loader.Selector) error) {
		t.Helper()
		err := w.loader(t, func(h *loader.Host) error { return fn(h, loader.Selector{Name: "eth0", Netns: a.Name()}) })
		if err != nil {
			t.Fatal(err)
		}
	}
	change(func(h *loader.Host, sel loader.Selector) error {
		return h.SetMode(sel, loader.ModeChange{Flag: maps.ClassVEPA})
	})
	failed(t, w.check(t, c, a), types.ErrInternal, "its flag is vepa, and should be bridge")
	change(func(h *loader.Host, sel loader.Selector) error {
		return h.SetMode(sel, loader.ModeChange{Flag: maps.ClassBridge, Mode: maps.L3})
	})
	failed(t, w.check(t, c, a), types.ErrInternal, "its mode is ipvlan l3, and should be ipvlan l2")
	change(func(h *loader.Host, sel loader.Selector) error {
		return h.SetMode(sel, loader.ModeChange{Mode: maps.L2})
	})
	for _, on := range []bool{true, false} {
		change(func(h *loader.Host, sel loader.Selector) error { return h.SetHost(sel, on) })
		if on {
			failed(t, w.check(t, c, a), types.ErrInternal, "its host access is on, and should be off")
		}
	}
	for _, nets := range [][]netip.Prefix{{netip.MustParsePrefix("10.96.0.0/12")}, nil} {
		change(func(h *loader.Host, sel loader.Selector) error { return h.SetVia(sel, nets) })
		if nets != nil {
			failed(t, w.check(t, c, a), types.ErrInternal, "what it reaches by way of the host is [10.96.0.0/12], and should be []")
		}
	}
	rate := uint32(7)
	for _, g := range []struct {
		guard loader.GuardSpec
		says  string
	}{
		{loader.GuardSpec{Guard: &maps.Guard{On: true, Router: true}}, "its guard is on,router, and should be off"},
		{loader.GuardSpec{Guard: &maps.Guard{}, Rate: &rate}, "its bcrate is 7, and should be 0"},
		{loader.GuardSpec{Guard: &maps.Guard{}}, ""},
	} {
		change(func(h *loader.Host, sel loader.Selector) error { return h.SetGuard(sel, g.guard) })
		if g.says != "" {
			failed(t, w.check(t, c, a), types.ErrInternal, g.says)
		}
	}
	for _, id := range []uint16{10, 0} {
		change(func(h *loader.Host, sel loader.Selector) error { return h.SetVLAN(sel, loader.VLANSpec{ID: &id}) })
		if id != 0 {
			failed(t, w.check(t, c, a), types.ErrInternal, "its VLAN is vlan 10, and should be none")
		}
	}
	change(func(h *loader.Host, sel loader.Selector) error { return h.SetAddrs(sel, nil) })
	ip("addr add " + addr + "/24 dev eth0")
	ip("route replace default via " + wireAddr)
	failed(t, w.check(t, c, a), types.ErrInternal, "its address "+addr+"/24 does not lead to it")
	change(func(h *loader.Host, sel loader.Selector) error { return h.Del(sel) })
	failed(t, w.check(t, c, a), types.ErrInternal, "eth0: not found")
	w.detach(t, c, a)
	w.clean(t)
}

// TestGC removes what the runtime does not name any more: of the network, and
// nothing of others.
func TestGC(t *testing.T) {
	t.Parallel()
	for _, datapath := range []string{"tc", "kernel"} {
		w := newWorld(t)
		w.newer(t)
		c, other := w.net("net", "cniVersion", "1.1.0", "datapath", datapath), w.net("net.2", "cniVersion", "1.1.0", "datapath", datapath)
		var spaces []*lab.Netns
		for _, role := range []string{"kept", "left", "gone", "other", "hand"} {
			spaces = append(spaces, lab.NewNetns(t, role))
		}
		kept, left, gone, foreign, hand := spaces[0], spaces[1], spaces[2], spaces[3], spaces[4]
		for _, n := range []*lab.Netns{kept, left, gone} {
			w.attach(t, c, n)
		}
		other["ipam"].(object)["ranges"].([][]object)[0][0]["rangeStart"] = "10.88.0.100"
		w.attach(t, other, foreign)
		err := w.loader(t, func(h *loader.Host) error {
			return h.Add(loader.LinkSpec{Parent: "lan0", Name: "eth0", Netns: hand.Name(), Kind: maps.Macvlan, Mode: maps.Bridge})
		})
		if err != nil {
			t.Fatal(err)
		}
		left.Run(t, "ip", "link", "set", "eth0", "name", "renamed")
		gone.Remove(t)
		_, err = w.raw(t, "GC", c, nil)
		failed(t, err, types.ErrInvalidNetworkConfig, "cni.dev/valid-attachments")
		w.host.Do(t, func() {
			err = w.cni.GCNetworkList(t.Context(), c.list(t), &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: kept.Name(), IfName: "eth0"}}})
		})
		if err != nil {
			t.Errorf("GC: %v", err)
		}
		var there []string
		for owner := range w.links(t) {
			there = append(there, owner)
		}
		slices.Sort(there)
		if want := []string{"", "cni/net.2/" + foreign.Name() + "/eth0", "cni/net/" + kept.Name() + "/eth0"}; !slices.Equal(there, want) {
			t.Errorf("there are %q, want %q", there, want)
		}
		if reserved := w.reserved(t); len(reserved) != 2 {
			t.Errorf("reserved are %v", reserved)
		}
		ping(t, kept, wireAddr)
		if err := w.loader(t, func(h *loader.Host) error { return h.Del(loader.Selector{Name: "eth0", Netns: hand.Name()}) }); err != nil {
			t.Error(err)
		}
		w.detach(t, other, foreign)
		w.detach(t, c, kept)
		w.clean(t)
	}
}

// TestStatus says so when no container could be attached.
func TestStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.newer(t)
	a := lab.NewNetns(t, "a")
	c := w.net("net", "cniVersion", "1.1.0", "mode", "passthru")
	status := func() error { _, err := w.raw(t, "STATUS", c, nil); return err }
	if err := status(); err != nil {
		t.Errorf("at first: %v", err)
	}
	w.attach(t, c, a)
	if err := status(); err != nil {
		t.Errorf("in use: %v", err)
	}
	w.detach(t, c, a)
	c["master"] = "lan1"
	failed(t, status(), codeNotAvailable, "master lan1")
	c["master"] = "lo"
	failed(t, status(), codeNotAvailable, "master lo|loopback")
	delete(c, "master")
	failed(t, status(), codeNotAvailable, "default route")
	c["linkInContainer"] = true
	if err := status(); err != nil {
		t.Errorf("with the master in the container: %v", err)
	}
	w.script(t, "host-local.busy", "cat >/dev/null; echo '{\"code\":51,\"msg\":\"few addresses are left\"}'; exit 1")
	c["ipam"] = object{"type": "host-local.busy"}
	failed(t, status(), 51, "ipam host-local.busy|few addresses")
	w.clean(t)
}
