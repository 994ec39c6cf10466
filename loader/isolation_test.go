package loader

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// TestHostUnreached sends to the host all that a sub-interface can think of:
// the host is not to answer, nor to hear it.
func TestHostUnreached(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(allRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		heard := []*net.UDPConn{
			s.host.udpAnywhere(t, s.host.ip4.Addr(), groupPort),
			s.host.udpAnywhere(t, s.host.ip6.Addr(), groupPort),
		}
		for _, e := range s.subs {
			t.Run(e.name, func(t *testing.T) {
				capture := e.ns.Capture(t, e.dev)
				macs := []net.HardwareAddr{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
				if e.kind != maps.Ipvlan { // which share their MAC with the host: what is for none of them is the host's
					macs = append(macs, s.host.mac(t))
				}
				if leg := s.link(t, e).Leg; leg != "" {
					dev := s.host.ns.Link(t, leg)
					macs = append(macs, dev.Attrs().HardwareAddr)
					addrs, err := whole(func() ([]netlink.Addr, error) { return s.host.ns.Handle().AddrList(dev, netlink.FAMILY_ALL) })
					if err != nil || len(addrs) > 0 || dev.Attrs().RawFlags&unix.IFF_NOARP == 0 {
						t.Errorf("%s has addresses %v and flags %x: %v", leg, addrs, dev.Attrs().RawFlags, err)
					}
				}
				for _, mac := range macs {
					e.probe(t, s.host, mac)
				}
				e.ping(t, s.wire.ip4.Addr()) // behind the probes
				e.ping(t, s.wire.ip6.Addr())
				for _, f := range capture.Frames(1000, 0) {
					if f.PktType != unix.PACKET_OUTGOING && fromHost(f, s.host) {
						t.Errorf("the host answers:\n% x", f.Data)
					}
				}
			})
		}
		s.hearsWire(t, heard...)
		for _, a := range s.host.addrs() {
			for _, e := range s.subs {
				e.pingFails(t, a)
			}
		}
	})
}

// hearsWire sends to the host's sockets from the wire, and fails if something
// else comes to them first.
func (s *site) hearsWire(t *testing.T, heard ...*net.UDPConn) {
	t.Helper()
	for _, conn := range heard {
		to := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		from := s.wire.ip4.Addr()
		if to.Addr().Is6() {
			from = s.wire.ip6.Addr()
		}
		if _, err := s.wire.udp(t, from, 0).WriteToUDPAddrPort([]byte("wire"), to); err != nil {
			t.Fatal(err)
		}
		if text := read(t, conn); string(text) != "wire" {
			t.Errorf("the host hears %q", text)
		}
	}
}

// probe sends frames to a MAC that the host should answer, were they to reach
// it: ARP and ND questions, echo requests and datagrams. It returns how many.
func (e *end) probe(t *testing.T, host *end, mac net.HardwareAddr) (frames int) {
	t.Helper()
	own := e.mac(t)
	eth := func(kind layers.EthernetType) *layers.Ethernet {
		return &layers.Ethernet{SrcMAC: own, DstMAC: mac, EthernetType: kind}
	}
	e.send(t, eth(layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: layers.ARPRequest, SourceHwAddress: own, SourceProtAddress: e.ip4.Addr().AsSlice(),
		DstHwAddress: make([]byte, 6), DstProtAddress: host.ip4.Addr().AsSlice(),
	})
	ip4 := func(proto layers.IPProtocol) *layers.IPv4 {
		return &layers.IPv4{
			Version: 4, IHL: 5, TTL: 64, Protocol: proto,
			SrcIP: e.ip4.Addr().AsSlice(), DstIP: host.ip4.Addr().AsSlice(),
		}
	}
	ip6 := func(proto layers.IPProtocol) *layers.IPv6 {
		return &layers.IPv6{
			Version: 6, NextHeader: proto, HopLimit: 255,
			SrcIP: e.ip6.Addr().AsSlice(), DstIP: host.ip6.Addr().AsSlice(),
		}
	}
	text := gopacket.Payload("from " + e.name)
	e.send(t, eth(layers.EthernetTypeIPv4), ip4(layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0)}, text)
	udp := &layers.UDP{SrcPort: 1, DstPort: groupPort}
	network := ip4(layers.IPProtocolUDP)
	udp.SetNetworkLayerForChecksum(network)
	e.send(t, eth(layers.EthernetTypeIPv4), network, udp, text)
	network6 := ip6(layers.IPProtocolUDP)
	udp.SetNetworkLayerForChecksum(network6)
	e.send(t, eth(layers.EthernetTypeIPv6), network6, udp, text)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)}
	network6 = ip6(layers.IPProtocolICMPv6)
	icmp.SetNetworkLayerForChecksum(network6)
	e.send(t, eth(layers.EthernetTypeIPv6), network6, icmp, &layers.ICMPv6NeighborSolicitation{
		TargetAddress: host.ip6.Addr().AsSlice(),
		Options:       layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: own}},
	})
	return 5
}

// fromHost tells a frame whose sender has one of the host's addresses.
func fromHost(f lab.Frame, host *end) bool {
	p := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.NoCopy)
	if arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		return bytes.Equal(arp.SourceProtAddress, host.ip4.Addr().AsSlice())
	}
	if network := p.NetworkLayer(); network != nil {
		src, ok := netip.AddrFromSlice(network.NetworkFlow().Src().Raw())
		return ok && slices.Contains(host.addrs(), src)
	}
	return false
}

// TestRouterAdvertisement lets a sub-interface play the router: the wire, which
// trusts everybody, follows, and the host has not heard of it.
func TestRouterAdvertisement(t *testing.T) {
	prefix := netip.MustParsePrefix("fd66::/64")
	onRungs(t, allRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		for _, e := range s.subs {
			before := s.knowledge(t)
			e.advertise(t, prefix)
			e.announce(t, s.wire.ip4.Addr())
			lab.Eventually(t, "the wire takes an address of "+prefix.String(), func() bool {
				return len(s.wire.addrsIn(t, prefix)) > 0
			})
			s.wire.ping(t, e.ip4.Addr()) // back from all that was sent
			if diff := difference(before, s.knowledge(t)); len(diff) > 0 {
				t.Errorf("the host believes %s:\n%q", e.name, diff)
			}
			for _, a := range s.wire.addrsIn(t, prefix) {
				if err := s.wire.ns.Handle().AddrDel(s.wire.ns.Link(t, s.wire.dev), &a); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// advertise sends a router advertisement to all nodes.
func (e *end) advertise(t *testing.T, prefix netip.Prefix) {
	t.Helper()
	mac := e.mac(t)
	router := netip.MustParseAddr("fe80::bad")
	ip := &layers.IPv6{
		Version: 6, NextHeader: layers.IPProtocolICMPv6, HopLimit: 255,
		SrcIP: router.AsSlice(), DstIP: net.IPv6linklocalallnodes,
	}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeRouterAdvertisement, 0)}
	icmp.SetNetworkLayerForChecksum(ip)
	// Length, on-link and autonomous, both lifetimes of an hour, reserved.
	info := append([]byte{byte(prefix.Bits()), 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0}, prefix.Addr().AsSlice()...)
	e.send(t, &layers.Ethernet{
		SrcMAC: mac, DstMAC: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, EthernetType: layers.EthernetTypeIPv6,
	}, ip, icmp, &layers.ICMPv6RouterAdvertisement{
		HopLimit: 64, RouterLifetime: 1800,
		Options: layers.ICMPv6Options{
			{Type: layers.ICMPv6OptPrefixInfo, Data: info},
			{Type: layers.ICMPv6OptSourceAddress, Data: mac},
		},
	})
}

// addrsIn are the addresses of an end's device in a prefix.
func (e *end) addrsIn(t *testing.T, prefix netip.Prefix) []netlink.Addr {
	t.Helper()
	addrs, err := whole(func() ([]netlink.Addr, error) { return e.ns.Handle().AddrList(e.ns.Link(t, e.dev), netlink.FAMILY_ALL) })
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(addrs, func(a netlink.Addr) bool {
		ip, _ := netip.AddrFromSlice(a.IP)
		return !prefix.Contains(ip.Unmap())
	})
}

// knowledge is what the host knows of its link: addresses, routes, neighbours.
func (s *site) knowledge(t *testing.T) []string {
	t.Helper()
	h := s.host.ns.Handle()
	var lines []string
	addrs, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		lines = append(lines, fmt.Sprintf("addr %s on %d", a.IPNet, a.LinkIndex))
	}
	routes, err := whole(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		lines = append(lines, fmt.Sprintf("route %s", r))
	}
	neighbours, err := whole(func() ([]netlink.Neigh, error) { return h.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbours {
		lines = append(lines, fmt.Sprintf("neighbour %s %s on %d", n.IP, n.HardwareAddr, n.LinkIndex))
	}
	return lines
}

// TestOverMTU raises a sub-interface's own MTU over the parent's: what is too
// long for that is dropped with its reason, the same for super-packets.
func TestOverMTU(t *testing.T) {
	const long, segments = 3000, 5
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		s.populateQuiet(t)
		wire := s.wire.ns.Capture(t, s.wire.dev)
		for i, e := range s.subs {
			e.ns.Run(t, "ip", "link", "set", e.dev, "mtu", "9000")
			sibling := s.subs[(i+1)%len(s.subs)]
			var want maps.Counter
			for _, to := range []*end{s.wire, sibling} {
				e.datagram(t, to, long, 0)
				want.Packets, want.Bytes = want.Packets+1, want.Bytes+long+42
				e.datagram(t, to, segments*long, long)
				want.Packets, want.Bytes = want.Packets+segments, want.Bytes+segments*(long+42)
			}
			lab.Eventually(t, e.name+" is refused all of it", func() bool { return s.link(t, e).Stats[maps.DropMTU] == want })
			// As super-packets of segments that fit, the same bytes arrive.
			in := s.wire.udp(t, s.wire.ip4.Addr(), groupPort)
			e.datagram(t, s.wire, segments*1000, 1000)
			for range segments {
				if n := len(read(t, in)); n != 1000 {
					t.Errorf("the wire reads %d bytes of %s", n, e.name)
				}
			}
			in.Close()
			if got := s.link(t, e).Stats[maps.DropMTU]; got != want {
				t.Errorf("%s was refused %+v, want %+v", e.name, got, want)
			}
		}
		for _, f := range s.received(t, wire) {
			// A super-packet is cut behind the wire, and is none of ours.
			if len(f.Data) > 1514 && len(f.Data) != segments*1000+42 {
				t.Errorf("a frame of %d bytes has left the parent", len(f.Data))
			}
		}
	})
}

// datagram sends a UDP datagram that must not be fragmented, or with a segment
// size as many as there are segments.
func (e *end) datagram(t *testing.T, to *end, length, segment int) {
	t.Helper()
	options := []udpOption{sockopt(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)}
	if segment > 0 {
		options = append(options, sockopt(unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment))
	}
	conn := e.udp(t, e.ip4.Addr(), 0, options...)
	defer conn.Close()
	if _, err := conn.WriteToUDPAddrPort(make([]byte, length), netip.AddrPortFrom(to.ip4.Addr(), groupPort)); err != nil {
		t.Fatalf("send %d bytes from %s: %v", length, e.name, err)
	}
}

// TestOffloadsOff turns a sub-interface's offloads off from the inside, which
// anybody there may do.
func TestOffloadsOff(t *testing.T) {
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		for _, e := range s.subs {
			e.offload(t, "gro", "off", "gso", "off", "tso", "off", "tx", "off", "rx", "off", "sg", "off")
			for _, p := range s.pairs() {
				bulk(t, p[0], p[1], ip4Of, 128<<10)
			}
			echoUDP(t, e, s.wire, ip6Of, 20000)
		}
	})
}

// TestInactive drops what comes from a leg whose record is free, or another's.
func TestInactive(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		s.populateQuiet(t)
		set, err := maps.Open(s.h.folder(s.host.index(t)).path())
		if err != nil {
			t.Fatal(err)
		}
		defer set.Close()
		wire := s.wire.ns.Capture(t, s.wire.dev)
		heard := s.host.udpAnywhere(t, s.host.ip4.Addr(), groupPort)
		for i, e := range s.subs {
			id := s.link(t, e).ID
			sub, err := set.Sub(id)
			if err != nil {
				t.Fatal(err)
			}
			free, another := sub, sub
			free.State, another.Leg = maps.Free, sub.Leg+1
			for _, record := range []maps.Sub{free, another} {
				before := s.parentStats(t)[maps.DropInactive].Packets
				if err := set.PutSub(id, record); err != nil {
					t.Fatal(err)
				}
				e.datagram(t, s.wire, 100, 0)
				e.datagram(t, s.subs[(i+1)%len(s.subs)], 100, 0)
				n := 2 + e.probe(t, s.host, s.host.ns.Link(t, legName(s.host.index(t), id)).Attrs().HardwareAddr)
				lab.Eventually(t, e.name+" is refused", func() bool {
					return s.parentStats(t)[maps.DropInactive].Packets == before+uint64(n)
				})
			}
			if err := set.PutSub(id, sub); err != nil {
				t.Fatal(err)
			}
			if frames := s.received(t, wire); len(frames) > 0 {
				t.Errorf("%d frames of %s on the wire", len(frames), e.name)
			}
			e.ping(t, s.wire.ip4.Addr())
			s.received(t, wire)
		}
		s.hearsWire(t, heard)
	})
}
