package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// A sub-interface that is in a VLAN meets, on its parent, only who is in that, too: it
// sends and receives without a tag what the wire carries with one. A trunk is in
// several, keeps their tags, and may have untagged frames besides. A VLAN that somebody
// is in is claimed, and from then on no others get what has its tag.

// VLAN says in which VLANs a sub-interface is; the zero VLAN is none.
type VLAN struct {
	ID    uint16     // of the 802.1Q tag on its untagged frames; 0: none
	Outer uint16     // of the service tag in front of that; 0: none
	Trunk maps.Trunk // what it keeps the tags of; zero for no trunk
}

// String is the VLAN in the words that it is asked for with, "" for none.
func (v VLAN) String() string {
	s := ""
	if v.ID != 0 {
		s += fmt.Sprintf(" vlan %d", v.ID)
	}
	if v.Outer != 0 {
		s += fmt.Sprintf(" qinq %d", v.Outer)
	}
	if v.IsTrunk() {
		s += fmt.Sprintf(" trunk %s", v.Trunk)
	}
	if s != "" {
		s = s[1:]
	}
	return s
}

// IsTrunk tells whether it keeps tags.
func (v VLAN) IsTrunk() bool { return v.Trunk != maps.Trunk{} }

// Untagged is the VLAN of frames without a tag.
func (v VLAN) Untagged() maps.VLAN {
	if v.IsTrunk() && v.ID == 0 && !v.Trunk.Has(0) {
		return maps.NoVLAN
	}
	return maps.NewVLAN(v.ID, v.Outer)
}

// Meets tells whether a MAC that both have would be the same one's.
func (v VLAN) Meets(o VLAN) bool {
	a, b := v.Untagged(), o.Untagged()
	has := func(t *maps.Trunk, v maps.VLAN) bool { return v <= maps.LastVLAN && t.Has(uint16(v)) }
	return v.IsTrunk() && o.IsTrunk() || a == b || has(&v.Trunk, b) || has(&o.Trunk, a)
}

// VLANSpec describes in which VLANs a sub-interface is to be, or a change of that.
type VLANSpec struct {
	ID    *uint16     // nil: none, or as it is; with it goes the service tag that was there
	Outer *uint16     // nil: likewise
	Trunk *maps.Trunk // nil: likewise
}

// Of is what becomes of a VLAN.
func (s VLANSpec) Of(v VLAN) VLAN {
	if s.ID != nil {
		v.ID, v.Outer = *s.ID, 0
	}
	if s.Outer != nil {
		v.Outer = *s.Outer
	}
	if s.Trunk != nil {
		v.Trunk = *s.Trunk
	}
	return v
}

// vlanSpec describes a VLAN in as few words as it takes.
func vlanSpec(v VLAN) (s VLANSpec) {
	if v.ID != 0 {
		s.ID = &v.ID
	}
	if v.Outer != 0 {
		s.Outer = &v.Outer
	}
	if v.IsTrunk() {
		s.Trunk = &v.Trunk
	}
	return s
}

// Parse reads the words for a VLAN, its service tag and a trunk, "" for what is not
// said and off for none.
func (s *VLANSpec) Parse(vlan, qinq, trunk string) error {
	for _, word := range []struct {
		key, value string
		to         **uint16
	}{{"vlan", vlan, &s.ID}, {"qinq", qinq, &s.Outer}} {
		if word.value == "" {
			continue
		}
		n, err := strconv.ParseUint(word.value, 10, 16)
		if word.value != "off" && (err != nil || n == 0 || n > maps.LastVLAN) {
			return fmt.Errorf("%s %q: %w: no VLAN ID from 1 to %d, nor off", word.key, word.value, ErrInvalid, maps.LastVLAN)
		}
		id := uint16(n)
		*word.to = &id
	}
	if trunk == "" {
		return nil
	}
	var t maps.Trunk
	if trunk != "off" {
		var err error
		if t, err = maps.ParseTrunk(trunk); err != nil {
			return fmt.Errorf("trunk %q: %w: %w; write a list such as 0,10,20-29, or off", trunk, ErrInvalid, err)
		}
	}
	s.Trunk = &t
	return nil
}

var errKernelVLAN = fmt.Errorf("vlan, trunk: %w: the kernel rung has neither; make a VLAN device and name that as the parent, or ask for datapath tc", ErrUnsupported)

// holds refuses addresses that nobody could be reached at.
func (v VLAN) holds(addrs []netip.Addr) error {
	if len(addrs) == 0 || v.Untagged() != maps.NoVLAN {
		return nil
	}
	return fmt.Errorf("addr %s: %w: a trunk without untagged frames speaks from none; put 0 on its list, say which VLAN they are in, "+
		"or set it on a VLAN device inside", addrs[0], ErrUnsupported)
}

// canPort refuses delivery to an XDP program that would not see in which VLAN a frame is.
func (v VLAN) canPort() error {
	if !v.IsTrunk() {
		return nil
	}
	return fmt.Errorf("delivery xdp: %w: a trunk's tags stand beside its frames, where an XDP program does not see them", ErrUnsupported)
}

// suits refuses what does not go with VLANs, or with each other.
func (v VLAN) suits(mode maps.Mode, host bool, guard maps.Guard) error {
	key := "vlan"
	if v.IsTrunk() {
		key = "trunk"
	}
	why := ""
	switch {
	case v == VLAN{}:
		return nil
	case v.Outer != 0 && v.ID == 0:
		return fmt.Errorf("qinq %d: %w: it is what stands in front of a VLAN's tag; say which: vlan ID", v.Outer, ErrInvalid)
	case v.Outer != 0 && v.IsTrunk():
		return fmt.Errorf("qinq %d: %w: a trunk's frames have one tag; leave it out", v.Outer, ErrUnsupported)
	case v.IsTrunk() && v.ID != 0 && (v.Trunk.Has(0) || v.Trunk.Has(v.ID)):
		return fmt.Errorf("trunk %s: %w: untagged frames are in VLAN %d; take 0 and %[3]d off the list", v.Trunk, ErrInvalid, v.ID)
	case mode == maps.Passthru:
		why = "mode passthru has all tags that nobody else wants"
	case mode == maps.Source:
		why = "mode source goes by senders alone"
	case mode.Routed():
		why = fmt.Sprintf("mode %s goes by the routes of the parent's namespace, which know of no VLAN", mode)
	case v.IsTrunk() && mode.IsIpvlan():
		why = "an ipvlan is found by its addresses, and may have the same in several VLANs; use type macvlan, or an ipvlan in each"
	case v.IsTrunk() && guard.On:
		why = "a guard lets nothing pass that has a tag; use vlan, or turn it off before: guard off"
	case host:
		why = "the host is in no VLAN of the parent's; turn off before what leads to it: host off, via-host off"
	default:
		return nil
	}
	return fmt.Errorf("%s: %w: %s", key, ErrUnsupported, why)
}

// checkVLAN refuses VLANs that the parent has a device for: it comes first. All
// namespaces are looked at by asking for another such device, which the kernel
// refuses for that reason, or for an MTU that a device cannot have.
func (h *Host) checkVLAN(parent netlink.Link, v VLAN) error {
	if _, err := os.Stat("/proc/thread-self/net/vlan"); errors.Is(err, fs.ErrNotExist) || v == (VLAN{}) {
		return nil // without the driver nobody has one
	}
	taken := func(id uint16, proto netlink.VlanProtocol) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex, attrs.MTU = "xvprobe", parent.Attrs().Index, 65535
		l := &netlink.Vlan{LinkAttrs: attrs, VlanId: int(id), VlanProtocol: proto}
		switch err := h.nl.LinkAdd(l); {
		case err == nil:
			return h.nl.LinkDel(l)
		case errors.Is(err, unix.EEXIST):
			return fmt.Errorf("vlan %d: %w: %s has a VLAN device of that ID, which comes first; name that as the parent, or delete it",
				id, ErrExists, parent.Attrs().Name)
		}
		return nil // whoever makes the sub-interface finds out what else is wrong
	}
	if v.Outer != 0 {
		return taken(v.Outer, netlink.VLAN_PROTOCOL_8021AD)
	}
	if v.ID != 0 {
		if err := taken(v.ID, netlink.VLAN_PROTOCOL_8021Q); err != nil {
			return err
		}
	}
	for id := range v.Trunk.All() {
		if id == 0 {
			continue
		}
		if err := taken(id, netlink.VLAN_PROTOCOL_8021Q); err != nil {
			return err
		}
	}
	return nil
}

// vlanOf is the VLAN of a record.
func vlanOf(set *maps.Set, id maps.ID, sub maps.Sub) (v VLAN, err error) {
	if sub.Trunk {
		if v.Trunk, err = set.Trunk(id); err != nil {
			return v, err
		}
		if sub.VLAN == 0 {
			v.Trunk.Add(0, 0)
		}
	}
	if sub.VLAN != maps.NoVLAN {
		v.ID, v.Outer = sub.VLAN.IDs()
	}
	return v, nil
}

// macTaken tells whether a sibling has a MAC where one in these VLANs would, too.
func (p *parent) macTaken(subs []maps.Sub, self maps.ID, mac net.HardwareAddr, v VLAN) (bool, error) {
	for i, s := range subs {
		if maps.ID(i) == self || s.State == maps.Free || !s.Keyed() || !slices.Equal(s.MAC, mac) {
			continue
		}
		other, err := vlanOf(p.maps, maps.ID(i), s)
		if err != nil {
			return false, err
		}
		if v.Meets(other) {
			return true, nil
		}
	}
	return false, nil
}

// putVLAN gives a record its VLAN, and writes what it refers to.
func (p *parent) putVLAN(id maps.ID, sub *maps.Sub, v VLAN) error {
	sub.VLAN, sub.Trunk = v.Untagged(), v.IsTrunk()
	if !sub.Trunk {
		return nil
	}
	return p.maps.PutTrunk(id, v.Trunk)
}

// putMACs makes a sub-interface's MAC lead to it.
func (p *parent) putMACs(id maps.ID, sub maps.Sub) error {
	for _, v := range sub.MACVLANs() {
		if err := p.maps.PutMAC(v, sub.MAC, maps.Dest{ID: id, Gen: sub.Gen, Origin: maps.Given}); err != nil {
			return err
		}
	}
	return nil
}

// deleteMACs undoes putMACs.
func (p *parent) deleteMACs(id maps.ID, sub maps.Sub) error {
	for _, v := range sub.MACVLANs() {
		d, ok, err := p.maps.MAC(v, sub.MAC)
		if err != nil {
			return err
		}
		if ok && d.ID == id {
			if err := p.maps.DeleteMAC(v, sub.MAC); err != nil {
				return err
			}
		}
	}
	return nil
}

// claim claims the VLANs that the records say, and has the parent receive them. It is
// the only one that does, so that whatever an interruption has left is put right by
// the next look.
func (p *parent) claim(subs []maps.Sub) error {
	want, number, trunks := map[maps.VLAN]bool{}, uint32(0), uint32(0)
	for i, s := range subs {
		if s.State == maps.Free || s.VLAN == 0 && !s.Trunk {
			continue
		}
		number++
		v, err := vlanOf(p.maps, maps.ID(i), s)
		if err != nil {
			return err
		}
		for id := range v.Trunk.All() {
			want[maps.VLAN(id)] = true
		}
		if s.Trunk {
			trunks++
		}
		if s.VLAN != maps.NoVLAN {
			want[s.VLAN] = true
		}
	}
	delete(want, 0)
	if number == 0 && p.rec.VLANs == 0 {
		return nil
	}
	if err := p.maps.Claim(want); err != nil {
		return err
	}
	if p.rec.VLANs != number || p.rec.Trunks != trunks {
		p.rec.VLANs, p.rec.Trunks = number, trunks
		if err := p.save(); err != nil {
			return err
		}
	}
	return p.openTags()
}

// dropStrays deletes the keys that lead to sub-interfaces under VLANs that they are in
// no more: a change that was interrupted leaves them.
func (p *parent) dropStrays(subs []maps.Sub) error {
	macs, err := p.maps.MACs()
	if err != nil {
		return err
	}
	for _, m := range macs {
		s := subs[m.ID]
		if s.State != maps.Free && s.Gen == m.Gen && s.Keyed() && slices.Equal(s.MAC, m.MAC) && slices.Contains(s.MACVLANs(), m.VLAN) {
			continue
		}
		if err := p.maps.DeleteMAC(m.VLAN, m.MAC); err != nil {
			return err
		}
	}
	addrs, err := p.maps.Addrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if s := subs[a.ID]; a.Origin == maps.Reserved || s.Gen != a.Gen || s.VLAN == a.VLAN {
			continue
		}
		if err := p.maps.DeleteAddr(a.VLAN, a.Addr); err != nil {
			return err
		}
	}
	return nil
}

// SetVLAN takes a sub-interface to other VLANs, with its given addresses. Learned ones
// it has to speak from again.
func (h *Host) SetVLAN(sel Selector, spec VLANSpec) error {
	return h.change(sel,
		func(kernelLink) error {
			if spec.Of(VLAN{}) != (VLAN{}) {
				return errKernelVLAN
			}
			return nil
		},
		func(p *parent, l Link, sub maps.Sub) error {
			v := spec.Of(l.VLAN)
			if v == l.VLAN {
				return nil
			}
			return p.setVLAN(l, sub, v)
		})
}

// setVLAN enters the new keys, then writes the record, and deletes the old keys last;
// while both are there, the record decides.
func (p *parent) setVLAN(l Link, sub maps.Sub, v VLAN) error {
	if err := v.suits(sub.Mode, sub.HearsHost(), l.Guard); err != nil {
		return err
	}
	if sub.Place == maps.Port {
		if err := v.canPort(); err != nil {
			return err
		}
	}
	if err := p.sure(func() error { return p.freeVLAN(l, sub, v) }); err != nil {
		return err
	}
	was := sub
	if err := p.enterVLAN(l, &sub, v); err != nil {
		return errors.Join(err, p.putVLAN(l.ID, &was, l.VLAN), p.maps.PutSub(l.ID, was), p.settleVLAN(l.ID, was))
	}
	if err := p.settleVLAN(l.ID, sub); err != nil {
		return err
	}
	if err := p.follow(); err != nil {
		return err
	}
	p.announceAll(func(s maps.Sub) bool { return s.Leg == sub.Leg })
	return nil
}

// freeVLAN refuses VLANs where somebody has a sub-interface's MAC or given addresses.
func (p *parent) freeVLAN(l Link, sub maps.Sub, v VLAN) error {
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	if p.link != nil {
		if err := p.h.checkVLAN(p.link, v); err != nil {
			return err
		}
	}
	if taken, err := p.macTaken(subs, l.ID, sub.MAC, v); err != nil {
		return err
	} else if taken {
		return fmt.Errorf("address %s: %w: a sibling on %s has it where this one would, too; change it before", sub.MAC, ErrExists, p.rec.Name)
	}
	subs = slices.Clone(subs)
	subs[l.ID].State = maps.Free // what it has itself it may have
	given := givenOf(l)
	if err := v.holds(given); err != nil {
		return err
	}
	return p.uniqueAddrs(v, given, subs)
}

// enterVLAN enters a sub-interface's keys in other VLANs, and writes its record.
func (p *parent) enterVLAN(l Link, sub *maps.Sub, v VLAN) error {
	if err := p.putVLAN(l.ID, sub, v); err != nil {
		return err
	}
	for _, a := range givenOf(l) {
		if err := p.maps.ReplaceAddr(sub.VLAN, a, maps.Dest{ID: l.ID, Gen: sub.Gen, Origin: maps.Given}); err != nil {
			return err
		}
	}
	if sub.Keyed() {
		if err := p.putMACs(l.ID, *sub); err != nil {
			return err
		}
	}
	return p.maps.PutSub(l.ID, *sub)
}

// settleVLAN makes the rest agree with a record whose VLANs are others.
func (p *parent) settleVLAN(id maps.ID, sub maps.Sub) error {
	if !sub.Trunk {
		if err := p.maps.DeleteTrunk(id); err != nil {
			return err
		}
	}
	if err := p.reindex(sub); err != nil {
		return err
	}
	subs, err := p.maps.Subs()
	if err != nil {
		return err
	}
	return p.dropStrays(subs)
}
