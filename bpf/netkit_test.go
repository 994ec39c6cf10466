package bpf_test

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
)

const (
	actPass    = 0          // TC_ACT_OK, NETKIT_PASS
	markInward = 0x78766c6e // MARK_INWARD
)

// marked runs a program as run does, with and for a mark.
func (w *world) marked(tb testing.TB, prog string, from uint32, frame []byte, mark uint32) (ret, after uint32) {
	tb.Helper()
	in, out := &skBuff{Ifindex: w.subs[from].Leg, Mark: mark}, &skBuff{}
	var err error
	w.host.Do(tb, func() {
		ret, err = w.coll.Programs[prog].Run(&ebpf.RunOptions{Data: frame, Context: in, ContextOut: out})
	})
	if err != nil {
		tb.Fatalf("run %s: %v", prog, err)
	}
	return ret, out.Mark
}

// What a netkit sends goes on to its host leg where it would go to a sibling's
// peer, marked with whose; all else goes as from a veth.
func TestTxNetkit(t *testing.T) {
	lab.NeedNetkit(t)
	w := usualWorldOf(t, true)
	from := func(id uint32, dst mac, to uint32) []byte { return udp(dst, macOf(id), ip4Of(to), ip4Of(id), 18) }
	for _, c := range []struct {
		name      string
		from      uint32
		frame     []byte
		ret, mark uint32
	}{
		{"wire", macAway, from(macAway, routerMAC, 99), actRedir, 0},
		{"sibling", macAway, from(macAway, macOf(macGiven), macGiven), actPass, w.subs[macGiven].Leg},
		{"itself", macAway, from(macAway, macOf(macAway), macAway), actPass, w.subs[macAway].Leg},
		{"sibling, here", macAway, from(macAway, macOf(macHere), macHere), actRedir, 0},
		{"from here", macHere, from(macHere, macOf(macAway), macAway), actPass, w.subs[macAway].Leg},
		{"IP-keyed sibling", macAway, from(macAway, parentMAC, ipAway), actPass, w.subs[ipAway].Leg},
		{"IP-keyed sibling, here", ipAway, from(ipAway, parentMAC, ipHere), actRedir, 0},
		{"question", macAway, whoHas(macOf(macAway), ip4Of(macAway), ip4Of(ipAway)), actRedir, 0},
		{"malformed", ipAway, set(whoHas(macOf(ipAway), ip4Of(ipAway), ip4Of(99)), 18, 5), actDrop, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.enter(t)
			ret, mark := w.marked(t, bpf.XvlanProgXvlanTx, c.from, c.frame, 0)
			if ret != c.ret || mark != c.mark {
				t.Errorf("returned %d, mark %d, want %d, mark %d", int32(ret), mark, c.ret, c.mark)
			}
		})
	}
}

// What comes in by a netkit's host leg is a sibling's or its own by its mark, and
// else the host's.
func TestTurn(t *testing.T) {
	w := usualWorld(t) // it does not look at the device
	frame := udp(macOf(macGiven), macOf(macAway), ip4Of(macGiven), ip4Of(macAway), 18)
	for mark, want := range map[uint32]uint32{0: actNext, w.subs[macGiven].Leg: actRedir, markInward: actRedir} {
		ret, after := w.marked(t, bpf.XvlanProgXvlanTurn, macAway, frame, mark)
		if ret != want || after != 0 {
			t.Errorf("with mark %#x: returned %d, left mark %#x, want %d, 0", mark, int32(ret), after, int32(want))
		}
	}
}
