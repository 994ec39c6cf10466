package referee

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

var write = flag.Bool("write", false, "write DIFFERENCES.md anew")

const docsFile = "DIFFERENCES.md"

// TestDocs holds the document to the table that it is made from.
func TestDocs(t *testing.T) {
	want := markdown()
	t.Log("\n" + want)
	if *write {
		if err := os.WriteFile(docsFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(docsFile)
	if err != nil || string(got) != want {
		t.Errorf("%s is not what the table says (%v): go test ./referee -run TestDocs -write", docsFile, err)
	}
}

var only = flag.String("scenario", "", "run only the scenarios that match this expression")

// TestReferee compares xvlan on each of its rungs with the kernel's drivers.
func TestReferee(t *testing.T) {
	lab.NeedTool(t, "ip")
	match, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]bool)
	for _, kind := range []string{"macvlan", "ipvlan", "vlan"} {
		have[kind] = lab.HasKind(t, kind)
	}
	for kind, ok := range have {
		if !ok {
			t.Logf("not compared: this kernel has no %s", kind)
		}
	}
	v := newVerdicts()
	v.hasVLAN = have["vlan"]
	for _, p := range pairs() {
		if !have[p.kind] || testing.Short() && p.b != "" && p.a != p.b {
			continue
		}
		v.due++
		t.Run(p.String(), func(t *testing.T) { comparePair(t, p, match, v) })
	}
	v.report(t, *only == "")
}

// chances are how many more worlds are made to tell the kernel's chance from a
// difference.
const chances = 4

// comparePair runs a pair by the kernel's driver and by xvlan on each rung.
func comparePair(t *testing.T, p pair, match *regexp.Regexp, v *verdicts) {
	all := slices.DeleteFunc(scenarios(p), func(s scenario) bool {
		return !match.MatchString(s.name) || s.needsVLAN && !v.hasVLAN
	})
	v.ran++
	if err := built(t, p); err != nil {
		v.missing = append(v.missing, p.String())
		t.Logf("not compared: %v", err)
		runWorld(t, kernelDriver, p, all) // what is to come can at least be run
		return
	}
	// The kernel's multicast filters are salted hashes, and by chance let
	// more through than was joined: of two worlds the lesser counts.
	want := fewest(runWorld(t, kernelDriver, p, all), runWorld(t, kernelDriver, p, all))
	for _, rung := range rungs {
		t.Run(rung, func(t *testing.T) {
			if rung == "netkit" {
				lab.NeedNetkit(t)
			}
			got := runWorld(t, xvlanDriver(t, rung), p, all)
			for tries := 0; tries < chances && rung == "kernel" && v.chance("+", p, rung, all, want, got); tries++ {
				got = fewest(got, runWorld(t, xvlanDriver(t, rung), p, all))
			}
			for tries := 0; tries < chances && v.chance("-", p, rung, all, want, got); tries++ {
				want = fewest(want, runWorld(t, kernelDriver, p, all))
			}
			for i, s := range all {
				v.judge(rung, p, s, want[i], got[i])
			}
			v.fail(t)
		})
	}
}

// fewest takes of two runs, scenario by scenario, the one that less came of.
func fewest(a, b []outcome) []outcome {
	least := slices.Clone(a)
	for i := range least {
		if len(b[i]) < len(a[i]) {
			least[i] = b[i]
		}
	}
	return least
}

// built returns errNotBuilt if xvlan has not a pair's modes: it reads the words before it
// looks for the parent, which is not there.
func built(t *testing.T, p pair) error {
	t.Helper()
	ns := lab.NewNetns(t, "words")
	for _, r := range []role{subA, subB} {
		if !p.has(r) {
			continue
		}
		words := append([]string{"link", "nobody", "name", "c0", "type", p.kind, "mode"}, modeWords(p.mode(r))...)
		switch err := xvlanDriver(t, "tc").add(t, ns, words...); {
		case errors.Is(err, errNotBuilt):
			return err
		case err == nil || !strings.Contains(err.Error(), "no such device"):
			t.Fatalf("xvlan made of %q: %v", words, err)
		}
	}
	return nil
}

// modeWords are a mode as said to ip. A source mode lists the wire's MAC.
func modeWords(mode string) []string {
	words := strings.Fields(mode)
	if words[0] == "source" {
		words = append(words, "macaddr", "add", givenMAC(wire).String())
	}
	return words
}

// runWorld makes a world and runs all scenarios in it.
func runWorld(t *testing.T, d driver, p pair, all []scenario) (outcomes []outcome) {
	t.Helper()
	ok := t.Run("by "+d.name, func(t *testing.T) {
		start := time.Now()
		w, err := newWorld(t, d, p)
		if err != nil {
			t.Fatal(err)
		}
		made := time.Since(start)
		stay(t)
		for _, s := range all {
			outcomes = append(outcomes, w.run(t, s))
			if *only != "" {
				t.Logf("%s: %s", s.name, strings.Join(outcomes[len(outcomes)-1], "; "))
			}
		}
		t.Logf("world %v, %d scenarios %v", made.Round(time.Millisecond), len(all), (time.Since(start) - made).Round(time.Millisecond))
	})
	if !ok {
		t.FailNow()
	}
	return outcomes
}

// stay keeps the test on one CPU, so that its frames stay in order.
func stay(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var before, first unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatalf("read CPU affinity: %v", err)
	}
	for cpu := 0; first.Count() == 0; cpu++ {
		if before.IsSet(cpu) {
			first.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &first); err != nil {
		t.Fatalf("set CPU affinity: %v", err)
	}
	t.Cleanup(func() {
		_ = unix.SchedSetaffinity(0, &before) // it was so before
		runtime.UnlockOSThread()
	})
}

// run sends a scenario's frames and says what came of them.
func (w *world) run(t *testing.T, s scenario) outcome {
	t.Helper()
	w.seq++
	sent := s.frames(&builder{world: w, from: s.from})
	var result outcome
	for i, f := range sent {
		if f == nil {
			continue
		}
		if err := w.send(s.from, f); err != nil {
			result = append(result, fmt.Sprintf("%s cannot send #%d: %v", s.from, i, err))
		}
	}
	got, err := w.settle()
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	for _, a := range got.strays {
		seq, index, _ := findToken(a.data, testMark)
		t.Errorf("%s: frame %d of scenario %d came late to %s", s.name, index, seq, a.where)
	}
	for _, a := range got.arrivals {
		result = append(result, w.describe(a, sent))
	}
	slices.Sort(result)
	if s.claims {
		w.announce(t)
	}
	return result
}
