package referee

import (
	"fmt"
	"net"
	"net/netip"
)

// A scenario is some frames that somebody sends.
type scenario struct {
	name      string
	from      role
	needsVLAN bool                      // it is about a VLAN device on the parent
	claims    bool                      // somebody claims another's address: everybody has to speak again
	frames    func(b *builder) [][]byte // nil ones are not sent
}

// A builder makes the frames of a scenario in a world, each with a token.
type builder struct {
	*world
	from  role
	count int
}

func (b *builder) token() []byte {
	b.count++
	return token(testMark, b.seq, b.count-1)
}

// src is the MAC that the sender sends from.
func (b *builder) src() net.HardwareAddr { return b.own(b.from) }

// udp is a datagram to an address at a MAC, with a payload of size bytes.
func (b *builder) udp(mac net.HardwareAddr, dst netip.Addr, size int) []byte {
	src := ip4(numbers[b.from])
	if !dst.Is4() {
		src = ip6(numbers[b.from])
	}
	payload := append(b.token(), make([]byte, size-tokenLen)...)
	proto, packet := udp(src, dst, payload)
	return ethernet(mac, b.src(), proto, packet)
}

const smallSize = 18 // fills a frame to the least length

func one(f func(b *builder) []byte) func(b *builder) [][]byte {
	return func(b *builder) [][]byte { return [][]byte{f(b)} }
}

// scenarios lists all that a pair goes through.
func scenarios(p pair) []scenario {
	var all []scenario
	senders := []role{wire, subA, subB, host}
	for _, from := range senders {
		if !p.has(from) || from == subB && p.a == p.b && !p.here {
			continue
		}
		for _, s := range [][]scenario{
			unicasts(p, from), groups(p, from), tags(p, from), arps(p, from),
			neighbours(p, from), fragments(p, from), broken(p, from), sizes(p, from), sources(p, from),
		} {
			all = append(all, s...)
		}
	}
	for i := range all {
		all[i].name = string(all[i].from) + " " + all[i].name
	}
	return all
}

// others lists those that a role can send to.
func others(p pair, from role) []role {
	var all []role
	for _, r := range []role{wire, host, subA, subB, subDown, unknown} {
		if p.has(r) && r != from {
			all = append(all, r)
		}
	}
	return all
}

// unicasts go to everybody by MAC, and by IP behind any MAC.
func unicasts(p pair, from role) []scenario {
	var all []scenario
	add := func(name string, f func(b *builder) []byte) {
		all = append(all, scenario{name: name, from: from, frames: one(f)})
	}
	for _, to := range append(others(p, from), from) {
		add("udp4 to "+string(to), func(b *builder) []byte { return b.udp(b.to(to), ip4(numbers[to]), smallSize) })
		add("udp6 to "+string(to), func(b *builder) []byte { return b.udp(b.to(to), ip6(numbers[to]), smallSize) })
		add("unknown type to "+string(to), func(b *builder) []byte {
			return ethernet(b.to(to), b.src(), typeOther, b.token(), make([]byte, 40))
		})
		if to == unknown || to == wire || to == from {
			continue
		}
		add(fmt.Sprintf("udp4 to %s's IP at an unknown MAC", to), func(b *builder) []byte {
			return b.udp(givenMAC(unknown), ip4(numbers[to]), smallSize)
		})
		add(fmt.Sprintf("udp4 to an unknown IP at %s's MAC", to), func(b *builder) []byte {
			return b.udp(b.to(to), ip4(numbers[unknown]), smallSize)
		})
	}
	return all
}

// groups go to everybody, or to those who have joined.
func groups(_ pair, from role) []scenario {
	var all []scenario
	add := func(name string, f func(b *builder) []byte) {
		all = append(all, scenario{name: name, from: from, frames: one(f)})
	}
	for _, g := range []struct {
		name string
		addr netip.Addr
	}{
		{"224.0.0.1", allHosts4}, {"a joined IPv4 group", joined4}, {"another IPv4 group", strange4},
		{"ff02::1", allNodes6}, {"a joined IPv6 group", joined6}, {"another IPv6 group", strange6},
	} {
		add("udp to "+g.name, func(b *builder) []byte { return b.udp(groupMAC(g.addr), g.addr, smallSize) })
	}
	limited := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	add("udp4 to broadcast", func(b *builder) []byte { return b.udp(broadcast, limited, smallSize) })
	add("udp4 to A's IP at broadcast", func(b *builder) []byte { return b.udp(broadcast, ip4(numbers[subA]), smallSize) })
	for _, g := range []struct {
		name string
		mac  net.HardwareAddr
		typ  uint16
	}{
		{"unknown type to broadcast", broadcast, typeOther},
		{"unknown type to a joined MAC group", joinedMAC, typeOther},
		{"unknown type to another MAC group", strangeMAC, typeOther},
		{"LLDP", lldpMAC, typeLLDP},
		{"pause frame", pauseMAC, typePause},
	} {
		add(g.name, func(b *builder) []byte { return ethernet(g.mac, b.src(), g.typ, b.token(), make([]byte, 40)) })
	}
	add("spanning tree", func(b *builder) []byte {
		return ethernet(stpMAC, b.src(), 46, []byte{0x42, 0x42, 0x03}, b.token(), make([]byte, 37))
	})
	return all
}

const ownVLAN = "in the VLAN with a device"

// tags are the same with VLAN tags.
func tags(p pair, from role) []scenario {
	var all []scenario
	for _, tag := range []struct {
		name string
		tags []uint16
	}{
		{ownVLAN, []uint16{typeVLAN, vlanID}},
		{"in a VLAN without a device", []uint16{typeVLAN, strangeID}},
		{"in that VLAN at priority 5", []uint16{typeVLAN, 5<<13 | strangeID}},
		{"with a priority tag", []uint16{typeVLAN, 5 << 13}},
		{"in two VLANs", []uint16{typeQinQ, strangeID, typeVLAN, vlanID}},
	} {
		add := func(name string, f func(b *builder) []byte) {
			all = append(all, scenario{name: name + " " + tag.name, from: from, needsVLAN: tag.name == ownVLAN, frames: one(func(b *builder) []byte {
				return tagged(f(b), tag.tags...)
			})})
		}
		for _, to := range others(p, from) {
			add("udp4 to "+string(to), func(b *builder) []byte { return b.udp(b.to(to), ip4(numbers[to]), smallSize) })
		}
		add("ARP to broadcast for A", func(b *builder) []byte { return b.whoHas(subA, broadcast) })
		add("udp to ff02::1", func(b *builder) []byte { return b.udp(groupMAC(allNodes6), allNodes6, smallSize) })
	}
	return all
}
