package loader

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/xvlan/xvlan/maps"
)

// With a guard what a sub-interface sends has to be its own, as bpf/guard.h has it. What
// is done inside then changes nothing here: another MAC is not taken over, nor made
// the parent's, nor is the parent made promiscuous.

// DefaultRate is the budget that a guard has unless another is said, in frames a
// second.
const DefaultRate = 100

// GuardSpec describes a guard, or a change of one.
type GuardSpec struct {
	Guard *maps.Guard // nil: none, or as it is; its budget is DefaultRate where Rate is nil
	Rate  *uint32     // of broadcasts, ARP and ND a second, 0 for any number; nil: as Guard has it
}

// Of is what becomes of a guard.
func (s GuardSpec) Of(g maps.Guard) maps.Guard {
	if s.Guard != nil {
		g = *s.Guard
		g.Rate = 0
		if g.On {
			g.Rate = DefaultRate
		}
	}
	if s.Rate != nil {
		g.Rate = *s.Rate
	}
	return g
}

// guardSpec describes a guard in as few words as it takes.
func guardSpec(g maps.Guard) (s GuardSpec) {
	if g.On {
		s.Guard = &g
	}
	if s.Of(maps.Guard{}).Rate != g.Rate {
		s.Rate = &g.Rate
	}
	return s
}

// Parse reads the words for a guard and a budget, "" for what is not said.
func (s *GuardSpec) Parse(guard, rate string) error {
	if guard != "" {
		g, ok := maps.ParseGuard(guard)
		if !ok {
			return fmt.Errorf("guard %q: %w: off and on are known, and behind on: ,router ,dhcp and ,given", guard, ErrInvalid)
		}
		s.Guard = &g
	}
	if rate == "" {
		return nil
	}
	n, err := strconv.ParseUint(rate, 10, 32)
	if rate != "off" && (err != nil || n == 0 || n > maxRate) {
		return fmt.Errorf("bcrate %q: %w: no number of frames a second from 1 to %d, nor off", rate, ErrInvalid, maxRate)
	}
	budget := uint32(n)
	s.Rate = &budget
	return nil
}

// maxRate is more than anybody can send.
const maxRate = 100_000_000

var errKernelGuard = fmt.Errorf("guard, bcrate: %w: the kernel rung has neither; leave them out, or ask for datapath tc", ErrUnsupported)

// SetGuard changes what is asked of what a sub-interface sends, traffic flowing.
func (h *Host) SetGuard(sel Selector, spec GuardSpec) error {
	return h.change(sel,
		func(kernelLink) error {
			if spec.Of(maps.Guard{}).Active() {
				return errKernelGuard
			}
			return nil
		},
		func(p *parent, l Link, sub maps.Sub) error { return p.setGuard(l, sub, spec.Of(l.Guard)) })
}

// setGuard ends with a look at the device, whose addresses are learned or forgotten
// then, as the guard allows.
func (p *parent) setGuard(l Link, sub maps.Sub, g maps.Guard) error {
	if err := l.VLAN.suits(sub.Mode, false, g); err != nil {
		return err
	}
	if _, err := p.putGuard(l.ID, g, givenOf(l)); err != nil {
		return err
	}
	sub.Guarded = g.Active()
	if err := p.maps.PutSub(l.ID, sub); err != nil {
		return err
	}
	return p.follow()
}

// putGuard writes a guard, and returns it as it is then: of a family in which there are
// given addresses no others are learned.
func (p *parent) putGuard(id maps.ID, g maps.Guard, given []netip.Addr) (maps.Guard, error) {
	g.Learn4, g.Learn6 = g.On && !g.Given, g.On && !g.Given
	for _, a := range given {
		if a.Is4() {
			g.Learn4 = false
		} else {
			g.Learn6 = false
		}
	}
	was, err := p.maps.Guard(id)
	if err != nil || was == g {
		return g, err
	}
	return g, p.maps.PutGuard(id, g)
}

// learns tells whether an address that nobody has may be learned.
func learns(g maps.Guard, a netip.Addr) bool {
	return !g.On || a.Is4() && g.Learn4 || a.Is6() && (g.Learn6 || a.IsLinkLocalUnicast())
}

func givenOf(l Link) (given []netip.Addr) {
	for _, a := range l.Addrs {
		if a.Origin == maps.Given {
			given = append(given, a.Addr)
		}
	}
	return given
}

func addrsOf(prefixes []netip.Prefix) (all []netip.Addr) {
	for _, p := range prefixes {
		all = append(all, p.Addr())
	}
	return all
}
