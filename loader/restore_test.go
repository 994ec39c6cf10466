package loader

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/lab"
)

// state is all of the parent that attaching might change, a line each, and the
// offloads of the device at the other end, which native XDP does change.
func (s *site) state(t *testing.T) []string {
	t.Helper()
	l := s.host.ns.Link(t, parentDev)
	a := l.Attrs()
	lines := []string{
		fmt.Sprintf("mtu %d, flags %x, promiscuity %d, allmulti %d", a.MTU, a.RawFlags, a.Promisc, a.Allmulti),
		fmt.Sprintf("mac %s, queues %d %d, alias %q", a.HardwareAddr, a.NumTxQueues, a.NumRxQueues, a.Alias),
		fmt.Sprintf("xdp %+v", *a.Xdp),
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return s.host.ns.Handle().AddrList(l, netlink.FAMILY_ALL) })
	for _, a := range addrs {
		lines = append(lines, fmt.Sprintf("addr %s flags %x", a.IPNet, a.Flags))
	}
	qdiscs, err2 := whole(func() ([]netlink.Qdisc, error) { return s.host.ns.Handle().QdiscList(l) })
	err = errors.Join(err, err2)
	for _, q := range qdiscs {
		lines = append(lines, fmt.Sprintf("qdisc %s %x", q.Type(), q.Attrs().Handle))
	}
	for _, dir := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err2 := whole(func() ([]netlink.Filter, error) { return s.host.ns.Handle().FilterList(l, dir) })
		err = errors.Join(err, err2)
		for _, f := range filters {
			lines = append(lines, fmt.Sprintf("filter %s %x prio %d", f.Type(), dir, f.Attrs().Priority))
		}
	}
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		if !lab.KernelFrom(t, 6, 6) {
			break
		}
		s.host.ns.Do(t, func() {
			got, err2 := link.QueryPrograms(link.QueryOptions{Target: a.Index, Attach: at})
			if err2 != nil {
				err = errors.Join(err, err2)
				return
			}
			for _, p := range got.Programs {
				lines = append(lines, fmt.Sprintf("%s program %d", at, p.ID))
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"bridge", "fdb", "show", "dev", parentDev},
		{"ip", "maddr", "show", "dev", parentDev},
		{"ip", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"},
		{"ethtool", "-k", parentDev},
		// One of them cannot be read, so grep is never content.
		{"sh", "-c", "grep -rs . /proc/sys/net/ipv?/conf/" + parentDev + " || true"},
	} {
		lines = append(lines, strings.Split(s.host.ns.Run(t, args[0], args[1:]...), "\n")...)
	}
	return append(lines, strings.Split(s.wire.ns.Run(t, "ethtool", "-k", s.wire.dev), "\n")...)
}

// difference lists the lines that only one of two states has.
func difference(before, after []string) []string {
	var lines []string
	for _, l := range before {
		if !slices.Contains(after, l) {
			lines = append(lines, "- "+l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			lines = append(lines, "+ "+l)
		}
	}
	return lines
}

// settled is what has changed of the parent, when the kernel, which deletes
// namespaces in its own time, has had some.
func (s *site) settled(t *testing.T, before []string) []string {
	t.Helper()
	for deadline := time.Now().Add(socketTime); ; time.Sleep(10 * time.Millisecond) {
		diff := difference(before, s.state(t))
		if len(diff) == 0 || time.Now().After(deadline) {
			return diff
		}
	}
}

// A counterProg is somebody else's program that counts what it sees and has no
// opinion.
type counterProg struct {
	prog  *ebpf.Program
	count *ebpf.Map
}

func newCounter(t *testing.T) *counterProg {
	t.Helper()
	count, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { count.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, count.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"), // TCX_NEXT, TC_ACT_UNSPEC
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return &counterProg{prog, count}
}

func (c *counterProg) value(t *testing.T) uint64 {
	t.Helper()
	var n uint64
	if err := c.count.Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// tcx attaches the program behind those that are there.
func (c *counterProg) tcx(t *testing.T, s *site) link.Link {
	t.Helper()
	var (
		l   link.Link
		err error
	)
	s.host.ns.Do(t, func() {
		l, err = link.AttachTCX(link.TCXOptions{Program: c.prog, Interface: s.host.index(t), Attach: ebpf.AttachTCXIngress})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// filter attaches the program by a clsact filter.
func (c *counterProg) filter(t *testing.T, s *site) {
	t.Helper()
	attrs := filterAttrs(s.host.index(t), false)
	attrs.Priority = 49152 // what tc takes when nobody says
	err := s.host.ns.Handle().FilterAdd(&netlink.BpfFilter{FilterAttrs: attrs, Fd: c.prog.FD(), Name: "others", DirectAction: true})
	if err != nil {
		t.Fatal(err)
	}
}

// crowd puts on the parent what other software may have there, and returns its
// programs.
func (s *site) crowd(t *testing.T) []*counterProg {
	t.Helper()
	s.host.ns.Run(t, "ip", "link", "set", parentDev, "allmulticast", "on")
	s.host.ns.Run(t, "bridge", "fdb", "add", "02:00:00:00:99:01", "dev", parentDev, "self")
	s.host.ns.Run(t, "tc", "qdisc", "add", "dev", parentDev, "clsact")
	progs := []*counterProg{newCounter(t)}
	progs[0].filter(t, s)
	if lab.KernelFrom(t, 6, 6) {
		progs = append(progs, newCounter(t))
		progs[1].tcx(t, s)
	}
	return progs
}

// checkSeen fails unless each program sees what the wire sends to the host.
func (s *site) checkSeen(t *testing.T, progs []*counterProg) {
	t.Helper()
	var before []uint64
	for _, p := range progs {
		before = append(before, p.value(t))
	}
	s.wire.ping(t, s.host.ip4.Addr())
	for i, p := range progs {
		if p.value(t) == before[i] {
			t.Errorf("program %d does not see the host's frames any more", i)
		}
	}
}

// TestRestore leaves a parent as it was found, whoever else is on it and
// however its sub-interfaces end.
func TestRestore(t *testing.T) {
	for _, tool := range []string{"bridge", "ethtool", "ping", "tc"} {
		lab.NeedTool(t, tool)
	}
	endings := []struct {
		name string
		end  func(t *testing.T, s *site)
	}{
		{"last del", func(t *testing.T, s *site) {
			for _, e := range s.subs {
				s.del(t, e)
			}
		}},
		{"detach", func(t *testing.T, s *site) {
			s.do(t, func(h *Host) error { return h.Detach(parentDev) })
		}},
		{"devices deleted", func(t *testing.T, s *site) {
			for _, e := range s.subs {
				e.ns.Run(t, "ip", "link", "del", e.dev)
			}
			s.sweep(t)
		}},
		{"namespaces deleted", func(t *testing.T, s *site) { // the last: there is no way back
			for _, e := range s.subs {
				e.ns.Remove(t)
			}
			if s.datapath != Kernel {
				lab.Eventually(t, "host legs go", func() bool { return len(s.legs(t)) == 0 })
				s.sweep(t)
			}
		}},
	}
	onRungs(t, withNetkit(allRungs), func(t *testing.T, r rungCase) {
		for _, crowded := range []bool{false, true} {
			t.Run(map[bool]string{false: "alone", true: "crowded"}[crowded], func(t *testing.T) {
				s := newSite(t, r, siteOption{})
				var others []*counterProg
				if crowded {
					others = s.crowd(t)
				}
				s.host.ping(t, s.wire.ip4.Addr())
				before := s.state(t)
				for _, ending := range endings {
					s.populate(t)
					during := difference(before, s.state(t))
					if len(during) == 0 {
						t.Errorf("nothing is seen of an attached parent")
					}
					s.checkSeen(t, others)
					ending.end(t, s)
					if diff := s.settled(t, before); len(diff) > 0 {
						t.Errorf("after %s the parent is changed:\n%s", ending.name, strings.Join(diff, "\n"))
					}
					s.checkGone(t)
					s.checkSeen(t, others)
				}
			})
		}
	})
}

// TestBehindOurs lets programs run that come later than ours.
func TestBehindOurs(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		others := []*counterProg{newCounter(t)}
		if has, err := s.h.hasClsact(s.host.index(t)); err != nil {
			t.Fatal(err)
		} else if !has {
			s.host.ns.Run(t, "tc", "qdisc", "add", "dev", parentDev, "clsact")
		}
		others[0].filter(t, s)
		if lab.KernelFrom(t, 6, 6) {
			others = append(others, newCounter(t))
			others[1].tcx(t, s)
		}
		s.checkSeen(t, others)
		s.do(t, func(h *Host) error { return h.Detach(parentDev) })
		s.checkGone(t)
		s.checkSeen(t, others) // theirs stay, and so the qdisc that may be ours
	})
}

// TestBusy refuses a parent that holds another XDP program, and leaves it.
func TestBusy(t *testing.T) {
	s := newSite(t, onXDP, siteOption{})
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	var l link.Link
	s.host.ns.Do(t, func() {
		l, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: s.host.index(t), Flags: link.XDPDriverMode})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before := s.state(t)
	if err := s.try(t, func(h *Host) error { return h.Add(s.spec(s.subs[0])) }); !errors.Is(err, ErrBusy) {
		t.Errorf("add: %v, want %v", err, ErrBusy)
	}
	if diff := difference(before, s.state(t)); len(diff) > 0 {
		t.Errorf("the parent has changed:\n%s", strings.Join(diff, "\n"))
	}
	s.checkGone(t)
}
