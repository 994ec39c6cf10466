package bpf_test

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/bpf"
)

// What programs return.
const (
	xdpDrop  = 1
	xdpPass  = 2
	actDrop  = 2         // TC_ACT_SHOT
	actRedir = 7         // TC_ACT_REDIRECT
	actNext  = 1<<32 - 1 // TC_ACT_UNSPEC
)

const (
	passed    = bpf.XvlanVerdictVERDICT_PASS
	rx        = bpf.XvlanVerdictVERDICT_RX
	tx        = bpf.XvlanVerdictVERDICT_TX
	unknown   = bpf.XvlanVerdictVERDICT_DROP_UNKNOWN
	fanout    = bpf.XvlanVerdictVERDICT_DROP_FANOUT
	malformed = bpf.XvlanVerdictVERDICT_DROP_MALFORMED
	overMTU   = bpf.XvlanVerdictVERDICT_DROP_MTU
	returned  = bpf.XvlanVerdictVERDICT_DROP_RETURNED
	modes     = bpf.XvlanVerdictVERDICT_DROP_MODE
	tagDrop   = bpf.XvlanVerdictVERDICT_DROP_TAG
	inactive  = bpf.XvlanVerdictVERDICT_DROP_INACTIVE
	learnDup  = bpf.XvlanVerdictVERDICT_LEARN_DUP
)

// skBuff is struct __sk_buff, with names for what a test run takes from it.
type skBuff struct {
	_        [8]byte
	Mark     uint32
	_        [20]byte
	Priority uint32
	_        [4]byte
	Ifindex  uint32
	_        [132]byte
	GSOSize  uint32
	_        [12]byte
}

// xdpMD is struct xdp_md.
type xdpMD struct {
	Data, DataEnd, DataMeta uint32
	IngressIfindex          uint32
	_                       [2]uint32
}

// A hit is one counter that has moved.
type hit struct {
	id      uint32
	verdict bpf.XvlanVerdict
	packets uint64
	bytes   uint64
}

func (h hit) String() string {
	return fmt.Sprintf("id %d verdict %d: %d packets, %d bytes", h.id, h.verdict, h.packets, h.bytes)
}

// counted returns all counters that are not zero, summed over the CPUs and
// ordered by id and verdict.
func (w *world) counted(tb testing.TB) []hit {
	tb.Helper()
	var hits []hit
	ids, perCPU, cpus := w.allStats()
	// The end of the map ends the batch.
	n, err := w.coll.Maps[bpf.XvlanMapStats].BatchLookup(new(ebpf.MapBatchCursor), ids, perCPU, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) || n != len(ids) {
		tb.Fatalf("look up stats of %d, got %d: %v", len(ids), n, err)
	}
	for i, id := range ids {
		for v := range perCPU[0].Verdict {
			h := hit{id: id, verdict: bpf.XvlanVerdict(v)}
			for _, cpu := range perCPU[i*cpus : (i+1)*cpus] {
				h.packets += cpu.Verdict[v].Packets
				h.bytes += cpu.Verdict[v].Bytes
			}
			if h.packets != 0 || h.bytes != 0 {
				hits = append(hits, h)
			}
		}
	}
	return hits
}

// allStats is room for all counters of all CPUs, in the order of the ids.
func (w *world) allStats() (ids []uint32, perCPU []bpf.XvlanSubStats, cpus int) {
	for id := range w.meta.Capacity + 1 {
		ids = append(ids, id)
	}
	cpus = ebpf.MustPossibleCPU()
	return ids, make([]bpf.XvlanSubStats, len(ids)*cpus), cpus
}

func (w *world) clearStats(tb testing.TB) {
	tb.Helper()
	ids, zero, _ := w.allStats()
	if _, err := w.coll.Maps[bpf.XvlanMapStats].BatchUpdate(ids, zero, nil); err != nil {
		tb.Fatalf("clear stats: %v", err)
	}
}

// run gives a frame to a program, as if it had come in by the device that the
// program stands on.
func (w *world) run(tb testing.TB, prog string, from uint32, frame []byte, gso uint32) (ret uint32, out []byte) {
	tb.Helper()
	ctx := &skBuff{GSOSize: gso}
	opts := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: ctx}
	switch prog {
	case bpf.XvlanProgXvlanXdp:
		opts.Context = nil
	case bpf.XvlanProgXvlanRx, bpf.XvlanProgXvlanHost:
		ctx.Ifindex = w.meta.Ifindex
	case bpf.XvlanProgXvlanTx:
		ctx.Ifindex = w.subs[from].Leg
	}
	var err error
	w.host.Do(tb, func() { ret, err = w.coll.Programs[prog].Run(opts) })
	if err != nil {
		tb.Fatalf("run %s on %d bytes: %v", prog, len(frame), err)
	}
	return ret, opts.DataOut
}

// A frameCase is a frame, and all that a program does with it.
type frameCase struct {
	name  string
	from  uint32 // xvlan_tx: whose leg the frame comes from
	frame []byte
	gso   uint32 // payload of a segment, of super-packets
	tags  int    // bytes of tags that the wire carries besides
	ret   uint32
	hits  []hit   // by id and verdict; one without figures stands for this frame
	out   []byte  // the frame afterwards, nil for unchanged
	news  []entry // addresses entered or replaced
	gone  []entry // addresses deleted
}

// check runs a case in a world that is as it was entered: with empty slots of
// addresses, with full ones, watched,
// and dry.
func (c *frameCase) check(t *testing.T, w *world, prog string) {
	t.Helper()
	was := w.meta.Watched
	defer func() { w.meta.Watched, w.seen = was, false }()
	w.meta.Watched = 0
	c.checkOnce(t, w, prog)
	w.seen = true
	c.checkOnce(t, w, prog)
	w.meta.Watched = 1
	c.checkOnce(t, w, prog)
	c.checkDry(t, w, prog)
}

func (c *frameCase) checkOnce(t *testing.T, w *world, prog string) {
	t.Helper()
	undisturbed(t, func(tb testing.TB) {
		w.enter(tb)
		eyes := w.watched(tb)
		ret, out := w.run(tb, prog, c.from, c.frame, c.gso)
		if ret != c.ret {
			tb.Errorf("returned %d, want %d", int32(ret), int32(c.ret))
		}
		wantHits(tb, w, len(c.frame)+c.tags, c.hits...)
		want := c.out
		if want == nil {
			want = c.frame
		}
		wantBytes(tb, out, want)
		wantEntries(tb, w, c.news, c.gone)
		wantSeen(tb, eyes, w.meta.Watched != 0, c)
	})
}

// completed puts a frame's figures into the hits that have none, and orders
// them.
func completed(size int, hits []hit) []hit {
	want := slices.Clone(hits)
	for i := range want {
		if want[i].packets == 0 {
			want[i].packets, want[i].bytes = 1, uint64(size)
		}
	}
	slices.SortFunc(want, func(a, b hit) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.verdict, b.verdict))
	})
	return want
}

// wantHits compares all counters with the hits.
func wantHits(tb testing.TB, w *world, size int, hits ...hit) {
	tb.Helper()
	want := completed(size, hits)
	if got := w.counted(tb); !slices.Equal(got, want) {
		tb.Errorf("counted %v\nwant    %v", got, want)
	}
}

func wantBytes(tb testing.TB, got, want []byte) {
	tb.Helper()
	if !bytes.Equal(got, want) {
		tb.Errorf("frame is now\n%swant\n%s", hex.Dump(got), hex.Dump(want))
	}
}

// wantEntries compares the address maps with what the world began with and the
// changes to that.
func wantEntries(tb testing.TB, w *world, news, gone []entry) {
	tb.Helper()
	want := slices.DeleteFunc(slices.Clone(w.dests), func(e entry) bool {
		replaced := func(n entry) bool { return n.addr == e.addr && n.vlan == e.vlan }
		return slices.Contains(gone, e) || slices.ContainsFunc(news, replaced)
	})
	want = append(want, news...)
	sortEntries(want)
	if got := w.entries(tb); !slices.Equal(got, want) {
		tb.Errorf("addresses are %v\nwant          %v", got, want)
	}
}

// checkAll runs cases, each by its name.
func checkAll(t *testing.T, w *world, prog string, cases []frameCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.check(t, w, prog) })
	}
}
