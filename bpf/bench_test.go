package bpf_test

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

// BenchmarkPrograms tells what a frame costs in a program; "nothing" is what
// running any program costs. Redirects are asked for, not carried out. Those with
// "watched" are watched by one who does not want to see this frame, those with "shown"
// by one who does, for whom there is room for 100,000 (-benchtime 100000x), those with
// "guard" sent by who has one.
func BenchmarkPrograms(b *testing.B) {
	w := usualWorld(b)
	nothing, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		b.Fatalf("load an empty program: %v", err)
	}
	b.Cleanup(func() { nothing.Close() })
	rx, tx := w.coll.Programs[bpf.XvlanProgXvlanRx], w.coll.Programs[bpf.XvlanProgXvlanTx]
	parent, mac4, ip4 := w.meta.Ifindex, ip4Of(macAway), ip4Of(ipAway)
	type benchmark struct {
		name  string
		prog  *ebpf.Program
		dev   uint32
		frame []byte
	}
	cases := []benchmark{
		{"nothing", nothing, parent, udp(macOf(macAway), routerMAC, mac4, routerIP4, 18)},
		{"in/MAC", rx, parent, udp(macOf(macAway), routerMAC, mac4, routerIP4, 18)},
		{"in/IP", rx, parent, udp(parentMAC, routerMAC, ip4, routerIP4, 18)},
		{"in/host", rx, parent, udp(parentMAC, routerMAC, ip4Of(reserved), routerIP4, 18)},
		{"in/nobody", rx, parent, udp(strangerMAC, routerMAC, ip4Of(reserved), routerIP4, 18)},
		{"out/MAC", tx, w.subs[macAway].Leg, udp(routerMAC, macOf(macAway), routerIP4, mac4, 18)},
		{"out/IP", tx, w.subs[ipAway].Leg, udp(routerMAC, macOf(ipAway), routerIP4, ip4, 18)},
		{"sibling/MAC", tx, w.subs[macAway].Leg, udp(macOf(macGiven), macOf(macAway), ip4Of(macGiven), mac4, 18)},
	}
	run := func(b *testing.B, c benchmark) {
		// One call repeats the program; its mean is in whole nanoseconds.
		opts := &ebpf.RunOptions{Data: c.frame, Context: &skBuff{Ifindex: c.dev}, Repeat: uint32(b.N)}
		w.host.Do(b, func() { _, err = c.prog.Run(opts) })
		if err != nil {
			b.Fatalf("run: %v", err)
		}
	}
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) { run(b, c) })
	}
	w.guards = map[uint32]bpf.XvlanGuard{macAway: {Flags: guardOn | learnBoth, Rate: 100}}
	w.enter(b)
	for _, c := range cases {
		// An ipvlan's frame has the parent's MAC from its second run on.
		if c.dev == w.subs[macAway].Leg {
			b.Run(c.name+"/guard", func(b *testing.B) { run(b, c) })
		}
	}
	w.guards, w.meta.Watched = nil, 1
	w.enter(b)
	for name, opts := range map[string]watch.Options{
		"watched": {Verdicts: []maps.Verdict{maps.DropMode}},
		"shown":   {Verdicts: events, Snap: watch.MaxSnap},
	} {
		for _, c := range []benchmark{cases[1], cases[5]} {
			rd := newReader(b)
			w.take(b, 0, rd, opts)
			b.Run(c.name+"/"+name, func(b *testing.B) {
				rest(b, rd)
				run(b, c)
			})
		}
	}
}

// BenchmarkXDP is the same for a port, and for who is none. Ports that are
// reached by address are not measured: their frames are others afterwards.
func BenchmarkXDP(b *testing.B) {
	w := portWorld(b)
	w.enter(b)
	for _, c := range []struct {
		name string
		dst  mac
	}{{"port", macOf(macAway)}, {"no port", macOf(macHere)}, {"nobody", strangerMAC}} {
		b.Run(c.name, func(b *testing.B) {
			frame := udp(c.dst, routerMAC, ip4Of(macAway), routerIP4, 18)
			opts := &ebpf.RunOptions{Data: frame, Repeat: uint32(b.N)}
			var err error
			w.host.Do(b, func() { _, err = w.coll.Programs[bpf.XvlanProgXvlanXdp].Run(opts) })
			if err != nil {
				b.Fatalf("run: %v", err)
			}
		})
	}
}
