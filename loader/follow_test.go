package loader

import (
	"testing"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// TestFollow changes inner legs by ip alone and looks whether a sweep notices.
func TestFollow(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		mac, ip1, ip2 := s.sub(t, "mac1"), s.sub(t, "ip1"), s.sub(t, "ip2")
		t.Run("MAC", func(t *testing.T) { s.followMAC(t, mac) })
		t.Run("address", func(t *testing.T) { s.followAddr(t, ip1, ip2) })
	})
}

func (s *site) followMAC(t *testing.T, e *end) {
	const want = "02:00:00:00:00:77"
	e.ns.Run(t, "ip", "link", "set", e.dev, "address", want)
	s.sweep(t)
	if got := s.link(t, e).WireMAC.String(); got != want {
		t.Errorf("the datapath has %s, want %s", got, want)
	}
	e.settle(t)
	s.wire.ns.Run(t, "ip", "neigh", "flush", "dev", s.wire.dev)
	e.ping(t, s.wire.ip4.Addr()) // the answer comes to the new one
	s.wire.ping(t, e.ip4.Addr())
}

// followAddr moves an address from one sub-interface to its sibling, which the
// first would keep for as long as nothing but packets told.
func (s *site) followAddr(t *testing.T, from, to *end) {
	a4, a6 := spare(120)
	from.ns.Run(t, "ip", "addr", "add", a4.String(), "dev", from.dev)
	from.ns.Run(t, "ip", "addr", "add", a6.String(), "dev", from.dev)
	from.settle(t)
	s.sweep(t)
	s.checkOrigin(t, from, maps.Learned, a4.Addr(), a6.Addr())
	for _, a := range []string{a4.String(), a6.String()} {
		from.ns.Run(t, "ip", "addr", "del", a, "dev", from.dev)
		to.ns.Run(t, "ip", "addr", "add", a, "dev", to.dev)
	}
	to.settle(t)
	s.sweep(t)
	s.checkOrigin(t, from, 0, a4.Addr(), a6.Addr())
	s.checkOrigin(t, to, maps.Learned, a4.Addr(), a6.Addr())
	s.wire.ping(t, a4.Addr())
	s.wire.ping(t, a6.Addr())
}
