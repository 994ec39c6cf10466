package loader

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// The tests here are for devices of kinds that not every kernel is built with.
// Those of `make test-vm` have them all.

// needKind skips the test on a kernel that is built without a kind of device.
func needKind(t *testing.T, kind string) {
	t.Helper()
	if lab.HasKind(t, kind) {
		return
	}
	if os.Getenv("XVLAN_VM") != "" {
		t.Fatalf("the kernel has no %s, and had it", kind)
	}
	t.Skipf("the kernel has no %s", kind)
}

// checkError wants an error to wrap another and to say some words.
func checkError(t *testing.T, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func checkNoXDP(t *testing.T, r Rung) {
	t.Helper()
	if r.Rung != maps.RungTC || !strings.HasPrefix(r.Reason, "no native XDP: ") {
		t.Errorf("rung is %v (%s), want tc for want of native XDP", r.Rung, r.Reason)
	}
}

// TestVLANParent has a VLAN device on a veth as the parent.
func TestVLANParent(t *testing.T) {
	testVLAN(t, newSite(t, rungCase{kinds: both}, siteOption{}))
}

// testVLAN puts the site's sub-interfaces on a VLAN of its wire.
func testVLAN(t *testing.T, s *site) {
	t.Helper()
	needKind(t, "vlan")
	const dev = "tagged"
	ends := []*end{s.host, s.wire}
	before := state(t, s.host.ns, s.host.dev)
	for _, e := range ends {
		e.ns.Run(t, "ip", "addr", "flush", "dev", e.dev)
		e.ns.Run(t, "ip", "link", "add", "link", e.dev, "name", dev, "type", "vlan", "id", "10")
		t.Cleanup(func() { e.ns.Run(t, "ip", "link", "del", dev) })
		e.ns.Addr(t, dev, e.ip4.String(), e.ip6.String())
		e.ns.Up(t, dev)
	}
	tagged := state(t, s.host.ns, dev)
	wire := *s.wire
	wire.dev = dev
	for _, e := range s.subs {
		spec := s.spec(e)
		spec.Parent, spec.Netns, spec.Up, spec.Addrs = dev, e.ns.Name(), true, []netip.Prefix{e.ip4, e.ip6}
		s.do(t, func(h *Host) error { return h.Add(spec) })
	}
	for i, e := range s.subs {
		checkNoXDP(t, s.link(t, e).Rung)
		others := append([]*end{&wire}, s.subs[:i]...)
		for _, other := range others {
			for i, a := range other.addrs() {
				e.ping(t, a)
				other.ping(t, e.addrs()[i])
			}
		}
		bulk(t, &wire, e, ip4Of, 1<<20)
		bulk(t, e, &wire, ip6Of, 1<<20)
	}
	wire.ping(t, s.host.ip4.Addr())
	for _, e := range s.subs {
		s.del(t, e)
	}
	checkState(t, s.host.ns, dev, tagged)
	checkState(t, s.host.ns, s.host.dev, before)
	s.checkGone(t)
}

// TestStepDown has parents whose drivers have no native XDP.
func TestStepDown(t *testing.T) {
	for _, kind := range []string{"dummy", "vlan"} {
		t.Run(kind, func(t *testing.T) {
			needKind(t, kind)
			s := newSite(t, rungCase{kinds: both}, siteOption{})
			args := []string{"link", "add", "name", "p", "up", "type", kind}
			if kind == "vlan" {
				args = []string{"link", "add", "link", s.host.dev, "name", "p", "up", "type", kind, "id", "10"}
			}
			s.host.ns.Run(t, "ip", args...)
			before := state(t, s.host.ns, "p")
			var probe *Probe
			s.do(t, func(h *Host) (err error) { probe, err = h.Probe("p"); return err })
			checkNoXDP(t, probe.Rung)

			spec := LinkSpec{Parent: "p", Name: "c", Kind: maps.Macvlan, Mode: maps.Bridge, Datapath: XDP}
			err := s.try(t, func(h *Host) error { return h.Add(spec) })
			checkError(t, err, ErrUnsupported, "datapath xdp", "ask for tc")
			checkState(t, s.host.ns, "p", before)
			s.checkGone(t)

			spec.Datapath = Auto
			s.do(t, func(h *Host) error { return h.Add(spec) })
			got := s.link(t, &end{ns: s.host.ns, dev: "c"}).Rung
			if got != probe.Rung {
				t.Errorf("sub-interface stands on %v, probe said %v", got, probe.Rung)
			}
			s.do(t, func(h *Host) error { return h.Del(Selector{Name: "c"}) })
			checkState(t, s.host.ns, "p", before)
			s.checkGone(t)
		})
	}
}

// TestKernelRungIpvlan lists, moves and removes devices of the kernel's ipvlan,
// and keeps the two kinds apart.
func TestKernelRungIpvlan(t *testing.T) {
	needKind(t, "ipvlan")
	s := newSite(t, onIpvlan, siteOption{})
	one, two := s.subs[0], s.subs[1]
	strange := newEnd("mac1", lab.NewNetns(t, "mac1"), "mac1", maps.Macvlan, 11)
	before := state(t, s.host.ns, s.host.dev)
	add := func(e *end, datapath Datapath) error {
		spec := s.spec(e)
		spec.Datapath, spec.Netns, spec.Up, spec.Addrs = datapath, e.ns.Name(), true, []netip.Prefix{e.ip4, e.ip6}
		return s.try(t, func(h *Host) error { return h.Add(spec) })
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	talk := func() {
		t.Helper()
		for i, a := range one.addrs() {
			s.wire.ping(t, a)
			two.ping(t, a)
			one.ping(t, s.wire.addrs()[i])
			s.wire.ping(t, two.addrs()[i])
		}
	}
	listed := func(want ...*end) {
		t.Helper()
		var links []Link
		s.do(t, func(h *Host) (err error) { links, err = h.Links(); return err })
		if len(links) != len(want) {
			t.Errorf("%d are listed, want %d", len(links), len(want))
		}
		for _, e := range want {
			l := s.link(t, e)
			if l.Parent != s.host.dev || l.Kind != maps.Ipvlan || l.Mode != maps.L2 || l.Rung != (Rung{maps.RungKernel, askedFor}) {
				t.Errorf("%s is listed as %+v", e.name, l)
			}
		}
	}

	must(add(one, Kernel))
	must(add(two, Auto)) // stands where its sibling does
	talk()
	checkError(t, add(strange, Auto), ErrUnsupported, "macvlan", "one kind", "has ipvlan")
	for _, other := range []LinkSpec{{Mode: maps.L3}, {Mode: maps.L2, Flag: maps.ClassVEPA}} {
		other.Parent, other.Name, other.Kind, other.Datapath = s.host.dev, "other", maps.Ipvlan, Kernel
		err := s.try(t, func(h *Host) error { return h.Add(other) })
		checkError(t, err, ErrUnsupported, other.Mode.String(), "one mode and flag")
	}
	checkError(t, add(strange, TC), ErrExists, "stands on kernel", "detach")
	listed(one, two)

	// Elsewhere, by ip and by xvlan, which may also take it home.
	away, home := *one, *two
	away.ns, home.ns = lab.NewNetns(t, "away"), s.host.ns
	home.dev = "ip2"
	two.ns.Run(t, "ip", "link", "set", two.dev, "down")
	two.ns.Run(t, "ip", "link", "set", two.dev, "name", home.dev)
	two.dev = home.dev
	one.moveTo(t, &away)
	s.do(t, func(h *Host) error { return h.Move(Selector{Name: two.dev}, "") })
	listed(&away, &home)
	s.do(t, func(h *Host) error { return h.Move(Selector{Name: two.dev}, two.ns.Name()) })
	listed(&away, two)
	two.ns.Addr(t, two.dev, two.ip4.String(), two.ip6.String())
	two.ns.Up(t, two.dev)
	one = &away
	talk()

	s.del(t, one)
	listed(two)
	s.do(t, func(h *Host) error { return h.Detach(s.host.dev) })
	listed()
	checkState(t, s.host.ns, s.host.dev, before)

	// The other way round, and with somebody else's device.
	must(add(strange, Kernel))
	checkError(t, add(two, Auto), ErrUnsupported, "ipvlan", "one kind", "has macvlan")
	s.del(t, strange)
	s.host.ns.Run(t, "ip", "link", "add", "link", s.host.dev, "name", "theirs", "type", "macvlan")
	checkError(t, add(two, Kernel), ErrBusy, s.host.dev)
	listed()
}

// TestIngressQdisc attaches by a filter to the older kind of qdisc that others
// have put where clsact would be.
func TestIngressQdisc(t *testing.T) {
	lab.NeedTool(t, "tc")
	s := newSite(t, onClsact, siteOption{})
	s.host.ns.Run(t, "tc", "qdisc", "add", "dev", parentDev, "ingress")
	before := state(t, s.host.ns, parentDev)
	e := s.subs[0]
	s.addAtOnce(t, e, e.ip4, e.ip6)
	if got := state(t, s.host.ns, parentDev); !strings.Contains(got, "xvlan direct-action") {
		t.Errorf("no filter of ours:\n%s", got)
	}
	e.ping(t, s.wire.ip4.Addr())
	s.del(t, e)
	checkState(t, s.host.ns, parentDev, before)
	s.checkGone(t)
}
