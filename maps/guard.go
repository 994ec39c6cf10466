package maps

import (
	"fmt"
	"strings"

	"github.com/xvlan/xvlan/bpf"
)

// Guard is what is asked of what a sub-interface sends: see guard.h. Without On
// there is but the budget.
type Guard struct {
	On     bool   // it has to be its own
	Router bool   // and may say what a router says
	DHCP   bool   // and what a DHCP server says
	Given  bool   // and comes from no addresses but given ones
	Rate   uint32 // broadcasts, ARP and ND a second; 0 for any number

	Learn4, Learn6 bool // addresses that nobody has may be taken by sending from them
}

// Active tells whether anything is asked.
func (g Guard) Active() bool { return g.On || g.Rate != 0 }

// flags ties the flags to the fields.
func (g *Guard) flags() map[bpf.XvlanGuardFlag]*bool {
	return map[bpf.XvlanGuardFlag]*bool{
		bpf.XvlanGuardFlagGUARD_SOURCE: &g.On,
		bpf.XvlanGuardFlagGUARD_ROUTER: &g.Router,
		bpf.XvlanGuardFlagGUARD_DHCP:   &g.DHCP,
		bpf.XvlanGuardFlagGUARD_GIVEN:  &g.Given,
		bpf.XvlanGuardFlagGUARD_LEARN4: &g.Learn4,
		bpf.XvlanGuardFlagGUARD_LEARN6: &g.Learn6,
	}
}

// String is the guard, without its budget, in the words that it is asked for with.
func (g Guard) String() string {
	if !g.On {
		return "off"
	}
	words := []string{"on"}
	for _, w := range g.words() {
		if *w.set {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ",")
}

// guardWord is what may stand behind "on".
type guardWord struct {
	word string
	set  *bool
}

func (g *Guard) words() []guardWord {
	return []guardWord{{"router", &g.Router}, {"dhcp", &g.DHCP}, {"given", &g.Given}}
}

// ParseGuard reads what String writes; ok is false for anything else.
func ParseGuard(s string) (g Guard, ok bool) {
	if s == "off" {
		return g, true
	}
	words := strings.Split(s, ",")
	g.On = words[0] == "on"
	for _, word := range words[1:] {
		known := false
		for _, w := range g.words() {
			if w.word == word && !*w.set {
				*w.set, known = true, true
			}
		}
		if !known {
			return g, false
		}
	}
	return g, g.On
}

// Guard reads what is asked of what a sub-interface sends.
func (s *Set) Guard(id ID) (Guard, error) {
	c, err := s.guarding.read(int(id), 1)
	if err != nil {
		return Guard{}, fmt.Errorf("read guard of %d: %w", id, err)
	}
	return guardFromC(&c[0]), nil
}

// Guards returns all of them, indexed by ID.
func (s *Set) Guards() ([]Guard, error) {
	all, err := s.guarding.read(0, int(s.stats.MaxEntries()))
	if err != nil {
		return nil, fmt.Errorf("read guards: %w", err)
	}
	guards := make([]Guard, len(all))
	for i := range all {
		if all[i] != (bpf.XvlanGuard{}) { // as most are
			guards[i] = guardFromC(&all[i])
		}
	}
	return guards, nil
}

// PutGuard writes it. What has been spent of budgets is forgotten.
func (s *Set) PutGuard(id ID, g Guard) error {
	c := bpf.XvlanGuard{Rate: g.Rate}
	for flag, set := range g.flags() {
		if *set {
			c.Flags |= flag
		}
	}
	if err := s.guarding.write(int(id), c); err != nil {
		return fmt.Errorf("write guard of %d: %w", id, err)
	}
	return nil
}

func guardFromC(c *bpf.XvlanGuard) Guard {
	g := Guard{Rate: c.Rate}
	for flag, set := range g.flags() {
		*set = c.Flags&flag != 0
	}
	return g
}
