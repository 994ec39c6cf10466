package lab

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
)

// VethOptions says how a veth pair differs from the kernel's defaults, which
// the zero value stands for.
type VethOptions struct {
	MTU        int
	MACA, MACB net.HardwareAddr
	Queues     int // receive and transmit queues of either end
}

// Veth joins two namespaces by a veth pair, both ends up. The two may be the
// same.
func Veth(tb testing.TB, a *Netns, nameA string, b *Netns, nameB string) {
	tb.Helper()
	VethWith(tb, a, nameA, b, nameB, VethOptions{})
}

// VethWith is Veth with options.
func VethWith(tb testing.TB, a *Netns, nameA string, b *Netns, nameB string, opts VethOptions) {
	tb.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	attrs.MTU = opts.MTU
	attrs.HardwareAddr = opts.MACA
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         nameB,
		PeerHardwareAddr: opts.MACB,
		PeerNamespace:    netlink.NsFd(b.Fd()),
	}
	if opts.MTU > 0 {
		veth.PeerMTU = uint32(opts.MTU)
	}
	if opts.Queues > 0 {
		veth.NumTxQueues, veth.NumRxQueues = opts.Queues, opts.Queues
		veth.PeerNumTxQueues, veth.PeerNumRxQueues = uint32(opts.Queues), uint32(opts.Queues)
	}
	if err := a.handle.LinkAdd(veth); err != nil {
		tb.Fatalf("add veth %s in %s, %s in %s: %v", nameA, a.name, nameB, b.name, err)
	}
	a.Up(tb, nameA)
	b.Up(tb, nameB)
}

// NetkitWith joins two namespaces by a netkit pair in mode L2, both ends up. The
// first end is the primary; what the second sends is dropped unless a program on
// it says otherwise. Queues are not heeded.
func NetkitWith(tb testing.TB, a *Netns, nameA string, b *Netns, nameB string, opts VethOptions) {
	tb.Helper()
	attrs, peer := netlink.NewLinkAttrs(), netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = nameA, opts.MTU, opts.MACA
	peer.Name, peer.MTU, peer.HardwareAddr = nameB, opts.MTU, opts.MACB
	peer.Namespace = netlink.NsFd(b.Fd())
	netkit := &netlink.Netkit{
		LinkAttrs: attrs, Mode: netlink.NETKIT_MODE_L2, PeerPolicy: netlink.NETKIT_POLICY_BLACKHOLE,
		Scrub: netlink.NETKIT_SCRUB_DEFAULT, PeerScrub: netlink.NETKIT_SCRUB_DEFAULT,
	}
	netkit.SetPeerAttrs(&peer)
	if err := a.handle.LinkAdd(netkit); err != nil {
		tb.Fatalf("add netkit %s in %s, %s in %s: %v", nameA, a.name, nameB, b.name, err)
	}
	a.Up(tb, nameA)
	b.Up(tb, nameB)
}
