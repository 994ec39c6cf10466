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
	trips   = 4000 // a turn's, of which the four slowest are beyond p99.9
	message = 32   // bytes
)

// A caller asks and waits for the answer, again and again. Both sides are on
// one CPU: then an answer takes what the path and two switches of threads
// cost, and not the waking of an idle CPU.
type caller struct {
	conn    conn
	cpu     int
	closing atomic.Bool
	wg      sync.WaitGroup
}

func (b *bench) newCaller(kind int, from, to end) (*caller, error) {
	conn, err := dial(kind, from, to)
	if err != nil {
		return nil, err
	}
	c := &caller{conn: conn, cpu: b.cpus.main}
	c.wg.Go(func() { _ = thread.Run(c.answer) })
	return c, nil
}

// answer sends back what comes.
func (c *caller) answer() error {
	if err := pin(c.cpu); err != nil {
		return err // the caller finds nobody answering
	}
	buf := make([]byte, message)
	for !c.closing.Load() {
		n, err := unix.Read(c.conn.to, buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		if _, err := unix.Write(c.conn.to, buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// turn returns the median, the 99th and the 99.9th percentile of some round
// trips, in microseconds.
func (c *caller) turn() ([]float64, error) {
	var all series
	err := thread.Run(func() error {
		if err := pin(c.cpu); err != nil {
			return err
		}
		buf := make([]byte, message)
		for range trips {
			start := time.Now()
			if _, err := unix.Write(c.conn.from, buf); err != nil {
				return fmt.Errorf("ask: %w", err)
			}
			if _, err := read(c.conn.from, buf); err != nil {
				return fmt.Errorf("wait for an answer: %w", err)
			}
			all = append(all, float64(time.Since(start))/1e3)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []float64{all.quantile(0.5), all.quantile(0.99), all.quantile(0.999)}, nil
}

// read is unix.Read over signals.
func read(fd int, buf []byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, buf); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func (c *caller) close() error {
	c.closing.Store(true)
	err := unix.Shutdown(c.conn.to, unix.SHUT_RDWR)
	c.wg.Wait()
	return errors.Join(err, c.conn.close())
}

// latency is about question and answer.
func (b *bench) latency(ctx context.Context) (rows []*row, err error) {
	w, err := newWorld(plan{subs: 2, netkit: b.netkit}, macvlan, xvlan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	for _, c := range []struct {
		what string
		kind int
		to   func(*side) end
	}{
		{"UDP, wire and back", unix.SOCK_DGRAM, (*side).wireEnd},
		{"TCP, wire and back", unix.SOCK_STREAM, (*side).wireEnd},
		{"UDP, sibling and back", unix.SOCK_DGRAM, func(s *side) end { return s.subEnd(2) }},
	} {
		r, err := b.questions(ctx, w, c.what, c.kind, c.to)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r...)
	}
	return rows, nil
}

// questions compares round trips of one kind.
func (b *bench) questions(ctx context.Context, w *world, what string, kind int, to func(*side) end) (rows []*row, err error) {
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	for _, s := range w.sides {
		c, err := b.newCaller(kind, s.subEnd(1), to(s))
		if err != nil {
			return nil, err
		}
		p.closers = append(p.closers, closeFunc(c.close))
		p.probes = append(p.probes, c.turn)
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	mv, xv := all[0], all[1]
	return []*row{
		compare(what+": p50", "us", mv[0], xv[0]).lessIsBetter().goal(1.05),
		compare(what+": p99", "us", mv[1], xv[1]).lessIsBetter(),
		compare(what+": p99.9", "us", mv[2], xv[2]).lessIsBetter(),
	}, nil
}
