// Package bpf holds the packet path's programs, compiled, and loads them.
package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net"
	"net/netip"
	"runtime"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Schema is the version of the maps' keys, values and flags: XVLAN_SCHEMA in
// xvlan.h. Maps that say another one must not be written to.
const Schema = 10

// OldestSchema is the oldest whose maps can be carried over, see maps.Older.
const OldestSchema = 5

// LearnSlots is how many addresses of each family a sub-interface can hold by
// learning: LEARN_SLOTS in xvlan.h.
const LearnSlots = 8

// ViaNets is how many networks a sub-interface may reach by way of the host: VIA_NETS.
const ViaNets = 16

// MaxCapacity is the highest number of sub-interfaces a parent can be made for.
const MaxCapacity = 65535

// reservedAddrs is the room in the address maps for those of the host and its
// gateways, which are entered so that nobody learns them.
const reservedAddrs = 1024

// Watchers is how many can watch a parent at once: WATCHERS.
const Watchers = 8

// SlotShared is a slot that several sub-interfaces fall into: SLOT_SHARED.
const SlotShared = 1 << 31

// What VLANs are told by: QINQ_SHIFT and VLAN_NONE.
const (
	QinQShift = 12
	VLANNone  = 0xffffffff
)

// VersionMax is that of a bucket of which no more copies are made: VERSION_MAX.
const VersionMax = 0xf0000000

// slotBits makes the slot tables at least four times as large as what goes
// into them, so that few slots are shared.
func slotBits(capacity uint32) int { return bits.Len32(4*capacity - 1) }

// MACSlot is the slot a MAC falls into, of a table with this many slots.
func MACSlot(mac net.HardwareAddr, slots uint32) uint32 {
	low := uint32(mac[2]) | uint32(mac[3])<<8 | uint32(mac[4])<<16 | uint32(mac[5])<<24
	high := uint32(mac[0]) | uint32(mac[1])<<8
	return (low ^ high) * 0x9e3779b1 >> (32 - bits.Len32(slots-1))
}

// maxAddrBits bounds the memory that slots of addresses take: to 4 MiB a family.
const maxAddrBits = 16

// addrBits gives addresses twice as many slots of IPv4 as all can learn.
func addrBits(capacity uint32) int { return min(bits.Len32(LearnSlots*capacity-1), maxAddrBits) }

// AddrBucket is the bucket that an address falls into, of so many.
func AddrBucket(a netip.Addr, buckets uint32) uint32 {
	const spread = 0x9e3779b97f4a7c15
	var key uint64
	if a.Is4() {
		b := a.As4()
		key = uint64(binary.NativeEndian.Uint32(b[:]))
	} else {
		b := a.As16()
		key = binary.NativeEndian.Uint64(b[:])*spread + binary.NativeEndian.Uint64(b[8:])
	}
	key *= spread
	key ^= key >> 32
	return uint32(key * spread >> (64 - bits.Len32(buckets-1)))
}

// LegSlot is the slot an ifindex falls into, of a table with this many slots.
func LegSlot(index, slots uint32) uint32 { return index & (slots - 1) }

// sourcesPerSub is how many source MACs there is room for, for each
// sub-interface on the average.
const sourcesPerSub = 16

// The maps that the programs hold as sections: one entry with key 0, which is
// an array of records or slots. They can be mapped into memory.
const (
	MapMeta     = "meta"      // XvlanParent
	MapSubs     = "subs"      // XvlanSub by id
	MapMACSlots = "mac_slots" // uint32, see MACSlot
	MapLegSlots = "leg_slots" // uint32, see LegSlot
	MapWatchers = "watchers"  // XvlanWatcher
	MapGuards   = "guards"    // XvlanGuard by id
	MapIP4Slots = "ip4_slots" // XvlanIp4Bucket, see AddrBucket
	MapIP6Slots = "ip6_slots" // XvlanIp6Bucket
)

// ErrCapacity is returned for a number of sub-interfaces that no maps can be
// made for.
var ErrCapacity = errors.New("capacity out of range")

// Load loads all programs and maps of one parent, for up to capacity
// sub-interfaces (ids 1 to capacity). The caller closes the collection. It
// takes CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and Linux 6.1.
func Load(capacity uint32) (*ebpf.Collection, error) {
	spec, err := sized(LoadXvlan, capacity)
	if err != nil {
		return nil, err
	}
	coll, err := loadAll(spec, nil)
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	for _, name := range sections {
		coll.Maps[name] = coll.Maps[section+name]
		delete(coll.Maps, section+name)
	}
	return coll, nil
}

// LoadOn loads the programs alone, which read returns (LoadXvlan), for maps that
// Load has made for the same capacity and Schema. The caller closes the
// collection; the maps stay.
func LoadOn(read func() (*ebpf.CollectionSpec, error), capacity uint32, maps map[string]*ebpf.Map) (*ebpf.Collection, error) {
	spec, err := sized(read, capacity)
	if err != nil {
		return nil, err
	}
	coll, err := onMaps(spec, maps)
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	return coll, nil
}

// onMaps loads programs for maps that there are, by name as Load returns them.
func onMaps(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) (*ebpf.Collection, error) {
	replace := map[string]*ebpf.Map{}
	for name, m := range maps {
		if _, ok := spec.Maps[section+name]; ok {
			name = section + name
		}
		replace[name] = m
	}
	return loadAll(spec, replace)
}

// loadAll makes the maps that are not there, and loads the programs: what sends beside
// the rest, where there are CPUs for it, as the verifier takes a tenth of a second and
// more for either.
func loadAll(spec *ebpf.CollectionSpec, there map[string]*ebpf.Map) (*ebpf.Collection, error) {
	if runtime.GOMAXPROCS(0) == 1 {
		return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: there})
	}
	part := func(on map[string]*ebpf.Map, wanted func(program string) bool) (*ebpf.Collection, error) {
		some := spec.Copy()
		maps.DeleteFunc(some.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return !wanted(name) })
		return ebpf.NewCollectionWithOptions(some, ebpf.CollectionOptions{MapReplacements: on})
	}
	coll, err := part(there, func(string) bool { return false })
	if err != nil {
		return nil, err
	}
	var (
		parts [2]*ebpf.Collection
		errs  [2]error
		wait  sync.WaitGroup
	)
	for i := range parts {
		wait.Go(func() {
			parts[i], errs[i] = part(coll.Maps, func(program string) bool { return (program == XvlanProgXvlanTx) == (i == 0) })
		})
	}
	wait.Wait()
	for _, p := range parts {
		if p != nil {
			maps.Copy(coll.Programs, p.Programs)
			clear(p.Programs) // which are coll's now
			p.Close()
		}
	}
	if err := errors.Join(errs[:]...); err != nil {
		coll.Close()
		return nil, err
	}
	return coll, nil
}

// sections are the maps that are sections.
var sections = []string{MapMeta, MapSubs, MapGuards, MapMACSlots, MapLegSlots, MapIP4Slots, MapIP6Slots, MapWatchers}

// sized reads an object and makes room for so many sub-interfaces in its maps.
func sized(read func() (*ebpf.CollectionSpec, error), capacity uint32) (*ebpf.CollectionSpec, error) {
	if capacity < 1 || capacity > MaxCapacity {
		return nil, fmt.Errorf("load programs: %w: %d is not in 1..%d", ErrCapacity, capacity, MaxCapacity)
	}
	spec, err := read()
	if err != nil {
		return nil, fmt.Errorf("read programs: %w", err)
	}
	// Only there to keep types in BTF.
	delete(spec.Variables, XvlanVarEmitVerdict)
	delete(spec.Variables, XvlanVarEmitSighting)
	delete(spec.Variables, XvlanVarEmitCarried)
	delete(spec.Maps, ".bss")
	if err := dropMissing(spec); err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	slots := slotBits(capacity)
	ids := uint32(1) << bits.Len32(capacity) // a power of two, so that a mask bounds them
	buckets := addrBits(capacity)
	for name, value := range map[string]any{
		XvlanVarSlotShift: uint32(32 - slots),
		XvlanVarAddrShift: uint32(64 - buckets),
		XvlanVarIdMask:    ids - 1,
		XvlanVarInOrder:   runtime.GOARCH == "amd64",
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	lengths := map[string]uint32{
		MapMeta: 1, MapSubs: ids, MapGuards: ids, MapMACSlots: 1 << slots, MapLegSlots: 1 << slots,
		MapIP4Slots: 1 << buckets, MapIP6Slots: 1 << buckets, MapWatchers: Watchers,
	}
	for _, name := range sections {
		if err := lengthen(spec.Maps[section+name], lengths[name]); err != nil {
			return nil, fmt.Errorf("size %s: %w", name, err)
		}
	}
	// Given addresses share the room with learned ones: twice the most that
	// can be learned, so that learning never uses up what can be given.
	addrs := 2*LearnSlots*capacity + reservedAddrs
	for name, entries := range map[string]uint32{
		XvlanMapStats:   capacity + 1,
		XvlanMapLearned: capacity + 1,
		XvlanMapMembers: capacity/64 + 1,
		XvlanMapPorts:   capacity + 1,
		XvlanMapBySrc:   sourcesPerSub * capacity,
		XvlanMapByMac:   2 * capacity, // of a trunk with a VLAN for its untagged frames
		XvlanMapVlans:   vlanIDs + capacity,
		XvlanMapTrunks:  capacity,
		XvlanMapVias:    capacity,
		XvlanMapByLeg:   capacity,
		XvlanMapByIp4:   addrs,
		XvlanMapByIp6:   addrs,
	} {
		spec.Maps[name].MaxEntries = entries
	}
	return spec, nil
}

// vlanIDs is how many IDs a VLAN tag can tell; of those behind a service tag each
// sub-interface can claim one more.
const vlanIDs = 4096

// section begins the names that sections have in the object.
const section = ".data."

// lengthen makes a section that declares one element hold n, and mappable,
// which also lets it begin on a page: a record is then one cache line.
func lengthen(spec *ebpf.MapSpec, n uint32) error {
	data, ok := spec.Value.(*btf.Datasec)
	if !ok || len(data.Vars) != 1 {
		return fmt.Errorf("%v is no section of one variable", spec.Value)
	}
	element := data.Vars[0].Type.(*btf.Var).Type
	if array, ok := btf.UnderlyingType(element).(*btf.Array); ok {
		element = array.Type
	}
	index := &btf.Int{Name: "unsigned int", Size: 4}
	spec.Key, spec.Value = index, &btf.Array{Index: index, Type: element, Nelems: n}
	spec.ValueSize = data.Vars[0].Size * n
	spec.Flags |= unix.BPF_F_MMAPABLE
	spec.Contents = nil
	return nil
}

// OnDevice is the context to run a tc program in as if by a frame on a device of
// the calling thread's network namespace.
func OnDevice(index int) []byte {
	const ifindex, size = 40, 44 // in struct __sk_buff
	ctx := make([]byte, size)
	binary.NativeEndian.PutUint32(ctx[ifindex:], uint32(index))
	return ctx
}

// ErrStrange is returned for a host leg that is none.
var ErrStrange = errors.New("not a leg of a sub-interface")

// Meet runs xvlan_meet on a host leg of the calling thread's network namespace,
// which writes down in its sub-interface's record what is at the other end.
func Meet(prog *ebpf.Program, leg int) error {
	ret, err := prog.Run(&ebpf.RunOptions{Data: make([]byte, 64), Context: OnDevice(leg)})
	if err != nil {
		return fmt.Errorf("look at the other end of device %d: %w", leg, err)
	}
	if ret != 0 {
		return fmt.Errorf("look at the other end of device %d: %w", leg, ErrStrange)
	}
	return nil
}

// Carry runs xvlan_carry, which adds to the counters of an id.
func Carry(prog *ebpf.Program, id uint32, more *XvlanSubStats) error {
	raw, err := binary.Append(nil, binary.NativeEndian, &XvlanCarried{Id: id, Stats: *more})
	if err != nil {
		return fmt.Errorf("add to counters of %d: %w", id, err)
	}
	ret, err := prog.Run(&ebpf.RunOptions{Data: raw})
	if err == nil && ret != 0 {
		err = fmt.Errorf("%w: the maps have no such id", ebpf.ErrKeyNotExist)
	}
	if err != nil {
		return fmt.Errorf("add to counters of %d: %w", id, err)
	}
	return nil
}
