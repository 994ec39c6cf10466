package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// Sweep finishes or removes what interrupted commands and other tools have
// left on all parents of the namespace, and what is left of namespaces that
// are gone, attaches what was detached, and follows what was done to inner legs.
// A parent that another
// command is working on is left to it.
func (h *Host) Sweep() error {
	return errors.Join(h.sweepParents(), h.sweepForgotten(), h.sweepKernel(), sweepLocks())
}

func (h *Host) sweepParents() error {
	return h.eachAttached(func(p *parent) error {
		h.expect(p)
		if err := errors.Join(p.refresh(), p.rehook(), p.follow()); err != nil {
			return err
		}
		p.notified()
		return p.detachIfEmpty()
	})
}

// sweepDead is sweepParents for those that are gone, or have come back: what every
// command owes those that it does not act on. One that it is about to act on, and
// knows by its folder, is left out.
func (h *Host) sweepDead(but folder) error {
	return h.sweep(func(f folder) error {
		if f == but {
			return nil
		}
		return h.reconsider(f)
	})
}

// reconsider has a parent of which the device is gone, or has come back, know it. The
// caller holds the lock.
func (h *Host) reconsider(f folder) error {
	rec, err := maps.ReadParent(f.path())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, maps.ErrSchema) {
		return nil // detached, or whoever acts on it says so
	}
	if err != nil {
		return err
	}
	l, err := h.parentDevice(f, f.path(), rec)
	if err != nil || l == nil && rec.Index == 0 || l != nil && l.Attrs().Index == rec.Index {
		return err
	}
	return h.located(f, (*parent).refresh)
}

// eachAttached is sweep with each parent opened and located.
func (h *Host) eachAttached(fn func(p *parent) error) error {
	return h.sweep(func(f folder) error { return h.located(f, fn) })
}

func (h *Host) located(f folder, fn func(p *parent) error) error {
	p, err := h.openFolder(f)
	if p == nil || err != nil {
		return err
	}
	defer p.close()
	if err := p.locate(); err != nil {
		return err
	}
	return fn(p)
}

// busy tells Serve to look again soon.
func (h *Host) busy() {
	if h.watch != nil {
		h.watch.busy = true
	}
}

// sweep removes what is left of dead namespaces and of interrupted attaches, and
// calls fn for each of this namespace's parents, under its lock.
func (h *Host) sweep(fn func(f folder) error) error {
	if ok, err := mounted(); !ok || err != nil {
		return err
	}
	folders, err := folders()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range folders {
		// A lock that is taken for a look would make its owner's sweep skip it.
		if f.cookie != h.cookie {
			if gone, err := f.dead(); !gone {
				errs = append(errs, err)
				continue
			}
		}
		unlock, err := flock(f.String(), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			h.busy()
			continue
		}
		if err == nil {
			err = h.sweepFolder(f, fn)
			unlock()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (h *Host) sweepFolder(f folder, fn func(f folder) error) error {
	if f.cookie != h.cookie {
		gone, err := f.dead()
		if gone {
			err = errors.Join(removePins(f.path()), removePins(f.path()+carrying))
		}
		return err
	}
	if err := errors.Join(removePins(f.path()+carrying), h.teardown(f, f.path()+building)); err != nil {
		return err
	}
	return fn(f)
}

// dead tells that a folder's network namespace is gone, by the links in it:
// they outlive their devices, and say so. Where programs are attached by
// clsact filters there are none, and nobody can tell. Links that somebody has
// detached look the same, so it is also looked for.
func (f folder) dead() (bool, error) {
	dir := f.path()
	if !orphaned(filepath.Join(dir, pinRX)) {
		return false, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, nil // gone meanwhile
	}
	for _, e := range entries {
		// The parent may have gone by itself: its legs would still be there.
		if strings.HasPrefix(e.Name(), pinLeg) && !orphaned(filepath.Join(dir, e.Name())) {
			return false, nil
		}
	}
	lives, err := spaceLives(f.cookie)
	return !lives && err == nil, err
}

// refresh makes the maps agree with what is there: sub-interfaces that are
// half made or whose device is gone, what the parent is to receive, its MAC, MTU
// and carrier, the host's addresses.
func (p *parent) refresh() error { return p.look(math.MaxInt) }

// look is refresh with so many devices looked at.
func (p *parent) look(most int) error {
	subs, looked, err := p.removeDead(most)
	if err != nil {
		return err
	}
	if changed, err := p.unwatch(); err != nil {
		return err
	} else if changed {
		if err := p.save(); err != nil {
			return err
		}
	}
	if p.link == nil {
		return p.followState(subs, looked)
	}
	if err := p.prepare(subs, looked); err != nil {
		return err
	}
	attrs := *p.link.Attrs()
	if p.rec.MTU == 0 && attrs.RawFlags&unix.IFF_UP == 0 {
		attrs.MTU = 0 // it has come back, and may be given another yet
	}
	if p.rec.MTU != attrs.MTU || p.rec.MAC.String() != attrs.HardwareAddr.String() || p.rec.Name != attrs.Name {
		was := p.rec
		p.rec.MTU, p.rec.MAC, p.rec.Name = attrs.MTU, attrs.HardwareAddr, attrs.Name
		if err := p.inherit(was); err != nil {
			return err
		}
		if err := p.save(); err != nil {
			return err
		}
		back, other := was.MTU == 0, was.MAC.String() != p.rec.MAC.String()
		p.announceAll(func(s maps.Sub) bool { return back || other && (s.Kind == maps.Ipvlan || s.Mode == maps.Passthru) })
	}
	if err := p.followState(subs, looked); err != nil {
		return err
	}
	if p.left { // to list the host's addresses the kernel goes through all its devices
		return nil
	}
	return p.reserve()
}

// removeDead removes the sub-interfaces whose making or removal was
// interrupted and, looking at so many, those whose device somebody deleted. It returns
// the records that are left, and whose devices are there.
func (p *parent) removeDead(most int) (subs []maps.Sub, there []maps.ID, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	if subs, err = p.maps.Subs(); err != nil {
		return nil, nil, err
	}
	var dead []maps.ID
	for i, s := range subs {
		if s.State == maps.Pending {
			dead = append(dead, maps.ID(i))
		}
	}
	var looked []maps.ID
	looked, p.left = some(subs, most)
	for _, id := range looked {
		if isLeg(fd, subs[id].Leg, p.legName(id)) {
			there = append(there, id)
		} else {
			dead = append(dead, id)
		}
	}
	for _, id := range dead {
		if err := p.removeOne(id); err != nil {
			return nil, nil, fmt.Errorf("remove what is left of %s: %w", subs[id].Name, err)
		}
	}
	if len(dead) > 0 {
		subs, err = p.maps.Subs()
	}
	return subs, there, err
}

// deletedAtOnce is how many devices are deleted in one go. The kernel waits once for all,
// and some milliseconds for each that a program is attached to, and lets nobody change
// a device meanwhile.
const deletedAtOnce = 8

// removeAll removes every sub-interface, of those whose maps go, too: that their
// records are PENDING voids all that leads to them.
func (p *parent) removeAll() error {
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	var taken []maps.ID
	for i, s := range subs {
		if s.State != maps.Free {
			taken = append(taken, maps.ID(i))
		}
	}
	for batch := range slices.Chunk(taken, deletedAtOnce) {
		var legs []string
		for _, id := range batch {
			sub, err := p.maps.Sub(id) // the last one's end may have changed it
			if err != nil {
				return err
			}
			sub.State = maps.Pending
			if err := p.maps.PutSub(id, sub); err != nil {
				return err
			}
			if err := errors.Join(p.unmeet(id, sub), p.closeParent(sub)); err != nil {
				return err
			}
			sub.Promisc = false // nobody is to leave it on for this one
			if err := p.maps.PutSub(id, sub); err != nil {
				return err
			}
			legs = append(legs, p.legName(id))
		}
		if err := p.h.delDevices(legs); err != nil {
			return err
		}
		for _, id := range batch {
			if err := errors.Join(unpin(p.pin(pinLeg, id)), unpin(p.pin(pinTurn, id))); err != nil {
				return err
			}
			if err := p.maps.PutSub(id, maps.Sub{Gen: subs[id].Gen}); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeOne removes one of several: its record may have changed with the last one's
// removal.
func (p *parent) removeOne(id maps.ID) error {
	sub, err := p.maps.Sub(id)
	if err != nil {
		return err
	}
	return p.remove(id, sub)
}

// detachIfEmpty leaves a parent alone that has no sub-interface left, unless
// it was attached to stay.
func (p *parent) detachIfEmpty() error {
	if p.rec.Keep {
		return nil
	}
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(subs, func(s maps.Sub) bool { return s.State != maps.Free }) {
		return nil
	}
	return p.h.teardown(p.folder(), p.dir)
}

// reserve enters the addresses that nobody may have: those of the host, on
// whichever device, and of the gateways behind the parent.
func (p *parent) reserve() error {
	want, err := p.hostAddrs()
	if err != nil {
		return err
	}
	have, err := p.maps.Addrs()
	if err != nil {
		return err
	}
	for _, a := range have {
		gateway, wanted := want[a.Addr]
		if a.VLAN != 0 {
			continue // the host is in none
		}
		if a.Origin == maps.Reserved && !wanted {
			if err := p.maps.DeleteAddr(a.VLAN, a.Addr); err != nil {
				return err
			}
		}
		if a.Origin == maps.Reserved && a.Gateway == gateway || a.Origin == maps.Given && wanted {
			if a.Origin == maps.Given {
				p.h.log.Warn("the host has taken a sub-interface's address", "parent", p.rec.Name, "addr", a.Addr)
			}
			delete(want, a.Addr)
		}
	}
	for a, gateway := range want {
		if err := p.maps.ReplaceAddr(0, a, maps.Dest{Origin: maps.Reserved, Gateway: gateway}); err != nil {
			return err
		}
	}
	return nil
}

// hostAddrs collects the host's addresses and, true, its gateways on the parent. The
// addresses of inner legs that stay in this namespace are not the host's, and
// link-local ones count on the parent alone.
func (p *parent) hostAddrs() (map[netip.Addr]bool, error) {
	all := map[netip.Addr]bool{}
	addrs, err := whole(func() ([]netlink.Addr, error) { return p.h.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	inner := map[int]bool{} // by ifindex
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || ip.IsLoopback() {
			continue
		}
		if ip.IsLinkLocalUnicast() && a.LinkIndex != p.rec.Index {
			continue
		}
		if _, known := inner[a.LinkIndex]; !known {
			if inner[a.LinkIndex], err = p.isInner(a.LinkIndex); err != nil {
				return nil, err
			}
		}
		if !inner[a.LinkIndex] {
			all[ip] = false
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) { return p.h.nl.RouteList(p.link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes of %s: %w", p.rec.Name, err)
	}
	for _, r := range routes {
		if ip, ok := netip.AddrFromSlice(r.Gw); ok {
			if _, own := all[ip.Unmap()]; !own {
				all[ip.Unmap()] = true
			}
		}
	}
	return all, nil
}

// isInner tells whether a device here is the inner leg of one of this parent's
// sub-interfaces.
func (p *parent) isInner(index int) (bool, error) {
	if index == p.rec.Index {
		return false, nil
	}
	l, err := p.h.nl.LinkByIndex(index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil // gone since the addresses were listed
	}
	if err != nil {
		return false, fmt.Errorf("find device %d: %w", index, err)
	}
	if !isPair(l) || l.Attrs().NetNsID >= 0 {
		return false, nil
	}
	leg, err := p.h.nl.LinkByIndex(l.Attrs().ParentIndex)
	if err != nil {
		return false, nil // its peer is gone or elsewhere: no leg of ours
	}
	of, _, ok := parseLeg(leg.Attrs().Name)
	return ok && of == p.key, nil
}
