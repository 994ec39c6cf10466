package bpf_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/xvlan/xvlan/bpf"
)

// fromWire builds a datagram of the router's to a MAC and an IPv4 address.
func fromWire(dst mac, id uint32) []byte { return udp(dst, routerMAC, ip4Of(id), routerIP4, 18) }

func fromWire6(dst mac, id uint32) []byte { return udp(dst, routerMAC, ip6Of(id), routerIP6, 18) }

// delivered and left are the two usual ends of a frame in xvlan_rx: handed to a
// sub-interface, or left to the host.
func delivered(name string, to uint32, frame []byte) frameCase {
	return frameCase{name: name, frame: frame, ret: actRedir, hits: []hit{{id: to, verdict: rx}}}
}

// untagged is what becomes of a frame whose VLAN's tag is taken off.
func untagged(c frameCase) frameCase {
	c.out = bare(c.frame)
	return c
}

func left(name string, frame []byte) frameCase {
	return frameCase{name: name, frame: frame, ret: actNext, hits: []hit{{id: 0, verdict: passed}}}
}

func rxByMAC() []frameCase {
	toAway, toVLAN := fromWire(macOf(macAway), 99), fromWire(macOf(macVLAN), 99)
	return []frameCase{
		delivered("away", macAway, toAway),
		delivered("here", macHere, fromWire(macOf(macHere), 99)),
		delivered("IPv6", macAway, fromWire6(macOf(macAway), 99)),
		delivered("tagged, no entry for the VLAN", macAway, tagged(toAway, 0x8100, 20)),
		untagged(delivered("VLAN", macVLAN, tagged(toVLAN, 0x8100, 10))),
		untagged(delivered("VLAN with priority", macVLAN, tagged(toVLAN, 0x8100, 0xf00a))),
		delivered("priority tag", macAway, tagged(toAway, 0x8100, 0xe000)),
		delivered("802.1ad, no entry for the VLAN", macAway, tagged(toAway, 0x88a8, 10)),
		delivered("QinQ, no entry for the VLAN", macAway, tagged(toAway, 0x88a8, 20, 0x8100, 10)),
		delivered("unknown EtherType", macAway, set(toAway, 12, 0x88, 0xb5)),
		delivered("LLC", macAway, set(toAway, 12, 0, 46)),
		delivered("header alone", macAway, set(toAway, 12, 0x88, 0xb5)[:14]),
		left("VLAN's MAC untagged", toVLAN),
		left("VLAN's MAC with a priority tag", tagged(toVLAN, 0x8100, 0)),
		left("VLAN's MAC in another VLAN", tagged(toVLAN, 0x8100, 20)),
		left("802.1ad with the VLAN's ID", tagged(toVLAN, 0x88a8, 10)),
		left("QinQ by the outer tag", tagged(toVLAN, 0x88a8, 10, 0x8100, 20)),
		left("QinQ by the inner tag", tagged(toVLAN, 0x88a8, 20, 0x8100, 10)),
		left("in the VLAN by the IP-keyed one's own MAC", tagged(fromWire(macOf(ipVLAN), ipVLAN), 0x8100, 10)),
		left("cut in the tag", tagged(toVLAN, 0x8100, 10)[:17]),
		left("stranger", fromWire(strangerMAC, macAway)),
		left("MAC but for its last byte the parent's", set(fromWire(parentMAC, ipAway), 5, 0xab)),
		left("MAC but for its first byte the parent's", set(fromWire(parentMAC, ipAway), 0, 0x06)),
		left("IP-keyed by its own MAC", fromWire(macOf(ipAway), ipAway)),
		left("record pending", fromWire(macOf(pending), pending)),
		left("record of a later generation", fromWire(macOf(stale), stale)),
		left("record free", fromWire(macOf(free), free)),
	}
}

// readdressed is what becomes of a frame for an IP-keyed sub-interface by its
// host leg.
func readdressed(c frameCase, m mac) frameCase {
	c.out = set(c.frame, 0, m[:]...)
	return c
}

func rxByIP() []frameCase {
	to4, to6 := fromWire(parentMAC, ipAway), fromWire6(parentMAC, ipAway)
	vlan4, vlan6 := fromWire(parentMAC, ipVLAN), fromWire6(parentMAC, ipVLAN)
	here4, here6 := fromWire(parentMAC, ipHere), fromWire6(parentMAC, ipHere)
	return []frameCase{
		delivered("IPv4 away", ipAway, to4),
		delivered("IPv6 away", ipAway, to6),
		readdressed(delivered("IPv4 here", ipHere, here4), macOf(ipHere)),
		readdressed(delivered("IPv6 here", ipHere, here6), macOf(ipHere)),
		delivered("priority tag", ipAway, tagged(to4, 0x8100, 0xe000)),
		untagged(delivered("VLAN IPv4", ipVLAN, tagged(vlan4, 0x8100, 0xb00a))),
		untagged(delivered("VLAN IPv6", ipVLAN, tagged(vlan6, 0x8100, 10))),
		left("VLAN's address in 802.1ad", tagged(vlan6, 0x88a8, 10)),
		left("no VLAN's address in a VLAN that somebody has", tagged(to4, 0x8100, 10)),
		left("VLAN's address untagged", vlan4),
		left("VLAN's address in another VLAN", tagged(vlan6, 0x8100, 20)),
		delivered("IPv4 in a VLAN nobody has", ipAway, tagged(to4, 0x8100, 20)),
		delivered("IPv6 in a VLAN nobody has", ipAway, tagged(to6, 0x88a8, 20)),
		left("nobody's address in a VLAN", tagged(fromWire(parentMAC, 99), 0x8100, 20)),
		left("QinQ", tagged(vlan4, 0x8100, 10, 0x8100, 10)),
		left("nobody's IPv4", fromWire(parentMAC, 99)),
		left("nobody's IPv6", fromWire6(parentMAC, 99)),
		left("reserved IPv4", fromWire(parentMAC, reserved)),
		left("reserved IPv6", fromWire6(parentMAC, reserved)),
		left("MAC-keyed by its given IPv4", fromWire(parentMAC, macGiven)),
		left("MAC-keyed by its given IPv6", fromWire6(parentMAC, macGiven)),
		left("record pending", fromWire(parentMAC, pending)),
		left("record of a later generation", fromWire6(parentMAC, stale)),
		left("record free", fromWire(parentMAC, free)),
		left("unknown EtherType", set(to4, 12, 0x88, 0xb5)),
		left("LLC", set(to4, 12, 0, 46)),
		left("IPv4 behind IPv6's EtherType", set(to4, 12, 0x86, 0xdd)),
	}
}

// The headers behind the addresses do not matter to a frame's way in.
func rxOddIP() []frameCase {
	withOptions := ipv4(ip4Of(ipAway), routerIP4, layers.IPProtocolUDP)
	withOptions.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: make([]byte, 5)}}
	first := ipv4(ip4Of(ipAway), routerIP4, layers.IPProtocolUDP)
	first.Flags = layers.IPv4MoreFragments
	later := ipv4(ip4Of(ipAway), routerIP4, layers.IPProtocolUDP)
	later.FragOffset = 185
	eth4, eth6 := ether(parentMAC, routerMAC, layers.EthernetTypeIPv4), ether(parentMAC, routerMAC, layers.EthernetTypeIPv6)
	payload := gopacket.Payload(make([]byte, 24))
	hops := ipv6(ip6Of(ipAway), routerIP6, layers.IPProtocolIPv6HopByHop)
	fragment := ipv6(ip6Of(ipAway), routerIP6, layers.IPProtocolIPv6Fragment)
	return []frameCase{
		delivered("IPv4 options", ipAway, build(eth4, withOptions, payload)),
		delivered("IPv4 first fragment", ipAway, build(eth4, first, payload)),
		delivered("IPv4 later fragment", ipAway, build(eth4, later, payload)),
		delivered("IPv4 with a short header length", ipAway, set(build(eth4, first, payload), 14, 0x41)),
		delivered("IPv6 hop-by-hop options", ipAway, build(eth6, hops, gopacket.Payload{17, 0, 1, 4, 0, 0, 0, 0}, payload)),
		delivered("IPv6 fragment", ipAway, build(eth6, fragment, gopacket.Payload{17, 0, 0, 1, 0, 0, 0, 9}, payload)),
	}
}

// Unicast ARP and neighbour discovery for the parent's MAC.
func rxNeighbour() []frameCase {
	request := arp(layers.ARPRequest, parentMAC, routerMAC, routerIP4, zeroMAC, ip4Of(ipAway))
	reply := arp(layers.ARPReply, parentMAC, routerMAC, routerIP4, parentMAC, ip4Of(ipAway))
	toVLAN := arp(layers.ARPReply, parentMAC, routerMAC, routerIP4, parentMAC, ip4Of(ipVLAN))
	toGiven := arp(layers.ARPReply, parentMAC, routerMAC, routerIP4, parentMAC, ip4Of(macGiven))
	answer := icmp6(parentMAC, routerMAC, ip6Of(ipAway), routerIP6,
		layers.ICMPv6TypeNeighborAdvertisement, advertBody(0x60, routerIP6, targetLL(routerMAC)))
	probe := icmp6(parentMAC, routerMAC, ip6Of(ipAway), routerIP6,
		layers.ICMPv6TypeNeighborSolicitation, solicitBody(ip6Of(ipAway)))
	return []frameCase{
		delivered("ARP request", ipAway, request),
		delivered("ARP reply", ipAway, reply),
		delivered("ARP reply, padded", ipAway, padded(reply, 60)),
		untagged(delivered("ARP in a VLAN", ipVLAN, tagged(toVLAN, 0x8100, 10))),
		left("ARP for a VLAN's, untagged", toVLAN),
		left("ARP for a MAC-keyed one", toGiven),
		delivered("ARP in a VLAN nobody has", ipAway, tagged(reply, 0x8100, 20)),
		left("ARP for nobody", arp(layers.ARPReply, parentMAC, routerMAC, routerIP4, parentMAC, ip4Of(99))),
		left("ARP hardware type", set(reply, 14, 0, 6)),
		left("ARP protocol type", set(reply, 16, 8, 6)),
		left("ARP hardware length", set(reply, 18, 8)),
		left("ARP protocol length", set(reply, 19, 16)),
		delivered("neighbour advertisement", ipAway, answer),
		delivered("neighbour solicitation", ipAway, probe),
	}
}

// sparseAndCrowded runs a test with the records found by their slots, and with
// every slot shared, so that the hash maps are asked.
func sparseAndCrowded(t *testing.T, test func(*testing.T, *world)) {
	w := usualWorld(t)
	for name, crowded := range map[string]bool{"sparse": false, "crowded": true} {
		w.crowded = crowded
		t.Run(name, func(t *testing.T) { test(t, w) })
	}
}

func TestRx(t *testing.T) { sparseAndCrowded(t, testRx) }

func testRx(t *testing.T, w *world) {
	defer func(n uint32) { w.meta.IpKeyed = n }(w.meta.IpKeyed)
	for name, cases := range map[string][]frameCase{
		"MAC": rxByMAC(), "IP": rxByIP(), "odd IP": rxOddIP(), "neighbour": rxNeighbour(),
	} {
		t.Run(name, func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanRx, cases) })
	}
	w.meta.IpKeyed = 0
	checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{
		left("no IP-keyed sub-interface", fromWire(parentMAC, ipAway)),
	})
}

// unknownDrop is the same as before, but for unicast to a MAC that is neither
// the parent's nor a sub-interface's.
func unknownDrop() []frameCase {
	cases := rxByMAC()
	for i, c := range cases {
		if c.ret == actNext {
			cases[i].ret, cases[i].hits = actDrop, []hit{{id: 0, verdict: unknown}}
		}
	}
	return slices.Concat(cases, rxByIP(), rxOddIP(), rxNeighbour(), rxGroup())
}

func TestRxUnknownDrop(t *testing.T) {
	sparseAndCrowded(t, func(t *testing.T, w *world) {
		w.meta.Policy = bpf.XvlanPolicyPOLICY_UNKNOWN_DROP
		checkAll(t, w, bpf.XvlanProgXvlanRx, unknownDrop())
	})
}

// A frame cut anywhere goes by what is left of it.
func TestRxTruncated(t *testing.T) {
	w := usualWorld(t)
	w.attach(t)
	arpReply := arp(layers.ARPReply, parentMAC, routerMAC, routerIP4, parentMAC, ip4Of(ipAway))
	for _, c := range []struct {
		name  string
		frame []byte
		id    uint32
		known int // bytes that it takes to tell whose it is
	}{
		{"MAC", fromWire(macOf(macAway), 99), macAway, 14},
		{"MAC in a VLAN", tagged(fromWire(macOf(macVLAN), 99), 0x8100, 10), macVLAN, 18},
		{"IPv4", fromWire(parentMAC, ipAway), ipAway, 34},
		{"IPv6", fromWire6(parentMAC, ipAway), ipAway, 54},
		{"IPv4 in a VLAN", tagged(fromWire(parentMAC, ipVLAN), 0x8100, 10), ipVLAN, 38},
		{"IPv6 in a VLAN", tagged(fromWire6(parentMAC, ipVLAN), 0x8100, 10), ipVLAN, 58},
		{"ARP", arpReply, ipAway, 42},
	} {
		for n := 14; n <= len(c.frame); n++ {
			want := left("", c.frame[:n])
			if n >= c.known {
				want = delivered("", c.id, c.frame[:n])
				want.out = bare(want.frame)
			}
			t.Run(fmt.Sprintf("%s/%d", c.name, n), func(t *testing.T) { want.checkCut(t, w, bpf.XvlanProgXvlanRx) })
		}
	}
}

func TestXDP(t *testing.T) { sparseAndCrowded(t, testXDP) }

func testXDP(t *testing.T, w *world) {
	cases := unknownDrop()
	for i := range cases {
		c := &cases[i]
		c.out, c.gone = nil, nil                              // XDP changes nothing
		if c.ret == actDrop && !w.isSlotTaken(mac(c.frame)) { // else it may be in another VLAN
			c.ret = xdpDrop
		} else {
			c.ret, c.hits = xdpPass, nil // counted by who takes it
		}
	}
	w.meta.Policy = bpf.XvlanPolicyPOLICY_UNKNOWN_DROP
	t.Run("unknown drop", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanXdp, cases) })

	for i := range cases {
		cases[i].ret, cases[i].hits = xdpPass, nil
	}
	w.meta.Policy = 0
	t.Run("unknown pass", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanXdp, cases) })
}

// A frame in several buffers counts for all of them.
func TestXDPFragments(t *testing.T) {
	w := usualWorld(t)
	w.meta.Policy = bpf.XvlanPolicyPOLICY_UNKNOWN_DROP
	checkAll(t, w, bpf.XvlanProgXvlanXdp, []frameCase{{
		name: "unknown", frame: udp(strangerMAC, routerMAC, ip4Of(99), routerIP4, 8958),
		ret: xdpDrop, hits: []hit{{id: 0, verdict: unknown}},
	}, {
		name: "known", frame: udp(macOf(macAway), routerMAC, ip4Of(99), routerIP4, 8958), ret: xdpPass,
	}})
}
