package bpf_test

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/bpf"
)

// Sub-interfaces in VLANs: macX and ipX by what they are keyed by. IDs up to capacity are
// the usual ones.
const (
	mac10       = capacity + 1 + iota // in VLAN 10
	mac10Here                         // inner leg in the parent's namespace
	mac10VEPA                         // class vepa
	mac10Alone                        // class private
	ip10                              // in VLAN 10
	mac20                             // in VLAN 20, with the MAC of mac10
	ip20                              // in VLAN 20, with the addresses of ip10
	macQ                              // in VLAN 10 of service VLAN 5
	ipQ                               // the same
	trunkTags                         // a trunk of 10 and 20, without untagged frames
	trunkZero                         // a trunk of 20, and untagged frames
	trunkNative                       // a trunk of 30, and untagged frames are of VLAN 10
	noneOne                           // without a VLAN
	noneTwo                           // the same
	own10                             // in VLAN 10, with a MAC that nobody else has, as the others below
	other10                           // the same
	own20                             // the same in VLAN 20
	members     = own20
)

const qinq = 5<<12 | 10

// memberWorld makes a world of VLANs' members. VLAN 40 is nobody's.
func memberWorld(tb testing.TB, netkit bool) *world {
	tb.Helper()
	const away = bpf.XvlanSubPlacePLACE_AWAY
	w := newWorld(tb, members)
	w.netkit = netkit
	in := func(sub bpf.XvlanSub, vlan uint32) bpf.XvlanSub {
		sub.Vlan = vlan
		return sub
	}
	class := func(sub bpf.XvlanSub, class bpf.XvlanSubClass) bpf.XvlanSub {
		sub.Class = class
		return sub
	}
	w.add(tb, mac10, in(macvlan(away), 10))
	w.add(tb, mac10Here, in(macvlan(bpf.XvlanSubPlacePLACE_LOCAL), 10))
	w.add(tb, mac10VEPA, class(in(macvlan(away), 10), bpf.XvlanSubClassCLASS_VEPA))
	w.add(tb, mac10Alone, class(in(macvlan(away), 10), bpf.XvlanSubClassCLASS_PRIVATE))
	w.add(tb, ip10, in(ipvlan(away), 10))
	w.add(tb, mac20, in(macvlan(away), 20))
	w.add(tb, ip20, in(ipvlan(away), 20))
	w.add(tb, macQ, in(macvlan(away), qinq))
	w.add(tb, ipQ, in(ipvlan(away), qinq))
	w.trunks = map[uint32][]uint32{trunkTags: {10, 20}, trunkZero: {20}, trunkNative: {30}}
	for id, vlan := range map[uint32]uint32{trunkTags: noVLAN, trunkZero: 0, trunkNative: 10} {
		sub := in(macvlan(away), vlan)
		sub.Flags |= trunk
		w.add(tb, id, sub)
	}
	w.add(tb, noneOne, macvlan(away))
	w.add(tb, noneTwo, macvlan(away))
	w.add(tb, own10, in(macvlan(away), 10))
	w.add(tb, other10, in(macvlan(away), 10))
	w.add(tb, own20, in(macvlan(away), 20))
	same := w.subs[mac20]
	same.Mac = macOf(mac10)
	w.subs[mac20] = same
	for _, id := range []uint32{ip10, ip20, ipQ} {
		for _, addr := range []entry{{addr: ip4Of(ip10)}, {addr: ip6Of(ip10)}} {
			w.dests = append(w.dests, entry{w.subs[id].Vlan, addr.addr, id, generation, bpf.XvlanDestFlagDEST_GIVEN})
		}
	}
	w.meet(tb)
	return w
}

// A passage is a frame from the wire or a sub-interface, and where it arrives.
type passage struct {
	frameCase
	at []arrival
}

// crosses is a passage to these, besides its verdict at its sender or the parent.
func crosses(name string, from uint32, frame []byte, own bpf.XvlanVerdict, at ...arrival) passage {
	p := passage{frameCase{name: name, from: from, frame: frame}, at}
	if own != rx { // else the receiver has the only one
		p.hits = append(p.hits, hit{id: from, verdict: own})
	}
	for _, a := range at {
		if a.at != wire {
			p.hits = append(p.hits, hit{id: a.at, verdict: rx})
		}
		if a.at == wire || from != wire {
			p.tags = max(p.tags, len(a.frame)-len(frame))
		}
	}
	return p
}

// copiesTo is the same frame at several.
func copiesTo(frame []byte, ids ...uint32) (all []arrival) {
	for _, id := range ids {
		all = append(all, arrival{id, frame})
	}
	return all
}

func memberRx() []passage {
	to := func(id uint32) []byte { return fromWire(macOf(id), 99) }
	byIP := func(id uint32) []byte { return fromWire(parentMAC, id) }
	broadcast := udp(broadcastMAC, routerMAC, ip4Of(255), routerIP4, 18)
	question, question6 := whoHas(routerMAC, routerIP4, ip4Of(ip10)), solicit(routerMAC, routerIP6, ip6Of(ip10))
	from := func(id uint32, frame []byte) []byte { return set(frame, 6, macBytes(id)...) }
	got := func(name string, frame []byte, at uint32, as []byte) passage {
		return crosses(name, wire, frame, rx, arrival{at, as})
	}
	passes := func(name string, frame []byte, at ...arrival) passage {
		return crosses(name, wire, frame, passed, at...)
	}
	return []passage{
		got("MAC", tagged(to(mac10), 0x8100, 10), mac10, to(mac10)),
		got("MAC, with priority", tagged(to(mac10), 0x8100, 0xf00a), mac10, to(mac10)),
		got("MAC, a tag in it", tagged(to(mac10), 0x8100, 10, 0x8100, 99), mac10, tagged(to(mac10), 0x8100, 99)),
		got("MAC, here", tagged(to(mac10Here), 0x8100, 10), mac10Here, to(mac10Here)),
		got("the same MAC in another VLAN", tagged(to(mac10), 0x8100, 20), mac20, to(mac10)),
		passes("that MAC untagged", to(mac10)),
		got("its own MAC", tagged(to(own10), 0x8100, 10), own10, to(own10)),
		got("its own MAC, with priority", tagged(to(own10), 0x8100, 0xf00a), own10, to(own10)),
		got("its own MAC, a tag in it", tagged(to(own10), 0x8100, 10, 0x8100, 99), own10, tagged(to(own10), 0x8100, 99)),
		passes("its own MAC untagged", to(own10)),
		passes("its own MAC, service tag", tagged(to(own10), 0x88a8, 10)),
		passes("its own MAC in another VLAN", tagged(to(own10), 0x8100, 20)),
		passes("its own MAC in nobody's VLAN", tagged(to(own10), 0x8100, 40)),
		passes("that MAC in a third VLAN", tagged(to(mac10), 0x8100, 30)),
		passes("that MAC in nobody's VLAN", tagged(to(mac10), 0x8100, 40)),
		got("address", tagged(byIP(ip10), 0x8100, 10), ip10, byIP(ip10)),
		got("the same address in another VLAN", tagged(byIP(ip10), 0x8100, 20), ip20, byIP(ip10)),
		got("the same address behind a service tag", tagged(byIP(ip10), 0x88a8, 5, 0x8100, 10), ipQ, byIP(ip10)),
		passes("that address untagged", byIP(ip10)),
		passes("that address in a third VLAN", tagged(byIP(ip10), 0x8100, 30)),
		got("QinQ", tagged(to(macQ), 0x88a8, 0xa005, 0x8100, 0x600a), macQ, to(macQ)),
		got("QinQ, a tag in it", tagged(to(macQ), 0x88a8, 5, 0x8100, 10, 0x8100, 99), macQ, tagged(to(macQ), 0x8100, 99)),
		passes("QinQ, service tag alone", tagged(to(macQ), 0x88a8, 5)),
		passes("QinQ, another inner", tagged(to(macQ), 0x88a8, 5, 0x8100, 11)),
		passes("QinQ, inner tag alone", tagged(to(macQ), 0x8100, 10)),
		passes("QinQ, of two 802.1Q tags", tagged(to(macQ), 0x8100, 5, 0x8100, 10)),
		got("trunk, one", tagged(to(trunkTags), 0x8100, 10), trunkTags, tagged(to(trunkTags), 0x8100, 10)),
		got("trunk, another, with priority", tagged(to(trunkTags), 0x8100, 0xe014), trunkTags, tagged(to(trunkTags), 0x8100, 0xe014)),
		passes("trunk, not on its list", tagged(to(trunkTags), 0x8100, 30)),
		passes("trunk, nobody's", tagged(to(trunkTags), 0x8100, 40)),
		passes("trunk, untagged", to(trunkTags)),
		passes("trunk, QinQ", tagged(to(trunkTags), 0x88a8, 5, 0x8100, 10)),
		got("trunk with untagged, untagged", to(trunkZero), trunkZero, to(trunkZero)),
		got("trunk with untagged, priority tag", tagged(to(trunkZero), 0x8100, 0xe000), trunkZero, tagged(to(trunkZero), 0x8100, 0xe000)),
		got("trunk with untagged, tagged", tagged(to(trunkZero), 0x8100, 20), trunkZero, tagged(to(trunkZero), 0x8100, 20)),
		passes("trunk with untagged, nobody's", tagged(to(trunkZero), 0x8100, 40)),
		got("native VLAN", tagged(to(trunkNative), 0x8100, 10), trunkNative, to(trunkNative)),
		got("trunk with native VLAN, tagged", tagged(to(trunkNative), 0x8100, 30), trunkNative, tagged(to(trunkNative), 0x8100, 30)),
		passes("trunk with native VLAN, untagged", to(trunkNative)),
		got("without a VLAN, nobody's", tagged(to(noneOne), 0x8100, 40), noneOne, tagged(to(noneOne), 0x8100, 40)),
		passes("without a VLAN, somebody's", tagged(to(noneOne), 0x8100, 10)),

		passes("broadcast in 10", tagged(broadcast, 0x8100, 10), append(
			copiesTo(broadcast, mac10, mac10Here, mac10VEPA, mac10Alone, ip10, trunkNative, own10, other10),
			arrival{trunkTags, tagged(broadcast, 0x8100, 10)})...),
		passes("broadcast in 20, with priority", tagged(broadcast, 0x8100, 0x6014), append(
			copiesTo(broadcast, mac20, ip20, own20), copiesTo(tagged(broadcast, 0x8100, 0x6014), trunkTags, trunkZero)...)...),
		passes("broadcast in 30", tagged(broadcast, 0x8100, 30), arrival{trunkNative, tagged(broadcast, 0x8100, 30)}),
		passes("broadcast, QinQ", tagged(broadcast, 0x88a8, 5, 0x8100, 10), copiesTo(broadcast, macQ, ipQ)...),
		passes("broadcast, nobody's", tagged(broadcast, 0x8100, 40), copiesTo(tagged(broadcast, 0x8100, 40), noneOne, noneTwo)...),
		passes("broadcast", broadcast, copiesTo(broadcast, noneOne, noneTwo, trunkZero)...),

		got("question in 10", tagged(question, 0x8100, 10), ip10, question),
		got("question in 20", tagged(question, 0x8100, 20), ip20, question),
		got("question, QinQ", tagged(question6, 0x88a8, 5, 0x8100, 10), ipQ, question6),
		passes("question, untagged", question, copiesTo(question, noneOne, noneTwo, trunkZero)...),
		passes("question in 30", tagged(question, 0x8100, 30), arrival{trunkNative, tagged(question, 0x8100, 30)}),

		// What a switch has returned.
		got("returned to a sibling", tagged(from(mac10VEPA, to(mac10)), 0x8100, 10), mac10, from(mac10VEPA, to(mac10))),
		passes("broadcast returned, of class vepa", tagged(from(mac10VEPA, broadcast), 0x8100, 10), append(
			copiesTo(from(mac10VEPA, broadcast), mac10, mac10Here, ip10, trunkNative, own10, other10),
			arrival{trunkTags, tagged(from(mac10VEPA, broadcast), 0x8100, 10)})...),
		passes("broadcast returned, of class bridge", tagged(from(mac10, broadcast), 0x8100, 10), arrival{mac10VEPA, from(mac10, broadcast)}),
		got("broadcast returned, of class private", tagged(from(mac10Alone, broadcast), 0x8100, 10), mac10Alone, from(mac10Alone, broadcast)),
		passes("that MAC from another VLAN", tagged(from(mac10Alone, broadcast), 0x8100, 20), append(
			copiesTo(from(mac10Alone, broadcast), mac20, ip20, own20), copiesTo(tagged(from(mac10Alone, broadcast), 0x8100, 20), trunkTags, trunkZero)...)...),
	}
}

func memberTx() []passage {
	send := func(from uint32, dst mac) []byte { return udp(dst, macOf(from), ip4Of(ip10), ip4Of(from), 18) }
	out := func(name string, from uint32, frame []byte, at ...arrival) passage {
		return crosses(name, from, frame, tx, at...)
	}
	drop := func(name string, from uint32, frame []byte) passage {
		return crosses(name, from, frame, tagDrop)
	}
	arp10 := func(m mac) []byte { return whoHas(m, ip4Of(mac10), ip4Of(ip10)) }
	fromIP := func(m mac) []byte { return udp(macOf(mac10), m, ip4Of(99), ip4Of(ip10), 18) }
	full := padded(send(mac10, routerMAC), 1514)
	toRouter, toAll := func(from uint32) []byte { return send(from, routerMAC) }, func(from uint32) []byte { return send(from, broadcastMAC) }
	tag := func(vlan uint16, frame []byte) []byte { return tagged(frame, 0x8100, vlan) }
	return []passage{
		out("wire", mac10, toRouter(mac10), arrival{wire, tag(10, toRouter(mac10))}),
		out("wire, for one in another VLAN", own10, send(own10, macOf(own20)), arrival{wire, tag(10, send(own10, macOf(own20)))}),
		out("wire, for one without a VLAN", own10, send(own10, macOf(noneOne)), arrival{wire, tag(10, send(own10, macOf(noneOne)))}),
		drop("tagged, for a sibling", own10, tag(10, send(own10, macOf(other10)))),
		drop("tagged for one in another VLAN", own10, tag(20, send(own10, macOf(own20)))),
		sibling("sibling, each with its own MAC", own10, send(own10, macOf(other10)), other10, send(own10, macOf(other10)), 4),
		out("wire, class vepa, nobody's MAC", mac10VEPA, toRouter(mac10VEPA), arrival{wire, tag(10, toRouter(mac10VEPA))}),
		out("wire, priority tag", mac10, tag(0xf000, toRouter(mac10)), arrival{wire, tag(0xf00a, toRouter(mac10))}),
		out("wire, full", mac10, full, arrival{wire, tag(10, full)}),
		out("wire, QinQ", macQ, toRouter(macQ), arrival{wire, tagged(toRouter(macQ), 0x88a8, 5, 0x8100, 10)}),
		out("wire, QinQ, priority tag", macQ, tag(0xa000, toRouter(macQ)), arrival{wire, tagged(toRouter(macQ), 0x88a8, 0xa005, 0x8100, 0xa00a)}),
		out("wire, QinQ, full", macQ, set(full, 6, macBytes(macQ)...), arrival{wire, tagged(set(full, 6, macBytes(macQ)...), 0x88a8, 5, 0x8100, 10)}),
		out("wire, class vepa to a sibling", mac10VEPA, send(mac10VEPA, macOf(mac10)), arrival{wire, tag(10, send(mac10VEPA, macOf(mac10)))}),
		out("wire, to one without a VLAN", mac10, send(mac10, macOf(noneOne)), arrival{wire, tag(10, send(mac10, macOf(noneOne)))}),
		out("wire, to one in another VLAN", macQ, send(macQ, macOf(mac10)), arrival{wire, tagged(send(macQ, macOf(mac10)), 0x88a8, 5, 0x8100, 10)}),
		drop("tagged", mac10, tag(10, toRouter(mac10))),
		drop("tagged with another", mac10, tag(40, toRouter(mac10))),
		drop("QinQ by one in a VLAN", mac10, tagged(toRouter(mac10), 0x88a8, 5, 0x8100, 10)),
		drop("tag behind a priority tag", mac10, tagged(toRouter(mac10), 0x8100, 0, 0x8100, 20)),

		sibling("sibling", mac10, send(mac10, parentMAC), ip10, send(mac10, parentMAC), 4),
		sibling("sibling, here", mac10, send(mac10, macOf(mac10Here)), mac10Here, send(mac10, macOf(mac10Here)), 4),
		sibling("sibling, IP-keyed", ip10, fromIP(macOf(ip10)), mac10, fromIP(parentMAC), 4),
		sibling("sibling, QinQ", macQ, send(macQ, parentMAC), ipQ, send(macQ, parentMAC), 8),
		sibling("sibling that is a trunk", mac10, send(mac10, macOf(trunkTags)), trunkTags, tag(10, send(mac10, macOf(trunkTags))), 4),
		sibling("sibling that is a trunk, priority tag", mac10, tag(0xe000, send(mac10, macOf(trunkTags))), trunkTags, tag(0xe00a, send(mac10, macOf(trunkTags))), 0),
		sibling("sibling whose native VLAN it is", mac10, send(mac10, macOf(trunkNative)), trunkNative, send(mac10, macOf(trunkNative)), 4),
		sibling("sibling of a trunk", trunkTags, tag(10, send(trunkTags, macOf(mac10))), mac10, send(trunkTags, macOf(mac10)), 0),
		sibling("sibling of a trunk in another VLAN", trunkTags, tag(20, send(trunkTags, macOf(mac10))), mac20, send(trunkTags, macOf(mac10)), 0),
		sibling("trunk to trunk", trunkTags, tag(0x8014, send(trunkTags, macOf(trunkZero))), trunkZero, tag(0x8014, send(trunkTags, macOf(trunkZero))), 0),
		sibling("trunk to native VLAN", trunkTags, tag(10, send(trunkTags, macOf(trunkNative))), trunkNative, send(trunkTags, macOf(trunkNative)), 0),
		sibling("from a native VLAN", trunkNative, send(trunkNative, macOf(mac10)), mac10, send(trunkNative, macOf(mac10)), 4),
		sibling("trunk's untagged to one without a VLAN", trunkZero, send(trunkZero, macOf(noneOne)), noneOne, send(trunkZero, macOf(noneOne)), 0),
		sibling("one without a VLAN to trunk's untagged", noneOne, send(noneOne, macOf(trunkZero)), trunkZero, send(noneOne, macOf(trunkZero)), 0),
		sibling("question", mac10, arp10(macOf(mac10)), ip10, arp10(macOf(mac10)), 4),
		sibling("question by a trunk", trunkTags, tag(20, arp10(macOf(trunkTags))), ip20, arp10(macOf(trunkTags)), 0),

		out("trunk to the wire", trunkTags, tag(0xb014, toRouter(trunkTags)), arrival{wire, tag(0xb014, toRouter(trunkTags))}),
		out("trunk, a tag in it", trunkTags, tagged(toRouter(trunkTags), 0x8100, 10, 0x8100, 40), arrival{wire, tagged(toRouter(trunkTags), 0x8100, 10, 0x8100, 40)}),
		out("native VLAN to the wire", trunkNative, toRouter(trunkNative), arrival{wire, tag(10, toRouter(trunkNative))}),
		out("trunk's untagged to the wire", trunkZero, toRouter(trunkZero), arrival{wire, toRouter(trunkZero)}),
		drop("trunk, not on its list", trunkTags, tag(30, toRouter(trunkTags))),
		drop("trunk, nobody's", trunkTags, tag(40, toRouter(trunkTags))),
		drop("trunk, untagged", trunkTags, toRouter(trunkTags)),
		drop("trunk, priority tag", trunkTags, tag(0xe000, toRouter(trunkTags))),
		drop("trunk, QinQ", trunkTags, tagged(toRouter(trunkTags), 0x88a8, 5, 0x8100, 10)),
		drop("native VLAN, tagged", trunkNative, tag(10, toRouter(trunkNative))),
		drop("trunk's untagged, tag behind a priority tag", trunkZero, tagged(toRouter(trunkZero), 0x8100, 0, 0x8100, 10)),

		out("without a VLAN, somebody's tag", noneOne, tag(10, send(noneOne, macOf(mac10))), arrival{wire, tag(10, send(noneOne, macOf(mac10)))}),
		out("without a VLAN, broadcast in somebody's", noneOne, tag(10, toAll(noneOne)), arrival{wire, tag(10, toAll(noneOne))}),
		out("without a VLAN, QinQ of somebody's", noneOne, tagged(toAll(noneOne), 0x88a8, 5, 0x8100, 10), arrival{wire, tagged(toAll(noneOne), 0x88a8, 5, 0x8100, 10)}),
		out("without a VLAN, broadcast in nobody's", noneOne, tag(40, toAll(noneOne)), copiesTo(tag(40, toAll(noneOne)), noneTwo, wire)...),
		sibling("without a VLAN to a sibling, nobody's", noneOne, tag(40, send(noneOne, macOf(noneTwo))), noneTwo, tag(40, send(noneOne, macOf(noneTwo))), 0),
		out("without a VLAN to a trunk, nobody's", noneOne, tag(40, send(noneOne, macOf(trunkZero))), arrival{wire, tag(40, send(noneOne, macOf(trunkZero)))}),

		out("broadcast in 10", mac10, toAll(mac10), append(copiesTo(toAll(mac10), mac10Here, ip10, trunkNative, own10, other10),
			copiesTo(tag(10, toAll(mac10)), trunkTags, wire)...)...),
		out("broadcast by a native VLAN", trunkNative, toAll(trunkNative), append(copiesTo(toAll(trunkNative), mac10, mac10Here, ip10, own10, other10),
			copiesTo(tag(10, toAll(trunkNative)), trunkTags, wire)...)...),
		out("broadcast by a trunk", trunkTags, tag(0x6014, toAll(trunkTags)), append(copiesTo(toAll(trunkTags), mac20, ip20, own20),
			copiesTo(tag(0x6014, toAll(trunkTags)), trunkZero, wire)...)...),
		out("broadcast, QinQ", macQ, toAll(macQ), arrival{ipQ, toAll(macQ)},
			arrival{wire, tagged(toAll(macQ), 0x88a8, 5, 0x8100, 10)}),
		out("broadcast", noneOne, toAll(noneOne), copiesTo(toAll(noneOne), noneTwo, trunkZero, wire)...),
	}
}

// sibling is a passage to one alone. Its size is what the wire would carry.
func sibling(name string, from uint32, frame []byte, at uint32, as []byte, tags int) passage {
	p := crosses(name, from, frame, tx, arrival{at, as})
	p.tags = tags
	return p
}

// Frames of VLANs come and go in the form that is each one's, with their tags beside
// the skb, where the kernel has put them.
func TestMembers(t *testing.T) {
	onPairs(t, func(t *testing.T, netkit bool) {
		w := memberWorld(t, netkit)
		w.attach(t)
		captures := w.capture(t)
		for name, crowded := range map[string]bool{"sparse": false, "crowded": true} {
			w.crowded = crowded
			for prog, all := range map[string][]passage{bpf.XvlanProgXvlanRx: memberRx(), bpf.XvlanProgXvlanTx: memberTx()} {
				for _, p := range all {
					t.Run(name+"/"+prog+"/"+p.name, func(t *testing.T) { p.travel(t, w, prog, captures, p.at) })
				}
			}
		}
	})
}

// What one of class private is sent by a sibling comes back from the wire in vain.
func TestMemberReturned(t *testing.T) {
	w := memberWorld(t, false)
	w.attach(t)
	frame := tagged(udp(macOf(mac10Alone), macOf(mac10), ip4Of(99), ip4Of(98), 18), 0x8100, 10)
	captures := w.capture(t)
	c := frameCase{frame: frame, hits: []hit{{id: mac10Alone, verdict: returned}}}
	c.travel(t, w, bpf.XvlanProgXvlanRx, captures, nil)
}

// The priority of a tag that is taken off is the skb's; one that stays says it itself.
func TestMemberPriority(t *testing.T) {
	w := memberWorld(t, false)
	w.enter(t)
	for _, c := range []struct {
		to       uint32
		tag      uint16
		priority uint32
	}{{mac10, 0xb00a, 5}, {mac10, 10, 0}, {trunkTags, 0xb00a, 9}} {
		in, out := &skBuff{Ifindex: w.meta.Ifindex, Priority: 9}, &skBuff{}
		frame := tagged(fromWire(macOf(c.to), 99), 0x8100, c.tag)
		var ret uint32
		var err error
		w.host.Do(t, func() {
			ret, err = w.coll.Programs[bpf.XvlanProgXvlanRx].Run(&ebpf.RunOptions{Data: frame, Context: in, ContextOut: out})
		})
		if err != nil || ret != actRedir || out.Priority != c.priority {
			t.Errorf("%d with tag %#x: returned %d, %v, priority %d, want %d", c.to, c.tag, int32(ret), err, out.Priority, c.priority)
		}
	}
}

// Super-packets stay whole, and count for what the wire carries, with tags.
func TestMemberGSO(t *testing.T) {
	onPairs(t, func(t *testing.T, netkit bool) {
		w := memberWorld(t, netkit)
		w.attach(t)
		captures := w.capture(t)
		const tcp4 = 1
		send := func(from uint32, dst mac) []byte { return tcp(dst, macOf(from), routerIP4, ip4Of(99), 4000) }
		plain, tags, q := send(mac10, routerMAC), tagged(send(trunkTags, macOf(mac10)), 0x8100, 10), send(macQ, routerMAC)
		for _, c := range []struct {
			passage
			headers int
		}{
			{crosses("wire", mac10, plain, tx, arrival{wire, tagged(plain, 0x8100, 10)}), 70},
			{sibling("to a trunk", mac10, send(mac10, macOf(trunkTags)), trunkTags, tagged(send(mac10, macOf(trunkTags)), 0x8100, 10), 4), 70},
			{sibling("of a trunk", trunkTags, tags, mac10, bare(tags), 0), 70},
			{crosses("QinQ", macQ, q, tx, arrival{wire, tagged(q, 0x88a8, 5, 0x8100, 10)}), 74},
		} {
			t.Run(c.name, func(t *testing.T) {
				super := super(c.frameCase, 1448, 3, c.headers)
				for i := range super.hits {
					super.hits[i].bytes += uint64(c.tags)
				}
				undisturbed(t, func(tb testing.TB) {
					w.enter(tb)
					drain(captures)
					sendGSO(tb, w.inside, innerName(c.from), c.frame, 1448, tcp4)
					awaitHits(tb, w, len(c.frame), super.hits...)
					wantArrivals(tb, captures, c.at)
				})
			})
		}
	})
}
