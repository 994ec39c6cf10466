package loader

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/maps"
)

// lookShare is the part of the time, one in so many, that a Meter may take to
// look up names and devices again.
const lookShare = 50

// A Meter reads counters again and again, and tells by how much they grew. Each
// time it reads what is in the maps. Names and devices, which take most of the
// time that Links takes, it looks up when a sub-interface is new, and otherwise
// so seldom that the looking takes a fiftieth of the time at most: with few
// sub-interfaces each time, with a thousand every few seconds.
//
// It is the Host's caller's, for one thread, and holds nothing open.
type Meter struct {
	h      *Host
	known  map[meterKey]*metered
	looked time.Time     // when names and devices were looked up,
	took   time.Duration // and how long that took
}

// NewMeter makes a Meter of all sub-interfaces of the namespace.
func (h *Host) NewMeter() *Meter { return &Meter{h: h, known: map[meterKey]*metered{}} }

// Flow is what a sub-interface has counted since the reading before.
type Flow struct {
	Link                // its Stats are those of this reading
	Since time.Duration // since the reading before; 0 if these counters go on from none
	Delta maps.Stats    // by how much they grew meanwhile
}

// meterKey is one life of one sub-interface's counters: who is made in its
// place, or on the parent when that is attached anew, has another.
type meterKey struct {
	set ebpf.MapID
	id  maps.ID
	gen uint32

	space string // on the kernel rung, which has only these two
	index int
}

// metered is what is known from the reading before.
type metered struct {
	link   *Link // nil: it has no device
	kernel kernelLink
	at     time.Time
	stats  maps.Stats
}

// reading is one sub-interface's counters at a moment.
type reading struct {
	key   meterKey
	sub   maps.Sub // not on the kernel rung
	at    time.Time
	stats maps.Stats
}

// Read reads all counters, in no order. What is new is there at once; what is
// renamed, moved, set up or down, or new on the kernel rung, may take a few
// readings to be shown so.
func (m *Meter) Read() ([]Flow, error) {
	readings, err := m.read()
	if err != nil {
		return nil, err
	}
	if m.due(readings) {
		if err := m.look(); err != nil {
			return nil, err
		}
	}
	kernel, err := m.readKernel()
	if err != nil {
		return nil, err
	}
	was := m.known
	m.known = make(map[meterKey]*metered, len(was))
	var flows []Flow
	for _, r := range append(readings, kernel...) {
		k := was[r.key]
		if k == nil {
			k = &metered{} // made, or gone, between the two
		}
		m.known[r.key] = k
		if k.link != nil {
			flows = append(flows, k.flow(r))
		}
	}
	return flows, nil
}

// flow takes the next reading.
func (k *metered) flow(r reading) Flow {
	f := Flow{Link: *k.link}
	if r.key.set != 0 { // what is changed while in use
		f.Mode, f.Class = r.sub.Mode, r.sub.Class
		// What no map holds, as of the last look at the devices.
		r.stats[maps.DropRing], r.stats[maps.DropRingTX] = f.Stats[maps.DropRing], f.Stats[maps.DropRingTX]
	}
	f.Stats = r.stats
	if delta, ok := grown(k.stats, r.stats); ok && !k.at.IsZero() {
		f.Since, f.Delta = r.at.Sub(k.at), delta
	}
	k.at, k.stats = r.at, r.stats
	return f
}

// grown subtracts; ok is false where a counter has begun anew.
func grown(was, is maps.Stats) (delta maps.Stats, ok bool) {
	for v := range is {
		if is[v].Packets < was[v].Packets || is[v].Bytes < was[v].Bytes {
			return maps.Stats{}, false
		}
		delta[v] = maps.Counter{Packets: is[v].Packets - was[v].Packets, Bytes: is[v].Bytes - was[v].Bytes}
	}
	return delta, true
}

// read reads the maps of all parents.
func (m *Meter) read() ([]reading, error) {
	var all []reading
	err := m.h.eachParent(func(_ folder, set *maps.Set, _ maps.Parent) error {
		instance, err := set.Instance()
		if err != nil {
			return err
		}
		subs, err := set.Subs()
		if err != nil {
			return err
		}
		stats, err := set.AllStats()
		if err != nil {
			return err
		}
		now := time.Now()
		for i, s := range subs {
			if s.State == maps.Active {
				key := meterKey{set: instance, id: maps.ID(i), gen: s.Gen}
				all = append(all, reading{key, s, now, stats[i]})
			}
		}
		return nil
	})
	return all, err
}

// due tells whether names and devices have to be looked up.
func (m *Meter) due(readings []reading) bool {
	if time.Since(m.looked) >= lookShare*m.took {
		return true
	}
	for _, r := range readings {
		if m.known[r.key] == nil {
			return true
		}
	}
	return false
}

// look looks up names and devices.
func (m *Meter) look() error {
	start := time.Now()
	m.looked = time.Time{} // not, if this fails
	for _, k := range m.known {
		k.link = nil
	}
	names, err := m.h.spaceNames()
	if err != nil {
		return err
	}
	err = m.h.eachParent(func(f folder, set *maps.Set, rec maps.Parent) error {
		instance, err := set.Instance()
		if err != nil {
			return err
		}
		links, err := m.h.linksOf(f, set, rec, names, 0)
		for _, l := range links {
			m.put(meterKey{set: instance, id: l.ID, gen: l.gen}, l).kernel = kernelLink{}
		}
		return err
	})
	if err != nil {
		return err
	}
	kernel, err := m.h.kernelLinks(0)
	if err != nil {
		return err
	}
	for _, k := range kernel {
		l, err := m.h.fromKernel(k)
		if err != nil {
			return err
		}
		m.put(meterKey{space: k.space, index: l.Index}, l).kernel = k
	}
	m.looked, m.took = time.Now(), time.Since(start)
	return nil
}

func (m *Meter) put(key meterKey, l Link) *metered {
	k := m.known[key]
	if k == nil {
		k = &metered{}
		m.known[key] = k
	}
	k.link = &l
	return k
}

// readKernel reads the devices of the kernel rung, which count by themselves.
func (m *Meter) readKernel() ([]reading, error) {
	var all []reading
	for key, k := range m.known {
		if k.link == nil || key.set != 0 {
			continue
		}
		dev, err := k.kernel.again()
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid) {
			continue // gone, or its namespace
		}
		if err != nil {
			return nil, fmt.Errorf("read counters of %s: %w", k.link.Name, err)
		}
		all = append(all, reading{key: key, at: time.Now(), stats: deviceStats(dev)})
	}
	return all, nil
}
