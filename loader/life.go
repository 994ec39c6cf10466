package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// What becomes of a parent becomes of its sub-interfaces, as with the kernel's
// drivers. Whoever finds that the parent differs from its record hands that on
// before he writes the record, so that it is done again if it is interrupted.

// inherit hands on a change of the parent's MTU and MAC; was is its record of
// before.
func (p *parent) inherit(was maps.Parent) error {
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	for i, s := range subs {
		if s.State != maps.Active {
			continue
		}
		if err := p.inheritOne(maps.ID(i), s, was); err != nil {
			return fmt.Errorf("hand on to %s what %s is now: %w", s.Name, p.rec.Name, err)
		}
	}
	return nil
}

func (p *parent) inheritOne(id maps.ID, sub maps.Sub, was maps.Parent) error {
	nsid, inner, err := p.h.inner(sub.Leg, p.legName(id))
	if inner == nil || err != nil {
		return err // gone meanwhile: the next sweep's
	}
	mtu := inheritedMTU(sub.Kind, inner.Attrs().MTU, was.MTU, p.rec.MTU)
	newMTU := mtu != inner.Attrs().MTU
	newMAC := sub.Mode == maps.Passthru && !slices.Equal(sub.MAC, p.rec.MAC)
	setMAC := newMAC && !slices.Equal(inner.Attrs().HardwareAddr, p.rec.MAC)
	if newMTU || setMAC {
		in, err := p.h.spaceByID(nsid)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrPrivilege) {
			p.h.log.Warn("a sub-interface cannot follow its parent", "parent", p.rec.Name, "name", sub.Name, "err", err)
			return nil
		}
		if err != nil {
			return err
		}
		defer in.close()
		if newMTU {
			if err := in.nl.LinkSetMTU(inner, mtu); err != nil {
				return fmt.Errorf("set mtu: %w", err)
			}
		}
		if setMAC {
			if err := in.nl.LinkSetHardwareAddr(inner, p.rec.MAC); err != nil {
				return fmt.Errorf("set address: %w", err)
			}
		}
	}
	if !newMAC {
		return nil
	}
	if setMAC { // the administrator's will, so it stays
		p.rec.FoundMAC = nil
	}
	sub.MAC = p.rec.MAC
	return p.maps.PutSub(id, sub)
}

// inheritedMTU is what the kernel's drivers make of a change of the parent's
// MTU: a macvlan's shrinks with it and never grows; an ipvlan's is the
// parent's, unless it has one of its own, which theirs cannot. While the parent's
// is not known, it stays.
func inheritedMTU(kind maps.Kind, mtu, was, now int) int {
	if now != 0 && (mtu > now || kind == maps.Ipvlan && mtu == was) {
		return now
	}
	return mtu
}

// lead makes the parent have the MAC that a passthru sub-interface's device has
// been given: there is one for both. The one found is put back in the end.
func (p *parent) lead(id maps.ID, sub maps.Sub, inner netlink.Link) error {
	mac := inner.Attrs().HardwareAddr
	if p.link == nil {
		return nil
	}
	if p.rec.FoundMAC == nil {
		p.rec.FoundMAC = p.rec.MAC
		if err := p.save(); err != nil {
			return err
		}
	}
	if err := p.h.nl.LinkSetHardwareAddr(p.link, mac); err != nil {
		p.h.log.Warn("the parent does not take its passthru sub-interface's mac",
			"parent", p.rec.Name, "name", sub.Name, "mac", mac, "err", err)
		return nil
	}
	sub.MAC, p.rec.MAC = mac, mac
	if err := p.maps.PutSub(id, sub); err != nil {
		return err
	}
	if err := p.save(); err != nil {
		return err
	}
	p.announceAll(func(maps.Sub) bool { return true })
	return nil
}

// putMACBack undoes lead.
func (p *parent) putMACBack() error {
	if p.rec.FoundMAC == nil {
		return nil
	}
	if err := p.h.nl.LinkSetHardwareAddr(p.link, p.rec.FoundMAC); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("put back address of %s: %w", p.rec.Name, err)
	}
	p.rec.MAC, p.rec.FoundMAC = p.rec.FoundMAC, nil
	return p.save()
}

// followState makes the inner legs have a carrier while the parent has one: a
// veth has it while its other end is up. Only who stays to bring the host legs
// up again sets them down; a look at a parent that is down must not be what
// keeps its sub-interfaces down.
func (p *parent) followState(subs []maps.Sub, looked []maps.ID) error {
	up := p.link != nil && p.link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
	if !up && !p.h.stays {
		return nil
	}
	return p.setLegs(subs, looked, up)
}

// setLegs sets those host legs up or down that are not.
func (p *parent) setLegs(subs []maps.Sub, which []maps.ID, up bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	for _, id := range which {
		s := subs[id]
		ifr, err := unix.NewIfreq(p.legName(id))
		if err != nil {
			return err
		}
		if unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr) != nil || (ifr.Uint16()&unix.IFF_UP != 0) == up {
			continue // gone meanwhile, or as it should be
		}
		set := p.h.nl.LinkSetDown
		if up {
			set = p.h.nl.LinkSetUp
		}
		err = set(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: s.Leg}})
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("hand on the state of %s to %s: %w", p.rec.Name, s.Name, err)
		}
	}
	return nil
}

// followPromisc makes the parent promiscuous while a macvlan is that is up, as
// the kernel's driver does. It is one switch for all, which others may have
// turned on before. One with a guard changes nothing here.
func (p *parent) followPromisc(id maps.ID, sub maps.Sub, inner netlink.Link, guard maps.Guard) (maps.Sub, error) {
	a := inner.Attrs()
	want := a.Promisc > 0 && a.RawFlags&unix.IFF_UP != 0 && !guard.On
	if p.link == nil || sub.Kind != maps.Macvlan || sub.Mode == maps.Passthru || want == sub.Promisc {
		return sub, nil
	}
	if !want {
		if err := p.endPromisc(sub); err != nil {
			return sub, err
		}
		sub.Promisc = false
		return sub, p.maps.PutSub(id, sub)
	}
	ours, err := p.promiscBeside(sub)
	if err != nil || !ours && p.link.Attrs().RawFlags&unix.IFF_PROMISC != 0 {
		return sub, err
	}
	sub.Promisc = true
	if err := p.maps.PutSub(id, sub); err != nil || ours {
		return sub, err
	}
	if err := p.h.nl.SetPromiscOn(p.link); err != nil {
		return sub, fmt.Errorf("make %s promiscuous: %w", p.rec.Name, err)
	}
	return sub, nil
}

// endPromisc turns the parent's promiscuity off unless another sub-interface
// has it on, too.
func (p *parent) endPromisc(sub maps.Sub) error {
	ours, err := p.promiscBeside(sub)
	if err != nil || ours {
		return err
	}
	if err := p.h.nl.SetPromiscOff(p.link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("end promiscuity of %s: %w", p.rec.Name, err)
	}
	return nil
}

// promiscBeside tells whether there is another sub-interface that the parent
// was made promiscuous for, or it was for VLANs.
func (p *parent) promiscBeside(sub maps.Sub) (bool, error) {
	if p.rec.SetPromisc {
		return true, nil
	}
	subs, err := p.maps.Subs()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(subs, func(s maps.Sub) bool {
		return s.State != maps.Free && s.Promisc && s.Leg != sub.Leg
	}), nil
}
