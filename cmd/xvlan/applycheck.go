package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// check refuses what the loader would refuse when its turn comes; at most one
// thing a parent, as the rest may follow from it.
func (p *planner) check(w *wantedParent, pairs []*pair, anew bool) {
	if slices.ContainsFunc(p.attach, func(s *step) bool { return s.Name == w.name }) {
		if err := p.h.CheckAttach(w.name, w.spec, anew); err != nil {
			p.fail(w.keys.placeOf(err, w.at), "parent "+w.name, err)
			return
		}
	}
	made := 0
	gone := loader.Doomed{Parent: anew, Links: p.gone}
	for _, x := range pairs {
		if x.want.parent == w && x.have != nil && x.done != nil && x.have.Rung.Rung == maps.RungKernel {
			gone.Links = append(gone.Links, *x.have) // with one of a parent's ipvlans all change their mode
		}
		if x.want.parent == w && x.have == nil {
			made++
		}
	}
	for _, x := range pairs {
		if x.want.parent != w || x.done == nil {
			continue
		}
		spec, doomed := x.want.spec, gone
		if x.have != nil {
			doomed.Links = append(slices.Clone(gone.Links), *x.have)
			if !x.want.keys.has("netns") {
				spec.Netns = x.have.Netns
			}
		}
		if err := p.h.Check(spec, doomed); err != nil {
			p.fail(x.want.placeOf(err), x.want.what(), err)
			return
		}
	}
	p.room(w, made, anew)
}

// room refuses more sub-interfaces than the parent takes.
func (p *planner) room(w *wantedParent, made int, anew bool) {
	capacity := cmp.Or(w.spec.Capacity, loader.DefaultCapacity)
	for _, info := range p.parents {
		if info.Name != w.name || anew {
			continue
		}
		if info.Rung == maps.RungKernel {
			return
		}
		capacity = info.Capacity
	}
	there := made
	for _, l := range p.links {
		if l.Parent == w.name && !p.goes(l) {
			there++
		}
	}
	if uint32(there) > capacity {
		p.fail(w.keys.placeOf(errors.New("capacity"), w.at), "parent "+w.name,
			fmt.Errorf("capacity %d: there would be %d sub-interfaces; say a higher one", capacity, there))
	}
}
