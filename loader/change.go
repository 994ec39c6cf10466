package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/maps"
)

// Selector picks one sub-interface.
type Selector struct {
	Name   string // of the device
	Parent string // "" for any
	Netns  string // where the device is; "" for wherever
	Owner  string // "" for any; else it decides alone, and the others say where to look first
}

func (s Selector) means(l Link) bool {
	if s.Owner != "" {
		return l.Owner == s.Owner
	}
	return l.Name == s.Name && (s.Parent == "" || l.Parent == s.Parent) && (s.Netns == "" || l.Netns == s.Netns)
}

// anywhere is the selector without its namespace, for what is known to be there:
// one can be named in several ways.
func (s Selector) anywhere() Selector {
	s.Netns = ""
	return s
}

// Find returns the one sub-interface that a selector means. A name that
// several have is the one's in this namespace, if there is one.
func (h *Host) Find(sel Selector) (Link, error) {
	if l, ok, err := h.findIn(sel); err != nil || ok {
		return l, err
	}
	links, err := h.Links()
	if err != nil {
		return Link{}, err
	}
	links = slices.DeleteFunc(links, func(l Link) bool { return !sel.means(l) })
	if len(links) > 1 && sel.Netns == "" {
		if i := slices.IndexFunc(links, func(l Link) bool { return l.Netns == "" }); i >= 0 {
			return links[i], nil
		}
	}
	switch len(links) {
	case 0:
		return Link{}, fmt.Errorf("sub-interface %s: %w; `xvlan link show` lists them", sel.Name, ErrNotFound)
	case 1:
		return links[0], nil
	}
	var where []string
	for _, l := range links {
		where = append(where, fmt.Sprintf("link %s netns %s", l.Parent, l.Netns))
	}
	return Link{}, fmt.Errorf("sub-interface %s: %w: several have that name; add one of: %s",
		sel.Name, ErrInvalid, strings.Join(where, "; "))
}

// findIn is Find in the namespace that the selector names, or else in this one,
// without a look at all that there is elsewhere. ok is false where that tells
// nothing.
func (h *Host) findIn(sel Selector) (l Link, ok bool, err error) {
	at, ok, err := h.placeIn(sel)
	if !ok || err != nil {
		return l, false, err
	}
	err = h.readParent(at.folder, func(set *maps.Set, rec maps.Parent) error {
		l, ok, err = h.linkAt(at, set, rec)
		return err
	})
	if errors.Is(err, fs.ErrPermission) {
		return l, false, nil // whoever looks everywhere says what it takes
	}
	return l, ok && sel.anywhere().means(l), err
}

// place is where a parent's records tell of a sub-interface.
type place struct {
	folder folder
	id     maps.ID
	spaces map[int]string // what the namespace that it is in is called, by its id
}

// linkAt reads the sub-interface that is at a place; ok is false where there is none.
func (h *Host) linkAt(at place, set *maps.Set, rec maps.Parent) (l Link, ok bool, err error) {
	links, err := h.linksOf(at.folder, set, rec, at.spaces, at.id)
	if len(links) == 0 || err != nil {
		return l, false, err
	}
	return links[0], true, nil
}

// placeIn finds the place of the device that has a selector's name in the namespace
// that it names, or else in this one: the host leg's name tells. ok is false where
// there is none, as of devices of the kernel rung.
func (h *Host) placeIn(sel Selector) (at place, ok bool, err error) {
	s, err := openSpace(sel.Netns)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid) || errors.Is(err, ErrPrivilege) {
		return at, false, nil
	}
	if err != nil {
		return at, false, err
	}
	defer s.close()
	dev, err := s.nl.LinkByName(sel.Name)
	if err != nil || !isPair(dev) {
		return at, false, nil // whoever looks everywhere says what is wrong
	}
	leg, err := h.nl.LinkByIndex(dev.Attrs().ParentIndex)
	if err != nil {
		return at, false, nil // it is the other end's index in another namespace
	}
	nsid := -1
	if !s.own {
		if nsid, err = h.nl.GetNetNsIdByFd(int(s.file.Fd())); err != nil {
			return at, false, fmt.Errorf("read id of netns %s: %w", s.name, err)
		}
	}
	key, id, isLeg := parseLeg(leg.Attrs().Name)
	if !isLeg || leg.Attrs().ParentIndex != dev.Attrs().Index || leg.Attrs().NetNsID != nsid || s.own != (nsid < 0) ||
		sel.Owner != "" && leg.Attrs().Alias != sel.Owner {
		return at, false, nil
	}
	return place{h.folder(key), id, map[int]string{nsid: s.name}}, true, nil
}

// Del removes a sub-interface, and with the last one leaves the parent as it
// was found.
func (h *Host) Del(sel Selector) error {
	return h.change(sel, func(k kernelLink) error { return h.delKernel(k) },
		func(p *parent, l Link, sub maps.Sub) error {
			if err := p.remove(l.ID, sub); err != nil {
				return err
			}
			return p.detachIfEmpty()
		})
}

// Move takes a sub-interface to another network namespace, keeping its name.
func (h *Host) Move(sel Selector, netns string) error {
	to, err := openSpace(netns)
	if err != nil {
		return err
	}
	defer to.close()
	return h.change(sel,
		func(k kernelLink) error {
			from, err := k.open()
			if err != nil {
				return err
			}
			defer from.close()
			return h.move(k.link, from, to)
		},
		func(p *parent, l Link, sub maps.Sub) error {
			nsid, dev, err := h.inner(sub.Leg, l.Leg)
			if err != nil {
				return err
			}
			if dev == nil {
				return gone(l.Name)
			}
			from, err := h.spaceOf(l, nsid)
			if err != nil {
				return err
			}
			defer from.close()
			// By the host leg frames arrive wherever the other end is.
			sub.Place = placeOf(sub, false)
			if err := p.maps.PutSub(l.ID, sub); err != nil {
				return err
			}
			if err := h.move(dev, from, to); err != nil {
				return err
			}
			if !sub.Mode.Routed() && slices.ContainsFunc(l.Addrs, func(a LinkAddr) bool { return a.Origin == maps.Given }) {
				if err := to.announces(l.Name); err != nil {
					return err
				}
			}
			sub.Place = placeOf(sub, !to.own)
			return p.maps.PutSub(l.ID, sub)
		})
}

func (h *Host) move(l netlink.Link, from, to *space) error {
	if same, err := sameFile(from.file, to.file.Name()); err != nil || same {
		return err
	}
	if err := h.free(to, l.Attrs().Name); err != nil {
		return err
	}
	if err := from.nl.LinkSetNsFd(l, int(to.file.Fd())); err != nil {
		return fmt.Errorf("move %s to netns %s: %w", l.Attrs().Name, to.name, err)
	}
	return nil
}

// change finds a sub-interface and acts on it under its parent's lock.
func (h *Host) change(sel Selector, onKernel func(kernelLink) error, onOurs func(*parent, Link, maps.Sub) error) error {
	at, ok, err := h.placeIn(sel)
	if err != nil {
		return err
	}
	if !ok || sel.Parent != "" {
		found, err := h.Find(sel)
		if errors.Is(err, ErrNotFound) { // its device may be gone: then the rest goes too
			if swept := h.Sweep(); swept != nil {
				h.log.Warn("cannot tidy up", "err", swept)
			}
		}
		if err != nil {
			return err
		}
		if found.Rung.Rung == maps.RungKernel {
			return h.changeKernel(found, onKernel)
		}
		key, id, _ := parseLeg(found.Leg)
		at = place{h.folder(key), id, map[int]string{found.nsid: found.Netns}}
	}
	if err := h.sweepDead(at.folder); err != nil {
		return err
	}
	p, unlock, err := h.lockFolder(at.folder)
	if err != nil {
		return err
	}
	if p == nil {
		if err := hidden(); err != nil {
			return err
		}
		return gone(sel.Name)
	}
	defer unlock()
	defer p.close()
	if err := p.glance(); err != nil {
		return err
	}
	found, ok, err := h.linkAt(at, p.maps, p.rec)
	if err != nil {
		return err
	}
	if !ok || !sel.anywhere().means(found) { // it may have been moved meanwhile
		return errors.Join(gone(sel.Name), p.detachIfEmpty())
	}
	sub, err := p.maps.Sub(found.ID)
	if err != nil {
		return err
	}
	return onOurs(p, found, sub)
}

// changeKernel is change on the kernel rung.
func (h *Host) changeKernel(found Link, fn func(kernelLink) error) error {
	l, unlock, err := h.lockParent(found.Parent)
	if err != nil {
		return err
	}
	defer unlock()
	links, err := h.kernelLinks(l.Attrs().Index)
	if err != nil {
		return err
	}
	for _, k := range links {
		if k.link.Attrs().Name == found.Name && k.space == found.Netns {
			return fn(k)
		}
	}
	return gone(found.Name)
}

func gone(name string) error {
	return fmt.Errorf("sub-interface %s: %w: somebody else has just removed it", name, ErrNotFound)
}
