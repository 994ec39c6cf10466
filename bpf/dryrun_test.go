package bpf_test

import (
	"cmp"
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
	w.enter(t)
	before := w.contents(t)
	d := w.decide(t, prog, c.from, c.frame)
	out := c.out
	if out == nil {
		out = c.frame
	}
	wantDecision(t, d, c.ret, c.hits, out)
	after := w.contents(t)
	for name, was := range before {
		if !slices.Equal(after[name], was) {
			t.Errorf("dry: %s was written to", name)
		}
	}
}

// decide lets the dry run decide about a frame.
func (w *world) decide(t *testing.T, prog string, from uint32, frame []byte) (d bpf.Decision) {
	t.Helper()
	w.loadDry(t)
	index := w.meta.Ifindex
	if prog == bpf.XvlanProgXvlanTx {
		index = w.subs[from].Leg
	}
	var err error
	w.host.Do(t, func() { d, err = w.dry.Run(prog, int(index), frame) })
	if err != nil {
		t.Fatalf("dry: %v", err)
	}
	return d
}

// loadDry loads the dry run where that has not been done.
func (w *world) loadDry(tb testing.TB) {
	tb.Helper()
	if w.dry != nil {
		return
	}
	var err error
	if w.dry, err = bpf.LoadDryRun(w.meta.Capacity, w.coll.Maps); err != nil {
		tb.Fatalf("load dry run: %+v", err)
	}
}

// wantDecision compares a decision with what the programs did: what they
// returned and counted, and the frame afterwards. A refused copy is one that the
// dry run takes for delivered.
func wantDecision(t *testing.T, d bpf.Decision, ret uint32, hits []hit, out []byte) {
	t.Helper()
	if d.Return != ret {
		t.Errorf("dry: returned %d, want %d", int32(d.Return), int32(ret))
	}
	var got, want []hit
	for _, s := range d.Steps {
		if s.Kind == bpf.TraceStepKindSTEP_VERDICT {
			got = append(got, hit{id: s.Id, verdict: bpf.XvlanVerdict(s.Value)})
		}
	}
	for _, h := range hits {
		one := hit{id: h.id, verdict: h.verdict}
		if one.verdict == fanout {
			one.verdict = rx
		}
		want = append(want, slices.Repeat([]hit{one}, int(max(1, h.packets)))...)
	}
	for _, all := range [][]hit{got, want} {
		slices.SortFunc(all, func(a, b hit) int { return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.verdict, b.verdict)) })
	}
	if !slices.Equal(got, want) {
		t.Errorf("dry: decided %v\nwant         %v", got, want)
	}
	wantBytes(t, d.Frame, out)
}
