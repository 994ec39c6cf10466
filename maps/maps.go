// Package maps gives the pinned maps of a parent Go types. The maps are the
// database: what they say is what the datapath does. Readers need no lock;
// writers hold the parent's lock, which package loader takes.
package maps

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
)

// ErrFull is returned where a map has no room for one more key.
var ErrFull = errors.New("no room")

// ErrSchema is returned for maps that another version of xvlan has made.
var ErrSchema = errors.New("maps of another schema")

// ErrOlder is ErrSchema for those that OpenOlder can read.
var ErrOlder = fmt.Errorf("%w, an older one", ErrSchema)

// Set is the maps of one parent.
type Set struct {
	meta    *ebpf.Map
	subs    *ebpf.Map
	guards  *ebpf.Map
	members *ebpf.Map
	byMAC   *ebpf.Map
	byIP4   *ebpf.Map
	byIP6   *ebpf.Map
	byLeg   *ebpf.Map
	bySrc   *ebpf.Map
	vlans   *ebpf.Map
	trunks  *ebpf.Map
	vias    *ebpf.Map
	macSlot *ebpf.Map
	legSlot *ebpf.Map
	ip4Slot *ebpf.Map
	ip6Slot *ebpf.Map
	learned *ebpf.Map
	stats   *ebpf.Map
	ports   *ebpf.Map

	records  section[bpf.XvlanSub] // of subs
	keeps    bool
	kept     []Sub // see Keep
	guarding section[bpf.XvlanGuard]
	macSlots section[uint32]
	legSlots section[uint32]
	ip4Slots buckets
	ip6Slots buckets
}

// fields ties every map's name, which is also its pin's, to its field.
func (s *Set) fields() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		bpf.MapMeta:         &s.meta,
		bpf.MapSubs:         &s.subs,
		bpf.MapGuards:       &s.guards,
		bpf.XvlanMapMembers: &s.members,
		bpf.XvlanMapByMac:   &s.byMAC,
		bpf.XvlanMapByIp4:   &s.byIP4,
		bpf.XvlanMapByIp6:   &s.byIP6,
		bpf.XvlanMapByLeg:   &s.byLeg,
		bpf.XvlanMapBySrc:   &s.bySrc,
		bpf.XvlanMapVlans:   &s.vlans,
		bpf.XvlanMapTrunks:  &s.trunks,
		bpf.XvlanMapVias:    &s.vias,
		bpf.MapMACSlots:     &s.macSlot,
		bpf.MapLegSlots:     &s.legSlot,
		bpf.MapIP4Slots:     &s.ip4Slot,
		bpf.MapIP6Slots:     &s.ip6Slot,
		bpf.XvlanMapLearned: &s.learned,
		bpf.XvlanMapStats:   &s.stats,
		bpf.XvlanMapPorts:   &s.ports,
	}
}

// Maps returns the maps by name. They are the Set's, which closes them.
func (s *Set) Maps() map[string]*ebpf.Map {
	all := map[string]*ebpf.Map{}
	for name, field := range s.fields() {
		all[name] = *field
	}
	return all
}

// New takes a freshly loaded collection's maps over; the Set closes them.
func New(coll *ebpf.Collection) (*Set, error) {
	s := &Set{}
	for name, field := range s.fields() {
		m := coll.DetachMap(name)
		if m == nil {
			return nil, errors.Join(fmt.Errorf("take map %s: not in the collection", name), s.Close())
		}
		*field = m
	}
	if err := s.mapSections(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Open opens the maps pinned in dir. It returns ErrSchema when another
// version made them, and an error that is fs.ErrNotExist when one is missing.
func Open(dir string) (*Set, error) {
	if _, err := ReadParent(dir); err != nil { // another version's may lack some
		return nil, err
	}
	s := &Set{}
	for name, field := range s.fields() {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open pinned map %s: %w", name, err), s.Close())
		}
		*field = m
	}
	if err := s.mapSections(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Set) mapSections() (err error) {
	if s.records, err = newSection[bpf.XvlanSub](s.subs); err != nil {
		return fmt.Errorf("open records: %w", err)
	}
	if s.guarding, err = newSection[bpf.XvlanGuard](s.guards); err != nil {
		return fmt.Errorf("open guards: %w", err)
	}
	if s.macSlots, err = newSection[uint32](s.macSlot); err != nil {
		return fmt.Errorf("open slots of macs: %w", err)
	}
	if s.legSlots, err = newSection[uint32](s.legSlot); err != nil {
		return fmt.Errorf("open slots of legs: %w", err)
	}
	s.ip4Slots.m, s.ip6Slots.m = s.ip4Slot, s.ip6Slot
	return nil
}

// check refuses maps of another layout. The schema number stands first in
// every version's record, so it can be read even when the rest has moved.
func (s *Set) check() error {
	raw, err := s.meta.LookupBytes(uint32(0))
	if err != nil {
		return fmt.Errorf("read parent record: %w", err)
	}
	if len(raw) < 4 {
		return fmt.Errorf("read parent record: %w: %d bytes", ErrSchema, len(raw))
	}
	switch got := binary.NativeEndian.Uint32(raw); {
	case readable(got):
		return fmt.Errorf("%w: they say %d, this xvlan is for %d", ErrOlder, got, bpf.Schema)
	case got != bpf.Schema:
		return fmt.Errorf("%w: they say %d, this xvlan is for %d", ErrSchema, got, bpf.Schema)
	}
	return nil
}

// Pin pins every map in dir, which must exist on a bpf file system.
func (s *Set) Pin(dir string) error {
	for name, field := range s.fields() {
		if err := (*field).Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

// Close closes the maps; pinned ones live on.
func (s *Set) Close() error {
	errs := []error{s.ip4Slots.close(), s.ip6Slots.close()}
	for _, field := range s.fields() {
		errs = append(errs, (*field).Close())
	}
	return errors.Join(errs...)
}

// ReadParent reads the parent's record among the maps pinned in dir, and none of the
// others. Errors are as of Open.
func ReadParent(dir string) (p Parent, err error) {
	s := &Set{}
	if s.meta, err = ebpf.LoadPinnedMap(filepath.Join(dir, bpf.MapMeta), nil); err != nil {
		return Parent{}, fmt.Errorf("open pinned map %s: %w", bpf.MapMeta, err)
	}
	defer s.meta.Close()
	if err := s.check(); err != nil {
		return Parent{}, err
	}
	return s.Parent()
}

// Parent reads the parent's record.
func (s *Set) Parent() (Parent, error) {
	var c bpf.XvlanParent
	if err := s.meta.Lookup(uint32(0), &c); err != nil {
		return Parent{}, fmt.Errorf("read parent record: %w", err)
	}
	return parentFromC(&c), nil
}

// PutParent writes the parent's record.
func (s *Set) PutParent(p Parent) error {
	c := p.toC()
	if err := s.meta.Put(uint32(0), &c); err != nil {
		return fmt.Errorf("write parent record: %w", err)
	}
	return nil
}

// Keep has Subs read the records once. It is for who alone writes them, as he holds the
// parent's lock: every command wants to see all of them several times.
func (s *Set) Keep() { s.keeps = true }

// Sub reads a sub-interface's record, whatever its state.
func (s *Set) Sub(id ID) (Sub, error) {
	c, err := s.records.read(int(id), 1)
	if err != nil {
		return Sub{}, fmt.Errorf("read sub-interface %d: %w", id, err)
	}
	sub := subFromC(&c[0])
	if s.kept != nil {
		s.kept[id] = sub // a program may have written to it
	}
	return sub, nil
}

// PutSub writes a sub-interface's record.
func (s *Set) PutSub(id ID, sub Sub) error {
	c := sub.toC()
	if err := s.records.write(int(id), c); err != nil {
		return fmt.Errorf("write sub-interface %d: %w", id, err)
	}
	if s.kept != nil {
		s.kept[id] = subFromC(&c)
	}
	return nil
}

// Subs returns all records, indexed by ID; the first is never in use. After Keep what
// it returns goes with the records, and is not to be changed.
func (s *Set) Subs() ([]Sub, error) {
	if s.kept != nil {
		return s.kept, nil
	}
	records, err := s.records.read(0, int(s.stats.MaxEntries()))
	if err != nil {
		return nil, fmt.Errorf("read sub-interfaces: %w", err)
	}
	subs := make([]Sub, len(records))
	for id := range records {
		subs[id] = subFromC(&records[id])
	}
	if s.keeps {
		s.kept = subs
	}
	return subs, nil
}

// Reindex makes the slots that a sub-interface's MAC and leg fall into agree
// with the records, which are given as Subs returns them. It is due before a
// record becomes able to send or receive, and after it no longer is.
func (s *Set) Reindex(sub Sub, subs []Sub) error {
	macs, legs := uint32(s.macSlots.len), uint32(s.legSlots.len)
	mac, leg := bpf.MACSlot(sub.MAC, macs), bpf.LegSlot(uint32(sub.Leg), legs)
	var inMAC, inLeg uint32
	for i, other := range subs {
		if other.State == Free {
			continue
		}
		if other.Keyed() && bpf.MACSlot(other.MAC, macs) == mac {
			inMAC = fall(inMAC, uint32(i))
		}
		if other.Leg != 0 && bpf.LegSlot(uint32(other.Leg), legs) == leg {
			inLeg = fall(inLeg, uint32(i))
		}
	}
	if err := s.macSlots.write(int(mac), inMAC); err != nil {
		return fmt.Errorf("write slot of %s: %w", sub.MAC, err)
	}
	if err := s.legSlots.write(int(leg), inLeg); err != nil {
		return fmt.Errorf("write slot of leg %d: %w", sub.Leg, err)
	}
	return nil
}

// fall is a slot after one more has fallen into it.
func fall(slot, id uint32) uint32 {
	if slot == 0 {
		return id
	}
	return bpf.SlotShared
}

// Reset clears what an id's former owner left: counters and learned addresses.
func (s *Set) Reset(id ID) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count cpus: %w", err)
	}
	if err := s.stats.Put(uint32(id), make([]bpf.XvlanSubStats, cpus)); err != nil {
		return fmt.Errorf("clear counters of %d: %w", id, err)
	}
	if err := s.learned.Put(uint32(id), &bpf.XvlanRing{}); err != nil {
		return fmt.Errorf("clear learned addresses of %d: %w", id, err)
	}
	return nil
}

// SetMember puts a sub-interface among those that get group-addressed frames,
// or takes it out.
func (s *Set) SetMember(id ID, in bool) error {
	var bits uint64
	word, bit := uint32(id/64), uint64(1)<<(id%64)
	if err := s.members.Lookup(word, &bits); err != nil {
		return fmt.Errorf("read members: %w", err)
	}
	bits |= bit
	if !in {
		bits &^= bit
	}
	if err := s.members.Put(word, bits); err != nil {
		return fmt.Errorf("write members: %w", err)
	}
	return nil
}

// Stats reads the counters of a sub-interface, or of the parent for id 0.
func (s *Set) Stats(id ID) (Stats, error) {
	var perCPU []bpf.XvlanSubStats
	if err := s.stats.Lookup(uint32(id), &perCPU); err != nil {
		return Stats{}, fmt.Errorf("read counters of %d: %w", id, err)
	}
	return sum(perCPU), nil
}

func sum(perCPU []bpf.XvlanSubStats) (s Stats) {
	for i := range perCPU {
		for v, c := range perCPU[i].Verdict {
			s[v].Packets += c.Packets
			s[v].Bytes += c.Bytes
		}
	}
	return s
}

// Deleting a key that is not there is no error.

// PutMAC makes a MAC lead to a sub-interface, whoever holds it: the records say
// whose it is.
func (s *Set) PutMAC(vlan VLAN, mac net.HardwareAddr, d Dest) error {
	return put(s.byMAC, macKey(vlan, mac), d, ebpf.UpdateAny, mac)
}

// DeleteMAC removes a MAC.
func (s *Set) DeleteMAC(vlan VLAN, mac net.HardwareAddr) error {
	return del(s.byMAC, macKey(vlan, mac), mac)
}

// MAC looks a MAC up; ok is false where it leads nowhere.
func (s *Set) MAC(vlan VLAN, mac net.HardwareAddr) (d Dest, ok bool, err error) {
	return get(s.byMAC, macKey(vlan, mac), mac)
}

// PutLeg ties a host leg to its sub-interface.
func (s *Set) PutLeg(index int, d Dest) error {
	return put(s.byLeg, uint32(index), d, ebpf.UpdateAny, index)
}

// DeleteLeg removes a host leg.
func (s *Set) DeleteLeg(index int) error { return del(s.byLeg, uint32(index), index) }

// PutPort enters a host leg, of the calling thread's network namespace, for
// frames that reach the sub-interface by XDP redirect.
func (s *Set) PutPort(id ID, leg int) error {
	if err := s.ports.Put(uint32(id), uint32(leg)); err != nil {
		return fmt.Errorf("enter port %d: %w", id, err)
	}
	return nil
}

// DeletePort takes a host leg out again; one that is not there is no error.
func (s *Set) DeletePort(id ID) error { return del(s.ports, uint32(id), id) }

// PutSource puts a MAC on the list of a sub-interface in source mode.
func (s *Set) PutSource(id ID, mac net.HardwareAddr) error {
	if err := s.bySrc.Put(&bpf.XvlanSrcKey{Id: uint32(id), Mac: [6]byte(mac)}, uint32(0)); err != nil {
		return fmt.Errorf("enter source %s: %w", mac, full(s.bySrc, err))
	}
	return nil
}

// DeleteSource takes a MAC off the list.
func (s *Set) DeleteSource(id ID, mac net.HardwareAddr) error {
	return del(s.bySrc, &bpf.XvlanSrcKey{Id: uint32(id), Mac: [6]byte(mac)}, mac)
}

// Sources returns the lists of all sub-interfaces in source mode.
func (s *Set) Sources() (map[ID][]net.HardwareAddr, error) {
	lists := map[ID][]net.HardwareAddr{}
	err := walk(s.bySrc, func(k bpf.XvlanSrcKey, _ uint32) {
		lists[ID(k.Id)] = append(lists[ID(k.Id)], bytes.Clone(k.Mac[:]))
	})
	if err != nil {
		return nil, fmt.Errorf("read sources: %w", err)
	}
	for _, list := range lists {
		slices.SortFunc(list, func(a, b net.HardwareAddr) int { return bytes.Compare(a, b) })
	}
	return lists, nil
}

// PutAddr enters an address, IPv4 or IPv6 without zone, where nobody holds it:
// ebpf.ErrKeyExist tells that somebody does.
func (s *Set) PutAddr(vlan VLAN, a netip.Addr, d Dest) error {
	return s.putAddr(vlan, a, d, ebpf.UpdateNoExist)
}

// ReplaceAddr enters an address whoever holds it.
func (s *Set) ReplaceAddr(vlan VLAN, a netip.Addr, d Dest) error {
	return s.slotsOf(a).changing(a, func() error { return s.putAddr(vlan, a, d, ebpf.UpdateAny) })
}

func (s *Set) putAddr(vlan VLAN, a netip.Addr, d Dest, how ebpf.MapUpdateFlags) error {
	if a.Is4() {
		return put(s.byIP4, ip4Key(vlan, a), d, how, a)
	}
	return put(s.byIP6, ip6Key(vlan, a), d, how, a)
}

// DeleteAddr removes an address.
func (s *Set) DeleteAddr(vlan VLAN, a netip.Addr) error {
	return s.slotsOf(a).changing(a, func() error {
		if a.Is4() {
			return del(s.byIP4, ip4Key(vlan, a), a)
		}
		return del(s.byIP6, ip6Key(vlan, a), a)
	})
}

func (s *Set) slotsOf(a netip.Addr) *buckets {
	if a.Is4() {
		return &s.ip4Slots
	}
	return &s.ip6Slots
}

// Addr looks an address up; ok is false where nobody has it.
func (s *Set) Addr(vlan VLAN, a netip.Addr) (d Dest, ok bool, err error) {
	if a.Is4() {
		return get(s.byIP4, ip4Key(vlan, a), a)
	}
	return get(s.byIP6, ip6Key(vlan, a), a)
}

// Addr is one entry of the address maps.
type Addr struct {
	Addr netip.Addr
	VLAN VLAN
	Dest
}

// Addrs lists all addresses, IPv4 first, in no order.
func (s *Set) Addrs() ([]Addr, error) {
	var all []Addr
	err := walk(s.byIP4, func(k bpf.XvlanIp4Key, d bpf.XvlanDest) {
		all = append(all, Addr{ip4Addr(k), VLAN(k.Vlan), destFromC(d)})
	})
	if err != nil {
		return nil, fmt.Errorf("read ipv4 addresses: %w", err)
	}
	err = walk(s.byIP6, func(k bpf.XvlanIp6Key, d bpf.XvlanDest) {
		all = append(all, Addr{netip.AddrFrom16(k.Addr), VLAN(k.Vlan), destFromC(d)})
	})
	if err != nil {
		return nil, fmt.Errorf("read ipv6 addresses: %w", err)
	}
	return all, nil
}

func macKey(vlan VLAN, mac net.HardwareAddr) *bpf.XvlanMacKey {
	return &bpf.XvlanMacKey{Vlan: uint32(vlan), Mac: [6]byte(mac)}
}

func ip4Key(vlan VLAN, a netip.Addr) *bpf.XvlanIp4Key {
	b := a.As4()
	return &bpf.XvlanIp4Key{Vlan: uint32(vlan), AddrBe: binary.NativeEndian.Uint32(b[:])}
}

func ip4Addr(k bpf.XvlanIp4Key) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], k.AddrBe)
	return netip.AddrFrom4(b)
}

func ip6Key(vlan VLAN, a netip.Addr) *bpf.XvlanIp6Key {
	return &bpf.XvlanIp6Key{Vlan: uint32(vlan), Addr: a.As16()}
}

func put(m *ebpf.Map, key any, d Dest, how ebpf.MapUpdateFlags, what any) error {
	c := d.toC()
	if err := m.Update(key, &c, how); err != nil {
		return fmt.Errorf("enter %v: %w", what, full(m, err))
	}
	return nil
}

// full makes the kernel's word for it ErrFull.
func full(m *ebpf.Map, err error) error {
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("%w: all %d places are taken; a parent that is attached with a higher capacity has more", ErrFull, m.MaxEntries())
	}
	return err
}

func del(m *ebpf.Map, key, what any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove %v: %w", what, err)
	}
	return nil
}

func get(m *ebpf.Map, key, what any) (Dest, bool, error) {
	var c bpf.XvlanDest
	if err := m.Lookup(key, &c); errors.Is(err, ebpf.ErrKeyNotExist) {
		return Dest{}, false, nil
	} else if err != nil {
		return Dest{}, false, fmt.Errorf("look %v up: %w", what, err)
	}
	return destFromC(c), true, nil
}

// walk calls fn with every entry, in batches: one system call each, instead of
// two an entry.
func walk[K, V any](m *ebpf.Map, fn func(K, V)) error {
	const batch = 1024
	var (
		keys   = make([]K, batch)
		values = make([]V, batch)
		cursor ebpf.MapBatchCursor
	)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			fn(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
