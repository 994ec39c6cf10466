package referee

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

const (
	typeIP4   = 0x0800
	typeARP   = 0x0806
	typeVLAN  = 0x8100
	typeIP6   = 0x86dd
	typePause = 0x8808
	typeQinQ  = 0x88a8
	typeOther = 0x88b5 // for experiments
	typeLLDP  = 0x88cc
	typeLLC   = 0x0004 // what the stack takes a frame with a length for

	protoUDP  = 17
	protoICMP = 1
	protoICM6 = 58

	testPort = 7701 // has a listener everywhere, so that nobody answers
)

var bigEndian = binary.BigEndian

// ethernet is a frame of the given type, padded to the least length.
func ethernet(dst, src net.HardwareAddr, proto uint16, payload ...[]byte) []byte {
	f := append(append([]byte(nil), dst...), src...)
	f = bigEndian.AppendUint16(f, proto)
	return append(f, bytes.Join(payload, nil)...)
}

// tagged puts VLAN tags (protocol, tag) behind a frame's MACs, outermost first.
func tagged(frame []byte, tags ...uint16) []byte {
	f := append([]byte(nil), frame[:12]...)
	for _, t := range tags {
		f = bigEndian.AppendUint16(f, t)
	}
	return append(f, frame[12:]...)
}

// untagged takes the outermost VLAN tag off.
func untagged(frame []byte) []byte {
	if proto := bigEndian.Uint16(frame[12:]); proto != typeVLAN && proto != typeQinQ {
		return frame
	}
	return append(append([]byte(nil), frame[:12]...), frame[16:]...)
}

// checksum is the Internet checksum over all parts but the last's odd byte's
// lower half, as RFC 1071 has it.
func checksum(parts ...[]byte) uint16 {
	b := bytes.Join(parts, nil)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(bigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// header4 is an IPv4 header before size bytes of payload; frag is its fragment
// field.
func header4(src, dst netip.Addr, proto byte, id, frag uint16, size int) []byte {
	h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0}
	bigEndian.PutUint16(h[2:], uint16(20+size))
	bigEndian.PutUint16(h[4:], id)
	bigEndian.PutUint16(h[6:], frag)
	h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
	bigEndian.PutUint16(h[10:], checksum(h))
	return h
}

// header6 is an IPv6 header before size bytes of payload.
func header6(src, dst netip.Addr, proto byte, size int) []byte {
	h := []byte{0x60, 0, 0, 0, 0, 0, proto, 255}
	bigEndian.PutUint16(h[4:], uint16(size))
	return append(append(h, src.AsSlice()...), dst.AsSlice()...)
}

// pseudo is what L4 checksums cover besides their payload.
func pseudo(src, dst netip.Addr, proto byte, size int) []byte {
	return append(append(append([]byte(nil), src.AsSlice()...), dst.AsSlice()...),
		0, 0, byte(size>>8), byte(size), 0, 0, 0, proto)
}

// datagram is a UDP datagram with its checksum.
func datagram(src, dst netip.Addr, payload []byte) []byte {
	d := []byte{0, 0, 0, 0, 0, 0, 0, 0}
	bigEndian.PutUint16(d, testPort)
	bigEndian.PutUint16(d[2:], testPort)
	bigEndian.PutUint16(d[4:], uint16(8+len(payload)))
	d = append(d, payload...)
	bigEndian.PutUint16(d[6:], checksum(pseudo(src, dst, protoUDP, len(d)), d))
	return d
}

// udp is the IP packet around a datagram, and its EtherType.
func udp(src, dst netip.Addr, payload []byte) (proto uint16, packet []byte) {
	d := datagram(src, dst, payload)
	if dst.Is4() {
		return typeIP4, append(header4(src, dst, protoUDP, 7, 0, len(d)), d...)
	}
	return typeIP6, append(header6(src, dst, protoUDP, len(d)), d...)
}

const (
	arpRequest = 1
	arpReply   = 2
)

// arp is an ARP packet with the token as the padding behind it.
func arp(op uint16, sha net.HardwareAddr, spa netip.Addr, tha net.HardwareAddr, tpa netip.Addr, token []byte) []byte {
	p := []byte{0, 1, 0x08, 0, 6, 4}
	p = bigEndian.AppendUint16(p, op)
	p = append(append(p, sha...), spa.AsSlice()...)
	p = append(append(p, tha...), tpa.AsSlice()...)
	return append(append(p, token...), make([]byte, 18-len(token))...)
}

const (
	ndSolicit   = 135
	ndAdvertise = 136
	optSource   = 1
	ndRedirect  = 137 // quotes, too
	optTarget   = 2
	optNonce    = 14
)

// neighbour is a solicitation or an advertisement with the sender's MAC, unless
// lladdr is nil, and with the token as a nonce.
func neighbour(kind byte, src, dst, target netip.Addr, lladdr net.HardwareAddr, token []byte) []byte {
	m := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
	opt := byte(optSource)
	if kind == ndAdvertise {
		m[4] = 0x20 // override
		opt = optTarget
	}
	if lladdr != nil {
		m = append(append(m, opt, 1), lladdr...)
	}
	m = append(append(m, optNonce, 1), token...)
	bigEndian.PutUint16(m[2:], checksum(pseudo(src, dst, protoICM6, len(m)), m))
	return append(header6(src, dst, protoICM6, len(m)), m...)
}

// inner finds the EtherType behind all tags, and what follows it.
func inner(frame []byte) (proto uint16, payload []byte) {
	for off := 12; off+2 <= len(frame); off += 4 {
		if proto = bigEndian.Uint16(frame[off:]); proto != typeVLAN && proto != typeQinQ {
			return proto, frame[off+2:]
		}
	}
	return 0, nil
}

// icmpv6 is the ICMPv6 message directly behind a frame's IPv6 header, and the
// whole packet; nil if there is none.
func icmpv6(frame []byte) (packet, message []byte) {
	proto, p := inner(frame)
	if proto != typeIP6 || len(p) < 40+8 || p[6] != protoICM6 {
		return nil, nil
	}
	return p, p[40:]
}

// isError tells an ICMP error, which quotes the frame it is about.
func isError(frame []byte) bool {
	if _, m := icmpv6(frame); m != nil {
		return m[0] < 128 || m[0] == ndRedirect
	}
	proto, p := inner(frame)
	return proto == typeIP4 && len(p) >= 20 && p[9] == protoICMP
}
