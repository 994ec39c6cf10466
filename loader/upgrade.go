package loader

import (
	"errors"
	"fmt"
	"io/fs"
	stdmaps "maps"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

// Upgrade puts this xvlan's programs in the place of those that another
// version has attached to a parent, on the same maps: a device at a time, in one
// step each, so that no frame is lost and every counter goes on. changed is
// false where they are the same. What fails leaves the old ones at work; what is
// interrupted leaves both, which work together, and is completed by the next
// call. Maps of an older schema are carried over into new ones, see migrate; those
// of a newer are refused with maps.ErrSchema.
func (h *Host) Upgrade(name string) (changed bool, err error) {
	p, unlock, err := h.lockGone(name)
	var l netlink.Link
	if p == nil && err == nil {
		l, unlock, err = h.lockParent(name)
	}
	if err != nil {
		return false, err
	}
	defer unlock()
	if p == nil {
		p, err = h.open(l)
	}
	switch {
	case errors.Is(err, maps.ErrOlder):
		return true, h.migrate(l)
	case err != nil:
		return false, err
	case p == nil:
		return false, fmt.Errorf("parent %s: %w; it is attached with its first sub-interface, and nothing is on rung kernel", name, ErrNotFound)
	}
	defer p.close()
	if err := p.refresh(); err != nil {
		return false, err
	}
	coll, err := p.loadOn(bpf.LoadXvlan)
	if err != nil {
		return false, err
	}
	defer coll.Close()
	if same, err := p.runs(coll); err != nil || same {
		return false, err
	}
	return true, p.swap(coll)
}

// loadOn loads programs for the parent's maps, and those for who watches. Where these
// are missing, of an older version, the programs cannot be watched.
func (p *parent) loadOn(read func() (*ebpf.CollectionSpec, error)) (*ebpf.Collection, error) {
	all := p.maps.Maps()
	places, err := watch.Open(p.dir)
	switch {
	case err == nil:
		defer places.Close()
		stdmaps.Copy(all, places.Maps())
	case !errors.Is(err, watch.ErrOld):
		return nil, err
	}
	return bpf.LoadOn(read, p.rec.Capacity, all)
}

// pinnedPrograms are the programs that have pins.
var pinnedPrograms = []string{pinTX, pinTurnProg, pinMeet, pinRXProg, pinXDPProg, pinHostProg}

// runs tells whether the pinned programs are those of a collection.
func (p *parent) runs(coll *ebpf.Collection) (bool, error) {
	for _, name := range pinnedPrograms {
		old, err := ebpf.LoadPinnedProgram(filepath.Join(p.dir, name), nil)
		if err != nil {
			return false, fmt.Errorf("open pinned program: %w", err)
		}
		was, err := old.Info()
		old.Close()
		if err != nil {
			return false, fmt.Errorf("read program: %w", err)
		}
		is, err := coll.Programs[name].Info()
		if err != nil {
			return false, fmt.Errorf("read program: %w", err)
		}
		if was.Tag != is.Tag {
			return false, nil
		}
	}
	return true, nil
}

// swap attaches a collection's programs in the place of those that are, and puts
// these back where it fails. The pins come last: as long as they are the old
// programs', an interrupted swap is not taken for done.
func (p *parent) swap(coll *ebpf.Collection) error {
	if err := p.replace(coll, func() error { return nil }); err != nil {
		return err
	}
	for _, name := range pinnedPrograms {
		if err := repin(coll.Programs[name], filepath.Join(p.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// replace attaches a collection's programs in the place of the pinned ones and
// calls then. If either fails, the pinned ones are put back. What somebody has
// detached stays so.
func (p *parent) replace(coll *ebpf.Collection, then func() error) (err error) {
	old := map[string]*ebpf.Program{}
	defer func() {
		for _, prog := range old {
			prog.Close()
		}
	}()
	hooks, err := p.hooks()
	if err != nil {
		return err
	}
	for _, hook := range hooks { // an older version has not all that have pins now
		if old[hook.prog] != nil {
			continue
		}
		if old[hook.prog], err = ebpf.LoadPinnedProgram(filepath.Join(p.dir, hook.prog), nil); err != nil {
			return fmt.Errorf("open pinned program: %w", err)
		}
	}
	var done []hook
	defer func() {
		if err == nil {
			return
		}
		for _, hook := range done {
			err = errors.Join(err, p.h.put(hook, old[hook.prog]))
		}
	}()
	for _, hook := range hooks {
		if there, err := p.h.attached(hook); err != nil {
			return err
		} else if !there {
			continue
		}
		if err := p.h.put(hook, coll.Programs[hook.prog]); err != nil {
			return fmt.Errorf("replace %s: %w", hook.prog, err)
		}
		done = append(done, hook)
	}
	return then()
}

// repin pins a program where another is pinned, in one step.
func repin(prog *ebpf.Program, pin string) error {
	next := pin + building
	if err := unpin(next); err != nil {
		return err
	}
	// A clone, since a program remembers one pin.
	clone, err := prog.Clone()
	if err != nil {
		return fmt.Errorf("pin program: %w", err)
	}
	defer clone.Close()
	if err := clone.Pin(next); err != nil {
		return fmt.Errorf("pin program: %w", err)
	}
	if err := os.Rename(next, pin); err != nil {
		return errors.Join(fmt.Errorf("pin program: %w", err), unpin(next))
	}
	return nil
}

// A hook is where one of the programs is attached.
type hook struct {
	prog  string // the pin of the program
	index int    // the device's
	pin   string // the link's; there is none where a clsact filter holds the program

	egress bool // at tc egress, not ingress

	// How it is attached by a link and pinned; nil at tc, see attachTC.
	link func(index int, prog *ebpf.Program, pin string) error
}

// hooks lists where the programs are to be attached: first the host legs, so
// that the parent's new programs find new ones behind them.
func (p *parent) hooks() ([]hook, error) {
	subs, err := p.maps.Subs()
	if err != nil {
		return nil, err
	}
	var all []hook
	for i, s := range subs {
		if s.State == maps.Active {
			all = append(all, p.legHooks(maps.ID(i), s)...)
		}
	}
	return append(all, p.parentHooks()...), nil
}

// parentHooks are those of hooks that are on the parent; there are none while it is
// gone.
func (p *parent) parentHooks() []hook {
	if p.rec.Index == 0 {
		return nil
	}
	all := []hook{{prog: pinRXProg, index: p.rec.Index, pin: filepath.Join(p.dir, pinRX)}}
	if p.rec.Rung == maps.RungXDP {
		all = append(all, hook{prog: pinXDPProg, index: p.rec.Index, pin: filepath.Join(p.dir, pinXDP), link: attachXDP})
	}
	if p.rec.Hosts > 0 {
		all = append(all, p.hostHook())
	}
	return all
}

// legHooks are the hooks of one sub-interface. What xvlan_tx marks xvlan_turn takes,
// so that one comes first.
func (p *parent) legHooks(id maps.ID, s maps.Sub) []hook {
	if !s.Netkit {
		return []hook{{prog: pinTX, index: s.Leg, pin: p.pin(pinLeg, id)}}
	}
	return []hook{
		{prog: pinTurnProg, index: s.Leg, pin: p.pin(pinTurn, id)},
		{prog: pinTX, index: s.Leg, pin: p.pin(pinLeg, id), link: attachNetkit},
	}
}

// put attaches a program in place of what is there, in one step.
func (h *Host) put(at hook, prog *ebpf.Program) error {
	l, err := link.LoadPinnedLink(at.pin, nil)
	if errors.Is(err, fs.ErrNotExist) && at.link == nil {
		return h.nl.FilterReplace(filterOf(at, prog))
	}
	if err != nil {
		return fmt.Errorf("open pinned link: %w", err)
	}
	defer l.Close()
	return l.Update(prog)
}

func filterOf(at hook, prog *ebpf.Program) netlink.Filter {
	return &netlink.BpfFilter{FilterAttrs: filterAttrs(at.index, at.egress), Fd: prog.FD(), Name: "xvlan", DirectAction: true}
}
