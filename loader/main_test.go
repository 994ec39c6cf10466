package loader

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// TestMain fails on descriptors that the tests have left open. It cleans up
// nothing: other processes' parents live in the same pin folder, and what the
// tests make, each of them takes away itself.
func TestMain(m *testing.M) {
	before := descriptors()
	code := m.Run()
	// Files that were opened by descriptors' owners may wait for finalizers.
	deadline := time.Now().Add(2 * time.Second)
	var left []string
	for {
		runtime.GC()
		if left = leaked(before, descriptors()); len(left) == 0 || time.Now().After(deadline) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "descriptors left open: %s\n", strings.Join(left, ", "))
		code = max(code, 1)
	}
	if builtNext != "" {
		os.RemoveAll(builtNext)
	}
	os.Exit(code)
}

// descriptors counts the open descriptors by what stands for them.
func descriptors() map[string]int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	open := map[string]int{}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil {
			continue // the folder's own
		}
		open[strings.TrimRight(target, "0123456789]")]++ // sockets and namespaces have numbers
	}
	return open
}

// leaked lists what there is more of. The runtime's own poller stays open.
func leaked(before, after map[string]int) []string {
	var left []string
	for kind, n := range after {
		if extra := n - before[kind]; extra > 0 && !strings.Contains(kind, "eventpoll") && !strings.Contains(kind, "eventfd") {
			left = append(left, fmt.Sprintf("%d %s", extra, kind))
		}
	}
	slices.Sort(left)
	return left
}

// A rungCase is one way for packets to go, and what can be made on it.
type rungCase struct {
	name     string
	datapath Datapath
	legacyTC bool
	netkit   bool // some of the legs are, see spec
	kinds    []maps.Kind
}

var both = []maps.Kind{maps.Macvlan, maps.Ipvlan}

var (
	onXDP    = rungCase{name: "xdp", datapath: XDP, kinds: both}
	onTCX    = rungCase{name: "tcx", datapath: TC, kinds: both}
	onClsact = rungCase{name: "clsact", datapath: TC, legacyTC: true, kinds: both}
	onNetkit = rungCase{name: "netkit", datapath: TC, netkit: true, kinds: both}

	onMacvlan = rungCase{name: "kernel macvlan", datapath: Kernel, kinds: []maps.Kind{maps.Macvlan}}
	onIpvlan  = rungCase{name: "kernel ipvlan", datapath: Kernel, kinds: []maps.Kind{maps.Ipvlan}}
)

var (
	ourRungs = []rungCase{onXDP, onTCX, onClsact}
	allRungs = []rungCase{onXDP, onTCX, onClsact, onMacvlan, onIpvlan}
)

// withNetkit adds netkit legs, for what they may do otherwise.
func withNetkit(rungs []rungCase) []rungCase { return append(slices.Clone(rungs), onNetkit) }

// onRungs runs a test on each rung that the kernel has.
func onRungs(t *testing.T, rungs []rungCase, test func(t *testing.T, r rungCase)) {
	t.Helper()
	for _, r := range rungs {
		t.Run(strings.ReplaceAll(r.name, " ", "-"), func(t *testing.T) {
			if r.datapath != Kernel && !r.legacyTC && !lab.KernelFrom(t, 6, 6) {
				t.Skip("tcx needs Linux 6.6")
			}
			if r.datapath == Kernel && !lab.HasKind(t, r.kinds[0].String()) {
				t.Skipf("the kernel has no %s", r.kinds[0])
			}
			if r.netkit {
				lab.NeedNetkit(t)
			}
			test(t, r)
		})
	}
}

// An end is a place that sends and receives: the host, the wire or a
// sub-interface.
type end struct {
	name string
	ns   *lab.Netns
	dev  string
	kind maps.Kind // 0 for the host and the wire
	ip4  netip.Prefix
	ip6  netip.Prefix
}

// newEnd makes an end with the addresses that its number says.
func newEnd(name string, ns *lab.Netns, dev string, kind maps.Kind, number byte) *end {
	return &end{
		name: name, ns: ns, dev: dev, kind: kind,
		ip4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, number}), 24),
		ip6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x77, 15: number}), 64),
	}
}

func (e *end) addrs() []netip.Addr { return []netip.Addr{e.ip4.Addr(), e.ip6.Addr()} }

func (e *end) mac(t testing.TB) net.HardwareAddr {
	t.Helper()
	return e.ns.Link(t, e.dev).Attrs().HardwareAddr
}

func (e *end) index(t testing.TB) int {
	t.Helper()
	return e.ns.Link(t, e.dev).Attrs().Index
}

// parentDev is the name of the parent in every host.
const parentDev = "eth0"

// A site is a host with a parent, the wire behind that, and the namespaces of
// sub-interfaces.
type site struct {
	rungCase
	h      *Host
	host   *end
	wire   *end
	subs   []*end
	repair time.Duration // who serves looks by himself that often, if it is not 0
}

// A siteOption changes a site before its devices are made.
type siteOption struct {
	mtu    int
	noIPv6 bool
}

// newSite makes the host and the wire, and an empty namespace for each of two
// sub-interfaces a kind. Its clean-up leaves nothing behind even if the test
// has failed halfway.
func newSite(t *testing.T, r rungCase, opt siteOption) *site {
	t.Helper()
	lab.NeedTool(t, "ip")
	s := &site{
		rungCase: r,
		host:     newEnd("host", lab.NewNetns(t, "host"), parentDev, 0, 1),
		wire:     newEnd("wire", lab.NewNetns(t, "wire"), "wire0", 0, 2),
	}
	if slices.Contains(r.kinds, maps.Macvlan) {
		s.subs = append(s.subs,
			newEnd("mac1", lab.NewNetns(t, "mac1"), "mac1", maps.Macvlan, 11),
			newEnd("mac2", lab.NewNetns(t, "mac2"), "eth0", maps.Macvlan, 12))
	}
	if slices.Contains(r.kinds, maps.Ipvlan) {
		s.subs = append(s.subs,
			newEnd("ip1", lab.NewNetns(t, "ip1"), "ip1", maps.Ipvlan, 21),
			newEnd("ip2", lab.NewNetns(t, "ip2"), "eth0", maps.Ipvlan, 22))
	}
	for _, e := range s.all() {
		if opt.noIPv6 {
			e.ns.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
			e.ns.Sysctl(t, "net.ipv6.conf.default.disable_ipv6", "1")
		}
	}
	lab.VethWith(t, s.host.ns, s.host.dev, s.wire.ns, s.wire.dev, lab.VethOptions{MTU: opt.mtu})
	for _, e := range []*end{s.host, s.wire} {
		e.ns.Addr(t, e.dev, e.ip4.String())
		if !opt.noIPv6 {
			e.ns.Addr(t, e.dev, e.ip6.String())
		}
		e.settle(t)
	}
	s.h = openHost(t, s.host.ns, r)
	return s
}

// openHost opens a Host in a namespace, and at the test's end takes away what
// was built there.
func openHost(t *testing.T, ns *lab.Netns, r rungCase) *Host {
	t.Helper()
	var (
		h   *Host
		err error
	)
	ns.Do(t, func() { h, err = Open(slog.New(slog.DiscardHandler)) })
	if err != nil {
		t.Fatal(err)
	}
	h.legacyTC = r.legacyTC
	t.Cleanup(func() {
		ns.Do(t, func() { wipe(t, h) })
		h.Close()
	})
	return h
}

// wipe removes all that the Host's namespace has left in the pin folder and
// among the locks, which nobody else can want: the namespace is the test's.
func wipe(t *testing.T, h *Host) {
	all, err := folders()
	if err != nil {
		t.Errorf("clean up: %v", err)
	}
	for _, f := range all {
		if f.cookie != h.cookie {
			continue
		}
		for _, dir := range []string{f.path() + building, f.path()} {
			if err := h.teardown(f, dir); err != nil {
				t.Errorf("clean up: %v", err)
			}
			if err := removePins(dir); err != nil {
				t.Errorf("clean up: %v", err)
			}
		}
	}
	locks, err := filepath.Glob(filepath.Join(lockDir, fmt.Sprintf("%d-*", h.cookie)))
	if err != nil {
		t.Errorf("clean up: %v", err)
	}
	for _, lock := range locks {
		if err := os.Remove(lock); err != nil {
			t.Errorf("clean up: %v", err)
		}
	}
}

// all is every end, the host and the wire first.
func (s *site) all() []*end { return append([]*end{s.host, s.wire}, s.subs...) }

// sub is the sub-interface of that name.
func (s *site) sub(t testing.TB, name string) *end {
	t.Helper()
	i := slices.IndexFunc(s.subs, func(e *end) bool { return e.name == name })
	if i < 0 {
		t.Fatalf("no sub-interface %s on %s", name, s.name)
	}
	return s.subs[i]
}

// try acts on the Host from inside its namespace.
func (s *site) try(t testing.TB, fn func(h *Host) error) (err error) {
	t.Helper()
	s.host.ns.Do(t, func() { err = fn(s.h) })
	return err
}

// do is try for what must succeed.
func (s *site) do(t testing.TB, fn func(h *Host) error) {
	t.Helper()
	if err := s.try(t, fn); err != nil {
		t.Fatal(err)
	}
}

func (s *site) sweep(t testing.TB) {
	t.Helper()
	s.do(t, (*Host).Sweep)
}

// link is the sub-interface as Links tells it.
func (s *site) link(t testing.TB, e *end) Link {
	t.Helper()
	var links []Link
	s.do(t, func(h *Host) (err error) { links, err = h.Links(); return err })
	where := e.ns.Name()
	if e.ns == s.host.ns {
		where = ""
	}
	i := slices.IndexFunc(links, func(l Link) bool { return l.Name == e.dev && l.Netns == where })
	if i < 0 {
		t.Fatalf("%s is not among %v", e.name, links)
	}
	return links[i]
}

// spec describes a sub-interface as yet without addresses, in the parent's
// namespace. Where there are netkit legs, one of each kind has them, and one has
// not, so that all meet all.
func (s *site) spec(e *end) LinkSpec {
	spec := LinkSpec{Parent: parentDev, Name: e.dev, Kind: e.kind, Mode: maps.Bridge, Datapath: s.datapath}
	if e.kind == maps.Ipvlan {
		spec.Mode = maps.L2
	}
	spec.Netkit = s.netkit && (e.name == "mac1" || e.name == "ip2")
	return spec
}

// addAtOnce makes a sub-interface with its namespace and addresses given.
func (s *site) addAtOnce(t testing.TB, e *end, addrs ...netip.Prefix) {
	t.Helper()
	spec := s.spec(e)
	spec.Netns, spec.Up, spec.Addrs = e.ns.Name(), true, addrs
	s.do(t, func(h *Host) error { return h.Add(spec) })
	s.settle(t, e)
}

// addByHand makes a sub-interface in the parent's namespace and does the rest
// with ip alone.
func (s *site) addByHand(t testing.TB, e *end, addrs ...netip.Prefix) {
	t.Helper()
	spec := s.spec(e)
	s.do(t, func(h *Host) error { return h.Add(spec) })
	s.host.ns.Run(t, "ip", "link", "set", e.dev, "netns", e.ns.Name())
	for _, a := range addrs {
		e.ns.Run(t, "ip", "addr", "add", a.String(), "dev", e.dev)
	}
	e.ns.Run(t, "ip", "link", "set", e.dev, "up")
	s.settle(t, e)
}

// populate makes all sub-interfaces, of each kind one by hand, so that its
// addresses are for the datapath to find out, and one at once.
func (s *site) populate(t testing.TB) {
	t.Helper()
	for i, e := range s.subs {
		if i%2 == 0 {
			s.addByHand(t, e, e.ip4, e.ip6)
		} else {
			s.addAtOnce(t, e, e.ip4, e.ip6)
		}
	}
}

// settle waits until a new sub-interface has its addresses to itself and its
// host leg can send: that was up before its peer was, and so gets its queue
// only when the kernel's link watch comes round to it.
func (s *site) settle(t testing.TB, e *end) {
	t.Helper()
	e.settle(t)
	leg := s.link(t, e).Leg
	if leg == "" {
		return
	}
	lab.Eventually(t, leg+" is operational", func() bool {
		return s.host.ns.Link(t, leg).Attrs().OperState == netlink.OperUp
	})
}

// settle waits until duplicate address detection is through, which takes a
// moment even where it is off.
func (e *end) settle(t testing.TB) {
	t.Helper()
	lab.Eventually(t, e.name+" has its IPv6 addresses", func() bool {
		addrs, err := whole(func() ([]netlink.Addr, error) { return e.ns.Handle().AddrList(e.ns.Link(t, e.dev), netlink.FAMILY_V6) })
		return err == nil && !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
	})
}

func (s *site) del(t testing.TB, e *end) {
	t.Helper()
	s.do(t, func(h *Host) error { return h.Del(Selector{Name: e.dev, Netns: e.ns.Name()}) })
}

// legs are the names of the host legs in the host's namespace.
func (s *site) legs(t testing.TB) []string {
	t.Helper()
	links, err := whole(func() ([]netlink.Link, error) { return s.host.ns.Handle().LinkList() })
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		if _, _, ok := parseLeg(l.Attrs().Name); ok {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// checkGone finds what is left of xvlan in the host's namespace.
func (s *site) checkGone(t testing.TB) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(pinRoot, fmt.Sprintf("%d-*", s.h.cookie)))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("pins left: %v", left)
	}
	if legs := s.legs(t); len(legs) > 0 {
		t.Errorf("host legs left: %v", legs)
	}
}
