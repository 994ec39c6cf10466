package maps

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/bpf"
)

// Use is how full a map is. Those that have a place for each ID besides are as
// full as the records.
type Use struct {
	Map      string
	Entries  int
	Capacity int
}

// Use counts what stands in the maps that can be full: it walks through each.
func (s *Set) Use() ([]Use, error) {
	subs, err := s.Subs()
	if err != nil {
		return nil, err
	}
	records := Use{Map: bpf.MapSubs, Capacity: len(subs) - 1}
	for _, sub := range subs {
		if sub.State != Free {
			records.Entries++
		}
	}
	all := []Use{records}
	for _, m := range []struct {
		name  string
		m     *ebpf.Map
		count func(*ebpf.Map) (int, error)
	}{
		{bpf.XvlanMapByMac, s.byMAC, entries[bpf.XvlanMacKey, bpf.XvlanDest]},
		{bpf.XvlanMapByIp4, s.byIP4, entries[bpf.XvlanIp4Key, bpf.XvlanDest]},
		{bpf.XvlanMapByIp6, s.byIP6, entries[bpf.XvlanIp6Key, bpf.XvlanDest]},
		{bpf.XvlanMapByLeg, s.byLeg, entries[uint32, bpf.XvlanDest]},
		{bpf.XvlanMapBySrc, s.bySrc, entries[bpf.XvlanSrcKey, uint32]},
		{bpf.XvlanMapTrunks, s.trunks, entries[uint32, bpf.XvlanTrunk]},
		{bpf.XvlanMapVias, s.vias, entries[uint32, bpf.XvlanVia]},
		{bpf.XvlanMapVlans, s.vlans, entries[uint32, uint32]},
	} {
		n, err := m.count(m.m)
		if err != nil {
			return nil, fmt.Errorf("count %s: %w", m.name, err)
		}
		all = append(all, Use{m.name, n, int(m.m.MaxEntries())})
	}
	return all, nil
}

func entries[K, V any](m *ebpf.Map) (n int, err error) {
	err = walk(m, func(K, V) { n++ })
	return n, err
}

// AllStats reads the counters of all sub-interfaces, and at 0 the parent's: in
// few system calls, where Stats takes one for each.
func (s *Set) AllStats() ([]Stats, error) {
	const batch = 256
	var (
		cpus   = ebpf.MustPossibleCPU()
		keys   = make([]uint32, batch)
		perCPU = make([]bpf.XvlanSubStats, batch*cpus)
		all    = make([]Stats, s.stats.MaxEntries())
		cursor ebpf.MapBatchCursor
	)
	for read := 0; read < len(all); {
		n, err := s.stats.BatchLookup(&cursor, keys, perCPU, nil)
		for i := range n {
			all[keys[i]] = sum(perCPU[i*cpus : (i+1)*cpus])
		}
		if read += n; err != nil && read < len(all) {
			return nil, fmt.Errorf("read counters: %w", err)
		}
	}
	return all, nil
}

// Instance is the kernel's number of these very maps: those that the parent has
// after it was attached anew have another.
func (s *Set) Instance() (ebpf.MapID, error) {
	info, err := s.stats.Info()
	if err != nil {
		return 0, fmt.Errorf("read number of the counters: %w", err)
	}
	id, _ := info.ID() // since Linux 4.13
	return id, nil
}
