package loader

import (
	"bytes"
	"net"
	"net/netip"
	"strconv"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// pairs lists who is to reach whom: sub-interfaces each other and the wire, and
// the host the wire, all both ways.
func (s *site) pairs() [][2]*end {
	pairs := [][2]*end{{s.host, s.wire}, {s.wire, s.host}}
	for _, a := range s.subs {
		pairs = append(pairs, [2]*end{a, s.wire}, [2]*end{s.wire, a})
		for _, b := range s.subs {
			if a != b {
				pairs = append(pairs, [2]*end{a, b})
			}
		}
	}
	return pairs
}

// TestUnicast sends all that an ordinary stack sends between all that may talk
// to each other, while the wire looks at what comes out of the parent.
func TestUnicast(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(allRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		// The parent fills in no checksum and cuts no super-packet, so that
		// the kernel has to before the wire, and the wire sends finished ones.
		s.host.offload(t, "tx", "off")
		s.wire.offload(t, "tx", "off", "rx", "off")
		wire := s.wire.ns.Capture(t, s.wire.dev)
		s.populate(t)

		t.Run("ping", func(t *testing.T) {
			for _, p := range s.pairs() {
				for _, a := range p[1].addrs() {
					p[0].ping(t, a)
				}
			}
		})
		t.Run("neighbours", func(t *testing.T) { s.checkNeighbours(t) })
		t.Run("fragments", func(t *testing.T) {
			for _, p := range s.pairs() {
				for _, a := range p[1].addrs() {
					p[0].ping(t, a, "-s", "4000")
				}
			}
		})
		t.Run("udp", func(t *testing.T) {
			for _, p := range s.pairs() {
				for _, length := range []int{1, 1400, 20000} {
					echoUDP(t, p[0], p[1], ip4Of, length)
					echoUDP(t, p[0], p[1], ip6Of, length)
				}
			}
		})
		checkSums(t, s.received(t, wire), layers.LayerTypeICMPv6, layers.LayerTypeUDP, gopacket.LayerTypeFragment)
		t.Run("tcp", func(t *testing.T) {
			for _, p := range s.pairs() {
				bulk(t, p[0], p[1], ip4Of, 128<<10)
				bulk(t, p[0], p[1], ip6Of, 128<<10)
			}
		})
		frames := s.received(t, wire)
		checkSums(t, frames, layers.LayerTypeTCP)
		if got := longest(frames); got != 1514 {
			t.Errorf("the longest frame on the wire has %d bytes", got)
		}
	})
}

// checkNeighbours compares what everybody has found out by ARP and ND: the
// parent's MAC stands for itself and the IP-keyed.
func (s *site) checkNeighbours(t *testing.T) {
	for _, p := range s.pairs() {
		from, to := p[0], p[1]
		want := to.mac(t)
		if to.kind == maps.Ipvlan {
			want = s.host.mac(t)
		}
		for _, a := range to.addrs() {
			if got := from.neighbour(t, a); got.String() != want.String() {
				t.Errorf("%s sees %s at %s, want %s", from.name, a, got, want)
			}
		}
	}
	for _, e := range s.subs {
		want := e.mac(t)
		if e.kind == maps.Ipvlan {
			want = s.host.mac(t)
		}
		if got := s.link(t, e).WireMAC; got.String() != want.String() {
			t.Errorf("%s is listed with %s on the wire, want %s", e.name, got, want)
		}
	}
}

// neighbour is the MAC that an end has resolved an address to.
func (e *end) neighbour(t testing.TB, a netip.Addr) net.HardwareAddr {
	t.Helper()
	list, err := whole(func() ([]netlink.Neigh, error) { return e.ns.Handle().NeighList(e.index(t), netlink.FAMILY_ALL) })
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		if ip, _ := netip.AddrFromSlice(n.IP); ip.Unmap() == a {
			return n.HardwareAddr
		}
	}
	return nil
}

// TestWireMACs looks for the MACs of IP-keyed sub-interfaces in all that leaves
// the parent: headers, ARP and ND.
func TestWireMACs(t *testing.T) {
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		wire := s.wire.ns.Capture(t, s.wire.dev)
		s.populate(t)
		known := map[string]bool{s.host.mac(t).String(): true}
		var hidden []net.HardwareAddr
		for _, e := range s.subs {
			if e.kind == maps.Ipvlan {
				hidden = append(hidden, e.mac(t))
			} else {
				known[e.mac(t).String()] = true
			}
		}
		for _, p := range s.pairs() {
			for _, a := range p[1].addrs() {
				p[0].ping(t, a)
			}
		}
		frames := s.received(t, wire)
		sources := map[string]bool{}
		for _, f := range frames {
			sources[net.HardwareAddr(f.Data[6:12]).String()] = true
			for _, mac := range hidden {
				if bytes.Contains(f.Data, mac) {
					t.Errorf("%s stands in a frame on the wire:\n% x", mac, f.Data)
				}
			}
		}
		for mac := range sources {
			if !known[mac] {
				t.Errorf("frames from %s on the wire", mac)
			}
			delete(known, mac)
		}
		if len(known) > 0 {
			t.Errorf("no frames from %v on the wire", known)
		}
	})
}

// TestFullFrames sends frames as long as the MTU and as super-packets, which
// nobody on the way may cut or refuse.
func TestFullFrames(t *testing.T) {
	lab.NeedTool(t, "ping")
	const headers4, headers6 = 28, 48 // IP and ICMP
	onRungs(t, withNetkit(allRungs), func(t *testing.T, r rungCase) {
		for _, mtu := range []int{1500, 9000} {
			t.Run(strconv.Itoa(mtu), func(t *testing.T) {
				s := newSite(t, r, siteOption{mtu: mtu})
				s.populate(t)
				for _, p := range s.pairs() {
					p[0].ping(t, p[1].ip4.Addr(), "-M", "do", "-s", strconv.Itoa(mtu-headers4))
					p[0].ping(t, p[1].ip6.Addr(), "-M", "do", "-s", strconv.Itoa(mtu-headers6))
				}
				// All offloads are on, so these go as super-packets.
				for _, p := range s.pairs() {
					bulk(t, p[0], p[1], ip4Of, 1<<20)
					bulk(t, p[0], p[1], ip6Of, 1<<20)
				}
			})
		}
	})
}
