package bpf_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/xvlan/xvlan/bpf"
)

// setDown sets inner legs down.
func (w *world) setDown(tb testing.TB, ids ...uint32) {
	tb.Helper()
	for _, id := range ids {
		ns := w.innerNetns(id)
		if err := ns.Handle().LinkSetDown(ns.Link(tb, innerName(id))); err != nil {
			tb.Fatalf("set %d down: %v", id, err)
		}
	}
}

// Each is met by a device of its own; what is no leg is not met.
func TestMeet(t *testing.T) {
	w := usualWorld(t)
	seen := map[uint64]uint32{}
	for _, id := range receivers {
		if id == stale {
			continue
		}
		device := w.subs[id].Device
		if device == 0 || seen[device] != 0 && seen[device] != id {
			t.Errorf("device of %d is %#x, as that of %d", id, device, seen[device])
		}
		seen[device] = id
	}
	prog := w.coll.Programs[bpf.XvlanProgXvlanMeet]
	for name, index := range map[string]uint32{"the parent": w.meta.Ifindex, "the loopback": 1} {
		var err error
		w.host.Do(t, func() { err = bpf.Meet(prog, int(index)) })
		if !errors.Is(err, bpf.ErrStrange) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A sub-interface that is down is nobody: what is for it goes on to the host, or
// from a sibling to the wire.
func TestDown(t *testing.T) {
	sparseAndCrowded(t, func(t *testing.T, w *world) {
		up := slices.Concat(rxByMAC(), rxByIP())
		t.Run("all up", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanRx, up) })
		down := []uint32{macAway, macHere, ipAway, ipHere}
		w.setDown(t, down...)
		defer func() {
			for _, id := range down {
				w.innerNetns(id).Up(t, innerName(id))
			}
		}()
		some := func(name string, frame []byte) frameCase {
			c := flooded(name, frame)
			c.hits = slices.DeleteFunc(c.hits, func(h hit) bool { return slices.Contains(down, h.id) })
			return c
		}
		broadcast := func(from mac) []byte { return udp(broadcastMAC, from, ip4Of(255), routerIP4, 18) }
		checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{
			left("MAC away", fromWire(macOf(macAway), 99)),
			left("MAC here", fromWire(macOf(macHere), 99)),
			left("IPv4 away", fromWire(parentMAC, ipAway)),
			left("IPv6 here", fromWire6(parentMAC, ipHere)),
			left("ARP", arp(2, parentMAC, routerMAC, routerIP4, parentMAC, ip4Of(ipAway))),
			delivered("MAC up", macGiven, fromWire(macOf(macGiven), 99)),
			untagged(delivered("IP up in its VLAN", ipVLAN, tagged(fromWire(parentMAC, ipVLAN), 0x8100, 10))),
			some("broadcast", broadcast(routerMAC)),
			some("question for its given address", whoHas(routerMAC, routerIP4, ip4Of(ipAway))),
			some("its MAC as source", broadcast(macOf(macAway))),
		})
		fromUp := func(dst mac, id uint32) []byte { return udp(dst, macOf(macGiven), ip4Of(id), ip4Of(macGiven), 18) }
		checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{
			sent("sibling's MAC", macGiven, fromUp(macOf(macAway), 99)),
			sent("sibling's IP", macGiven, fromUp(parentMAC, ipAway)),
		})
		// Nobody wants it: `unknown drop` is for that, too.
		w.meta.Policy = bpf.XvlanPolicyPOLICY_UNKNOWN_DROP
		frame := fromWire(macOf(macAway), 99)
		checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{
			{name: "unknown drop", frame: frame, ret: actDrop, hits: []hit{{id: 0, verdict: unknown}}}})
		w.meta.Policy = 0
	})
}

// A list of source mode serves nobody who is down.
func TestDownSource(t *testing.T) {
	w := modesWorld(t)
	w.setDown(t, mSource, mNodst)
	frame := func(from mac) []byte { return udp(macOf(mBridge), from, ip4Of(mBridge), ip4Of(99), 18) }
	checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{
		delivered("on a list", mBridge, frame(routerMAC)),
		delivered("on a list, nodst", mBridge, frame(strangerMAC)),
	})
}
