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
	macvlan  kind = "macvlan" // the kernel's, bridge mode
	macvtap  kind = "macvtap"
	ipvlan   kind = "ipvlan" // the kernel's, mode l2
	ipvlanL3 kind = "ipvlanl3"
	bridge   kind = "bridge" // the kernel's, with veth pairs
	xvlan    kind = "xvlan"  // as macvlan
	xvlanIP  kind = "xvlanip"
	xvlanL3  kind = "xvlanl3"
	// The same as macvlan, for parents with rules that count.
	macvlanNFT    kind = "macvlannft"
	macvlanFlower kind = "macvlanflower"
	// A parent without any, to measure what all have in common.
	bareXDP kind = "barexdp"
	bareTC  kind = "baretc"
)

// shared tells the kinds whose sub-interfaces have the parent's MAC.
func (k kind) shared() bool { return k.ipvlan() || k == xvlanIP || k == xvlanL3 }

func (k kind) ipvlan() bool { return k == ipvlan || k == ipvlanL3 }

// routed tells the kinds whose sub-interfaces are routed for by the parent's
// namespace.
func (k kind) routed() bool { return k == ipvlanL3 || k == xvlanL3 }

// A plan is what every side of a world has alike.
type plan struct {
	subs   int
	addrs  int    // how many more addresses they have, addrsEach of them c1, and so on
	xdp    bool   // the parent of xvlan on the rung xdp, dropping what is for nobody
	netkit bool   // xvlan's are netkit pairs instead of veth
	gro    bool   // frames come in through NAPI and GRO, as from a NIC
	guard  bool   // xvlan's have a source guard
	vlan   uint16 // that the sub-interfaces are in; the kernel's are on a VLAN device
	port   bool   // xvlan's are delivered to by XDP redirect; takes xdp
}

// A side is a parent on a cable, with sub-interfaces: c1 in a box of its own,
// the others together in a second one.
type side struct {
	kind       kind
	wire, host *space
	boxes      []*space
	loader     *loader.Host
	inside     *sink // of the sub-interfaces, if sinkAll was called
}

// A world is the sides that are compared, alike but for their kind.
type world struct {
	plan  plan
	sides []*side
}

func wireMAC() net.HardwareAddr     { return net.HardwareAddr{2, 0x57, 0xff, 0, 0, 0xfe} }
func parentMAC() net.HardwareAddr   { return net.HardwareAddr{2, 0x57, 0xff, 0, 0, 0xfd} }
func nobodyMAC() net.HardwareAddr   { return net.HardwareAddr{2, 0x57, 0xee, 0, 0, 0} }
func subMAC(i int) net.HardwareAddr { return net.HardwareAddr{2, 0x57, 0, 0, byte(i >> 8), byte(i)} }

func wireAddr() netip.Addr     { return netip.AddrFrom4([4]byte{10, 57, 255, 254}) }
func parentAddr() netip.Addr   { return netip.AddrFrom4([4]byte{10, 57, 255, 253}) }
func subAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 57, byte(i >> 8), byte(i)}) }

// moreAddr are the further addresses of sub-interfaces, counted from 0.
func moreAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 64, byte(i >> 8), byte(i)}) }

const (
	addrBits = 16 // of the network that wireAddr and subAddr are in
	// addrsEach is how many further addresses a sub-interface has at the most.
	// The kernel keeps those of a device in a list, and looks through it for
	// each that is added.
	addrsEach = 256
)

// more are the further addresses of sub-interface i, counted from 1.
func (p plan) more(i int) (addrs []netip.Addr) {
	for j := (i - 1) * addrsEach; j < min(i*addrsEach, p.addrs); j++ {
		addrs = append(addrs, moreAddr(j))
	}
	return addrs
}

func subName(i int) string { return fmt.Sprintf("c%d", i) }

// worlds numbers them: several may be there at a time.
var worlds int

// newWorld builds sides of the given kinds. Close also takes away what an
// error left.
func newWorld(p plan, kinds ...kind) (*world, error) {
	w := &world{plan: p}
	worlds++
	for _, k := range kinds {
		s := &side{kind: k}
		w.sides = append(w.sides, s)
		if err := s.build(p, fmt.Sprintf("xvb%d-%d-%s", os.Getpid(), worlds, k)); err != nil {
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
	switch s.kind {
	case xvlan, xvlanIP, xvlanL3:
		err = s.host.do(func() error { return s.addXvlans(p) })
	default:
		err = s.addKernels(p)
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
	if err := s.address(s.wire, wireDev, addrBits, wireAddr()); err != nil {
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
		s.host.offload(parentDev, offloadStrip, false), // as xvlan's delivery xdp takes it
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

func (s *side) address(in *space, dev string, bits int, addrs ...netip.Addr) error {
	l, err := in.link(dev)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, 32)}}
		if err := in.nl.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a, dev, err)
		}
	}
	return nil
}

// addKernels adds what kernel drivers make.
func (s *side) addKernels(p plan) error {
	parent, err := s.host.link(parentDev)
	if err != nil {
		return err
	}
	if p.vlan != 0 {
		if parent, err = s.addVLAN(parent, p.vlan); err != nil {
			return err
		}
	}
	if s.kind == bridge {
		if parent, err = s.addBridge(parent); err != nil {
			return err
		}
	}
	for i := 1; i <= p.subs; i++ {
		if err := s.addKernel(parent, i); err != nil {
			return fmt.Errorf("add %s %d: %w", s.kind, i, err)
		}
		if err := s.address(s.box(i), subName(i), addrBits, subAddr(i)); err != nil {
			return err
		}
		if err := s.setUp(s.box(i), subName(i)); err != nil {
			return err
		}
		if err := s.address(s.box(i), subName(i), 32, p.more(i)...); err != nil {
			return err
		}
	}
	return nil
}

// addVLAN puts a VLAN device on the parent.
func (s *side) addVLAN(parent netlink.Link, id uint16) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "vlan", parent.Attrs().Index
	if err := s.host.nl.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: int(id)}); err != nil {
		return nil, fmt.Errorf("add vlan device: %w", err)
	}
	if err := s.setUp(s.host, attrs.Name); err != nil {
		return nil, err
	}
	return s.host.link(attrs.Name)
}

// addKernel adds one sub-interface; of a bridge, its other end is a port.
func (s *side) addKernel(parent netlink.Link, i int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Namespace = subName(i), netlink.NsFd(s.box(i).ns)
	switch s.kind {
	case macvlan, macvlanNFT, macvlanFlower:
		attrs.ParentIndex, attrs.HardwareAddr = parent.Attrs().Index, subMAC(i)
		return s.host.nl.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE})
	case macvtap:
		attrs.ParentIndex, attrs.HardwareAddr, attrs.TxQLen = parent.Attrs().Index, subMAC(i), tapQueue
		return s.host.nl.LinkAdd(&netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}})
	case ipvlan, ipvlanL3:
		attrs.ParentIndex = parent.Attrs().Index
		mode := netlink.IPVLAN_MODE_L2
		if s.kind == ipvlanL3 {
			mode = netlink.IPVLAN_MODE_L3
		}
		return s.host.nl.LinkAdd(&netlink.IPVlan{LinkAttrs: attrs, Mode: mode})
	case bridge:
		return s.addPort(parent, i)
	}
	return errors.New("no such kind")
}

// addXvlans runs in the host's namespace.
func (s *side) addXvlans(p plan) (err error) {
	if s.loader, err = loader.Open(slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	spec := loader.AttachSpec{
		Datapath: loader.TC, Unknown: loader.UnknownPass,
		Capacity: uint32(max(loader.DefaultCapacity, p.subs, p.addrs/16)), // there is room for 16 addresses each
	}
	if p.xdp {
		spec.Datapath, spec.Unknown = loader.XDP, loader.UnknownDrop
	}
	if err := s.loader.Attach(parentDev, spec); err != nil {
		return err
	}
	for i := 1; i <= p.subs; i++ {
		sub := loader.LinkSpec{
			Parent: parentDev,
			Name:   subName(i),
			Kind:   maps.Ipvlan,
			Mode:   maps.L2,
			Addrs:  []netip.Prefix{netip.PrefixFrom(subAddr(i), addrBits)},
			Netns:  s.box(i).name,
			Up:     true,
			Port:   p.port,
			Netkit: p.netkit,
		}
		if p.vlan != 0 {
			sub.VLAN = loader.VLANSpec{ID: &p.vlan}
		}
		if p.guard {
			sub.Guard.Guard = &maps.Guard{On: true}
		}
		switch s.kind {
		case xvlan:
			sub.Kind, sub.Mode, sub.MAC = maps.Macvlan, maps.Bridge, subMAC(i)
		case xvlanL3:
			sub.Mode = maps.L3
		}
		for _, a := range p.more(i) {
			sub.Addrs = append(sub.Addrs, netip.PrefixFrom(a, 32))
		}
		if err := s.loader.Add(sub); err != nil {
			return err
		}
	}
	return nil
}

// macOf is the MAC that sub-interface i is reached by.
func (s *side) macOf(i int) net.HardwareAddr {
	if s.kind.shared() {
		return parentMAC()
	}
	return subMAC(i)
}

// introduce enters the neighbours that are measured, so that no ARP is seen.
func (s *side) introduce(p plan) error {
	errs := []error{s.neighbour(s.wire, wireDev, subAddr(1), s.macOf(1))}
	if s.kind.routed() {
		errs = append(errs, s.address(s.host, parentDev, addrBits, parentAddr()),
			s.neighbour(s.host, parentDev, wireAddr(), wireMAC()))
		return errors.Join(errs...)
	}
	errs = append(errs, s.neighbour(s.box(1), subName(1), wireAddr(), wireMAC()))
	if p.subs > 1 {
		errs = append(errs, s.neighbour(s.box(1), subName(1), subAddr(2), s.macOf(2)),
			s.neighbour(s.box(2), subName(2), subAddr(1), s.macOf(1)))
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

// sinkAll lets the sub-interfaces drop and count what they get.
func (s *side) sinkAll(subs int) (err error) {
	if s.inside, err = newSink(ingress); err != nil {
		return err
	}
	for i := 1; i <= subs; i++ {
		if err := s.inside.on(s.box(i), subName(i)); err != nil {
			return err
		}
	}
	return nil
}

func (s *side) close() error {
	var errs []error
	if s.inside != nil {
		errs = append(errs, s.inside.close())
	}
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
