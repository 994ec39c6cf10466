package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// addresses is about what many destinations behind one MAC cost: small frames
// from the wire go to one address after the other, here and there. What more
// sub-interfaces cost, each with its own address, is shown beside it.
func (b *bench) addresses(ctx context.Context) (rows []*row, err error) {
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	bare, err := newWorld(plan{gro: true}, bareXDP)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bare.close()) }()
	k, err := p.sink(xdpHook, func(k *sink) error { return k.on(bare.sides[0].host, parentDev) })
	if err != nil {
		return nil, err
	}
	if err := p.generate(b, bare.sides[0], k, smallFrame(parentMAC(), moreAddr(0)), byAddr(0, 1)); err != nil {
		return nil, err
	}
	worlds := []struct {
		plan
		base netip.Addr // whose last 16 bits go through
		r    rotation
	}{
		{plan{subs: 1, addrs: 1, gro: true}, moreAddr(0), byAddr(0, 1)},
		{plan{subs: 1, addrs: addrsEach, gro: true}, moreAddr(0), byAddr(0, addrsEach)},
		{plan{subs: 256, gro: true}, subAddr(0), byAddr(1, 256)},
		{plan{subs: 256, addrs: 256 * addrsEach, gro: true}, moreAddr(0), byAddr(0, 256*addrsEach)},
	}
	for _, c := range worlds {
		w, err := newWorld(c.plan, xvlanIP)
		if err != nil {
			return nil, err
		}
		p.closers = append(p.closers, closeFunc(w.close))
		s := w.sides[0]
		if err := s.sinkAll(c.subs); err != nil {
			return nil, err
		}
		if err := p.generate(b, s, s.inside, smallFrame(parentMAC(), c.base), c.r); err != nil {
			return nil, err
		}
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	for i, c := range worlds[1:] {
		one, more, err := takeOff(all[0][0], all[1][0], all[i+2][0])
		if err != nil {
			return nil, err
		}
		what := fmt.Sprintf("60-byte frames in to %d addresses, %s, against 1: from the driver on", c.r.count, numberOf(c.subs))
		rows = append(rows, compare(what, "ns/packet", one, more).between("1 address", "many").lessIsBetter())
	}
	rows[len(rows)-1].goal(1.3)
	return rows, nil
}
