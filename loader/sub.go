package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
)

// Add makes a sub-interface, attaching its parent first if need be. It either
// succeeds or leaves everything as it was.
func (h *Host) Add(spec LinkSpec) error {
	l, err := h.parentLink(spec.Parent)
	if err != nil {
		return err
	}
	if err := spec.check(l); err != nil {
		return err
	}
	if err := errors.Join(h.checkNetkit(&spec), h.checkVLAN(l, spec.VLAN.Of(VLAN{}))); err != nil {
		return err
	}
	in, err := openSpace(spec.Netns)
	if err != nil {
		return err
	}
	defer in.close()
	if err := h.free(in, spec.Name); err != nil {
		return err
	}
	l, unlock, err := h.lockParent(spec.Parent)
	if err != nil {
		return err
	}
	defer unlock()
	p, rung, err := h.openOn(l, spec.Datapath)
	if err != nil {
		return err
	}
	if spec.MTU == 0 {
		spec.MTU = l.Attrs().MTU
	}
	if rung.Rung == maps.RungKernel {
		return h.addKernel(l, rung, in, &spec)
	}
	if p == nil {
		if p, err = h.attach(l, rung, AttachSpec{}); err != nil {
			return err
		}
	}
	defer p.close()
	if err := p.glance(); err != nil {
		return errors.Join(err, p.detachIfEmpty())
	}
	if err := p.add(in, &spec); err != nil {
		return errors.Join(err, p.detachIfEmpty())
	}
	return nil
}

// add makes a sub-interface on an attached parent. The record comes first and
// says PENDING; that it says ACTIVE in the end is what makes everything valid
// at once, the keys that were entered before included. Whatever fails, or is
// killed, remove undoes. A pending sub-interface may send, so that duplicate
// address detection, which starts when it is set up, does not pass unheard.
func (p *parent) add(in *space, spec *LinkSpec) (err error) {
	var id maps.ID
	var sub maps.Sub
	err = p.sure(func() error {
		subs, err := p.maps.Subs()
		if err != nil {
			return err
		}
		if err := p.unique(spec, subs); err != nil {
			return err
		}
		id, sub, err = p.freeID(subs)
		return err
	})
	if err != nil {
		return err
	}
	if spec.Port {
		if err := checkPort(p.rec.Name, Rung{p.rec.Rung, p.rec.Reason}, spec.Mode); err != nil {
			return err
		}
	}
	switch {
	case spec.Mode == maps.Passthru:
		spec.MAC = p.rec.MAC
	case spec.MAC == nil:
		spec.MAC = randomMAC()
	}
	if err := p.take(id); err != nil {
		return err
	}
	sub.Kind, sub.Mode, sub.Class, sub.MAC, sub.Name = spec.Kind, spec.Mode, spec.class(), spec.MAC, spec.Name
	sub.NoDst, sub.Netkit, sub.Host = spec.Source.NoDst, spec.Netkit, spec.Host
	sub.NoDHCP = spec.DHCP != nil && !*spec.DHCP
	if err := p.putVLAN(id, &sub, spec.VLAN.Of(VLAN{})); err != nil {
		return err
	}
	guard, err := p.putGuard(id, spec.Guard.Of(maps.Guard{}), addrsOf(spec.Addrs))
	if err != nil {
		return err
	}
	sub.Guarded = guard.Active()
	if err := p.maps.PutVia(id, spec.Via); err != nil {
		return err
	}
	sub.Via = len(spec.Via) > 0
	if spec.Port {
		sub.Place = maps.Port
	}
	sub.Place = placeOf(sub, !in.own)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.remove(id, sub))
		}
	}()
	if err := p.maps.PutSub(id, sub); err != nil {
		return err
	}
	leg := p.legName(id)
	if sub.Leg, err = p.h.addLegs(leg, in, spec); err != nil {
		return err
	}
	if spec.Port {
		if err := p.openPort(id, sub, in, spec.Name); err != nil {
			return err
		}
	}
	if err := p.hookLeg(id, leg, sub, spec.Owner); err != nil {
		return err
	}
	if spec.Mode.Routed() {
		if err := p.addRouted(leg, sub, in, spec); err != nil {
			return err
		}
	}
	if sub, err = p.meet(id, sub); err != nil {
		return err
	}
	if sub, err = p.openParent(id, sub, !spec.NoPromisc); err != nil {
		return err
	}
	if err := p.enterKeys(id, sub, spec); err != nil {
		return err
	}
	if err := in.configure(spec); err != nil {
		return err
	}
	active := sub
	active.State = maps.Active
	if err := p.maps.PutSub(id, active); err != nil {
		return err
	}
	p.warnViaBack(spec.Name, spec.Via, addrsOf(spec.Addrs))
	return nil
}

// unique refuses what a sibling, the host or a gateway has: MACs, addresses,
// or, if it is passthru, the parent.
func (p *parent) unique(spec *LinkSpec, subs []maps.Sub) error {
	for _, s := range subs {
		if s.State != maps.Free && (s.Mode == maps.Passthru || spec.Mode == maps.Passthru) {
			return fmt.Errorf("mode passthru: %w: it leaves nothing for siblings, and %s has %s (mode %s) on it",
				ErrBusy, p.rec.Name, s.Name, s.Mode)
		}
	}
	v := spec.VLAN.Of(VLAN{})
	if spec.MAC != nil {
		if taken, err := p.macTaken(subs, 0, spec.MAC, v); err != nil {
			return err
		} else if taken {
			return fmt.Errorf("address %s: %w: a sibling on %s has it; leave it out for a random one", spec.MAC, ErrExists, p.rec.Name)
		}
	}
	return p.uniqueAddrs(v, addrsOf(spec.Addrs), subs)
}

// uniqueAddrs refuses addresses that somebody has in a VLAN.
func (p *parent) uniqueAddrs(v VLAN, addrs []netip.Addr, subs []maps.Sub) error {
	for _, a := range addrs {
		d, taken, err := p.maps.Addr(v.Untagged(), a)
		if err != nil {
			return err
		}
		if taken && (d.Origin == maps.Reserved || subs[d.ID].State != maps.Free) {
			return p.addrTaken(a.String(), d)
		}
		if p.left && v.Untagged() == 0 && p.h.isLocal(a) { // since the last look at everything
			return p.addrTaken(a.String(), maps.Dest{Origin: maps.Reserved})
		}
	}
	return nil
}

func (p *parent) addrTaken(addr string, d maps.Dest) error {
	whose := "the host or its gateway has it"
	if d.Origin != maps.Reserved {
		sub, err := p.maps.Sub(d.ID)
		if err != nil {
			return err
		}
		whose = fmt.Sprintf("its sibling %s on %s has it (%s)", sub.Name, p.rec.Name, d.Origin)
	}
	return fmt.Errorf("addr %s: %w: %s; choose another", addr, ErrExists, whose)
}

// freeID finds the free id that has been so for longest, and the record to begin with.
// The new generation voids whatever entries its last owner left.
func (p *parent) freeID(subs []maps.Sub) (maps.ID, maps.Sub, error) {
	for i := range p.rec.Capacity {
		id := maps.ID((uint32(p.rec.LastID)+i)%p.rec.Capacity + 1)
		if subs[id].State == maps.Free {
			return id, maps.Sub{State: maps.Pending, Gen: subs[id].Gen + 1}, nil
		}
	}
	return 0, maps.Sub{}, fmt.Errorf("parent %s: %w: all %d sub-interfaces it was attached for; "+
		"detach it and attach it with a higher capacity", p.rec.Name, ErrExists, p.rec.Capacity)
}

// take prepares a free id.
func (p *parent) take(id maps.ID) error {
	if err := p.maps.Reset(id); err != nil {
		return err
	}
	p.rec.LastID = id
	return p.save()
}

// hookLeg puts xvlan_tx on the host leg before it is up: no frame of the inner
// leg's ever meets the host's stack.
func (p *parent) hookLeg(id maps.ID, leg string, sub maps.Sub, owner string) error {
	if err := p.maps.PutSub(id, sub); err != nil { // with the leg's index
		return err
	}
	if err := p.maps.PutLeg(sub.Leg, maps.Dest{ID: id, Gen: sub.Gen}); err != nil {
		return err
	}
	if err := p.reindex(sub); err != nil {
		return err
	}
	for _, at := range p.legHooks(id, sub) {
		if err := p.attach(at); err != nil {
			return err
		}
	}
	return p.h.startLeg(leg, sub.Leg, owner)
}

// meet lets the programs know where the kernel keeps the inner leg, by which
// they see at any moment whether it is up: nobody else can tell them in time.
// Where a program may not look, all count as up.
func (p *parent) meet(id maps.ID, sub maps.Sub) (maps.Sub, error) {
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(p.dir, pinMeet), nil)
	if err != nil {
		return sub, fmt.Errorf("open pinned program: %w", err)
	}
	defer prog.Close()
	if err := bpf.Meet(prog, sub.Leg); err != nil {
		p.h.log.Warn("the programs will take the sub-interface for up at all times", "parent", p.rec.Name, "name", sub.Name, "err", err)
		return sub, nil
	}
	return p.maps.Sub(id)
}

// pin is where a sub-interface's link of a kind is pinned.
func (p *parent) pin(kind string, id maps.ID) string {
	return filepath.Join(p.dir, fmt.Sprintf("%s%d", kind, id))
}

// openParent makes the parent receive what is for the sub-interface.
func (p *parent) openParent(id maps.ID, sub maps.Sub, promisc bool) (maps.Sub, error) {
	if p.link == nil {
		return sub, nil
	}
	if sub.Keyed() && filters(p.link) {
		return p.openFilter(id, sub)
	}
	if sub.Mode != maps.Passthru || !promisc || p.link.Attrs().RawFlags&unix.IFF_PROMISC != 0 {
		return sub, nil
	}
	sub.Promisc = true
	if err := p.maps.PutSub(id, sub); err != nil {
		return sub, err
	}
	if err := p.h.nl.SetPromiscOn(p.link); err != nil {
		return sub, fmt.Errorf("make %s promiscuous: %w", p.rec.Name, err)
	}
	return sub, nil
}

// closeParent undoes openParent.
func (p *parent) closeParent(sub maps.Sub) error {
	if p.link == nil {
		return nil
	}
	inherited, err := p.bequeath(sub)
	if err != nil {
		return err
	}
	if sub.UCFilter && !inherited {
		err := p.uc(sub.MAC, false)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove %s from the unicast filter of %s: %w", sub.MAC, p.rec.Name, err)
		}
	}
	if sub.Promisc {
		if err := p.endPromisc(sub); err != nil {
			return err
		}
	}
	if sub.Mode == maps.Passthru {
		return p.putMACBack()
	}
	return nil
}

// openFilter lets the sub-interface's MAC in, and notes it before, unless
// somebody else has done so already: then it stays theirs.
func (p *parent) openFilter(id maps.ID, sub maps.Sub) (maps.Sub, error) {
	sub.UCFilter = true
	if err := p.maps.PutSub(id, sub); err != nil {
		return sub, err
	}
	err := p.uc(sub.MAC, true)
	if errors.Is(err, unix.EEXIST) {
		sub.UCFilter = false
		return sub, p.maps.PutSub(id, sub)
	}
	if err != nil {
		return sub, fmt.Errorf("add %s to the unicast filter of %s: %w", sub.MAC, p.rec.Name, err)
	}
	return sub, nil
}

// bequeath leaves the MAC in the filter to a sibling in another VLAN that has it, too,
// and tells whether there is one.
func (p *parent) bequeath(sub maps.Sub) (bool, error) {
	if !sub.UCFilter || sub.VLAN == 0 && p.rec.VLANs == 0 {
		return false, nil
	}
	subs, err := p.maps.Subs()
	if err != nil {
		return false, err
	}
	for i, s := range subs {
		if s.State != maps.Active || s.Leg == sub.Leg || !s.Keyed() || !slices.Equal(s.MAC, sub.MAC) {
			continue
		}
		s.UCFilter = true
		return true, p.maps.PutSub(maps.ID(i), s)
	}
	return false, nil
}

// refilter lets the sub-interface's MAC in again where somebody has taken it out, or
// the parent has been in another network namespace meanwhile: the kernel lists such
// entries for all devices at once only, so it is tried.
func (p *parent) refilter(sub maps.Sub) error {
	if p.link == nil || !sub.UCFilter {
		return nil
	}
	err := p.uc(sub.MAC, true)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("add %s to the unicast filter of %s: %w", sub.MAC, p.rec.Name, err)
	}
	p.h.log.Warn("a mac was missing in the parent's unicast filter: added again", "parent", p.rec.Name, "name", sub.Name, "mac", sub.MAC)
	return nil
}

func (p *parent) enterKeys(id maps.ID, sub maps.Sub, spec *LinkSpec) error {
	d := maps.Dest{ID: id, Gen: sub.Gen, Origin: maps.Given}
	for _, a := range spec.Addrs {
		if err := p.maps.PutAddr(sub.VLAN, a.Addr(), d); errors.Is(err, ebpf.ErrKeyExist) {
			// Learned by a sibling since unique looked.
			return fmt.Errorf("addr %s: %w: a sibling has just taken it; choose another", a.Addr(), ErrExists)
		} else if err != nil {
			return err
		}
	}
	for _, mac := range spec.Source.MACs {
		if err := p.maps.PutSource(id, mac); err != nil {
			return err
		}
	}
	if sub.Keyed() {
		if err := p.putMACs(id, sub); err != nil {
			return err
		}
	}
	return p.maps.SetMember(id, !sub.Mode.Routed())
}

// remove undoes add from wherever it had come to, in the reverse order, and
// may itself be interrupted and repeated.
func (p *parent) remove(id maps.ID, sub maps.Sub) error {
	sub.State = maps.Pending
	if err := p.maps.PutSub(id, sub); err != nil {
		return err
	}
	if err := p.maps.SetMember(id, false); err != nil {
		return err
	}
	if err := p.unmeet(id, sub); err != nil {
		return err
	}
	if err := p.removeKeys(id, sub); err != nil {
		return err
	}
	if err := p.closeParent(sub); err != nil {
		return err
	}
	if sub.Place == maps.Port {
		if err := p.maps.DeletePort(id); err != nil {
			return err
		}
	}
	if err := p.h.delDevice(p.legName(id)); err != nil {
		return err
	}
	if err := errors.Join(unpin(p.pin(pinLeg, id)), unpin(p.pin(pinTurn, id))); err != nil {
		return err
	}
	if sub.Leg != 0 {
		if err := p.maps.DeleteLeg(sub.Leg); err != nil {
			return err
		}
	}
	if err := p.maps.PutSub(id, maps.Sub{Gen: sub.Gen}); err != nil {
		return err
	}
	if err := p.maps.DeleteTrunk(id); err != nil {
		return err
	}
	return p.reindex(sub)
}

// removeKeys deletes all that leads to a sub-interface, learned addresses too.
func (p *parent) removeKeys(id maps.ID, sub maps.Sub) error {
	if sub.Keyed() {
		if err := p.deleteMACs(id, sub); err != nil {
			return err
		}
	}
	if sub.Mode == maps.Source {
		if err := p.flushSources(id); err != nil {
			return err
		}
	}
	if err := p.maps.PutVia(id, nil); err != nil {
		return err
	}
	addrs, err := p.maps.Addrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.ID != id {
			continue
		}
		if err := p.maps.DeleteAddr(a.VLAN, a.Addr); err != nil {
			return err
		}
	}
	return nil
}

// reindex brings up to date what is derived from the records when one of them
// has come or gone: its slots, and of which sorts there are any, those being
// made among them. Of what there is none, frames are spared the look-up.
func (p *parent) reindex(sub maps.Sub) error {
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	if err := p.maps.Reindex(sub, subs); err != nil {
		return err
	}
	p.rec.IPKeyed, p.rec.Sources, p.rec.Passthru, p.rec.Ports = 0, 0, 0, 0
	var hosts uint32
	stack := false
	for i, s := range subs {
		if s.State != maps.Free && s.HearsHost() {
			hosts++
		}
		stack = stack || s.State != maps.Free && s.Via
		if s.State != maps.Free && s.Place == maps.Port {
			p.rec.Ports++
		}
		switch {
		case s.State == maps.Free:
		case s.Kind == maps.Ipvlan:
			p.rec.IPKeyed++
			stack = stack || s.Mode == maps.L3S
		case s.Mode == maps.Source:
			p.rec.Sources++
		case s.Mode == maps.Passthru:
			p.rec.Passthru = maps.ID(i)
		}
	}
	if err := p.claim(subs); err != nil {
		return err
	}
	if err := p.openHost(hosts); err != nil {
		return err
	}
	return p.forward(stack)
}
