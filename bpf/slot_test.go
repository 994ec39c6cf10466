package bpf_test

import (
	"testing"

	"github.com/xvlan/xvlan/bpf"
)

// point lets the slots of a MAC and of a sub-interface's leg say an id.
func (w *world) point(t *testing.T, m mac, leg, id uint32) {
	t.Helper()
	size := w.slotCount()
	w.set(t, bpf.MapMACSlots, bpf.MACSlot(m[:], size), id)
	w.set(t, bpf.MapLegSlots, bpf.LegSlot(leg, size), id)
}

// A slot need not be exact: the record says whether it is meant.
func TestSlotsAreConfirmed(t *testing.T) {
	w := usualWorld(t)
	near := macOf(macAway)
	near[5] ^= 0x80
	for _, c := range []struct {
		name       string
		dst        mac
		from, says uint32 // the sender, and what both slots say
		rx, tx     bool   // found by its MAC, and by its leg
	}{
		{"right", macOf(macAway), macAway, macAway, true, true},
		{"another's", macOf(macAway), macAway, macHere, false, false},
		{"a MAC that differs in its last byte", near, macAway, macAway, false, true},
		{"shared", macOf(macAway), macAway, bpf.SlotShared, true, true},
		{"shared, no key", near, free, bpf.SlotShared, false, false},
		{"an IP-keyed one's own MAC", macOf(ipAway), ipAway, ipAway, false, true},
		{"pending", macOf(pending), pending, pending, false, true},
		{"free", macOf(free), free, free, false, false},
		{"MAC-keyed, pending", macOf(macGiven), macGiven, macGiven, false, true},
		{"MAC-keyed, free", macOf(macHere), macHere, macHere, false, false},
		{"beyond the capacity", macOf(macAway), macAway, capacity + 1, false, false},
		{"nobody", strangerMAC, free, 0, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.enter(t)
			w.point(t, c.dst, w.subs[c.from].Leg, c.says)
			for id, state := range map[uint32]bpf.XvlanSubState{
				macGiven: bpf.XvlanSubStateSUB_PENDING, macHere: bpf.XvlanSubStateSUB_FREE,
			} {
				sub := w.subs[id]
				sub.State = state
				w.set(t, bpf.MapSubs, id, sub)
			}
			frame := udp(c.dst, routerMAC, ip4Of(99), routerIP4, 18)
			want := hit{0, passed, 1, uint64(len(frame))}
			if c.rx {
				want.id, want.verdict = c.from, rx
			}
			w.run(t, bpf.XvlanProgXvlanRx, 0, frame, 0)
			wantHits(t, w, len(frame), want)

			w.clearStats(t)
			frame = udp(routerMAC, macOf(c.from), routerIP4, ip4Of(99), 18)
			want = hit{0, inactive, 1, uint64(len(frame))}
			if c.tx {
				want.id, want.verdict = c.from, tx
			}
			w.run(t, bpf.XvlanProgXvlanTx, c.from, frame, 0)
			wantHits(t, w, len(frame), want)
		})
	}
	t.Run("another VLAN", func(t *testing.T) {
		w.enter(t)
		w.point(t, macOf(macVLAN), w.subs[macVLAN].Leg, macVLAN)
		frame := tagged(fromWire(macOf(macVLAN), 99), 0x8100, 20)
		w.run(t, bpf.XvlanProgXvlanRx, 0, frame, 0)
		wantHits(t, w, len(frame), hit{id: 0, verdict: passed})
	})
}
