// Package spoof is what a container's root may try against others with raw sockets,
// and what everybody says who does not: for the tests of the source guard.
package spoof

import (
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket/layers"

	"github.com/xvlan/xvlan/maps"
)

// A Party is one on the link.
type Party struct {
	MAC      MAC
	IP4, IP6 netip.Addr
}

// A Scene is who speaks, and who there is besides.
type Scene struct {
	Me, Sibling, Host, Wire Party

	Local        netip.Addr // a link-local address for Me, that nobody has
	Free4, Free6 netip.Addr // nobody's addresses
	Broadcast4   netip.Addr // of the subnet
	Stranger     MAC
}

// A Message is something that Me says, and why it is dropped; what is not dropped has 0.
type Message struct {
	Name  string
	Why   maps.Verdict
	Frame []byte
}

// Lies are what nobody gets through who has a guard and given addresses of both families.
func (s Scene) Lies() []Message {
	udp4, udp6 := s.udp(s.Wire.MAC, s.Wire.IP4, s.Me.IP4), s.udp(s.Wire.MAC, s.Wire.IP6, s.Me.IP6)
	say4 := func(proto layers.IPProtocol, body ...byte) []byte {
		return s.ip(s.Wire.MAC, s.Wire.IP4, s.Me.IP4, proto, body)
	}
	say6 := func(next layers.IPProtocol, parts ...[]byte) []byte {
		return s.ip(allNodesMAC, allNodes, s.Me.IP6, next, slices.Concat(parts...))
	}
	ra := icmpBody(134, make([]byte, 12)...)
	ns := ndBody(135, s.Free6, llOption(1, s.Stranger))
	return []Message{
		{"another MAC", maps.DropSourceMAC, set(udp4, 6, s.Stranger[:]...)},
		{"a sibling's MAC", maps.DropSourceMAC, set(udp4, 6, s.Sibling.MAC[:]...)},
		{"tag", maps.DropTag, tagged(udp4, 0x8100, 10)},
		{"priority tag", maps.DropTag, tagged(udp4, 0x8100, 0xe000)},
		{"QinQ", maps.DropTag, tagged(udp4, 0x88a8, 20, 0x8100, 10)},
		{"LLC", maps.DropEtherType, set(udp4, 12, 0, 46)},
		{"SNAP", maps.DropEtherType, s.frame(s.Wire.MAC, 36, []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 6}, s.whoHas(s.Wire.IP4, s.Wire.IP4)[14:])},
		{"pause", maps.DropEtherType, s.frame(MAC{1, 0x80, 0xc2, 0, 0, 1}, 0x8808, make([]byte, 46))},
		{"LLDP", maps.DropEtherType, s.frame(MAC{1, 0x80, 0xc2, 0, 0, 14}, 0x88cc, []byte{0, 0})},
		{"RARP", maps.DropEtherType, set(s.whoHas(s.Me.IP4, s.Me.IP4), 12, 0x80, 0x35)},
		{"MPLS", maps.DropEtherType, set(udp4, 12, 0x88, 0x47)},

		{"another IPv4", maps.DropSourceIP, s.udp(s.Wire.MAC, s.Wire.IP4, s.Free4)},
		{"the host's IPv4", maps.DropSourceIP, s.udp(s.Wire.MAC, s.Wire.IP4, s.Host.IP4)},
		{"a sibling's IPv4", maps.DropSourceIP, s.udp(s.Wire.MAC, s.Wire.IP4, s.Sibling.IP4)},
		{"no IPv4", maps.DropSourceIP, s.udp(s.Wire.MAC, s.Wire.IP4, anyIP4)},
		{"IPv4 from a group", maps.DropSourceIP, s.udp(s.Wire.MAC, s.Wire.IP4, netip.MustParseAddr("224.0.0.1"))},
		{"IPv4 with options from another", maps.DropSourceIP, s.optioned(s.Wire.MAC, s.Wire.IP4, s.Free4, ports(1, 2))},
		{"later IPv4 fragment of another", maps.DropSourceIP, set(s.udp(s.Wire.MAC, s.Wire.IP4, s.Free4), 20, 0, 10)},
		{"IPv4 header cut", maps.DropMalformed, set(udp4, 14, 0x44)},
		{"IPv4 of version 6", maps.DropMalformed, set(udp4, 14, 0x65)},
		{"UDP cut", maps.DropMalformed, say4(udp, 0, 1, 0, 68)},
		{"another IPv6", maps.DropSourceIP, s.udp(s.Wire.MAC, s.Wire.IP6, s.Free6)},
		{"the host's IPv6", maps.DropSourceIP, s.udp(s.Wire.MAC, s.Wire.IP6, s.Host.IP6)},
		{"a sibling's IPv6", maps.DropSourceIP, s.udp(s.Wire.MAC, s.Wire.IP6, s.Sibling.IP6)},
		{"no IPv6", maps.DropSourceIP, s.udp(s.Wire.MAC, s.Wire.IP6, anyIP6)},
		{"ping from no IPv6", maps.DropSourceIP, s.ip(s.Wire.MAC, s.Wire.IP6, anyIP6, icmp6, icmpBody(128, 0, 1, 0, 1))},
		{"later IPv6 fragment of another", maps.DropSourceIP, s.ip(s.Wire.MAC, s.Wire.IP6, s.Free6, fragmented, slices.Concat(fragment(udp, 9, false), ports(1, 2)))},
		{"IPv6 of version 4", maps.DropMalformed, set(udp6, 14, 0x45)},
		{"IPv6, extensions without end", maps.DropMalformed, say6(hopByHop, slices.Repeat([]byte{60, 0, 0, 0, 0, 0, 0, 0}, 20))},
		{"IPv6, extension cut", maps.DropMalformed, say6(hopByHop, []byte{58, 200, 0, 0, 0, 0, 0, 0})},
		{"IPv6, fragment of a fragment", maps.DropMalformed, say6(fragmented, fragment(44, 0, true), fragment(udp, 0, true), ports(1, 2))},
		{"IPv6, first fragment without transport", maps.DropMalformed, say6(fragmented, fragment(60, 0, true), []byte{58, 1, 0, 0, 0, 0, 0, 0})},

		{"ARP with another MAC inside", maps.DropARP, set(s.whoHas(s.Me.IP4, s.Wire.IP4), 22, s.Stranger[:]...)},
		{"ARP for another", maps.DropARP, s.arp(1, broadcast, s.Free4, s.Wire.IP4)},
		{"ARP for the host", maps.DropARP, s.arp(1, broadcast, s.Host.IP4, s.Wire.IP4)},
		{"ARP announcement for another", maps.DropARP, s.arp(1, broadcast, s.Free4, s.Free4)},
		{"ARP answer for another", maps.DropARP, s.arp(2, broadcast, s.Free4, s.Wire.IP4)},
		{"ARP answer from nobody", maps.DropARP, s.arp(2, broadcast, anyIP4, s.Wire.IP4)},
		{"ARP probe for another's", maps.DropARP, s.arp(1, broadcast, anyIP4, s.Sibling.IP4)},
		{"ARP of another operation", maps.DropARP, s.arp(3, broadcast, s.Me.IP4, s.Me.IP4)},
		{"ARP of another network", maps.DropARP, set(s.whoHas(s.Me.IP4, s.Wire.IP4), 14, 0, 6)},
		{"ARP cut", maps.DropARP, s.whoHas(s.Me.IP4, s.Wire.IP4)[:40]},

		{"NS with another MAC inside", maps.DropND, s.solicit(s.Me.IP6, s.Wire.IP6, llOption(1, s.Stranger))},
		{"NS from another", maps.DropSourceIP, s.solicit(s.Free6, s.Wire.IP6, llOption(1, s.Me.MAC))},
		{"NS, MAC behind other options", maps.DropND, s.solicit(s.Me.IP6, s.Wire.IP6, llOption(1, s.Me.MAC), []byte{5, 1, 0, 0, 0, 0, 5, 0xdc}, llOption(1, s.Stranger))},
		{"NS, MAC of two units", maps.DropND, say6(icmp6, ndBody(135, s.Free6, []byte{1, 2}, s.Stranger[:], make([]byte, 8)))},
		{"NS, option of no units", maps.DropND, say6(icmp6, ndBody(135, s.Free6, []byte{1, 0, 0, 0, 0, 0, 0, 0}))},
		{"NS, too many options", maps.DropND, say6(icmp6, ndBody(135, s.Free6, slices.Repeat(llOption(200, MAC{}), 17)))},
		{"address detection of another's", maps.DropND, s.solicit(anyIP6, s.Sibling.IP6)},
		{"address detection with a MAC", maps.DropND, s.solicit(anyIP6, s.Me.IP6, llOption(1, s.Me.MAC))},
		{"NA for another", maps.DropND, s.advertise(s.Free6, llOption(2, s.Me.MAC))},
		{"NA for another, in its own name", maps.DropND, say6(icmp6, ndBody(136, s.Free6))},
		{"NA with another MAC inside", maps.DropND, s.advertise(s.Me.IP6, llOption(2, s.Stranger))},
		{"NA from no address", maps.DropND, s.ip(allNodesMAC, allNodes, anyIP6, icmp6, ndBody(136, s.Me.IP6))},
		{"RS with another MAC inside", maps.DropND, say6(icmp6, icmpBody(133, 0, 0, 0, 0), llOption(1, s.Stranger))},
		{"RS from no address with a MAC", maps.DropND, s.ip(allNodesMAC, allRoutes, anyIP6, icmp6, slices.Concat(icmpBody(133, 0, 0, 0, 0), llOption(1, s.Me.MAC)))},
		{"inverse ND", maps.DropND, say6(icmp6, icmpBody(141, 0, 0, 0, 0), llOption(1, s.Stranger))},
		{"NS behind an extension", maps.DropND, say6(hopByHop, extension(icmp6, 1), ns)},
		{"NS in a fragment", maps.DropND, say6(fragmented, fragment(icmp6, 0, false), ns)},

		{"router advertisement", maps.DropRouter, s.ip(allNodesMAC, allNodes, s.Local, icmp6, ra)},
		{"RA behind an extension", maps.DropRouter, say6(hopByHop, extension(60, 1), extension(icmp6, 2), ra)},
		{"RA behind authentication", maps.DropRouter, say6(layers.IPProtocolAH, []byte{58, 1}, make([]byte, 10), ra)},
		{"RA in a first fragment", maps.DropRouter, say6(fragmented, fragment(icmp6, 0, true), ra)},
		{"RA behind an extension in a fragment", maps.DropRouter, say6(fragmented, fragment(60, 0, true), extension(icmp6, 1), ra)},
		{"redirect", maps.DropRouter, say6(icmp6, ndBody(137, s.Free6))},
		{"MLD query", maps.DropRouter, say6(icmp6, ndBody(130, allNodes))},
		{"multicast router advertisement", maps.DropRouter, say6(icmp6, icmpBody(151, 0, 0, 0, 0))},
		{"IPv4 redirect", maps.DropRouter, say4(layers.IPProtocolICMPv4, icmpBody(5, 192, 0, 2, 1)...)},
		{"IPv4 router advertisement", maps.DropRouter, say4(layers.IPProtocolICMPv4, icmpBody(9, 0, 0, 0, 0)...)},
		{"IGMP query", maps.DropRouter, say4(layers.IPProtocolIGMP, 0x11, 0, 0, 0, 0, 0, 0, 0)},

		{"DHCP server", maps.DropDHCP, say4(udp, bootp(67, 68, 2, s.Sibling.MAC)...)},
		{"DHCP server from another port", maps.DropDHCP, say4(udp, bootp(4000, 68, 2, s.Sibling.MAC)...)},
		{"DHCP server in a first fragment", maps.DropDHCP, set(s.ip(s.Wire.MAC, s.Wire.IP4, s.Me.IP4, udp, bootp(67, 68, 2, s.Me.MAC)), 20, 0x20, 0)},
		{"DHCP server behind options", maps.DropDHCP, s.optioned(broadcast, all4, s.Me.IP4, bootp(67, 68, 2, s.Me.MAC))},
		{"DHCP reply to a relay agent", maps.DropDHCP, s.ip(s.Wire.MAC, s.Wire.IP4, s.Me.IP4, udp, bootp(67, 67, 2, s.Me.MAC))},
		{"DHCP request for another's MAC", maps.DropDHCP, s.ip(broadcast, all4, anyIP4, udp, bootp(68, 67, 1, s.Stranger))},
		{"DHCP request cut before the MAC", maps.DropDHCP, say4(udp, bootp(68, 67, 1, MAC{})[:20]...)},
		{"DHCPv6 server", maps.DropDHCP, say6(udp, ports(547, 546, 7, 0, 0, 0))},
		{"DHCPv6 server behind an extension", maps.DropDHCP, say6(destination, extension(udp, 1), ports(547, 546, 7, 0, 0, 0))},
		{"DHCPv6 reply to a relay agent", maps.DropDHCP, say6(udp, ports(547, 547, 13, 0, 0, 0))},
		{"DHCP from no address to one host", maps.DropSourceIP, s.ip(s.Wire.MAC, s.Wire.IP4, anyIP4, udp, bootp(68, 67, 1, s.Me.MAC))},
	}
}

// Truths are what everybody says who has nothing to hide: to the wire, and to all.
func (s Scene) Truths() (one, all []Message) {
	udp4, udp6 := s.udp(s.Wire.MAC, s.Wire.IP4, s.Me.IP4), s.udp(s.Wire.MAC, s.Wire.IP6, s.Me.IP6)
	tcp := make([]byte, 120)
	tcp[12] = 5 << 4
	group4, mld := netip.MustParseAddr("224.0.0.22"), netip.MustParseAddr("ff02::16")
	group4MAC, mldMAC := MAC{1, 0, 0x5e, 0, 0, 22}, MAC{0x33, 0x33, 0, 0, 0, 0x16}
	report := icmpBody(143, 0, 0, 0, 1, 4, 0, 0, 0)
	one = []Message{
		{"UDP", 0, udp4},
		{"TCP", 0, s.ip(s.Wire.MAC, s.Wire.IP4, s.Me.IP4, layers.IPProtocolTCP, tcp)},
		{"UDP over IPv6", 0, udp6},
		{"TCP over IPv6", 0, s.ip(s.Wire.MAC, s.Wire.IP6, s.Me.IP6, layers.IPProtocolTCP, tcp)},
		{"first IPv4 fragment", 0, set(udp4, 20, 0x20, 0)},
		{"later IPv4 fragment", 0, set(udp4, 20, 0, 9)},
		{"first IPv6 fragment", 0, s.ip(s.Wire.MAC, s.Wire.IP6, s.Me.IP6, fragmented, slices.Concat(fragment(udp, 0, true), ports(1, 2)))},
		{"later IPv6 fragment", 0, s.ip(s.Wire.MAC, s.Wire.IP6, s.Me.IP6, fragmented, slices.Concat(fragment(icmp6, 9, false), make([]byte, 16)))},
		{"ping", 0, s.ip(s.Wire.MAC, s.Wire.IP6, s.Me.IP6, icmp6, icmpBody(128, 0, 1, 0, 1))},
		{"ESP", 0, s.ip(s.Wire.MAC, s.Wire.IP6, s.Me.IP6, layers.IPProtocolESP, make([]byte, 16))},
		{"GRE", 0, s.ip(s.Wire.MAC, s.Wire.IP4, s.Me.IP4, layers.IPProtocolGRE, make([]byte, 4))},
		{"ARP answer", 0, s.arp(2, s.Wire.MAC, s.Me.IP4, s.Wire.IP4)},
		{"NA", 0, s.ip(s.Wire.MAC, s.Wire.IP6, s.Me.IP6, icmp6, ndBody(136, s.Me.IP6, llOption(2, s.Me.MAC)))},
		{"DHCP renewal", 0, s.ip(s.Wire.MAC, s.Wire.IP4, s.Me.IP4, udp, bootp(68, 67, 1, s.Me.MAC))},
	}
	all = []Message{
		{"ARP question", 0, s.whoHas(s.Me.IP4, s.Wire.IP4)},
		{"ARP probe", 0, s.whoHas(anyIP4, s.Me.IP4)},
		{"ARP announcement", 0, s.whoHas(s.Me.IP4, s.Me.IP4)},
		{"NS", 0, s.solicit(s.Me.IP6, s.Wire.IP6, llOption(1, s.Me.MAC))},
		{"address detection", 0, s.solicit(anyIP6, s.Me.IP6)},
		{"unsolicited NA", 0, s.advertise(s.Me.IP6, llOption(2, s.Me.MAC))},
		{"RS", 0, s.ip(allNodesMAC, allRoutes, s.Me.IP6, icmp6, slices.Concat(icmpBody(133, 0, 0, 0, 0), llOption(1, s.Me.MAC)))},
		{"RS from no address", 0, s.ip(allNodesMAC, allRoutes, anyIP6, icmp6, icmpBody(133, 0, 0, 0, 0))},
		{"MLD from no address", 0, s.ip(mldMAC, mld, anyIP6, hopByHop, slices.Concat([]byte{58, 0, 5, 2, 0, 0, 1, 0}, report))},
		{"MLD", 0, s.ip(mldMAC, mld, s.Me.IP6, hopByHop, slices.Concat([]byte{58, 0, 5, 2, 0, 0, 1, 0}, report))},
		{"IGMP", 0, s.ip(group4MAC, group4, s.Me.IP4, layers.IPProtocolIGMP, []byte{0x22, 0, 0, 0, 0, 0, 0, 0})},
		{"IGMP from no address", 0, s.ip(group4MAC, group4, anyIP4, layers.IPProtocolIGMP, []byte{0x22, 0, 0, 0, 0, 0, 0, 0})},
		{"DHCP client", 0, s.ip(broadcast, all4, anyIP4, udp, bootp(68, 67, 1, s.Me.MAC))},
		{"DHCPv6 client", 0, s.ip(allNodesMAC, allNodes, s.Me.IP6, udp, ports(546, 547, 1, 0, 0, 0))},
		{"broadcast", 0, s.udp(broadcast, s.Broadcast4, s.Me.IP4)},
		{"multicast", 0, s.udp(allNodesMAC, allNodes, s.Me.IP6)},
	}
	return one, all
}
