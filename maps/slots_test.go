package maps

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/xvlan/xvlan/bpf"
)

// Whoever changes an entry voids the copies that there are of it.
func TestSlotsAreVoided(t *testing.T) {
	s := newSet(t)
	d := Dest{ID: 1, Gen: 7, Origin: Given}
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		a := netip.MustParseAddr(addr)
		version, err := s.slotsOf(a).version(a)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name         string
			change       func() error
			before, want uint32
		}{
			{"entered", func() error { return s.PutAddr(0, a, d) }, 4, 4},
			{"replaced", func() error { return s.ReplaceAddr(0, a, Dest{Origin: Reserved}) }, 4, 6},
			{"deleted", func() error { return s.DeleteAddr(0, a) }, 6, 8},
			{"not there", func() error { return s.DeleteAddr(0, a) }, 8, 10},
			{"after one that was killed", func() error { return s.DeleteAddr(0, a) }, 11, 12},
			{"the last version", func() error { return s.DeleteAddr(0, a) }, bpf.VersionMax, bpf.VersionMax},
			{"killed at the last one", func() error { return s.DeleteAddr(0, a) }, bpf.VersionMax - 1, bpf.VersionMax},
		} {
			version.Store(c.before)
			if err := c.change(); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if got := version.Load(); got != c.want {
				t.Errorf("%s %s: the version was %d and is %d, want %d", addr, c.name, c.before, got, c.want)
			}
		}
	}
}

// Meanwhile the version is odd, and a change that fails ends as one that does not.
func TestSlotsMeanwhile(t *testing.T) {
	s := newSet(t)
	a := netip.MustParseAddr("192.0.2.1")
	version, err := s.ip4Slots.version(a)
	if err != nil {
		t.Fatal(err)
	}
	failed := errors.New("failed")
	err = s.ip4Slots.changing(a, func() error {
		if got := version.Load(); got != 1 {
			t.Errorf("meanwhile the version is %d", got)
		}
		return failed
	})
	if got := version.Load(); got != 2 || !errors.Is(err, failed) {
		t.Errorf("then the version is %d, and the error %v", got, err)
	}
}
