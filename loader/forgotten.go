package loader

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// sweepForgotten removes what is left of parents whose maps are gone with the
// bpf file system, as when somebody has unmounted it: with their pins links and
// programs have gone, too, and the sub-interfaces reach nobody. By programs they
// are told from those whose pins another mount namespace has.
func (h *Host) sweepForgotten() error {
	if hidden() != nil {
		return nil // others say so
	}
	names, err := deviceNames()
	if err != nil {
		return err
	}
	forgotten := map[int][]string{} // host legs, by the key of the parent's folder
	for _, name := range names {
		if key, id, ok := parseLeg(name); ok && id != 0 && !h.folder(key).exists() {
			forgotten[key] = append(forgotten[key], name)
		}
	}
	var errs []error
	for key, legs := range forgotten {
		if err := ensureLocks(); err != nil {
			return err
		}
		unlock, err := flock(h.folder(key).String(), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // it is being attached or taken apart
		}
		if err == nil {
			if !h.folder(key).exists() {
				err = h.removeForgotten(key, legs)
			}
			unlock()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeForgotten deletes host legs that no program stands on, and what was
// entered for them into the parent's unicast filter, if that has still the index
// that it was attached with. That it was made to receive all multicast is not known
// any more, and stays.
func (h *Host) removeForgotten(key int, legs []string) error {
	parent := &parent{h: h, rec: maps.Parent{Index: key, Name: h.nameOf(key)}}
	var removed []string
	for _, leg := range legs {
		l, err := h.nl.LinkByName(leg)
		if errors.As(err, new(netlink.LinkNotFoundError)) || err == nil && !isPair(l) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find %s: %w", leg, err)
		}
		if at, err := h.standsOn(l.Attrs().Index); err != nil {
			return err
		} else if at {
			return fmt.Errorf("parent %s: %w: programs of xvlan are on it, but its maps are not under %s; they may be under that of "+
				"another mount namespace; what is attached works, but to begin anew delete its host legs: ip link del %s",
				parent.rec.Name, ErrBusy, pinRoot, leg)
		}
		_, inner, err := h.inner(l.Attrs().Index, leg)
		if err != nil {
			return err
		}
		if err := h.delDevice(leg); err != nil {
			return err
		}
		if inner == nil {
			continue
		}
		removed = append(removed, inner.Attrs().Name)
		err = parent.uc(inner.Attrs().HardwareAddr, false)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("take %s out of the filter of %s: %w", inner.Attrs().HardwareAddr, parent.rec.Name, err)
		}
	}
	if len(removed) > 0 {
		h.log.Warn("maps and programs are gone, as when their file system is unmounted: "+
			"removed the sub-interfaces, which reached nobody any more; make them again",
			"parent", parent.rec.Name, "removed", strings.Join(removed, " "), "file_system", pinRoot)
	}
	return nil
}

// standsOn tells whether a program is attached at the ingress of a device.
func (h *Host) standsOn(index int) (bool, error) {
	tcx, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: ebpf.AttachTCXIngress})
	if err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) { // before Linux 6.6
		return false, fmt.Errorf("look for programs on device %d: %w", index, err)
	}
	if err == nil && len(tcx.Programs) > 0 {
		return true, nil
	}
	return h.hasFilter(index, false)
}

// deviceNames lists the devices of the own network namespace, with little work
// for the kernel.
func deviceNames() (names []string, err error) {
	f, err := os.Open("/proc/thread-self/net/dev")
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// A line of headings has no colon; names cannot have one.
		if name, _, ok := strings.Cut(strings.TrimSpace(lines.Text()), ":"); ok {
			names = append(names, name)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return names, nil
}
