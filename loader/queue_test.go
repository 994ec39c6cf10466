package loader

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/vishvananda/netlink/nl"

	"github.com/xvlan/xvlan/lab"
)

// TestQueue says what there is to say of a queue: the kernel's driver is told,
// when the device is made and later; elsewhere it changes nothing.
func TestQueue(t *testing.T) {
	lab.NeedKernel(t, 6, 4, "bclim")
	onRungs(t, append(slices.Clone(ourRungs), onMacvlan), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		e := s.subs[0]
		length, limit := uint32(7), int32(-1)
		spec := s.spec(e)
		spec.Netns, spec.Queue = e.ns.Name(), Queue{&length, &limit}
		s.do(t, func(h *Host) error { return h.Add(spec) })
		checkQueue(t, r, e, length, limit)
		length = 9
		s.do(t, func(h *Host) error { return h.SetMode(Selector{Name: e.dev}, ModeChange{Queue: Queue{Len: &length}}) })
		checkQueue(t, r, e, length, limit)
		for _, limit = range []int32{3, defaultLimit} {
			s.do(t, func(h *Host) error { return h.SetMode(Selector{Name: e.dev}, ModeChange{Queue: Queue{Limit: &limit}}) })
			checkQueue(t, r, e, length, limit)
		}
	})
}

func checkQueue(t *testing.T, r rungCase, e *end, length uint32, limit int32) {
	t.Helper()
	if r.name != onMacvlan.name {
		return
	}
	in, err := openSpace(e.ns.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer in.close()
	data, err := macvlanData(in, e.ns.Link(t, e.dev))
	if err != nil {
		t.Fatal(err)
	}
	for attr, want := range map[uint16]uint32{nl.IFLA_MACVLAN_BC_QUEUE_LEN: length, macvlanCutoff: uint32(limit)} {
		value := nested(data, attr)
		if attr == macvlanCutoff && limit == defaultLimit && value == nil {
			continue
		}
		if len(value) != 4 || binary.NativeEndian.Uint32(value) != want {
			t.Errorf("attribute %d is %v, want %d", attr, value, want)
		}
	}
}
