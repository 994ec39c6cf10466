package maps

import (
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/bpf"
)

// All counters are read, on each CPU, however many batches that takes.
func TestAllStats(t *testing.T) {
	for _, capacity := range []uint32{1, 255, 256, 600} {
		s := newSetFor(t, capacity)
		want := make([]Stats, capacity+1)
		for id := range want {
			perCPU := make([]bpf.XvlanSubStats, ebpf.MustPossibleCPU())
			for cpu := range perCPU {
				perCPU[cpu].Verdict[RX] = bpf.XvlanCounter{Packets: uint64(id), Bytes: uint64(cpu)}
				want[id][RX].Packets += uint64(id)
				want[id][RX].Bytes += uint64(cpu)
			}
			if err := s.stats.Put(uint32(id), perCPU); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.AllStats()
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("with a capacity of %d: read %v\nwant %v", capacity, got, want)
		}
	}
}

func TestUse(t *testing.T) {
	s := newSetFor(t, 100)
	for id := ID(1); id <= 3; id++ {
		mac := net.HardwareAddr{2, 0, 0, 0, 0, byte(id)}
		if err := s.PutSub(id, Sub{State: Active, MAC: mac}); err != nil {
			t.Fatal(err)
		}
		if err := s.PutMAC(0, mac, Dest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutAddr(0, netip.MustParseAddr("192.0.2.1"), Dest{ID: 1}); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"2001:db8::1", "2001:db8::2"} {
		if err := s.PutAddr(0, netip.MustParseAddr(a), Dest{ID: 1}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Use()
	if err != nil {
		t.Fatal(err)
	}
	want := []Use{{"subs", 3, 100}, {"by_mac", 3, 200}, {"by_ip4", 1, 2624}, {"by_ip6", 2, 2624}, {"by_leg", 0, 100}, {"by_src", 0, 1600}, {"trunks", 0, 100}, {"vias", 0, 100}, {"vlans", 0, 4196}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("use is %v\nwant %v", got, want)
	}
}
