package bpf_test

import (
	"encoding/binary"
	"errors"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/xvlan/xvlan/bpf"
)

// What Go repeats of the header by hand.
func TestConstantsAreTheHeaders(t *testing.T) {
	header, err := os.ReadFile("xvlan.h")
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]int{"XVLAN_SCHEMA": bpf.Schema, "LEARN_SLOTS": bpf.LearnSlots, "VIA_NETS": bpf.ViaNets, "VERSION_MAX": bpf.VersionMax, "QINQ_SHIFT": bpf.QinQShift, "VLAN_NONE": bpf.VLANNone} {
		m := regexp.MustCompile(`(?m)^#define ` + name + `\s+(\w+)$`).FindSubmatch(header)
		if m == nil {
			t.Errorf("no %s in xvlan.h", name)
			continue
		}
		if got, _ := strconv.ParseInt(string(m[1]), 0, 64); got != int64(value) {
			t.Errorf("%s is %d in xvlan.h, %d in Go", name, got, value)
		}
	}
}

func TestLoadCapacity(t *testing.T) {
	for _, capacity := range []uint32{0, bpf.MaxCapacity + 1, 1 << 31} {
		coll, err := bpf.Load(capacity)
		if !errors.Is(err, bpf.ErrCapacity) {
			t.Errorf("Load(%d) said %v", capacity, err)
		}
		if coll != nil {
			coll.Close()
		}
	}
	coll, err := bpf.Load(64)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer coll.Close()
	for name, want := range map[string]uint32{
		bpf.XvlanMapStats: 65, bpf.XvlanMapLearned: 65, bpf.XvlanMapMembers: 2,
		bpf.XvlanMapByMac: 128, bpf.XvlanMapByLeg: 64,
	} {
		if got := coll.Maps[name].MaxEntries(); got != want {
			t.Errorf("%s has room for %d entries, want %d", name, got, want)
		}
	}
	for name, want := range map[string]uint32{
		bpf.MapSubs: 128 * uint32(binary.Size(bpf.XvlanSub{})), bpf.MapMACSlots: 256 * 4, bpf.MapLegSlots: 256 * 4,
		bpf.MapMeta: uint32(binary.Size(bpf.XvlanParent{})), bpf.MapIP4Slots: 512 * 64, bpf.MapIP6Slots: 512 * 64,
	} {
		if m := coll.Maps[name]; m.MaxEntries() != 1 || m.ValueSize() != want {
			t.Errorf("%s has %d entries of %d bytes, want one of %d", name, m.MaxEntries(), m.ValueSize(), want)
		}
	}
	// All can learn all they may, and there is room for given addresses.
	for _, name := range []string{bpf.XvlanMapByIp4, bpf.XvlanMapByIp6} {
		if got := coll.Maps[name].MaxEntries(); got <= 64*bpf.LearnSlots {
			t.Errorf("%s has room for %d entries", name, got)
		}
	}
}
