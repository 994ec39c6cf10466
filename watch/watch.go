// Package watch shows what a parent's programs decide, while they do. Whoever
// watches takes one of a few places that a parent has for that, and gives a
// buffer of his own; package loader sees to it that a place is one watcher's and
// that the programs know of it: see maps.Parent.Watched.
package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
)

// EventLearned is no verdict, but seen like one: an address was learned from
// the frame.
const EventLearned = maps.Verdict(bpf.XvlanVerdictEVENT_LEARNED)

// MaxSnap is how much of a frame can be seen at most, in bytes: with its head a
// record has to fit into 64 KiB.
const MaxSnap = 65400

// ErrOld is returned where there are no places.
var ErrOld = errors.New("attached by a version of xvlan that cannot be watched; detach the parent and attach it again")

// Options say what is to be seen.
type Options struct {
	Verdicts []maps.Verdict // and EventLearned
	Only     maps.ID        // of one sub-interface, if it is not 0
	Snap     int            // bytes of each frame at most, up to MaxSnap
	Rate     uint32         // so many in a window at most, 0 for any number
	Window   time.Duration
}

// Tally counts what was to be seen and was not.
type Tally struct {
	Withheld uint64 // over the rate
	Lost     uint64 // the buffer was full
}

// Places are those of one parent.
type Places struct {
	watchers  *ebpf.Map
	sightings *ebpf.Map
	mem       *ebpf.Memory // of watchers
}

// pins are the names of the maps and of their pins.
var pins = [...]string{bpf.MapWatchers, bpf.XvlanMapSightings}

// Pin pins the maps of a collection in dir.
func Pin(coll *ebpf.Collection, dir string) error {
	for _, name := range pins {
		if err := coll.Maps[name].Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

// Open opens those that are pinned in dir. It returns ErrOld if there are none.
func Open(dir string) (*Places, error) {
	var opened [len(pins)]*ebpf.Map
	for i, name := range pins {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrOld
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open pinned map %s: %w", name, err), opened[0].Close())
		}
		opened[i] = m
	}
	return newPlaces(opened[0], opened[1])
}

// Of takes those of a collection over.
func Of(coll *ebpf.Collection) (*Places, error) {
	return newPlaces(coll.DetachMap(pins[0]), coll.DetachMap(pins[1]))
}

func newPlaces(watchers, sightings *ebpf.Map) (*Places, error) {
	mem, err := watchers.Memory()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map watchers: %w", err), watchers.Close(), sightings.Close())
	}
	return &Places{watchers, sightings, mem}, nil
}

// Close closes the maps; the places stay as they are.
func (p *Places) Close() error { return errors.Join(p.watchers.Close(), p.sightings.Close()) }

// Maps are both maps by name, for programs that are to be watched by them.
func (p *Places) Maps() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{pins[0]: p.watchers, pins[1]: p.sightings}
}

// Take prepares a place, 0 to bpf.Watchers-1, which has to be the caller's: what is
// seen goes to the reader as soon as the programs know of the place. It can be
// said again with other options.
func (p *Places) Take(place int, r *Reader, opts Options) error {
	w := bpf.XvlanWatcher{
		Only: uint32(opts.Only), Snap: uint32(min(opts.Snap, MaxSnap)),
		Rate: opts.Rate, WindowNs: uint64(opts.Window),
	}
	for _, v := range opts.Verdicts {
		w.Verdicts |= 1 << v
	}
	if err := p.write(place, &w); err != nil {
		return err
	}
	if err := p.sightings.Put(uint32(place), r.sightings); err != nil {
		return fmt.Errorf("give buffer to place %d: %w", place, err)
	}
	return nil
}

// Leave takes the buffer out of a place; one that is empty is no error.
func (p *Places) Leave(place int) error {
	if err := p.sightings.Delete(uint32(place)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("leave place %d: %w", place, err)
	}
	return nil
}

var watcherSize = int64(binary.Size(bpf.XvlanWatcher{}))

func (p *Places) write(place int, w *bpf.XvlanWatcher) error {
	raw, err := binary.Append(nil, binary.NativeEndian, w)
	if err == nil {
		_, err = p.mem.WriteAt(raw, int64(place)*watcherSize)
	}
	if err != nil {
		return fmt.Errorf("write to place %d: %w", place, err)
	}
	return nil
}

// Tally reads what a place has counted since it was taken.
func (p *Places) Tally(place int) (Tally, error) {
	raw, err := io.ReadAll(io.NewSectionReader(p.mem, int64(place)*watcherSize, watcherSize))
	var w bpf.XvlanWatcher
	if err == nil {
		err = binary.Read(bytes.NewReader(raw), binary.NativeEndian, &w)
	}
	if err != nil {
		return Tally{}, fmt.Errorf("read place %d: %w", place, err)
	}
	return Tally{Withheld: w.Withheld, Lost: w.Lost}, nil
}
