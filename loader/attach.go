package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

// Pins in a parent's folder besides the maps, which carry their own names.
const (
	pinRX   = "rx"    // tcx link of the parent
	pinXDP  = "xdp"   // XDP link of the parent
	pinHost = "host"  // tcx link of the parent's egress
	pinLeg  = "leg-"  // and the id: tcx link of a host leg, or the netkit link
	pinTurn = "turn-" // and the id: tcx link of a netkit's host leg

	// Programs: those that later calls need, and all whose running is counted.
	pinTX       = bpf.XvlanProgXvlanTx
	pinMeet     = bpf.XvlanProgXvlanMeet
	pinTurnProg = bpf.XvlanProgXvlanTurn
	pinRXProg   = bpf.XvlanProgXvlanRx
	pinXDPProg  = bpf.XvlanProgXvlanXdp
	pinHostProg = bpf.XvlanProgXvlanHost
)

// parent is an attached parent whose lock is held.
type parent struct {
	h    *Host
	link netlink.Link // nil while it is gone
	key  int          // of its folder
	dir  string
	maps *maps.Set
	rec  maps.Parent
	back bool // its device has just come
	left bool // the last look has left some sub-interfaces out
}

func (p *parent) close() {
	if err := p.maps.Close(); err != nil {
		p.h.log.Warn("close maps", "parent", p.rec.Name, "err", err)
	}
}

func (p *parent) folder() folder { return p.h.folder(p.key) }

func (p *parent) legName(id maps.ID) string { return legName(p.key, id) }

// open opens what is attached to a device; nil if nothing is. The caller holds
// the lock.
func (h *Host) open(l netlink.Link) (*parent, error) {
	f, ok, err := h.folderOf(l.Attrs().Index)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, hidden()
	}
	p, err := h.openFolder(f)
	if p != nil {
		p.link = l
	}
	return p, err
}

// openFolder opens a parent that is still to be located; nil if it is detached.
// The caller holds the lock.
func (h *Host) openFolder(f folder) (*parent, error) {
	set, err := h.openMaps(f)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rec, err := set.Parent()
	if err != nil {
		return nil, errors.Join(err, set.Close())
	}
	set.Keep()
	return &parent{h: h, key: f.key, dir: f.path(), maps: set, rec: rec}, nil
}

// openMaps opens the maps in a parent's folder; its errors name the parent.
func (h *Host) openMaps(f folder) (*maps.Set, error) {
	set, err := maps.Open(f.path())
	if err == nil {
		return set, nil
	}
	name := h.nameOf(f.key)
	if errors.Is(err, maps.ErrOlder) {
		return nil, fmt.Errorf("parent %s: %w; carry them over: xvlan parent upgrade", name, err)
	}
	if errors.Is(err, maps.ErrSchema) {
		return nil, fmt.Errorf("parent %s: %w; use the xvlan that made them, or remove them: rm -r %s", name, err, f.path())
	}
	return nil, fmt.Errorf("parent %s: %w", name, err)
}

// attach attaches a parent that nobody has attached. The caller holds the lock.
func (h *Host) attach(l netlink.Link, rung Rung, spec AttachSpec) (*parent, error) {
	if err := ensureFS(); err != nil {
		return nil, err
	}
	f, _, err := h.folderOf(l.Attrs().Index)
	if err != nil {
		return nil, err
	}
	dir := f.path() + building
	if err := h.teardown(f, dir); err != nil {
		return nil, fmt.Errorf("clear what an interrupted attach left: %w", err)
	}
	if err := errors.Join(h.removeLegs(f.key), h.removePending(l.Attrs().Index)); err != nil {
		return nil, err
	}
	p, err := h.build(l, f, dir, rung, spec)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach to %s: %w", l.Attrs().Name, err),
			h.teardown(f, dir))
	}
	return p, nil
}

// build loads everything into the folder dir, attaches it, and renames the
// folder to its final name: whoever finds that, finds it complete.
func (h *Host) build(l netlink.Link, f folder, dir string, rung Rung, spec AttachSpec) (*parent, error) {
	if spec.Capacity == 0 {
		spec.Capacity = DefaultCapacity
	}
	coll, err := bpf.Load(spec.Capacity)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	set, err := maps.New(coll)
	if err != nil {
		return nil, err
	}
	set.Keep()
	attrs := l.Attrs()
	p := &parent{h: h, link: l, key: f.key, dir: dir, maps: set, rec: maps.Parent{
		Schema:      bpf.Schema,
		Capacity:    spec.Capacity,
		Index:       attrs.Index,
		MTU:         attrs.MTU,
		UnknownDrop: spec.Unknown == UnknownDrop,
		Keep:        spec.Keep,
		Rung:        rung.Rung,
		MAC:         attrs.HardwareAddr,
		Name:        attrs.Name,
		Reason:      rung.Reason,
	}}
	if err := p.hook(coll); err != nil {
		return nil, errors.Join(err, set.Close())
	}
	p.dir = f.path()
	if err := os.Rename(dir, p.dir); err != nil {
		return nil, errors.Join(fmt.Errorf("publish pins: %w", err), set.Close())
	}
	return p, nil
}

// hook pins maps and programs, then attaches them to the parent. What must be
// put back later is written down before it is changed.
func (p *parent) hook(coll *ebpf.Collection) error {
	if err := p.save(); err != nil {
		return err
	}
	if err := pinAll(p.maps, coll, p.dir); err != nil {
		return err
	}
	if err := p.attachRung(coll); err != nil {
		return err
	}
	return p.prepare(nil, nil)
}

// pinAll makes a folder and pins maps and programs in it.
func pinAll(set *maps.Set, coll *ebpf.Collection, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make pin folder: %w", err)
	}
	if err := errors.Join(set.Pin(dir), watch.Pin(coll, dir)); err != nil {
		return err
	}
	for _, prog := range pinnedPrograms {
		if err := coll.Programs[prog].Pin(filepath.Join(dir, prog)); err != nil {
			return fmt.Errorf("pin program: %w", err)
		}
	}
	return nil
}

// attachRung attaches the parent's programs, and steps down from xdp, saying
// why, where it was not asked for and cannot be had.
func (p *parent) attachRung(coll *ebpf.Collection) error {
	index := p.rec.Index
	err := p.h.attachTC(p.parentHooks()[0], coll.Programs[bpf.XvlanProgXvlanRx], func() error {
		p.rec.AddClsact = true
		return p.save()
	})
	if err != nil || p.rec.Rung != maps.RungXDP {
		return err
	}
	return p.stepDown(attachXDP(index, coll.Programs[bpf.XvlanProgXvlanXdp], filepath.Join(p.dir, pinXDP)))
}

// stepDown makes of an error of attaching XDP that the parent stands a rung lower,
// if that is what it says and XDP was not asked for.
func (p *parent) stepDown(err error) error {
	if err == nil || !unsupported(err) {
		return err
	}
	if p.rec.Reason == askedFor {
		return fmt.Errorf("datapath xdp: %w: %w; leave --datapath out or ask for tc", ErrUnsupported, err)
	}
	p.rec.Rung, p.rec.Reason = maps.RungTC, noXDP(err)
	p.h.log.Info("stepped down", "parent", p.rec.Name, "rung", p.rec.Rung, "reason", p.rec.Reason)
	return p.save()
}

func (p *parent) save() error { return p.maps.PutParent(p.rec) }

// teardown removes all that stands in a folder, complete or not: sub-interfaces,
// programs, and what was changed on the parent, which may be gone itself. The
// caller holds the lock.
func (h *Host) teardown(f folder, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("find pins: %w", err)
	}
	set, err := maps.Open(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if set != nil {
		defer set.Close()
		set.Keep()
	}
	// First of all it loses its final name: an interrupted teardown is then
	// gone on with by the next command, not taken for an attached parent.
	if !strings.HasSuffix(dir, building) {
		if err := h.teardown(f, dir+building); err != nil {
			return err
		}
		if err := os.Rename(dir, dir+building); err != nil {
			return fmt.Errorf("withdraw pins: %w", err)
		}
		dir += building
	}
	if set == nil { // nothing was attached yet, or all is detached already
		return removePins(dir)
	}
	rec, err := set.Parent()
	if err != nil {
		return err
	}
	p := &parent{h: h, key: f.key, dir: dir, maps: set, rec: rec}
	if p.link, err = h.parentDevice(f, dir, rec); err != nil {
		return err
	}
	if p.link != nil && p.link.Attrs().Index != rec.Index {
		p.link = nil // another one, which has not been touched
	}
	if err := p.removeAll(); err != nil {
		return err
	}
	if err := p.putBack(); err != nil {
		return err
	}
	return removePins(dir)
}

// putBack leaves the parent as it was found.
func (p *parent) putBack() error {
	if p.link == nil {
		return nil
	}
	for _, pin := range []string{pinHost, pinXDP, pinRX} {
		if err := detachLink(filepath.Join(p.dir, pin)); err != nil {
			return err
		}
	}
	if p.rec.SetAllmulti {
		if err := p.h.nl.LinkSetAllmulticastOff(p.link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("turn allmulticast off: %w", err)
		}
	}
	if err := p.closeTags(); err != nil {
		return err
	}
	if err := p.h.detachClsact(p.link, p.rec.AddClsact); err != nil {
		return err
	}
	p.rec.SetAllmulti, p.rec.AddClsact = false, false
	if err := p.save(); err != nil {
		return err
	}
	return p.forward(false)
}

// Attach attaches a parent that no sub-interface has to be on yet, or changes
// the policy of one that is attached.
func (h *Host) Attach(name string, spec AttachSpec) error {
	l, unlock, err := h.lockParent(name)
	if err != nil {
		return err
	}
	defer unlock()
	p, rung, err := h.openOn(l, spec.Datapath)
	if err != nil {
		return err
	}
	if rung.Rung == maps.RungKernel {
		return kernelAttach(name, rung)
	}
	if p == nil {
		if p, err = h.attach(l, rung, spec); err != nil {
			return err
		}
		defer p.close()
		if err := p.refresh(); err != nil {
			return errors.Join(err, h.teardown(p.folder(), p.dir))
		}
		return nil
	}
	defer p.close()
	if err := p.checkCapacity(spec.Capacity); err != nil {
		return err
	}
	if spec.Unknown != "" {
		p.rec.UnknownDrop = spec.Unknown == UnknownDrop
	}
	p.rec.Keep = p.rec.Keep || spec.Keep
	return p.save()
}

func kernelAttach(name string, rung Rung) error {
	return fmt.Errorf("parent %s: %w: the kernel rung attaches nothing (%s)", name, ErrUnsupported, rung.Reason)
}

func (p *parent) checkCapacity(want uint32) error {
	if want == 0 || want == p.rec.Capacity {
		return nil
	}
	return fmt.Errorf("parent %s: capacity %d: %w: it was attached for %d; detach it first", p.rec.Name, want, ErrExists, p.rec.Capacity)
}

// Detach removes all sub-interfaces of a parent, which may be gone, and leaves it
// as it was found.
func (h *Host) Detach(name string) error {
	l, unlock, err := h.lockParent(name)
	if errors.Is(err, ErrNotFound) {
		return h.detachGone(name, err)
	}
	if err != nil {
		return err
	}
	defer unlock()
	p, err := h.open(l)
	if err != nil {
		return err
	}
	if err := h.removePending(l.Attrs().Index); err != nil {
		return err
	}
	kernel, err := h.kernelLinks(l.Attrs().Index)
	if err != nil {
		return err
	}
	if p == nil && len(kernel) == 0 {
		return fmt.Errorf("parent %s: %w: nothing of xvlan is attached to it", name, ErrNotFound)
	}
	for _, k := range kernel {
		if err := h.delKernel(k); err != nil {
			return err
		}
	}
	if p == nil {
		return nil
	}
	p.close()
	return h.teardown(p.folder(), p.dir)
}

// detachGone is Detach for a parent that is gone; otherwise it fails as it was
// found not to be there.
func (h *Host) detachGone(name string, notFound error) error {
	p, unlock, err := h.lockGone(name)
	if err != nil {
		return err
	}
	if p == nil {
		return notFound
	}
	defer unlock()
	p.close()
	return h.teardown(p.folder(), p.dir)
}

// lockGone finds a parent that is gone by the name that it had, and takes its lock;
// nil if there is none.
func (h *Host) lockGone(name string) (*parent, func(), error) {
	if err := h.sweepDead(folder{}); err != nil {
		return nil, nil, err
	}
	all, err := folders()
	if err != nil {
		return nil, nil, err
	}
	for _, f := range all {
		if rec, err := maps.ReadParent(f.path()); f.cookie != h.cookie || err != nil || rec.Index != 0 || rec.Name != name {
			continue
		}
		p, unlock, err := h.lockFolder(f)
		if err != nil {
			return nil, nil, err
		}
		if p == nil {
			continue
		}
		if p.link == nil && p.rec.Name == name {
			return p, unlock, nil
		}
		p.close()
		unlock()
	}
	return nil, nil, nil
}

// lockParent finds a parent and takes its lock.
func (h *Host) lockParent(name string) (netlink.Link, func(), error) {
	l, err := h.parentLink(name)
	if err != nil {
		return nil, nil, err
	}
	if err := ensureLocks(); err != nil {
		return nil, nil, err
	}
	if err := h.sweepDead(folder{}); err != nil {
		return nil, nil, err
	}
	for {
		was, err := h.settle(l)
		if err != nil {
			return nil, nil, err
		}
		unlock, err := lockFile(was.String())
		if err != nil {
			return nil, nil, err
		}
		// It may have been changed, or removed, while the lock was waited for.
		f := was
		if l, err = h.parentLink(name); err == nil {
			f, _, err = h.folderOf(l.Attrs().Index)
		}
		if err == nil && f == was {
			return l, unlock, nil
		}
		unlock()
		if err != nil {
			return nil, nil, err
		}
	}
}

// openOn opens what is attached to a device, nil if nothing is, and says which
// rung the device stands on, or is to stand on. A wish for another than it stands
// on is refused. The caller holds the lock.
func (h *Host) openOn(l netlink.Link, want Datapath) (p *parent, rung Rung, err error) {
	if p, err = h.open(l); err != nil {
		return nil, Rung{}, err
	}
	if p != nil {
		rung = Rung{p.rec.Rung, p.rec.Reason}
	} else {
		kernel, err := h.kernelLinks(l.Attrs().Index)
		if err != nil {
			return nil, Rung{}, err
		}
		if len(kernel) == 0 {
			rung, err = h.choose(l, want)
			return nil, rung, err
		}
		rung = Rung{maps.RungKernel, kernel[0].reason()}
	}
	if want != Auto && string(want) != rung.String() {
		if p != nil {
			p.close()
		}
		return nil, Rung{}, fmt.Errorf("datapath %s: %w: %s stands on %s; detach it first: xvlan parent detach %[3]s",
			want, ErrExists, l.Attrs().Name, rung)
	}
	return p, rung, nil
}
