package bpf_test

import (
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
)

// receivers are the usual sub-interfaces that get group-addressed frames: all
// without a VLAN whose record is active, whatever their keys.
var receivers = []uint32{macAway, macHere, macGiven, ipAway, ipHere, stale}

// copies is a copy for each receiver but one, and a first hit.
func copies(except uint32, first hit) []hit {
	hits := []hit{first}
	for _, id := range receivers {
		if id != except {
			hits = append(hits, hit{id: id, verdict: rx})
		}
	}
	return hits
}

func flooded(name string, frame []byte) frameCase {
	return frameCase{name: name, frame: frame, ret: actNext, hits: copies(0, hit{id: 0, verdict: passed})}
}

// floodedVLAN is flooded for a frame in VLAN 10.
func floodedVLAN(name string, frame []byte) frameCase {
	c := untagged(left(name, frame))
	c.hits = append(c.hits, hit{id: macVLAN, verdict: rx}, hit{id: ipVLAN, verdict: rx})
	return c
}

func rxGroup() []frameCase {
	broadcast := udp(broadcastMAC, routerMAC, ip4Of(255), routerIP4, 18)
	announce := whoHas(routerMAC, routerIP4, routerIP4)
	options := gopacket.Payload{58, 0, 1, 4, 0, 0, 0, 0}
	behind := build(ether(multicastMAC, routerMAC, layers.EthernetTypeIPv6),
		ipv6(allNodes, routerIP6, layers.IPProtocolIPv6HopByHop), options,
		gopacket.Payload(solicit(routerMAC, routerIP6, ip6Of(ipAway))[54:]))
	return []frameCase{
		flooded("broadcast", broadcast),
		flooded("broadcast, tagged", tagged(broadcast, 0x8100, 20)),
		flooded("broadcast, QinQ", tagged(broadcast, 0x88a8, 10, 0x8100, 20)),
		flooded("broadcast, priority tag", tagged(broadcast, 0x8100, 0xe000)),
		floodedVLAN("broadcast in a VLAN", tagged(broadcast, 0x8100, 10)),
		floodedVLAN("multicast in a VLAN", tagged(udp(multicastMAC, routerMAC, allNodes, routerIP6, 18), 0x8100, 10)),
		flooded("multicast", udp(multicastMAC, routerMAC, allNodes, routerIP6, 18)),
		flooded("LLC", set(broadcast, 12, 0, 46)),
		flooded("header alone", set(broadcast, 12, 0x88, 0xb5)[:14]),
		flooded("ARP announcement", announce),
		flooded("ARP announcement as a reply",
			arp(layers.ARPReply, broadcastMAC, routerMAC, routerIP4, broadcastMAC, routerIP4)),
		flooded("announcement of another's given address", whoHas(routerMAC, ip4Of(ipAway), ip4Of(ipAway))),
		flooded("reply to a given address",
			arp(layers.ARPReply, broadcastMAC, routerMAC, routerIP4, zeroMAC, ip4Of(ipAway))),
		flooded("router solicitation", icmp6(multicastMAC, routerMAC, allNodes, routerIP6,
			layers.ICMPv6TypeRouterSolicitation, &layers.ICMPv6RouterSolicitation{})),
		flooded("router advertisement", icmp6(multicastMAC, routerMAC, allNodes, routerIP6,
			layers.ICMPv6TypeRouterAdvertisement, &layers.ICMPv6RouterAdvertisement{})),
		flooded("advertisement of another's given address", advertise(routerMAC, ip6Of(ipAway))),
		flooded("solicitation behind hop-by-hop options", behind),
		flooded("MAC of the record pending as source",
			udp(broadcastMAC, macOf(pending), ip4Of(255), routerIP4, 18)),
		left("parent's MAC as source", whoHas(parentMAC, ip4Of(taught), routerIP4)),
		left("sub-interface's MAC as source", whoHas(macOf(macAway), ip4Of(taught), routerIP4)),
		untagged(left("sub-interface's MAC as source, in its VLAN",
			tagged(whoHas(macOf(macVLAN), ip4Of(taught), routerIP4), 0x8100, 10))),
		floodedVLAN("MAC of one without a VLAN as source, in a VLAN",
			tagged(whoHas(macOf(macAway), ip4Of(taught), routerIP4), 0x8100, 10)),
	}
}

// rxAsked are questions for one address.
func rxAsked() []frameCase {
	ask4 := func(id uint32) []byte { return whoHas(routerMAC, routerIP4, ip4Of(id)) }
	ask6 := func(id uint32) []byte { return solicit(routerMAC, routerIP6, ip6Of(id), sourceLL(routerMAC)) }
	given4, given6 := ask4(ipAway), ask6(ipAway)
	return []frameCase{
		delivered("ARP, IP-keyed", ipAway, given4),
		delivered("ARP, IP-keyed, here", ipHere, ask4(ipHere)),
		delivered("ARP, MAC-keyed", macGiven, ask4(macGiven)),
		delivered("ARP, padded", ipAway, padded(given4, 60)),
		untagged(delivered("ARP in the VLAN", ipVLAN, tagged(ask4(ipVLAN), 0x8100, 10))),
		delivered("ARP probe", ipAway, whoHas(routerMAC, anyIP4, ip4Of(ipAway))),
		delivered("NS, IP-keyed", ipAway, given6),
		delivered("NS, IP-keyed, here", ipHere, ask6(ipHere)),
		delivered("NS, MAC-keyed", macGiven, ask6(macGiven)),
		untagged(delivered("NS in the VLAN", ipVLAN, tagged(ask6(ipVLAN), 0x8100, 10))),
		delivered("NS, address detection", ipAway, solicit(routerMAC, anyIP6, ip6Of(ipAway))),
		flooded("ARP for a VLAN's, untagged", ask4(ipVLAN)),
		flooded("ARP in a VLAN nobody has", tagged(given4, 0x8100, 20)),
		floodedVLAN("ARP for one without a VLAN, in a VLAN", tagged(given4, 0x8100, 10)),
		flooded("ARP for nobody's", ask4(99)),
		flooded("ARP for a learned address", ask4(taught)),
		flooded("ARP for a reserved address", ask4(reserved)),
		flooded("ARP, record pending", ask4(pending)),
		flooded("ARP, record of a later generation", ask4(stale)),
		flooded("ARP, record free", ask4(free)),
		flooded("ARP hardware type", set(given4, 14, 0, 6)),
		flooded("ARP protocol type", set(given4, 16, 8, 6)),
		flooded("ARP hardware length", set(given4, 18, 8)),
		flooded("ARP protocol length", set(given4, 19, 16)),
		flooded("ARP reverse request", set(given4, 21, 3)),
		flooded("ARP cut", given4[:41]),
		flooded("NS for a VLAN's, untagged", ask6(ipVLAN)),
		flooded("NS for nobody's", ask6(99)),
		flooded("NS for a learned address", ask6(taught)),
		flooded("NS for a reserved address", ask6(reserved)),
		flooded("NS, record of a later generation", ask6(stale)),
		flooded("NS behind another header", set(given6, 20, 17)),
		flooded("NS in another EtherType", set(given6, 12, 0x88, 0xb5)),
		flooded("NS cut", given6[:77]),
		flooded("NS, type alone", given6[:55]),
		flooded("NS, IPv6 header alone", given6[:54]),
	}
}

// rxClaims are announcements from the wire of addresses somebody here has.
func rxClaims() []frameCase {
	gone := func(c frameCase, i int) frameCase {
		c.gone = usualDests[i : i+1]
		return c
	}
	const arpGone, ndGone = 2, 3
	return []frameCase{
		gone(flooded("ARP announcement of a learned address", whoHas(routerMAC, ip4Of(taught), ip4Of(taught))), arpGone),
		gone(flooded("ARP request from a learned address", whoHas(routerMAC, ip4Of(taught), ip4Of(99))), arpGone),
		gone(flooded("ARP reply from a learned address", arp(layers.ARPReply, broadcastMAC, routerMAC,
			ip4Of(taught), broadcastMAC, ip4Of(taught))), arpGone),
		gone(delivered("ARP request to a given address from a learned one", ipHere,
			whoHas(routerMAC, ip4Of(taught), ip4Of(ipHere))), arpGone),
		gone(flooded("advertisement of a learned address", advertise(routerMAC, ip6Of(taught))), ndGone),
		floodedVLAN("ARP announcement in a VLAN", tagged(whoHas(routerMAC, ip4Of(taught), ip4Of(taught)), 0x8100, 10)),
		floodedVLAN("advertisement in a VLAN", tagged(advertise(routerMAC, ip6Of(taught)), 0x8100, 10)),
		flooded("ARP announcement in a VLAN nobody has", tagged(whoHas(routerMAC, ip4Of(taught), ip4Of(taught)), 0x8100, 20)),
		flooded("advertisement in a VLAN nobody has", tagged(advertise(routerMAC, ip6Of(taught)), 0x8100, 20)),
		flooded("solicitation from a learned address", solicit(routerMAC, ip6Of(taught), ip6Of(99))),
		flooded("ARP, wrong lengths", set(whoHas(routerMAC, ip4Of(taught), ip4Of(taught)), 18, 8)),
		flooded("advertisement behind another header", set(advertise(routerMAC, ip6Of(taught)), 20, 17)),
		flooded("reserved address", whoHas(routerMAC, ip4Of(reserved), ip4Of(reserved))),
	}
}

func TestRxGroup(t *testing.T) {
	w := usualWorld(t)
	for name, cases := range map[string][]frameCase{"frame": rxGroup(), "question": rxAsked(), "claim": rxClaims()} {
		t.Run(name, func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanRx, cases) })
	}
}

// rxPackets returns what the inner legs' devices have received.
func (w *world) rxPackets(tb testing.TB) map[uint32]uint64 {
	tb.Helper()
	all := make(map[uint32]uint64)
	for id := range w.subs {
		all[id] = w.innerNetns(id).Link(tb, innerName(id)).Attrs().Statistics.RxPackets
	}
	return all
}

// Every receiver's device gets its copy, as it was sent.
func TestFloodArrives(t *testing.T) {
	w := usualWorld(t)
	capture := w.inside.Capture(t, innerName(ipAway))
	frame := udp(broadcastMAC, routerMAC, ip4Of(255), routerIP4, 18)
	undisturbed(t, func(tb testing.TB) {
		w.enter(tb)
		before := w.rxPackets(tb)
		w.run(tb, bpf.XvlanProgXvlanRx, 0, frame, 0)
		for id, got := range w.rxPackets(tb) {
			want := before[id]
			if slices.Contains(receivers, id) {
				want++
			}
			if got != want {
				tb.Errorf("inner leg of %d has received %d frames, want %d", id, got, want)
			}
		}
		frames := capture.Frames(1, arriveWithin)
		if len(frames) != 1 {
			tb.Errorf("no copy captured")
			return
		}
		wantBytes(tb, frames[0].Data, frame)
		if frames[0].PktType != unix.PACKET_BROADCAST {
			tb.Errorf("copy has packet type %d, want broadcast", frames[0].PktType)
		}
	})
}

// Members whose leg is gone or down are counted at themselves and stop nobody.
func TestFloodRefused(t *testing.T) {
	w := usualWorld(t)
	if err := w.host.Handle().LinkDel(w.host.Link(t, legName(macAway))); err != nil {
		t.Fatal(err)
	}
	if err := w.host.Handle().LinkSetDown(w.host.Link(t, legName(macVLAN))); err != nil {
		t.Fatal(err)
	}
	gone := w.subs[macAway] // what is read in its device's place is chance
	gone.Device = 0
	w.subs[macAway] = gone
	refuse := func(c frameCase) frameCase {
		for i, h := range c.hits {
			if h.id == macAway || h.id == macVLAN {
				c.hits[i].verdict = fanout
			}
		}
		return c
	}
	frame := udp(broadcastMAC, routerMAC, ip4Of(255), routerIP4, 18)
	checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{refuse(flooded("from the wire", frame))})
	checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{refuse(frameCase{
		name: "from a sub-interface", from: macHere, frame: frame, ret: actRedir,
		hits: copies(macHere, hit{id: macHere, verdict: tx}),
	})})
}

// The members' bitmap has more than one word, and its last bits may be set.
func TestFloodMany(t *testing.T) {
	const many = 130
	w := newWorld(t, many)
	hits := []hit{{id: 0, verdict: passed}}
	for _, id := range []uint32{1, 62, 63, 64, 65, 127, 128, many} {
		w.add(t, id, macvlan(bpf.XvlanSubPlacePLACE_AWAY))
		hits = append(hits, hit{id: id, verdict: rx})
	}
	frame := udp(broadcastMAC, routerMAC, ip4Of(255), routerIP4, 18)
	c := frameCase{frame: frame, ret: actNext, hits: hits}
	c.check(t, w, bpf.XvlanProgXvlanRx)
	for _, from := range []uint32{63, 64, many} {
		c := frameCase{from: from, frame: frame, ret: actRedir, hits: []hit{{id: from, verdict: tx}}}
		for _, h := range hits[1:] {
			if h.id != from {
				c.hits = append(c.hits, h)
			}
		}
		c.check(t, w, bpf.XvlanProgXvlanTx)
	}
}
