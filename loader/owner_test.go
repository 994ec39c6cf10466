package loader

import (
	"errors"
	"strings"
	"testing"
)

// TestOwner finds a sub-interface by its owner, whatever it is called by then,
// and no other in its place.
func TestOwner(t *testing.T) {
	onRungs(t, allRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		a, b := s.subs[0], s.subs[1]
		spec := s.spec(a)
		spec.Netns, spec.Owner = a.ns.Name(), strings.Repeat("x", maxOwner+1)
		if err := s.try(t, func(h *Host) error { return h.Add(spec) }); !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "owner xxx") {
			t.Errorf("an owner of %d characters: %v", maxOwner+1, err)
		}
		for e, owner := range map[*end]string{a: strings.Repeat("a", maxOwner), b: "b"} {
			spec := s.spec(e)
			spec.Netns, spec.Owner = e.ns.Name(), owner
			s.do(t, func(h *Host) error { return h.Add(spec) })
			if l := s.link(t, e); l.Owner != owner || !l.Rung.Asked() {
				t.Errorf("%s has owner %q, rung %+v", e.name, l.Owner, l.Rung)
			}
		}
		a.ns.Run(t, "ip", "link", "set", a.dev, "name", "other")
		a.dev = "other"
		at := func(owner string) error {
			return s.try(t, func(h *Host) error { return h.Del(Selector{Owner: owner, Name: b.dev, Netns: b.ns.Name()}) })
		}
		if err := at("c"); !errors.Is(err, ErrNotFound) {
			t.Errorf("delete what nobody owns: %v", err)
		}
		s.link(t, a)
		if err := at(strings.Repeat("a", maxOwner)); err != nil {
			t.Error(err)
		}
		s.link(t, b)
		if err := at("b"); err != nil {
			t.Error(err)
		}
		s.checkGone(t)
	})
}
