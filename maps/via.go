package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/bpf"
)

// mappedBits is the length of ::ffff:0:0/96, in which IPv4 stands in the map.
const mappedBits = 96

// PutVia makes these networks, at most bpf.ViaNets and none with host bits set, those
// that a sub-interface reaches by way of the host. None take it out.
func (s *Set) PutVia(id ID, nets []netip.Prefix) error {
	if len(nets) == 0 {
		if err := s.vias.Delete(uint32(id)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove networks of %d: %w", id, err)
		}
		return nil
	}
	c := bpf.XvlanVia{Number: uint32(len(nets))}
	for i, p := range slices.SortedFunc(slices.Values(nets), netip.Prefix.Compare) {
		bits := p.Bits()
		if p.Addr().Is4() {
			bits += mappedBits
		}
		addr, mask := p.Addr().As16(), [16]byte{}
		for n := range bits {
			mask[n/8] |= 0x80 >> (n % 8)
		}
		for w := range 2 {
			c.Net[i].Addr[w] = binary.NativeEndian.Uint64(addr[8*w:])
			c.Net[i].Mask[w] = binary.NativeEndian.Uint64(mask[8*w:])
		}
	}
	if err := s.vias.Put(uint32(id), &c); err != nil {
		return fmt.Errorf("enter networks of %d: %w", id, full(s.vias, err))
	}
	return nil
}

// Vias returns the networks of all sub-interfaces that have any, in order.
func (s *Set) Vias() (map[ID][]netip.Prefix, error) {
	all := map[ID][]netip.Prefix{}
	err := walk(s.vias, func(id uint32, c bpf.XvlanVia) {
		for _, n := range c.Net[:min(int(c.Number), len(c.Net))] {
			all[ID(id)] = append(all[ID(id)], viaNet(n.Addr, n.Mask))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read networks by way of the host: %w", err)
	}
	return all, nil
}

func viaNet(addrWords, maskWords [2]uint64) netip.Prefix {
	var addr, mask [16]byte
	for w := range 2 {
		binary.NativeEndian.PutUint64(addr[8*w:], addrWords[w])
		binary.NativeEndian.PutUint64(mask[8*w:], maskWords[w])
	}
	bits := 0
	for bits < 128 && mask[bits/8]&(0x80>>(bits%8)) != 0 {
		bits++
	}
	a := netip.AddrFrom16(addr)
	if a.Is4In6() {
		return netip.PrefixFrom(a.Unmap(), bits-mappedBits)
	}
	return netip.PrefixFrom(a, bits)
}
