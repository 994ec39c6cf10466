package bpf_test

import (
	"slices"
	"testing"

	"github.com/xvlan/xvlan/bpf"
)

// checkDry lets the dry run decide a case: as the programs do, but nothing is
// changed by it. That a copy is refused it cannot know.
func (c *frameCase) checkDry(t *testing.T, w *world, prog string) {
	t.Helper()
	if c.gso != 0 || slices.ContainsFunc(c.hits, func(h hit) bool { return h.verdict == fanout }) {
		return
	}
	if w.dry == nil {
		dry, err := bpf.LoadDryRun(w.meta.Capacity, w.coll.Maps)
		if err != nil {
			t.Fatalf("load dry run: %+v", err)
		}
		w.dry = dry
	}
	w.enter(t)
	index := w.meta.Ifindex
	if prog == bpf.XvlanProgXvlanTx {
		index = w.subs[c.from].Leg
	}
	before := w.contents(t)
	var (
		d   bpf.Decision
		err error
	)
	w.host.Do(t, func() { d, err = w.dry.Run(prog, int(index), c.frame) })
	if err != nil {
		t.Fatalf("dry: %v", err)
	}
	if d.Return != c.ret {
		t.Errorf("dry: returned %d, want %d", int32(d.Return), int32(c.ret))
	}
	var hits []hit
	for _, s := range d.Steps {
		if s.Kind == bpf.TraceStepKindSTEP_VERDICT {
			hits = append(hits, hit{id: s.Id, verdict: bpf.XvlanVerdict(s.Value)})
		}
	}
	var want []hit
	for _, h := range c.hits {
		want = append(want, hit{id: h.id, verdict: h.verdict})
	}
	byID := func(hits []hit) []hit {
		hits = completed(0, hits)
		for i := range hits {
			hits[i].packets, hits[i].bytes = 0, 0
		}
		return hits
	}
	if got, want := byID(hits), byID(want); !slices.Equal(got, want) {
		t.Errorf("dry: decided %v\nwant         %v", got, want)
	}
	out := c.out
	if out == nil {
		out = c.frame
	}
	wantBytes(t, d.Frame, out)
	after := w.contents(t)
	for name, was := range before {
		if !slices.Equal(after[name], was) {
			t.Errorf("dry: %s was written to", name)
		}
	}
}
