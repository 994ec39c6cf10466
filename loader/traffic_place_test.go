package loader

import (
	"testing"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// TestAtOnce gives all that can be said of a sub-interface when it is made.
func TestAtOnce(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(allRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		for _, e := range s.subs {
			spec := s.spec(e)
			spec.Netns, spec.Addrs, spec.MTU, spec.Up = e.ns.Path(), append(spec.Addrs, e.ip4, e.ip6), 1400, true
			spec.MAC = randomMAC()
			if r.datapath == Kernel && e.kind == maps.Ipvlan { // they have their parent's
				spec.MTU, spec.MAC = 0, nil
			}
			s.do(t, func(h *Host) error { return h.Add(spec) })
			s.settle(t, e)
			dev := e.ns.Link(t, e.dev).Attrs()
			if spec.MAC != nil && dev.HardwareAddr.String() != spec.MAC.String() {
				t.Errorf("%s has MAC %s, want %s", e.name, dev.HardwareAddr, spec.MAC)
			}
			if spec.MTU != 0 && dev.MTU != spec.MTU {
				t.Errorf("%s has MTU %d, want %d", e.name, dev.MTU, spec.MTU)
			}
			e.ping(t, s.wire.ip4.Addr())
			s.wire.ping(t, e.ip6.Addr())
			l := s.link(t, e)
			if l.Kind != e.kind || l.Mode != spec.Mode || l.Place != maps.Away || l.MAC.String() != dev.HardwareAddr.String() {
				t.Errorf("%s is listed as %+v", e.name, l)
			}
		}
	})
}

// TestMoves takes sub-interfaces back into the parent's namespace and out
// again, with ip alone: once they have sent something, frames follow them.
func TestMoves(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(allRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		// With two devices on one link the host is to answer and send for each
		// by that device alone.
		for key, value := range map[string]string{"arp_ignore": "1", "arp_announce": "2", "rp_filter": "0"} {
			s.host.ns.Sysctl(t, "net.ipv4.conf.all."+key, value)
			s.host.ns.Sysctl(t, "net.ipv4.conf.default."+key, value)
			s.host.ns.Sysctl(t, "net.ipv4.conf."+parentDev+"."+key, value)
		}
		for _, e := range s.subs {
			if e.dev == parentDev { // the name is taken at home
				continue
			}
			home := *e
			home.ns = s.host.ns
			e.moveTo(t, &home)
			s.settle(t, &home)
			home.ping(t, s.wire.ip4.Addr())
			home.ping(t, s.wire.ip6.Addr())
			if r.datapath != Kernel {
				s.checkPlace(t, &home, maps.Local)
			}
			s.sweep(t) // its addresses stand among the host's now, and are not
			s.wire.ping(t, e.ip4.Addr())
			s.wire.ping(t, e.ip6.Addr())
			for _, sibling := range s.subs { // not the other way: the host would answer by the parent
				if sibling != e {
					home.ping(t, sibling.ip4.Addr())
					home.ping(t, sibling.ip6.Addr())
				}
			}
			home.moveTo(t, e)
			s.settle(t, e)
			e.ping(t, s.wire.ip4.Addr())
			e.ping(t, s.wire.ip6.Addr())
			s.checkPlace(t, e, maps.Away)
			s.wire.ping(t, e.ip4.Addr())
		}
	})
}

// moveTo takes an end's device to where another says, addresses and all.
func (e *end) moveTo(t *testing.T, to *end) {
	t.Helper()
	e.ns.Run(t, "ip", "link", "set", e.dev, "netns", to.ns.Name())
	to.ns.Addr(t, to.dev, to.ip4.String(), to.ip6.String())
	to.ns.Up(t, to.dev)
	to.settle(t)
}

func (s *site) checkPlace(t *testing.T, e *end, want maps.Place) {
	t.Helper()
	if got := s.link(t, e).Place; got != want {
		t.Errorf("%s: delivery is for place %d, want %d", e.name, got, want)
	}
}
