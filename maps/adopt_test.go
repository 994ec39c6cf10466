package maps

import (
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/bpf"
)

// older is a Set as if another version had made it.
func older(t *testing.T, s *Set) *Older {
	t.Helper()
	spec, err := bpf.LoadXvlan()
	if err != nil {
		t.Fatal(err)
	}
	return &Older{Capacity: capacity, maps: s.Maps(), now: spec.Types}
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// counts gives an id other counters on each CPU.
func (s *Set) counts(t *testing.T, id ID, packets uint64) {
	t.Helper()
	perCPU := make([]bpf.XvlanSubStats, ebpf.MustPossibleCPU())
	for cpu := range perCPU {
		perCPU[cpu].Verdict[RX] = bpf.XvlanCounter{Packets: packets, Bytes: uint64(cpu)}
	}
	check(t, s.stats.Put(uint32(id), perCPU))
}

// all is what a Set holds.
func (s *Set) all(t *testing.T) map[string]any {
	t.Helper()
	rec, err1 := s.Parent()
	subs, err2 := s.Subs()
	addrs, err3 := s.Addrs()
	sources, err4 := s.Sources()
	stats, err5 := s.AllStats()
	vias, err6 := s.Vias()
	check(t, err1, err2, err3, err4, err5, err6)
	byAddr := map[netip.Addr]Addr{}
	for _, a := range addrs {
		byAddr[a.Addr] = a
	}
	rings := make([]bpf.XvlanRing, capacity+1)
	for id := range rings {
		check(t, s.learned.Lookup(uint32(id), &rings[id]))
	}
	var members uint64
	check(t, s.members.Lookup(uint32(0), &members))
	macs, err1 := s.macSlots.read(0, s.macSlots.len)
	legs, err2 := s.legSlots.read(0, s.legSlots.len)
	check(t, err1, err2)
	byMAC, byLeg := map[bpf.XvlanMacKey]bpf.XvlanDest{}, map[uint32]bpf.XvlanDest{}
	check(t, walk(s.byMAC, func(k bpf.XvlanMacKey, d bpf.XvlanDest) { byMAC[k] = d }),
		walk(s.byLeg, func(k uint32, d bpf.XvlanDest) { byLeg[k] = d }))
	return map[string]any{
		"parent": rec, "subs": subs, "addresses": byAddr, "sources": sources, "networks": vias, "counters": stats, "rings": rings,
		"members": members, "slots of macs": macs, "slots of legs": legs, "macs": byMAC, "legs": byLeg,
	}
}

// furnish makes three sub-interfaces, two of which share a slot of legs.
func (s *Set) furnish(t *testing.T) {
	t.Helper()
	legs := []int{0, 7, 7 + s.legSlots.len, 9}
	check(t, s.PutParent(Parent{Schema: bpf.Schema, Capacity: capacity, Index: 2, MTU: 1500, Name: "eth0", Reason: "x", LastID: 3}))
	check(t, s.PutVia(2, []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}))
	for id := ID(1); id <= 3; id++ {
		d := Dest{ID: id, Gen: uint32(id) + 5, Origin: Given}
		sub := Sub{
			State: Active, Gen: d.Gen, Leg: legs[id], Kind: Macvlan, Mode: Bridge, Class: ClassBridge,
			MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(id)}, Name: "c",
		}
		check(t, s.PutSub(id, sub), s.PutMAC(0, sub.MAC, d), s.PutLeg(sub.Leg, d), s.PutSource(id, sub.MAC), s.SetMember(id, true))
		check(t, s.PutAddr(0, netip.AddrFrom4([4]byte{192, 0, 2, byte(id)}), d),
			s.PutAddr(3, netip.AddrFrom16([16]byte{0x20, 1, 15: byte(id)}), d))
		s.counts(t, id, 100)
	}
	check(t, s.PutSub(4, Sub{Gen: 12})) // an id that was taken once
	subs, err := s.Subs()
	check(t, err)
	for _, sub := range subs[1:4] {
		check(t, s.Reindex(sub, subs))
	}
}

// All that a Set holds is taken over, then what has become of it meanwhile; what
// the new one has come to by itself meanwhile stays.
func TestAdopt(t *testing.T) {
	old, s := newSet(t), newSet(t)
	coll, err := bpf.LoadOn(bpf.LoadXvlan, capacity, watchable(t, s))
	check(t, err)
	t.Cleanup(coll.Close)
	old.furnish(t)
	adopted, err := s.Adopt(older(t, old))
	check(t, err)
	if got, want := s.all(t), old.all(t); !reflect.DeepEqual(got, want) {
		t.Fatalf("adopted\n%+v\nof\n%+v", got, want)
	}

	learned := Dest{ID: 2, Gen: 7, Origin: Learned}
	moved, gone, came := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.9")
	ours := netip.MustParseAddr("192.0.2.8")
	check(t, old.ReplaceAddr(0, moved, learned), old.DeleteAddr(0, gone), old.PutAddr(0, came, learned))
	check(t, s.PutAddr(0, ours, learned))
	check(t, old.learned.Put(uint32(2), bpf.XvlanRing{Next4: 1}), old.learned.Put(uint32(3), bpf.XvlanRing{Next4: 1}))
	check(t, s.learned.Put(uint32(3), bpf.XvlanRing{Next4: 2}))
	old.counts(t, 1, 150)
	s.counts(t, 1, 103)
	check(t, adopted.Finish(coll.Programs[bpf.XvlanProgXvlanCarry]))

	for a, want := range map[netip.Addr]Dest{moved: learned, came: learned, ours: learned, gone: {}} {
		if d, ok, err := s.Addr(0, a); err != nil || d != want || ok != (want != Dest{}) {
			t.Errorf("%s is %+v, %v; want %+v", a, d, err, want)
		}
	}
	for id, want := range map[uint32]uint32{2: 1, 3: 2} {
		var ring bpf.XvlanRing
		check(t, s.learned.Lookup(id, &ring))
		if ring.Next4 != want {
			t.Errorf("the ring of %d says %d, want %d", id, ring.Next4, want)
		}
	}
	cpus := uint64(ebpf.MustPossibleCPU())
	stats, err := s.Stats(1)
	if want := 153 * cpus; err != nil || stats[RX].Packets != want {
		t.Errorf("%d packets, %v; want %d", stats[RX].Packets, err, want)
	}
}

// watchable are all maps that programs take, those of watchers from a collection
// of their own.
func watchable(t *testing.T, s *Set) map[string]*ebpf.Map {
	t.Helper()
	coll, err := bpf.Load(capacity)
	check(t, err)
	t.Cleanup(coll.Close)
	all := s.Maps()
	for _, name := range []string{bpf.MapWatchers, bpf.XvlanMapSightings} {
		all[name] = coll.Maps[name]
	}
	return all
}
