package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// DeviceChange is what plain `ip link set` could change of a sub-interface's
// device as well.
type DeviceChange struct {
	MAC net.HardwareAddr // nil: stays
	MTU int              // 0: stays
	Up  *bool            // nil: stays
}

// SetDevice changes a sub-interface's device, wherever it is, and follows that.
func (h *Host) SetDevice(sel Selector, c DeviceChange) error {
	return h.change(sel,
		func(k kernelLink) error {
			in, err := k.open()
			if err != nil {
				return err
			}
			defer in.close()
			return in.setDevice(k.link, c)
		},
		func(p *parent, l Link, sub maps.Sub) error {
			if err := p.sure(func() error { return p.ownMAC(l, c.MAC) }); err != nil {
				return err
			}
			err := p.inside(l, sub, func(in *space, dev netlink.Link) error { return in.setDevice(dev, c) })
			if err != nil {
				return err
			}
			guard := l.Guard
			guard.On = guard.On && c.MAC == nil // which would not follow
			_, err = p.followOne(l.ID, sub, guard)
			return err
		})
}

func (s *space) setDevice(dev netlink.Link, c DeviceChange) error {
	name := dev.Attrs().Name
	if c.MAC != nil {
		if err := s.nl.LinkSetHardwareAddr(dev, c.MAC); err != nil {
			return fmt.Errorf("set address of %s: %w", name, err)
		}
	}
	if c.MTU != 0 {
		if err := s.nl.LinkSetMTU(dev, c.MTU); err != nil {
			return fmt.Errorf("set mtu of %s: %w", name, err)
		}
	}
	if c.Up == nil {
		return nil
	}
	set, word := s.nl.LinkSetDown, "down"
	if *c.Up {
		set, word = s.nl.LinkSetUp, "up"
	}
	if err := set(dev); err != nil {
		return fmt.Errorf("set %s %s: %w", name, word, err)
	}
	return nil
}

// inside runs fn with a sub-interface's device and the namespace it is in.
func (p *parent) inside(l Link, sub maps.Sub, fn func(in *space, dev netlink.Link) error) error {
	nsid, dev, err := p.h.inner(sub.Leg, l.Leg)
	if err != nil {
		return err
	}
	if dev == nil {
		return gone(l.Name)
	}
	in, err := p.h.spaceOf(l, nsid)
	if err != nil {
		return err
	}
	defer in.close()
	return fn(in, dev)
}

// ownMAC refuses a MAC that a sibling has.
func (p *parent) ownMAC(l Link, mac net.HardwareAddr) error {
	if mac == nil {
		return nil
	}
	if err := checkMAC(mac); err != nil {
		return err
	}
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	taken, err := p.macTaken(subs, l.ID, mac, l.VLAN)
	if err != nil {
		return err
	}
	if taken {
		return fmt.Errorf("address %s: %w: a sibling on %s has it; choose another", mac, ErrExists, p.rec.Name)
	}
	return nil
}

// SetAddrs makes the addresses given to a sub-interface, and set on its device,
// these. Those that it has otherwise, all on the kernel rung, stay.
func (h *Host) SetAddrs(sel Selector, addrs []netip.Prefix) error {
	if err := checkAddrs(addrs); err != nil {
		return err
	}
	return h.change(sel,
		func(k kernelLink) error {
			in, err := k.open()
			if err != nil {
				return err
			}
			defer in.close()
			l, err := h.fromKernel(k)
			if err != nil {
				return err
			}
			return in.setAddrs(k.link, l.Mode, addrs)
		},
		func(p *parent, l Link, sub maps.Sub) error { return p.setAddrs(l, sub, addrs) })
}

// setAddrs has the keys before the addresses, and lets go of them after, so
// that nobody else learns what is given. It may be interrupted and repeated.
func (p *parent) setAddrs(l Link, sub maps.Sub, addrs []netip.Prefix) error {
	if err := l.VLAN.holds(addrsOf(addrs)); err != nil {
		return err
	}
	err := p.sure(func() error {
		subs, err := p.maps.Subs()
		if err != nil {
			return err
		}
		subs = slices.Clone(subs)
		subs[l.ID].State = maps.Free // what it has itself it may have
		return p.uniqueAddrs(l.VLAN, addrsOf(addrs), subs)
	})
	if err != nil {
		return err
	}
	if sub.Mode == maps.L3S {
		for _, a := range addrs {
			if err := canStack([]netip.Addr{a.Addr()}); err != nil {
				return err
			}
		}
	}
	for i, a := range addrs {
		if err := p.maps.ReplaceAddr(sub.VLAN, a.Addr(), maps.Dest{ID: l.ID, Gen: sub.Gen, Origin: maps.Given}); err != nil {
			return errors.Join(err, p.ungive(l, sub, addrs[:i]))
		}
	}
	has, err := p.h.prefixesOf(l)
	if err != nil {
		return err
	}
	err = p.inside(l, sub, func(in *space, dev netlink.Link) error {
		for a := range has {
			if slices.Contains(addrs, a) || !slices.ContainsFunc(l.Addrs, func(x LinkAddr) bool { return x.Addr == a.Addr() && x.Origin == maps.Given }) {
				continue
			}
			if err := in.nl.AddrDel(dev, netlinkAddr(a)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("remove addr %s: %w", a, err)
			}
		}
		return in.setAddrs(dev, sub.Mode, addrs) // last: with an address the kernel takes those behind it
	})
	if err != nil {
		return err
	}
	for _, x := range l.Addrs {
		wanted := slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return a.Addr() == x.Addr })
		if x.Origin != maps.Given || wanted {
			continue
		}
		if err := p.maps.DeleteAddr(sub.VLAN, x.Addr); err != nil {
			return err
		}
	}
	if l.Guard.On {
		if _, err := p.putGuard(l.ID, l.Guard, addrsOf(addrs)); err != nil {
			return err
		}
	}
	return p.followRoutes()
}

// ungive makes addresses what they were before they were given.
func (p *parent) ungive(l Link, sub maps.Sub, addrs []netip.Prefix) error {
	var errs []error
	for _, a := range addrs {
		was := slices.IndexFunc(l.Addrs, func(x LinkAddr) bool { return x.Addr == a.Addr() })
		if was < 0 {
			errs = append(errs, p.maps.DeleteAddr(sub.VLAN, a.Addr()))
		} else {
			errs = append(errs, p.maps.ReplaceAddr(sub.VLAN, a.Addr(), maps.Dest{ID: l.ID, Gen: sub.Gen, Origin: l.Addrs[was].Origin, Until: l.Addrs[was].Until}))
		}
	}
	return errors.Join(errs...)
}

// setAddrs sets those addresses on a device that it has not, and has them
// announced.
func (s *space) setAddrs(dev netlink.Link, mode maps.Mode, addrs []netip.Prefix) error {
	if len(addrs) > 0 && !mode.Routed() {
		if err := s.announces(dev.Attrs().Name); err != nil {
			return err
		}
	}
	for _, a := range addrs {
		if err := s.nl.AddrAdd(dev, netlinkAddr(a)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add addr %s: %w", a, err)
		}
	}
	return nil
}

func netlinkAddr(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
}
