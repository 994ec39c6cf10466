package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// planner finds the steps in one network namespace.
type planner struct {
	applying
	h       *loader.Host
	netns   string // "": the command's
	parents []loader.ParentInfo
	links   []loader.Link
	ids     map[string]uint64 // of network namespaces, by name

	remove, attach, change, add []*step // in this order
	gone                        []loader.Link
	errs                        []error
}

// plan compares what is there with what is wanted, changing nothing but what
// every command tidies up. All that can be refused is refused here.
func (p *planner) plan(wanted []*wantedParent) ([]*step, error) {
	if err := p.h.Sweep(); err != nil && !errors.Is(err, loader.ErrPrivilege) {
		return nil, err
	}
	var err error
	if p.parents, err = p.h.Parents(); err != nil {
		return nil, err
	}
	if p.links, err = p.h.Links(); err != nil {
		return nil, err
	}
	p.ids = map[string]uint64{}
	p.repeated(wanted)
	var pairs []*pair
	for _, w := range wanted {
		pairs = append(pairs, p.pairs(w)...)
	}
	p.prune(wanted)
	anew := map[*wantedParent]bool{}
	for _, w := range wanted {
		anew[w] = p.parent(w, pairs)
	}
	for _, x := range pairs {
		p.link(x, anew[x.want.parent])
	}
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	for _, w := range wanted {
		p.check(w, pairs, anew[w])
	}
	return slices.Concat(p.remove, p.attach, p.change, p.add), errors.Join(p.errs...)
}

func (p *planner) fail(at position, what string, err error) {
	if !strings.HasPrefix(err.Error(), what+": ") {
		err = fmt.Errorf("%s: %w", what, err)
	}
	p.errs = append(p.errs, fmt.Errorf("%s:%d:%d: %w", p.file, at.line, at.column, err))
}

// id returns the number of a network namespace, 0 where nothing leads to it.
func (p *planner) id(netns string) uint64 {
	id, ok := p.ids[netns]
	if !ok {
		id, _ = loader.NetnsID(netns)
		p.ids[netns] = id
	}
	return id
}

// repeated refuses what a file says of two that only one can have.
func (p *planner) repeated(wanted []*wantedParent) {
	type device struct {
		netns uint64
		name  string
	}
	type address struct {
		vlan maps.VLAN
		addr netip.Addr
	}
	devices := map[device]bool{}
	names := map[string]bool{}
	for _, w := range wanted {
		if names[w.name] {
			p.fail(w.at, "parent "+w.name, usagef("name: it is in the file twice; put its links into one"))
		}
		names[w.name] = true
		macs, addrs := map[string][]loader.VLAN{}, map[address]bool{}
		for _, l := range w.links {
			if _, err := loader.NetnsID(l.spec.Netns); err != nil {
				p.fail(l.keys["netns"], l.what(), err)
				continue
			}
			d := device{p.id(l.spec.Netns), l.spec.Name}
			if devices[d] {
				p.fail(l.at, l.what(), usagef("name: another in the file has it, in the same network namespace"))
			}
			devices[d] = true
			vlan := l.spec.VLAN.Of(loader.VLAN{})
			if mac := l.spec.MAC.String(); mac != "" && slices.ContainsFunc(macs[mac], vlan.Meets) {
				p.fail(l.keys["address"], l.what(), usagef("address %s: another on %s in the file has it", mac, w.name))
			}
			macs[l.spec.MAC.String()] = append(macs[l.spec.MAC.String()], vlan)
			for _, a := range l.spec.Addrs {
				if addrs[address{vlan.Untagged(), a.Addr()}] {
					p.fail(l.keys["addr"], l.what(), usagef("addr %s: it is on %s twice in the file", a, w.name))
				}
				addrs[address{vlan.Untagged(), a.Addr()}] = true
			}
			if l.spec.Mode == maps.Passthru && len(w.links) > 1 {
				p.fail(l.keys["mode"], l.what(), usagef("mode passthru: it leaves nothing for siblings; have it alone on %s", w.name))
			}
		}
	}
}

// A pair is a sub-interface of the file and what there is of it.
type pair struct {
	want *wantedLink
	have *loader.Link // nil: to be made
	done *step        // what changes it, if anything does
}

func (l *wantedLink) what() string { return "link " + l.spec.Name }

// pairs finds what there is of a parent's sub-interfaces. One is known by its
// parent, name and network namespace; where only one there and one in the file
// has the name, these two are one, wherever it is.
func (p *planner) pairs(w *wantedParent) []*pair {
	var (
		pairs []*pair
		taken = map[*loader.Link]bool{}
		named = map[string]int{} // in the file
	)
	for _, l := range w.links {
		x := &pair{want: l}
		pairs = append(pairs, x)
		named[l.spec.Name]++
		for i := range p.links {
			have := &p.links[i]
			if have.Parent == w.name && have.Name == l.spec.Name && p.id(have.Netns) == p.id(l.spec.Netns) {
				x.have, taken[have] = have, true
			}
		}
	}
	for _, x := range pairs {
		if x.have != nil {
			continue
		}
		var same []*loader.Link // that have the name, and are nobody's here
		for i := range p.links {
			if have := &p.links[i]; have.Parent == w.name && have.Name == x.want.spec.Name && !taken[have] {
				same = append(same, have)
			}
		}
		said := x.want.keys.has("netns")
		switch {
		case len(same) == 1 && (!said || named[x.want.spec.Name] == 1):
			x.have, taken[same[0]] = same[0], true
		case len(same) > 1 && !said:
			p.fail(x.want.at, x.want.what(), usagef("netns: several on %s have that name; say which is meant", w.name))
		}
	}
	if p.pruning {
		for i := range p.links {
			if have := p.links[i]; have.Parent == w.name && !taken[&p.links[i]] {
				p.removeLink(have, "")
			}
		}
	}
	return pairs
}

func (p *planner) removeLink(l loader.Link, why string) {
	p.gone = append(p.gone, l)
	words := "link " + l.Parent
	if l.Netns != "" {
		words += " netns " + l.Netns
	}
	words += why
	p.remove = append(p.remove, &step{
		Action: "remove", Object: "link", Name: l.Name, Parent: l.Parent, Netns: p.netns, words: words,
		do: func(h *loader.Host) error {
			return h.Del(loader.Selector{Name: l.Name, Parent: l.Parent, Netns: l.Netns})
		},
	})
}

// prune detaches the parents that are not in the file, where that is asked for.
func (p *planner) prune(wanted []*wantedParent) {
	for _, info := range p.parents {
		if p.pruning && !slices.ContainsFunc(wanted, func(w *wantedParent) bool { return w.name == info.Name }) {
			p.removeParent(info.Name, "")
		}
	}
}

func (p *planner) removeParent(name, why string) {
	for _, l := range p.links {
		if l.Parent == name {
			p.gone = append(p.gone, l)
		}
	}
	p.remove = append(p.remove, &step{
		Action: "remove", Object: "parent", Name: name, Netns: p.netns, words: why,
		do: func(h *loader.Host) error { return h.Detach(name) },
	})
}

// parent finds what is to be done to a parent itself, and tells whether it is
// to be attached anew.
func (p *planner) parent(w *wantedParent, pairs []*pair) (anew bool) {
	i := slices.IndexFunc(p.parents, func(info loader.ParentInfo) bool { return info.Name == w.name })
	if i >= 0 {
		info := p.parents[i]
		var fixed []change
		if d := string(w.spec.Datapath); d != "" && d != info.Rung.String() {
			fixed = append(fixed, change{"datapath", info.Rung.String(), d})
		}
		if n := w.spec.Capacity; n != 0 && n != info.Capacity && info.Rung != maps.RungKernel {
			fixed = append(fixed, change{"capacity", fmt.Sprint(info.Capacity), fmt.Sprint(n)})
		}
		if len(fixed) == 0 {
			p.policy(w, info)
			return false
		}
		if !p.detachable(w, pairs, fixed) {
			return false
		}
		p.removeParent(w.name, ": to be attached anew: "+joinChanges(fixed))
	}
	if !w.attached() {
		return true
	}
	words := ""
	if w.spec.Datapath != "" {
		words += fmt.Sprintf(" datapath %s", w.spec.Datapath)
	}
	if w.spec.Unknown != "" {
		words += fmt.Sprintf(" unknown %s", w.spec.Unknown)
	}
	if w.spec.Capacity != 0 {
		words += fmt.Sprintf(" capacity %d", w.spec.Capacity)
	}
	p.attach = append(p.attach, &step{
		Action: "add", Object: "parent", Name: w.name, Netns: p.netns, words: strings.TrimSpace(words), at: w.at,
		do: func(h *loader.Host) error { return h.Attach(w.name, w.spec) },
	})
	return true
}

// detachable tells whether a parent may be detached to be attached anew, and
// complains if not.
func (p *planner) detachable(w *wantedParent, pairs []*pair, fixed []change) bool {
	at := w.keys[fixed[0].Key]
	if !p.replacing {
		p.fail(at, "parent "+w.name, fmt.Errorf("%s: it is decided when the parent is attached; "+
			"--replace detaches it and makes its links anew", joinChanges(fixed)))
		return false
	}
	for _, l := range p.links {
		wanted := slices.ContainsFunc(pairs, func(x *pair) bool { return x.have != nil && same(*x.have, l) })
		if l.Parent != w.name || wanted || p.goes(l) {
			continue
		}
		p.fail(at, "parent "+w.name, fmt.Errorf("%s: detaching it removes %s, which is not in the file; "+
			"write it there, or remove it with --prune", joinChanges(fixed), l.Name))
		return false
	}
	return true
}

// same tells whether two are one sub-interface.
func same(a, b loader.Link) bool {
	return a.Parent == b.Parent && a.Name == b.Name && a.Netns == b.Netns
}

// goes tells whether a sub-interface is to be removed.
func (p *planner) goes(l loader.Link) bool {
	return slices.ContainsFunc(p.gone, func(g loader.Link) bool { return same(g, l) })
}

// policy finds what is to be changed of an attached parent.
func (p *planner) policy(w *wantedParent, info loader.ParentInfo) {
	var changes []change
	if w.spec.Unknown != "" && string(w.spec.Unknown) != unknown(info.UnknownDrop) {
		changes = append(changes, change{"unknown", unknown(info.UnknownDrop), string(w.spec.Unknown)})
	}
	if w.attached() && !info.Keep {
		changes = append(changes, change{"keep", "false", "true"})
	}
	if len(changes) == 0 {
		return
	}
	p.attach = append(p.attach, &step{
		Action: "change", Object: "parent", Name: w.name, Netns: p.netns, words: joinChanges(changes), Changes: changes, at: w.at,
		do: func(h *loader.Host) error { return h.Attach(w.name, w.spec) },
	})
}

// link finds what is to be done to a sub-interface.
func (p *planner) link(x *pair, anew bool) {
	spec := x.want.spec
	if x.have == nil || anew {
		x.have = nil
		p.addLink(x)
		return
	}
	d := &linkDiff{want: x.want, have: *x.have, moves: x.want.keys.has("netns") && p.id(x.have.Netns) != p.id(spec.Netns)}
	var err error
	if d.now, err = p.h.Spec(*x.have); err != nil {
		p.fail(x.want.at, x.want.what(), err)
		return
	}
	d.find()
	switch {
	case len(d.fixed) > 0 && !p.replacing:
		at := x.want.keys.placeOf(errors.New(d.fixed[0].Key), x.want.at)
		p.fail(at, x.want.what(), fmt.Errorf("%s: %s; --replace makes it anew", joinChanges(d.fixed), whyFixed[d.fixed[0].Key]))
	case len(d.fixed) > 0:
		p.removeLink(*x.have, ": to be made anew: "+joinChanges(d.fixed))
		x.have = nil
		p.addLink(x)
	case len(d.changes) > 0:
		words := joinChanges(d.changes)
		x.done = &step{
			Action: "change", Object: "link", Name: spec.Name, Parent: spec.Parent, Netns: p.netns, words: "link " + spec.Parent + " " + words,
			Changes: d.changes, at: x.want.at, do: d.apply,
		}
		p.change = append(p.change, x.done)
	}
}

// whyFixed says why a device that is there does not take a change.
var whyFixed = map[string]string{
	"type": "a device has one type for good",
	"mode": "passthru can neither be entered nor left",
	"flag": "it is given when the device is made",
	"leg":  "it is given when the device is made",
}

func (p *planner) addLink(x *pair) {
	spec := x.want.spec
	x.done = &step{
		Action: "add", Object: "link", Name: spec.Name, Parent: spec.Parent, Netns: p.netns, words: addWords(&spec), at: x.want.at,
		do: func(h *loader.Host) error { return h.Add(spec) },
	}
	p.add = append(p.add, x.done)
}
