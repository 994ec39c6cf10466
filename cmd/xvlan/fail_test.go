package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// A system call that fails makes the command fail with one line and leave
// everything as it was, or does not matter.
func TestFailingCalls(t *testing.T) {
	for _, s := range scenes {
		for _, f := range []struct{ errno, only string }{{"ENOMEM", ""}, {"EPERM", "bpf"}} {
			if f.only != "" && !strings.HasSuffix(s.name, "add") && s.name != "attach" {
				continue // makes few such calls, or none
			}
			t.Run(s.name+" "+f.errno, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, s)
				var calls []call
				for _, c := range r.calls {
					if f.only == "" || c.name == f.only {
						calls = append(calls, c)
					}
				}
				points := calls
				if os.Getenv(everyCall) == "" {
					changing, rest := partition(calls)
					points = append(sample(changing, 2), sample(rest, 2)...)
				}
				if s.name == "attach" { // which makes maps and programs
					points = append(points, sample(beginning(calls, "bpf(BPF_MAP_CREATE"), 3)...)
					points = append(points, sample(beginning(calls, "bpf(BPF_PROG_LOAD"), 3)...)
				}
				if testing.Short() {
					points = points[len(points)/2:]
				}
				refused := 0
				for _, c := range points {
					come := eventually(c, func(c call) bool {
						hit, failed := r.failAt(t, c, f.errno)
						if failed {
							refused++
						}
						return hit
					})
					if !come {
						t.Errorf("%s at %s %d, %.100s: not come to", f.errno, c.name, c.nth, c.text)
					}
				}
				t.Logf("%d calls, %d failed, %d of them mattered", len(calls), len(points), refused)
			})
		}
	}
}

// beginning picks the calls whose text begins so.
func beginning(calls []call, text string) []call {
	return slices.DeleteFunc(slices.Clone(calls), func(c call) bool { return !strings.HasPrefix(c.text, text) })
}

// partition tells the calls that change something from the rest.
func partition(calls []call) (changing, rest []call) {
	for _, c := range calls {
		if c.changes() {
			changing = append(changing, c)
		} else {
			rest = append(rest, c)
		}
	}
	return changing, rest
}

// failAt tells whether the command came to the call, and failed for its failing.
func (r *rig) failAt(t *testing.T, c call, errno string) (hit, failed bool) {
	t.Helper()
	r.set(t)
	tr := r.trace(t, r.fill.Replace(r.line), c.inject("error="+errno))
	at := fmt.Sprintf("%s at %s %d, %.100s", errno, c.name, c.nth, c.text)
	if r.removes && tr.code != exitOK {
		r.must(t, "link show") // whatever comes next removes the rest
	}
	now := r.look(t)
	before, after := difference(r.before, now), difference(r.after, now)
	switch {
	case tr.code == exitOK && after != "" && !strings.Contains(r.must(t, "link show"), "datapath kernel"):
		t.Errorf("%s: succeeds, but not as without:\n%s%s", at, after, tr.err)
	case tr.code != exitOK:
		if tr.code != exitFail || !strings.HasPrefix(tr.err, "xvlan: ") || strings.Count(tr.err, "\n") != 1 {
			t.Errorf("%s: exit status %d\n%s", at, tr.code, tr.err)
		}
		if before != "" && (after != "" || !r.removes && !r.moves) {
			t.Errorf("%s: not as before:\n%s%s", at, before, tr.err)
		}
	}
	r.whole(t)
	r.reset(t)
	return tr.hit, tr.code != exitOK
}
