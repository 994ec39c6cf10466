package loader

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// others are the programs of another version: with an instruction more.
func others() (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadXvlan()
	if err != nil {
		return nil, err
	}
	for _, name := range pinnedPrograms {
		prog := spec.Programs[name]
		first := asm.Mov.Imm(asm.R0, 0)
		first.Metadata = prog.Instructions[0].Metadata
		prog.Instructions[0].Metadata = asm.Metadata{}
		prog.Instructions = append(asm.Instructions{first}, prog.Instructions...)
	}
	return spec, nil
}

// withParent opens the parent and runs fn on it, under its lock.
func (s *site) withParent(t *testing.T, fn func(p *parent)) {
	t.Helper()
	s.do(t, func(h *Host) error {
		l, unlock, err := h.lockParent(parentDev)
		if err != nil {
			return err
		}
		defer unlock()
		p, err := h.open(l)
		if err != nil {
			return err
		}
		defer p.close()
		fn(p)
		return nil
	})
}

// toOthers attaches the programs of another version.
func (s *site) toOthers(t *testing.T) {
	t.Helper()
	s.withParent(t, func(p *parent) {
		coll, err := p.loadOn(others)
		if err != nil {
			t.Errorf("load the others: %+v", err)
			return
		}
		defer coll.Close()
		if err := p.swap(coll); err != nil {
			t.Error(err)
		}
	})
}

// running returns the tags of what is attached and of what is pinned.
func (s *site) running(t *testing.T) (tags []string) {
	t.Helper()
	add := func(what string, prog *ebpf.Program, err error) {
		if err != nil {
			t.Errorf("open the program of %s: %v", what, err)
			return
		}
		defer prog.Close()
		info, err := prog.Info()
		if err != nil {
			t.Error(err)
			return
		}
		tags = append(tags, what+" "+info.Tag)
	}
	s.withParent(t, func(p *parent) {
		pins, err := os.ReadDir(p.dir)
		if err != nil {
			t.Error(err)
		}
		for _, pin := range pins {
			path := filepath.Join(p.dir, pin.Name())
			if l, err := link.LoadPinnedLink(path, nil); err == nil {
				info, err := l.Info()
				l.Close()
				if err != nil {
					t.Error(err)
					continue
				}
				prog, err := ebpf.NewProgramFromID(info.Program)
				add(pin.Name(), prog, err)
			} else if slices.Contains(pinnedPrograms, pin.Name()) {
				prog, err := ebpf.LoadPinnedProgram(path, nil)
				add(pin.Name(), prog, err)
			}
		}
		links, err := whole(p.h.nl.LinkList)
		if err != nil {
			t.Error(err)
		}
		for _, l := range links {
			for _, egress := range []bool{false, true} {
				filters, err := whole(func() ([]netlink.Filter, error) { return p.h.nl.FilterList(l, filterParent(egress)) })
				if err != nil {
					t.Error(err)
				}
				for _, f := range filters {
					if f, ok := f.(*netlink.BpfFilter); ok {
						prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(f.Id))
						add("filter of "+l.Attrs().Name, prog, err)
					}
				}
			}
		}
	})
	return tags
}

func (s *site) upgrade(t *testing.T) (changed bool) {
	t.Helper()
	s.do(t, func(h *Host) (err error) { changed, err = h.Upgrade(parentDev); return err })
	return changed
}

// An upgrade under traffic loses nothing: each frame sent in has reached a
// sub-interface, and each one sent out the wire, while the programs were changed
// back and forth; the counters have gone on.
func TestUpgrade(t *testing.T) {
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		s.populateQuiet(t)
		s.setHost(t, s.sub(t, "mac1"), true)
		if s.upgrade(t) {
			t.Error("the programs are changed for themselves")
		}
		ours := s.running(t)
		e := s.sub(t, "mac1")
		before := s.link(t, e).Stats
		var theirs []string
		s.underTraffic(t, e, func() {
			s.toOthers(t)
			theirs = s.running(t)
			if !s.upgrade(t) {
				t.Error("the others' programs are not changed")
			}
		}, func() (rx, tx uint64) {
			now := s.link(t, e).Stats
			return now[maps.RX].Packets - before[maps.RX].Packets, now[maps.TX].Packets - before[maps.TX].Packets
		})
		if again := s.running(t); !slices.Equal(again, ours) {
			t.Errorf("after the upgrade there run\n%q\nbefore\n%q", again, ours)
		}
		for i := range ours {
			if len(theirs) != len(ours) || theirs[i] == ours[i] {
				t.Fatalf("the others' are\n%q\nours\n%q", theirs, ours)
			}
		}
		var rec maps.Parent
		s.withParent(t, func(p *parent) { rec = p.rec })
		if rec.Schema != bpf.Schema {
			t.Errorf("schema %d", rec.Schema)
		}
		for _, e := range s.subs {
			s.wire.ping(t, e.ip4.Addr())
		}
		s.host.ping(t, e.ip4.Addr())
	})
}

// underTraffic floods a sub-interface and the wire from each other while change
// does its work. All that was sent has then to be counted, as counted tells what
// has been since the start.
func (s *site) underTraffic(t *testing.T, e *end, change func(), counted func() (rx, tx uint64)) {
	t.Helper()
	stats := func(e *end) *netlink.LinkStatistics { return e.ns.Link(t, e.dev).Attrs().Statistics }
	wire, inner := stats(s.wire), stats(e)
	in, out := s.wire.frameTo(t, e), e.frameTo(t, s.wire)
	var (
		wg              sync.WaitGroup
		over            atomic.Bool
		sentIn, sentOut uint64
	)
	keep := func(from *end, frame []byte, sent *uint64) {
		for !over.Load() {
			const n = 5000
			from.flood(t, frame, n)
			*sent += n
		}
	}
	wg.Go(func() { keep(s.wire, in, &sentIn) })
	wg.Go(func() { keep(e, out, &sentOut) })
	func() {
		defer wg.Wait() // also if change ends the test
		defer over.Store(true)
		change()
	}()
	// What did not get as far as a program of ours, the devices have counted.
	var gotIn, gotOut uint64
	defer func() { t.Logf("of %d %d came in, and of %d %d went out", sentIn, gotIn, sentOut, gotOut) }()
	lab.Eventually(t, "all frames have arrived", func() bool {
		rx, tx := counted()
		gotIn = rx + stats(s.wire).TxDropped - wire.TxDropped
		gotOut = tx + stats(e).TxDropped - inner.TxDropped
		return gotIn == sentIn && gotOut == sentOut
	})
}

// frameTo builds a frame for another, which no stack answers.
func (e *end) frameTo(t *testing.T, to *end) []byte {
	t.Helper()
	const experimental = 0x88b5 // IEEE 802: local experimental EtherType
	frame := slices.Concat(to.mac(t), e.mac(t), []byte{experimental >> 8, experimental & 0xff})
	return append(frame, make([]byte, 46)...)
}

// A swap that fails halfway leaves the programs that were there.
func TestUpgradeFails(t *testing.T) {
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		for _, e := range s.subs {
			s.addAtOnce(t, e, e.ip4)
		}
		before := s.running(t)
		s.withParent(t, func(p *parent) {
			coll, err := p.loadOn(others)
			if err != nil {
				t.Errorf("load the others: %+v", err)
				return
			}
			defer coll.Close()
			rx := coll.Programs[pinRXProg]
			rx.Close() // it comes after the legs
			if err := p.swap(coll); err == nil {
				t.Error("a program that is closed is attached")
			}
		})
		if after := s.running(t); !slices.Equal(after, before) {
			t.Errorf("there run\n%q\nbefore\n%q", after, before)
		}
		if s.upgrade(t) {
			t.Error("there is something to upgrade")
		}
	})
}

// What is not attached cannot be upgraded.
func TestUpgradeNothing(t *testing.T) {
	s := newSite(t, onTCX, siteOption{noIPv6: true})
	if err := s.try(t, func(h *Host) error { _, err := h.Upgrade(parentDev); return err }); !errors.Is(err, ErrNotFound) {
		t.Errorf("upgrade: %v", err)
	}
}
