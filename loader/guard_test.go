package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/lab/spoof"
	"github.com/xvlan/xvlan/maps"
)

// guardOn is a guard without a budget.
func guardOn() GuardSpec {
	unlimited := uint32(0)
	return GuardSpec{Guard: &maps.Guard{On: true}, Rate: &unlimited}
}

// guarded makes all sub-interfaces, quiet ones, the first of each kind with a guard.
func (s *site) guarded(t *testing.T) (all []*end) {
	t.Helper()
	s.populateQuiet(t)
	for _, e := range s.subs {
		if e.name == "mac2" || e.name == "ip2" {
			continue
		}
		sel := Selector{Name: e.dev, Netns: e.ns.Name()}
		s.do(t, func(h *Host) error { return h.SetAddrs(sel, []netip.Prefix{e.ip4}) })
		s.do(t, func(h *Host) error { return h.SetGuard(sel, guardOn()) })
		all = append(all, e)
	}
	return all
}

// scene has a sub-interface speak.
func (s *site) scene(t *testing.T, e *end) spoof.Scene {
	t.Helper()
	party := func(e *end) spoof.Party {
		return spoof.Party{MAC: spoof.MAC(e.mac(t)), IP4: e.ip4.Addr(), IP6: e.ip6.Addr()}
	}
	free4, free6 := spare(99)
	return spoof.Scene{
		Me: party(e), Sibling: party(s.sub(t, "mac2")), Host: party(s.host), Wire: party(s.wire),
		Local: netip.MustParseAddr("fe80::5:1"), Free4: free4.Addr(), Free6: free6.Addr(),
		Broadcast4: netip.MustParseAddr("10.77.0.255"), Stranger: spoof.MAC{2, 0xcc, 0, 0, 0, 0xcc},
	}
}

// sentDrops are what the programs have dropped of what somebody sent, by reason.
func sentDrops(stats maps.Stats) map[maps.Verdict]uint64 {
	all := map[maps.Verdict]uint64{}
	for _, v := range maps.SentDrops() {
		if n := stats[v].Packets; n > 0 && v != maps.DropRingTX {
			all[v] = n
		}
	}
	return all
}

// TestGuardAttacks says, by raw sockets, everything that must not be said: each time
// its own counter moves by one, and no other; and nobody hears of it.
func TestGuardAttacks(t *testing.T) {
	onRungs(t, []rungCase{onTCX, onClsact, onNetkit}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true}) // whose stacks speak by themselves
		for _, e := range s.guarded(t) {
			modes := []maps.Mode{maps.Bridge}
			if e.kind == maps.Ipvlan {
				modes = []maps.Mode{maps.L2, maps.L3}
			}
			for _, mode := range modes {
				t.Run(fmt.Sprintf("%s-%s", e.name, mode), func(t *testing.T) { s.attack(t, e, mode) })
			}
		}
	})
}

func (s *site) attack(t *testing.T, e *end, mode maps.Mode) {
	sel := Selector{Name: e.dev, Netns: e.ns.Name()}
	s.do(t, func(h *Host) error { return h.SetMode(sel, ModeChange{Mode: mode}) })
	// It has an IPv6 address, though nobody's stack has IPv6.
	set, err := maps.Open(s.h.folder(s.host.index(t)).path())
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	l := s.link(t, e)
	if err := set.ReplaceAddr(0, e.ip6.Addr(), maps.Dest{ID: l.ID, Gen: l.gen, Origin: maps.Given}); err != nil {
		t.Fatal(err)
	}
	s.sweep(t) // which sees that none are to be learned
	captures := map[string]*lab.Capture{"parent": s.host.ns.Capture(t, s.host.dev), "wire": s.wire.ns.Capture(t, s.wire.dev)}
	for _, other := range s.subs {
		if other != e {
			captures[other.name] = other.ns.Capture(t, other.dev)
		}
	}
	scene := s.scene(t, e)
	stats := func() maps.Stats {
		now, err := set.Stats(l.ID)
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	want := sentDrops(stats())
	for _, m := range scene.Lies() {
		e.ns.Send(t, e.dev, m.Frame)
		want[m.Why]++
		var now map[maps.Verdict]uint64
		lab.Eventually(t, m.Name+" is counted", func() bool {
			now = sentDrops(stats())
			return now[m.Why] >= want[m.Why]
		})
		if fmt.Sprint(now) != fmt.Sprint(want) {
			t.Fatalf("%s: dropped %v, want %v", m.Name, now, want)
		}
	}
	one, all := scene.Truths()
	if mode.Routed() {
		one, all = nil, nil // of which it carries few
	}
	for name, c := range captures {
		if frames := c.Frames(1, 0); len(frames) > 0 {
			t.Errorf("%s hears\n% x", name, frames[0].Data)
		}
	}
	before := stats()[maps.TX].Packets
	for _, m := range slices.Concat(one, all) {
		e.ns.Send(t, e.dev, m.Frame)
	}
	sent := before + uint64(len(one)+len(all))
	lab.Eventually(t, "what is true goes", func() bool { return stats()[maps.TX].Packets >= sent })
	if now := sentDrops(stats()); fmt.Sprint(now) != fmt.Sprint(want) {
		t.Errorf("of what is true are dropped %v, want %v", now, want)
	}
}

// TestGuardTraffic lets all who have a guard meet, those with given addresses and
// those without: nothing of it is dropped.
func TestGuardTraffic(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		for i, e := range s.subs {
			spec := s.spec(e)
			spec.Netns, spec.Guard = e.ns.Name(), guardOn()
			if i%2 == 0 {
				spec.Addrs, spec.Up = []netip.Prefix{e.ip4, e.ip6}, true
			}
			s.do(t, func(h *Host) error { return h.Add(spec) })
			if !spec.Up {
				e.ns.Addr(t, e.dev, e.ip4.String(), e.ip6.String())
				e.ns.Up(t, e.dev)
			}
			s.settle(t, e)
		}
		for _, p := range s.pairs() {
			for _, a := range p[1].addrs() {
				p[0].ping(t, a)
			}
		}
		for _, e := range s.subs {
			for _, ip := range []func(*end) netip.Addr{ip4Of, ip6Of} {
				bulk(t, e, s.wire, ip, 1<<20)
				bulk(t, s.wire, e, ip, 1<<20)
				echoUDP(t, e, s.wire, ip, 20000) // in fragments
			}
			l := s.link(t, e)
			if drops := sentDrops(l.Stats); len(drops) > 0 {
				t.Errorf("%s: dropped %v", e.name, drops)
			}
			if given := len(givenOf(l)) > 0; given == (l.Guard.Learn4 && l.Guard.Learn6) {
				t.Errorf("%s: %+v with %v", e.name, l.Guard, l.Addrs)
			}
		}
	})
}

// TestGuardInside is what root inside does to the device and on it: it speaks no more
// where it is another, and the host is as it was.
func TestGuardInside(t *testing.T) {
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		for _, e := range s.guarded(t) {
			t.Run(e.name, func(t *testing.T) { s.tamper(t, e) })
		}
	})
}

func (s *site) tamper(t *testing.T, e *end) {
	free4, _ := spare(99)
	mac := e.mac(t)
	before := s.outside(t, e)
	for _, c := range []struct {
		name     string
		do, undo []string // `ip` or another tool inside
		why      maps.Verdict
	}{
		{"MAC", []string{"ip", "link", "set", e.dev, "address", "02:00:00:00:77:99"}, []string{"ip", "link", "set", e.dev, "address", mac.String()}, maps.DropSourceMAC},
		{"a sibling's MAC", []string{"ip", "link", "set", e.dev, "address", s.sub(t, "mac2").mac(t).String()}, []string{"ip", "link", "set", e.dev, "address", mac.String()}, maps.DropSourceMAC},
		{"address", []string{"ip", "addr", "replace", free4.String(), "dev", e.dev}, []string{"ip", "addr", "del", free4.String(), "dev", e.dev}, maps.DropSourceIP},
		{"promiscuous", []string{"ip", "link", "set", e.dev, "promisc", "on"}, []string{"ip", "link", "set", e.dev, "promisc", "off"}, maps.TX},
		{"MTU", []string{"ip", "link", "set", e.dev, "mtu", "9000"}, []string{"ip", "link", "set", e.dev, "mtu", "1500"}, maps.TX},
		{"offloads", []string{"ethtool", "-K", e.dev, "tso", "off", "gso", "off", "tx", "off"}, []string{"ethtool", "-K", e.dev, "tx", "on", "gso", "on", "tso", "on"}, maps.TX},
		{"qdisc", []string{"tc", "qdisc", "add", "dev", e.dev, "clsact"}, []string{"tc", "qdisc", "del", "dev", e.dev, "clsact"}, maps.TX},
	} {
		e.ns.Run(t, c.do[0], c.do[1:]...)
		was := s.link(t, e).Stats
		from := e.ip4.Addr()
		if c.why == maps.DropSourceIP {
			from = free4.Addr()
		}
		conn := e.udp(t, from, 0)
		if _, err := conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(s.wire.ip4.Addr(), groupPort)); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		conn.Close()
		lab.Eventually(t, c.name+": its frame is counted as "+c.why.String(), func() bool { return s.link(t, e).Stats[c.why].Packets > was[c.why].Packets })
		if now := s.link(t, e).Stats; c.why != maps.TX && now[maps.TX] != was[maps.TX] {
			t.Errorf("%s: it has sent %v", c.name, now[maps.TX])
		}
		s.sweep(t)
		if diff := difference(before, s.outside(t, e)); len(diff) > 0 {
			t.Errorf("%s: outside\n%q", c.name, diff)
		}
		e.ns.Run(t, c.undo[0], c.undo[1:]...)
		s.relearn(t, e)
	}
	for _, kind := range []string{"macvlan", "vlan", "bridge"} {
		if kind != "bridge" && !lab.HasKind(t, kind) {
			continue
		}
		s.stack(t, e, kind)
		if diff := difference(before, s.outside(t, e)); len(diff) > 0 {
			t.Errorf("%s: outside\n%q", kind, diff)
		}
	}
}

// relearn has an end know the wire again, which it forgets with its MAC.
func (s *site) relearn(t *testing.T, e *end) {
	t.Helper()
	err := e.ns.Handle().NeighSet(&netlink.Neigh{
		LinkIndex: e.index(t), State: netlink.NUD_PERMANENT, IP: s.wire.ip4.Addr().AsSlice(), HardwareAddr: s.wire.mac(t),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// stack makes a device on, or with, a sub-interface's, and sends by that.
func (s *site) stack(t *testing.T, e *end, kind string) {
	t.Helper()
	why := maps.DropSourceMAC
	switch kind {
	case "vlan":
		why = maps.DropTag
		e.ns.Run(t, "ip", "link", "add", "link", e.dev, "name", "on", "type", "vlan", "id", "5")
	case "macvlan":
		e.ns.Run(t, "ip", "link", "add", "link", e.dev, "name", "on", "type", "macvlan", "mode", "bridge")
	case "bridge":
		e.ns.Run(t, "ip", "link", "add", "on", "type", "bridge")
		e.ns.Run(t, "ip", "link", "set", "on", "address", "02:00:00:00:77:98")
		e.ns.Run(t, "ip", "link", "set", e.dev, "master", "on")
		defer e.ns.Run(t, "ip", "link", "set", e.dev, "nomaster")
	}
	defer e.ns.Run(t, "ip", "link", "del", "on")
	e.ns.Run(t, "ip", "link", "set", "on", "up")
	scene := s.scene(t, e)
	scene.Me.MAC = spoof.MAC(e.ns.Link(t, "on").Attrs().HardwareAddr)
	one, _ := scene.Truths()
	was := s.link(t, e).Stats
	lab.Eventually(t, kind+" on it is refused as "+why.String(), func() bool {
		e.ns.Send(t, "on", one[0].Frame) // a bridge's port learns and forwards a while later
		return s.link(t, e).Stats[why].Packets > was[why].Packets
	})
	if now := s.link(t, e).Stats[maps.TX]; now != was[maps.TX] {
		t.Errorf("%s on it has sent %v", kind, now)
	}
}

// outside is what the host has of a sub-interface, of its parent and of the link.
func (s *site) outside(t *testing.T, e *end) []string {
	t.Helper()
	l := s.link(t, e)
	parent := s.host.ns.Link(t, s.host.dev).Attrs()
	return append(s.knowledge(t), fmt.Sprint("wire mac ", l.WireMAC), fmt.Sprint("addrs ", l.Addrs),
		fmt.Sprint("parent ", parent.HardwareAddr, parent.MTU, parent.Promisc, parent.RawFlags&unix.IFF_PROMISC),
		s.host.ns.Run(t, "bridge", "fdb", "show", "dev", s.host.dev))
}

// TestGuardChange turns guard and budget on and off, and asks for what there is not.
func TestGuardChange(t *testing.T) {
	onRungs(t, []rungCase{onTCX, onMacvlan}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		e := s.sub(t, "mac1")
		s.addByHand(t, e, e.ip4)
		sel := Selector{Name: e.dev, Netns: e.ns.Name()}
		set := func(g GuardSpec) error { return s.try(t, func(h *Host) error { return h.SetGuard(sel, g) }) }
		if r.datapath == Kernel {
			spec := s.spec(s.sub(t, "mac2"))
			spec.Name, spec.Guard = "mac2", guardOn()
			for _, err := range []error{set(guardOn()), s.try(t, func(h *Host) error { return h.Add(spec) })} {
				if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "guard") {
					t.Errorf("the kernel rung says %v", err)
				}
			}
			return
		}
		five := uint32(5)
		for _, c := range []struct {
			g    GuardSpec
			want maps.Guard
		}{
			{GuardSpec{Guard: &maps.Guard{On: true, DHCP: true}}, maps.Guard{On: true, DHCP: true, Rate: DefaultRate, Learn4: true, Learn6: true}},
			{GuardSpec{Rate: &five}, maps.Guard{On: true, DHCP: true, Rate: 5, Learn4: true, Learn6: true}},
			{GuardSpec{Guard: &maps.Guard{On: true, Given: true}}, maps.Guard{On: true, Given: true, Rate: DefaultRate}},
			{GuardSpec{Guard: &maps.Guard{}}, maps.Guard{}},
			{GuardSpec{Rate: &five}, maps.Guard{Rate: 5}},
			{guardOn(), maps.Guard{On: true, Learn4: true, Learn6: true}},
		} {
			if err := set(c.g); err != nil {
				t.Fatal(err)
			}
			l := s.link(t, e)
			if l.Guard != c.want {
				t.Errorf("%+v: guard is %+v, want %+v", c.g, l.Guard, c.want)
			}
			known := slices.ContainsFunc(l.Addrs, func(a LinkAddr) bool { return a.Addr == e.ip4.Addr() && a.Origin == maps.Learned })
			if known != (c.want.On && c.want.Learn4) {
				t.Errorf("%+v: addresses are %v", c.g, l.Addrs)
			}
		}
		s.do(t, func(h *Host) error { return h.SetAddrs(sel, []netip.Prefix{e.ip4}) })
		if g := s.link(t, e).Guard; g.Learn4 || !g.Learn6 {
			t.Errorf("with a given IPv4 address the guard is %+v", g)
		}
		mac := net.HardwareAddr{2, 0, 0, 0, 0x77, 0x99}
		s.do(t, func(h *Host) error { return h.SetDevice(sel, DeviceChange{MAC: mac}) })
		if l := s.link(t, e); l.WireMAC.String() != l.MAC.String() {
			t.Errorf("the administrator gave it %v, and it has %v on the wire", l.MAC, l.WireMAC)
		}
		e.ping(t, s.wire.ip4.Addr())
	})
}
