package loader

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

// How Monitor spaces its looks. What takes long is done less often.
const (
	monitorTick = 100 * time.Millisecond // between two looks at sightings and records
	monitorRest = 10                     // times that a look takes, until the next one,
	monitorMost = time.Second            // but no longer
)

// An Event is something that Monitor tells of: one of these is not nil.
type Event struct {
	Time     time.Time
	Sighting *Sighting
	Link     *Change[Link]
	Parent   *Change[ParentInfo]
	Missed   *watch.Tally // what was to be seen, and was not, since it was told last
}

// A Change is what has become of a parent or a sub-interface.
type Change[T any] struct {
	Was, Is *T // nil: it was not, or is no more
}

// MonitorSpec says what is to be told.
type MonitorSpec struct {
	WatchSpec
	Changes bool // of parents and sub-interfaces
}

// monitor is what Monitor goes by.
type monitor struct {
	h    *Host
	w    *Watcher
	spec MonitorSpec
	tell func(Event) error

	links   []Link
	parents []ParentInfo
	records []record // of the last look
	fresh   bool     // something has changed since
	looked  time.Time
	took    time.Duration

	missed   watch.Tally // that was told of
	missedAt time.Time
}

// linkKey is one life of a sub-interface.
type linkKey struct {
	leg string
	gen uint32
}

func (l *Link) key() linkKey       { return linkKey{l.Leg, l.gen} }
func (p *ParentInfo) key() linkKey { return linkKey{leg: strconv.Itoa(p.folderKey)} }

// record is what of a sub-interface's record is changed without a message.
type record struct {
	parent int // key of its folder
	index  int // of the parent itself
	id     maps.ID
	gen    uint32
	state  maps.State
	mode   maps.Mode
	class  maps.Class
}

// Monitor tells what the programs decide, and what becomes of parents and
// sub-interfaces, until ctx ends, tell fails or what was named is gone. What was
// there from the beginning is no news. The calling thread must be locked.
func (h *Host) Monitor(ctx context.Context, spec MonitorSpec, tell func(Event) error) error {
	fd, err := listen()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	stop, closeStop, err := stopPipe(ctx)
	if err != nil {
		return err
	}
	defer closeStop()
	h.watch = &watched{fd: fd, devices: map[device]*known{}, parents: map[int]bool{}}
	defer func() { h.watch = nil }()
	w, err := h.Watch(spec.WatchSpec)
	if err != nil {
		return err
	}
	m := &monitor{h: h, w: w, spec: spec, tell: tell}
	err = m.run(stop)
	rest, stopErr := w.Stop()
	if err == nil {
		err = m.tellSightings(rest)
	}
	if err == nil {
		m.missedAt = time.Time{}
		err = m.tellMissed()
	}
	return errors.Join(err, stopErr, w.Close())
}

func (m *monitor) run(stop int) error {
	if err := m.look(); err != nil {
		return err
	}
	for {
		fresh, done, err := m.h.await(stop, monitorTick)
		if err != nil {
			return err
		}
		if done {
			return m.look() // the last changes
		}
		seen, err := m.w.Read(time.Now())
		if err != nil {
			return err
		}
		if err := errors.Join(m.tellSightings(seen), m.tellMissed()); err != nil {
			return err
		}
		m.fresh = m.fresh || fresh
		if time.Since(m.looked) < min(monitorRest*m.took, monitorMost) {
			continue
		}
		if fresh, err = m.stirred(); err != nil {
			return err
		}
		if !m.fresh && !fresh {
			continue
		}
		if err := m.look(); err != nil {
			return err
		}
		if gone, err := m.w.Gone(); gone || err != nil {
			return err
		}
	}
}

func (m *monitor) tellSightings(seen []Sighting) error {
	for i := range seen {
		if err := m.tell(Event{Time: seen[i].Time, Sighting: &seen[i]}); err != nil {
			return err
		}
	}
	return nil
}

// tellMissed tells once a second what was not shown.
func (m *monitor) tellMissed() error {
	now := time.Now()
	if now.Sub(m.missedAt) < time.Second {
		return nil
	}
	tally, err := m.w.Tally()
	if err != nil || tally == m.missed {
		return err
	}
	more := watch.Tally{Withheld: tally.Withheld - m.missed.Withheld, Lost: tally.Lost - m.missed.Lost}
	m.missed, m.missedAt = tally, now
	return m.tell(Event{Time: now, Missed: &more})
}

// stirred tells whether parents have come or gone, or records have changed, of
// which no message tells.
func (m *monitor) stirred() (bool, error) {
	var now []record
	err := m.h.eachParent(func(f folder, set *maps.Set, rec maps.Parent) error {
		now = append(now, record{parent: f.key, index: rec.Index, mode: maps.Mode(rec.Rung)})
		subs, err := set.Subs()
		for i, s := range subs {
			if s.State == maps.Active {
				now = append(now, record{f.key, rec.Index, maps.ID(i), s.Gen, s.State, s.Mode, s.Class})
			}
		}
		return err
	})
	changed := !slices.Equal(now, m.records)
	m.records = now
	return changed, err
}

// look compares what there is with what there was, and tells the difference.
func (m *monitor) look() error {
	first := m.links == nil
	start := time.Now()
	m.fresh = false
	m.h.watch.devices = map[device]*known{}
	links, err := m.h.Links()
	if err != nil {
		return err
	}
	infos, err := m.h.Parents()
	if err != nil {
		return err
	}
	if err := m.w.follow(links); err != nil {
		return err
	}
	wasLinks, wasParents := m.links, m.parents
	m.links, m.parents = []Link{}, nil
	for _, l := range links {
		key, id, ours := parseLeg(l.Leg) // on the kernel rung there is none
		if ours && (m.w.parent == 0 || key == m.w.parent) && (m.w.only == 0 || id == m.w.only) {
			m.links = append(m.links, l)
		}
	}
	for _, p := range infos {
		if p.Rung == maps.RungKernel {
			continue
		}
		m.h.watch.devices[device{-1, p.Index}] = &known{}
		if m.w.parent == 0 || p.folderKey == m.w.parent && m.w.only == 0 {
			m.parents = append(m.parents, p)
		}
	}
	defer func() { m.looked, m.took = time.Now(), time.Since(start) }()
	if first || !m.spec.Changes {
		return nil
	}
	for _, c := range differences(wasParents, m.parents, (*ParentInfo).key) {
		if err := m.tell(Event{Time: start, Parent: &c}); err != nil {
			return err
		}
	}
	for _, c := range differences(wasLinks, m.links, (*Link).key) {
		if err := m.tell(Event{Time: start, Link: &c}); err != nil {
			return err
		}
	}
	return nil
}

// differences pairs what was with what is. Whether anything of it has changed that
// matters is known to who shows it.
func differences[T any](was, is []T, key func(*T) linkKey) []Change[T] {
	now := map[linkKey]*T{}
	for i := range is {
		now[key(&is[i])] = &is[i]
	}
	var all []Change[T]
	for i := range was {
		k := key(&was[i])
		all = append(all, Change[T]{&was[i], now[k]})
		delete(now, k)
	}
	for i := range is {
		if now[key(&is[i])] != nil {
			all = append(all, Change[T]{nil, &is[i]})
		}
	}
	return all
}
