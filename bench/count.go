package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"

	"github.com/vishvananda/netlink"
)

// Counting: what one frame takes, in instructions. It is for a machine whose
// clock counts them (lab/vm -icount), with one CPU, and shows what a real
// machine's noise hides; of caches and branches it says nothing.

// A contender is one way to give a container its place on the network.
type contender struct {
	name string
	kind kind
	xdp  bool
}

var contenders = []contender{
	{"macvlan", macvlan, false},
	{"ipvlan l2", ipvlan, false},
	{"ipvlan l3", ipvlanL3, false},
	{"bridge and veth", bridge, false},
	{"xvlan macvlan, tc", xvlan, false},
	{"xvlan macvlan, xdp", xvlan, true},
	{"xvlan ipvlan l2, tc", xvlanIP, false},
	{"xvlan ipvlan l3, tc", xvlanL3, false},
}

// The ways of a frame, in the order of the report.
const (
	deliver  = "wire to sub-interface"
	nobody   = "wire to nobody"
	arp      = "ARP question"
	sibling  = "to a sibling"
	transmit = "to the wire"
)

var ways = []string{deliver, nobody, arp, sibling, transmit}

// A count is one figure.
type count struct {
	Way          string  `json:"way"`
	Contender    string  `json:"contender"`
	Destinations int     `json:"destinations"`
	Instructions float64 `json:"instructions"` // a frame, without making it
}

const (
	warmUp   = 300
	measured = 3000 // frames of a train that counts
)

// counts measures contenders with so many destinations: sub-interfaces of
// their own MACs, or addresses of one behind the parent's.
func counts(ctx context.Context, who []contender, macs, addrs []int) ([]count, error) {
	if out, err := exec.Command("modprobe", "pktgen").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("load pktgen: %w: %s", err, out)
	}
	base, err := baselines()
	if err != nil {
		return nil, err
	}
	var all []count
	for _, c := range who {
		sizes := macs
		if c.kind.shared() {
			sizes = addrs
		}
		for _, n := range sizes {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			fmt.Fprintf(os.Stderr, "%s, %d ...\n", c.name, n)
			some, err := c.count(n, base)
			if err != nil {
				return nil, fmt.Errorf("count %s with %d destinations: %w", c.name, n, err)
			}
			all = append(all, some...)
		}
	}
	return all, nil
}

// baseline is what is taken off: what making a frame takes.
type baseline struct{ pktgen, xdp float64 }

func baselines() (b baseline, err error) {
	w, err := newWorld(plan{}, bareTC)
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	s := w.sides[0]
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "dummy"
	if err := s.host.nl.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
		return b, fmt.Errorf("add dummy: %w", err)
	}
	if err := s.setUp(s.host, attrs.Name); err != nil {
		return b, err
	}
	if b.pktgen, err = s.train(s.host, attrs.Name, train{dst: subMAC(1), addr: subAddr(1)}, nil, 0); err != nil {
		return b, err
	}
	b.xdp, err = s.ask(0, nil, 0)
	return b, err
}

// count measures all ways of one contender.
func (c contender) count(n int, base baseline) (all []count, err error) {
	p := plan{subs: max(n, 2), gro: true, xdp: c.xdp}
	to := train{dst: subMAC(1), macs: n, addr: subAddr(1)}
	if c.kind.shared() {
		p.subs, p.addrs = 2, n
		to = train{dst: parentMAC(), addr: moreAddr(0), addrs: n}
	}
	w, err := newWorld(p, c.kind)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	s := w.sides[0]
	inside, err := newSink(ingress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, inside.close()) }()
	if err := s.sinkAll(inside, p.subs); err != nil {
		return nil, err
	}
	wire, err := newSink(ingress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, wire.close()) }()
	if err := wire.on(s.wire, wireDev); err != nil {
		return nil, err
	}
	add := func(way string, ns, off float64, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", way, err)
		}
		all = append(all, count{way, c.name, n, math.Round(ns - off)})
		return nil
	}
	ns, err := s.train(s.wire, wireDev, to, inside, 1)
	if err := add(deliver, ns, base.pktgen, err); err != nil {
		return nil, err
	}
	strays := 0
	if c.kind == bridge {
		strays = p.subs // a bridge floods what it does not know
	}
	ns, err = s.train(s.wire, wireDev, train{dst: nobodyMAC(), addr: parentAddr()}, inside, strays)
	if err := add(nobody, ns, base.pktgen, err); err != nil {
		return nil, err
	}
	ns, err = s.train(s.box(1), subName(1), train{dst: s.macOf(2), addr: subAddr(2)}, inside, 1)
	if err := add(sibling, ns, base.pktgen, err); err != nil {
		return nil, err
	}
	ns, err = s.train(s.box(1), subName(1), train{dst: wireMAC(), addr: wireAddr()}, wire, 1)
	if err := add(transmit, ns, base.pktgen, err); err != nil {
		return nil, err
	}
	if c.kind.routed() {
		return all, nil // hears no ARP
	}
	l, err := s.wire.link(wireDev)
	if err != nil {
		return nil, err
	}
	ns, err = s.ask(l.Attrs().Index, inside, c.copies(p.subs))
	return all, add(arp, ns, base.xdp, err)
}

// copies is how many of so many sub-interfaces get an ARP question.
func (c contender) copies(subs int) int {
	if slices.Contains([]kind{xvlan, xvlanIP}, c.kind) {
		return 1
	}
	return subs
}

// train sends frames out of a device and returns what one took, in
// nanoseconds. The sink must get so many of each.
func (s *side) train(in *space, dev string, t train, k *sink, each int) (float64, error) {
	if _, err := in.generate(dev, t, warmUp); err != nil {
		return 0, err
	}
	var before, after uint64
	var err error
	if k != nil {
		if before, err = k.seen(); err != nil {
			return 0, err
		}
	}
	ns, err := in.generate(dev, t, measured)
	if err != nil {
		return 0, err
	}
	if k != nil {
		if after, err = k.seen(); err != nil {
			return 0, err
		}
	}
	if got := int(after - before); got != each*measured {
		return 0, fmt.Errorf("of %d frames %d arrived, not %d", measured, got, each*measured)
	}
	return ns, nil
}

// ask sends ARP questions out of a device on the wire, 0 for none, of each of
// which the sink must get so many copies, and returns what one took, in
// nanoseconds.
func (s *side) ask(index int, k *sink, copies int) (ns float64, err error) {
	g, err := newGenerator(index, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	cpus, err := findCPUs()
	if err != nil {
		return 0, err
	}
	b := &bench{cpus: cpus}
	var spent []float64
	for range 2 { // the first to warm up
		if spent, err = b.call(s, g, question(), k, calls*copies, max(copiesAtOnce/max(copies, many), 1)); err != nil {
			return 0, err
		}
	}
	return spent[0], nil
}
