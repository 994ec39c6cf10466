package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	frames = 20_000 // a turn's: about a hundredth of a second
	poll   = 64     // frames at once: a NIC's poll takes as many; a veth's ring holds 256
	many   = 16     // receivers at once
)

// smallFrame is 60 bytes of UDP from the wire, as long as the shortest frame
// on a cable.
func smallFrame(dst net.HardwareAddr) []byte {
	const ip, udp = 14, 34
	f := make([]byte, 60)
	copy(f, dst)
	copy(f[6:], wireMAC())
	copy(f[12:], []byte{8, 0, 0x45, 0, 0, byte(len(f) - ip), 0, 0, 0, 0, 64, 17})
	copy(f[ip+12:], wireAddr().AsSlice())
	copy(f[ip+16:], subAddr(1).AsSlice())
	var sum uint32
	for i := ip; i < udp; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(f[ip+10:], ^uint16(sum>>16+sum))
	const discard = 9
	binary.BigEndian.PutUint16(f[udp:], discard)
	binary.BigEndian.PutUint16(f[udp+2:], discard)
	binary.BigEndian.PutUint16(f[udp+4:], uint16(len(f)-udp))
	return f
}

// pipes are the programs that make frames for some sides and drop them.
type pipes struct {
	closers []io.Closer
	probes  []probe
}

type closeFunc func() error

func (f closeFunc) Close() error { return f() }

func (p *pipes) close() error {
	var errs []error
	for _, c := range p.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// generate adds a probe of what a frame costs from its making to the sink, in
// nanoseconds of CPU time. Without a sink what was sent counts; without a side
// the generator drops what it made.
func (p *pipes) generate(b *bench, s *side, k *sink, frame []byte, receivers int) error {
	index, do := 0, onThread
	if s != nil {
		l, err := s.wire.link(wireDev)
		if err != nil {
			return err
		}
		index, do = l.Attrs().Index, s.wire.do
	}
	g, err := newGenerator(index, receivers)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, closeFunc(g.close))
	count := g.sent
	if k != nil {
		count = k.seen
	}
	p.probes = append(p.probes, func() ([]float64, error) {
		var spent time.Duration
		before, err := count()
		if err != nil {
			return nil, err
		}
		err = do(func() (err error) {
			if err := pin(b.cpus.main); err != nil {
				return err
			}
			spent, err = cost(func() error { return g.send(frame, frames, poll) }, b.cpus.soft, 0)
			return err
		})
		if err != nil {
			return nil, err
		}
		after, err := count()
		if err != nil {
			return nil, err
		}
		if after-before < frames*9/10 {
			return nil, fmt.Errorf("of %d frames only %d arrived", frames, after-before)
		}
		return []float64{float64(spent) / float64(after-before)}, nil
	})
	return nil
}

// sink puts a new sink on devices of one namespace after the other.
func (p *pipes) sink(h hook, put func(k *sink) error) (*sink, error) {
	k, err := newSink(h)
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, closeFunc(k.close))
	return k, put(k)
}

// receive is about small frames from the wire into sub-interfaces, where a tc
// program drops them.
func (b *bench) receive(ctx context.Context) ([]*row, error) {
	var rows []*row
	for _, receivers := range []int{1, many} {
		r, err := b.receiveBy(ctx, receivers)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r...)
	}
	return rows, nil
}

func (b *bench) receiveBy(ctx context.Context, receivers int) (rows []*row, err error) {
	w, err := newWorld(plan{subs: receivers, gro: true}, bareXDP, bareTC, macvlan, xvlan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	for _, s := range w.sides {
		k, err := p.sink(s.receiveHook(), func(k *sink) error { return s.sinkAll(k, receivers) })
		if err != nil {
			return nil, err
		}
		if err := p.generate(b, s, k, smallFrame(subMAC(1)), receivers); err != nil {
			return nil, err
		}
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	cable, edge, mv, xv := all[0][0], all[1][0], all[2][0], all[3][0]
	what := fmt.Sprintf("60-byte frames in, %d sub-interfaces", receivers)
	if receivers == 1 {
		what = "60-byte frames in, 1 sub-interface"
	}
	from, err := perSecond(what+": from the driver on", cable, mv, xv)
	if err != nil {
		return nil, err
	}
	path, err := perSecond(what+": from the stack's edge on", edge, mv, xv)
	if err != nil {
		return nil, err
	}
	return []*row{from.goal(0.92), path}, nil
}

func (s *side) receiveHook() hook {
	if s.kind == bareXDP {
		return xdpHook
	}
	return ingress
}

// sinkAll puts a sink where a side's frames end.
func (s *side) sinkAll(k *sink, receivers int) error {
	if s.kind == bareXDP || s.kind == bareTC {
		return k.on(s.host, parentDev)
	}
	for i := 1; i <= receivers; i++ {
		if err := k.on(s.box(i), subName(i)); err != nil {
			return err
		}
	}
	return nil
}

// perSecond compares packets per second of CPU time, from their costs in
// nanoseconds with a baseline's taken off.
func perSecond(what string, base, macvlan, xvlan series) (*row, error) {
	m, x, err := takeOff(base, macvlan, xvlan)
	if err != nil {
		return nil, err
	}
	return compare(what, "M packets/CPU-s", m.inverse(1e3), x.inverse(1e3)), nil
}

// nobody is about frames for a MAC that nobody has: xvlan on the rung xdp
// drops them in the driver, macvlan leaves them to the host's stack.
func (b *bench) nobody(ctx context.Context) (rows []*row, err error) {
	w, err := newWorld(plan{subs: 1, gro: true, xdp: true}, bareXDP, macvlan, xvlan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	frame := smallFrame(nobodyMAC())
	if err := p.generate(b, nil, nil, frame, 1); err != nil {
		return nil, err
	}
	for _, s := range w.sides {
		if s.kind == bareXDP {
			if _, err := p.sink(xdpHook, func(k *sink) error { return k.on(s.host, parentDev) }); err != nil {
				return nil, err
			}
		}
		if err := p.generate(b, s, nil, frame, 1); err != nil {
			return nil, err
		}
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	made, cable, mv, xv := all[0][0], all[1][0], all[2][0], all[3][0]
	from, err := perSecond("60-byte frames for nobody: from the driver on", cable, mv, xv)
	if err != nil {
		return nil, err
	}
	whole, err := perSecond("60-byte frames for nobody: with cable and driver", made, mv, xv)
	if err != nil {
		return nil, err
	}
	return []*row{from.goal(10), whole}, nil
}
