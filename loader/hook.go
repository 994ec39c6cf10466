package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterPrio is the priority of our clsact filters, by which they are known.
const filterPrio = 0x7876

// unsupported tells the errors by which a driver or kernel says that it cannot
// do a thing, from those that say it will not now (EBUSY, EPERM). Drivers
// answer EINVAL, and veth ERANGE, to an MTU too large for their XDP.
func unsupported(err error) bool {
	return errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EINVAL)
}

// attachXDP attaches natively and pins the link.
func attachXDP(index int, prog *ebpf.Program, pin string) error {
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: index, Flags: link.XDPDriverMode})
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("attach xdp: %w: it holds another XDP program; detach that, or ask for --datapath tc", ErrBusy)
	}
	if err != nil {
		return fmt.Errorf("attach xdp: %w", err)
	}
	return pinLink(l, pin)
}

// attachTC attaches at tc ingress or egress: by a pinned tcx link (Linux 6.6) or,
// where that is not to be had, by a filter on the device's clsact qdisc. addClsact
// tells that the qdisc is missing and has to be added first, which is asked
// through allow so that the caller can note it.
func (h *Host) attachTC(at hook, prog *ebpf.Program, allow func() error) error {
	if !h.legacyTC {
		way := ebpf.AttachTCXIngress
		if at.egress {
			way = ebpf.AttachTCXEgress
		}
		var l link.Link
		err := hurried(func() (err error) {
			l, err = link.AttachTCX(link.TCXOptions{Program: prog, Interface: at.index, Attach: way})
			return err
		})
		if err == nil {
			return pinLink(l, at.pin)
		}
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("attach tcx: %w", err)
		}
	}
	has, err := h.hasClsact(at.index)
	if err != nil {
		return err
	}
	if !has {
		if err := allow(); err != nil {
			return err
		}
		if err := h.nl.QdiscAdd(clsact(at.index)); err != nil {
			return fmt.Errorf("add clsact qdisc: %w", err)
		}
	}
	if err := h.nl.FilterReplace(filterOf(at, prog)); err != nil {
		return fmt.Errorf("add tc filter: %w", err)
	}
	return nil
}

// attachNetkit attaches to what the inner leg of a netkit pair sends, by the
// host leg, and pins the link.
func attachNetkit(index int, prog *ebpf.Program, pin string) error {
	var l link.Link
	err := hurried(func() (err error) {
		l, err = link.AttachNetkit(link.NetkitOptions{Program: prog, Interface: index, Attach: ebpf.AttachNetkitPeer})
		return err
	})
	if err != nil {
		return fmt.Errorf("attach to netkit: %w", err)
	}
	return pinLink(l, pin)
}

func pinLink(l link.Link, pin string) error {
	if err := l.Pin(pin); err != nil {
		return errors.Join(fmt.Errorf("pin link: %w", err), l.Close())
	}
	return l.Close()
}

// detachLink detaches what a pinned link, if there is one, has attached. One
// that is only unpinned holds on until the kernel gets round to it.
func detachLink(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link: %w", err)
	}
	if err := errors.Join(hurried(l.Detach), l.Close()); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}

func clsact(index int) netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

// filterParent is the side of a device's clsact qdisc that a filter is on.
func filterParent(egress bool) uint32 {
	if egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func filterAttrs(index int, egress bool) netlink.FilterAttrs {
	return netlink.FilterAttrs{
		LinkIndex: index,
		Parent:    filterParent(egress),
		Handle:    1,
		Protocol:  unix.ETH_P_ALL,
		Priority:  filterPrio,
	}
}

// hasClsact tells whether a device has a clsact qdisc. An old-style ingress
// qdisc in its place will do as well: filters attach to either.
func (h *Host) hasClsact(index int) (bool, error) {
	l, err := h.nl.LinkByIndex(index)
	if err != nil {
		return false, fmt.Errorf("find device %d: %w", index, err)
	}
	qdiscs, err := whole(func() ([]netlink.Qdisc, error) { return h.nl.QdiscList(l) })
	if err != nil {
		return false, fmt.Errorf("list qdiscs of %s: %w", l.Attrs().Name, err)
	}
	for _, q := range qdiscs {
		if t := q.Type(); t == "clsact" || t == "ingress" {
			return true, nil
		}
	}
	return false, nil
}

// detachClsact removes our filter and, where we had added it and nobody has
// used it since, the qdisc.
func (h *Host) detachClsact(l netlink.Link, added bool) error {
	has, err := h.hasClsact(l.Attrs().Index)
	if err != nil || !has {
		return err
	}
	var others bool
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := whole(func() ([]netlink.Filter, error) { return h.nl.FilterList(l, parent) })
		if err != nil {
			return fmt.Errorf("list filters of %s: %w", l.Attrs().Name, err)
		}
		for _, f := range filters {
			if f.Attrs().Priority != filterPrio {
				others = true
				continue
			}
			if err := h.nl.FilterDel(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove filter from %s: %w", l.Attrs().Name, err)
			}
		}
	}
	if !added || others {
		return nil
	}
	if err := h.nl.QdiscDel(clsact(l.Attrs().Index)); err != nil {
		return fmt.Errorf("remove clsact qdisc from %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// orphaned tells that a pinned link's device is gone, or that somebody has
// detached it.
func orphaned(pin string) bool {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false
	}
	if tcx := info.TCX(); tcx != nil {
		return tcx.Ifindex == 0
	}
	if xdp := info.XDP(); xdp != nil {
		return xdp.Ifindex == 0
	}
	netkit := info.Netkit()
	return netkit != nil && netkit.Ifindex == 0
}

// rehook attaches again what somebody has detached, or whose qdisc or filter
// somebody has removed: without xvlan_tx a host leg would hand all that its
// sub-interface sends to the host's stack. The legs come first.
func (p *parent) rehook() error {
	hooks, err := p.hooks()
	if err != nil {
		return err
	}
	for _, at := range hooks {
		if there, err := p.h.attached(at); err != nil {
			return err
		} else if there {
			continue
		}
		if err := p.reattach(at); err != nil {
			return err
		}
	}
	return nil
}

// attached tells whether a program is where it is to be.
func (h *Host) attached(at hook) (bool, error) {
	if _, err := os.Stat(at.pin); err == nil {
		return !orphaned(at.pin), nil
	}
	if at.link != nil {
		return false, nil
	}
	return h.hasFilter(at.index, at.egress)
}

// reattach attaches a pinned program to a device, which may have gone itself.
func (p *parent) reattach(at hook) error {
	dev, err := p.h.nl.LinkByIndex(at.index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find device %d: %w", at.index, err)
	}
	if err := unpin(at.pin); err != nil {
		return err
	}
	if err := p.attach(at); err != nil {
		return fmt.Errorf("attach %s to %s again: %w", at.prog, dev.Attrs().Name, err)
	}
	p.h.log.Warn("somebody had detached a program: attached again", "parent", p.rec.Name, "device", dev.Attrs().Name, "program", at.prog)
	return nil
}

// attach attaches a pinned program.
func (p *parent) attach(at hook) error {
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(p.dir, at.prog), nil)
	if err != nil {
		return fmt.Errorf("open pinned program: %w", err)
	}
	defer prog.Close()
	if at.link != nil {
		return at.link(at.index, prog, at.pin)
	}
	return p.h.attachTC(at, prog, func() error {
		p.rec.AddClsact = p.rec.AddClsact || at.prog == pinRXProg
		return p.save()
	})
}

// hasFilter tells whether a device has a filter of ours on a side of clsact.
func (h *Host) hasFilter(index int, egress bool) (bool, error) {
	l, err := h.nl.LinkByIndex(index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return true, nil // nothing to attach to
	}
	if err != nil {
		return false, fmt.Errorf("find device %d: %w", index, err)
	}
	filters, err := whole(func() ([]netlink.Filter, error) { return h.nl.FilterList(l, filterParent(egress)) })
	if err != nil {
		return false, fmt.Errorf("list filters of %s: %w", l.Attrs().Name, err)
	}
	return slices.ContainsFunc(filters, func(f netlink.Filter) bool { return f.Attrs().Priority == filterPrio }), nil
}
