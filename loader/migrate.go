package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
)

// migrate replaces programs and maps of an older schema by this xvlan's, a device
// at a time. Until all devices run the new programs each has what it needs, since
// both sets of maps say the same. The new folder takes the old one's place last, in
// one step: what fails before leaves the old one, with its programs; what is
// interrupted before also leaves the old one, but the new programs where they are
// attached already, and is begun anew by the next call. The caller holds the lock.
func (h *Host) migrate(l netlink.Link) error {
	f, _, err := h.folderOf(l.Attrs().Index)
	if err != nil {
		return err
	}
	dir := f.path()
	next := dir + carrying
	if err := removePins(next); err != nil {
		return fmt.Errorf("clear what an interrupted upgrade left: %w", err)
	}
	old, err := maps.OpenOlder(dir)
	if err != nil {
		return fmt.Errorf("parent %s: %w", l.Attrs().Name, err)
	}
	defer old.Close()
	coll, err := bpf.Load(old.Capacity)
	if err != nil {
		return err
	}
	defer coll.Close()
	set, err := maps.New(coll)
	if err != nil {
		return err
	}
	p := &parent{h: h, link: l, key: f.key, dir: dir, maps: set}
	defer p.close()
	if err := p.carry(old, coll, next); err != nil {
		return errors.Join(fmt.Errorf("parent %s: carry maps over: %w", l.Attrs().Name, err), removePins(next))
	}
	if err := removePins(next); err != nil {
		return err
	}
	return errors.Join(p.refresh(), p.rehook())
}

// carry does all of migrate up to the step that makes it last.
func (p *parent) carry(old *maps.Older, coll *ebpf.Collection, next string) error {
	adopted, err := p.maps.Adopt(old)
	if err != nil {
		return err
	}
	if p.rec, err = p.maps.Parent(); err != nil {
		return err
	}
	if err := pinAll(p.maps, coll, next); err != nil {
		return err
	}
	return p.replace(coll, func() error {
		quiesce()
		if err := adopted.Finish(coll.Programs[bpf.XvlanProgXvlanCarry]); err != nil {
			return err
		}
		if err := p.pinLinks(next); err != nil {
			return err
		}
		// Linux 5.17
		if err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, p.dir, unix.RENAME_EXCHANGE); err != nil {
			return fmt.Errorf("publish pins: %w", err)
		}
		return nil
	})
}

// pinLinks gives the parent's pinned links a second pin, in another folder.
func (p *parent) pinLinks(dir string) error {
	hooks, err := p.hooks()
	if err != nil {
		return err
	}
	for _, at := range hooks {
		err := pinAgain(at.pin, filepath.Join(dir, filepath.Base(at.pin)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a clsact filter needs none
			return fmt.Errorf("pin link: %w", err)
		}
	}
	return nil
}

// pinAgain finds the link by its number, since one that is opened by a pin moves
// with it.
func pinAgain(pin, other string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return err
	}
	same, err := link.NewFromID(info.ID)
	if err != nil {
		return err
	}
	return errors.Join(same.Pin(other), same.Close())
}

// quiesce waits until no program runs any more that was running when it was
// called. They run in RCU read-side critical sections, whose end the kernel waits
// for here: see membarrier(2). Where a CPU runs without ticks it refuses; no frame
// takes as long as is slept then.
func quiesce() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL, Linux 4.16
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		time.Sleep(100 * time.Millisecond)
	}
}
