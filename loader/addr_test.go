package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// origin says how an end is listed to have an address; 0 if it is not.
func (s *site) origin(t testing.TB, e *end, a netip.Addr) maps.Origin {
	t.Helper()
	for _, l := range s.link(t, e).Addrs {
		if l.Addr == a {
			return l.Origin
		}
	}
	return 0
}

func (s *site) checkOrigin(t testing.TB, e *end, want maps.Origin, addrs ...netip.Addr) {
	t.Helper()
	for _, a := range addrs {
		if got := s.origin(t, e, a); got != want {
			t.Errorf("%s has %s by %s, want %s", e.name, a, got, want)
		}
	}
}

// waitOrigin is checkOrigin for what a frame that was just sent changes.
func (s *site) waitOrigin(t testing.TB, e *end, want maps.Origin, addrs ...netip.Addr) {
	t.Helper()
	for _, a := range addrs {
		lab.Eventually(t, fmt.Sprintf("%s has %s by %s", e.name, a, want), func() bool { return s.origin(t, e, a) == want })
	}
}

// dups counts the addresses that an end was refused to learn.
func (s *site) dups(t testing.TB, e *end) uint64 {
	t.Helper()
	return s.link(t, e).Stats[maps.LearnDup].Packets
}

// announce says on the link that an end has an address, whether it has or not:
// gratuitous ARP, or an advertisement that nobody has solicited.
func (e *end) announce(t testing.TB, a netip.Addr) {
	t.Helper()
	mac := e.mac(t)
	eth := &layers.Ethernet{SrcMAC: mac, DstMAC: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	if a.Is4() {
		eth.EthernetType = layers.EthernetTypeARP
		e.send(t, eth, &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPRequest, SourceHwAddress: mac, SourceProtAddress: a.AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: a.AsSlice(),
		})
		return
	}
	eth.EthernetType, eth.DstMAC = layers.EthernetTypeIPv6, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	ip := &layers.IPv6{
		Version: 6, NextHeader: layers.IPProtocolICMPv6, HopLimit: 255,
		SrcIP: linkLocal(mac), DstIP: net.IPv6linklocalallnodes,
	}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborAdvertisement, 0)}
	icmp.SetNetworkLayerForChecksum(ip)
	e.send(t, eth, ip, icmp, &layers.ICMPv6NeighborAdvertisement{
		Flags: 0x20, TargetAddress: a.AsSlice(), // override
		Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: mac}},
	})
}

// linkLocal is the address that a device makes of its MAC, RFC 4291.
func linkLocal(mac net.HardwareAddr) net.IP {
	return net.IP{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}
}

// send puts a frame together and sends it as it stands.
func (e *end) send(t testing.TB, parts ...gopacket.SerializableLayer) {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, parts...)
	if err != nil {
		t.Fatal(err)
	}
	e.ns.Send(t, e.dev, buf.Bytes())
}

// spare are addresses of the link that nobody has at first.
func spare(number byte) (a4, a6 netip.Prefix) {
	e := newEnd("spare", nil, "", 0, number)
	return e.ip4, e.ip6
}

// TestAddrUnspoken asks for addresses that sub-interfaces have taken by
// themselves and not yet spoken with: the question reaches everybody, and the
// answer teaches.
func TestAddrUnspoken(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		e := s.sub(t, "ip1")
		s.checkOrigin(t, e, 0, e.addrs()...)
		for i, asker := range []*end{s.wire, s.sub(t, "mac1"), s.sub(t, "ip2")} {
			a4, a6 := spare(byte(100 + i))
			for _, a := range []netip.Prefix{a4, a6} {
				e.ns.Run(t, "ip", "addr", "add", a.String(), "dev", e.dev)
				s.settle(t, e)
				s.checkOrigin(t, e, 0, a.Addr())
				asker.ping(t, a.Addr())
				s.checkOrigin(t, e, maps.Learned, a.Addr())
			}
		}
	})
}

// TestAddrOrigins looks at who has which address how after all have talked.
func TestAddrOrigins(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		for _, p := range s.pairs() {
			for _, a := range p[1].addrs() {
				p[0].ping(t, a)
			}
		}
		for _, e := range s.subs {
			want := maps.Given
			switch e.name {
			case "mac1":
				want = 0 // reached by its MAC, whatever it calls itself
			case "ip1":
				want = maps.Learned
			}
			s.checkOrigin(t, e, want, e.addrs()...)
			for _, other := range s.all() {
				if other != e {
					s.checkOrigin(t, e, 0, other.addrs()...)
				}
			}
			if n := s.dups(t, e); n > 0 {
				t.Errorf("%s was refused %d addresses", e.name, n)
			}
		}
	})
}

// withGateway gives the host default routes by the wire, and an address on a
// device that has nothing to do with the parent.
func (s *site) withGateway(t *testing.T) (elsewhere netip.Addr) {
	t.Helper()
	s.host.ns.Run(t, "ip", "route", "add", "default", "via", s.wire.ip4.Addr().String())
	s.host.ns.Run(t, "ip", "-6", "route", "add", "default", "via", s.wire.ip6.Addr().String())
	s.host.ns.Addr(t, "lo", "192.0.2.1/32")
	return netip.MustParseAddr("192.0.2.1")
}

// TestAddrRefused gives addresses that somebody has.
func TestAddrRefused(t *testing.T) {
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		elsewhere := s.withGateway(t)
		mac1, ip1, ip2 := s.sub(t, "mac1"), s.sub(t, "ip1"), s.sub(t, "ip2")
		s.addAtOnce(t, mac1, mac1.ip4, mac1.ip6)
		s.addAtOnce(t, ip1, ip1.ip4, ip1.ip6)
		taught4, taught6 := spare(100)
		ip1.announce(t, taught4.Addr())
		ip1.announce(t, taught6.Addr())
		s.waitOrigin(t, ip1, maps.Learned, taught4.Addr(), taught6.Addr())
		tests := []struct {
			whose string
			addrs []netip.Addr
			names string // what the error has to tell
		}{
			{"a macvlan sibling's", mac1.addrs(), "sibling mac1 on eth0"},
			{"an ipvlan sibling's", ip1.addrs(), "sibling ip1 on eth0"},
			{"one a sibling has taken", []netip.Addr{taught4.Addr(), taught6.Addr()}, "sibling ip1 on eth0"},
			{"the host's", append(s.host.addrs(), elsewhere), "the host"},
			{"the gateway's", s.wire.addrs(), "gateway"},
		}
		for _, tt := range tests {
			for _, a := range tt.addrs {
				for _, e := range []*end{ip2, s.sub(t, "mac2")} {
					s.refuses(t, e, tt.whose, a, tt.names)
				}
			}
		}
		// Nothing was spoilt, and what the host has no more is free.
		s.host.ns.Run(t, "ip", "addr", "del", elsewhere.String(), "dev", "lo")
		s.addAtOnce(t, ip2, ip2.ip4, ip2.ip6, netip.PrefixFrom(elsewhere, 32))
		ip2.ping(t, s.wire.ip4.Addr())
		ip2.ping(t, ip1.ip6.Addr())
	})
}

// refuses adds a sub-interface whose last address is another's.
func (s *site) refuses(t *testing.T, e *end, whose string, a netip.Addr, names string) {
	t.Helper()
	legs := s.legs(t)
	spec := s.spec(e)
	spec.Netns, spec.Addrs = e.ns.Name(), []netip.Prefix{e.ip4, e.ip6, netip.PrefixFrom(a, a.BitLen())}
	err := s.try(t, func(h *Host) error { return h.Add(spec) })
	if !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), names) {
		t.Errorf("add %s with %s address %s: %v, want %v and %q", e.name, whose, a, err, ErrExists, names)
	}
	if got := s.legs(t); !slices.Equal(got, legs) {
		t.Errorf("host legs %v, want %v", got, legs)
	}
	if _, err := e.ns.Handle().LinkByName(e.dev); err == nil {
		t.Errorf("%s was made", e.name)
	}
}

// TestAddrClaims claims addresses that somebody has.
func TestAddrClaims(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		elsewhere := s.withGateway(t)
		s.populate(t)
		mac2, ip1, ip2 := s.sub(t, "mac2"), s.sub(t, "ip1"), s.sub(t, "ip2")
		for _, a := range ip1.addrs() {
			ip1.announce(t, a)
		}
		s.waitOrigin(t, ip1, maps.Learned, ip1.addrs()...)
		tests := []struct {
			name     string
			claimant *end
			addrs    []netip.Addr
		}{
			{"a learned one", ip2, ip1.addrs()},
			{"an ipvlan's given one", ip1, ip2.addrs()},
			{"a macvlan's given one", ip1, mac2.addrs()},
			{"the host's", ip1, append(s.host.addrs(), elsewhere)},
			{"the gateway's", ip1, s.wire.addrs()},
		}
		for _, tt := range tests {
			before := s.dups(t, tt.claimant)
			for _, a := range tt.addrs {
				tt.claimant.announce(t, a)
			}
			want := before + uint64(len(tt.addrs))
			lab.Eventually(t, tt.name+" is refused", func() bool { return s.dups(t, tt.claimant) >= want })
			if n := s.dups(t, tt.claimant); n != want {
				t.Errorf("%s: refused %d times, want %d", tt.name, n-before, want-before)
			}
			s.checkOrigin(t, tt.claimant, 0, tt.addrs...)
		}
		s.checkOrigin(t, ip1, maps.Learned, ip1.addrs()...)
		s.checkOrigin(t, ip2, maps.Given, ip2.addrs()...)
		for _, e := range []*end{s.host, ip1, ip2} {
			s.wire.ping(t, e.ip4.Addr())
			s.wire.ping(t, e.ip6.Addr())
		}
		// With its owner an address becomes free.
		s.del(t, ip1)
		for _, a := range ip1.addrs() {
			ip2.announce(t, a)
		}
		s.waitOrigin(t, ip2, maps.Learned, ip1.addrs()...)
	})
}

// TestAddrYield takes addresses of sub-interfaces on the wire: learned ones are
// given up, given ones are not.
func TestAddrYield(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		mac1, ip1, ip2 := s.sub(t, "mac1"), s.sub(t, "ip1"), s.sub(t, "ip2")
		a4, a6 := spare(100)
		for _, a := range []netip.Prefix{a4, a6} {
			ip1.ns.Run(t, "ip", "addr", "add", a.String(), "dev", ip1.dev)
			s.wire.ping(t, a.Addr())
			mac1.ping(t, a.Addr())
			s.checkOrigin(t, ip1, maps.Learned, a.Addr())

			ip1.ns.Run(t, "ip", "addr", "del", a.String(), "dev", ip1.dev)
			s.wire.ns.Addr(t, s.wire.dev, a.String())
			s.wire.announce(t, a.Addr())
			s.waitOrigin(t, ip1, 0, a.Addr())
			lab.Eventually(t, "mac1 hears the announcement", func() bool {
				return mac1.neighbour(t, a.Addr()).String() == s.wire.mac(t).String()
			})
			mac1.ping(t, a.Addr())
			ip2.ping(t, a.Addr())
		}
		for _, a := range ip2.addrs() {
			s.wire.announce(t, a)
		}
		s.wire.ping(t, mac1.ip4.Addr()) // behind the announcements
		s.checkOrigin(t, ip2, maps.Given, ip2.addrs()...)
		s.checkOrigin(t, ip1, 0, ip2.addrs()...)
	})
}

// TestAddrDAD takes addresses that a sub-interface has, with duplicate address
// detection on: the owner is asked and objects, and nobody but the owner is
// ever learned to have them.
func TestAddrDAD(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		mac1, mac2, ip1, ip2 := s.sub(t, "mac1"), s.sub(t, "mac2"), s.sub(t, "ip1"), s.sub(t, "ip2")
		s.addAtOnce(t, mac1)
		s.addAtOnce(t, mac2, mac2.ip6)
		s.addAtOnce(t, ip1, ip1.ip6)
		s.addAtOnce(t, ip2)
		_, taught := spare(100)
		ip1.detectDuplicates(t, "1000")
		ip1.ns.Run(t, "ip", "addr", "add", taught.String(), "dev", ip1.dev)
		ip1.settle(t)
		s.checkOrigin(t, ip1, 0, taught.Addr()) // the probe has no sender
		s.wire.ping(t, taught.Addr())
		s.checkOrigin(t, ip1, maps.Learned, taught.Addr())

		claimants := []*end{s.wire, mac1, ip2}
		taken := []netip.Prefix{mac2.ip6, ip1.ip6, taught}
		for _, e := range claimants {
			e.detectDuplicates(t, "4000") // as much time for an objection to come
			for _, a := range taken {
				e.ns.Run(t, "ip", "addr", "add", a.String(), "dev", e.dev)
			}
		}
		for _, e := range claimants {
			for _, a := range taken {
				lab.Eventually(t, e.name+" finds "+a.String()+" taken", func() bool { return e.flags(t, a)&unix.IFA_F_DADFAILED != 0 })
			}
		}
		s.checkOrigin(t, ip2, 0, ip1.ip6.Addr(), mac2.ip6.Addr(), taught.Addr())
		s.checkOrigin(t, ip1, maps.Learned, taught.Addr())
	})
}

// detectDuplicates turns detection on for an end's device: for each address it
// asks once, and waits so many milliseconds.
func (e *end) detectDuplicates(t *testing.T, wait string) {
	t.Helper()
	e.ns.Sysctl(t, "net.ipv6.conf.all.accept_dad", "1")
	e.ns.Sysctl(t, "net.ipv6.conf."+e.dev+".accept_dad", "1")
	e.ns.Sysctl(t, "net.ipv6.conf."+e.dev+".router_solicitation_delay", "0") // detection's, too
	e.ns.Sysctl(t, "net.ipv6.conf."+e.dev+".ndisc_notify", "0")              // nothing is said behind it
	e.ns.Sysctl(t, "net.ipv6.neigh."+e.dev+".retrans_time_ms", wait)
}

// flags are an address's, 0 if the end does not have it.
func (e *end) flags(t testing.TB, a netip.Prefix) int {
	t.Helper()
	addrs, err := whole(func() ([]netlink.Addr, error) { return e.ns.Handle().AddrList(e.ns.Link(t, e.dev), netlink.FAMILY_ALL) })
	if err != nil {
		t.Fatal(err)
	}
	for _, have := range addrs {
		if ip, _ := netip.AddrFromSlice(have.IP); ip.Unmap() == a.Addr() {
			return have.Flags
		}
	}
	return 0
}
