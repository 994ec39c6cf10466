package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// Counting: what one frame takes, in instructions. It is for a machine whose
// clock counts them (lab/vm -icount), with one CPU, and shows what a real
// machine's noise hides; of caches and branches it says nothing.

// A contender is one way to give a container its place on the network.
type contender struct {
	name   string
	kind   kind
	xdp    bool
	netkit bool
	vlan   uint16 // that its sub-interfaces are in: see plan
	subs   int    // sub-interfaces that it is counted with at the most
	addrs  int    // addresses, of those behind the parent's MAC
}

// The kernel's ipvlan compares each address that is added with all others on
// the parent: 65,536 would take more than ten minutes to make. A bridge has
// 1,023 ports at the most.
var contenders = []contender{
	{name: "macvlan", kind: macvlan, subs: 4096},
	{name: "macvlan on a VLAN device", kind: macvlan, vlan: 10, subs: 1},
	{name: "ipvlan l2", kind: ipvlan, subs: 4096, addrs: 16_384},
	{name: "ipvlan l3", kind: ipvlanL3, addrs: 4096},
	{name: "bridge and veth", kind: bridge, subs: 1000},
	{name: "xvlan macvlan, tc", kind: xvlan, subs: 4096},
	{name: "xvlan macvlan, xdp", kind: xvlan, xdp: true, subs: 256},
	{name: "xvlan macvlan, netkit", kind: xvlan, netkit: true, subs: 256},
	{name: "xvlan macvlan, vlan 10", kind: xvlan, vlan: 10, subs: 1},
	{name: "xvlan ipvlan l2, tc", kind: xvlanIP, subs: 256, addrs: 65_536},
	{name: "xvlan ipvlan l2, netkit", kind: xvlanIP, netkit: true, subs: 16, addrs: 4096},
	{name: "xvlan ipvlan l3, tc", kind: xvlanL3, addrs: 4096},
}

// Numbers of destinations: sub-interfaces of their own MACs, or addresses of
// those behind the parent's.
var (
	subSizes  = []int{1, 16, 256, 1000, 4096}
	addrSizes = []int{1, 16, 256, 4096, 16_384, 65_536}
)

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
	Destinations int     `json:"destinations"` // of an ARP question: sub-interfaces
	Instructions float64 `json:"instructions"` // a frame, without making it
}

// measured is how many frames of a train count, a tenth as many come before, or
// one to each destination; fewer where each is copied, so that there are some
// 100,000 copies.
const measured = 3000

func trainLength(destinations, copies int) int {
	return min(max(measured, destinations), max(20, 100_000/max(copies, 1)))
}

// counts measures contenders, up to so many destinations.
func counts(ctx context.Context, who []contender, most int) (all []count, err error) {
	if out, err := exec.Command("modprobe", "pktgen").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("load pktgen: %w: %s", err, out)
	}
	putBack, err := raiseBacklog()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, putBack()) }()
	base, err := baselines()
	if err != nil {
		return nil, err
	}
	for _, c := range who {
		sizes, end := subSizes, min(most, c.subs)
		if c.kind.shared() {
			sizes, end = addrSizes, min(most, c.addrs)
		}
		if all, err = c.each(ctx, all, sizes, end, base, c.count); err != nil {
			return nil, err
		}
		if most == 1 || c.kind.routed() || c.vlan != 0 {
			continue // does not hear ARP, or is asked without a tag
		}
		if all, err = c.each(ctx, all, subSizes, min(most, c.subs), base, c.countARP); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// each counts with each number of destinations up to the most.
func (c contender) each(ctx context.Context, all []count, sizes []int, most int, base baseline,
	fn func(int, baseline) ([]count, error),
) ([]count, error) {
	for _, n := range sizes {
		if n > most {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		start := time.Now()
		if err := awaitRest(); err != nil {
			return nil, err
		}
		some, err := fn(n, base)
		if err != nil {
			return nil, fmt.Errorf("count %s with %d destinations: %w", c.name, n, err)
		}
		fmt.Fprintf(os.Stderr, "%s, %d: %.1f s\n", c.name, n, time.Since(start).Seconds())
		all = append(all, some...)
	}
	return all, nil
}

// awaitRest waits until the kernel's workers have nothing to do: they take the
// namespaces of what was counted before apart, and have the same CPU.
func awaitRest() error {
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); {
		workers, err := findKthreads("kworker/")
		if err != nil {
			return err
		}
		spent, err := cost(func() error {
			time.Sleep(200 * time.Millisecond)
			return nil
		}, workers)
		if err != nil || spent < 2*time.Millisecond {
			return err
		}
	}
	return errors.New("the kernel's workers have not come to rest within minutes")
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

// count measures all ways of one contender but ARP.
func (c contender) count(n int, base baseline) (all []count, err error) {
	p := plan{subs: max(n, 2), gro: true, xdp: c.xdp, netkit: c.netkit, vlan: c.vlan}
	to := train{dst: subMAC(1), macs: n, addr: subAddr(1), vlan: c.vlan}
	if c.kind.shared() {
		p.subs, p.addrs = max(n/addrsEach, 2), n
		to = train{dst: parentMAC(), addr: moreAddr(0), addrs: n, vlan: c.vlan}
	}
	w, err := newWorld(p, c.kind)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	s := w.sides[0]
	if err := s.sinkAll(p.subs); err != nil {
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
	ns, err := s.train(s.wire, wireDev, to, s.inside, 1)
	if err := add(deliver, ns, base.pktgen, err); err != nil {
		return nil, err
	}
	strays := 0
	if c.kind == bridge {
		strays = p.subs // a bridge floods what it does not know
	}
	ns, err = s.train(s.wire, wireDev, train{dst: nobodyMAC(), addr: parentAddr(), vlan: c.vlan}, s.inside, strays)
	if err := add(nobody, ns, base.pktgen, err); err != nil {
		return nil, err
	}
	ns, err = s.train(s.box(1), subName(1), train{dst: s.macOf(2), addr: subAddr(2)}, s.inside, 1)
	if err := add(sibling, ns, base.pktgen, err); err != nil {
		return nil, err
	}
	ns, err = s.train(s.box(1), subName(1), train{dst: wireMAC(), addr: wireAddr()}, wire, 1)
	return all, add(transmit, ns, base.pktgen, err)
}

// countARP measures ARP questions with so many sub-interfaces.
func (c contender) countARP(subs int, base baseline) (all []count, err error) {
	w, err := newWorld(plan{subs: subs, gro: true, xdp: c.xdp, netkit: c.netkit}, c.kind)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	s := w.sides[0]
	if err := s.sinkAll(subs); err != nil {
		return nil, err
	}
	l, err := s.wire.link(wireDev)
	if err != nil {
		return nil, err
	}
	ns, err := s.ask(l.Attrs().Index, s.inside, c.copies(subs))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", arp, err)
	}
	return []count{{arp, c.name, subs, math.Round(ns - base.xdp)}}, nil
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
	n := trainLength(max(t.macs, t.addrs), each)
	// Each destination has had a frame before: the first may have more to do.
	if _, err := in.generate(dev, t, max(n/10, t.macs, t.addrs)); err != nil {
		return 0, err
	}
	var before, after uint64
	var err error
	if k != nil {
		if before, err = k.seen(); err != nil {
			return 0, err
		}
	}
	ns, err := in.generate(dev, t, n)
	if err != nil {
		return 0, err
	}
	if k != nil {
		if after, err = k.seen(); err != nil {
			return 0, err
		}
	}
	if got := int(after - before); got != each*n {
		return 0, fmt.Errorf("of %d frames %d arrived, not %d", n, got, each*n)
	}
	return ns, nil
}

// ask sends ARP questions out of a device on the wire, 0 for none, of each of
// which the sink must get so many copies, and returns what one took, in
// nanoseconds.
func (s *side) ask(index int, k *sink, copies int) (ns float64, err error) {
	g, err := newGenerator(index, rotation{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	cpus, err := findCPUs()
	if err != nil {
		return 0, err
	}
	b := &bench{cpus: cpus}
	c := calls{frame: question(), copies: copies, batch: max(copiesAtOnce/max(copies, 16), 1)}
	var spent []float64
	for range 2 { // the first to warm up
		if spent, err = b.call(s, g, k, c); err != nil {
			return 0, err
		}
	}
	return spent[0], nil
}
