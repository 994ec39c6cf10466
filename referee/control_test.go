package referee

import (
	"net"
	"net/netip"
)

// Scenarios of ARP and neighbour discovery.

var (
	nobodyMAC = net.HardwareAddr{0, 0, 0, 0, 0, 0}
	nobody4   = netip.IPv4Unspecified()
	nobody6   = netip.IPv6Unspecified()
)

// whoHas is the sender's question for a role's address, sent to a MAC.
func (b *builder) whoHas(r role, mac net.HardwareAddr) []byte {
	return ethernet(mac, b.src(), typeARP,
		arp(arpRequest, b.src(), ip4(numbers[b.from]), nobodyMAC, ip4(numbers[r]), b.token()))
}

// solicit is the same by neighbour discovery.
func (b *builder) solicit(r role, mac net.HardwareAddr, dst netip.Addr) []byte {
	return ethernet(mac, b.src(), typeIP6,
		neighbour(ndSolicit, ip6(numbers[b.from]), dst, ip6(numbers[r]), b.src(), b.token()))
}

func arps(p pair, from role) []scenario {
	var all []scenario
	add := func(name string, f func(b *builder) []byte) {
		all = append(all, scenario{name: name, from: from, frames: one(f)})
	}
	for _, to := range others(p, from) {
		add("ARP question for "+string(to), func(b *builder) []byte { return b.whoHas(to, broadcast) })
		if to == unknown {
			continue
		}
		add("ARP question to "+string(to), func(b *builder) []byte { return b.whoHas(to, b.to(to)) })
		add("ARP answer to "+string(to), func(b *builder) []byte {
			return ethernet(b.to(to), b.src(), typeARP,
				arp(arpReply, b.src(), ip4(numbers[from]), b.to(to), ip4(numbers[to]), b.token()))
		})
	}
	own := ip4(numbers[from])
	add("gratuitous ARP", func(b *builder) []byte {
		return ethernet(broadcast, b.src(), typeARP, arp(arpRequest, b.src(), own, nobodyMAC, own, b.token()))
	})
	add("gratuitous ARP answer", func(b *builder) []byte {
		return ethernet(broadcast, b.src(), typeARP, arp(arpReply, b.src(), own, broadcast, own, b.token()))
	})
	add("ARP probe for its own address", func(b *builder) []byte {
		return ethernet(broadcast, b.src(), typeARP, arp(arpRequest, b.src(), nobody4, nobodyMAC, own, b.token()))
	})
	add("ARP probe for A's address", func(b *builder) []byte {
		return ethernet(broadcast, b.src(), typeARP,
			arp(arpRequest, b.src(), nobody4, nobodyMAC, ip4(numbers[subA]), b.token()))
	})
	if from == wire || from == subB {
		all = append(all, scenario{name: "ARP claim of A's second address, then udp4 to it", from: from, claims: true,
			frames: func(b *builder) [][]byte {
				second := ip4(secondA)
				return [][]byte{
					ethernet(broadcast, b.src(), typeARP, arp(arpRequest, b.src(), second, nobodyMAC, second, b.token())),
					b.udp(b.to(subA), second, smallSize),
				}
			}})
	}
	return all
}

func neighbours(p pair, from role) []scenario {
	var all []scenario
	add := func(name string, f func(b *builder) []byte) {
		all = append(all, scenario{name: name, from: from, frames: one(f)})
	}
	for _, to := range others(p, from) {
		target := ip6(numbers[to])
		add("solicitation for "+string(to), func(b *builder) []byte {
			return b.solicit(to, groupMAC(solicited(target)), solicited(target))
		})
		add("duplicate address detection of "+string(to)+"'s", func(b *builder) []byte {
			return ethernet(groupMAC(solicited(target)), b.src(), typeIP6,
				neighbour(ndSolicit, nobody6, solicited(target), target, nil, b.token()))
		})
		if to == unknown {
			continue
		}
		add("solicitation to "+string(to), func(b *builder) []byte { return b.solicit(to, b.to(to), target) })
		add("advertisement to "+string(to), func(b *builder) []byte {
			own := ip6(numbers[from])
			return ethernet(b.to(to), b.src(), typeIP6, neighbour(ndAdvertise, own, target, own, b.src(), b.token()))
		})
	}
	add("unsolicited advertisement", func(b *builder) []byte {
		own := ip6(numbers[from])
		return ethernet(groupMAC(allNodes6), b.src(), typeIP6,
			neighbour(ndAdvertise, own, allNodes6, own, b.src(), b.token()))
	})
	if from == wire || from == subB {
		all = append(all, scenario{name: "advertisement of A's second address, then udp6 to it", from: from, claims: true,
			frames: func(b *builder) [][]byte {
				second := ip6(secondA)
				return [][]byte{
					ethernet(groupMAC(allNodes6), b.src(), typeIP6,
						neighbour(ndAdvertise, second, allNodes6, second, b.src(), b.token())),
					b.udp(b.to(subA), second, smallSize),
				}
			}})
	}
	return all
}
