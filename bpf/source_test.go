package bpf_test

import (
	"testing"

	"github.com/xvlan/xvlan/bpf"
)

// A sub-interface in source mode takes the copy of a frame to the parent's MAC
// for its own, whose bytes it has unless its device is in the parent's netns.
func TestSourceOfHost(t *testing.T) { onPairs(t, testSourceOfHost) }

func testSourceOfHost(t *testing.T, netkit bool) {
	const me = 1
	for name, place := range map[string]bpf.XvlanSubPlace{
		"away": bpf.XvlanSubPlacePLACE_AWAY, "here": bpf.XvlanSubPlacePLACE_LOCAL,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			w.netkit = netkit
			sub := macvlan(place)
			sub.Class = classSource
			w.add(t, me, sub)
			w.sources = map[uint32][]mac{me: {routerMAC}}
			w.meta.Sources = 1
			w.meet(t)
			w.attach(t)
			captures := w.capture(t)
			frame := fromWire(parentMAC, 99)
			for _, c := range []frameCase{
				{name: "to the parent", frame: frame},
				{name: "tagged", frame: tagged(frame, 0x8100, 20)},
				{name: "to itself", frame: fromWire(macOf(me), 99)},
				{name: "broadcast", frame: udp(broadcastMAC, routerMAC, ip4Of(255), routerIP4, 18)},
			} {
				c.hits = []hit{{id: 0, verdict: passed}, {id: me, verdict: rx}}
				if m := macOf(me); name == "here" && c.frame[0]&1 == 0 {
					c.out = set(c.frame, 0, m[:]...)
				}
				t.Run(c.name, func(t *testing.T) {
					c.travel(t, w, bpf.XvlanProgXvlanRx, captures, received(&c, me))
				})
			}
			// What it sends to that MAC itself goes to the wire.
			c := sent("its own", me, udp(parentMAC, macOf(me), ip4Of(99), ip4Of(98), 18))
			t.Run(c.name, func(t *testing.T) {
				c.travel(t, w, bpf.XvlanProgXvlanTx, captures, received(&c, wire))
			})
		})
	}
}
