package bpf_test

import (
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// What an IP-keyed sub-interface sends leaves with the parent's MAC. Each frame
// is built twice from one function of the MAC: as it is sent, and as it must
// be, with the checksum that gopacket computes for that.

type builder func(m mac) []byte

// masked completes a case: the frame is what the builder makes of the inner
// MAC, and becomes what it makes of the parent's.
func masked(name string, from uint32, b builder, end func(string, uint32, []byte) frameCase) frameCase {
	c := end(name, from, b(macOf(from)))
	c.out = b(parentMAC)
	return c
}

func to(id uint32) func(string, uint32, []byte) frameCase {
	return func(name string, from uint32, frame []byte) frameCase { return handed(name, from, id, frame) }
}

// dropped leaves only the source MAC rewritten.
func dropped(name string, from uint32, frame []byte) frameCase {
	c := refused(name, from, malformed, frame)
	c.out = set(frame, 6, parentMAC[:]...)
	return c
}

func txIP() []frameCase {
	const me = ipAway
	send := func(dst mac, id uint32) builder {
		return func(m mac) []byte { return udp(dst, m, ip4Of(id), ip4Of(me), 18) }
	}
	tag := func(b builder, tags ...uint16) builder {
		return func(m mac) []byte { return tagged(b(m), tags...) }
	}
	inner := macOf(ipHere)
	here := masked("sibling here", me, send(parentMAC, ipHere), to(ipHere))
	here.out = set(here.out, 0, inner[:]...)
	return []frameCase{
		masked("record pending", pending, func(m mac) []byte {
			return udp(routerMAC, m, routerIP4, ip4Of(pending), 18)
		}, sent),
		masked("wire", me, send(routerMAC, 99), sent),
		masked("wire, IPv6", me, func(m mac) []byte { return udp(routerMAC, m, routerIP6, ip6Of(me), 18) }, sent),
		masked("wire, ping", me, func(m mac) []byte {
			return icmp6(routerMAC, m, routerIP6, ip6Of(me), layers.ICMPv6TypeEchoRequest,
				&layers.ICMPv6Echo{Identifier: 0x0101, SeqNumber: 1})
		}, sent),
		masked("wire, tagged", me, tag(send(routerMAC, 99), 0x8100, 20), sent),
		masked("wire, QinQ", me, tag(send(routerMAC, 99), 0x88a8, 20, 0x8100, 20), sent),
		masked("wire, unknown EtherType", me, func(m mac) []byte { return set(send(routerMAC, 99)(m), 12, 0x88, 0xb5) }, sent),
		masked("wire, LLC", me, func(m mac) []byte { return set(send(routerMAC, 99)(m), 12, 0, 46) }, sent),
		masked("own address", me, send(parentMAC, me), to(me)),
		masked("host", me, send(parentMAC, reserved), sent),
		masked("MAC-keyed sibling", me, send(macOf(macAway), 99), to(macAway)),
		masked("tagged for a VLAN", me, tag(send(macOf(macVLAN), 99), 0x8100, 10), sent),
		inVLAN(masked("in a VLAN", ipVLAN, func(m mac) []byte { return udp(routerMAC, m, routerIP4, ip4Of(ipVLAN), 18) }, sent)),
		inVLAN(masked("to a sibling in its VLAN", ipVLAN, func(m mac) []byte { return udp(macOf(macVLAN), m, ip4Of(99), ip4Of(ipVLAN), 18) }, to(macVLAN))),
		inVLAN(masked("in a VLAN to the parent's MAC", ipVLAN, func(m mac) []byte { return udp(parentMAC, m, ip4Of(reserved), ip4Of(ipVLAN), 18) }, sent)),
		here,
		masked("sibling away", ipHere, func(m mac) []byte { return udp(parentMAC, m, ip6Of(ipAway), ip6Of(ipHere), 18) }, to(ipAway)),
		masked("broadcast", me, send(broadcastMAC, 255), shouted),
		masked("multicast", me, func(m mac) []byte { return udp(multicastMAC, m, allNodes, ip6Of(me), 18) }, shouted),
		masked("from the inner leg here", ipHere, func(m mac) []byte { return udp(broadcastMAC, m, ip4Of(255), ip4Of(me), 18) }, shouted),
	}
}

func txARP() []frameCase {
	const me = ipAway
	ask := func(id uint32) builder {
		return func(m mac) []byte { return whoHas(m, ip4Of(me), ip4Of(id)) }
	}
	return []frameCase{
		masked("request", me, ask(99), shouted),
		masked("request, padded", me, func(m mac) []byte { return padded(ask(99)(m), 60) }, shouted),
		masked("request for a given address", me, ask(macGiven), to(macGiven)),
		masked("request for a given address, by the leg", me, ask(ipHere), to(ipHere)),
		refused("request, tagged", ipVLAN, tagDrop, tagged(whoHas(macOf(ipVLAN), ip4Of(ipVLAN), ip4Of(99)), 0x8100, 10)),
		inVLAN(masked("request in a VLAN", ipVLAN, func(m mac) []byte { return whoHas(m, ip4Of(ipVLAN), ip4Of(99)) }, to(macVLAN))),
		masked("reply", me, func(m mac) []byte {
			return arp(layers.ARPReply, routerMAC, m, ip4Of(me), routerMAC, routerIP4)
		}, sent),
		masked("reply to a sibling", ipHere, func(m mac) []byte {
			return arp(layers.ARPReply, parentMAC, m, ip4Of(ipHere), parentMAC, ip4Of(ipAway))
		}, to(ipAway)),
		masked("announcement", me, ask(me), shouted),
		masked("announcement as a reply", me, func(m mac) []byte {
			return arp(layers.ARPReply, broadcastMAC, m, ip4Of(me), broadcastMAC, ip4Of(me))
		}, shouted),
		masked("probe", me, func(m mac) []byte { return whoHas(m, anyIP4, ip4Of(99)) }, shouted),
		masked("probe of its own", me, func(m mac) []byte { return whoHas(m, anyIP4, ip4Of(me)) }, shouted),
		masked("probe of another's", me, func(m mac) []byte { return whoHas(m, anyIP4, ip4Of(ipHere)) }, to(ipHere)),
	}
}

func txBadARP() []frameCase {
	const me = ipAway
	good := arp(layers.ARPReply, routerMAC, macOf(me), ip4Of(me), routerMAC, routerIP4)
	return []frameCase{
		dropped("hardware type", me, set(good, 14, 0, 6)),
		dropped("protocol type", me, set(good, 16, 8, 6)),
		dropped("hardware length", me, set(good, 18, 8)),
		dropped("hardware length 0", me, set(good, 18, 0)),
		dropped("protocol length", me, set(good, 19, 16)),
		dropped("protocol length 0", me, set(good, 19, 0)),
		dropped("last byte cut", me, good[:41]),
		dropped("no header", me, good[:14]),
		dropped("broadcast", me, set(whoHas(macOf(me), ip4Of(me), routerIP4), 18, 5)),
	}
}

func txND() []frameCase {
	const me = ipAway
	unicast := func(kind uint8, body func(m mac) gopacket.SerializableLayer) builder {
		return func(m mac) []byte { return icmp6(routerMAC, m, routerIP6, ip6Of(me), kind, body(m)) }
	}
	return []frameCase{
		masked("solicitation", me, func(m mac) []byte { return solicit(m, ip6Of(me), routerIP6, sourceLL(m)) }, shouted),
		masked("solicitation of a given address", me, func(m mac) []byte {
			return solicit(m, ip6Of(me), ip6Of(macGiven), sourceLL(m))
		}, to(macGiven)),
		inVLAN(masked("solicitation in a VLAN", ipVLAN, func(m mac) []byte {
			return solicit(m, ip6Of(ipVLAN), routerIP6, sourceLL(m))
		}, to(macVLAN))),
		masked("solicitation, unicast", me, unicast(layers.ICMPv6TypeNeighborSolicitation, func(m mac) gopacket.SerializableLayer {
			return solicitBody(routerIP6, sourceLL(m))
		}), sent),
		masked("solicitation without option", me, unicast(layers.ICMPv6TypeNeighborSolicitation, func(mac) gopacket.SerializableLayer {
			return solicitBody(routerIP6)
		}), sent),
		masked("address detection", me, func(m mac) []byte { return solicit(m, anyIP6, ip6Of(me)) }, shouted),
		masked("advertisement, solicited", me, unicast(layers.ICMPv6TypeNeighborAdvertisement, func(m mac) gopacket.SerializableLayer {
			return advertBody(0x60, ip6Of(me), targetLL(m))
		}), sent),
		masked("advertisement, unsolicited", me, func(m mac) []byte { return advertise(m, ip6Of(me), targetLL(m)) }, shouted),
		masked("advertisement to a sibling", ipHere, func(m mac) []byte {
			return icmp6(parentMAC, m, ip6Of(ipAway), ip6Of(ipHere), layers.ICMPv6TypeNeighborAdvertisement,
				advertBody(0x60, ip6Of(ipHere), targetLL(m)))
		}, to(ipAway)),
		masked("router solicitation", me, func(m mac) []byte {
			return icmp6(multicastMAC, m, allNodes, ip6Of(me), layers.ICMPv6TypeRouterSolicitation,
				&layers.ICMPv6RouterSolicitation{Options: layers.ICMPv6Options{sourceLL(m)}})
		}, shouted),
		masked("router advertisement", me, func(m mac) []byte {
			return icmp6(multicastMAC, m, allNodes, ip6Of(me), layers.ICMPv6TypeRouterAdvertisement,
				&layers.ICMPv6RouterAdvertisement{HopLimit: 64, Options: layers.ICMPv6Options{mtuOption, sourceLL(m)}})
		}, shouted),
	}
}

// words is a number of ND options' bytes, whatever they say.
func words(opts ...[]byte) gopacket.Payload { return slices.Concat(opts...) }

func rawOption(kind, units byte, m mac) []byte {
	return append([]byte{kind, units}, m[:]...)
}

// ndMessage builds a neighbour advertisement of ipAway's with any options.
func ndMessage(options func(m mac) gopacket.Payload) builder {
	return func(m mac) []byte {
		target := ip6Of(ipAway).As16()
		body := slices.Concat([]byte{0x60, 0, 0, 0}, target[:], options(m))
		return icmp6(routerMAC, m, routerIP6, ip6Of(ipAway), layers.ICMPv6TypeNeighborAdvertisement, gopacket.Payload(body))
	}
}

func txNDOptions() []frameCase {
	const me = ipAway
	nonce := rawOption(14, 1, strangerMAC)
	return []frameCase{
		masked("both", me, ndMessage(func(m mac) gopacket.Payload {
			return words(rawOption(2, 1, m), rawOption(1, 1, m))
		}), sent),
		masked("behind others", me, ndMessage(func(m mac) gopacket.Payload {
			return words(nonce, rawOption(5, 2, zeroMAC), make([]byte, 8), rawOption(2, 1, m))
		}), sent),
		masked("the last of sixteen", me, ndMessage(func(m mac) gopacket.Payload {
			return words(slices.Repeat(nonce, 15), rawOption(2, 1, m))
		}), sent),
		masked("sixteen addresses", me, ndMessage(func(m mac) gopacket.Payload {
			return slices.Repeat(rawOption(2, 1, m), 16)
		}), sent),
		dropped("behind sixteen", me, ndMessage(func(mac) gopacket.Payload {
			return words(slices.Repeat(nonce, 16), rawOption(2, 1, macOf(me)))
		})(macOf(me))),
		masked("padding behind the message", me, func(m mac) []byte {
			return padded(ndMessage(func(m mac) gopacket.Payload { return rawOption(2, 1, m) })(m), 120)
		}, sent),
		masked("an address behind the message", me, func(m mac) []byte {
			return slices.Concat(ndMessage(func(m mac) gopacket.Payload { return rawOption(2, 1, m) })(m),
				rawOption(2, 1, macOf(me)))
		}, sent),
		masked("address of two units", me, ndMessage(func(mac) gopacket.Payload {
			return words(rawOption(2, 2, strangerMAC), make([]byte, 8))
		}), sent),
		masked("longer than the message", me, ndMessage(func(m mac) gopacket.Payload {
			return words(rawOption(2, 1, m), rawOption(14, 255, strangerMAC))
		}), sent),
		masked("cut", me, ndMessage(func(m mac) gopacket.Payload {
			return words(rawOption(2, 1, m), rawOption(2, 1, strangerMAC)[:7])
		}), sent),
		masked("length 0 behind an address", me, ndMessage(func(m mac) gopacket.Payload {
			return words(rawOption(2, 1, m), rawOption(14, 0, strangerMAC))
		}), func(name string, from uint32, frame []byte) frameCase { return refused(name, from, malformed, frame) }),
		dropped("length 0", me, ndMessage(func(mac) gopacket.Payload { return rawOption(2, 0, strangerMAC) })(macOf(me))),
	}
}

// txOddND is no neighbour discovery, or none that ends where it should.
func txOddND() []frameCase {
	const me = ipAway
	message := func(m mac) []byte {
		return icmp6(routerMAC, m, routerIP6, ip6Of(me), layers.ICMPv6TypeNeighborAdvertisement,
			advertBody(0x60, ip6Of(me), targetLL(strangerMAC)))
	}
	return []frameCase{
		masked("other protocol", me, func(m mac) []byte { return set(message(m), 20, 17) }, sent),
		masked("other ICMPv6 type", me, func(m mac) []byte { return set(message(m), 54, 129) }, sent),
		masked("in IPv4", me, func(m mac) []byte {
			return build(ether(routerMAC, m, layers.EthernetTypeIPv4),
				ipv4(routerIP4, ip4Of(me), layers.IPProtocolICMPv6), gopacket.Payload(message(m)[54:]))
		}, sent),
		dropped("target cut", me, message(macOf(me))[:77]),
		dropped("type alone", me, message(macOf(me))[:55]),
	}
}
