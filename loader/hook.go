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

	"github.com/xvlan/xvlan/maps"
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

// attachTC attaches at tc ingress: by a pinned tcx link (Linux 6.6) or, where
// that is not to be had, by a filter on the device's clsact qdisc. addClsact
// tells that the qdisc is missing and has to be added first, which is asked
// through allow so that the caller can note it.
func (h *Host) attachTC(index int, prog *ebpf.Program, pin string, allow func() error) error {
	if !h.legacyTC {
		l, err := link.AttachTCX(link.TCXOptions{Program: prog, Interface: index, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			return pinLink(l, pin)
		}
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("attach tcx: %w", err)
		}
	}
	has, err := h.hasClsact(index)
	if err != nil {
		return err
	}
	if !has {
		if err := allow(); err != nil {
			return err
		}
		if err := h.nl.QdiscAdd(clsact(index)); err != nil {
			return fmt.Errorf("add clsact qdisc: %w", err)
		}
	}
	if err := h.nl.FilterReplace(filterOf(index, prog)); err != nil {
		return fmt.Errorf("add tc filter: %w", err)
	}
	return nil
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
	if err := errors.Join(l.Detach(), l.Close()); err != nil {
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

func filterAttrs(index int) netlink.FilterAttrs {
	return netlink.FilterAttrs{
		LinkIndex: index,
		Parent:    netlink.HANDLE_MIN_INGRESS,
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
	return false
}

// rehook attaches again what somebody has detached, or whose qdisc or filter
// somebody has removed: without xvlan_tx a host leg would hand all that its
// sub-interface sends to the host's stack. The legs come first.
func (p *parent) rehook() error {
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	for i, s := range subs {
		if s.State != maps.Active {
			continue
		}
		if err := p.rehookTC(s.Leg, pinTX, p.legPin(maps.ID(i)), func() error { return nil }); err != nil {
			return err
		}
	}
	err = p.rehookTC(p.rec.Index, pinRXProg, filepath.Join(p.dir, pinRX), func() error {
		p.rec.AddClsact = true
		return p.save()
	})
	if err != nil || p.rec.Rung != maps.RungXDP {
		return err
	}
	pin := filepath.Join(p.dir, pinXDP)
	if _, err := os.Stat(pin); err == nil && !orphaned(pin) {
		return nil
	}
	return p.reattach(p.rec.Index, pinXDPProg, pin, func(prog *ebpf.Program) error { return attachXDP(p.rec.Index, prog, pin) })
}

// rehookTC is rehook for one device.
func (p *parent) rehookTC(index int, prog, pin string, allow func() error) error {
	if _, err := os.Stat(pin); err == nil {
		if !orphaned(pin) {
			return nil
		}
	} else if has, err := p.h.hasFilter(index); has || err != nil {
		return err
	}
	return p.reattach(index, prog, pin, func(prog *ebpf.Program) error { return p.h.attachTC(index, prog, pin, allow) })
}

// reattach attaches a pinned program to a device, which may have gone itself.
func (p *parent) reattach(index int, name, pin string, attach func(prog *ebpf.Program) error) error {
	dev, err := p.h.nl.LinkByIndex(index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find device %d: %w", index, err)
	}
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(p.dir, name), nil)
	if err != nil {
		return fmt.Errorf("open pinned program: %w", err)
	}
	defer prog.Close()
	if err := unpin(pin); err != nil {
		return err
	}
	if err := attach(prog); err != nil {
		return fmt.Errorf("attach %s to %s again: %w", name, dev.Attrs().Name, err)
	}
	p.h.log.Warn("somebody had detached a program: attached again", "parent", p.rec.Name, "device", dev.Attrs().Name, "program", name)
	return nil
}

// hasFilter tells whether a device has a filter of ours at clsact ingress.
func (h *Host) hasFilter(index int) (bool, error) {
	l, err := h.nl.LinkByIndex(index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return true, nil // nothing to attach to
	}
	if err != nil {
		return false, fmt.Errorf("find device %d: %w", index, err)
	}
	filters, err := whole(func() ([]netlink.Filter, error) { return h.nl.FilterList(l, netlink.HANDLE_MIN_INGRESS) })
	if err != nil {
		return false, fmt.Errorf("list filters of %s: %w", l.Attrs().Name, err)
	}
	return slices.ContainsFunc(filters, func(f netlink.Filter) bool { return f.Attrs().Priority == filterPrio }), nil
}
