package loader

import (
	"errors"
	"slices"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// TestTwoHosts has two namespaces with parents of one name and, most likely,
// one ifindex, which must not know of each other.
func TestTwoHosts(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, allRungs, func(t *testing.T, r rungCase) {
		a, b := newSite(t, r, siteOption{}), newSite(t, r, siteOption{})
		a.populate(t)
		b.populate(t)
		for _, s := range []*site{a, b} {
			var links []Link
			s.do(t, func(h *Host) (err error) { links, err = h.Links(); return err })
			for _, l := range links {
				if !slices.ContainsFunc(s.subs, func(e *end) bool { return e.ns.Name() == l.Netns }) {
					t.Errorf("%s in %s is listed by another host", l.Name, l.Netns)
				}
			}
			if len(links) != len(s.subs) {
				t.Errorf("%d sub-interfaces are listed, want %d", len(links), len(s.subs))
			}
		}
		b.do(t, func(h *Host) error { return h.Detach(parentDev) })
		b.checkGone(t)
		for _, p := range a.pairs() {
			p[0].ping(t, p[1].ip4.Addr())
		}
	})
}

// TestStrangers leaves a kernel device alone that another host has in its own
// namespace, on a parent of the same ifindex.
func TestStrangers(t *testing.T) {
	onRungs(t, []rungCase{onMacvlan}, func(t *testing.T, r rungCase) {
		a, b := newSite(t, r, siteOption{}), newSite(t, r, siteOption{})
		if a.host.index(t) != b.host.index(t) {
			t.Fatalf("parents have ifindexes %d and %d", a.host.index(t), b.host.index(t))
		}
		spec := b.spec(b.subs[0])
		b.do(t, func(h *Host) error { return h.Add(spec) })
		var links []Link
		a.do(t, func(h *Host) (err error) { links, err = h.Links(); return err })
		if len(links) > 0 {
			t.Errorf("listed: %v", links)
		}
		if err := a.try(t, func(h *Host) error { return h.Detach(parentDev) }); !errors.Is(err, ErrNotFound) {
			t.Errorf("detach of nothing: %v, want %v", err, ErrNotFound)
		}
		b.host.ns.Link(t, spec.Name) // fails if it is gone
	})
}
