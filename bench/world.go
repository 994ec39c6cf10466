package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// Names inside a side's namespaces; sub-interfaces are c1, c2, ...
const (
	wireDev   = "wire" // the far end of the parent's cable
	parentDev = "parent"
)

// kind says what a side's sub-interfaces are made with.
type kind string

const (
	macvlan kind = "macvlan" // the kernel's, bridge mode
	xvlan   kind = "xvlan"
	// A parent without any, to measure what both have in common.
	bareXDP kind = "barexdp"
	bareTC  kind = "baretc"
)

// A plan is what every side of a world has alike.
type plan struct {
	subs int
	xdp  bool // the parent of xvlan on the rung xdp, dropping what is for nobody
	gro  bool // frames come in through NAPI and GRO, as from a NIC
}

// A side is a parent on a cable, with sub-interfaces: c1 in a box of its own,
// the others together in a second one.
type side struct {
	kind       kind
	wire, host *space
	boxes      []*space
	loader     *loader.Host
}

// A world is the sides that are compared, alike but for their kind.
type world struct {
	plan  plan
	sides []*side
}

func wireMAC() net.HardwareAddr     { return net.HardwareAddr{2, 0x57, 0, 0, 0, 0xfe} }
func parentMAC() net.HardwareAddr   { return net.HardwareAddr{2, 0x57, 0, 0, 0, 0xfd} }
func subMAC(i int) net.HardwareAddr { return net.HardwareAddr{2, 0x57, 0, 0, 0, byte(i)} }

func wireAddr() netip.Addr     { return netip.AddrFrom4([4]byte{10, 57, 0, 254}) }
func subAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 57, 0, byte(i)}) }

func subName(i int) string { return fmt.Sprintf("c%d", i) }

// newWorld builds sides of the given kinds. Close also takes away what an
// error left.
func newWorld(p plan, kinds ...kind) (*world, error) {
	w := &world{plan: p}
	for _, k := range kinds {
		s := &side{kind: k}
		w.sides = append(w.sides, s)
		if err := s.build(p, fmt.Sprintf("xvb%d-%s", os.Getpid(), k)); err != nil {
			return nil, errors.Join(fmt.Errorf("build the %s side: %w", k, err), w.close())
		}
	}
	return w, nil
}

func (w *world) close() error {
	var errs []error
	for _, s := range w.sides {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// box is the namespace of sub-interface i, counted from 1.
func (s *side) box(i int) *space { return s.boxes[min(i, 2)-1] }

func (s *side) build(p plan, prefix string) (err error) {
	if s.wire, err = newSpace(prefix + "-wire"); err != nil {
		return err
	}
	if s.host, err = newSpace(prefix + "-host"); err != nil {
		return err
	}
	if err := s.cable(p); err != nil {
		return err
	}
	if s.kind == bareXDP || s.kind == bareTC {
		return nil
	}
	for i := 1; i <= min(p.subs, 2); i++ {
		box, err := newSpace(fmt.Sprintf("%s-box%d", prefix, i))
		if err != nil {
			return err
		}
		s.boxes = append(s.boxes, box)
	}
	if s.kind == macvlan {
		err = s.addMacvlans(p)
	} else {
		err = s.host.do(func() error { return s.addXvlans(p) })
	}
	if err != nil {
		return err
	}
	return s.introduce(p)
}

// cable joins wire and parent.
func (s *side) cable(p plan) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = wireDev, wireMAC()
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         parentDev,
		PeerHardwareAddr: parentMAC(),
		PeerNamespace:    netlink.NsFd(s.host.ns),
	}
	if err := s.wire.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	if err := s.offloads(p.gro, true); err != nil {
		return err
	}
	if err := s.setUp(s.wire, wireDev); err != nil {
		return err
	}
	if err := s.address(s.wire, wireDev, wireAddr()); err != nil {
		return err
	}
	return s.setUp(s.host, parentDev)
}

// offloads sets how frames reach the parent: through NAPI and GRO or straight
// into the backlog, as super-packets or one by one.
func (s *side) offloads(gro, super bool) error {
	return errors.Join(
		s.host.offload(parentDev, offloadGRO, gro),
		s.wire.offload(wireDev, offloadGSO, super),
		s.wire.offload(wireDev, offloadTSO, super),
	)
}

func (s *side) setUp(in *space, dev string) error {
	l, err := in.link(dev)
	if err != nil {
		return err
	}
	if err := in.nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", dev, err)
	}
	return nil
}

func (s *side) address(in *space, dev string, a netip.Addr) error {
	l, err := in.link(dev)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := in.nl.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", a, dev, err)
	}
	return nil
}

func (s *side) addMacvlans(p plan) error {
	parent, err := s.host.link(parentDev)
	if err != nil {
		return err
	}
	for i := 1; i <= p.subs; i++ {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex, attrs.HardwareAddr = subName(i), parent.Attrs().Index, subMAC(i)
		attrs.Namespace = netlink.NsFd(s.box(i).ns)
		if err := s.host.nl.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
			return fmt.Errorf("add macvlan: %w", err)
		}
		if err := s.address(s.box(i), subName(i), subAddr(i)); err != nil {
			return err
		}
		if err := s.setUp(s.box(i), subName(i)); err != nil {
			return err
		}
	}
	return nil
}

// addXvlans runs in the host's namespace.
func (s *side) addXvlans(p plan) (err error) {
	if s.loader, err = loader.Open(slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	want := loader.TC
	if p.xdp {
		want = loader.XDP
	}
	unknown := loader.UnknownPass
	if p.xdp {
		unknown = loader.UnknownDrop
	}
	if err := s.loader.Attach(parentDev, loader.AttachSpec{Datapath: want, Unknown: unknown}); err != nil {
		return err
	}
	for i := 1; i <= p.subs; i++ {
		err := s.loader.Add(loader.LinkSpec{
			Parent: parentDev,
			Name:   subName(i),
			Kind:   maps.Macvlan,
			Mode:   maps.Bridge,
			MAC:    subMAC(i),
			Addrs:  []netip.Prefix{netip.PrefixFrom(subAddr(i), 24)},
			Netns:  s.box(i).name,
			Up:     true,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// introduce enters the neighbours that are measured, so that no ARP is seen.
func (s *side) introduce(p plan) error {
	errs := []error{s.neighbour(s.wire, wireDev, subAddr(1), subMAC(1)), s.neighbour(s.box(1), subName(1), wireAddr(), wireMAC())}
	if p.subs > 1 {
		errs = append(errs, s.neighbour(s.box(1), subName(1), subAddr(2), subMAC(2)),
			s.neighbour(s.box(2), subName(2), subAddr(1), subMAC(1)))
	}
	return errors.Join(errs...)
}

func (s *side) neighbour(in *space, dev string, a netip.Addr, mac net.HardwareAddr) error {
	l, err := in.link(dev)
	if err != nil {
		return err
	}
	n := &netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
	if err := in.nl.NeighAdd(n); err != nil {
		return fmt.Errorf("add neighbour %s: %w", a, err)
	}
	return nil
}

func (s *side) close() error {
	var errs []error
	if s.loader != nil {
		errs = append(errs, s.host.do(func() error { return s.loader.Detach(parentDev) }))
		s.loader.Close()
	}
	for _, sp := range append(s.boxes, s.host, s.wire) {
		if sp != nil {
			errs = append(errs, sp.close())
		}
	}
	return errors.Join(errs...)
}
