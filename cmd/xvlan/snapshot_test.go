package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

func mac(tb testing.TB, s string) net.HardwareAddr {
	tb.Helper()
	m, err := net.ParseMAC(s)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// pins lists what is pinned for the namespace host, folders before what is in
// them.
func (w *world) pins(tb testing.TB) []string {
	tb.Helper()
	var (
		pins []string
		err  error
	)
	w.do(tb, func() {
		var dirs []string
		dirs, err = filepath.Glob(fmt.Sprintf("%s/%d-*", pinDir, w.cookie))
		for _, dir := range dirs {
			entries, rerr := os.ReadDir(dir)
			if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = rerr
			}
			pins = append(pins, filepath.Base(dir))
			for _, e := range entries {
				pins = append(pins, filepath.Join(filepath.Base(dir), e.Name()))
			}
		}
	})
	if err != nil {
		tb.Fatal(err)
	}
	return pins
}

// snapshot describes all that a command could change, a line each.
func (w *world) snapshot(tb testing.TB) []string {
	tb.Helper()
	var all []string
	for _, n := range []*lab.Netns{w.host, w.wire, w.inside} {
		links, err := whole(n.Handle().LinkList)
		if err != nil {
			tb.Fatal(err)
		}
		for _, l := range links {
			for _, line := range describe(tb, n, l) {
				all = append(all, n.Name()+" "+l.Attrs().Name+" "+line)
			}
		}
	}
	for _, pin := range w.pins(tb) {
		all = append(all, "pin "+pin)
	}
	return all
}

// whole repeats a list that a change, of addresses say, has interrupted.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	for {
		if all, err := list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
}

// describe describes one device.
func describe(tb testing.TB, n *lab.Netns, l netlink.Link) []string {
	tb.Helper()
	a := l.Attrs()
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	check := func(err error) {
		if err != nil {
			tb.Fatalf("look at %s: %v", a.Name, err)
		}
	}
	// Running and lower-up follow from the rest, in the kernel's own time.
	flags := a.RawFlags &^ (unix.IFF_RUNNING | unix.IFF_LOWER_UP)
	add("index %d type %s flags %#x promiscuity %d allmulti %d mtu %d address %s alias %q master %d",
		a.Index, l.Type(), flags, a.Promisc, a.Allmulti, a.MTU, a.HardwareAddr, a.Alias, a.MasterIndex)
	if a.Xdp != nil && a.Xdp.Attached {
		add("xdp program %d", a.Xdp.ProgId)
	}
	qdiscs, err := whole(func() ([]netlink.Qdisc, error) { return n.Handle().QdiscList(l) })
	check(err)
	for _, q := range qdiscs {
		add("qdisc %s", q.Type())
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := whole(func() ([]netlink.Filter, error) { return n.Handle().FilterList(l, parent) })
		if errors.Is(err, unix.EINVAL) { // without a qdisc for them
			continue
		}
		check(err)
		for _, f := range filters {
			add("filter %s priority %#x", f.Type(), f.Attrs().Priority)
		}
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return n.Handle().AddrList(l, netlink.FAMILY_ALL) })
	check(err)
	for _, x := range addrs {
		add("addr %s", x.IPNet)
	}
	fdb, err := whole(func() ([]netlink.Neigh, error) { return n.Handle().NeighList(a.Index, unix.AF_BRIDGE) })
	check(err)
	for _, e := range fdb {
		if e.HardwareAddr[0]&1 == 0 { // group addresses come and go with IP addresses
			add("fdb %s", e.HardwareAddr)
		}
	}
	n.Do(tb, func() {
		for _, attach := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			r, err := ebpflink.QueryPrograms(ebpflink.QueryOptions{Target: a.Index, Attach: attach})
			if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) { // before Linux 6.6
				continue
			}
			check(err)
			for _, p := range r.Programs {
				add("tcx program %d", p.ID)
			}
		}
	})
	return lines
}

// same checks that nothing has changed since a snapshot.
func (w *world) same(tb testing.TB, before []string) {
	tb.Helper()
	if d := difference(before, w.snapshot(tb)); d != "" {
		tb.Errorf("not as it was before:\n%s", d)
	}
}

// difference lists the lines that one of two snapshots has more often.
func difference(before, after []string) string {
	count := map[string]int{}
	for _, l := range before {
		count[l]--
	}
	for _, l := range after {
		count[l]++
	}
	var b strings.Builder
	for _, l := range slices.Sorted(maps.Keys(count)) {
		for range -count[l] {
			fmt.Fprintf(&b, "- %s\n", l)
		}
		for range count[l] {
			fmt.Fprintf(&b, "+ %s\n", l)
		}
	}
	return b.String()
}
