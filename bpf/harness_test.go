package bpf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/watch"
)

// The sub-interfaces most tests have. macAway ... macVLAN are active; all but
// nobody have keys that lead to them. ID 1 is nobody's, so that an id that was
// never set (0) or counted (1) does not hit by luck.
const (
	macAway  = 2 + iota // MAC-keyed, inner leg in another namespace
	macHere             // MAC-keyed, inner leg in the parent's namespace
	macGiven            // MAC-keyed with given addresses
	macVLAN             // MAC-keyed in VLAN 10
	ipAway              // IP-keyed, inner leg in another namespace
	ipHere              // IP-keyed, inner leg in the parent's namespace
	ipVLAN              // IP-keyed in VLAN 10
	pending             // IP-keyed and with a MAC; being made
	stale               // the same; its keys are those of the id's former owner
	free                // the same; was removed
	capacity = free
)

// Last bytes of addresses that stand in the address maps besides.
const (
	reserved  = 200 // the host's
	taught    = 100 // learned for ipAway
	inherited = 101 // learned for who had ipHere's id before
)

const generation = 7

const (
	noVLAN = 0xffffffff // VLAN_NONE
	trunk  = bpf.XvlanSubFlagSUB_TRUNK
)

// A world is a parent with its maps, its programs and its sub-interfaces.
// Programs run in the namespace host, where the parent and the host legs are.
type world struct {
	made   testing.TB // by which test
	coll   *ebpf.Collection
	places *watch.Places
	eyes   *watch.Reader // see watched
	host   *lab.Netns
	inside *lab.Netns // where inner legs are that have left the host's
	meta   bpf.XvlanParent
	subs   map[uint32]bpf.XvlanSub
	guards map[uint32]bpf.XvlanGuard
	dests  []entry // what stands in by_ip4 and by_ip6 at first

	trunks  map[uint32][]uint32      // VLANs of those that are trunks, but for their untagged frames'
	rings   map[uint32]bpf.XvlanRing // what they have learned, and asked, at first
	sources map[uint32][]mac         // lists of those in source mode
	outside []uint32                 // those that get nothing group-addressed

	crowded bool // every slot is shared
	seen    bool // the slots of addresses have all that stands in the hash maps
	netkit  bool // legs are netkit pairs instead of veth

	dry *bpf.DryRun // on the same maps; nil until it is needed
}

// An entry is one of by_ip4 or by_ip6.
type entry struct {
	vlan  uint32
	addr  netip.Addr
	id    uint32
	gen   uint32
	flags bpf.XvlanDestFlag
}

// newWorld makes a parent without sub-interfaces: device p0, wired to w0.
func newWorld(tb testing.TB, capacity uint32) *world {
	tb.Helper()
	w := &world{
		made: tb,
		host: lab.NewNetns(tb, "host"), inside: lab.NewNetns(tb, "inside"),
		subs: make(map[uint32]bpf.XvlanSub),
	}
	for _, ns := range []*lab.Netns{w.host, w.inside} {
		ns.Sysctl(tb, "net.ipv6.conf.default.disable_ipv6", "1") // no frames but ours
	}
	coll, err := bpf.Load(capacity)
	if err != nil {
		tb.Fatalf("load: %+v", err)
	}
	tb.Cleanup(func() {
		coll.Close()
		if w.dry != nil {
			w.dry.Close()
		}
	})
	w.coll = coll
	if w.places, err = watch.Of(coll); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { w.places.Close() })
	lab.VethWith(tb, w.host, "p0", w.inside, "w0", lab.VethOptions{MACA: parentMAC[:], MACB: routerMAC[:]})
	w.meta = bpf.XvlanParent{
		Schema: bpf.Schema, Capacity: capacity, Mtu: 1500, Mac: parentMAC,
		Ifindex: uint32(w.host.Link(tb, "p0").Attrs().Index),
	}
	return w
}

func legName(id uint32) string   { return "h" + strconv.Itoa(int(id)) }
func innerName(id uint32) string { return "c" + strconv.Itoa(int(id)) }

// add makes a sub-interface's legs and completes and keeps its record.
func (w *world) add(tb testing.TB, id uint32, sub bpf.XvlanSub) {
	tb.Helper()
	inner := w.host
	if sub.Place == bpf.XvlanSubPlacePLACE_AWAY {
		inner = w.inside
	}
	sub.Mac, sub.Gen = macOf(id), generation
	pair := lab.VethWith
	if w.netkit {
		pair = lab.NetkitWith
		sub.Flags |= bpf.XvlanSubFlagSUB_NETKIT
	}
	pair(tb, w.host, legName(id), inner, innerName(id), lab.VethOptions{MACB: sub.Mac[:]})
	sub.Leg = uint32(w.host.Link(tb, legName(id)).Attrs().Index)
	if err := inner.Handle().LinkSetAllmulticastOn(inner.Link(tb, innerName(id))); err != nil {
		tb.Fatalf("let %d receive all groups: %v", id, err)
	}
	w.subs[id] = sub
	if sub.State == bpf.XvlanSubStateSUB_ACTIVE && sub.Kind == bpf.XvlanSubKindKIND_IPVLAN {
		w.meta.IpKeyed++
	}
}

func macvlan(place bpf.XvlanSubPlace) bpf.XvlanSub {
	return bpf.XvlanSub{
		State: bpf.XvlanSubStateSUB_ACTIVE, Place: place,
		Kind: bpf.XvlanSubKindKIND_MACVLAN, Mode: bpf.XvlanSubModeMODE_BRIDGE, Class: bpf.XvlanSubClassCLASS_BRIDGE,
	}
}

func ipvlan(place bpf.XvlanSubPlace) bpf.XvlanSub {
	return bpf.XvlanSub{
		State: bpf.XvlanSubStateSUB_ACTIVE, Place: place,
		Kind: bpf.XvlanSubKindKIND_IPVLAN, Mode: bpf.XvlanSubModeMODE_L2, Class: bpf.XvlanSubClassCLASS_BRIDGE,
	}
}

// plain flags a record that the short way is for, as package maps does.
func plain(sub bpf.XvlanSub) bpf.XvlanSub {
	if sub.State != bpf.XvlanSubStateSUB_ACTIVE || sub.Flags&trunk != 0 ||
		sub.Class&(bpf.XvlanSubClassCLASS_BRIDGE|bpf.XvlanSubClassCLASS_VEPA) == 0 {
		return sub
	}
	switch isMAC := sub.Kind == bpf.XvlanSubKindKIND_MACVLAN; {
	case sub.Vlan == 0 && isMAC:
		sub.Flags |= bpf.XvlanSubFlagSUB_PLAIN
	case sub.Vlan == 0:
		sub.Flags |= bpf.XvlanSubFlagSUB_PLAIN_IP
	case sub.Vlan < 4096 && isMAC:
		sub.Flags |= bpf.XvlanSubFlagSUB_PLAIN_VLAN
	}
	return sub
}

// usualWorld makes a world with the usual sub-interfaces and enters them.
func usualWorld(tb testing.TB) *world { return usualWorldOf(tb, false) }

// usualWorldOf is usualWorld with legs of either kind.
func usualWorldOf(tb testing.TB, netkit bool) *world {
	tb.Helper()
	const here, away = bpf.XvlanSubPlacePLACE_LOCAL, bpf.XvlanSubPlacePLACE_AWAY
	w := newWorld(tb, capacity)
	w.netkit = netkit
	w.add(tb, macAway, macvlan(away))
	w.add(tb, macHere, macvlan(here))
	w.add(tb, macGiven, macvlan(away))
	sub := macvlan(away)
	sub.Vlan = 10
	w.add(tb, macVLAN, sub)
	w.add(tb, ipAway, ipvlan(away))
	w.add(tb, ipHere, ipvlan(here))
	sub = ipvlan(away)
	sub.Vlan = 10
	w.add(tb, ipVLAN, sub)
	sub = ipvlan(away)
	sub.State = bpf.XvlanSubStateSUB_PENDING
	w.add(tb, pending, sub)
	w.add(tb, stale, ipvlan(away))
	sub.State = bpf.XvlanSubStateSUB_FREE
	w.add(tb, free, sub)
	for _, id := range []uint32{macGiven, ipAway, ipHere, ipVLAN, pending, stale, free} {
		w.give(id)
	}
	w.dests = append(w.dests, usualDests...)
	w.meet(tb)
	return w
}

// meet enters the world, with what xvlan_meet finds out about the legs.
func (w *world) meet(tb testing.TB) {
	tb.Helper()
	w.enter(tb)
	prog := w.coll.Programs[bpf.XvlanProgXvlanMeet]
	for id, sub := range w.subs {
		var err error
		w.host.Do(tb, func() { err = bpf.Meet(prog, int(sub.Leg)) })
		if err != nil && sub.State != bpf.XvlanSubStateSUB_FREE && id != stale {
			tb.Fatalf("meet %d: %v", id, err)
		}
		sub.Device = w.record(tb, id).Device
		w.subs[id] = sub
	}
}

var usualDests = []entry{
	{0, ip4Of(reserved), 0, 0, bpf.XvlanDestFlagDEST_RESERVED},
	{0, ip6Of(reserved), 0, 0, bpf.XvlanDestFlagDEST_RESERVED},
	{0, ip4Of(taught), ipAway, generation, bpf.XvlanDestFlagDEST_LEARNED},
	{0, ip6Of(taught), ipAway, generation, bpf.XvlanDestFlagDEST_LEARNED},
	{0, ip4Of(inherited), ipHere, generation - 1, bpf.XvlanDestFlagDEST_LEARNED},
	{0, ip6Of(inherited), ipHere, generation - 1, bpf.XvlanDestFlagDEST_LEARNED},
}

// give enters the sub-interface's two addresses as given ones.
func (w *world) give(id uint32) {
	for _, addr := range []netip.Addr{ip4Of(id), ip6Of(id)} {
		w.dests = append(w.dests, entry{w.subs[id].Vlan, addr, id, w.genOf(id), bpf.XvlanDestFlagDEST_GIVEN})
	}
}

func (w *world) genOf(id uint32) uint32 {
	if id == stale {
		return generation - 1
	}
	return generation
}

// enter makes the maps what the world says and forgets everything else.
func (w *world) enter(tb testing.TB) {
	tb.Helper()
	for _, name := range []string{bpf.XvlanMapByMac, bpf.XvlanMapByIp4, bpf.XvlanMapByIp6, bpf.XvlanMapByLeg, bpf.XvlanMapBySrc, bpf.XvlanMapVlans, bpf.XvlanMapTrunks} {
		w.clear(tb, name)
	}
	w.enterVLANs(tb)
	w.set(tb, bpf.MapMeta, 0, w.meta)
	members := make([]uint64, w.meta.Capacity/64+1)
	for id := range w.meta.Capacity + 1 {
		sub := plain(w.subs[id])
		if _, ok := w.guards[id]; ok {
			sub.Flags |= bpf.XvlanSubFlagSUB_GUARDED
		}
		w.set(tb, bpf.MapSubs, id, sub)
		w.set(tb, bpf.MapGuards, id, w.guards[id])
		w.put(tb, bpf.XvlanMapLearned, id, w.rings[id])
		if sub.Leg == 0 {
			continue
		}
		dest := bpf.XvlanDest{Id: id, Gen: w.genOf(id)}
		w.put(tb, bpf.XvlanMapByLeg, sub.Leg, dest)
		if sub.Kind == bpf.XvlanSubKindKIND_MACVLAN || sub.State != bpf.XvlanSubStateSUB_ACTIVE || id == stale {
			w.put(tb, bpf.XvlanMapByMac, bpf.XvlanMacKey{Vlan: sub.Vlan, Mac: sub.Mac}, dest)
			if sub.Flags&trunk != 0 {
				w.put(tb, bpf.XvlanMapByMac, bpf.XvlanMacKey{Vlan: noVLAN, Mac: sub.Mac}, dest)
			}
		}
		if sub.State != bpf.XvlanSubStateSUB_FREE && !slices.Contains(w.outside, id) {
			members[id/64] |= 1 << (id % 64)
		}
	}
	w.slots(tb)
	for word, bits := range members {
		w.put(tb, bpf.XvlanMapMembers, uint32(word), bits)
	}
	for _, e := range w.dests {
		w.putEntry(tb, e)
	}
	w.addrSlots(tb)
	for id, list := range w.sources {
		for _, m := range list {
			w.put(tb, bpf.XvlanMapBySrc, bpf.XvlanSrcKey{Id: id, Mac: m}, uint32(1))
		}
	}
	w.clearStats(tb)
}

// enterVLANs enters which VLANs are the sub-interfaces'.
func (w *world) enterVLANs(tb testing.TB) {
	tb.Helper()
	w.meta.Vlans, w.meta.Trunks = 0, uint32(len(w.trunks))
	for id, sub := range w.subs {
		list := w.trunks[id]
		if sub.Vlan != 0 && sub.Vlan != noVLAN {
			list = append(slices.Clone(list), sub.Vlan)
		}
		for _, vlan := range list {
			w.put(tb, bpf.XvlanMapVlans, vlan, uint32(0))
		}
		if list != nil {
			w.meta.Vlans++
		}
	}
	for id, list := range w.trunks {
		var set bpf.XvlanTrunk
		for _, vlan := range list {
			set.Vlans[vlan/64] |= 1 << (vlan % 64)
		}
		w.put(tb, bpf.XvlanMapTrunks, id, set)
	}
}

// slots lets the sub-interfaces' MACs and legs fall into their slots. Those
// whose keys are not their own are only to be found by hash.
func (w *world) slots(tb testing.TB) {
	tb.Helper()
	size := w.slotCount()
	macs, legs := make([]uint32, size), make([]uint32, size)
	fall := func(slot *uint32, id uint32) {
		if *slot == 0 && id != stale && id != free && !w.crowded {
			*slot = id
		} else {
			*slot = bpf.SlotShared
		}
	}
	for id, sub := range w.subs {
		fall(&macs[bpf.MACSlot(sub.Mac[:], size)], id)
		fall(&legs[bpf.LegSlot(sub.Leg, size)], id)
	}
	w.set(tb, bpf.MapMACSlots, 0, macs)
	w.set(tb, bpf.MapLegSlots, 0, legs)
}

// isSlotTaken reports whether somebody's MAC falls into a MAC's slot.
func (w *world) isSlotTaken(m mac) bool {
	slot := func(m mac) uint32 { return bpf.MACSlot(m[:], w.slotCount()) }
	for _, sub := range w.subs {
		if slot(sub.Mac) == slot(m) {
			return true
		}
	}
	return false
}

func (w *world) slotCount() uint32 { return w.coll.Maps[bpf.MapMACSlots].ValueSize() / 4 }

func (w *world) put(tb testing.TB, name string, key, value any) {
	tb.Helper()
	if err := w.coll.Maps[name].Put(key, value); err != nil {
		tb.Fatalf("put into %s: %v", name, err)
	}
}

// set writes elements of a section from the index on.
func (w *world) set(tb testing.TB, name string, index uint32, elements any) {
	tb.Helper()
	raw, err := binary.Append(nil, binary.NativeEndian, elements)
	if err != nil {
		tb.Fatalf("encode %T: %v", elements, err)
	}
	mem, err := w.coll.Maps[name].Memory()
	if err != nil {
		tb.Fatalf("map %s: %v", name, err)
	}
	size := binary.Size(elements)
	if v := reflect.ValueOf(elements); v.Kind() == reflect.Slice {
		size /= v.Len()
	}
	if _, err := mem.WriteAt(raw, int64(index)*int64(size)); err != nil {
		tb.Fatalf("write to %s: %v", name, err)
	}
}

// record reads a sub-interface's record.
func (w *world) record(tb testing.TB, id uint32) (sub bpf.XvlanSub) {
	tb.Helper()
	mem, err := w.coll.Maps[bpf.MapSubs].Memory()
	if err != nil {
		tb.Fatalf("map records: %v", err)
	}
	size := int64(binary.Size(sub))
	if err := binary.Read(io.NewSectionReader(mem, int64(id)*size, size), binary.NativeEndian, &sub); err != nil {
		tb.Fatalf("read record %d: %v", id, err)
	}
	return sub
}

func (w *world) clear(tb testing.TB, name string) {
	tb.Helper()
	m := w.coll.Maps[name]
	key := make([]byte, m.KeySize())
	for {
		err := m.NextKey(nil, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return
		}
		if err != nil {
			tb.Fatalf("walk %s: %v", name, err)
		}
		if err := m.Delete(key); err != nil {
			tb.Fatalf("delete from %s: %v", name, err)
		}
	}
}

func ip4Key(vlan uint32, addr netip.Addr) bpf.XvlanIp4Key {
	return bpf.XvlanIp4Key{AddrBe: binary.NativeEndian.Uint32(addr.AsSlice()), Vlan: vlan}
}

func (w *world) putEntry(tb testing.TB, e entry) {
	tb.Helper()
	dest := bpf.XvlanDest{Id: e.id, Gen: e.gen, Flags: e.flags}
	if e.addr.Is4() {
		w.put(tb, bpf.XvlanMapByIp4, ip4Key(e.vlan, e.addr), dest)
	} else {
		w.put(tb, bpf.XvlanMapByIp6, bpf.XvlanIp6Key{Vlan: e.vlan, Addr: e.addr.As16()}, dest)
	}
}

// entries returns what by_ip4 and by_ip6 hold, ordered by address.
func (w *world) entries(tb testing.TB) []entry {
	tb.Helper()
	var (
		all  []entry
		key4 bpf.XvlanIp4Key
		key6 bpf.XvlanIp6Key
		dest bpf.XvlanDest
	)
	walk4, walk6 := w.coll.Maps[bpf.XvlanMapByIp4].Iterate(), w.coll.Maps[bpf.XvlanMapByIp6].Iterate()
	for walk4.Next(&key4, &dest) {
		addr, _ := netip.AddrFromSlice(binary.NativeEndian.AppendUint32(nil, key4.AddrBe))
		all = append(all, entry{key4.Vlan, addr, dest.Id, dest.Gen, dest.Flags})
	}
	for walk6.Next(&key6, &dest) {
		all = append(all, entry{key6.Vlan, netip.AddrFrom16(key6.Addr), dest.Id, dest.Gen, dest.Flags})
	}
	if err := errors.Join(walk4.Err(), walk6.Err()); err != nil {
		tb.Fatalf("walk addresses: %v", err)
	}
	sortEntries(all)
	return all
}

func sortEntries(all []entry) {
	slices.SortFunc(all, func(a, b entry) int {
		if a.addr != b.addr {
			return a.addr.Compare(b.addr)
		}
		return int(a.vlan) - int(b.vlan)
	})
}

// contents returns all that the maps hold, by name.
func (w *world) contents(tb testing.TB) map[string][]string {
	tb.Helper()
	all := map[string][]string{}
	for name, m := range w.coll.Maps {
		if m.Type() == ebpf.DevMap || strings.HasPrefix(name, ".") {
			continue // written by the loader alone
		}
		key, walk := []byte(nil), m.Iterate()
		if m.Type() == ebpf.PerCPUArray {
			var values [][]byte
			for walk.Next(&key, &values) {
				all[name] = append(all[name], string(key)+string(bytes.Join(values, nil)))
			}
		} else {
			var value []byte
			for walk.Next(&key, &value) {
				all[name] = append(all[name], string(key)+string(value))
			}
		}
		if err := walk.Err(); err != nil {
			tb.Fatalf("walk %s: %v", name, err)
		}
		slices.Sort(all[name])
	}
	return all
}
