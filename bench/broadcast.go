package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	calls = 400 // frames a turn
	// copiesAtOnce is how many copies are under way: more would overflow the
	// queues that they wait in.
	copiesAtOnce = 128
)

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// question is an ARP request from the wire for the first sub-interface.
func question() []byte {
	f := make([]byte, 60)
	copy(f, everybody)
	copy(f[6:], wireMAC())
	copy(f[12:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1})
	copy(f[22:], wireMAC())
	copy(f[28:], wireAddr().AsSlice())
	copy(f[38:], subAddr(1).AsSlice())
	return f
}

// broadcast is about frames for everybody, with many sub-interfaces: xvlan
// hands an ARP question for an address that it knows to its owner alone.
func (b *bench) broadcast(ctx context.Context) (rows []*row, err error) {
	w, err := newWorld(plan{subs: many, gro: true}, macvlan, xvlan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	for _, c := range []struct {
		what  string
		frame []byte
		xvlan int // how many copies xvlan makes
	}{
		{"ARP questions", question(), 1},
		{"other broadcasts", smallFrame(everybody), many},
	} {
		r, err := b.fanOut(ctx, w, fmt.Sprintf("%s in, %d sub-interfaces", c.what, many), c.frame, c.xvlan)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// fanOut compares what frames cost of which macvlan makes a copy for each
// sub-interface.
func (b *bench) fanOut(ctx context.Context, w *world, what string, frame []byte, copies int) (r *row, err error) {
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	for _, s := range w.sides {
		l, err := s.wire.link(wireDev)
		if err != nil {
			return nil, err
		}
		g, err := newGenerator(l.Attrs().Index, 0)
		if err != nil {
			return nil, err
		}
		p.closers = append(p.closers, closeFunc(g.close))
		k, err := p.sink(ingress, func(k *sink) error { return s.sinkAll(k, many) })
		if err != nil {
			return nil, err
		}
		want := calls * many
		if s.kind == xvlan {
			want = calls * copies
		}
		p.probes = append(p.probes, func() ([]float64, error) { return b.call(s, g, frame, k, want, copiesAtOnce/many) })
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	mv, xv := all[0][0], all[1][0]
	return compare(what, "M frames/CPU-s", mv.inverse(1e3), xv.inverse(1e3)), nil
}

// call sends frames, waits until so many copies have arrived, and returns what
// one frame cost with all its copies, in nanoseconds of CPU time. A batch is
// how many are sent at once. Workers of the kernel make macvlan's copies.
func (b *bench) call(s *side, g *generator, frame []byte, k *sink, copies, batch int) ([]float64, error) {
	workers, err := findKthreads("kworker/")
	if err != nil {
		return nil, err
	}
	var before uint64
	if k != nil {
		if before, err = k.seen(); err != nil {
			return nil, err
		}
	}
	var spent time.Duration
	err = s.wire.do(func() (err error) {
		if err := pin(b.cpus.main); err != nil {
			return err
		}
		spent, err = cost(func() error {
			if err := g.send(frame, calls, batch); err != nil {
				return err
			}
			if k == nil {
				return nil
			}
			return k.await(before + uint64(copies))
		}, append(workers, b.cpus.soft...), 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return []float64{float64(spent) / calls}, nil
}

// await waits until a sink has seen so many frames.
func (k *sink) await(n uint64) error {
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		now, err := k.seen()
		if err != nil || now >= n {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d copies did not arrive", n-now)
		}
	}
}
