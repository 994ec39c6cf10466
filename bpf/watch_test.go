package bpf_test

import (
	"cmp"
	stdmaps "maps"
	"slices"
	"testing"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

// events are what can be seen: all verdicts, and what is no verdict.
var events = append(maps.Verdicts(), watch.EventLearned)

// watched takes the first place for as long as the world lasts, and forgets what was
// seen so far.
func (w *world) watched(tb testing.TB) *watch.Reader {
	tb.Helper()
	if w.eyes == nil {
		w.eyes = newReader(w.made)
		w.take(tb, 0, w.eyes, watch.Options{Verdicts: events, Snap: watch.MaxSnap})
	}
	rest(tb, w.eyes)
	return w.eyes
}

func newReader(tb testing.TB) *watch.Reader {
	tb.Helper()
	rd, err := watch.NewReader()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { rd.Close() })
	return rd
}

func (w *world) take(tb testing.TB, place int, rd *watch.Reader, opts watch.Options) {
	tb.Helper()
	if err := w.places.Take(place, rd, opts); err != nil {
		tb.Fatal(err)
	}
}

func rest(tb testing.TB, rd *watch.Reader) []watch.Sighting {
	tb.Helper()
	seen, err := rd.Rest()
	if err != nil {
		tb.Fatal(err)
	}
	return seen
}

// A sight is what was seen of whom, a frame's length besides.
type sight struct {
	id      maps.ID
	verdict maps.Verdict
	size    int
}

// wantSeen compares what was seen with a case's hits: each counted once, a
// super-packet as one frame, and what was learned. Receivers are seen to get what
// becomes of the frame.
func wantSeen(tb testing.TB, rd *watch.Reader, watched bool, c *frameCase) {
	tb.Helper()
	var want, got []sight
	for _, h := range completed(len(c.frame), c.hits) {
		if c.gso != 0 {
			h.packets = 1
		}
		size := len(c.frame)
		if c.out != nil && h.verdict == rx {
			size = len(c.out)
		}
		for range h.packets {
			want = append(want, sight{maps.ID(h.id), maps.Verdict(h.verdict), size})
		}
	}
	for _, e := range c.news {
		if e.flags == bpf.XvlanDestFlagDEST_LEARNED {
			want = append(want, sight{maps.ID(e.id), watch.EventLearned, len(c.frame)})
		}
	}
	if !watched {
		want = nil
	}
	for _, s := range rest(tb, rd) {
		got = append(got, sight{s.ID, s.Verdict, s.Len})
		if len(s.Frame) != s.Len {
			tb.Errorf("seen %d of %d bytes", len(s.Frame), s.Len)
		}
	}
	for _, sights := range [][]sight{want, got} {
		slices.SortFunc(sights, func(a, b sight) int {
			return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.verdict, b.verdict))
		})
	}
	if !slices.Equal(got, want) {
		tb.Errorf("seen %v\nwant %v", got, want)
	}
}

// Each of several who watch sees what he has asked for: of whom, how much, how often.
func TestWatchers(t *testing.T) {
	w := usualWorld(t)
	w.meta.Watched = 1<<0 | 1<<3 | 1<<7
	w.enter(t)
	const frames, most = 50, 20
	all, one, few := newReader(t), newReader(t), newReader(t)
	w.take(t, 0, all, watch.Options{Verdicts: events, Snap: watch.MaxSnap})
	w.take(t, 3, one, watch.Options{Verdicts: []maps.Verdict{maps.RX, maps.TX}, Only: macAway, Snap: 33})
	w.take(t, 7, few, watch.Options{Verdicts: events, Rate: most, Window: 1 << 62})
	in := udp(macOf(macAway), routerMAC, ip4Of(macAway), routerIP4, 100)
	out := udp(macOf(macAway), macOf(macGiven), ip4Of(macAway), ip4Of(macGiven), 100)
	for range frames {
		w.run(t, bpf.XvlanProgXvlanRx, 0, in, 0)
		w.run(t, bpf.XvlanProgXvlanTx, macGiven, out, 0)
	}
	count := func(rd *watch.Reader, snap int) map[sight]int {
		counts := map[sight]int{}
		for _, s := range rest(t, rd) {
			counts[sight{s.ID, s.Verdict, s.Len}]++
			if len(s.Frame) != min(snap, s.Len) || s.Parent != int(w.meta.Ifindex) {
				t.Errorf("%d bytes of %d from parent %d", len(s.Frame), s.Len, s.Parent)
			}
		}
		return counts
	}
	size := len(in)
	for name, c := range map[string]struct{ got, want map[sight]int }{
		"all": {count(all, size), map[sight]int{{macAway, maps.RX, size}: 2 * frames, {macGiven, maps.TX, size}: frames}},
		"one": {count(one, 33), map[sight]int{{macAway, maps.RX, size}: 2 * frames}},
	} {
		if !stdmaps.Equal(c.got, c.want) {
			t.Errorf("%s: seen %v, want %v", name, c.got, c.want)
		}
	}
	seen := 0
	for _, n := range count(few, 0) {
		seen += n
	}
	if seen != most {
		t.Errorf("seen %d, want %d", seen, most)
	}
	for place, want := range map[int]watch.Tally{0: {}, 3: {}, 7: {Withheld: 3*frames - most}} {
		if got, err := w.places.Tally(place); got != want || err != nil {
			t.Errorf("place %d: %+v, %v, want %+v", place, got, err, want)
		}
	}
	// Who is gone, and who has left: nobody else is kept from seeing.
	if err := w.places.Leave(7); err != nil {
		t.Fatal(err)
	}
	one.Close()
	w.run(t, bpf.XvlanProgXvlanRx, 0, in, 0)
	if got := count(all, size); got[sight{macAway, maps.RX, size}] != 1 || len(got) != 1 {
		t.Errorf("seen %v", got)
	}
	for place, want := range map[int]watch.Tally{3: {Lost: 1}, 7: {Withheld: 3*frames - most + 1}} {
		if got, err := w.places.Tally(place); got != want || err != nil {
			t.Errorf("place %d: %+v, %v, want %+v", place, got, err, want)
		}
	}
}
