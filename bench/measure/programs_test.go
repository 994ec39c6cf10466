package measure

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/xvlan/xvlan/lab"
)

// noTime makes a measurement as short as it gets.
func noTime() Budget { return Budget{Time: time.Millisecond, Progress: func(float64) {}} }

// openFiles counts what this process holds open, namespaces and maps among it.
func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// Every frame gets the verdict that it is measured for, with few and with many
// sub-interfaces, some of which share a slot.
func TestPrograms(t *testing.T) {
	lab.NeedRoot(t)
	before := openFiles(t)
	links := []int{MinLinks, 1024}
	var parts []float64
	budget := noTime()
	budget.Progress = func(part float64) { parts = append(parts, part) }
	costs, err := Programs(t.Context(), links, budget)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]map[int]int{}
	for _, c := range costs {
		if seen[c.Frame] == nil {
			seen[c.Frame] = map[int]int{}
		}
		seen[c.Frame][c.Links]++
		if c.NS.Least <= 0 || c.NS.Median < c.NS.Least || c.NS.Most < c.NS.Median {
			t.Errorf("%+v", c)
		}
	}
	for frame, want := range map[string][2]int{
		"wire to macvlan": {1, 1}, "wire to the host, beside macvlan": {1, 1}, "macvlan to a sibling": {1, 1}, "macvlan to the wire": {1, 1},
		"wire to ipvlan": {1, 1}, "wire to the host, beside ipvlan": {1, 1}, "ipvlan to a sibling": {1, 1}, "ipvlan to the wire": {1, 1},
		"wire to nobody": {1, 2}, "wire to macvlan, before tc": {0, 1}, // with XDP
	} {
		if got := [2]int{seen[frame][links[0]], seen[frame][links[1]]}; got != want {
			t.Errorf("%s: measured %v times with %v links, want %v", frame, got, links, want)
		}
		delete(seen, frame)
	}
	if len(seen) != 1 || seen["an empty program"][0] != 1 {
		t.Errorf("measured besides: %v", seen)
	}
	if n := len(parts); n < minRounds*turns || parts[n-1] != 1 {
		t.Errorf("told of progress: %v", parts)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are left open", after-before)
	}
}

// What is interrupted ends, with nothing left.
func TestProgramsInterrupted(t *testing.T) {
	lab.NeedRoot(t)
	before := openFiles(t)
	ctx, cancel := context.WithCancel(t.Context())
	budget := Budget{Time: time.Hour, Progress: func(float64) { cancel() }}
	// It begins with short turns, to see what fits into a long one.
	if _, err := Programs(ctx, []int{MinLinks}, budget); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are left open", after-before)
	}
}
