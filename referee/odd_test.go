package referee

import (
	"net"
	"net/netip"
)

// Scenarios of frames that are cut, split, long, or not the sender's.

const (
	moreFragments = 0x2000
	parentMTU     = 1500
)

// fragmented is a datagram in two IPv4 fragments, each with a token.
func (b *builder) fragmented(mac net.HardwareAddr, dst netip.Addr) [][]byte {
	const split = 64 // of the datagram, a multiple of 8
	src := ip4(numbers[b.from])
	payload := make([]byte, 120)
	copy(payload[10:], b.token())
	copy(payload[80:], b.token())
	d := datagram(src, dst, payload)
	id := b.seq
	return [][]byte{
		ethernet(mac, b.src(), typeIP4, header4(src, dst, protoUDP, id, moreFragments, split), d[:split]),
		ethernet(mac, b.src(), typeIP4, header4(src, dst, protoUDP, id, split/8, len(d)-split), d[split:]),
	}
}

func fragments(p pair, from role) []scenario {
	var all []scenario
	add := func(name string, f func(b *builder) [][]byte) {
		all = append(all, scenario{name: name, from: from, frames: f})
	}
	for _, to := range others(p, from) {
		if to == unknown || to == subDown {
			continue
		}
		add("fragments to "+string(to), func(b *builder) [][]byte { return b.fragmented(b.to(to), ip4(numbers[to])) })
	}
	add("fragments to 224.0.0.1", func(b *builder) [][]byte { return b.fragmented(groupMAC(allHosts4), allHosts4) })
	add("a last fragment alone to 224.0.0.1", func(b *builder) [][]byte {
		frames := b.fragmented(groupMAC(allHosts4), allHosts4)
		frames[0] = nil
		return frames
	})
	to := target(p, from)
	add("a first fragment alone to "+string(to), func(b *builder) [][]byte {
		return b.fragmented(b.to(to), ip4(numbers[to]))[:1]
	})
	return all
}

// target is somebody whom a role can send to.
func target(p pair, from role) role {
	switch {
	case from != subA:
		return subA
	case p.has(subB):
		return subB
	}
	return wire
}

// broken frames have network headers that do not hold what they say. Their
// token stands where the cut leaves room for it.
func broken(p pair, from role) []scenario {
	var all []scenario
	to := target(p, from)
	add := func(name string, f func(b *builder) []byte) {
		all = append(all, scenario{name: name, from: from, frames: one(f)})
	}
	udp4 := func(b *builder) []byte { return b.udp(b.to(to), ip4(numbers[to]), smallSize) }
	add("IPv4 cut before its destination", func(b *builder) []byte {
		f := udp4(b)[:14+16]
		copy(f[14+10:], token(testMark, b.seq, 0))
		return f
	})
	add("IPv4 with a header of 12 bytes", func(b *builder) []byte { f := udp4(b); f[14] = 0x43; return f })
	add("IPv4 with a header longer than itself", func(b *builder) []byte {
		f := udp4(b)
		f[14], f[14+2], f[14+3] = 0x4f, 0, 40
		return f
	})
	add("IPv4 that says it is longer", func(b *builder) []byte { f := udp4(b); f[14+2] = 4; return f })
	add("IPv4 that says it is shorter than its header", func(b *builder) []byte {
		f := udp4(b)
		f[14+2], f[14+3] = 0, 12
		return f
	})
	add("IPv4 of version 6", func(b *builder) []byte { f := udp4(b); f[14] = 0x65; return f })
	add("IPv4 with a wrong checksum", func(b *builder) []byte { f := udp4(b); f[14+10] ^= 0x55; return f })
	add("IPv4 with padding behind it", func(b *builder) []byte { return append(udp4(b), make([]byte, 9)...) })
	add("IPv6 cut before its destination", func(b *builder) []byte {
		f := b.udp(b.to(to), ip6(numbers[to]), smallSize)[:14+24]
		copy(f[14+18:], token(testMark, b.seq, 0))
		return f
	})
	add("IPv6 that says it is longer", func(b *builder) []byte {
		f := b.udp(b.to(to), ip6(numbers[to]), smallSize)
		f[14+4] = 4
		return f
	})
	add("ARP cut before its target", func(b *builder) []byte {
		f := b.whoHas(to, broadcast)[:14+20]
		copy(f[14+14:], token(testMark, b.seq, 0))
		return f
	})
	add("ARP of another hardware", func(b *builder) []byte { f := b.whoHas(to, broadcast); f[14+1] = 6; return f })
	add("ICMPv6 solicitation with an empty option", func(b *builder) []byte {
		f := b.solicit(to, b.to(to), ip6(numbers[to]))
		f[14+40+24+1] = 0
		return f
	})
	return all
}

// sizes are frames that fill or pass somebody's MTU.
func sizes(p pair, from role) []scenario {
	var all []scenario
	const headers = 28 // of IPv4 and UDP
	for _, to := range append(others(p, from), everybody) {
		if to == unknown || to == subDown {
			continue
		}
		mac := func(b *builder) net.HardwareAddr { return b.to(to) }
		dst := ip4(numbers[to])
		if to == everybody {
			mac = func(*builder) net.HardwareAddr { return broadcast }
			dst = netip.AddrFrom4([4]byte{255, 255, 255, 255})
		}
		for _, size := range []struct {
			name string
			len  int
		}{
			{"a full frame to ", parentMTU - headers},
			{"4 bytes more than full to ", parentMTU + 4 - headers},
			{"100 bytes more than full to ", parentMTU + 100 - headers},
		} {
			all = append(all, scenario{name: size.name + string(to), from: from, frames: one(func(b *builder) []byte {
				return b.udp(mac(b), dst, size.len)
			})})
		}
	}
	return all
}

// sources are frames from a MAC that is not the sender's. From the wire, one
// of a sub-interface is what a reflecting switch port sends back.
func sources(p pair, from role) []scenario {
	var all []scenario
	for _, src := range []role{subA, subB, subDown, host, foreign, everybody} {
		if src == from || !p.has(src) {
			continue
		}
		sender := func(b *builder) net.HardwareAddr {
			if src == everybody {
				return strangeMAC
			}
			return b.to(src)
		}
		name := string(src) + "'s MAC"
		if src == everybody {
			name = "a group MAC"
		}
		add := func(what string, f func(b *builder) []byte) {
			all = append(all, scenario{name: what + " from " + name, from: from, frames: one(func(b *builder) []byte {
				frame := f(b)
				copy(frame[6:12], sender(b))
				return frame
			})})
		}
		for _, to := range others(p, from) {
			if to == unknown || to == subDown {
				continue
			}
			add("udp4 to "+string(to), func(b *builder) []byte { return b.udp(b.to(to), ip4(numbers[to]), smallSize) })
		}
		add("ARP question for A", func(b *builder) []byte { return b.whoHas(subA, broadcast) })
		add("udp to a joined IPv4 group", func(b *builder) []byte { return b.udp(groupMAC(joined4), joined4, smallSize) })
		add("udp to ff02::1", func(b *builder) []byte { return b.udp(groupMAC(allNodes6), allNodes6, smallSize) })
		if src != foreign && src != everybody {
			// In ipvlan's eyes it is the address that tells its own.
			add("udp4 to broadcast with its IP", func(b *builder) []byte {
				proto, packet := udp(ip4(numbers[src]), netip.AddrFrom4([4]byte{255, 255, 255, 255}), b.token())
				return ethernet(broadcast, b.src(), proto, packet)
			})
		}
	}
	return all
}
