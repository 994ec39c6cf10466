// Package bpf holds the packet path's programs, compiled, and loads them.
package bpf

import (
	"errors"
	"fmt"
	"math/bits"
	"net"

	"github.com/cilium/ebpf"
)

// Schema is the version of the maps' keys, values and flags: XVLAN_SCHEMA in
// xvlan.h. Maps that say another one must not be written to.
const Schema = 1

// LearnSlots is how many addresses of each family a sub-interface can hold by
// learning: LEARN_SLOTS in xvlan.h.
const LearnSlots = 8

// MaxCapacity is the highest number of sub-interfaces a parent can be made for.
const MaxCapacity = 65535

// reservedAddrs is the room in the address maps for those of the host and its
// gateways, which are entered so that nobody learns them.
const reservedAddrs = 1024

// SlotShared is a slot that several sub-interfaces fall into: SLOT_SHARED.
const SlotShared = 1 << 31

// slotBits makes the slot tables at least four times as large as what goes
// into them, so that few slots are shared.
func slotBits(capacity uint32) int { return bits.Len32(4*capacity - 1) }

// MACSlot is the slot a MAC falls into, of a table with this many slots.
func MACSlot(mac net.HardwareAddr, slots uint32) uint32 {
	low := uint32(mac[2]) | uint32(mac[3])<<8 | uint32(mac[4])<<16 | uint32(mac[5])<<24
	high := uint32(mac[0]) | uint32(mac[1])<<8
	return (low ^ high) * 0x9e3779b1 >> (32 - bits.Len32(slots-1))
}

// LegSlot is the slot an ifindex falls into, of a table with this many slots.
func LegSlot(index, slots uint32) uint32 { return index & (slots - 1) }

// sourcesPerSub is how many source MACs there is room for, for each
// sub-interface on the average.
const sourcesPerSub = 16

// ErrCapacity is returned for a number of sub-interfaces that no maps can be
// made for.
var ErrCapacity = errors.New("capacity out of range")

// Load loads all programs and maps of one parent, for up to capacity
// sub-interfaces (ids 1 to capacity). The caller closes the collection. It
// takes CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and Linux 6.1.
func Load(capacity uint32) (*ebpf.Collection, error) {
	if capacity < 1 || capacity > MaxCapacity {
		return nil, fmt.Errorf("load programs: %w: %d is not in 1..%d", ErrCapacity, capacity, MaxCapacity)
	}
	spec, err := LoadXvlan()
	if err != nil {
		return nil, fmt.Errorf("read programs: %w", err)
	}
	// Only there to keep an enum's names in BTF.
	delete(spec.Variables, XvlanVarEmitVerdict)
	delete(spec.Maps, ".bss")
	slots := slotBits(capacity)
	if err := spec.Variables[XvlanVarSlotBits].Set(uint32(slots)); err != nil {
		return nil, fmt.Errorf("set slot bits: %w", err)
	}
	// Given addresses share the room with learned ones: twice the most that
	// can be learned, so that learning never uses up what can be given.
	addrs := 2*LearnSlots*capacity + reservedAddrs
	for name, entries := range map[string]uint32{
		XvlanMapSubs:     capacity + 1,
		XvlanMapStats:    capacity + 1,
		XvlanMapLearned:  capacity + 1,
		XvlanMapMembers:  capacity/64 + 1,
		XvlanMapMacSlots: 1 << slots,
		XvlanMapLegSlots: 1 << slots,
		XvlanMapBySrc:    sourcesPerSub * capacity,
		XvlanMapByMac:    capacity,
		XvlanMapByLeg:    capacity,
		XvlanMapByIp4:    addrs,
		XvlanMapByIp6:    addrs,
	} {
		spec.Maps[name].MaxEntries = entries
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	return coll, nil
}
