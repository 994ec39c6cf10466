package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// copiesAtOnce is how many copies are under way: more would overflow the
// queues that they wait in.
const copiesAtOnce = 128

// calls are what is sent to everybody in one turn.
type calls struct {
	frame  []byte
	copies int // of each frame that arrive
	batch  int // frames that are sent at once
}

// frames is how many are sent: some 20,000 copies, and no more than the kernel's
// macvlan has room for in its queue (1,000).
func (c calls) frames() int { return min(max(20_000/max(c.copies, 1), 20), 400) }

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

// broadcast is about frames for everybody: xvlan hands an ARP question for an
// address that it knows to its owner alone.
func (b *bench) broadcast(ctx context.Context) (rows []*row, err error) {
	for _, subs := range []int{1, 16, 256, crowd} {
		some, err := b.broadcastTo(ctx, subs)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", numberOf(subs), err)
		}
		rows = append(rows, some...)
	}
	return rows, nil
}

func (b *bench) broadcastTo(ctx context.Context, subs int) (rows []*row, err error) {
	w, err := b.receivers(subs)
	if err != nil {
		return nil, err
	}
	putBack, err := raiseBacklog()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, putBack()) }()
	questions, err := b.fanOut(ctx, w, "ARP questions in, "+numberOf(subs), question(), 1)
	if err != nil {
		return nil, err
	}
	if subs == crowd {
		questions.goal(100)
	}
	others, err := b.fanOut(ctx, w, "other broadcasts in, "+numberOf(subs), smallFrame(everybody, subAddr(1)), subs)
	if err != nil {
		return nil, err
	}
	return []*row{questions, others}, nil
}

// backlog is how many frames may wait for the stack on a CPU. Copies for all
// sub-interfaces are made before the first of them gets on, so the usual 1,000
// may be too few for that many.
const backlog = "/proc/sys/net/core/netdev_max_backlog"

// raiseBacklog makes room in it, and returns what puts it back.
func raiseBacklog() (putBack func() error, err error) {
	was, err := os.ReadFile(backlog)
	if err != nil {
		return nil, fmt.Errorf("read backlog: %w", err)
	}
	set := func(value []byte) error {
		if err := os.WriteFile(backlog, value, 0o644); err != nil {
			return fmt.Errorf("set backlog: %w", err)
		}
		return nil
	}
	return func() error { return set(was) }, set([]byte("16384"))
}

// fanOut compares what frames cost of which macvlan makes a copy for each
// sub-interface, and xvlan so many.
func (b *bench) fanOut(ctx context.Context, w *world, what string, frame []byte, copies int) (r *row, err error) {
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	for _, s := range w.sides {
		l, err := s.wire.link(wireDev)
		if err != nil {
			return nil, err
		}
		g, err := newGenerator(l.Attrs().Index, rotation{})
		if err != nil {
			return nil, err
		}
		p.closers = append(p.closers, closeFunc(g.close))
		c := calls{frame: frame, copies: w.plan.subs, batch: max(copiesAtOnce/w.plan.subs, 1)}
		if s.kind == xvlan {
			c.copies = copies
		}
		p.probes = append(p.probes, func() ([]float64, error) { return b.call(s, g, s.inside, c) })
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	mv, xv := all[0][0], all[1][0]
	return compare(what, "M frames/CPU-s", mv.inverse(1e3), xv.inverse(1e3)), nil
}

// call sends frames, waits until all their copies have arrived, and returns
// what one frame cost with its copies, in nanoseconds of CPU time. Workers of
// the kernel make macvlan's copies.
func (b *bench) call(s *side, g *generator, k *sink, c calls) ([]float64, error) {
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
			if err := g.send(c.frame, c.frames(), c.batch); err != nil {
				return err
			}
			if k == nil {
				return nil
			}
			return k.await(before + uint64(c.frames()*c.copies))
		}, append(workers, b.cpus.soft...), 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return []float64{float64(spent) / float64(c.frames())}, nil
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
