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
