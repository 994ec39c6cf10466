package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// A tally is a set of rules on the parent of kernel macvlans, the least that
// counts the packets and bytes for each of them, and what is for none, as xvlan
// does: where the host sees it, out of the sub-interfaces' reach.
type tally struct {
	name string
	kind kind
	add  func(s *side, subs int) error
}

var tallies = []tally{
	{"a counting nft set", macvlanNFT, nftSet},
	{"counting tc flower filters", macvlanFlower, flowerFilters},
}

// nftSet has a counter with each MAC.
func nftSet(s *side, subs int) error {
	macs := lines(subs, func(i int) string { return subMAC(i).String() + "," })
	return s.host.run(fmt.Sprintf(`
table netdev tally {
	set subs {
		type ether_addr
		counter
		elements = { %s }
	}
	chain in {
		type filter hook ingress device %q priority 0; policy accept;
		ether daddr @subs accept
		counter
	}
}`, macs, parentDev), "nft", "-f", "-")
}

// flowerFilters are one with a counting action for each MAC.
func flowerFilters(s *side, subs int) error {
	add := "filter add dev " + parentDev + " ingress protocol all prio "
	return s.host.run("qdisc add dev "+parentDev+" clsact\n"+
		lines(subs, func(i int) string { return add + "1 flower dst_mac " + subMAC(i).String() + " action pass" })+
		add+"2 matchall action pass\n", "tc", "-batch", "-")
}

// function is about small frames into sub-interfaces that are counted: xvlan as
// it is against kernel macvlans with rules that count; and out of such as are guarded.
func (b *bench) function(ctx context.Context) (rows []*row, err error) {
	var have []tally
	for _, t := range tallies {
		why, err := t.missing()
		if err != nil {
			return nil, err
		}
		if why != nil {
			text := strings.Join(strings.Fields(why.Error()), " ")
			rows = append(rows, missing("60-byte frames in, against macvlan with "+t.name, "not available on this kernel: "+text))
			continue
		}
		have = append(have, t)
	}
	for _, subs := range []int{1, 16, crowd} {
		some, err := b.functionBy(ctx, have, subs)
		if err != nil {
			return nil, err
		}
		rows = append(rows, some...)
	}
	some, err := b.guard(ctx)
	return append(rows, some...), err
}

// missing tells why such rules cannot be had here; nil if they can.
func (t tally) missing() (why, err error) {
	y, err := newYard("try")
	if err != nil {
		return nil, err
	}
	return t.add(y.side, 1), y.close()
}

func (b *bench) functionBy(ctx context.Context, have []tally, subs int) (rows []*row, err error) {
	kinds := []kind{bareXDP, xvlan, macvlan}
	for _, t := range have {
		kinds = append(kinds, t.kind)
	}
	w, err := newWorld(plan{subs: subs, gro: true}, kinds...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	for i, s := range w.sides {
		if i >= len(kinds)-len(have) {
			if err := have[i-len(kinds)+len(have)].add(s, subs); err != nil {
				return nil, err
			}
		}
		if s.kind == bareXDP {
			s.inside, err = newSink(xdpHook)
			if err == nil {
				err = s.inside.on(s.host, parentDev)
			}
		} else {
			err = s.sinkAll(subs)
		}
		if err != nil {
			return nil, err
		}
		if err := p.generate(b, s, s.inside, smallFrame(subMAC(1), subAddr(1)), byMAC(subs)); err != nil {
			return nil, err
		}
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	cable, xv := all[0][0], all[1][0]
	for i, c := range all[2:] {
		what := "without rules"
		if i > 0 {
			what = "with " + have[i-1].name
		}
		r, err := perSecond(fmt.Sprintf("60-byte frames in, %d, against macvlan %s: from the driver on", subs, what), cable, c[0], xv)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			r.goal(2)
		}
		rows = append(rows, r)
	}
	return rows, nil
}
