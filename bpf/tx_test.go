package bpf_test

import (
	"fmt"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/xvlan/xvlan/bpf"
)

// sent, handed and shouted are the usual ends of a frame in xvlan_tx: out to
// the wire, to a sibling, or group-addressed to all.
func sent(name string, from uint32, frame []byte) frameCase {
	return frameCase{name: name, from: from, frame: frame, ret: actRedir, hits: []hit{{id: from, verdict: tx}}}
}

func handed(name string, from, to uint32, frame []byte) frameCase {
	c := sent(name, from, frame)
	c.hits = append(c.hits, hit{id: to, verdict: rx})
	return c
}

// inVLAN is for what gets a tag where it is sent.
func inVLAN(c frameCase) frameCase {
	c.tags = 4
	return c
}

func shouted(name string, from uint32, frame []byte) frameCase {
	return frameCase{name: name, from: from, frame: frame, ret: actRedir, hits: copies(from, hit{id: from, verdict: tx})}
}

func refused(name string, from uint32, why bpf.XvlanVerdict, frame []byte) frameCase {
	return frameCase{name: name, from: from, frame: frame, ret: actDrop, hits: []hit{{id: from, verdict: why}}}
}

// txMAC is what a MAC-keyed sub-interface sends: nothing of it is changed,
// unless the receiver is an IP-keyed one whose frames go by its host leg.
func txMAC() []frameCase {
	const me = macAway
	send := func(dst mac, id uint32) []byte { return udp(dst, macOf(me), ip4Of(id), ip4Of(me), 18) }
	toVLAN := send(macOf(macVLAN), 99)
	cut := arp(layers.ARPReply, routerMAC, macOf(me), ip4Of(me), routerMAC, routerIP4)[:30]
	return []frameCase{
		sent("wire", me, send(routerMAC, 99)),
		sent("wire, IPv6", me, udp(routerMAC, macOf(me), routerIP6, ip6Of(me), 18)),
		sent("wire, tagged", me, tagged(send(routerMAC, 99), 0x8100, 10)),
		sent("wire, QinQ", me, tagged(send(routerMAC, 99), 0x88a8, 10, 0x8100, 20)),
		sent("wire, unknown EtherType", me, set(send(routerMAC, 99), 12, 0x88, 0xb5)),
		sent("wire, LLC", me, set(send(routerMAC, 99), 12, 0, 46)),
		sent("wire, another's source MAC", me, set(send(routerMAC, 99), 6, strangerMAC[:]...)),
		handed("own MAC", me, me, send(macOf(me), 99)),
		handed("sibling", me, macHere, send(macOf(macHere), 99)),
		handed("sibling, tagged", me, macHere, tagged(send(macOf(macHere), 99), 0x8100, 20)),
		sent("tagged sibling in its VLAN", me, tagged(toVLAN, 0x8100, 10)),
		sent("sibling, not in its VLAN", me, toVLAN),
		sent("record pending", me, send(macOf(pending), 99)),
		sent("record of a later generation", me, send(macOf(stale), 99)),
		sent("record free", me, send(macOf(free), 99)),
		handed("IP-keyed sibling", me, ipAway, send(parentMAC, ipAway)),
		handed("IP-keyed sibling, IPv6", me, ipAway, udp(parentMAC, macOf(me), ip6Of(ipAway), ip6Of(me), 18)),
		readdressed(handed("IP-keyed sibling, here", me, ipHere, send(parentMAC, ipHere)), macOf(ipHere)),
		handed("IP-keyed sibling, ARP", me, ipAway,
			arp(layers.ARPReply, parentMAC, macOf(me), ip4Of(me), parentMAC, ip4Of(ipAway))),
		sent("IP-keyed sibling by its own MAC", me, send(macOf(ipAway), ipAway)),
		sent("host", me, send(parentMAC, reserved)),
		sent("MAC-keyed sibling by its given address", me, send(parentMAC, macGiven)),
		sent("ARP cut", me, cut),
		shouted("broadcast", me, send(broadcastMAC, 255)),
		shouted("broadcast, tagged", me, tagged(send(broadcastMAC, 255), 0x8100, 20)),
		sent("broadcast, tagged for a VLAN", me, tagged(send(broadcastMAC, 255), 0x8100, 10)),
		shouted("multicast", me, udp(multicastMAC, macOf(me), allNodes, ip6Of(me), 18)),
		inVLAN(sent("from a VLAN", macVLAN, send(routerMAC, 99))),
		inVLAN(sent("from a VLAN to one without", macVLAN, send(macOf(macAway), 99))),
		untagged(sent("from a VLAN with a priority tag", macVLAN, tagged(send(routerMAC, 99), 0x8100, 0xe000))),
		inVLAN(handed("from a VLAN to a sibling", macVLAN, ipVLAN, send(parentMAC, ipVLAN))),
		inVLAN(sent("from a VLAN to one without, by IP", macVLAN, send(parentMAC, ipAway))),
		inVLAN(frameCase{name: "broadcast in a VLAN", from: macVLAN, frame: send(broadcastMAC, 255), ret: actRedir,
			hits: []hit{{id: macVLAN, verdict: tx}, {id: ipVLAN, verdict: rx}}}),
		refused("tagged from a VLAN", macVLAN, tagDrop, tagged(send(broadcastMAC, 255), 0x8100, 10)),
		refused("tagged with another from a VLAN", macVLAN, tagDrop, tagged(send(routerMAC, 99), 0x8100, 20)),
		refused("QinQ from a VLAN", macVLAN, tagDrop, tagged(send(routerMAC, 99), 0x88a8, 10, 0x8100, 20)),
		refused("a tag behind a priority tag from a VLAN", macVLAN, tagDrop, tagged(send(routerMAC, 99), 0x8100, 0, 0x8100, 20)),
		shouted("from an inner leg that is here", macHere, send(broadcastMAC, 255)),
	}
}

// txAsked are a MAC-keyed sub-interface's questions. It may announce what it
// likes: nothing is learned of it, and only the wire ends others' claims.
func txAsked() []frameCase {
	const me = macGiven
	ask4 := func(id uint32) []byte { return whoHas(macOf(me), ip4Of(me), ip4Of(id)) }
	ask6 := func(id uint32) []byte { return solicit(macOf(me), ip6Of(me), ip6Of(id), sourceLL(macOf(me))) }
	return []frameCase{
		handed("ARP", me, ipAway, ask4(ipAway)),
		handed("ARP, here", me, ipHere, ask4(ipHere)),
		handed("ARP of a MAC-keyed one", macAway, macGiven, whoHas(macOf(macAway), ip4Of(2), ip4Of(macGiven))),
		handed("NS", me, ipAway, ask6(ipAway)),
		sent("NS tagged for the VLAN", me, tagged(ask6(ipVLAN), 0x8100, 10)),
		inVLAN(handed("ARP in the VLAN", macVLAN, ipVLAN, whoHas(macOf(macVLAN), ip4Of(macVLAN), ip4Of(ipVLAN)))),
		inVLAN(handed("NS in the VLAN", macVLAN, ipVLAN, solicit(macOf(macVLAN), ip6Of(macVLAN), ip6Of(ipVLAN), sourceLL(macOf(macVLAN))))),
		shouted("ARP for the router", me, ask4(254)),
		shouted("NS for the router", me, solicit(macOf(me), ip6Of(me), routerIP6, sourceLL(macOf(me)))),
		shouted("ARP for a learned address", me, ask4(taught)),
		shouted("ARP for a reserved address", me, ask4(reserved)),
		shouted("ARP announcement", me, ask4(me)),
		shouted("ARP probe of its own", me, whoHas(macOf(me), anyIP4, ip4Of(me))),
		shouted("address detection of its own", me, solicit(macOf(me), anyIP6, ip6Of(me))),
		shouted("ARP claim of a learned address", me, whoHas(macOf(me), ip4Of(taught), ip4Of(taught))),
		shouted("ND claim of a learned address", me, advertise(macOf(me), ip6Of(taught), targetLL(macOf(me)))),
		shouted("ARP from an address nobody has", me, whoHas(macOf(me), ip4Of(98), ip4Of(99))),
		shouted("ARP, wrong length", me, set(ask4(ipAway), 18, 8)),
	}
}

// txInactive comes from legs that lead to no record.
func txInactive() []frameCase {
	drop := func(name string, from uint32) frameCase {
		return frameCase{name: name, from: from, frame: udp(routerMAC, macOf(from), routerIP4, ip4Of(from), 18),
			ret: actDrop, hits: []hit{{id: 0, verdict: inactive}}}
	}
	return []frameCase{
		drop("leg unknown", 0), drop("record of a later generation", stale), drop("record free", free),
		{name: "broadcast", from: free, frame: whoHas(macOf(free), ip4Of(free), routerIP4),
			ret: actDrop, hits: []hit{{id: 0, verdict: inactive}}},
	}
}

func TestTx(t *testing.T) { sparseAndCrowded(t, testTx) }

func testTx(t *testing.T, w *world) {
	for name, cases := range map[string][]frameCase{
		"MAC": txMAC(), "question": txAsked(), "inactive": txInactive(),
		"IP": txIP(), "ARP": txARP(), "ARP malformed": txBadARP(), "ND": txND(), "ND options": txNDOptions(), "ND odd": txOddND(),
	} {
		t.Run(name, func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanTx, cases) })
	}
}

// The parent's MTU counts from behind the Ethernet header and any tags.
func TestTxMTU(t *testing.T) {
	w := usualWorld(t)
	const mtu = 1400
	if err := w.host.Handle().LinkSetMTU(w.host.Link(t, "p0"), mtu); err != nil {
		t.Fatal(err)
	}
	w.meta.Mtu = mtu
	frame := func(size int) []byte { return udp(routerMAC, routerMAC, routerIP4, ip4Of(99), size-28) }
	var cases []frameCase
	for _, from := range []uint32{macAway, ipAway} {
		pass := func(name string, frame []byte) {
			c := sent(fmt.Sprintf("%d/%s", from, name), from, frame)
			if from == ipAway {
				c.out = set(frame, 6, parentMAC[:]...)
			}
			cases = append(cases, c)
		}
		drop := func(name string, frame []byte) {
			cases = append(cases, refused(fmt.Sprintf("%d/%s", from, name), from, overMTU, frame))
		}
		pass("full", frame(mtu))
		drop("over", frame(mtu+1))
		drop("far over", frame(3000))
		pass("tagged", tagged(frame(mtu), 0x8100, 10))
		drop("tagged over", tagged(frame(mtu+1), 0x8100, 10))
		pass("QinQ", tagged(frame(mtu), 0x88a8, 10, 0x8100, 20))
		drop("QinQ over", tagged(frame(mtu+1), 0x88a8, 10, 0x8100, 20))
		drop("group-addressed", set(frame(mtu+1), 0, broadcastMAC[:]...))
	}
	checkAll(t, w, bpf.XvlanProgXvlanTx, cases)
	drop := refused("leg unknown", 0, overMTU, frame(mtu+1))
	drop.hits = []hit{{id: 0, verdict: inactive}}
	checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{drop})

	w.meta.Mtu = 1000 // not yet told of the parent's
	checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{
		sent("parent's MTU raised", macAway, frame(mtu)),
		refused("parent's MTU raised, over", macAway, overMTU, frame(mtu+1)),
	})

	w.meta.Mtu, w.meta.Ifindex = 0, 0
	checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{
		refused("parent gone", macAway, inactive, frame(60)),
		refused("parent gone, over", ipAway, inactive, frame(mtu+1)),
		refused("parent gone, group-addressed", macAway, inactive, set(frame(60), 0, broadcastMAC[:]...)),
	})
}

// A frame cut anywhere goes out with what is left of it rewritten, or is
// dropped where its header is not all there.
func TestTxTruncated(t *testing.T) {
	w := usualWorld(t)
	w.attach(t)
	question := func(m mac) []byte {
		return arp(layers.ARPReply, routerMAC, m, ip4Of(ipAway), routerMAC, routerIP4)
	}
	advert := func(m mac) []byte {
		return icmp6(routerMAC, m, routerIP6, ip6Of(ipAway), layers.ICMPv6TypeNeighborAdvertisement,
			advertBody(0x60, ip6Of(ipAway), targetLL(m)))
	}
	inner, outer := macOf(ipAway), parentMAC
	for _, c := range []struct {
		name     string
		in, out  []byte
		from, to int // lengths in which the header is cut
	}{
		{"IPv4", udp(routerMAC, inner, routerIP4, ip4Of(ipAway), 4), udp(routerMAC, outer, routerIP4, ip4Of(ipAway), 4), 0, 0},
		{"ARP", question(inner), question(outer), 14, 42},
		{"ND", advert(inner), advert(outer), 55, 78},
		{"ARP, tagged", tagged(question(inner), 0x8100, 10), tagged(question(outer), 0x8100, 10), 18, 46},
		{"ND, tagged", tagged(advert(inner), 0x8100, 10), tagged(advert(outer), 0x8100, 10), 59, 82},
	} {
		for n := 14; n <= len(c.in); n++ {
			want := sent(fmt.Sprintf("%s/%d", c.name, n), ipAway, c.in[:n])
			want.out = c.out[:n]
			if n >= c.from && n < c.to {
				want = refused(want.name, ipAway, malformed, c.in[:n])
			}
			if n >= c.from && n < len(c.in) { // no more than the source MAC is rewritten
				want.out = set(want.frame, 6, outer[:]...)
			}
			t.Run(want.name, func(t *testing.T) { want.checkCut(t, w, bpf.XvlanProgXvlanTx) })
		}
	}
}
