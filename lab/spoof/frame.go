package spoof

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// MAC is an Ethernet address.
type MAC [6]byte

var (
	broadcast   = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodesMAC = MAC{0x33, 0x33, 0, 0, 0, 1}

	all4      = netip.MustParseAddr("255.255.255.255")
	allNodes  = netip.MustParseAddr("ff02::1")
	allRoutes = netip.MustParseAddr("ff02::2")
	anyIP4    = netip.IPv4Unspecified()
	anyIP6    = netip.IPv6Unspecified()
)

const (
	udp         = layers.IPProtocolUDP
	icmp6       = layers.IPProtocolICMPv6
	hopByHop    = layers.IPProtocolIPv6HopByHop
	fragmented  = layers.IPProtocolIPv6Fragment
	destination = layers.IPProtocolIPv6Destination
)

// frame is from Me.
func (s Scene) frame(dst MAC, proto layers.EthernetType, parts ...[]byte) []byte {
	head := binary.BigEndian.AppendUint16(slices.Concat(dst[:], s.Me.MAC[:]), uint16(proto))
	return append(head, slices.Concat(parts...)...)
}

// packet puts layers together, with lengths and the checksum of IPv4.
func packet(ls ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func ip4(to, from netip.Addr, proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, DstIP: to.AsSlice(), SrcIP: from.AsSlice()}
}

// ip is a packet of any protocol, IPv4 or IPv6 by its addresses.
func (s Scene) ip(dst MAC, to, from netip.Addr, proto layers.IPProtocol, body []byte) []byte {
	if to.Is4() {
		return s.frame(dst, layers.EthernetTypeIPv4, packet(ip4(to, from, proto), gopacket.Payload(body)))
	}
	head := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: proto, DstIP: to.AsSlice(), SrcIP: from.AsSlice()}
	return s.frame(dst, layers.EthernetTypeIPv6, packet(head, gopacket.Payload(body)))
}

// optioned is a datagram with the option of a router alert.
func (s Scene) optioned(dst MAC, to, from netip.Addr, body []byte) []byte {
	head := ip4(to, from, udp)
	head.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	return s.frame(dst, layers.EthernetTypeIPv4, packet(head, gopacket.Payload(body)))
}

func (s Scene) udp(dst MAC, to, from netip.Addr) []byte {
	return s.ip(dst, to, from, udp, ports(4000, 5000, make([]byte, 64)...))
}

// ports is a UDP header and what is behind it.
func ports(from, to uint16, body ...byte) []byte {
	raw := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	raw = binary.BigEndian.AppendUint16(raw, uint16(8+len(body)))
	return append(append(raw, 0, 0), body...)
}

// bootp is a message of DHCP's form, from the UDP header on.
func bootp(from, to uint16, op byte, chaddr MAC) []byte {
	body := make([]byte, 240)
	copy(body, []byte{op, 1, 6, 0})
	copy(body[28:], chaddr[:])
	return ports(from, to, body...)
}

// extension is a header of so many units behind which there is another.
func extension(next layers.IPProtocol, units int) []byte {
	return append([]byte{byte(next), byte(units - 1)}, make([]byte, 8*units-2)...)
}

// fragment is the header of a fragment at an offset in units of 8 bytes.
func fragment(next layers.IPProtocol, offset int, more bool) []byte {
	field := uint16(offset << 3)
	if more {
		field |= 1
	}
	return append(binary.BigEndian.AppendUint16([]byte{byte(next), 0}, field), 0, 0, 0, 7)
}

func icmpBody(kind byte, rest ...byte) []byte { return append([]byte{kind, 0, 0, 0}, rest...) }

// ndBody is a message that names a target.
func ndBody(kind byte, target netip.Addr, opts ...[]byte) []byte {
	return slices.Concat(icmpBody(kind, 0, 0, 0, 0), target.AsSlice(), slices.Concat(opts...))
}

func llOption(kind byte, m MAC) []byte { return append([]byte{kind, 1}, m[:]...) }

func (s Scene) arp(op byte, dst MAC, spa, tpa netip.Addr) []byte {
	return s.frame(dst, layers.EthernetTypeARP, []byte{0, 1, 8, 0, 6, 4, 0, op},
		s.Me.MAC[:], spa.AsSlice(), make([]byte, 6), tpa.AsSlice())
}

func (s Scene) whoHas(spa, tpa netip.Addr) []byte { return s.arp(1, broadcast, spa, tpa) }

// solicit asks the target's group for it.
func (s Scene) solicit(from, target netip.Addr, opts ...[]byte) []byte {
	t := target.As16()
	group := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	return s.ip(MAC{0x33, 0x33, 0xff, t[13], t[14], t[15]}, group, from, icmp6, ndBody(135, target, opts...))
}

// advertise tells all nodes of a target.
func (s Scene) advertise(target netip.Addr, opts ...[]byte) []byte {
	return s.ip(allNodesMAC, allNodes, target, icmp6, ndBody(136, target, opts...))
}

// set returns a frame with other bytes at an offset.
func set(frame []byte, off int, data ...byte) []byte {
	frame = slices.Clone(frame)
	copy(frame[off:], data)
	return frame
}

// tagged returns a frame with VLAN tags (TPID, TCI ...) behind the MACs.
func tagged(frame []byte, tags ...uint16) []byte {
	out := slices.Clone(frame[:12])
	for _, half := range tags {
		out = binary.BigEndian.AppendUint16(out, half)
	}
	return append(out, frame[12:]...)
}
