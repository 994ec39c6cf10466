package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// What the modes l3 and l3s ask of a sub-interface's two legs and of the
// parent. In l3 the host leg forwards, so that the programs may look routes up
// for it. In l3s it is a link of the host's stack, which forwards between it and
// the parent, with a route to each of the sub-interface's addresses.

// sysctl reads a setting of a device, "" where the kernel has no such one.
func sysctl(family, dev, key string) (string, error) {
	value, err := os.ReadFile(filepath.Join("/proc/sys/net", family, "conf", dev, key))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s %s of %s: %w", family, key, dev, err)
	}
	return strings.TrimSpace(string(value)), nil
}

// setSysctl writes a setting of a device; one that the kernel has not is left
// alone.
func setSysctl(family, dev, key, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net", family, "conf", dev, key), []byte(value), 0o644)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set %s %s of %s: %w", family, key, dev, err)
	}
	return nil
}

// legSysctls are a host leg's settings for a mode. The sub-interface must not
// talk the host into anything: no redirects, no router advertisements, no
// source address that has no route back to it.
func legSysctls(mode maps.Mode) [][3]string {
	routed, stack, hidden := "0", "0", "1"
	if mode.Routed() {
		routed = "1"
	}
	if mode == maps.L3S {
		stack, hidden = "1", "0"
	}
	return [][3]string{
		{"ipv4", "forwarding", routed},
		{"ipv4", "rp_filter", stack},
		{"ipv4", "accept_redirects", "0"},
		{"ipv4", "send_redirects", "0"},
		{"ipv6", "forwarding", routed},
		{"ipv6", "force_forwarding", stack}, // Linux 6.17; before, only for all devices at once
		{"ipv6", "accept_ra", "0"},
		{"ipv6", "accept_redirects", "0"},
		{"ipv6", "addr_gen_mode", "1"}, // none: the host has no address there
		{"ipv6", "disable_ipv6", hidden},
	}
}

// tuneLeg makes a host leg what its sub-interface's mode needs. Neither end
// resolves anything, so for the stack both have one MAC.
func (h *Host) tuneLeg(leg string, sub maps.Sub) error {
	for _, s := range legSysctls(sub.Mode) {
		if err := setSysctl(s[0], leg, s[1], s[2]); err != nil {
			return err
		}
	}
	if sub.Mode != maps.L3S {
		return h.syncRoutes(sub.Leg, nil)
	}
	l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: sub.Leg, Name: leg}}
	if err := h.nl.LinkSetHardwareAddr(l, sub.MAC); err != nil {
		return fmt.Errorf("set address of host leg: %w", err)
	}
	return nil
}

// syncRoutes makes the host's routes to a leg those to the given addresses.
func (h *Host) syncRoutes(leg int, addrs []netip.Addr) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: leg}}
	routes, err := whole(func() ([]netlink.Route, error) { return h.nl.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list routes to host leg: %w", err)
	}
	want := map[netip.Addr]bool{}
	for _, a := range addrs {
		want[a] = true
	}
	for i, r := range routes {
		a, ok := routeTo(r)
		if ok && want[a] {
			delete(want, a)
			continue
		}
		if err := h.nl.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete route to host leg: %w", err)
		}
	}
	for a := range want {
		route := &netlink.Route{LinkIndex: leg, Scope: netlink.SCOPE_LINK,
			Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
		err := h.nl.RouteAdd(route)
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("addr %s: %w: the host has a route to it; delete that", a, ErrExists)
		}
		if errors.Is(err, unix.ENETDOWN) { // as its parent is: they come when it is up
			return nil
		}
		if err != nil {
			return fmt.Errorf("add route to %s: %w", a, err)
		}
	}
	return nil
}

// routeTo is the one address that a route leads to.
func routeTo(r netlink.Route) (netip.Addr, bool) {
	if r.Dst == nil {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	return a, ok && bits == a.BitLen()
}

// canStack refuses IPv6 addresses in mode l3s where the host would not forward
// to them: before Linux 6.17 only all of its devices together can.
func canStack(addrs []netip.Addr) error {
	for _, a := range addrs {
		if a.Is4() {
			continue
		}
		all, err := sysctl("ipv6", "all", "forwarding")
		if err != nil {
			return err
		}
		one, err := sysctl("ipv6", "all", "force_forwarding")
		if err != nil {
			return err
		}
		if all == "0" && one == "" {
			return fmt.Errorf("addr %s: %w: mode l3s takes a host that forwards IPv6, and before Linux 6.17 that is for all "+
				"its devices; type `sysctl -w net.ipv6.conf.all.forwarding=1`, or use mode l3", a, ErrUnsupported)
		}
	}
	return nil
}

// forward lets the host's stack forward what comes by the parent while a
// sub-interface in mode l3s, or one that reaches networks by way of the host, needs it,
// and puts back what was found.
func (p *parent) forward(on bool) error {
	if p.link == nil {
		return nil
	}
	for _, s := range []struct {
		family, key string
		set         *bool
	}{{"ipv4", "forwarding", &p.rec.SetForward4}, {"ipv6", "force_forwarding", &p.rec.SetForward6}} {
		if *s.set == on {
			continue
		}
		name := p.link.Attrs().Name
		if on { // noted first, for whoever has to put it back
			is, err := sysctl(s.family, name, s.key)
			if err != nil {
				return err
			}
			if is != "0" {
				continue
			}
			*s.set = true
			if err := p.save(); err != nil {
				return err
			}
			if err := setSysctl(s.family, name, s.key, "1"); err != nil {
				return err
			}
			continue
		}
		if err := setSysctl(s.family, name, s.key, "0"); err != nil {
			return err
		}
		*s.set = false
		if err := p.save(); err != nil {
			return err
		}
	}
	return nil
}

// addRouted makes the legs of a new sub-interface what modes l3 and l3s need.
func (p *parent) addRouted(leg string, sub maps.Sub, in *space, spec *LinkSpec) error {
	addrs := addrsOf(spec.Addrs)
	if spec.Mode == maps.L3S {
		if err := canStack(addrs); err != nil {
			return err
		}
	}
	if err := p.h.tuneLeg(leg, sub); err != nil {
		return err
	}
	if spec.Mode == maps.L3S {
		if err := p.h.syncRoutes(sub.Leg, addrs); err != nil {
			return err
		}
	}
	return in.setARP(spec.Name, false)
}

// placeOf is how a sub-interface is reached whose inner leg is away or not.
func placeOf(sub maps.Sub, away bool) maps.Place {
	switch {
	case sub.Place == maps.Port:
		return maps.Port
	case sub.Mode == maps.L3S:
		return maps.Stack
	case away:
		return maps.Away
	}
	return maps.Local
}

// relink makes the legs of an IP-keyed sub-interface what its new mode asks for:
// before the record says so, that nothing be refused which cannot be taken back.
// It may be interrupted and repeated, also for the mode that the record says.
func (p *parent) relink(l Link, sub maps.Sub) error {
	if sub.Mode == maps.L3S {
		if err := canStack(p.addrsOf(l)); err != nil {
			return err
		}
	}
	if l.Flags&unix.IFF_NOARP != 0 != sub.Mode.Routed() {
		if err := p.h.setARP(l, sub.Leg, !sub.Mode.Routed()); err != nil {
			return err
		}
	}
	if err := p.h.tuneLeg(l.Leg, sub); err != nil {
		return err
	}
	if sub.Mode == maps.L3S {
		if err := p.h.syncRoutes(sub.Leg, p.addrsOf(l)); err != nil {
			return err
		}
	}
	return p.maps.SetMember(l.ID, !sub.Mode.Routed())
}

// addrsOf lists the addresses that a host can have routes to.
func (p *parent) addrsOf(l Link) []netip.Addr {
	var all []netip.Addr
	for _, a := range l.Addrs {
		if !a.Addr.IsLinkLocalUnicast() {
			all = append(all, a.Addr)
		}
	}
	return all
}

// setARP turns ARP of an inner leg on or off, wherever it is.
func (h *Host) setARP(l Link, leg int, on bool) error {
	nsid, dev, err := h.inner(leg, l.Leg)
	if err != nil {
		return err
	}
	if dev == nil {
		return gone(l.Name)
	}
	in, err := h.spaceOf(l, nsid)
	if err != nil {
		return err
	}
	defer in.close()
	return in.setARP(dev.Attrs().Name, on)
}

func (s *space) setARP(name string, on bool) error {
	l, err := s.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s%s: %w", name, s.where(), err)
	}
	set, word := s.nl.LinkSetARPOff, "off"
	if on {
		set, word = s.nl.LinkSetARPOn, "on"
	}
	if err := set(l); err != nil {
		return fmt.Errorf("turn arp %s on %s: %w", word, name, err)
	}
	return nil
}

// followRoutes gives the host routes to all that sub-interfaces in mode l3s
// have, and takes those back to what they have no more.
func (p *parent) followRoutes() error {
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	stacked := func(s maps.Sub) bool { return s.State == maps.Active && s.Mode == maps.L3S }
	if !slices.ContainsFunc(subs, stacked) {
		return nil
	}
	known, err := p.maps.Addrs()
	if err != nil {
		return err
	}
	for i, s := range subs {
		if !stacked(s) {
			continue
		}
		l := Link{}
		for _, a := range known {
			if a.ID == maps.ID(i) && a.Gen == s.Gen {
				l.Addrs = append(l.Addrs, LinkAddr{a.Addr, a.Origin, a.Until})
			}
		}
		err := p.h.syncRoutes(s.Leg, p.addrsOf(l))
		if errors.Is(err, unix.ENODEV) {
			continue // gone meanwhile: the next sweep's
		}
		if errors.Is(err, ErrExists) {
			p.h.log.Warn("a sub-interface's address is routed elsewhere", "parent", p.rec.Name, "name", s.Name, "err", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}
