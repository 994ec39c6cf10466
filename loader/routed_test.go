package loader

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// newRouted makes a site with two sub-interfaces in different subnets, each with
// nothing but a default route by its device, and a wire that has routes to them
// by the host.
func newRouted(t *testing.T, r rungCase) *site {
	t.Helper()
	r.kinds = []maps.Kind{maps.Ipvlan}
	s := newSite(t, r, siteOption{})
	s.host.ns.Sysctl(t, "net.ipv4.conf."+parentDev+".forwarding", "0")
	s.host.ns.Sysctl(t, "net.ipv6.conf.all.forwarding", "0")
	for i, prefixes := range [][2]string{{"10.0.1.10/24", "fd01::10/64"}, {"192.168.26.10/24", "fd26::10/64"}} {
		e := s.subs[i]
		e.ip4, e.ip6 = netip.MustParsePrefix(prefixes[0]), netip.MustParsePrefix(prefixes[1])
		s.wire.ns.Run(t, "ip", "route", "add", e.ip4.Masked().String(), "via", s.host.ip4.Addr().String())
		s.wire.ns.Run(t, "ip", "route", "add", e.ip6.Masked().String(), "via", s.host.ip6.Addr().String())
	}
	for _, a := range s.host.addrs() { // the host knows the wire, and has its link-local address
		s.wire.ping(t, a)
	}
	return s
}

// addRouted makes a sub-interface with given addresses and a default route.
func (s *site) addRouted(t *testing.T, e *end, mode maps.Mode, flag maps.Class) {
	t.Helper()
	spec := s.spec(e)
	spec.Mode, spec.Flag, spec.Netns, spec.Up, spec.Addrs = mode, flag, e.ns.Name(), true, []netip.Prefix{e.ip4, e.ip6}
	s.do(t, func(h *Host) error { return h.Add(spec) })
	s.settle(t, e)
	e.ns.Run(t, "ip", "route", "add", "default", "dev", e.dev)
	e.ns.Run(t, "ip", "-6", "route", "add", "default", "dev", e.dev)
}

// canForward6 tells whether l3s carries IPv6 without the host being a router
// on all of its devices.
func canForward6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/all/force_forwarding")
	return err == nil
}

// needForward6 makes it one where that is so.
func (s *site) needForward6(t *testing.T, mode maps.Mode) {
	t.Helper()
	if mode == maps.L3S && s.datapath != Kernel && !canForward6() {
		s.host.ns.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	}
}

// routedRungs are those on which ipvlan can be made.
var routedRungs = []rungCase{onXDP, onTCX, onClsact, onIpvlan}

// TestRoutedUnicast sends all that an ordinary stack sends between siblings in
// different subnets, and the wire.
func TestRoutedUnicast(t *testing.T) {
	lab.NeedTool(t, "ping")
	for _, mode := range []maps.Mode{maps.L3, maps.L3S} {
		t.Run(mode.String(), func(t *testing.T) {
			onRungs(t, withNetkit(routedRungs), func(t *testing.T, r rungCase) {
				s := newRouted(t, r)
				s.needForward6(t, mode)
				a, b := s.subs[0], s.subs[1]
				for _, e := range s.subs {
					s.addRouted(t, e, mode, 0)
					if l := s.link(t, e); l.Mode != mode || l.Class != maps.ClassBridge || l.Flags&unix.IFF_NOARP == 0 {
						t.Errorf("listed as %+v", l)
					}
				}
				for _, p := range [][2]*end{{a, b}, {b, a}, {a, s.wire}, {s.wire, b}, {s.wire, s.host}} {
					from, to := p[0], p[1]
					for _, addr := range to.addrs() {
						from.ping(t, addr)
						from.ping(t, addr, "-s", "4000")
					}
					for _, ip := range []func(*end) netip.Addr{ip4Of, ip6Of} {
						echoUDP(t, from, to, ip, 20000)
						bulk(t, from, to, ip, 1<<20)
					}
				}
				for _, e := range s.subs {
					s.del(t, e)
				}
				s.checkGone(t)
			})
		})
	}
}

// TestRoutedHost tells where the host stands: l3 passes by its stack and leaves
// the hop limit alone, l3s passes through it.
func TestRoutedHost(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newRouted(t, r)
		s.needForward6(t, maps.L3S)
		l3, l3s := s.subs[0], s.subs[1]
		s.addRouted(t, l3, maps.L3, 0)
		s.addRouted(t, l3s, maps.L3S, 0)
		for i, a := range s.wire.addrs() {
			l3.ping(t, a, "-t", "1")
			s.wire.ping(t, l3.addrs()[i], "-t", "1")
			l3s.ping(t, a, "-t", "2")
			s.wire.ping(t, l3s.addrs()[i], "-t", "2")
			l3.ping(t, l3s.addrs()[i], "-t", "1") // siblings meet without the host
			l3s.ping(t, l3.addrs()[i], "-t", "1")
			l3s.ping(t, s.host.addrs()[i], "-t", "1")
			s.host.ping(t, l3s.addrs()[i], "-I", s.link(t, l3s).Leg)
			if out, err := l3s.ns.Try(t, "ping", "-n", "-c", "1", "-W", "2", "-t", "1", a.String()); err == nil ||
				!strings.Contains(out, "Time to live exceeded") && !strings.Contains(out, "Hop limit") {
				t.Errorf("the host is no hop of l3s: %v\n%s", err, out)
			}
			l3.pingFails(t, s.host.addrs()[i])
		}
		if got := s.link(t, l3).Stats; got[maps.DropRoute].Packets != 0 {
			t.Errorf("%d had no route", got[maps.DropRoute].Packets)
		}
	})
}

// TestRoutedFirewall has a host that forwards what a sub-interface begins and
// nothing else: it must see both directions of l3s, and has no say in l3.
func TestRoutedFirewall(t *testing.T) {
	lab.NeedTool(t, "ping")
	lab.NeedTool(t, "nft")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newRouted(t, r)
		s.needForward6(t, maps.L3S)
		s.host.ns.Run(t, "nft", `add table inet t
			add chain inet t f { type filter hook forward priority 0; policy drop; }
			add rule inet t f ct state established accept
			add rule inet t f iifname "xv*" oifname "`+parentDev+`" accept`)
		l3, l3s := s.subs[0], s.subs[1]
		s.addRouted(t, l3, maps.L3, 0)
		s.addRouted(t, l3s, maps.L3S, 0)
		for i, a := range s.wire.addrs() {
			l3s.ping(t, a)
			s.wire.pingFails(t, l3s.addrs()[i])
			s.wire.ping(t, l3.addrs()[i])
		}
		bulk(t, l3s, s.wire, ip4Of, 128<<10)
		bulk(t, l3s, s.wire, ip6Of, 128<<10)
	})
}

// TestRoutedCarrier takes the parent's carrier away, and with it the host leg,
// which loses its routes.
func TestRoutedCarrier(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newRouted(t, r)
		s.needForward6(t, maps.L3S)
		s.h.stays = true // as with xvlan serve
		e := s.subs[0]
		s.addRouted(t, e, maps.L3S, 0)
		leg := s.link(t, e).Leg
		s.wire.ns.Run(t, "ip", "link", "set", s.wire.dev, "down")
		lab.Eventually(t, "the parent has no carrier", func() bool {
			return s.host.ns.Link(t, parentDev).Attrs().RawFlags&unix.IFF_LOWER_UP == 0
		})
		s.sweep(t)
		s.sweep(t)
		if out := s.host.ns.Run(t, "ip", "route", "show", "dev", leg); strings.TrimSpace(out) != "" {
			t.Errorf("the leg that is down has routes:\n%s", out)
		}
		s.wire.ns.Up(t, s.wire.dev)
		lab.Eventually(t, "the parent has a carrier", func() bool {
			return s.host.ns.Link(t, parentDev).Attrs().RawFlags&unix.IFF_LOWER_UP != 0
		})
		s.sweep(t)
		s.wire.ns.Run(t, "ip", "route", "replace", e.ip4.Masked().String(), "via", s.host.ip4.Addr().String())
		s.wire.ping(t, e.ip4.Addr())
		for _, family := range []string{"-4", "-6"} {
			if out := s.host.ns.Run(t, "ip", family, "route", "show", "dev", leg); !strings.Contains(out, "10.0.1.10") && !strings.Contains(out, "fd01::10") {
				t.Errorf("the leg has no route back:\n%s", out)
			}
		}
	})
}

// TestRoutedProxy lets the host answer ARP questions for an address of the link.
func TestRoutedProxy(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newRouted(t, r)
		e := s.subs[0]
		e.ip4, _ = spare(77)
		s.needForward6(t, maps.L3S)
		s.addRouted(t, e, maps.L3S, 0)
		s.wire.pingFails(t, e.ip4.Addr())
		s.host.ns.Run(t, "ip", "neigh", "add", "proxy", e.ip4.Addr().String(), "dev", parentDev)
		s.wire.ns.Run(t, "ip", "neigh", "flush", "dev", s.wire.dev)
		s.wire.ping(t, e.ip4.Addr())
		if got, want := s.wire.neighbour(t, e.ip4.Addr()), s.host.mac(t); got.String() != want.String() {
			t.Errorf("the wire sees it at %s, want %s", got, want)
		}
	})
}

// TestRoutedNoRoute counts what the host has no route for. What it answers, if
// anything, is lost.
func TestRoutedNoRoute(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newRouted(t, r)
		s.addRouted(t, s.subs[0], maps.L3, 0)
		e := s.subs[0]
		for i, a := range []string{"198.51.100.1", "2001:db8::1", "10.77.0.255"} {
			args := []string{"-n", "-c", "1", "-W", "0.2"}
			if strings.HasSuffix(a, "255") {
				args = append(args, "-b")
			}
			if out, err := e.ns.Try(t, "ping", append(args, a)...); err == nil {
				t.Errorf("%s answers:\n%s", a, out)
			}
			if got := s.link(t, e).Stats[maps.DropRoute].Packets; got != uint64(i+1) {
				t.Errorf("%s: %d had no route, want %d", a, got, i+1)
			}
		}
		s.host.ns.Run(t, "ip", "route", "add", "198.51.100.1", "via", s.wire.ip4.Addr().String())
		s.wire.ns.Run(t, "ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
		e.ping(t, netip.MustParseAddr("198.51.100.1"))
	})
}

// TestRoutedFlags keeps siblings apart, who can meet by the host where that
// forwards.
func TestRoutedFlags(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		for _, flag := range []maps.Class{maps.ClassPrivate, maps.ClassVEPA} {
			s := newRouted(t, r)
			a, b := s.subs[0], s.subs[1]
			s.addRouted(t, a, maps.L3, flag)
			s.addRouted(t, b, maps.L3, flag)
			for i, addr := range s.wire.addrs() {
				a.ping(t, addr)
				b.ping(t, addr)
				a.pingFails(t, b.addrs()[i])
			}
			want := uint64(0)
			if flag == maps.ClassPrivate {
				want = 2
			}
			if got := s.link(t, a).Stats[maps.DropMode].Packets; got < want || want == 0 && got > 20 {
				t.Errorf("%s: %d kept from the sibling, want %d", flag, got, want)
			}
			change := ModeChange{Flag: maps.ClassBridge}
			for _, e := range s.subs {
				s.do(t, func(h *Host) error { return h.SetMode(Selector{Name: e.dev, Netns: e.ns.Name()}, change) })
			}
			for _, addr := range b.addrs() {
				a.ping(t, addr)
			}
		}
	})
}

// TestRoutedLearned has addresses that nobody gave: the first packet from one
// tells it. In l3s the host learns the way with the next command.
func TestRoutedLearned(t *testing.T) {
	lab.NeedTool(t, "ping")
	for _, mode := range []maps.Mode{maps.L3, maps.L3S} {
		t.Run(mode.String(), func(t *testing.T) {
			onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
				s := newRouted(t, r)
				s.needForward6(t, mode)
				e, other := s.subs[0], s.subs[1]
				s.addRouted(t, e, mode, 0)
				s.addRouted(t, other, mode, 0)
				more := []netip.Addr{netip.MustParseAddr("10.0.1.77"), netip.MustParseAddr("fd01::77")}
				for i, a := range more {
					e.take(t, a)
					if mode == maps.L3S {
						s.sweep(t)
					} else {
						e.ns.Run(t, "ping", "-n", "-c", "1", "-W", "5", "-I", a.String(), s.wire.addrs()[i].String())
					}
					s.checkOrigin(t, e, maps.Learned, a)
					s.wire.ping(t, a)
					other.ping(t, a)
				}
				// Not the host's, the sibling's or the gateway's.
				before := s.dups(t, e)
				for i, a := range []netip.Addr{s.host.ip4.Addr(), other.ip4.Addr(), other.ip6.Addr()} {
					e.take(t, a)
					to := s.wire.ip4.Addr()
					if a.Is6() {
						to = s.wire.ip6.Addr()
					}
					_, _ = e.ns.Try(t, "ping", "-n", "-c", "1", "-W", "0.2", "-I", a.String(), to.String()) // unanswered
					if got := s.dups(t, e) - before; got < uint64(i+1) {
						t.Errorf("%s: %d refused, want %d", a, got, i+1)
					}
					e.ns.Run(t, "ip", "addr", "del", fmt.Sprintf("%s/%d", a, a.BitLen()), "dev", e.dev)
				}
				// What the device loses is forgotten.
				for _, a := range more {
					e.ns.Run(t, "ip", "addr", "del", fmt.Sprintf("%s/%d", a, a.BitLen()), "dev", e.dev)
				}
				s.sweep(t)
				s.checkOrigin(t, e, 0, more...)
				if out := s.host.ns.Run(t, "ip", "route"); strings.Contains(out, "10.0.1.77") {
					t.Errorf("the host has still a route:\n%s", out)
				}
			})
		})
	}
}

// take gives an end one address more, and waits until the kernel has a route to
// it, which for IPv6 is when the address ceases to be tentative.
func (e *end) take(t *testing.T, a netip.Addr) {
	t.Helper()
	e.ns.Run(t, "ip", "addr", "add", fmt.Sprintf("%s/%d", a, a.BitLen()), "dev", e.dev)
	e.settle(t)
}

// hostSettings are what l3s changes about the host.
func (s *site) hostSettings(t *testing.T) (all []string) {
	t.Helper()
	s.host.ns.Do(t, func() {
		for _, key := range []string{"ipv4 forwarding", "ipv6 forwarding", "ipv6 force_forwarding"} {
			family, name, _ := strings.Cut(key, " ")
			for _, dev := range []string{parentDev, "all", "default"} {
				value, err := sysctl(family, dev, name)
				if err != nil {
					t.Error(err)
				}
				all = append(all, fmt.Sprintf("%s %s %s", dev, key, value))
			}
		}
	})
	return append(all, strings.Split(s.host.ns.Run(t, "ip", "route"), "\n")...)
}

// TestRoutedChange takes a sub-interface through all modes of ipvlan, and looks
// that the host's settings are what was found whenever it does not need them.
func TestRoutedChange(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newRouted(t, r)
		s.needForward6(t, maps.L3S)
		e := s.subs[0]
		e.ip4, e.ip6 = spare(77) // on the link, for l2
		before := s.hostSettings(t)
		s.addAtOnce(t, e, e.ip4, e.ip6)
		leg := s.link(t, e).Leg
		hidden := s.legState(t, leg)
		for _, mode := range []maps.Mode{maps.L3, maps.L2, maps.L3S, maps.L3, maps.L3S, maps.L2} {
			s.do(t, func(h *Host) error {
				return h.SetMode(Selector{Name: e.dev, Netns: e.ns.Name()}, ModeChange{Mode: mode})
			})
			l := s.link(t, e)
			if l.Mode != mode || (l.Flags&unix.IFF_NOARP != 0) != mode.Routed() || l.Place != placeOf(maps.Sub{Mode: mode}, true) {
				t.Errorf("%s: listed as %+v", mode, l)
			}
			s.wire.ns.Run(t, "ip", "neigh", "flush", "dev", s.wire.dev)
			for i, a := range s.wire.addrs() {
				if mode.Routed() { // nobody answers questions for it
					s.wire.ns.Run(t, "ip", "neigh", "replace", e.addrs()[i].String(), "dev", s.wire.dev, "lladdr", s.host.mac(t).String())
				} else {
					s.wire.ns.Run(t, "ip", "neigh", "flush", "nud", "permanent", "dev", s.wire.dev)
				}
				e.ping(t, a)
				s.wire.ping(t, e.addrs()[i])
			}
			s.checkMember(t, e, !mode.Routed())
			if got := s.hostSettings(t); mode != maps.L3S && !slices.Equal(got, before) {
				t.Errorf("%s: the host has changed: %q, was %q", mode, got, before)
			} else if mode == maps.L3S && slices.Equal(got, before) {
				t.Errorf("%s: the host has not changed", mode)
			}
		}
		// What an interrupted change has left is put right by typing it again.
		s.host.ns.Sysctl(t, "net.ipv6.conf."+leg+".disable_ipv6", "0")
		e.ns.Run(t, "ip", "link", "set", e.dev, "arp", "off")
		s.do(t, func(h *Host) error {
			return h.SetMode(Selector{Name: e.dev, Netns: e.ns.Name()}, ModeChange{Mode: maps.L2})
		})
		if l := s.link(t, e); l.Flags&unix.IFF_NOARP != 0 {
			t.Error("the device is still NOARP")
		}
		if got := s.legState(t, leg); !slices.Equal(got, hidden) {
			t.Errorf("the leg is %q, was %q", got, hidden)
		}
		s.do(t, func(h *Host) error {
			return h.SetMode(Selector{Name: e.dev, Netns: e.ns.Name()}, ModeChange{Mode: maps.L3S})
		})
		s.del(t, e)
		if got := s.hostSettings(t); !slices.Equal(got, before) {
			t.Errorf("deleted: the host has changed: %q, was %q", got, before)
		}
		s.checkGone(t)
	})
}

// checkMember sends a broadcast from the wire, which an end has to get or not.
func (s *site) checkMember(t *testing.T, e *end, want bool) {
	t.Helper()
	before := s.link(t, e).Stats[maps.RX].Packets
	_, _ = s.wire.ns.Try(t, "ping", "-n", "-b", "-c", "1", "-W", "0.2", "10.77.0.255") // nobody answers
	if got := s.link(t, e).Stats[maps.RX].Packets > before; got != want {
		t.Errorf("%s got the broadcast: %v, want %v", e.name, got, want)
	}
}

// legState is what matters of a leg in l2.
func (s *site) legState(t *testing.T, leg string) (all []string) {
	t.Helper()
	s.host.ns.Do(t, func() {
		for _, key := range []string{"ipv4 forwarding", "ipv6 force_forwarding", "ipv6 disable_ipv6"} {
			family, name, _ := strings.Cut(key, " ")
			value, err := sysctl(family, leg, name)
			if err != nil {
				t.Error(err)
			}
			all = append(all, key+" "+value)
		}
	})
	return append(all, s.host.ns.Run(t, "ip", "route", "show", "dev", leg))
}

// TestRoutedRefused has a host that would not forward, and an address that it
// routes elsewhere.
func TestRoutedRefused(t *testing.T) {
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newRouted(t, r)
		before := s.hostSettings(t)
		spec := s.spec(s.subs[0])
		spec.Mode, spec.Addrs = maps.L3S, []netip.Prefix{netip.MustParsePrefix("fd01::10/64")}
		if !canForward6() {
			err := s.try(t, func(h *Host) error { return h.Add(spec) })
			checkError(t, err, ErrUnsupported, "l3s", "net.ipv6.conf.all.forwarding=1", "mode l3")
		}
		s.host.ns.Run(t, "ip", "route", "add", "10.0.1.10", "dev", parentDev)
		spec.Addrs = []netip.Prefix{netip.MustParsePrefix("10.0.1.10/24")}
		s.checkRefusedRoute(t, spec)
		s.host.ns.Run(t, "ip", "route", "del", "10.0.1.10", "dev", parentDev)
		if got := s.hostSettings(t); !slices.Equal(got, before) {
			t.Errorf("the host has changed: %q, was %q", got, before)
		}
		s.checkGone(t)
	})
}

func (s *site) checkRefusedRoute(t *testing.T, spec LinkSpec) {
	t.Helper()
	err := s.try(t, func(h *Host) error { return h.Add(spec) })
	checkError(t, err, ErrExists, "10.0.1.10", "the host has a route")
	if out, err := s.host.ns.Try(t, "ip", "link", "show", spec.Name); err == nil {
		t.Errorf("left:\n%s", out)
	}
}
