package maps

import (
	"fmt"
	"iter"
	"math/bits"
	"net"
	"strconv"
	"strings"

	"github.com/xvlan/xvlan/bpf"
)

// VLAN tells VLANs apart in keys and records: the ID of the 802.1Q tag, and above it
// that of the service tag in front of it, if there is one. 0: no tag, or one that
// nobody has claimed.
type VLAN uint32

// NoVLAN is what no frame is in: of a trunk that carries no untagged frames, and in
// keys of one that its VLANs are to be asked for.
const NoVLAN = VLAN(bpf.VLANNone)

// LastVLAN is the highest ID that a tag can tell a VLAN by.
const LastVLAN = 4094

// NewVLAN makes one of the IDs of its tags, of which outer may be 0.
func NewVLAN(id, outer uint16) VLAN { return VLAN(outer)<<bpf.QinQShift | VLAN(id) }

// IDs are those that it was made of.
func (v VLAN) IDs() (id, outer uint16) { return uint16(v & 0xfff), uint16(v >> bpf.QinQShift) }

// A Trunk is a set of VLANs, by the IDs of their tags. 0 stands for untagged frames
// that are in no VLAN.
type Trunk [64]uint64

// Has tells whether an ID is in it.
func (t *Trunk) Has(id uint16) bool { return int(id) < 64*len(t) && t[id/64]&(1<<(id%64)) != 0 }

// Add puts those from first to last into it.
func (t *Trunk) Add(first, last uint16) {
	for id := first; id <= last; id++ {
		t[id/64] |= 1 << (id % 64)
	}
}

// All are the IDs in it, in order.
func (t *Trunk) All() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for i, word := range t {
			for ; word != 0; word &= word - 1 {
				if !yield(uint16(64*i + bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}

// Ranges are the IDs in it as ranges, in order.
func (t *Trunk) Ranges() (all [][2]uint16) {
	for id := range t.All() {
		if n := len(all); n > 0 && all[n-1][1]+1 == id {
			all[n-1][1] = id
		} else {
			all = append(all, [2]uint16{id, id})
		}
	}
	return all
}

// String is the list that ParseTrunk reads.
func (t Trunk) String() string {
	var words []string
	for _, r := range t.Ranges() {
		word := strconv.Itoa(int(r[0]))
		if r[1] != r[0] {
			word += "-" + strconv.Itoa(int(r[1]))
		}
		words = append(words, word)
	}
	return strings.Join(words, ",")
}

// ParseTrunk reads a list of IDs and of ranges of them, as in 0,10,20-29. Its error
// names what it cannot read.
func ParseTrunk(list string) (t Trunk, err error) {
	for word := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(word, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err != nil || err2 != nil || first > last || last > LastVLAN {
			return t, fmt.Errorf("%q is no ID from 0 to %d, nor a range of them", word, LastVLAN)
		}
		t.Add(uint16(first), uint16(last))
	}
	return t, nil
}

// MACVLANs are those that the MAC of a Keyed sub-interface stands under.
func (s *Sub) MACVLANs() []VLAN {
	if s.Trunk && s.VLAN != NoVLAN {
		return []VLAN{NoVLAN, s.VLAN}
	}
	return []VLAN{s.VLAN} // of a trunk NoVLAN
}

// Trunk reads what VLANs a trunk carries tagged.
func (s *Set) Trunk(id ID) (Trunk, error) {
	var c bpf.XvlanTrunk
	if err := s.trunks.Lookup(uint32(id), &c); err != nil {
		return Trunk{}, fmt.Errorf("read trunk of %d: %w", id, err)
	}
	return Trunk(c.Vlans), nil
}

// PutTrunk writes it, before the record says that it is one.
func (s *Set) PutTrunk(id ID, t Trunk) error {
	t[0] &^= 1 // untagged frames are the record's
	if err := s.trunks.Put(uint32(id), &bpf.XvlanTrunk{Vlans: t}); err != nil {
		return fmt.Errorf("write trunk of %d: %w", id, err)
	}
	return nil
}

// DeleteTrunk removes it.
func (s *Set) DeleteTrunk(id ID) error { return del(s.trunks, uint32(id), "trunk") }

// Claimed lists the VLANs that are claimed.
func (s *Set) Claimed() (map[VLAN]bool, error) {
	all := map[VLAN]bool{}
	err := walk(s.vlans, func(v, _ uint32) { all[VLAN(v)] = true })
	if err != nil {
		return nil, fmt.Errorf("read vlans: %w", err)
	}
	return all, nil
}

// Claim makes the VLANs that are claimed these.
func (s *Set) Claim(want map[VLAN]bool) error {
	have, err := s.Claimed()
	if err != nil {
		return err
	}
	for v := range want {
		if !have[v] {
			if err := s.vlans.Put(uint32(v), uint32(0)); err != nil {
				return fmt.Errorf("claim vlan %d: %w", v, err)
			}
		}
	}
	for v := range have {
		if !want[v] {
			if err := del(s.vlans, uint32(v), v); err != nil {
				return err
			}
		}
	}
	return nil
}

// MAC is one entry of the map of MACs.
type MAC struct {
	MAC  net.HardwareAddr
	VLAN VLAN
	Dest
}

// MACs lists all MACs, in no order.
func (s *Set) MACs() (all []MAC, err error) {
	err = walk(s.byMAC, func(k bpf.XvlanMacKey, d bpf.XvlanDest) {
		all = append(all, MAC{net.HardwareAddr(k.Mac[:]), VLAN(k.Vlan), destFromC(d)})
	})
	if err != nil {
		return nil, fmt.Errorf("read macs: %w", err)
	}
	return all, nil
}
