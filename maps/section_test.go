package maps

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"testing"

	"github.com/cilium/ebpf/rlimit"

	"github.com/xvlan/xvlan/bpf"
)

const capacity = 5

func newSet(t *testing.T) *Set {
	t.Helper()
	return newSetFor(t, capacity)
}

func newSetFor(t *testing.T, capacity uint32) *Set {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	coll, err := bpf.Load(capacity)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(coll.Close)
	s, err := New(coll)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Records that are kept go with what is written, and with what a program has written
// once it is looked for.
func TestRecordsKept(t *testing.T) {
	s := newSet(t)
	s.Keep()
	sub := Sub{State: Pending, Gen: 1, Leg: 5, Kind: Macvlan, Mode: Bridge, Class: ClassBridge, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Name: "c"}
	kept := func(what string) {
		t.Helper()
		subs, err := s.Subs()
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(subs[1], sub) || subs[2].State != Free {
			t.Errorf("%s: the records are %+v", what, subs)
		}
	}
	if subs, err := s.Subs(); err != nil || subs[1].State != Free {
		t.Fatalf("in the beginning: %+v, %v", subs, err)
	}
	if err := s.PutSub(1, sub); err != nil {
		t.Fatal(err)
	}
	kept("written")
	sub.Device = 7
	if err := s.records.write(1, sub.toC()); err != nil {
		t.Fatal(err)
	}
	if now, err := s.Sub(1); err != nil || now.Device != 7 {
		t.Fatalf("a program has written %+v, %v", now, err)
	}
	kept("written by a program")
	sub = Sub{Gen: 1}
	if err := s.PutSub(1, sub); err != nil {
		t.Fatal(err)
	}
	kept("free")
}

// A record is what was written, and what stands beside it stays.
func TestRecords(t *testing.T) {
	s := newSet(t)
	all := make([]Sub, capacity+1)
	for id := range all {
		all[id] = Sub{
			State: Active, Gen: uint32(id), Leg: 100 + id, Kind: Macvlan, Mode: Bridge, Class: ClassBridge,
			MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(id)}, Name: "c",
		}
		if err := s.PutSub(ID(id), all[id]); err != nil {
			t.Fatal(err)
		}
	}
	all[2].Name = "other"
	if err := s.PutSub(2, all[2]); err != nil {
		t.Fatal(err)
	}
	got, err := s.Subs()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, all) {
		t.Errorf("read %+v\nwant %+v", got, all)
	}
	one, err := s.Sub(2)
	if err != nil || !reflect.DeepEqual(one, all[2]) {
		t.Errorf("read %+v, %v\nwant %+v", one, err, all[2])
	}
	// The programs' mask lets 8 records be.
	if _, err := s.Sub(8); !errors.Is(err, io.EOF) {
		t.Errorf("reading behind the last record said %v", err)
	}
	if err := s.PutSub(8, all[2]); !errors.Is(err, io.EOF) {
		t.Errorf("writing behind the last record said %v", err)
	}
}

// A section is as the programs lay it out.
func TestSectionLayout(t *testing.T) {
	s := newSet(t)
	want := Sub{State: Active, Leg: 7, MAC: net.HardwareAddr{2, 1, 2, 3, 4, 5}}
	if err := s.PutSub(3, want); err != nil {
		t.Fatal(err)
	}
	raw, err := s.subs.LookupBytes(uint32(0))
	if err != nil {
		t.Fatal(err)
	}
	c, size := want.toC(), binary.Size(bpf.XvlanSub{})
	record, err := binary.Append(nil, binary.NativeEndian, c)
	if err != nil {
		t.Fatal(err)
	}
	if got := raw[3*size : 4*size]; string(got) != string(record) {
		t.Errorf("record 3 is % x\nwant % x", got, record)
	}
}

// The short way is for whom every frame for the MAC, or for the address, is meant:
// not for one that a mode keeps something from.
func TestPlain(t *testing.T) {
	flags := map[Kind]bpf.XvlanSubFlag{Macvlan: bpf.XvlanSubFlagSUB_PLAIN, Ipvlan: bpf.XvlanSubFlagSUB_PLAIN_IP}
	inVLAN := map[Kind]bpf.XvlanSubFlag{Macvlan: bpf.XvlanSubFlagSUB_PLAIN_VLAN}
	for kind, flag := range flags {
		for _, c := range []struct {
			name   string
			change func(*Sub)
			want   bpf.XvlanSubFlag
		}{
			{"bridge", func(*Sub) {}, flag},
			{"vepa", func(s *Sub) { s.Class = ClassVEPA }, flag},
			{"private", func(s *Sub) { s.Class = ClassPrivate }, 0},
			{"source", func(s *Sub) { s.Class = ClassSource }, 0},
			{"with a VLAN", func(s *Sub) { s.VLAN = 10 }, inVLAN[kind]},
			{"with a service VLAN", func(s *Sub) { s.VLAN = NewVLAN(10, 20) }, 0},
			{"a trunk", func(s *Sub) { s.Trunk = true }, bpf.XvlanSubFlagSUB_TRUNK},
			{"a trunk with a VLAN", func(s *Sub) { s.VLAN, s.Trunk = 10, true }, bpf.XvlanSubFlagSUB_TRUNK},
			{"a trunk of tags alone", func(s *Sub) { s.VLAN, s.Trunk = NoVLAN, true }, bpf.XvlanSubFlagSUB_TRUNK},
			{"private with a VLAN", func(s *Sub) { s.VLAN, s.Class = 10, ClassPrivate }, 0},
			{"being made", func(s *Sub) { s.State = Pending }, 0},
			{"free", func(s *Sub) { s.State = Free }, 0},
		} {
			t.Run(kind.String()+"/"+c.name, func(t *testing.T) {
				sub := Sub{State: Active, Kind: kind, Class: ClassBridge}
				c.change(&sub)
				if got := sub.toC().Flags; got != c.want {
					t.Errorf("the flags are %d, want %d", got, c.want)
				}
			})
		}
	}
}
