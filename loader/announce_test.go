package loader

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// announced waits for the announcements of addresses.
func announced(t *testing.T, c *lab.Capture, what string, mac net.HardwareAddr, addrs ...netip.Addr) {
	t.Helper()
	left := map[netip.Addr]bool{}
	for _, a := range addrs {
		left[a] = true
	}
	c.Matching(1, socketTime, func(f lab.Frame) bool {
		for a := range left {
			if bytes.HasPrefix(f.Data, announcement(mac, a)) {
				delete(left, a)
			}
		}
		return len(left) == 0
	})
	if len(left) > 0 {
		t.Errorf("%s: not announced with %s: %v", what, mac, left)
	}
}

// TestAnnounced looks for what a sub-interface with given addresses says of
// them on the wire and to a sibling: when it is made, comes up, or has another
// MAC. Those by hand are the business of whoever sets them.
func TestAnnounced(t *testing.T) {
	onRungs(t, []rungCase{onTCX, onClsact, onMacvlan, onIpvlan}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		sibling := s.subs[0]
		s.addByHand(t, sibling, sibling.ip4, sibling.ip6)
		wire, inside := s.wire.ns.Capture(t, s.wire.dev), sibling.ns.Capture(t, sibling.dev)
		for i := 1; i < len(s.subs); i += 2 { // one of each kind
			e := s.subs[i]
			// IPv6 addresses are announced when nobody else has them for sure.
			e.ns.Sysctl(t, "net.ipv6.conf.all.accept_dad", "1")
			e.ns.Sysctl(t, "net.ipv6.conf.default.accept_dad", "1")
			heard := func(what string) {
				t.Helper()
				mac := s.link(t, e).WireMAC
				announced(t, wire, e.name+" "+what, mac, e.addrs()...)
				announced(t, inside, e.name+" "+what, mac, e.addrs()...)
			}
			s.addAtOnce(t, e, e.ip4, e.ip6)
			heard("made")
			e.ns.Run(t, "ip", "link", "set", e.dev, "down")
			e.ns.Addr(t, e.dev, e.ip6.String()) // which it has lost
			e.ns.Up(t, e.dev)
			heard("up again")
			if e.kind == maps.Macvlan {
				e.ns.Run(t, "ip", "link", "set", e.dev, "address", "02:00:00:00:00:55")
				s.sweep(t)
				heard("with another MAC")
			}
		}
	})
}

// saidAgain waits for as many announcements of addresses as RFC 5227 and RFC 4861 say.
func saidAgain(t *testing.T, c *lab.Capture, what string, mac net.HardwareAddr, addrs ...netip.Addr) {
	t.Helper()
	left := map[netip.Addr]int{}
	for _, a := range addrs {
		left[a] = announceTimes
		if a.Is4() {
			left[a] = 2
		}
	}
	c.Matching(1, socketTime, func(f lab.Frame) bool {
		for a := range left {
			if bytes.HasPrefix(f.Data, announcement(mac, a)) {
				if left[a]--; left[a] == 0 {
					delete(left, a)
				}
			}
		}
		return len(left) == 0
	})
	for a, n := range left {
		t.Errorf("%s: %s should have been announced %d times more with %s", what, a, n, mac)
	}
}

// TestAnnouncedAgain has somebody serve who repeats what is announced, and announces
// what nobody else does: addresses that are set by hand, a parent that has its carrier
// back or is made anew.
func TestAnnouncedAgain(t *testing.T) {
	onRungs(t, withNetkit([]rungCase{onTCX, onClsact}), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.serve(t)
		mac1, ip1 := s.sub(t, "mac1"), s.sub(t, "ip1")
		wire := s.wire.ns.Capture(t, s.wire.dev)
		heard := func(what string, subs ...*end) {
			t.Helper()
			for _, e := range subs {
				saidAgain(t, wire, e.name+" "+what, s.link(t, e).WireMAC, e.addrs()...)
			}
		}
		s.addAtOnce(t, mac1, mac1.ip4, mac1.ip6)
		heard("made", mac1)
		s.addByHand(t, ip1, ip1.ip4, ip1.ip6)
		heard("by hand", ip1)
		wire = s.wire.ns.Capture(t, s.wire.dev)
		const other = "02:00:00:00:00:66"
		s.host.ns.Run(t, "ip", "link", "set", parentDev, "address", other)
		lab.Eventually(t, "it is followed", func() bool { return s.link(t, ip1).WireMAC.String() == other })
		heard("with the parent's new MAC", ip1)
		wire = s.wire.ns.Capture(t, s.wire.dev)
		s.wire.ns.Run(t, "ip", "link", "set", s.wire.dev, "down")
		lab.Eventually(t, "its carrier is lost", func() bool { return !running(mac1.linkFlags(t)) })
		s.wire.ns.Up(t, s.wire.dev)
		heard("with its carrier back", mac1)
		s.host.ns.Run(t, "ip", "link", "del", parentDev)
		lab.Veth(t, s.host.ns, parentDev, s.wire.ns, s.wire.dev)
		wire = s.wire.ns.Capture(t, s.wire.dev) // for what is repeated
		announced(t, wire, ip1.name+" with its parent back", s.host.mac(t), ip1.addrs()...)
	})
}

// TestAnnouncedOnce has nobody serve: the command that finds the parent back tells.
func TestAnnouncedOnce(t *testing.T) {
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		again := s.deleteParent(t)
		s.sweep(t)
		again()
		wire := s.wire.ns.Capture(t, s.wire.dev)
		s.sweep(t)
		for _, e := range s.subs {
			announced(t, wire, e.name, s.link(t, e).WireMAC, e.addrs()...)
		}
	})
}

// TestAnnouncedSlowly has several announcements due at once, by a host with so many
// devices that one takes its time.
func TestAnnouncedSlowly(t *testing.T) {
	s := newSite(t, onTCX, siteOption{})
	s.do(t, func(h *Host) error {
		h.watch = &watched{repeats: map[leg]repeat{}, devices: map[device]*known{}}
		defer func() { h.watch = nil }()
		for i := range 1_000_000 {
			h.watch.devices[device{0, i}] = nil
		}
		for i := range 3 {
			h.watch.announce(leg{1_000_000 + i, "gone"})
		}
		for range 2 {
			next, sent := h.announceDue(), 0
			for _, r := range h.watch.repeats {
				sent += r.done
			}
			if sent != 1 || !next.Equal(h.watch.pause) {
				t.Errorf("%d were sent, the next at %s, and should have been 1, at %s", sent, next, h.watch.pause)
			}
		}
		return nil
	})
}
