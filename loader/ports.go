package loader

import (
	"errors"
	"fmt"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// A port is a sub-interface whose unicast is handed to its device's driver, so
// that an XDP program there sees it, and an AF_XDP socket gets it: from the wire
// by XDP redirect, before the host spends anything on a socket buffer, and from
// siblings by the host leg's queue. All others are delivered behind the driver,
// past native XDP, which costs a kernel stack least.
//
// What a program there sends back by XDP_TX goes nowhere: a veth wakes the other
// end for that only if a program is there, too, and one on the host leg would
// have all that is sent by the stack copied.

// Features by the kernel's names.
const (
	featureGRO   = "rx-gro"
	featureStrip = "rx-vlan-hw-parse"
)

var errNetkitPort = fmt.Errorf("delivery xdp: %w: a netkit's driver has no XDP; it takes a sub-interface made with leg veth", ErrUnsupported)

var errKernelPort = fmt.Errorf("delivery xdp: %w: the kernel rung has it not; leave it out, or ask for datapath xdp", ErrUnsupported)

// canPort refuses the modes that have more to do for a frame than to find whose
// it is.
func canPort(mode maps.Mode) error {
	switch mode {
	case maps.Bridge, maps.VEPA, maps.Private, maps.L2:
		return nil
	}
	return fmt.Errorf("delivery xdp: %w: mode %s has it not; macvlan's bridge, vepa and private have, and ipvlan's l2", ErrUnsupported, mode)
}

// checkPort refuses a parent that cannot redirect, or would lose the VLAN tags
// of what it redirects: those that it has stripped stand beside the frame, where
// XDP does not see them.
func checkPort(parent string, rung Rung, mode maps.Mode) error {
	if err := canPort(mode); err != nil {
		return err
	}
	if rung.Rung != maps.RungXDP {
		return fmt.Errorf("delivery xdp: %w: %s stands on rung %s (%s), and it takes rung xdp; detach it, and say: datapath xdp",
			ErrUnsupported, parent, rung, rung.Reason)
	}
	strips, err := feature(parent, featureStrip)
	if err != nil {
		return err
	}
	if strips {
		return fmt.Errorf("delivery xdp: %w: %s takes VLAN tags off, and XDP would not see them; turn that off: ethtool -K %[2]s rxvlan off",
			ErrUnsupported, parent)
	}
	return nil
}

// feature tells whether a device in the calling thread's network namespace has a
// feature turned on.
func feature(dev, name string) (bool, error) {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return false, fmt.Errorf("open ethtool: %w", err)
	}
	defer tool.Close()
	features, err := tool.Features(dev)
	if err != nil {
		return false, fmt.Errorf("read features of %s: %w", dev, err)
	}
	return features[name], nil
}

// openPort makes a sub-interface the end of XDP redirects, and enters its host
// leg. A veth takes redirected frames while its peer has a queue for them, which
// GRO asks for, or a program, which may come and go. From Linux 6.3 on a veth
// looks at its peer's GRO when it is set up, or when that changes while the peer
// is up.
func (p *parent) openPort(id maps.ID, sub maps.Sub, in *space, name string) error {
	if err := in.within(func() error { return setGRO(name, true) }); err != nil {
		return err
	}
	return p.maps.PutPort(id, sub.Leg)
}

// setGRO turns GRO of a device in the calling thread's network namespace on or
// off.
func setGRO(dev string, on bool) error { return setFeature(dev, featureGRO, on) }

func setFeature(dev, name string, on bool) error {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open ethtool: %w", err)
	}
	defer tool.Close()
	if err := tool.Change(dev, map[string]bool{name: on}); err != nil {
		return fmt.Errorf("set %s of %s: %w", name, dev, err)
	}
	return nil
}

// SetPort has a sub-interface's unicast pass an XDP program on its device, or
// go the usual way again.
func (h *Host) SetPort(sel Selector, on bool) error {
	return h.change(sel,
		func(kernelLink) error {
			if !on {
				return nil
			}
			return errKernelPort
		},
		func(p *parent, l Link, sub maps.Sub) error { return p.setPort(l, sub, on) })
}

// setPort writes the record first: what an interruption leaves undone behind it
// is done by the next command that follows.
func (p *parent) setPort(l Link, sub maps.Sub, on bool) error {
	if on && sub.Netkit {
		return errNetkitPort
	}
	if on {
		if err := errors.Join(checkPort(p.rec.Name, Rung{p.rec.Rung, p.rec.Reason}, sub.Mode), l.VLAN.canPort()); err != nil {
			return err
		}
	}
	dev, err := p.h.legs(sub.Leg, l.Leg)
	if err != nil {
		return err
	}
	if dev == nil {
		return gone(l.Name)
	}
	sub.Place = maps.Port
	if !on {
		sub.Place = maps.Local
		sub.Place = placeOf(sub, dev.nsid >= 0)
	}
	if err := p.maps.PutSub(l.ID, sub); err != nil {
		return err
	}
	return p.followPort(l.ID, sub, dev)
}

// followPort makes of a sub-interface's device what its record says. That it
// has been done, the host leg's MTU tells, which comes last.
func (p *parent) followPort(id maps.ID, sub maps.Sub, dev *legs) error {
	port := sub.Place == maps.Port
	if port == (dev.host.Attrs().MTU != legMTU) {
		if port {
			return p.keepGRO(sub, dev)
		}
		return nil
	}
	if err := p.reindex(sub); err != nil {
		return err
	}
	in, err := p.h.spaceByID(dev.nsid)
	if err != nil {
		return err
	}
	defer in.close()
	mtu := legMTU
	if port {
		mtu = max(portLegMTU, p.rec.MTU)
		err = p.openPort(id, sub, in, dev.inner.Attrs().Name)
		if err == nil && dev.inner.Attrs().RawFlags&unix.IFF_UP == 0 {
			err = p.reopen(dev.host)
		}
	} else {
		err = errors.Join(p.maps.DeletePort(id),
			in.within(func() error { return setGRO(dev.inner.Attrs().Name, false) }))
	}
	if err != nil {
		return err
	}
	err = p.h.nl.LinkSetMTU(dev.host, mtu)
	if errors.Is(err, unix.EINVAL) && !port {
		return nil // a program on the inner leg does not allow it; a later command finds it gone
	}
	if err != nil {
		return fmt.Errorf("set mtu of %s: %w", dev.host.Attrs().Name, err)
	}
	return nil
}

// keepGRO turns GRO of a port on again, without which nothing would reach it, unless
// a program there does as well.
func (p *parent) keepGRO(sub maps.Sub, dev *legs) error {
	if xdp := dev.inner.Attrs().Xdp; xdp != nil && xdp.Attached {
		return nil
	}
	in, err := p.h.spaceByID(dev.nsid)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrPrivilege) {
		return nil // who made it a port could enter it
	}
	if err != nil {
		return err
	}
	defer in.close()
	name := dev.inner.Attrs().Name
	lost := false
	err = in.within(func() error {
		on, err := feature(name, featureGRO)
		if lost = !on; on || err != nil {
			return err
		}
		return setGRO(name, true)
	})
	if err != nil || !lost {
		return err
	}
	p.h.log.Warn("somebody had turned off gro, which delivery xdp takes: turned on again", "parent", p.rec.Name, "name", sub.Name)
	if dev.inner.Attrs().RawFlags&unix.IFF_UP == 0 {
		return p.reopen(dev.host)
	}
	return nil
}

// reopen sets a host leg down and up, so that it looks at its peer anew.
func (p *parent) reopen(leg netlink.Link) error {
	if err := p.h.nl.LinkSetDown(leg); err != nil {
		return fmt.Errorf("set host leg down: %w", err)
	}
	if err := p.h.nl.LinkSetUp(leg); err != nil {
		return fmt.Errorf("set host leg up: %w", err)
	}
	return nil
}
