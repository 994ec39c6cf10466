package main

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/internal/thread"
)

const (
	datagrams = 10_000 // a turn's: about a hundredth of a second
	burst     = 64     // datagrams a call
	datagram  = 18     // bytes, for a frame of 60
)

// mmsghdr is what sendmmsg(2) takes; x/sys lacks it.
type mmsghdr struct {
	hdr unix.Msghdr
	_   uint32 // bytes sent, filled in by the kernel
}

// flood sends datagrams on a connected socket, many a call, so that not system
// calls are what is measured.
func flood(fd, n int) error {
	var payload [datagram]byte
	iov := unix.Iovec{Base: &payload[0]}
	iov.SetLen(datagram)
	var msgs [burst]mmsghdr
	for i := range msgs {
		msgs[i].hdr.Iov = &iov
		msgs[i].hdr.SetIovlen(1)
	}
	for n > 0 {
		sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs)), burst, 0, 0, 0)
		if errno != 0 && errno != unix.EINTR && errno != unix.ENOBUFS {
			return fmt.Errorf("send datagrams: %w", errno)
		}
		if errno == 0 {
			n -= int(sent)
		}
	}
	return nil
}

// send is about small datagrams out of a sub-interface, from an application's
// system call to the wire's or a sibling's stack, where a tc program drops
// them.
func (b *bench) send(ctx context.Context) (rows []*row, err error) {
	w, err := newWorld(plan{subs: 2, netkit: b.netkit}, macvlan, xvlan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	for _, c := range []struct {
		what string
		to   func(*side) end
		dev  string
	}{
		{"60-byte UDP out, to the wire", (*side).wireEnd, wireDev},
		{"60-byte UDP out, to a sibling", func(s *side) end { return s.subEnd(2) }, subName(2)},
	} {
		r, err := b.sendTo(ctx, w, c.what, c.to, c.dev)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r...)
	}
	return rows, nil
}

// sendTo compares one direction.
func (b *bench) sendTo(ctx context.Context, w *world, what string, to func(*side) end, dev string) (rows []*row, err error) {
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	for _, s := range w.sides {
		if err := b.sendInto(&p, s, to(s), dev); err != nil {
			return nil, err
		}
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	mv, xv := all[0][0], all[1][0]
	return []*row{compare(what, "M packets/CPU-s", mv.inverse(1e3), xv.inverse(1e3)).goal(0.95)}, nil
}

// sendInto adds a probe of what c1 sends to an end, as far as that one's device.
func (b *bench) sendInto(p *pipes, s *side, to end, dev string) error {
	c, err := dial(unix.SOCK_DGRAM, s.subEnd(1), to)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, closeFunc(c.close))
	k, err := p.sink(ingress, func(k *sink) error { return k.on(to.in, dev) })
	if err != nil {
		return err
	}
	p.probes = append(p.probes, b.flooder(c.from, k))
	return nil
}

// flooder is a probe of what a datagram costs from the system call to the
// sink, in nanoseconds of CPU time.
func (b *bench) flooder(fd int, k *sink) probe {
	return func() ([]float64, error) {
		before, err := k.seen()
		if err != nil {
			return nil, err
		}
		var spent time.Duration
		err = thread.Run(func() (err error) {
			if err := pin(b.cpus.main); err != nil {
				return err
			}
			spent, err = cost(func() error { return flood(fd, datagrams) }, b.cpus.soft, 0)
			return err
		})
		if err != nil {
			return nil, err
		}
		after, err := k.seen()
		if err != nil {
			return nil, err
		}
		if after-before < datagrams*9/10 {
			return nil, fmt.Errorf("of %d datagrams only %d arrived", datagrams, after-before)
		}
		return []float64{float64(spent) / float64(after-before)}, nil
	}
}
