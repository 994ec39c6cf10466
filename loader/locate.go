package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// A parent outlives its device. What it is known by, and its host legs are named
// after, is the key of its folder; which device it is at the moment, its record
// says. When that is gone the record says none, its sub-interfaces stay, and it
// takes the next device of its name.

// folderOf finds the folder of what is attached to a device, by the records. ok is
// false where nothing is; the folder is then the one that it would get: that of its
// ifindex or, if a parent that has come back keeps that, of the next number that
// nobody has.
func (h *Host) folderOf(index int) (f folder, ok bool, err error) {
	f = h.folder(index)
	rec, there, err := f.record()
	if there && rec.Index == index || err != nil {
		return f, err == nil, err
	}
	all, err := folders()
	if err != nil {
		return f, false, err
	}
	taken := map[int]bool{}
	for _, other := range all {
		if other.cookie != h.cookie {
			continue
		}
		rec, there, err := other.record()
		if err != nil {
			return f, false, err
		}
		if there && rec.Index == index {
			return other, true, nil
		}
		taken[other.key] = there
	}
	for taken[f.key] {
		f.key++
	}
	return f, false, nil
}

// record reads the parent's record, of whatever version it is; of a newer one only
// the folder tells something. there is false where no parent has the folder.
func (f folder) record() (rec maps.Parent, there bool, err error) {
	rec, err = maps.ReadParent(f.path())
	if errors.Is(err, maps.ErrOlder) {
		rec, err = maps.ReadOlder(f.path())
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return rec, false, nil
	case errors.Is(err, maps.ErrSchema):
		return maps.Parent{Index: f.key}, true, nil
	case errors.Is(err, fs.ErrPermission):
		return rec, false, fmt.Errorf("look at parents: %w: run xvlan as root: %w", ErrPrivilege, err)
	}
	return rec, err == nil, err
}

// parentDevice finds the device that a parent is: the one that its program is
// attached to, by whatever name; or if that is attached to none any more, the one of
// its name, unless that is another parent. nil if it is gone, or in another network
// namespace: which before Linux 6.6, without links, looks the same. dir is where its
// pins are.
func (h *Host) parentDevice(f folder, dir string, rec maps.Parent) (netlink.Link, error) {
	at, id, err := hookOf(filepath.Join(dir, pinRX))
	if err != nil {
		return nil, err
	}
	if rec.Index != 0 {
		l, err := h.nl.LinkByIndex(rec.Index)
		if err == nil {
			if hooked, err := h.hooked(l, id); hooked || err != nil {
				return l, err
			}
		} else if !errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil, fmt.Errorf("find parent %s: %w", rec.Name, err)
		}
	}
	l, err := h.nl.LinkByName(rec.Name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find parent %s: %w", rec.Name, err)
	}
	if checkParent(l) != nil {
		return nil, nil
	}
	if other, taken, err := h.folderOf(l.Attrs().Index); taken && other != f || err != nil {
		return nil, err
	}
	if at == 0 {
		return l, nil
	}
	if hooked, err := h.hooked(l, id); !hooked {
		return nil, err // it is elsewhere, and another has its name
	}
	return l, nil
}

// hookOf reads which device, in whichever network namespace, a tcx link is
// attached to, 0 for none, and its id; that is 0, too, where there is no link.
func hookOf(pin string) (index int, id link.ID, err error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("open pinned link: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0, 0, fmt.Errorf("read link: %w", err)
	}
	if tcx := info.TCX(); tcx != nil {
		index = int(tcx.Ifindex)
	}
	return index, info.ID, nil
}

// hooked tells whether a link, or if there is none a filter of ours, is at a
// device's ingress.
func (h *Host) hooked(l netlink.Link, id link.ID) (bool, error) {
	if id == 0 {
		return h.hasFilter(l.Attrs().Index, false)
	}
	progs, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for programs of %s: %w", l.Attrs().Name, err)
	}
	return slices.ContainsFunc(progs.Programs, func(p link.AttachedProgram) bool {
		other, _ := p.LinkID()
		return other == id
	}), nil
}

// locate finds the parent's device, and writes down what has become of it. The
// caller holds the lock.
func (p *parent) locate() (err error) {
	if p.link, err = p.h.parentDevice(p.folder(), p.dir, p.rec); err != nil {
		return err
	}
	if p.link != nil && p.link.Attrs().Index == p.rec.Index {
		return nil
	}
	if p.rec.Index != 0 {
		if err := p.lose(); err != nil {
			return err
		}
	}
	if p.link == nil {
		return nil
	}
	return p.regain()
}

// settle is folderOf, but where nothing is attached to the device, a parent that has
// lost its own of that name takes it first. Whoever works on that parent is waited for:
// the device would become a second parent meanwhile, and the first one's
// sub-interfaces lie dead for as long as that lasts.
func (h *Host) settle(l netlink.Link) (folder, error) {
	f, taken, err := h.folderOf(l.Attrs().Index)
	if taken || err != nil {
		return f, err
	}
	all, err := folders()
	if err != nil {
		return f, err
	}
	for _, other := range all {
		if other.cookie != h.cookie {
			continue
		}
		rec, there, err := other.record()
		if err != nil {
			return f, err
		}
		if !there || rec.Name != l.Attrs().Name {
			continue
		}
		unlock, err := lockFile(other.String())
		if err != nil {
			return f, err
		}
		err = h.reconsider(other)
		unlock()
		if err != nil {
			return f, err
		}
	}
	f, _, err = h.folderOf(l.Attrs().Index)
	return f, err
}

// lose writes down that the device is gone. What sub-interfaces send is dropped from
// now on.
func (p *parent) lose() error {
	p.rec.Index, p.rec.MTU = 0, 0
	p.h.log.Warn("the parent is gone; its sub-interfaces wait for a device of its name", "parent", p.rec.Name)
	return p.save()
}

// regain takes a device that has come, which gets what is to be on it by the same
// ways by which what others have undone is repaired. That nobody attaches to it anew
// meanwhile, the lock is held that he would need.
func (p *parent) regain() error {
	index := p.link.Attrs().Index
	f, _, err := p.h.folderOf(index)
	if err != nil {
		return err
	}
	unlock, err := flock(f.String(), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		p.link = nil
		p.h.busy()
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if now, taken, err := p.h.folderOf(index); taken || now != f || err != nil {
		p.link = nil
		p.h.busy()
		return err
	}
	p.rec.Index = index
	if err := p.forget(); err != nil {
		return err
	}
	for _, at := range p.parentHooks() {
		if there, err := p.h.attached(at); there || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		err := errors.Join(unpin(at.pin), p.attach(at))
		if at.prog == pinXDPProg {
			err = p.stepDown(err)
		}
		if err != nil {
			return fmt.Errorf("attach %s to %s again: %w", at.prog, p.rec.Name, err)
		}
	}
	p.back = true
	p.h.log.Warn("the parent is back", "parent", p.rec.Name)
	return nil
}

// forget has the records say no more of what is changed on a device that has come
// than is true: one that has been in another network namespace has kept some of it, a
// new one has nothing. What is to be on it, prepare puts there. The parent's record
// comes last, with its new device: until then all is done again.
func (p *parent) forget() error {
	at, _, err := hookOf(filepath.Join(p.dir, pinRX))
	if err != nil {
		return err
	}
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	for i, s := range subs {
		if s.State == maps.Free || !s.UCFilter && !s.Promisc {
			continue
		}
		s.UCFilter = false
		s.Promisc = s.Promisc && (at != 0 || s.Mode == maps.Passthru) // which is to make it so again
		if err := p.maps.PutSub(maps.ID(i), s); err != nil {
			return err
		}
	}
	p.rec.AddClsact, p.rec.SetForward4, p.rec.SetForward6 = false, false, false
	if at == 0 {
		p.rec.SetAllmulti, p.rec.FoundMAC = false, nil
		p.rec.HadCTag, p.rec.HadSTag, p.rec.SetPromisc = false, false, false
	}
	return p.save()
}

// prepare makes the parent receive what is for its sub-interfaces, the MACs of those
// looked at, and notes what it changes before.
func (p *parent) prepare(subs []maps.Sub, looked []maps.ID) error {
	if p.link.Attrs().RawFlags&unix.IFF_ALLMULTI == 0 {
		p.rec.SetAllmulti = true
		if err := p.save(); err != nil {
			return err
		}
		// A NIC filters multicast, above all 33:33:ff:..., without which
		// no sub-interface's IPv6 address is found.
		if err := p.h.nl.LinkSetAllmulticastOn(p.link); err != nil {
			return fmt.Errorf("turn allmulticast on: %w", err)
		}
	}
	for _, id := range looked {
		s := subs[id]
		if s.UCFilter || !s.Keyed() && !s.Promisc {
			continue
		}
		if _, err := p.openParent(id, s, s.Promisc); err != nil {
			return err
		}
	}
	if err := p.claim(subs); err != nil {
		return err
	}
	var hosts uint32
	stack := false
	for _, s := range subs {
		if s.State == maps.Active && s.HearsHost() {
			hosts++
		}
		stack = stack || s.State == maps.Active && (s.Mode == maps.L3S || s.Via)
	}
	if hosts != p.rec.Hosts {
		if err := p.openHost(hosts); err != nil {
			return err
		}
	}
	return p.forward(stack)
}
