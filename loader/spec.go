package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// NetnsID returns the number by which network namespaces are told apart that
// are there at one time, of the one that LinkSpec.Netns would name so.
func NetnsID(name string) (uint64, error) {
	s, err := openSpace(name)
	if err != nil {
		return 0, err
	}
	defer s.close()
	return s.id()
}

func (s *space) id() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(s.file.Fd()), &st); err != nil {
		return 0, fmt.Errorf("look at netns %s: %w", s.name, err)
	}
	return st.Ino, nil
}

// Spec describes a sub-interface as it would have to be asked for to be made
// again. Its addresses are those given that its device has, and on the kernel
// rung, which knows of none given, those that its device has for good. One that
// has gone since it was listed is ErrNotFound.
func (h *Host) Spec(l Link) (LinkSpec, error) {
	spec := LinkSpec{
		Parent: l.Parent, Name: l.Name, Kind: l.Kind, Mode: l.Mode, Queue: l.Queue, MAC: l.MAC, MTU: l.MTU, Netns: l.Netns,
		Source: SourceSpec{MACs: l.Sources, NoDst: l.NoDst}, NoPromisc: l.NoPromisc != nil && *l.NoPromisc,
		Up: l.Flags&unix.IFF_UP != 0, Port: l.Place == maps.Port, Netkit: l.Netkit, Host: l.Host, Via: l.Via, Owner: l.Owner, Guard: guardSpec(l.Guard), VLAN: vlanSpec(l.VLAN),
	}
	if l.Kind == maps.Ipvlan {
		spec.Flag = l.Class
	}
	if l.NoDHCP {
		spec.DHCP = new(bool)
	}
	if l.Rung.Asked() {
		spec.Datapath = Datapath(l.Rung.String())
	}
	has, err := h.prefixesOf(l)
	if errors.Is(err, unix.ENODEV) {
		return spec, fmt.Errorf("sub-interface %s: %w: it has just been removed", l.Name, ErrNotFound)
	}
	if err != nil {
		return spec, err
	}
	for p, flags := range has {
		given := slices.Contains(l.Addrs, LinkAddr{Addr: p.Addr(), Origin: maps.Given})
		if l.ID == 0 {
			given = flags&unix.IFA_F_PERMANENT != 0 && !p.Addr().IsLinkLocalUnicast()
		}
		if given {
			spec.Addrs = append(spec.Addrs, p)
		}
	}
	slices.SortFunc(spec.Addrs, netip.Prefix.Compare)
	return spec, nil
}

// prefixesOf lists the addresses of a sub-interface's device.
func (h *Host) prefixesOf(l Link) (map[netip.Prefix]uint8, error) {
	if l.ID != 0 {
		return prefixesIn(l.nsid, l.Index)
	}
	s, err := openSpace(l.Netns)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var all map[netip.Prefix]uint8
	err = s.within(func() (err error) {
		all, err = prefixesIn(-1, l.Index)
		return err
	})
	return all, err
}

// Doomed is what will not be there any more when a sub-interface is made or
// changed that is looked at before.
type Doomed struct {
	Links  []Link // also the one itself, where it is only to be changed
	Parent bool   // the parent is to be attached anew
}

// Check finds what Add would refuse of a sub-interface, changing nothing. What
// the kernel refuses only when it is asked for it does not find.
func (h *Host) Check(spec LinkSpec, gone Doomed) error {
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
	if err := in.free(spec.Name); err != nil && !gone.has(in, spec.Name) {
		return err
	}
	if spec.Mode == maps.L3S {
		if err := canStack(addrsOf(spec.Addrs)); err != nil {
			return err
		}
	}
	p, rung, err := h.checkOn(spec.Parent, spec.Datapath, gone.Parent)
	if err != nil {
		return err
	}
	if p != nil {
		defer p.close()
		subs, err := p.maps.Subs()
		if err != nil {
			return err
		}
		subs = slices.Clone(subs)
		for _, g := range gone.Links {
			if g.Parent == spec.Parent {
				subs[g.ID].State = maps.Free
			}
		}
		if err := p.unique(&spec, subs); err != nil {
			return err
		}
	}
	if rung.Rung != maps.RungKernel {
		if !spec.Port {
			return nil
		}
		return checkPort(spec.Parent, rung, spec.Mode)
	}
	if missing := h.probeKind(spec.Kind.String()); missing != "" {
		return fmt.Errorf("type %s: %w: %s, and the kernel rung needs it", spec.Kind, ErrUnsupported, missing)
	}
	siblings, err := h.kernelLinks(l.Attrs().Index)
	if err != nil {
		return err
	}
	siblings = slices.DeleteFunc(siblings, func(k kernelLink) bool {
		return slices.ContainsFunc(gone.Links, func(g Link) bool { return g.Name == k.link.Attrs().Name && g.Netns == k.space })
	})
	if spec.MTU == 0 {
		spec.MTU = l.Attrs().MTU
	}
	return checkKernel(l, &spec, siblings)
}

// has tells whether a device in a namespace is among the doomed.
func (d *Doomed) has(in *space, name string) bool {
	return slices.ContainsFunc(d.Links, func(l Link) bool {
		if l.Name != name || l.Netns == "" {
			return l.Name == name && in.own
		}
		there, err := openSpace(l.Netns)
		if err != nil {
			return false
		}
		defer there.close()
		same, err := sameFile(in.file, there.file.Name())
		return err == nil && same
	})
}

// CheckAttach finds what Attach would refuse, changing nothing; anew says that
// the parent will have been detached.
func (h *Host) CheckAttach(name string, spec AttachSpec, anew bool) error {
	p, rung, err := h.checkOn(name, spec.Datapath, anew)
	if err != nil {
		return err
	}
	if rung.Rung == maps.RungKernel {
		return kernelAttach(name, rung)
	}
	if p == nil {
		return nil
	}
	defer p.close()
	return p.checkCapacity(spec.Capacity)
}

// checkOn is openOn without the lock, for a look.
func (h *Host) checkOn(name string, want Datapath, anew bool) (*parent, Rung, error) {
	l, err := h.parentLink(name)
	if err != nil {
		return nil, Rung{}, err
	}
	if anew {
		rung, err := h.choose(l, want)
		return nil, rung, err
	}
	return h.openOn(l, want)
}
