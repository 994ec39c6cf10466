package loader

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

// Each who watches a parent holds, for as long as he does, the lock of the place
// he has among bpf.Watchers. So it is known whether a place that the programs
// show frames to has anybody in it.

// watchLock begins the names of these locks.
const watchLock = "watch-"

func (f folder) watchLock(place int) string { return fmt.Sprintf("%s%s-%d", watchLock, f, place) }

// parseWatchLock returns whose a lock is.
func parseWatchLock(name string) (f folder, ok bool) {
	rest, ok := strings.CutPrefix(name, watchLock)
	last := strings.LastIndexByte(rest, '-')
	if !ok || last < 0 {
		return f, false
	}
	return parseFolder(rest[:last])
}

// unwatch empties the places whose watchers were killed. The caller saves the
// record if it says so.
func (p *parent) unwatch() (changed bool, err error) {
	for place := range bpf.Watchers {
		if p.rec.Watched&(1<<place) == 0 {
			continue
		}
		unlock, err := flock(p.folder().watchLock(place), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return changed, err
		}
		err = p.leave(place)
		unlock()
		if err != nil {
			return changed, err
		}
		p.rec.Watched &^= 1 << place
		changed = true
	}
	return changed, nil
}

func (p *parent) leave(place int) error {
	places, err := watch.Open(p.dir)
	if err != nil {
		return err
	}
	return errors.Join(places.Leave(place), places.Close())
}

// WatchSpec says what is to be watched.
type WatchSpec struct {
	Target   Selector       // its Name is a parent's or a sub-interface's, "" means all parents
	Verdicts []maps.Verdict // and watch.EventLearned
	Snap     int            // bytes of each frame at most
	Rate     uint32         // sightings a second and parent at most, 0 for any number
}

// A Watcher sees what the programs of parents decide, until it is closed.
type Watcher struct {
	h      *Host
	spec   WatchSpec
	parent int     // key of its folder, 0 for all
	only   maps.ID // 0 for all
	gen    uint32  // of it
	target Sighting
	reader *watch.Reader
	at     map[int]*watchedParent // by key
	past   watch.Tally            // of parents that are no more
}

// watchedParent is a place taken.
type watchedParent struct {
	folder folder
	index  int // what its sightings say, 0 while it is gone
	name   string
	set    *maps.Set
	places *watch.Places
	place  int
	unlock func() // of the place
	subs   map[maps.ID]named
}

// named is what a sub-interface of this generation was called last.
type named struct {
	gen  uint32
	name string
}

// Sighting is a verdict, with names for people.
type Sighting struct {
	watch.Sighting
	ParentName string
	Name       string // of the sub-interface, "" for the parent itself
}

// Watch begins to watch. It takes the privilege of the programs' loader, and
// changes nothing but that the programs show what they do. The kernel rung, which
// has no programs, is refused.
func (h *Host) Watch(spec WatchSpec) (*Watcher, error) {
	w := &Watcher{h: h, spec: spec, at: map[int]*watchedParent{}}
	if err := w.resolve(); err != nil {
		return nil, err
	}
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	w.reader, err = watch.NewReader()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("watch: %w: it takes CAP_BPF and CAP_PERFMON: %w", ErrPrivilege, err)
	}
	if err != nil {
		return nil, err
	}
	if err := w.follow(links); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// resolve finds out what the target is.
func (w *Watcher) resolve() error {
	t := w.spec.Target
	if t.Name == "" {
		return nil
	}
	parents, err := w.h.Parents()
	if err != nil {
		return err
	}
	for _, p := range parents {
		if p.Name != t.Name || t.Parent != "" || t.Netns != "" {
			continue
		}
		if p.Rung == maps.RungKernel {
			return fmt.Errorf("parent %s: %w", t.Name, kernelUnseen(t.Name))
		}
		w.parent, w.target.ParentName = p.folderKey, p.Name
		return nil
	}
	l, err := w.h.Find(t)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%s: %w: neither a parent nor a sub-interface; `xvlan link show` lists them", t.Name, ErrNotFound)
	}
	if err != nil {
		return err
	}
	if l.Rung.Rung == maps.RungKernel {
		return fmt.Errorf("sub-interface %s: %w", l.Name, kernelUnseen(l.Name))
	}
	key, id, _ := parseLeg(l.Leg)
	w.parent, w.only, w.gen = key, id, l.gen
	w.target.ParentName, w.target.Name, w.target.ID = l.Parent, l.Name, id
	return nil
}

func kernelUnseen(name string) error {
	return fmt.Errorf("%w: it stands on the kernel rung, whose drivers tell nobody what they decide; "+
		"tcpdump -i %s shows its frames", ErrUnsupported, name)
}

// Target is what was named, as a sighting of it would have it.
func (w *Watcher) Target() Sighting { return w.target }

// follow takes a place on each parent that has come, and drops those that are gone.
func (w *Watcher) follow(links []Link) error {
	for key, p := range w.at {
		if p.lives() {
			continue
		}
		delete(w.at, key)
		if err := errors.Join(w.end(p), p.close()); err != nil {
			return err
		}
	}
	for _, p := range w.at { // one may have come back
		rec, err := p.set.Parent()
		if err != nil {
			return err
		}
		p.index, p.name = rec.Index, rec.Name
	}
	folders, err := folders()
	if err != nil {
		return err
	}
	for _, f := range folders {
		if f.cookie != w.h.cookie || w.at[f.key] != nil || w.parent != 0 && f.key != w.parent {
			continue
		}
		p, err := w.begin(f)
		if err != nil {
			return err
		}
		if p != nil {
			w.at[f.key] = p
		}
	}
	for _, l := range links {
		if key, id, ok := parseLeg(l.Leg); ok && w.at[key] != nil {
			w.at[key].subs[id] = named{l.gen, l.Name}
		}
	}
	return nil
}

// begin takes a place on a parent; nil if it is gone.
func (w *Watcher) begin(f folder) (_ *watchedParent, err error) {
	p, unlock, err := w.h.lockFolder(f)
	if p == nil || err != nil {
		return nil, err
	}
	defer unlock()
	defer p.close()
	if _, err := p.unwatch(); err != nil {
		return nil, err
	}
	at := &watchedParent{folder: f, index: p.rec.Index, name: p.rec.Name, subs: map[maps.ID]named{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("watch %s: %w", at.name, err), at.close())
		}
	}()
	if at.set, err = maps.Open(p.dir); err != nil {
		return nil, err
	}
	if at.places, err = watch.Open(p.dir); err != nil {
		return nil, err
	}
	for at.place = range bpf.Watchers {
		at.unlock, err = flock(f.watchLock(at.place), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: %d watch it already", ErrBusy, bpf.Watchers)
	}
	if err != nil {
		return nil, err
	}
	err = at.places.Take(at.place, w.reader, watch.Options{
		Verdicts: w.spec.Verdicts, Only: w.only, Snap: w.spec.Snap, Rate: w.spec.Rate, Window: time.Second,
	})
	if err != nil {
		return nil, err
	}
	if len(w.spec.Verdicts) > 0 {
		p.rec.Watched |= 1 << at.place
	}
	return at, p.save()
}

// lockFolder locks a parent, and opens and locates it; nil if it is detached.
func (h *Host) lockFolder(f folder) (*parent, func(), error) {
	if err := ensureLocks(); err != nil {
		return nil, nil, err
	}
	unlock, err := lockFile(f.String())
	if err != nil {
		return nil, nil, err
	}
	p, err := h.openFolder(f)
	if p != nil && err == nil {
		if err = p.locate(); err != nil {
			p.close()
		}
	}
	if p == nil || err != nil {
		unlock()
		return nil, nil, err
	}
	return p, unlock, nil
}

// lives tells that the parent is attached, and by the programs that are watched.
func (p *watchedParent) lives() bool {
	now, err := maps.Open(p.folder.path())
	if err != nil {
		return false
	}
	defer now.Close()
	is, err1 := now.Instance()
	was, err2 := p.set.Instance()
	return err1 == nil && err2 == nil && is == was
}

// end gives a place back.
func (w *Watcher) end(at *watchedParent) error {
	p, unlock, err := w.h.lockFolder(at.folder)
	if p != nil {
		p.rec.Watched &^= 1 << at.place
		err = p.save()
		p.close()
		unlock()
	}
	t, tallyErr := at.places.Tally(at.place)
	w.past.Withheld += t.Withheld
	w.past.Lost += t.Lost
	return errors.Join(err, tallyErr, at.places.Leave(at.place))
}

// close closes what is open.
func (p *watchedParent) close() error {
	var errs []error
	if p.set != nil {
		errs = append(errs, p.set.Close())
	}
	if p.places != nil {
		errs = append(errs, p.places.Close())
	}
	if p.unlock != nil {
		p.unlock()
	}
	return errors.Join(errs...)
}

// Gone tells whether what was to be watched is no more.
func (w *Watcher) Gone() (bool, error) {
	if w.parent == 0 {
		return false, nil
	}
	p := w.at[w.parent]
	if p == nil || !p.lives() {
		return true, nil
	}
	if w.only == 0 {
		return false, nil
	}
	sub, err := p.set.Sub(w.only)
	return sub.State == maps.Free || sub.Gen != w.gen, err
}

// Read returns what is seen until a moment: see watch.Reader.Read.
func (w *Watcher) Read(until time.Time) ([]Sighting, error) {
	seen, err := w.reader.Read(until)
	return w.name(seen), err
}

// Stop ends the watching and returns what was still to be read.
func (w *Watcher) Stop() ([]Sighting, error) {
	var errs []error
	for _, p := range w.at {
		errs = append(errs, w.end(p))
	}
	seen, err := w.reader.Rest()
	rest := w.name(seen)
	for _, p := range w.at {
		errs = append(errs, p.close())
	}
	w.at = nil
	return rest, errors.Join(append(errs, err)...)
}

func (w *Watcher) name(seen []watch.Sighting) []Sighting {
	all := make([]Sighting, len(seen))
	for i, s := range seen {
		all[i].Sighting = s
		for _, p := range w.at {
			if p.index == s.Parent {
				all[i].ParentName, all[i].Name = p.name, p.nameOf(s.ID)
			}
		}
	}
	return all
}

// nameOf returns what a sub-interface is called. Of one that is new only the name
// is known that it was made with.
func (p *watchedParent) nameOf(id maps.ID) string {
	if id == 0 {
		return ""
	}
	sub, err := p.set.Sub(id)
	if err == nil && sub.State != maps.Free && sub.Gen != p.subs[id].gen {
		p.subs[id] = named{sub.Gen, sub.Name}
	}
	return p.subs[id].name
}

// Close ends the watching.
func (w *Watcher) Close() error {
	_, err := w.Stop() // for the second time, mostly
	return errors.Join(err, w.reader.Close())
}

// Tally counts what was to be seen and was not.
func (w *Watcher) Tally() (watch.Tally, error) {
	sum := w.past
	for _, p := range w.at {
		t, err := p.places.Tally(p.place)
		if err != nil {
			return sum, err
		}
		sum.Withheld += t.Withheld
		sum.Lost += t.Lost
	}
	return sum, nil
}
