package loader

import (
	"fmt"
	"slices"
	"strings"

	"github.com/xvlan/xvlan/maps"
)

// How container runtimes' configurations name what a sub-interface is to be: the
// words are the kernel's.

// modesOf are the modes of each kind, the one first that runtimes take when
// nothing is said.
var modesOf = map[maps.Kind][]maps.Mode{
	maps.Macvlan: {maps.Bridge, maps.Private, maps.VEPA, maps.Passthru, maps.Source},
	maps.Ipvlan:  {maps.L2, maps.L3, maps.L3S},
}

// SetMode sets a mode, "" for the default, which without a kind is a macvlan's, and
// the kind with it. Where a kind is set, only its modes are taken.
func (s *LinkSpec) SetMode(name string) error {
	kinds := []maps.Kind{maps.Macvlan, maps.Ipvlan}
	if s.Kind != 0 {
		kinds = []maps.Kind{s.Kind}
	}
	var all []maps.Mode
	for _, kind := range kinds {
		modes := modesOf[kind]
		all = append(all, modes...)
		i := slices.IndexFunc(modes, func(m maps.Mode) bool { return m.String() == name })
		if name == "" {
			i = 0
		}
		if i >= 0 {
			s.Kind, s.Mode = kind, modes[i]
			return nil
		}
	}
	return fmt.Errorf("mode %q: %w: %s are known", name, ErrInvalid, listed(all))
}

// SetFlag sets the flag of an ipvlan, or of a macvlan's mode, "" for none. The mode
// has to be set.
func (s *LinkSpec) SetFlag(name string) error {
	switch {
	case name == "":
		return nil
	case name == "nopromisc" && s.Mode == maps.Passthru:
		s.NoPromisc = true
		return nil
	case name == "nodst" && s.Mode == maps.Source:
		s.Source.NoDst = true
		return nil
	case s.Kind != maps.Ipvlan:
		return fmt.Errorf("flag %s: %w: not with mode %s; mode passthru has nopromisc, source nodst, and an ipvlan others", name, ErrInvalid, s.Mode)
	}
	flags := []maps.Class{maps.ClassBridge, maps.ClassPrivate, maps.ClassVEPA}
	i := slices.IndexFunc(flags, func(c maps.Class) bool { return c.String() == name })
	if i < 0 {
		return fmt.Errorf("flag %q: %w: %s are known", name, ErrInvalid, listed(flags))
	}
	s.Flag = flags[i]
	return nil
}

// SetDatapath sets the rung that is asked for, "" for the best there is.
func (s *LinkSpec) SetDatapath(name string) error {
	known := []Datapath{XDP, TC, Kernel}
	if name != "" && !slices.Contains(known, Datapath(name)) {
		return fmt.Errorf("datapath %q: %w: %s are known", name, ErrInvalid, listed(known))
	}
	s.Datapath = Datapath(name)
	return nil
}

// SetHost turns host access "on" or "off", which "" is, too.
func (s *LinkSpec) SetHost(word string) error {
	known := []string{"off", "on"}
	if word != "" && !slices.Contains(known, word) {
		return fmt.Errorf("host %q: %w: %s are known", word, ErrInvalid, listed(known))
	}
	s.Host = word == "on"
	return nil
}

// SetVia sets the networks to be reached by way of the host, separated by commas; "off",
// which "" is, too, for none.
func (s *LinkSpec) SetVia(words string) (err error) {
	s.Via, err = ParseVia(words)
	return err
}

func listed[T any](all []T) string {
	names := make([]string, len(all))
	for i, v := range all {
		names[i] = fmt.Sprint(v)
	}
	return strings.Join(names, ", ")
}
