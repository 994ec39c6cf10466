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
