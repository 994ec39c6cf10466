package loader

import (
	"errors"
	"fmt"
	stdmaps "maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
)

// follow makes the maps agree with what has been done to inner legs by others:
// their place, their MACs, and which addresses IP-keyed ones have.
func (p *parent) follow() error {
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	if err := p.dropStrays(subs); err != nil {
		return err
	}
	known, err := p.maps.Addrs()
	if err != nil {
		return err
	}
	now, err := maps.UptimeNow()
	if err != nil {
		return err
	}
	guards, err := p.maps.Guards()
	if err != nil {
		return err
	}
	learned, given := map[maps.ID][]netip.Addr{}, map[maps.ID][]netip.Addr{}
	for _, a := range known {
		switch {
		case a.Origin == maps.Learned || a.Origin == maps.Leased && a.Until <= now:
			learned[a.ID] = append(learned[a.ID], a.Addr)
		case a.Origin == maps.Given || a.Origin == maps.Leased:
			given[a.ID] = append(given[a.ID], a.Addr)
		}
	}
	if err := p.h.listDevices(subs); err != nil {
		return err
	}
	defer p.h.forgetDevices()
	has := map[maps.ID]map[netip.Addr]bool{} // what devices have that may be learned
	for i, s := range subs {
		id := maps.ID(i)
		if s.State != maps.Active {
			continue
		}
		if guards[id].On {
			if guards[id], err = p.putGuard(id, guards[id], given[id]); err != nil {
				return err
			}
		}
		addrs, err := p.followOne(id, s, guards[id])
		if err != nil {
			return fmt.Errorf("follow %s: %w", s.Name, err)
		}
		if addrs == nil {
			continue
		}
		stdmaps.DeleteFunc(addrs, func(a netip.Addr, _ bool) bool { return !learns(guards[id], a) })
		has[id] = addrs
		if err := p.unlearn(s.VLAN, learned[id], addrs); err != nil {
			return err
		}
	}
	// Only when all that is gone is forgotten: it may have gone to a sibling.
	for id, addrs := range has {
		if err := p.relearn(id, subs[id], learned[id], addrs); err != nil {
			return err
		}
	}
	return p.followRoutes()
}

// followOne follows an inner leg's place and, without a guard, its MAC. It returns
// those of its addresses that are to be known, an IP-keyed one's or one's with a
// guard; nil if it is gone.
func (p *parent) followOne(id maps.ID, sub maps.Sub, guard maps.Guard) (map[netip.Addr]bool, error) {
	dev, err := p.h.legs(sub.Leg, p.legName(id))
	if dev == nil || err != nil {
		return nil, err // gone meanwhile: the next sweep's
	}
	nsid, inner := dev.nsid, dev.inner
	if place := placeOf(sub, nsid >= 0); place != sub.Place {
		sub.Place = place
		if err := p.maps.PutSub(id, sub); err != nil {
			return nil, err
		}
	}
	if err := p.followPort(id, sub, dev); err != nil {
		return nil, err
	}
	if err := p.refilter(sub); err != nil {
		return nil, err
	}
	if sub, err = p.followPromisc(id, sub, inner, guard); err != nil {
		return nil, err
	}
	if !guard.On {
		if err := p.followMAC(id, sub, inner); err != nil {
			return nil, err
		}
	}
	if sub.Kind != maps.Ipvlan && !guard.On {
		return map[netip.Addr]bool{}, nil
	}
	addrs, err := addrsIn(nsid, inner.Attrs().Index)
	if errors.Is(err, unix.ENODEV) {
		return nil, nil // gone since it was looked at
	}
	return addrs, err
}

// followMAC makes a sub-interface's MAC its device's.
func (p *parent) followMAC(id maps.ID, sub maps.Sub, inner netlink.Link) error {
	if inner.Attrs().HardwareAddr.String() == sub.MAC.String() {
		return nil
	}
	if sub.Mode == maps.Passthru {
		return p.lead(id, sub, inner)
	}
	return p.rekey(id, sub, inner)
}

// legs are both ends of a sub-interface's device.
type legs struct {
	host, inner netlink.Link
	nsid        int // of the inner leg's network namespace, negative for the own one
}

// legs finds both ends by the host leg; nil if it is gone.
func (h *Host) legs(index int, name string) (*legs, error) {
	outer, err := h.device(ownSpace, index)
	if errors.Is(err, unix.ENODEV) || err == nil && outer.Attrs().Name != name {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find host leg: %w", err)
	}
	nsid := outer.Attrs().NetNsID
	inner, err := h.device(nsid, outer.Attrs().ParentIndex)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find inner leg: %w", err)
	}
	h.seen(-1, outer, leg{})
	h.seen(nsid, inner, leg{index, name})
	return &legs{host: outer, inner: inner, nsid: nsid}, nil
}

// inner finds the other end of a host leg, and the id of its network
// namespace; nil if it is gone.
func (h *Host) inner(leg int, name string) (nsid int, inner netlink.Link, err error) {
	dev, err := h.legs(leg, name)
	if dev == nil || err != nil {
		return 0, nil, err
	}
	return dev.nsid, dev.inner, nil
}

// rekey gives a sub-interface the MAC that its device has been given. One that
// a sibling has is not taken over.
func (p *parent) rekey(id maps.ID, old maps.Sub, inner netlink.Link) error {
	sub := old
	sub.MAC = inner.Attrs().HardwareAddr
	if !sub.Keyed() {
		if err := p.maps.PutSub(id, sub); err != nil || sub.Mode != maps.L3S {
			return err
		}
		return p.h.tuneLeg(p.legName(id), sub)
	}
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	v, err := vlanOf(p.maps, id, sub)
	if err != nil {
		return err
	}
	taken, err := p.macTaken(subs, id, sub.MAC, v)
	if err != nil {
		return err
	}
	if taken {
		p.h.log.Warn("a sub-interface has been given its sibling's mac", "parent", p.rec.Name, "name", sub.Name, "mac", sub.MAC)
		return nil
	}
	if err := p.putMACs(id, sub); err != nil {
		return err
	}
	if sub, err = p.openParent(id, sub, true); err != nil {
		return errors.Join(err, p.deleteMACs(id, sub), p.maps.PutSub(id, old))
	}
	if err := p.maps.PutSub(id, sub); err != nil {
		return err
	}
	old.Promisc = false // which stays
	err = errors.Join(p.unmeet(id, old), p.deleteMACs(id, old), p.closeParent(old), p.reindex(old), p.reindex(sub))
	p.announceAll(func(s maps.Sub) bool { return s.Leg == sub.Leg })
	return err
}

// unlearn forgets the learned addresses that the device no longer has.
func (p *parent) unlearn(v maps.VLAN, learned []netip.Addr, has map[netip.Addr]bool) error {
	for _, a := range learned {
		if _, ok := has[a]; ok {
			continue
		}
		if err := p.maps.DeleteAddr(v, a); err != nil {
			return err
		}
	}
	return nil
}

// relearn enters the addresses that the device has and has not spoken from
// yet, as many of a family as could be learned otherwise.
func (p *parent) relearn(id maps.ID, sub maps.Sub, learned []netip.Addr, has map[netip.Addr]bool) error {
	held := map[bool]int{} // by whether they are IPv4
	for _, a := range learned {
		if _, ok := has[a]; ok {
			held[a.Is4()]++
		}
	}
	for a := range has {
		if held[a.Is4()] >= bpf.LearnSlots || slices.Contains(learned, a) {
			continue
		}
		err := p.maps.PutAddr(sub.VLAN, a, maps.Dest{ID: id, Gen: sub.Gen, Origin: maps.Learned})
		if errors.Is(err, ebpf.ErrKeyExist) {
			continue // given, or somebody else's
		}
		if err != nil {
			return err
		}
		held[a.Is4()]++
	}
	return nil
}

// addrsIn lists the unicast addresses of a device, as prefixesIn does, and
// tells those that duplicate address detection has done with.
func addrsIn(nsid, index int) (map[netip.Addr]bool, error) {
	prefixes, err := prefixesIn(nsid, index)
	if err != nil {
		return nil, err
	}
	all := map[netip.Addr]bool{}
	for p, flags := range prefixes {
		all[p.Addr()] = !unsettled(flags)
	}
	return all, nil
}

// unsettled tells an address that is not, or not yet, the device's to use.
func unsettled(flags uint8) bool { return flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 }

// prefixesIn lists the unicast addresses of a device in another namespace by
// that namespace's id (Linux 4.20), which the netlink library does not offer,
// with their flags. A negative id is the own namespace.
func prefixesIn(nsid, index int) (map[netip.Prefix]uint8, error) {
	sock, err := nl.GetNetlinkSocketAt(-1, -1, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer sock.Close()
	// Without it the kernel ignores what a dump asks for.
	if err := unix.SetsockoptInt(sock.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return nil, fmt.Errorf("ask for strict checks: %w", err)
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: sock}}
	msg := nl.NewIfAddrmsg(unix.AF_UNSPEC)
	msg.Index = uint32(index)
	req.AddData(msg)
	if nsid >= 0 {
		req.AddData(nl.NewRtAttr(unix.IFA_TARGET_NETNSID, nl.Uint32Attr(uint32(nsid))))
	}
	msgs, err := whole(func() ([][]byte, error) { return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of device %d: %w", index, err)
	}
	all := map[netip.Prefix]uint8{}
	for _, m := range msgs {
		local, bits, flags, err := addrOf(m)
		if err != nil {
			return nil, fmt.Errorf("read addresses of device %d: %w", index, err)
		}
		if local.IsValid() && !local.IsLoopback() {
			all[netip.PrefixFrom(local, bits)] = flags
		}
	}
	return all, nil
}

// addrOf reads an address, its prefix's length and its flags from an rtnetlink
// message of one, which begins with a struct ifaddrmsg.
func addrOf(m []byte) (local netip.Addr, bits int, flags uint8, err error) {
	const ifaPrefixLen, ifaFlags = 1, 2 // where that has them
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfAddrmsg:])
	if err != nil {
		return local, 0, 0, err
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_ADDRESS && !local.IsValid() {
			local, _ = netip.AddrFromSlice(a.Value)
		}
	}
	return local, int(m[ifaPrefixLen]), m[ifaFlags], nil
}
