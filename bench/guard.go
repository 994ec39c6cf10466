package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// nftGuard is the least on the parent of kernel macvlans that lets each send from its
// own MAC and address alone, ARP among it, and counts what it drops: to the wire, that
// is. What siblings send each other passes no rules of the host's.
func nftGuard(s *side, subs int) error {
	own := lines(subs, func(i int) string { return fmt.Sprintf("%s . %s,", subMAC(i), subAddr(i)) })
	return s.host.run(fmt.Sprintf(`
table netdev guard {
	set subs {
		type ether_addr . ipv4_addr
		counter
		elements = { %s }
	}
	chain out {
		type filter hook egress device %q priority 0; policy accept;
		ether saddr . ip saddr @subs accept
		arp saddr ether . arp saddr ip @subs accept
		counter drop
	}
}`, own, parentDev), "nft", "-f", "-")
}

// guard is about small datagrams out of a sub-interface that may send from what is its
// own: xvlan's guard, which looks at more than that, against kernel macvlans with rules.
func (b *bench) guard(ctx context.Context) (rows []*row, err error) {
	for _, subs := range []int{1, 16} {
		some, err := b.guardOf(ctx, subs)
		if err != nil {
			return nil, err
		}
		rows = append(rows, some...)
	}
	return rows, nil
}

func (b *bench) guardOf(ctx context.Context, subs int) (rows []*row, err error) {
	w, err := newWorld(plan{subs: subs, guard: true}, macvlan, macvlanNFT, xvlan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	what := fmt.Sprintf("60-byte UDP out, to the wire, %d with a guard, against macvlan ", subs)
	if err := nftGuard(w.sides[1], subs); err != nil {
		text := strings.Join(strings.Fields(err.Error()), " ")
		return []*row{missing(what+"with an nft set of sources", "not available on this kernel: "+text)}, nil
	}
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	for _, s := range w.sides {
		if err := b.sendInto(&p, s, s.wireEnd(), wireDev); err != nil {
			return nil, err
		}
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	bare, rules, xv := all[0][0].inverse(1e3), all[1][0].inverse(1e3), all[2][0].inverse(1e3)
	return []*row{
		compare(what+"without rules", "M packets/CPU-s", bare, xv),
		compare(what+"with an nft set of sources", "M packets/CPU-s", rules, xv).goal(2),
	}, nil
}
