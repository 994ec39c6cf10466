package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/xvlan/xvlan/internal/thread"
)

const (
	frames = 20_000 // a turn's: about a hundredth of a second
	poll   = 64     // frames at once: a NIC's poll takes as many; a veth's ring holds 256
)

const ipOffset = 14 // of the IP header in a frame

func numberOf(subs int) string {
	if subs == 1 {
		return "1 sub-interface"
	}
	return fmt.Sprintf("%d sub-interfaces", subs)
}

// smallFrame is 60 bytes of UDP from the wire, as long as the shortest frame
// on a cable, for an address.
func smallFrame(dst net.HardwareAddr, to netip.Addr) []byte {
	const ip, udp = ipOffset, ipOffset + 20
	f := make([]byte, 60)
	copy(f, dst)
	copy(f[6:], wireMAC())
	copy(f[12:], []byte{8, 0, 0x45, 0, 0, byte(len(f) - ip), 0xff, 0xff, 0, 0, 64, 17})
	copy(f[ip+12:], wireAddr().AsSlice())
	copy(f[ip+16:], to.AsSlice())
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
func (p *pipes) generate(b *bench, s *side, k *sink, frame []byte, r rotation) error {
	index, do := 0, thread.Run
	if s != nil {
		l, err := s.wire.link(wireDev)
		if err != nil {
			return err
		}
		index, do = l.Attrs().Index, s.wire.do
	}
	g, err := newGenerator(index, r)
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
	for _, receivers := range []int{1, 16, crowd} {
		r, err := b.receiveBy(ctx, receivers)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r...)
	}
	return rows, nil
}

// receivers returns a world of macvlan and xvlan whose sub-interfaces drop what
// they get. It is kept for the cases that follow: making a crowd of them
// takes a minute.
func (b *bench) receivers(subs int) (*world, error) {
	if w := b.worlds[subs]; w != nil {
		return w, nil
	}
	w, err := newWorld(plan{subs: subs, gro: true}, macvlan, xvlan)
	if err != nil {
		return nil, err
	}
	for _, s := range w.sides {
		if err := s.sinkAll(subs); err != nil {
			return nil, errors.Join(err, w.close())
		}
	}
	if b.worlds == nil {
		b.worlds = map[int]*world{}
	}
	b.worlds[subs] = w
	return w, nil
}

func (b *bench) receiveBy(ctx context.Context, receivers int) (rows []*row, err error) {
	bare, err := newWorld(plan{gro: true}, bareXDP, bareTC)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bare.close()) }()
	w, err := b.receivers(receivers)
	if err != nil {
		return nil, err
	}
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	for _, s := range bare.sides {
		k, err := p.sink(s.receiveHook(), func(k *sink) error { return k.on(s.host, parentDev) })
		if err != nil {
			return nil, err
		}
		if err := p.generate(b, s, k, smallFrame(subMAC(1), subAddr(1)), byMAC(receivers)); err != nil {
			return nil, err
		}
	}
	for _, s := range w.sides {
		if err := p.generate(b, s, s.inside, smallFrame(subMAC(1), subAddr(1)), byMAC(receivers)); err != nil {
			return nil, err
		}
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	cable, edge, mv, xv := all[0][0], all[1][0], all[2][0], all[3][0]
	what := "60-byte frames in, " + numberOf(receivers)
	from, err := perSecond(what+": from the driver on", cable, mv, xv)
	if err != nil {
		return nil, err
	}
	path, err := perSecond(what+": from the stack's edge on", edge, mv, xv)
	if err != nil {
		return nil, err
	}
	if receivers == 1 || receivers == crowd {
		from.goal(0.95)
	}
	return []*row{from, path}, nil
}

func (s *side) receiveHook() hook {
	if s.kind == bareXDP {
		return xdpHook
	}
	return ingress
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
	frame := smallFrame(nobodyMAC(), subAddr(1))
	if err := p.generate(b, nil, nil, frame, rotation{}); err != nil {
		return nil, err
	}
	for _, s := range w.sides {
		if s.kind == bareXDP {
			if _, err := p.sink(xdpHook, func(k *sink) error { return k.on(s.host, parentDev) }); err != nil {
				return nil, err
			}
		}
		if err := p.generate(b, s, nil, frame, rotation{}); err != nil {
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
	return []*row{from.goal(15), whole}, nil
}
