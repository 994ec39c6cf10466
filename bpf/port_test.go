package bpf_test

import (
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/xvlan/xvlan/bpf"
)

const xdpRedirect = 4

// portWorld is the usual world, with two of the sub-interfaces that are away
// for ports, and two of which no host leg stands in the map.
func portWorld(tb testing.TB) *world {
	tb.Helper()
	w := usualWorld(tb)
	for _, id := range []uint32{macAway, ipAway, macGiven, ipHere} {
		sub := w.subs[id]
		sub.Place = bpf.XvlanSubPlacePLACE_XDP
		w.subs[id] = sub
		w.meta.Ports++
	}
	for _, id := range []uint32{macAway, ipAway} {
		w.host.Do(tb, func() { w.put(tb, bpf.XvlanMapPorts, id, w.subs[id].Leg) })
	}
	return w
}

func TestPortXDP(t *testing.T) {
	w := portWorld(t)
	ported := func(name string, to uint32, frame []byte) frameCase {
		return frameCase{name: name, frame: frame, ret: xdpRedirect, hits: []hit{{id: to, verdict: rx}}}
	}
	passed := func(name string, frame []byte) frameCase { return frameCase{name: name, frame: frame, ret: xdpPass} }
	to, to4, to6 := fromWire(macOf(macAway), 99), fromWire(parentMAC, ipAway), fromWire6(parentMAC, ipAway)
	cases := []frameCase{
		ported("by MAC", macAway, to),
		ported("by MAC, header alone", macAway, set(to, 12, 0x88, 0xb5)[:14]),
		passed("by MAC, tagged", tagged(to, 0x8100, 20)), // a VLAN is claimed
		readdressed(ported("by IPv4", ipAway, to4), macOf(ipAway)),
		readdressed(ported("by IPv6", ipAway, to6), macOf(ipAway)),
		passed("by IPv4, tagged", tagged(to4, 0x8100, 20)),
		passed("by IPv4, cut", to4[:33]),
		passed("MAC without a leg", fromWire(macOf(macGiven), 99)),
		passed("IP without a leg", fromWire(parentMAC, ipHere)),
		passed("no port", fromWire(macOf(macHere), 99)),
		passed("no port in a VLAN", tagged(fromWire(parentMAC, ipVLAN), 0x8100, 10)),
		passed("the host's", fromWire(parentMAC, reserved)),
		passed("group", udp(broadcastMAC, routerMAC, ip4Of(255), routerIP4, 18)),
		passed("a DHCP server's reply", reply(layers.DHCPMsgTypeAck, ipAway, ip4Of(ipAway), unicast)),
		passed("stranger", fromWire(strangerMAC, macAway)),
	}
	t.Run("unknown pass", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanXdp, cases) })

	stranger := &cases[len(cases)-1]
	stranger.ret, stranger.hits = xdpDrop, []hit{{id: 0, verdict: unknown}}
	w.meta.Policy = bpf.XvlanPolicyPOLICY_UNKNOWN_DROP
	t.Run("unknown drop", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanXdp, cases) })

	// What a sibling may not send it, only the whole way tells.
	for _, id := range []uint32{macAway, ipAway} {
		sub := w.subs[id]
		sub.Class = classPrivate
		w.subs[id] = sub
	}
	t.Run("private", func(t *testing.T) {
		checkAll(t, w, bpf.XvlanProgXvlanXdp, []frameCase{passed("by MAC", to), passed("by IPv4", to4)})
	})
}

// By tc frames go to the leg, whose driver the program stands in.
func TestPortTC(t *testing.T) {
	w := portWorld(t)
	checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{
		delivered("by MAC", macAway, fromWire(macOf(macAway), 99)),
		readdressed(delivered("by IPv4", ipAway, fromWire(parentMAC, ipAway)), macOf(ipAway)),
	})
	for _, id := range []uint32{macAway, ipAway} {
		if got := w.record(t, id).Place; got != bpf.XvlanSubPlacePLACE_XDP {
			t.Errorf("%d is at place %d now", id, got)
		}
	}
	out := udp(macOf(macAway), macOf(macHere), ip4Of(macAway), ip4Of(macHere), 18)
	checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{{
		name: "from a sibling", from: macHere, frame: out, ret: actRedir,
		hits: []hit{{id: macAway, verdict: rx}, {id: macHere, verdict: tx}},
	}, {
		name: "broadcast by a port", from: macAway, frame: udp(broadcastMAC, macOf(macAway), ip4Of(255), ip4Of(macAway), 18), ret: actRedir,
		hits: append(copied(macAway, []uint32{macHere, macGiven, ipAway, ipHere, stale}), hit{id: macAway, verdict: tx}),
	}})
	if got := w.record(t, macAway).Place; got != bpf.XvlanSubPlacePLACE_XDP {
		t.Errorf("a port that has sent is at place %d now", got)
	}
}
