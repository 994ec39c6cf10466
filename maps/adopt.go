package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
)

// Adopted is what a Set had taken over from an older version's maps while that
// version's programs went on.
type Adopted struct {
	set   *Set
	older *Older
	state live
}

// live is what the programs change.
type live struct {
	addrs map[addrKey]Dest
	rings map[uint32][]bpf.XvlanRing
	stats map[uint32][]bpf.XvlanSubStats // for each CPU
}

func (o *Older) live() (l live, err error) {
	if l.addrs, err = o.addrs(); err != nil {
		return l, err
	}
	if l.rings, err = oldEntries[uint32, bpf.XvlanRing](o, bpf.XvlanMapLearned, "", "ring"); err != nil {
		return l, err
	}
	l.stats, err = oldEntries[uint32, bpf.XvlanSubStats](o, bpf.XvlanMapStats, "", "sub_stats")
	return l, err
}

// Adopt fills a Set, made for the same capacity and empty, with all that an older
// version's maps hold but who watches. Finish has to follow.
func (s *Set) Adopt(o *Older) (*Adopted, error) {
	if err := s.adoptRecords(o); err != nil {
		return nil, err
	}
	if err := s.adoptKeys(o); err != nil {
		return nil, err
	}
	state, err := o.live()
	if err != nil {
		return nil, err
	}
	for k, d := range state.addrs {
		if err := s.PutAddr(k.vlan, k.addr, d); err != nil {
			return nil, err
		}
	}
	for id, ring := range state.rings {
		if err := s.learned.Put(id, &ring[0]); err != nil {
			return nil, fmt.Errorf("write learned addresses of %d: %w", id, err)
		}
	}
	for id, perCPU := range state.stats {
		if err := s.stats.Put(id, perCPU); err != nil {
			return nil, fmt.Errorf("write counters of %d: %w", id, err)
		}
	}
	return &Adopted{s, o, state}, nil
}

// adoptRecords takes over the records of the parent and of its sub-interfaces,
// and finds those the slots they fall into.
func (s *Set) adoptRecords(o *Older) error {
	meta, err := oldOne[bpf.XvlanParent](o, bpf.MapMeta, "parent")
	if err != nil {
		return err
	}
	rec := parentFromC(&meta)
	rec.Schema, rec.Watched = bpf.Schema, 0
	if err := s.PutParent(rec); err != nil {
		return err
	}
	records, err := oldElements[bpf.XvlanSub](o, bpf.MapSubs, "sub")
	if err != nil {
		return err
	}
	macs, legs := make([]uint32, s.macSlots.len), make([]uint32, s.legSlots.len)
	for i := range records {
		sub := subFromC(&records[i])
		if sub.State == Free && sub.Gen == 0 {
			continue // never taken
		}
		if err := s.PutSub(ID(i), sub); err != nil {
			return err
		}
		if sub.State != Free {
			fallIn(macs, legs, ID(i), sub)
		}
		if sub.State == Active && sub.Place == Port {
			// EINVAL: its leg has gone, as the next look at it will find.
			if err := s.PutPort(ID(i), sub.Leg); err != nil && !errors.Is(err, unix.EINVAL) {
				return err
			}
		}
	}
	guards, err := oldElements[bpf.XvlanGuard](o, bpf.MapGuards, "guard")
	if err != nil {
		return err
	}
	for i, g := range guards {
		if err := s.guarding.write(i, g); err != nil {
			return fmt.Errorf("write guards: %w", err)
		}
	}
	for i, id := range macs {
		if err := s.macSlots.write(i, id); err != nil {
			return fmt.Errorf("write slots of macs: %w", err)
		}
	}
	for i, id := range legs {
		if err := s.legSlots.write(i, id); err != nil {
			return fmt.Errorf("write slots of legs: %w", err)
		}
	}
	return nil
}

// adoptKeys takes over what leads to records, without the addresses.
func (s *Set) adoptKeys(o *Older) error {
	for _, adopt := range []func() error{
		func() error { return adoptMap[uint32, uint64](o, s.members, bpf.XvlanMapMembers, "", "") },
		func() error {
			return adoptMap[bpf.XvlanMacKey, bpf.XvlanDest](o, s.byMAC, bpf.XvlanMapByMac, "mac_key", "dest")
		},
		func() error { return adoptMap[uint32, bpf.XvlanDest](o, s.byLeg, bpf.XvlanMapByLeg, "", "dest") },
		func() error { return adoptMap[uint32, bpf.XvlanVia](o, s.vias, bpf.XvlanMapVias, "", "via") },
		func() error { return adoptMap[bpf.XvlanSrcKey, uint32](o, s.bySrc, bpf.XvlanMapBySrc, "src_key", "") },
		func() error { return adoptMap[uint32, uint32](o, s.vlans, bpf.XvlanMapVlans, "", "") },
		func() error { return adoptMap[uint32, bpf.XvlanTrunk](o, s.trunks, bpf.XvlanMapTrunks, "", "trunk") },
	} {
		if err := adopt(); err != nil {
			return err
		}
	}
	return nil
}

// adoptMap copies what the older map of that name has, whose keys and values are of these
// types there.
func adoptMap[K comparable, V any](o *Older, to *ebpf.Map, name, key, value string) error {
	all, err := oldEntries[K, V](o, name, key, value)
	if err != nil {
		return err
	}
	for k, v := range all {
		if err := to.Put(&k, &v[0]); err != nil {
			return fmt.Errorf("enter %v into %s: %w", k, name, err)
		}
	}
	return nil
}

// Finish takes over what the older version's programs, none of which may run any
// more, have done since Adopt. The Set's own may run: carry is their xvlan_carry,
// and what they have learned meanwhile stays.
func (a *Adopted) Finish(carry *ebpf.Program) error {
	now, err := a.older.live()
	if err != nil {
		return err
	}
	if err := a.finishAddrs(now); err != nil {
		return err
	}
	if err := a.finishRings(now); err != nil {
		return err
	}
	for id, perCPU := range now.stats {
		var more bpf.XvlanSubStats
		is, was := sum(perCPU), sum(a.state.stats[id])
		for v := range more.Verdict {
			more.Verdict[v].Packets = is[v].Packets - was[v].Packets
			more.Verdict[v].Bytes = is[v].Bytes - was[v].Bytes
		}
		if more == (bpf.XvlanSubStats{}) {
			continue
		}
		if err := bpf.Carry(carry, id, &more); err != nil {
			return err
		}
	}
	return nil
}

func (a *Adopted) finishAddrs(now live) error {
	for k, d := range now.addrs {
		if a.state.addrs[k] == d {
			continue
		}
		if err := a.set.ReplaceAddr(k.vlan, k.addr, d); err != nil {
			return err
		}
	}
	for k := range a.state.addrs {
		if _, ok := now.addrs[k]; ok {
			continue
		}
		if err := a.set.DeleteAddr(k.vlan, k.addr); err != nil {
			return err
		}
	}
	return nil
}

// finishRings takes over the rings that only the older version's programs have
// changed.
func (a *Adopted) finishRings(now live) error {
	for id, ring := range now.rings {
		was := a.state.rings[id][0]
		if ring[0] == was {
			continue
		}
		var ours bpf.XvlanRing
		if err := a.set.learned.Lookup(id, &ours); err != nil {
			return fmt.Errorf("read learned addresses of %d: %w", id, err)
		}
		if ours != was {
			continue
		}
		if err := a.set.learned.Put(id, &ring[0]); err != nil {
			return fmt.Errorf("write learned addresses of %d: %w", id, err)
		}
	}
	return nil
}

// fallIn puts a sub-interface into the slots that it falls into.
func fallIn(macs, legs []uint32, id ID, sub Sub) {
	if sub.Keyed() {
		mac := &macs[bpf.MACSlot(sub.MAC, uint32(len(macs)))]
		*mac = fall(*mac, uint32(id))
	}
	if sub.Leg != 0 {
		leg := &legs[bpf.LegSlot(uint32(sub.Leg), uint32(len(legs)))]
		*leg = fall(*leg, uint32(id))
	}
}
