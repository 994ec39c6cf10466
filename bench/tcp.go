package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/internal/thread"
)

const (
	streamTurn = 40 * time.Millisecond
	chunk      = 256 << 10 // bytes a call
)

// A stream is a TCP connection that is filled on demand, from a thread on the
// main CPU to one on the other.
type stream struct {
	conn     conn
	cpus     *cpus
	received atomic.Int64
	closing  atomic.Bool
	turns    chan struct{}
	results  chan sent
	threads  [2]int // of the sender and the receiver
	wg       sync.WaitGroup
}

// sent is what a turn of the sender's came to.
type sent struct {
	bytes int64
	err   error
}

func (b *bench) newStream(from, to end) (*stream, error) {
	c, err := dial(unix.SOCK_STREAM, from, to)
	if err != nil {
		return nil, err
	}
	s := &stream{conn: c, cpus: b.cpus, turns: make(chan struct{}), results: make(chan sent)}
	ready := make(chan error)
	for i, work := range []func(){s.send, s.receive} {
		s.wg.Go(func() {
			_ = thread.Run(func() error {
				s.threads[i] = unix.Gettid()
				err := pin([]int{b.cpus.main, b.cpus.other}[i])
				ready <- err
				if err == nil {
					work()
				}
				return nil
			})
		})
	}
	if err := errors.Join(<-ready, <-ready); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// send fills the connection for a while whenever it is this stream's turn.
func (s *stream) send() {
	buf := make([]byte, chunk)
	for range s.turns {
		var r sent
		for end := time.Now().Add(streamTurn); r.err == nil && time.Now().Before(end); {
			var n int
			if n, r.err = unix.Write(s.conn.from, buf); n > 0 {
				r.bytes += int64(n)
			}
			if errors.Is(r.err, unix.EINTR) {
				r.err = nil
			}
		}
		s.results <- r
	}
}

func (s *stream) receive() {
	buf := make([]byte, chunk)
	for !s.closing.Load() {
		n, err := unix.Read(s.conn.to, buf)
		if n > 0 {
			s.received.Add(int64(n))
		} else if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return // the sender sees that nobody reads
		}
	}
}

// turn sends for a while and returns the time and the CPU time that a byte
// took until it was read, in nanoseconds.
func (s *stream) turn() ([]float64, error) {
	var r sent
	before := s.received.Load()
	start := time.Now()
	var took time.Duration
	spent, err := cost(func() error {
		s.turns <- struct{}{}
		r = <-s.results
		for r.err == nil && s.received.Load()-before < r.bytes {
			if time.Since(start) > wait {
				return fmt.Errorf("of %d bytes only %d arrived", r.bytes, s.received.Load()-before)
			}
			time.Sleep(50 * time.Microsecond)
		}
		took = time.Since(start)
		return r.err
	}, s.cpus.soft, s.threads[:]...)
	if err != nil {
		return nil, fmt.Errorf("send by TCP: %w", err)
	}
	return []float64{float64(took) / float64(r.bytes), float64(spent) / float64(r.bytes)}, nil
}

func (s *stream) close() error {
	s.closing.Store(true)
	close(s.turns)
	err := unix.Shutdown(s.conn.from, unix.SHUT_WR) // the receiver reads to the end
	s.wg.Wait()
	return errors.Join(err, s.conn.close())
}

// tcp is about bulk transfer: into a sub-interface, out of it, and to its
// sibling.
func (b *bench) tcp(ctx context.Context) (rows []*row, err error) {
	w, err := newWorld(plan{subs: 2, netkit: b.netkit}, macvlan, xvlan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	in := func(s *side) (end, end) { return s.wireEnd(), s.subEnd(1) }
	out := func(s *side) (end, end) { return s.subEnd(1), s.wireEnd() }
	sibling := func(s *side) (end, end) { return s.subEnd(1), s.subEnd(2) }
	for _, c := range []struct {
		what string
		ends func(*side) (end, end)
		nic  bool
	}{
		{"in, super-packets", in, false},
		{"in, frame by frame through GRO as from a NIC", in, true},
		{"out", out, false},
		{"sibling to sibling", sibling, false},
	} {
		for _, s := range w.sides {
			if err := s.offloads(c.nic, !c.nic); err != nil {
				return nil, err
			}
		}
		r, err := b.bulk(ctx, w, c.what, c.ends)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r...)
	}
	return rows, nil
}

// bulk compares one direction.
func (b *bench) bulk(ctx context.Context, w *world, what string, ends func(*side) (end, end)) (rows []*row, err error) {
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	for _, s := range w.sides {
		from, to := ends(s)
		st, err := b.newStream(from, to)
		if err != nil {
			return nil, err
		}
		p.closers = append(p.closers, closeFunc(st.close))
		p.probes = append(p.probes, st.turn)
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	mv, xv := all[0], all[1]
	return []*row{
		compare("bulk "+what, "Gbit/s", mv[0].inverse(8), xv[0].inverse(8)).goal(1),
		compare("bulk "+what+": per CPU time", "Gbit/CPU-s", mv[1].inverse(8), xv[1].inverse(8)).goal(1),
	}, nil
}
