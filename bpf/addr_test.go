package bpf_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
)

// families are IPv4 and IPv6.
var families = map[string]struct {
	of       func(uint32) netip.Addr
	sections string
	slots    int // of a bucket
}{
	"IPv4": {ip4Of, bpf.MapIP4Slots, len(bpf.XvlanIp4Bucket{}.Mark)},
	"IPv6": {ip6Of, bpf.MapIP6Slots, len(bpf.XvlanIp6Bucket{}.Mark)},
}

// A slotCopy is what a slot says of an address.
type slotCopy struct {
	addr    netip.Addr
	id, gen uint32
}

// element reads an element of a section.
func element[T any](tb testing.TB, w *world, name string, index uint32) (e T) {
	tb.Helper()
	mem, err := w.coll.Maps[name].Memory()
	if err != nil {
		tb.Fatalf("map %s: %v", name, err)
	}
	size := int64(binary.Size(e))
	if err := binary.Read(io.NewSectionReader(mem, int64(index)*size, size), binary.NativeEndian, &e); err != nil {
		tb.Fatalf("read element %d of %s: %v", index, name, err)
	}
	return e
}

// bucket is the index of the bucket that an address falls into.
func (w *world) bucket(a netip.Addr) uint32 { return bpf.AddrBucket(a, w.buckets()) }

func (w *world) buckets() uint32 {
	return w.coll.Maps[bpf.MapIP4Slots].ValueSize() / uint32(binary.Size(bpf.XvlanIp4Bucket{}))
}

// falling returns n further addresses that fall into the same bucket.
func (w *world) falling(a netip.Addr, n int) (all []netip.Addr) {
	for b := a.Next(); len(all) < n; b = b.Next() {
		if w.bucket(b) == w.bucket(a) {
			all = append(all, b)
		}
	}
	return all
}

// addrSlots makes the slots of addresses empty, or copies of all entries.
func (w *world) addrSlots(tb testing.TB) {
	tb.Helper()
	w.set(tb, bpf.MapIP4Slots, 0, make([]bpf.XvlanIp4Bucket, w.buckets()))
	w.set(tb, bpf.MapIP6Slots, 0, make([]bpf.XvlanIp6Bucket, w.buckets()))
	for _, e := range w.dests {
		if w.seen && e.vlan == 0 {
			w.copy(tb, slotCopy{e.addr, e.id, e.gen}, 0)
		}
	}
}

// copy puts a copy into the first empty slot of its bucket, if there is one, as
// made by a version of the bucket.
func (w *world) copy(tb testing.TB, c slotCopy, version uint32) {
	tb.Helper()
	index := w.bucket(c.addr)
	if c.addr.Is4() {
		b := element[bpf.XvlanIp4Bucket](tb, w, bpf.MapIP4Slots, index)
		if i := slices.Index(b.Mark[:], 0); i >= 0 {
			b.Mark[i], b.Id[i], b.Gen[i] = version+1, uint16(c.id), c.gen
			b.Addr[i] = ip4Key(0, c.addr).AddrBe
			w.set(tb, bpf.MapIP4Slots, index, b)
		}
		return
	}
	b, raw := element[bpf.XvlanIp6Bucket](tb, w, bpf.MapIP6Slots, index), c.addr.AsSlice()
	if i := slices.Index(b.Mark[:], 0); i >= 0 {
		b.Mark[i], b.Id[i], b.Gen[i] = version+1, uint16(c.id), c.gen
		b.Addr[i].High, b.Addr[i].Low = binary.NativeEndian.Uint64(raw), binary.NativeEndian.Uint64(raw[8:])
		w.set(tb, bpf.MapIP6Slots, index, b)
	}
}

// copies returns what the bucket of an address has of its present version.
func (w *world) copies(tb testing.TB, a netip.Addr) (all []slotCopy) {
	tb.Helper()
	if a.Is4() {
		b := element[bpf.XvlanIp4Bucket](tb, w, bpf.MapIP4Slots, w.bucket(a))
		for i, mark := range b.Mark {
			addr, _ := netip.AddrFromSlice(binary.NativeEndian.AppendUint32(nil, b.Addr[i]))
			if mark == b.Version+1 {
				all = append(all, slotCopy{addr, uint32(b.Id[i]), b.Gen[i]})
			}
		}
		return all
	}
	b := element[bpf.XvlanIp6Bucket](tb, w, bpf.MapIP6Slots, w.bucket(a))
	for i, mark := range b.Mark {
		raw := binary.NativeEndian.AppendUint64(nil, b.Addr[i].High)
		addr, _ := netip.AddrFromSlice(binary.NativeEndian.AppendUint64(raw, b.Addr[i].Low))
		if mark == b.Version+1 {
			all = append(all, slotCopy{addr, uint32(b.Id[i]), b.Gen[i]})
		}
	}
	return all
}

// wordsEach is the number of 32-bit words of a bucket, whose version is the first.
const wordsEach = 16

func (w *world) setVersion(tb testing.TB, section string, a netip.Addr, version uint32) {
	tb.Helper()
	w.set(tb, section, w.bucket(a)*wordsEach, version)
}

// arrive gives xvlan_rx a frame for an address, which goes to one or, with id 0,
// stays the host's.
func (w *world) arrive(tb testing.TB, a netip.Addr, to uint32) {
	tb.Helper()
	frame, want := toAddr(a), hit{id: to, verdict: rx}
	if to == 0 {
		want.verdict = passed
	}
	w.clearStats(tb)
	w.run(tb, bpf.XvlanProgXvlanRx, 0, frame, 0)
	wantHits(tb, w, len(frame), want)
}

func toAddr(a netip.Addr) []byte {
	if a.Is4() {
		return udp(parentMAC, routerMAC, a, routerIP4, 18)
	}
	return udp(parentMAC, routerMAC, a, routerIP6, 18)
}

const beingMade = 1<<32 - 1 // a copy's mark, one more than its version

// What a slot says counts while its version is the bucket's, and only then. The
// hash map does not have the address, so that it tells who has answered.
func TestAddrSlots(t *testing.T) {
	w := usualWorld(t)
	for name, family := range families {
		for _, c := range []struct {
			name      string
			id, gen   uint32
			made, now uint32 // versions
			to        uint32
		}{
			{"the bucket's first version", ipAway, generation, 0, 0, ipAway},
			{"the bucket's version", ipAway, generation, 6, 6, ipAway},
			{"the version before", ipAway, generation, 4, 6, 0},
			{"a later version", ipAway, generation, 8, 6, 0},
			{"an entry is being changed", ipAway, generation, 6, 7, 0},
			{"being made", ipAway, generation, beingMade - 1, 6, 0},
			{"in the parent's namespace", ipHere, generation, 6, 6, ipHere},
			{"reserved", 0, 0, 6, 6, 0},
			{"of the id's former owner", ipAway, generation - 1, 6, 6, 0},
			{"MAC-keyed", macAway, generation, 6, 6, 0},
			{"record pending", pending, generation, 6, 6, 0},
			{"record free", free, generation, 6, 6, 0},
			{"beyond the capacity", capacity + 1, generation, 6, 6, 0},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				w.enter(t)
				a := family.of(99)
				w.copy(t, slotCopy{a, c.id, c.gen}, c.made)
				w.setVersion(t, family.sections, a, c.now)
				w.arrive(t, a, c.to)
			})
		}
	}
}

// Copies are made of what the hash map has, where there is room for them, and
// the frame reaches whom it is for in any case.
func TestAddrSlotsAreFilled(t *testing.T) {
	w := usualWorld(t)
	for name, family := range families {
		a := family.of(ipAway)
		mine := slotCopy{a, ipAway, generation}
		var full []slotCopy
		for _, near := range w.falling(a, family.slots) {
			full = append(full, slotCopy{near, ipHere, generation})
		}
		again := []slotCopy{full[0], {a, ipHere, generation}}
		for _, c := range []struct {
			name      string
			before    []slotCopy
			made, now uint32
			want      []slotCopy
		}{
			{"empty", nil, 0, 0, []slotCopy{mine}},
			{"empty, later", nil, 0, 6, []slotCopy{mine}},
			{"an entry is being changed", nil, 0, 7, nil},
			{"the last version but one", nil, 0, bpf.VersionMax - 2, []slotCopy{mine}},
			{"the last version", nil, 0, bpf.VersionMax, nil},
			{"earlier ones, the address's among them", again, 4, 6, []slotCopy{mine}},
			{"full of earlier ones", full, 4, 6, []slotCopy{mine}},
			{"full", full, 6, 6, full},
			{"full of those being made", full, beingMade - 1, 6, nil},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				w.enter(t)
				for _, before := range c.before {
					w.copy(t, before, c.made)
				}
				w.setVersion(t, family.sections, a, c.now)
				for range 2 {
					w.arrive(t, a, ipAway)
					if got := w.copies(t, a); !slices.Equal(got, c.want) {
						t.Errorf("the bucket has %v, want %v", got, c.want)
					}
				}
			})
		}
		t.Run(name+"/in a VLAN", func(t *testing.T) {
			w.enter(t)
			w.run(t, bpf.XvlanProgXvlanRx, 0, tagged(toAddr(family.of(ipVLAN)), 0x8100, 10), 0)
			if got := w.copies(t, family.of(ipVLAN)); got != nil {
				t.Errorf("the bucket has %v", got)
			}
		})
		t.Run(name+"/nobody's", func(t *testing.T) {
			w.enter(t)
			w.arrive(t, family.of(99), 0)
			if got := w.copies(t, family.of(99)); got != nil {
				t.Errorf("the bucket has %v", got)
			}
		})
	}
}

// More addresses than a bucket has slots are all found, also after one of them
// has gone.
func TestAddrSlotsCollide(t *testing.T) {
	w := usualWorld(t)
	for name, family := range families {
		t.Run(name, func(t *testing.T) {
			w.enter(t)
			near := w.falling(family.of(ipAway), family.slots+2)
			owners := map[netip.Addr]uint32{}
			for i, a := range near {
				e := entry{0, a, ipAway, generation, bpf.XvlanDestFlagDEST_LEARNED}
				switch i % 3 {
				case 1:
					e.id = ipHere
				case 2:
					e.id, e.gen, e.flags = 0, 0, bpf.XvlanDestFlagDEST_RESERVED
				}
				w.putEntry(t, e)
				owners[a] = e.id
			}
			reach := func() {
				t.Helper()
				for range 2 {
					for _, a := range near {
						w.arrive(t, a, owners[a])
					}
				}
				if got := w.copies(t, near[0]); len(got) != family.slots {
					t.Errorf("the bucket has %v", got)
				}
			}
			reach()
			w.run(t, bpf.XvlanProgXvlanRx, 0, announce(routerMAC, near[0]), 0)
			owners[near[0]] = 0
			if got := w.copies(t, near[0]); got != nil {
				t.Errorf("after a claim the bucket has %v", got)
			}
			reach()
		})
	}
}

// A slot follows every way that an address takes from one to another.
func TestAddrSlotsFollow(t *testing.T) {
	w := usualWorld(t)
	for name, family := range families {
		a := family.of(50)
		// seen lets two frames arrive: the second finds its slot.
		seen := func(t *testing.T, a netip.Addr, to uint32) {
			t.Helper()
			w.arrive(t, a, to)
			if got := w.copies(t, a); to != 0 && (len(got) != 1 || got[0].id != to) {
				t.Errorf("the bucket has %v, want one of %d", got, to)
			}
			w.arrive(t, a, to)
		}
		t.Run(name+"/claimed from the wire", func(t *testing.T) {
			w.enter(t)
			w.claim(t, ipHere, a)
			seen(t, a, ipHere)
			w.run(t, bpf.XvlanProgXvlanRx, 0, announce(routerMAC, a), 0)
			seen(t, a, 0)
			w.claim(t, ipAway, a)
			seen(t, a, ipAway)
		})
		t.Run(name+"/forgotten", func(t *testing.T) {
			w.enter(t)
			w.claim(t, ipHere, a)
			seen(t, a, ipHere)
			for i := range uint32(bpf.LearnSlots) {
				w.claim(t, ipHere, family.of(60+i))
			}
			seen(t, a, 0)
			w.claim(t, ipAway, a)
			seen(t, a, ipAway)
		})
		t.Run(name+"/of a former owner", func(t *testing.T) {
			w.enter(t)
			w.arrive(t, family.of(stale), 0)
			w.claim(t, ipAway, family.of(stale))
			seen(t, family.of(stale), ipAway)
		})
		t.Run(name+"/another's record in its id", func(t *testing.T) {
			w.enter(t)
			seen(t, family.of(ipAway), ipAway)
			sub := plain(w.subs[ipAway])
			sub.Gen++
			w.set(t, bpf.MapSubs, ipAway, sub)
			w.arrive(t, family.of(ipAway), 0)
		})
	}
}

// While one CPU has frames for an address, and makes copies, another gives it to
// one, to the next, and to nobody: each frame after a change goes by that.
func TestAddrSlotsRace(t *testing.T) {
	w := usualWorld(t)
	w.enter(t)
	set := w.open(t)
	for name, family := range families {
		t.Run(name, func(t *testing.T) {
			a := family.of(99)
			stop, stopped := make(chan struct{}), make(chan error)
			go func() {
				var err error
				opts := &ebpf.RunOptions{Data: toAddr(a), Context: &skBuff{Ifindex: w.meta.Ifindex}, Repeat: 8}
				prog := w.coll.Programs[bpf.XvlanProgXvlanRx]
				w.host.Do(t, func() {
					for err == nil {
						select {
						case <-stop:
							stopped <- nil
							return
						default:
							_, err = prog.Run(opts)
						}
					}
					stopped <- err
				})
			}()
			to := func(to maps.ID, change error) {
				t.Helper()
				if change != nil {
					t.Fatal(change)
				}
				ret, _ := w.run(t, bpf.XvlanProgXvlanRx, 0, toAddr(a), 0)
				_, out := w.run(t, bpf.XvlanProgXvlanRx, 0, toAddr(a), 0)
				here := macOf(ipHere)
				if ret == actRedir != (to != 0) || bytes.Equal(out[:6], here[:]) != (to == ipHere) {
					t.Fatalf("after it was given to %d the frame returned %d and is\n%s", to, int32(ret), hex.Dump(out[:14]))
				}
			}
			for range 500 {
				to(ipAway, set.PutAddr(0, a, maps.Dest{ID: ipAway, Gen: generation, Origin: maps.Given}))
				to(ipHere, set.ReplaceAddr(0, a, maps.Dest{ID: ipHere, Gen: generation, Origin: maps.Given}))
				to(0, set.ReplaceAddr(0, a, maps.Dest{Origin: maps.Reserved}))
				to(ipAway, set.ReplaceAddr(0, a, maps.Dest{ID: ipAway, Gen: generation, Origin: maps.Given}))
				to(0, set.DeleteAddr(0, a))
			}
			close(stop)
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		})
	}
}

// open gives a world's maps Go types.
func (w *world) open(tb testing.TB) *maps.Set {
	tb.Helper()
	coll := &ebpf.Collection{Maps: map[string]*ebpf.Map{}}
	for name, m := range w.coll.Maps {
		clone, err := m.Clone()
		if err != nil {
			tb.Fatalf("clone map %s: %v", name, err)
		}
		coll.Maps[name] = clone
	}
	tb.Cleanup(coll.Close)
	set, err := maps.New(coll)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := set.Close(); err != nil {
			tb.Error(err)
		}
	})
	return set
}
