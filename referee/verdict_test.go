package referee

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A rule is a difference with what it has met.
type rule struct {
	difference
	table                      string
	pair, rung, scenario, line *regexp.Regexp
	due, seen                  int
}

func newRules(table string, all []difference) []*rule {
	var rules []*rule
	whole := func(expr string) *regexp.Regexp { return regexp.MustCompile("^(?:" + expr + ")$") }
	for _, d := range all {
		rules = append(rules, &rule{
			difference: d, table: table,
			pair: whole(d.pairs), rung: whole(d.rungs), scenario: whole(d.scenarios), line: whole(d.lines),
		})
	}
	return rules
}

// verdicts gathers what the comparisons have shown.
type verdicts struct {
	rules    []*rule
	hasVLAN  bool     // the kernel has VLAN devices
	due, ran int      // pairs that there are, and those that this run has come to
	missing  []string // of these the ones that xvlan does not have
	compared int
	alike    int
	open     map[string][]string // by what differs, the scenarios where it does
	kernels  map[string]string   // likewise, what the kernel's driver did in the first
}

func newVerdicts() *verdicts {
	return &verdicts{
		rules:   append(newRules("deliberate", slices.Concat(deliberate, deliberateRouted)), newRules("defects", defects)...),
		open:    make(map[string][]string),
		kernels: make(map[string]string),
	}
}

// judge compares two outcomes of a scenario.
func (v *verdicts) judge(rung string, p pair, s scenario, want, got outcome) {
	rules := v.apply(rung, p, s)
	for _, r := range rules {
		r.due++
	}
	v.compared++
	lines := diff(want, got)
	if len(lines) == 0 {
		v.alike++
		return
	}
	var open []string
	for _, line := range lines {
		if r := meant(rules, line); r != nil {
			r.seen++
		} else {
			open = append(open, line)
		}
	}
	if len(open) > 0 {
		key := strings.Join(open, "; ")
		if v.open[key] == nil {
			v.kernels[key] = strings.Join(want, "; ")
		}
		v.open[key] = append(v.open[key], s.name)
	}
}

// chance tells whether there is a multicast frame too many that nothing but
// the chance of a kernel's filter may explain: sign says on which side.
func (v *verdicts) chance(sign string, p pair, rung string, all []scenario, want, got []outcome) bool {
	for i, s := range all {
		for _, line := range diff(want[i], got[i]) {
			if strings.HasPrefix(line, sign) && strings.Contains(line, " MULTICAST") && meant(v.apply(rung, p, s), line) == nil {
				return true
			}
		}
	}
	return false
}

// apply lists the rules that may apply to a comparison.
func (v *verdicts) apply(rung string, p pair, s scenario) []*rule {
	var rules []*rule
	for _, r := range v.rules {
		if r.pair.MatchString(p.String()) && r.rung.MatchString(rung) && r.scenario.MatchString(s.name) {
			rules = append(rules, r)
		}
	}
	return rules
}

// meant finds the rule that a line stands for.
func meant(rules []*rule, line string) *rule {
	for _, r := range rules {
		if r.line.MatchString(line) {
			return r
		}
	}
	return nil
}

// fail tells the differences found since it was last called, each with the
// scenarios that show it.
func (v *verdicts) fail(t *testing.T) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(v.open)) {
		t.Errorf("%s\n\tthe kernel's: %s\n\t%s", key, v.kernels[key], strings.Join(v.open[key], "\n\t"))
	}
	clear(v.open)
}

// report sums up, and fails for known differences that have gone.
func (v *verdicts) report(t *testing.T, allScenarios bool) {
	t.Helper()
	complete := allScenarios && v.ran == v.due
	if !complete {
		t.Logf("not looked for: known differences that have gone; that takes all pairs and scenarios")
	}
	for _, r := range v.rules {
		if complete && r.due > 0 && r.seen == 0 && !r.byChance {
			t.Errorf("no longer a difference, so take it out of %s: %s (%s; %s; %s; %s)",
				r.table, r.what, r.pairs, r.rungs, r.scenarios, r.lines)
		} else if r.seen > 0 {
			t.Logf("%s, %d times: %s", r.table, r.seen, r.what)
		}
	}
	t.Logf("%d comparisons, %d alike", v.compared, v.alike)
	if len(v.missing) > 0 {
		t.Logf("missing from xvlan, %d of %d: %s", len(v.missing), len(pairs()), strings.Join(v.missing, ", "))
	}
}
