package main

import (
	"fmt"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// Making and removing one takes the same calls however many there are. (Each of
// the others takes an ioctl, by which it is seen that it is still there, and for
// which a trace is too coarse.)
func TestCallsDoNotGrow(t *testing.T) {
	w := seal(t)
	in := w.inside.Name()
	add := func(i int) string {
		return fmt.Sprintf("link add link eth0 c%d addr 10.77.1.%[1]d/16 netns %s type macvlan mode bridge", i, in)
	}
	calls := func(line string) int {
		tr := w.trace(t, line, "")
		if tr.code != exitOK {
			t.Fatalf("%s: exit status %d\n%s", line, tr.code, tr.err)
		}
		return len(tr.calls)
	}
	both := func(i int) [2]int {
		return [2]int{calls(add(i)), calls(fmt.Sprintf("link del c%d netns %s", i, in))}
	}
	w.must(t, add(1))
	few := both(2)
	for i := 2; i < 40; i++ {
		w.must(t, add(i))
	}
	// A dump that something comes between is made again.
	const again = 10
	if crowd := both(40); crowd[0] > few[0]+again || crowd[1] > few[1]+again {
		t.Errorf("adding and deleting takes %d calls beside 39, %d beside 1", crowd, few)
	}
	w.must(t, "parent detach eth0")
}

// Looking asks for the devices of many as for those of few more: by lists.
func TestLooksDoNotGrow(t *testing.T) {
	if !lab.KernelFrom(t, 6, 6) {
		t.Skip("before Linux 6.6 each host leg is asked for its filter")
	}
	w := seal(t)
	messages := func() (n int) {
		tr := w.trace(t, "link show", "")
		if tr.code != exitOK {
			t.Fatalf("exit status %d\n%s", tr.code, tr.err)
		}
		for _, c := range tr.calls {
			if c.name == "sendto" {
				n++
			}
		}
		return n
	}
	var counts []int
	for _, n := range []int{20, 40} {
		for i := len(w.links(t)); i < n; i++ {
			w.must(t, fmt.Sprintf("link add link eth0 c%d netns %s type macvlan mode bridge", i, w.inside.Name()))
		}
		counts = append(counts, messages())
	}
	const others = 20 // namespaces that come and go meanwhile
	if counts[0] == 0 || counts[1] > counts[0]+others {
		t.Errorf("netlink is sent %d messages for 20 sub-interfaces and %d for 40", counts[0], counts[1])
	}
	w.must(t, "parent detach eth0")
}
