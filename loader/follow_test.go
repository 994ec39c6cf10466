package loader

import (
	"strings"
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

// TestFilter has others take a MAC out of the parent's filter, by hand and by taking
// the parent to another namespace and back.
func TestFilter(t *testing.T) {
	lab.NeedTool(t, "bridge")
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		e := s.sub(t, "mac1")
		s.addAtOnce(t, e, e.ip4)
		away := lab.NewNetns(t, "away")
		in := func() bool { return strings.Contains(state(t, s.host.ns, parentDev), e.mac(t).String()) }
		for name, lose := range map[string]func(){
			"deleted": func() { s.host.ns.Run(t, "bridge", "fdb", "del", e.mac(t).String(), "dev", parentDev, "self") },
			"moved": func() {
				s.host.ns.Run(t, "ip", "link", "set", parentDev, "netns", away.Name())
				away.Run(t, "ip", "link", "set", parentDev, "netns", s.host.ns.Name())
				s.host.ns.Up(t, parentDev)
			},
		} {
			if lose(); in() {
				t.Fatalf("%s, it is still in the filter", name)
			}
			if s.sweep(t); !in() {
				t.Errorf("%s, it is not in the filter again", name)
			}
			e.ping(t, s.wire.ip4.Addr())
		}
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
