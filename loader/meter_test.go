package loader

import (
	"strconv"
	"testing"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// meterAll is meterRead with names and devices looked up.
func (s *site) meterAll(t *testing.T, m *Meter) map[string]Flow {
	t.Helper()
	m.took = 0
	return s.meterRead(t, m)
}

// meterRead reads once, and returns what there is by the names of ends.
func (s *site) meterRead(t *testing.T, m *Meter) map[string]Flow {
	t.Helper()
	var flows []Flow
	s.do(t, func(*Host) (err error) { flows, err = m.Read(); return err })
	byName := map[string]Flow{}
	for _, f := range flows {
		name := f.Name
		for _, e := range s.subs {
			if f.Netns == e.ns.Name() && f.Name == e.dev {
				name = e.name
			}
		}
		byName[name] = f
	}
	if len(byName) != len(flows) {
		t.Fatalf("one is there twice: %+v", flows)
	}
	return byName
}

// checkMeter reads once more, where one sub-interface has answered pings and
// the others nothing, and those of fresh are new.
func (s *site) checkMeter(t *testing.T, m *Meter, busy string, pings uint64, fresh ...string) {
	t.Helper()
	flows := s.meterAll(t, m)
	if len(flows) != len(s.subs) {
		t.Errorf("%d are read, want %d: %+v", len(flows), len(s.subs), flows)
	}
	isNew := map[string]bool{}
	for _, name := range fresh {
		isNew[name] = true
	}
	for name, f := range flows {
		want := uint64(0)
		if name == busy {
			want = pings
		}
		if rx, tx := f.Delta[maps.RX], f.Delta[maps.TX]; rx.Packets != want || tx.Packets != want || rx.Bytes != 98*want {
			t.Errorf("%s: got %+v and sent %+v, want %d packets each", name, rx, tx, want)
		}
		if (f.Since == 0) != isNew[name] || f.Since < 0 {
			t.Errorf("%s: since %v, new: %v", name, f.Since, isNew[name])
		}
	}
}

// Counters are read for what they grew by, to the packet, and those of a
// sub-interface made in another's place begin anew.
func TestMeter(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, allRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		if r.datapath != Kernel { // with as many ids, that they be taken again
			s.do(t, func(h *Host) error {
				return h.Attach(parentDev, AttachSpec{Datapath: r.datapath, Capacity: uint32(len(s.subs)), Keep: true})
			})
		}
		s.populateQuiet(t)
		names := []string{}
		for _, e := range s.subs {
			names = append(names, e.name)
		}
		m := s.h.NewMeter()
		s.checkMeter(t, m, "", 0, names...)
		s.checkMeter(t, m, "", 0)
		first, drops := s.subs[0], backlogDrops(t)
		ping := func(pings int) {
			s.wire.ping(t, first.ip4.Addr(), "-c", strconv.Itoa(pings), "-i", "0.002", "-q")
			lossless(t, drops) // what was lost was repeated
		}
		for _, pings := range []int{7, 1, 0, 12} {
			if pings > 0 {
				ping(pings)
			}
			s.checkMeter(t, m, first.name, uint64(pings))
		}

		// One made in the place of another, with more counted than that had.
		s.del(t, first)
		s.populateAgain(t, first)
		ping(30)
		s.checkMeter(t, m, "", 0, first.name)

		// All of them, with the same ids, on a parent attached anew.
		if r.datapath != Kernel {
			s.do(t, func(h *Host) error { return h.Detach(parentDev) })
			s.populateQuiet(t)
			ping(40)
			s.checkMeter(t, m, "", 0, names...)
			s.do(t, func(h *Host) error {
				return h.SetMode(Selector{Name: first.dev, Netns: first.ns.Name()}, ModeChange{Mode: maps.Private})
			})
			if f := s.meterAll(t, m)[first.name]; f.Mode != maps.Private || f.Class != maps.ClassPrivate {
				t.Errorf("in use its mode was changed to %s, class %s", f.Mode, f.Class)
			}
		}
		first.ns.Run(t, "ip", "link", "set", first.dev, "down")
		first.ns.Run(t, "ip", "link", "set", first.dev, "name", "renamed")
		lab.Eventually(t, "its new name is found", func() bool {
			f, ok := s.meterAll(t, m)["renamed"]
			return ok && f.OperState == "DOWN"
		})
		first.ns.Run(t, "ip", "link", "del", "renamed")
		lab.Eventually(t, "it is gone", func() bool { return len(s.meterAll(t, m)) == len(s.subs)-1 })
	})
}

// populateAgain is populateQuiet for one.
func (s *site) populateAgain(t *testing.T, e *end) {
	t.Helper()
	all := s.subs
	s.subs = []*end{e}
	s.populateQuiet(t)
	s.subs = all
	know(t, s, s.all()...)
}

// With many sub-interfaces devices are looked up seldom, but at once for one
// that is new.
func TestMeterLooksSeldom(t *testing.T) {
	s := newSite(t, onClsact, siteOption{noIPv6: true})
	first, second := s.subs[0], s.subs[1]
	s.addAtOnce(t, first, first.ip4)
	m := s.h.NewMeter()
	s.meterRead(t, m)
	m.took = 1 << 40 // as if it had taken minutes
	looked := m.looked
	for range 3 {
		if len(s.meterRead(t, m)) != 1 || m.looked != looked {
			t.Error("devices were looked up again")
		}
	}
	s.addAtOnce(t, second, second.ip4)
	if len(s.meterRead(t, m)) != 2 || m.looked == looked {
		t.Error("a new one was not looked for")
	}
}
