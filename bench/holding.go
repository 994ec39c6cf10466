package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// settle is how long the kernel gets to free what it frees later.
const settle = 500 * time.Millisecond

// holding is about how long it takes to make so many sub-interfaces, what they
// hold while they are there, and how long it takes to list them.
func (b *bench) holding(ctx context.Context, binary string, n int) (rows []*row, err error) {
	all, err := makers("hold", macvlanBatch, xvlanLoader, vethBatch)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeMakers(all)) }()
	show := []func() error{
		func() error { return all[0].box().run("", "ip", "-d", "link", "show") },
		func() error { return all[1].host.run("", binary, "-d", "link", "show") },
		func() error { return nil },
	}
	var locked float64
	var probes []probe
	for i, m := range all {
		probes = append(probes, func() ([]float64, error) {
			figures, lock, err := m.hold(n, show[i])
			locked = max(locked, lock)
			return figures, err
		})
	}
	got, err := b.turns(ctx, n, probes...)
	if err != nil {
		return nil, err
	}
	mv, xv, veth := got[0], got[1], got[2]
	making, memory := fmt.Sprintf("making %d in one process", n), fmt.Sprintf("memory of each of %d", n)
	made := compare(making, "ms", mv[0], xv[0]).lessIsBetter()
	if n == crowd {
		made.goal(4)
	}
	available := memory + ", as there is less available"
	less := missing(available, "too noisy: there was more available afterwards")
	if min(mv[3].quantile(0), xv[3].quantile(0)) > 0 {
		less = compare(available, "KiB", mv[3], xv[3]).lessIsBetter()
	}
	return []*row{
		made,
		compare(making+", against veth pairs alone", "ms", veth[0], xv[0]).lessIsBetter(),
		compare(fmt.Sprintf("listing %d by a command", n), "ms", mv[1], xv[1]).lessIsBetter(),
		compare(fmt.Sprintf("%s, as the kernel counts its own (xvlan's maps: %.2g by their memlock)", memory, locked/float64(n)),
			"KiB", mv[2], xv[2]).lessIsBetter(),
		compare(memory+", likewise, against veth pairs alone", "KiB", veth[2], xv[2]).lessIsBetter(),
		less,
	}, nil
}

// hold makes n sub-interfaces, lists them and removes them. It returns how long
// the first two took, in milliseconds, and how much memory one of them holds, as
// the kernel counts its own and as there is less available, and how much BPF maps
// have in all, in KiB.
func (m maker) hold(n int, show func() error) (figures []float64, locked float64, err error) {
	time.Sleep(settle)
	before, err := meminfo()
	if err != nil {
		return nil, 0, err
	}
	made, err := milliseconds(func() error { return m.make(n) })
	if err != nil {
		return nil, 0, err
	}
	time.Sleep(settle)
	after, err := meminfo()
	if err != nil {
		return nil, 0, err
	}
	if locked, err = m.locked(); err != nil {
		return nil, 0, err
	}
	listed, err := milliseconds(show)
	if err != nil {
		return nil, 0, err
	}
	each := func(key string) float64 { return (after[key] - before[key]) / float64(n) }
	kernel := each("Slab") + each("Percpu") + each("VmallocUsed")
	return []float64{made, listed, kernel, -each("MemAvailable")}, locked, m.clear()
}

// meminfo reads what the kernel says of its memory, in KiB.
func meminfo() (map[string]float64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("read memory: %w", err)
	}
	defer f.Close()
	all := map[string]float64{}
	for s := bufio.NewScanner(f); s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), ":")
		var kib float64
		if _, err := fmt.Sscan(value, &kib); err != nil {
			return nil, fmt.Errorf("read memory: %s: %w", s.Text(), err)
		}
		all[key] = kib
	}
	return all, nil
}

// locked is the memory of the maps pinned for the side's parent, in KiB, 0 if
// there are none.
func (y *yard) locked() (kib float64, err error) {
	pins, err := y.pins()
	if err != nil {
		return 0, err
	}
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, nil)
		if err != nil {
			continue // a program, or a link
		}
		info, err := m.Info()
		if err == nil {
			bytes, _ := info.Memlock()
			kib += float64(bytes) / 1024
		}
		if err := errors.Join(err, m.Close()); err != nil {
			return 0, fmt.Errorf("look at map %s: %w", filepath.Base(pin), err)
		}
	}
	return kib, nil
}

// pins lists what is pinned for the side's parent, if it is attached.
func (y *yard) pins() (paths []string, err error) {
	l, err := y.host.link(parentDev)
	if err != nil {
		return nil, err
	}
	err = y.host.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		defer unix.Close(fd)
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			return fmt.Errorf("read netns cookie: %w", err)
		}
		paths, err = filepath.Glob(fmt.Sprintf("/run/xvlan/bpf/%d-%d/*", cookie, l.Attrs().Index))
		return err
	})
	return paths, err
}
