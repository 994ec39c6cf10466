package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// atOnce runs commands as processes, all at the same time.
func (w *world) atOnce(t *testing.T, lines []string) []result {
	t.Helper()
	cmds := make([]*exec.Cmd, len(lines))
	for i, line := range lines {
		cmds[i] = command(t, strings.Fields(line)...)
		start(t, w.do, cmds[i])
	}
	results := make([]result, len(lines))
	for i, cmd := range cmds {
		results[i] = wait(t, cmd)
	}
	return results
}

// numbered makes n lines of a format with one number in it.
func numbered(n int, format string) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprintf(format, i)
	}
	return lines
}

// wantLinks checks that there are these sub-interfaces and no others, each with
// an id and a device of its own.
func (w *world) wantLinks(t *testing.T, names []string) {
	t.Helper()
	var got []string
	ids := map[int]string{}
	for _, l := range w.links(t) {
		got = append(got, l.Name)
		if other, taken := ids[l.ID]; taken && l.ID != 0 {
			t.Errorf("%s and %s have the id %d", l.Name, other, l.ID)
		}
		ids[l.ID] = l.Name
		if index := w.inside.Link(t, l.Name).Attrs().Index; index != l.Index {
			t.Errorf("%s has the index %d, is shown with %d", l.Name, index, l.Index)
		}
		if l.Leg != "" {
			w.host.Link(t, l.Leg)
		}
	}
	slices.Sort(got)
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("there are %v\nwant %v", got, names)
	}
}

func TestManyAdds(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	const n = 50
	lines := append(numbered(n/2, "link add link eth0 m%d addr 10.77.1.%[1]d/16 up netns IN type macvlan mode bridge"),
		numbered(n/2, "link add link eth0 i%d addr 10.77.2.%[1]d/16 up netns IN type ipvlan mode l2")...)
	for i, l := range lines {
		lines[i] = strings.Replace(l, "IN", w.inside.Name(), 1)
	}
	for i, r := range w.atOnce(t, lines) {
		if r.code != exitOK || r.err != "" {
			t.Errorf("%s: exit status %d\n%s", lines[i], r.code, r.err)
		}
	}
	w.wantLinks(t, append(numbered(n/2, "m%d"), numbered(n/2, "i%d")...))
	w.wire.Run(t, "ip", "addr", "add", "10.77.3.1/16", "dev", "w0")
	for _, name := range []string{"m0", "m24", "i0", "i24"} {
		ping(t, w.inside, name, "10.77.3.1")
	}
	lines = append(numbered(n/2, "link del m%d"), numbered(n/2, "link del i%d")...)
	for i, r := range w.atOnce(t, lines) {
		if r.code != exitOK || r.err != "" {
			t.Errorf("%s: exit status %d\n%s", lines[i], r.code, r.err)
		}
	}
	w.wire.Run(t, "ip", "addr", "del", "10.77.3.1/16", "dev", "w0")
	w.same(t, before)
}

// Of many that want one name one gets it.
func TestSameName(t *testing.T) {
	for datapath, n := range map[string]int{"tc": 50, "kernel": 25} {
		t.Run(datapath, func(t *testing.T) {
			w := newWorld(t)
			before := w.snapshot(t)
			line := "link add --datapath " + datapath + " link eth0 c1 netns " + w.inside.Name() + " type macvlan mode bridge"
			succeeded := 0
			for _, r := range w.atOnce(t, slices.Repeat([]string{line}, n)) {
				if r.code == exitOK {
					succeeded++
					continue
				}
				r.refused(t, exitFail)
				r.says(t, "name c1|already taken")
			}
			if succeeded != 1 {
				t.Errorf("%d succeeded", succeeded)
			}
			w.wantLinks(t, []string{"c1"})
			w.must(t, "link del c1")
			w.same(t, before)
		})
	}
}

func TestAddsAndDels(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	const n = 25
	add := "link add link eth0 %s%%d netns " + w.inside.Name() + " type macvlan mode bridge"
	for i, r := range w.atOnce(t, numbered(n, fmt.Sprintf(add, "old"))) {
		if r.code != exitOK {
			t.Errorf("add %d: %s", i, r.err)
		}
	}
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf(fmt.Sprintf(add, "new"), i), fmt.Sprintf("link del old%d", i))
	}
	for i, r := range w.atOnce(t, lines) {
		if r.code != exitOK || r.err != "" {
			t.Errorf("%s: exit status %d\n%s", lines[i], r.code, r.err)
		}
	}
	w.wantLinks(t, numbered(n, "new%d"))
	for i, r := range w.atOnce(t, numbered(n, "link del new%d")) {
		if r.code != exitOK {
			t.Errorf("del %d: %s", i, r.err)
		}
	}
	w.same(t, before)
}

// Whoever comes in whatever order, each command does all or nothing.
func TestAddsAndDetaches(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	add := "link add link eth0 c%d netns " + w.inside.Name() + " type macvlan mode bridge"
	var lines []string
	for i := range 12 {
		lines = append(lines, fmt.Sprintf(add, i), "link show")
		if i%3 == 2 {
			lines = append(lines, "parent detach eth0")
		}
	}
	for i, r := range w.atOnce(t, lines) {
		if r.code == exitOK {
			continue
		}
		r.refused(t, exitFail)
		if !strings.HasPrefix(lines[i], "parent detach") || !strings.Contains(r.err, "not found") {
			t.Errorf("%s: %s", lines[i], r.err)
		}
	}
	var there []string
	for _, l := range w.links(t) {
		there = append(there, l.Name)
	}
	w.wantLinks(t, there)
	if len(there) > 0 {
		w.must(t, "parent detach eth0")
	}
	w.same(t, before)
}
