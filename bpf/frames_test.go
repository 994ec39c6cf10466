package bpf_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

type mac [6]byte

var (
	parentMAC    = mac{0x02, 0xaa, 0, 0, 0, 0xaa}
	routerMAC    = mac{0x02, 0xbb, 0, 0, 0, 0xbb} // on the wire
	strangerMAC  = mac{0x02, 0xcc, 0, 0, 0, 0xcc} // nobody's
	broadcastMAC = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	multicastMAC = mac{0x33, 0x33, 0, 0, 0, 1}
	zeroMAC      mac

	routerIP4 = netip.MustParseAddr("192.0.2.254")
	routerIP6 = netip.MustParseAddr("2001:db8::fe")
	allNodes  = netip.MustParseAddr("ff02::1")
	anyIP4    = netip.IPv4Unspecified()
	anyIP6    = netip.IPv6Unspecified()
)

// macOf, ip4Of and ip6Of are the addresses of a sub-interface in these tests.
func macOf(id uint32) mac { return mac{0x02, 0, 0, 0, byte(id >> 8), byte(id)} }

func ip4Of(id uint32) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(id)}) }

func ip6Of(id uint32) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(id >> 8), 15: byte(id)})
}

// build puts a frame together, with lengths and checksums filled in and without
// the padding that gopacket's Ethernet layer adds: what a veth carries.
func build(eth *layers.Ethernet, ls ...gopacket.SerializableLayer) []byte {
	b := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(b, opts, ls...); err != nil {
		panic(err)
	}
	frame := slices.Concat(eth.DstMAC, eth.SrcMAC)
	frame = binary.BigEndian.AppendUint16(frame, uint16(eth.EthernetType))
	return append(frame, b.Bytes()...)
}

func ether(dst, src mac, proto layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{DstMAC: dst[:], SrcMAC: src[:], EthernetType: proto}
}

func ipv4(dst, src netip.Addr, proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, DstIP: dst.AsSlice(), SrcIP: src.AsSlice()}
}

func ipv6(dst, src netip.Addr, proto layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: proto, DstIP: dst.AsSlice(), SrcIP: src.AsSlice()}
}

// udp builds a datagram with so many bytes of payload, IPv4 or IPv6 by the
// address.
func udp(dst, src mac, to, from netip.Addr, size int) []byte {
	l4 := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	if to.Is4() {
		l3 := ipv4(to, from, layers.IPProtocolUDP)
		_ = l4.SetNetworkLayerForChecksum(l3) // it is one
		return build(ether(dst, src, layers.EthernetTypeIPv4), l3, l4, gopacket.Payload(make([]byte, size)))
	}
	l3 := ipv6(to, from, layers.IPProtocolUDP)
	_ = l4.SetNetworkLayerForChecksum(l3) // it is one
	return build(ether(dst, src, layers.EthernetTypeIPv6), l3, l4, gopacket.Payload(make([]byte, size)))
}

// tcp is udp for a segment with 12 bytes of options.
func tcp(dst, src mac, to, from netip.Addr, size int) []byte {
	l4 := &layers.TCP{SrcPort: 4000, DstPort: 5000, ACK: true, Options: []layers.TCPOption{
		{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindNop},
		{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)},
	}}
	if to.Is4() {
		l3 := ipv4(to, from, layers.IPProtocolTCP)
		_ = l4.SetNetworkLayerForChecksum(l3) // it is one
		return build(ether(dst, src, layers.EthernetTypeIPv4), l3, l4, gopacket.Payload(make([]byte, size)))
	}
	l3 := ipv6(to, from, layers.IPProtocolTCP)
	_ = l4.SetNetworkLayerForChecksum(l3) // it is one
	return build(ether(dst, src, layers.EthernetTypeIPv6), l3, l4, gopacket.Payload(make([]byte, size)))
}

// arp builds an ARP frame; the sender's MAC stands in both headers.
func arp(op uint16, dst, sender mac, spa netip.Addr, tha mac, tpa netip.Addr) []byte {
	return build(ether(dst, sender, layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, Operation: op,
		SourceHwAddress: sender[:], SourceProtAddress: spa.AsSlice(),
		DstHwAddress: tha[:], DstProtAddress: tpa.AsSlice(),
	})
}

// whoHas builds the broadcast question for an address.
func whoHas(sender mac, spa, tpa netip.Addr) []byte {
	return arp(layers.ARPRequest, broadcastMAC, sender, spa, zeroMAC, tpa)
}

func option(kind layers.ICMPv6Opt, m mac) layers.ICMPv6Option {
	return layers.ICMPv6Option{Type: kind, Data: m[:]}
}

func sourceLL(m mac) layers.ICMPv6Option { return option(layers.ICMPv6OptSourceAddress, m) }
func targetLL(m mac) layers.ICMPv6Option { return option(layers.ICMPv6OptTargetAddress, m) }

var mtuOption = layers.ICMPv6Option{Type: layers.ICMPv6OptMTU, Data: []byte{0, 0, 0, 0, 5, 0xdc}}

// icmp6 builds an ICMPv6 message with a correct checksum, whatever its body.
func icmp6(dst, src mac, to, from netip.Addr, kind uint8, body gopacket.SerializableLayer) []byte {
	l3 := ipv6(to, from, layers.IPProtocolICMPv6)
	l4 := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	_ = l4.SetNetworkLayerForChecksum(l3) // it is one
	return build(ether(dst, src, layers.EthernetTypeIPv6), l3, l4, body)
}

// solicitBody and advertBody are the two messages that name a target.
func solicitBody(target netip.Addr, opts ...layers.ICMPv6Option) gopacket.SerializableLayer {
	slices.Reverse(opts) // the layer writes them backwards
	return &layers.ICMPv6NeighborSolicitation{TargetAddress: target.AsSlice(), Options: opts}
}

func advertBody(flags uint8, target netip.Addr, opts ...layers.ICMPv6Option) gopacket.SerializableLayer {
	slices.Reverse(opts)
	return &layers.ICMPv6NeighborAdvertisement{Flags: flags, TargetAddress: target.AsSlice(), Options: opts}
}

// solicit builds a neighbour solicitation to the target's multicast group.
func solicit(src mac, from, target netip.Addr, opts ...layers.ICMPv6Option) []byte {
	t := target.As16()
	group := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	return icmp6(mac{0x33, 0x33, 0xff, t[13], t[14], t[15]}, src, group, from,
		layers.ICMPv6TypeNeighborSolicitation, solicitBody(target, opts...))
}

// advertise builds an unsolicited neighbour advertisement to all nodes.
func advertise(src mac, target netip.Addr, opts ...layers.ICMPv6Option) []byte {
	return icmp6(multicastMAC, src, allNodes, target,
		layers.ICMPv6TypeNeighborAdvertisement, advertBody(0x20, target, opts...))
}

// announce tells everybody of an address, of either family.
func announce(src mac, addr netip.Addr) []byte {
	if addr.Is4() {
		return whoHas(src, addr, addr)
	}
	return advertise(src, addr, targetLL(src))
}

// Mutations: each returns a changed copy.

func set(frame []byte, off int, data ...byte) []byte {
	frame = bytes.Clone(frame)
	copy(frame[off:], data)
	return frame
}

// tagged puts VLAN tags (TPID, TCI, TPID, TCI ...) behind the MACs.
func tagged(frame []byte, tags ...uint16) []byte {
	out := bytes.Clone(frame[:12])
	for _, half := range tags {
		out = binary.BigEndian.AppendUint16(out, half)
	}
	return append(out, frame[12:]...)
}

// bare takes the tags behind the MACs off.
func bare(frame []byte) []byte {
	for frame = bytes.Clone(frame); frame[12] == 0x81 || frame[12] == 0x88 && frame[13] == 0xa8; {
		frame = slices.Delete(frame, 12, 16)
	}
	return frame
}

func padded(frame []byte, size int) []byte {
	return append(bytes.Clone(frame), make([]byte, size-len(frame))...)
}
