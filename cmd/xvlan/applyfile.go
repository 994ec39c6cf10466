package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/xvlan/xvlan/loader"
	xvmaps "github.com/xvlan/xvlan/maps"
)

// A position is where something stands in a file, from 1.
type position struct{ line, column int }

func positionOf(n *yaml.Node) position { return position{n.Line, n.Column} }

// places tells where the values of the keys stand that are there.
type places map[string]position

func (p places) has(key string) bool { _, ok := p[key]; return ok }

// wantedParent is a parent of a file.
type wantedParent struct {
	at    position
	keys  places
	name  string
	netns string // "": the command's
	spec  loader.AttachSpec
	links []*wantedLink
}

// attached tells whether the parent is to stay attached without sub-interfaces.
func (p *wantedParent) attached() bool {
	return p.keys.has("unknown") || p.keys.has("capacity") || len(p.links) == 0
}

// wantedLink is a sub-interface of a file.
type wantedLink struct {
	parent *wantedParent
	at     position
	keys   places
	spec   loader.LinkSpec
}

// configReader reads a file for apply. What its keys are set to is read as the
// words of the command line are.
type configReader struct {
	file string
	errs []error
}

// readConfig reads the parents of a file; the errors of all of it.
func readConfig(file string, data []byte) ([]*wantedParent, error) {
	r := &configReader{file: file}
	var docs []yaml.Node
	err := yaml.Load(data, &docs, yaml.WithAllDocuments())
	if syntax, ok := errors.AsType[*yaml.LoadError](err); ok {
		r.fail(position{max(1, syntax.Mark.Line), max(1, syntax.Mark.Column)}, usagef("%s", syntax.Message))
	} else if err != nil {
		r.fail(position{1, 1}, usagef("%v", err))
	} else if len(docs) != 1 {
		r.fail(position{1, 1}, usagef("parents: %d YAML documents; write one, that begins with: parents:", len(docs)))
	}
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	top := &docs[0]
	if top.Kind == yaml.DocumentNode {
		top = top.Content[0]
	}
	var parents []*wantedParent
	said := false
	for _, e := range r.mapping(top, "file", "parents") {
		said = true
		for _, n := range r.list(e, "file") {
			if p := r.parent(n); p != nil {
				parents = append(parents, p)
			}
		}
	}
	if !said && len(r.errs) == 0 {
		r.fail(positionOf(top), usagef("parents: missing; a file is a list of them"))
	}
	return parents, errors.Join(r.errs...)
}

func (r *configReader) fail(at position, err error) {
	r.errs = append(r.errs, fmt.Errorf("%s:%d:%d: %w", r.file, at.line, at.column, singleLine{err}))
}

// A singleLine is an error that stays on its line, whatever keys and values it repeats:
// in YAML even a plain word may go over several lines.
type singleLine struct{ error }

func (e singleLine) Unwrap() error { return e.error }

func (e singleLine) Error() string { return printable(e.error.Error()) }

// entry is a key of a mapping and what it is set to.
type entry struct {
	key   string
	at    position // of the key
	value *yaml.Node
}

// place is where a mistake in the value is.
func (e entry) place() position {
	if isNull(e.value) {
		return e.at
	}
	return positionOf(e.value)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// mapping reads the keys of a mapping, all of which are to be among those known.
func (r *configReader) mapping(n *yaml.Node, what string, known ...string) []entry {
	if n.Kind != yaml.MappingNode {
		r.fail(positionOf(n), usagef("%s: write it as lines of KEY: VALUE", what))
		return nil
	}
	var all []entry
	for i := 0; i+1 < len(n.Content); i += 2 {
		e := entry{n.Content[i].Value, positionOf(n.Content[i]), n.Content[i+1]}
		switch {
		case slices.ContainsFunc(all, func(other entry) bool { return other.key == e.key }):
			r.fail(e.at, usagef("%s: %s: said twice", what, e.key))
		case !slices.Contains(known, e.key):
			r.fail(e.at, usagef("%s: %s: not known; its keys are %s", what, e.key, strings.Join(known, ", ")))
		default:
			all = append(all, e)
		}
	}
	return all
}

func (r *configReader) list(e entry, what string) []*yaml.Node {
	if e.value.Kind != yaml.SequenceNode && !isNull(e.value) {
		r.fail(e.place(), usagef("%s: %s: write it as a list, each line beginning with -", what, e.key))
		return nil
	}
	return e.value.Content
}

// scalar reads a value as it is written, whatever YAML takes it for.
func (r *configReader) scalar(n *yaml.Node, what, key string) (value string, ok bool) {
	switch {
	case isNull(n):
		r.fail(positionOf(n), usagef("%s: %s: its value is missing", what, key))
	case n.Kind != yaml.ScalarNode:
		r.fail(positionOf(n), usagef("%s: %s: write one plain value", what, key))
	default:
		return n.Value, true
	}
	return "", false
}

// read has fn read one value as a word behind its key.
func (r *configReader) read(n *yaml.Node, what, key string, fn func(w *words)) {
	value, ok := r.scalar(n, what, key)
	if !ok {
		return
	}
	w := &words{left: []string{value}}
	if fn(w); w.err != nil {
		r.fail(positionOf(n), fmt.Errorf("%s: %w", what, w.err))
	}
}

var parentKeys = []string{"name", "netns", "datapath", "unknown", "capacity", "links"}

func (r *configReader) parent(n *yaml.Node) *wantedParent {
	p := &wantedParent{at: positionOf(n), keys: places{}, spec: loader.AttachSpec{Keep: true}}
	entries := r.mapping(n, "parent", parentKeys...)
	p.name, p.at = r.named(entries, "parent", p.at)
	if p.name == "" {
		return nil
	}
	what := "parent " + p.name
	var links []*yaml.Node
	for _, e := range entries {
		p.keys[e.key] = e.place()
		switch e.key {
		case "name":
		case "links":
			links = r.list(e, what)
		case "netns":
			p.netns, _ = r.scalar(e.value, what, e.key)
		case "datapath":
			r.read(e.value, what, e.key, func(w *words) { p.spec.Datapath = w.datapath() })
		default:
			r.read(e.value, what, e.key, func(w *words) { w.attachWord(e.key, &p.spec) })
		}
	}
	for _, n := range links {
		if l := r.link(n); l != nil {
			l.parent, l.spec.Parent, l.spec.Datapath = p, p.name, p.spec.Datapath
			p.links = append(p.links, l)
		}
	}
	return p
}

// named finds the name among the keys.
func (r *configReader) named(entries []entry, what string, at position) (string, position) {
	for _, e := range entries {
		if e.key == "name" {
			name, ok := r.scalar(e.value, what, "name")
			if ok && name == "" {
				r.fail(e.place(), usagef("%s: name: its value is missing", what))
			}
			return name, e.place()
		}
	}
	if len(entries) > 0 {
		r.fail(at, usagef("%s: name: missing; say which", what))
	}
	return "", at
}

// linkKeys are those of every sub-interface, and those of a macvlan alone.
var linkKeys, macvlanKeys = []string{"name", "type", "mode", "flag", "netns", "address", "addr", "mtu", "up", "host", "via-host", "delivery", "leg", "dhcp", "guard", "bcrate", "vlan", "qinq", "trunk"},
	[]string{"macaddr", "bcqueuelen", "bclim"}

func (r *configReader) link(n *yaml.Node) *wantedLink {
	l := &wantedLink{at: positionOf(n), keys: places{}}
	entries := r.mapping(n, "link", slices.Concat(linkKeys, macvlanKeys)...)
	l.spec.Name, l.at = r.named(entries, "link", l.at)
	if l.spec.Name == "" {
		return nil
	}
	what := "link " + l.spec.Name
	var t typeWords // first, as it says what else there is
	for _, e := range entries {
		l.keys[e.key] = e.place()
		if e.key == "type" {
			r.read(e.value, what, e.key, func(w *words) { t.kind = w.kindOf(w.value(e.key)) })
		}
	}
	if !l.keys.has("type") {
		r.fail(l.at, usagef("%s: type: say which: macvlan or ipvlan", what))
	}
	if t.kind == 0 {
		return nil
	}
	for _, e := range entries {
		if t.kind != xvmaps.Macvlan && slices.Contains(macvlanKeys, e.key) {
			r.fail(e.at, usagef("%s: %s: only a macvlan has it", what, e.key))
			continue
		}
		if t.kind != xvmaps.Ipvlan && e.key == "dhcp" {
			r.fail(e.at, usagef("%s: %s: only an ipvlan has it", what, e.key))
			continue
		}
		r.linkKey(e, what, l, &t)
	}
	if err := t.forAdd(&l.spec); err != nil {
		r.fail(l.placeOf(err), fmt.Errorf("%s: %w", what, err))
	}
	return l
}

func (r *configReader) linkKey(e entry, what string, l *wantedLink, t *typeWords) {
	switch {
	case e.key == "name" || e.key == "type":
	case e.key == "up":
		if err := e.value.Decode(&l.spec.Up); err != nil || isNull(e.value) {
			r.fail(e.place(), usagef("%s: up: say true or false", what))
		}
	case e.key == "addr" || e.key == "via-host":
		for _, n := range r.some(e, what) {
			r.read(n, what, e.key, func(w *words) { w.linkWord(e.key, &l.spec) })
		}
	case e.key == "macaddr":
		t.source = &loader.SourceEdit{}
		for _, n := range r.some(e, what) {
			r.read(n, what, e.key, func(w *words) { t.source.Add = append(t.source.Add, w.mac(e.key)) })
		}
	case e.key == "flag" && t.kind == xvmaps.Ipvlan:
		r.read(e.value, what, e.key, func(w *words) {
			flag := w.value(e.key)
			if t.flag = ipvlanFlags[flag]; t.flag == 0 {
				w.fail(usagef("flag %s: no flag of ipvlan; these are: %s", flag, strings.Join(slices.Sorted(maps.Keys(ipvlanFlags)), ", ")))
			}
		})
	default:
		r.read(e.value, what, e.key, func(w *words) {
			if !w.linkWord(e.key, &l.spec) {
				w.typeWord(e.key, t)
			}
		})
	}
}

// some reads a list, or one value in place of it.
func (r *configReader) some(e entry, what string) []*yaml.Node {
	switch {
	case isNull(e.value):
		r.fail(e.at, usagef("%s: %s: its value is missing; write [] for none", what, e.key))
		return nil
	case e.value.Kind == yaml.ScalarNode:
		return []*yaml.Node{e.value}
	}
	return r.list(e, what)
}

// placeOf finds where the mistake is that an error tells of: all of ours begin
// with the field.
func (k places) placeOf(err error, otherwise position) position {
	field, _, _ := strings.Cut(err.Error(), " ")
	if at, ok := k[strings.TrimSuffix(field, ":")]; ok {
		return at
	}
	return otherwise
}

func (l *wantedLink) placeOf(err error) position { return l.keys.placeOf(err, l.at) }
