package loader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// serve has somebody who follows until the test ends, or stop is called. The
// kernel's own drivers need nobody.
func (s *site) serve(t *testing.T) (stop func()) {
	t.Helper()
	if s.datapath == Kernel {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	opened, done := make(chan error), make(chan error)
	go s.host.ns.Do(t, func() {
		h, err := Open(slog.New(slog.DiscardHandler))
		opened <- err
		if err != nil {
			return
		}
		defer h.Close()
		h.legacyTC, h.repair = s.legacyTC, s.repair
		done <- h.Serve(ctx, nil)
	})
	if err := <-opened; err != nil {
		cancel()
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

var withMacvlan = []rungCase{onTCX, onClsact, onMacvlan}

// lifeRungs are those that differ in what is tested here.
var lifeRungs = []rungCase{onTCX, onClsact, onMacvlan, onIpvlan}

func (s *site) setMTU(t *testing.T, mtu int) {
	t.Helper()
	for _, e := range []*end{s.wire, s.host} {
		e.ns.Run(t, "ip", "link", "set", e.dev, "mtu", strconv.Itoa(mtu))
	}
}

func (e *end) linkFlags(t *testing.T) uint32 { return e.ns.Link(t, e.dev).Attrs().RawFlags }

// TestMTUFollows changes the parent's MTU.
func TestMTUFollows(t *testing.T) {
	onRungs(t, withNetkit(lifeRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		own := s.subs[0] // has less than its parent, where it may
		if r.datapath != Kernel || own.kind == maps.Macvlan {
			own.ns.Run(t, "ip", "link", "set", own.dev, "mtu", "1300")
		}
		s.serve(t)
		for _, step := range []struct{ parent, macvlan, ipvlan, own int }{
			{1450, 1450, 1450, 1300},
			{1600, 1450, 1600, 1300},
			{1280, 1280, 1280, 1280},
		} {
			s.setMTU(t, step.parent)
			for _, e := range s.subs {
				want := step.macvlan
				if e.kind == maps.Ipvlan {
					want = step.ipvlan
				}
				if e == own && (r.datapath != Kernel || e.kind == maps.Macvlan) {
					want = step.own
				}
				lab.Eventually(t, fmt.Sprintf("with %d at the parent %s has %d", step.parent, e.name, want), func() bool {
					return e.ns.Link(t, e.dev).Attrs().MTU == want
				})
			}
		}
		for _, e := range s.subs {
			e.ping(t, s.wire.ip4.Addr(), "-M", "do", "-s", strconv.Itoa(1280-28))
		}
	})
}

// TestMTUFollowsLater has nobody who follows when the parent's MTU changes: the
// next command does.
func TestMTUFollowsLater(t *testing.T) {
	s := newSite(t, onClsact, siteOption{})
	s.populate(t)
	s.setMTU(t, 1400)
	spec := s.spec(&end{dev: "more", kind: maps.Macvlan})
	s.do(t, func(h *Host) error { return h.Add(spec) })
	for _, e := range s.subs {
		if got := e.ns.Link(t, e.dev).Attrs().MTU; got != 1400 {
			t.Errorf("%s has %d, want 1400", e.name, got)
		}
	}
}

// TestCarrierFollows takes the parent's carrier away, and the parent down.
func TestCarrierFollows(t *testing.T) {
	onRungs(t, withNetkit(lifeRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		stop := s.serve(t)
		carrier := func(want bool) {
			t.Helper()
			for _, e := range s.subs {
				lab.Eventually(t, fmt.Sprintf("carrier of %s is %v", e.name, want), func() bool {
					return (e.linkFlags(t)&unix.IFF_LOWER_UP != 0) == want && e.linkFlags(t)&unix.IFF_UP != 0
				})
			}
		}
		talk := func() {
			t.Helper()
			for _, e := range s.subs {
				s.settle(t, e)
				e.ping(t, s.wire.ip4.Addr())
			}
		}
		carrier(true)
		for _, e := range []*end{s.wire, s.host} {
			if e == s.host && r.name == onIpvlan.name && !lab.KernelFrom(t, 6, 9) {
				continue // its driver does not look whether its parent is down
			}
			e.ns.Run(t, "ip", "link", "set", e.dev, "down")
			carrier(false)
			e.ns.Up(t, e.dev)
			carrier(true)
			talk()
		}
		// A look at a parent that is down does not keep anybody down.
		stop()
		s.wire.ns.Run(t, "ip", "link", "set", s.wire.dev, "down")
		if r.datapath != Kernel {
			s.sweep(t)
			carrier(true)
		}
		s.wire.ns.Up(t, s.wire.dev)
		talk()
	})
}

// TestServeLeaves ends who follows while the parent is down: nobody else would
// bring the sub-interfaces up again.
func TestServeLeaves(t *testing.T) {
	s := newSite(t, onClsact, siteOption{})
	s.populate(t)
	stop := s.serve(t)
	e := s.subs[0]
	s.wire.ns.Run(t, "ip", "link", "set", s.wire.dev, "down")
	lab.Eventually(t, "the carrier is gone", func() bool { return e.linkFlags(t)&unix.IFF_LOWER_UP == 0 })
	err := s.try(t, func(h *Host) error { return h.Serve(t.Context(), nil) })
	if !errors.Is(err, ErrBusy) {
		t.Errorf("a second one: %v, want %v", err, ErrBusy)
	}
	stop()
	s.wire.ns.Up(t, s.wire.dev)
	s.settle(t, e)
	e.ping(t, s.wire.ip4.Addr())
}

// TestParentMACFollows changes the parent's MAC: the wire, which knows ipvlans
// by the old one, is told.
func TestParentMACFollows(t *testing.T) {
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		s.serve(t)
		e := s.sub(t, "ip1")
		for i, a := range e.addrs() {
			s.wire.ping(t, a)
			e.ping(t, s.wire.addrs()[i])
		}
		mac := net.HardwareAddr{2, 0, 0, 0, 0x77, 0x99}
		s.host.ns.Run(t, "ip", "link", "set", s.host.dev, "address", mac.String())
		for _, a := range e.addrs() {
			lab.Eventually(t, fmt.Sprintf("the wire knows %s by the new MAC", a), func() bool { return s.knows(t, a, mac) })
			s.wire.ping(t, a)
		}
		if l := s.link(t, e); l.WireMAC.String() != mac.String() || slices.Equal(l.MAC, mac) {
			t.Errorf("%s is listed as %+v", e.name, l)
		}
	})
}

// knows looks at the wire's neighbour cache.
func (s *site) knows(t *testing.T, a netip.Addr, mac net.HardwareAddr) bool {
	t.Helper()
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	neighs, err := whole(func() ([]netlink.Neigh, error) { return s.wire.ns.Handle().NeighList(s.wire.index(t), family) })
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(neighs, func(n netlink.Neigh) bool {
		ip, _ := netip.AddrFromSlice(n.IP)
		return ip.Unmap() == a && slices.Equal(n.HardwareAddr, mac)
	})
}

// TestPassthruMAC changes the one MAC that a passthru sub-interface and its
// parent have, at either.
func TestPassthruMAC(t *testing.T) {
	onRungs(t, withNetkit(withMacvlan), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		e := s.sub(t, "mac1")
		found := s.host.mac(t)
		both := func(want net.HardwareAddr) {
			t.Helper()
			for _, x := range []*end{s.host, e} {
				lab.Eventually(t, fmt.Sprintf("%s has %s", x.name, want), func() bool { return slices.Equal(x.mac(t), want) })
			}
			s.wire.ns.Run(t, "ip", "neigh", "flush", "dev", s.wire.dev)
			s.wire.ping(t, e.ip4.Addr())
		}
		make := func() {
			t.Helper()
			spec := s.spec(e)
			spec.Mode, spec.Netns, spec.Up, spec.Addrs = maps.Passthru, e.ns.Name(), true, []netip.Prefix{e.ip4}
			s.do(t, func(h *Host) error { return h.Add(spec) })
			s.settle(t, e)
		}
		s.host.ns.Run(t, "ip", "addr", "flush", "dev", s.host.dev)
		make()
		s.serve(t)
		both(found)
		inside, outside := net.HardwareAddr{2, 0, 0, 0, 0x77, 1}, net.HardwareAddr{2, 0, 0, 0, 0x77, 2}
		e.ns.Run(t, "ip", "link", "set", e.dev, "address", inside.String())
		both(inside)
		s.del(t, e)
		if got := s.host.mac(t); !slices.Equal(got, found) {
			t.Errorf("the parent is left with %s, and had %s", got, found)
		}
		// What the host's administrator has changed is not put back.
		make()
		e.ns.Run(t, "ip", "link", "set", e.dev, "address", inside.String())
		both(inside)
		s.host.ns.Run(t, "ip", "link", "set", s.host.dev, "address", outside.String())
		both(outside)
		s.del(t, e)
		if got := s.host.mac(t); !slices.Equal(got, outside) {
			t.Errorf("the parent is left with %s, and was given %s", got, outside)
		}
	})
}

// TestServe changes sub-interfaces by ip alone, with somebody who follows.
func TestServe(t *testing.T) {
	onRungs(t, withNetkit([]rungCase{onTCX, onClsact}), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.serve(t)
		s.populate(t)
		mac, ip1, ip2 := s.sub(t, "mac1"), s.sub(t, "ip1"), s.sub(t, "ip2")

		changed := net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
		mac.ns.Run(t, "ip", "link", "set", mac.dev, "address", changed.String())
		lab.Eventually(t, "the datapath has the new MAC", func() bool { return slices.Equal(s.link(t, mac).WireMAC, changed) })
		s.wire.ns.Run(t, "ip", "neigh", "flush", "dev", s.wire.dev)
		s.wire.ping(t, mac.ip4.Addr())

		a, _ := spare(120)
		owner := func(e *end) func() bool {
			return func() bool {
				return slices.ContainsFunc(s.link(t, e).Addrs, func(l LinkAddr) bool { return l.Addr == a.Addr() })
			}
		}
		ip1.ns.Run(t, "ip", "addr", "add", a.String(), "dev", ip1.dev)
		lab.Eventually(t, "a new address leads to its owner", owner(ip1))
		ip1.ns.Run(t, "ip", "addr", "del", a.String(), "dev", ip1.dev)
		ip2.ns.Run(t, "ip", "addr", "add", a.String(), "dev", ip2.dev)
		lab.Eventually(t, "it leads to its new owner", owner(ip2))

		away := *ip1
		away.ns = lab.NewNetns(t, "away")
		ip1.moveTo(t, &away)
		away.ns.Run(t, "ip", "addr", "add", a.String(), "dev", away.dev) // heard of from a namespace new to it
		ip2.ns.Run(t, "ip", "addr", "del", a.String(), "dev", ip2.dev)
		lab.Eventually(t, "an address leads where its device has gone", owner(&away))

		mac.ns.Run(t, "ip", "link", "del", mac.dev)
		lab.Eventually(t, "a deleted one is gone", func() bool {
			links := []maps.Sub{}
			s.do(t, func(h *Host) error {
				return h.eachParent(func(_ folder, set *maps.Set, _ maps.Parent) (err error) { links, err = set.Subs(); return err })
			})
			return !slices.ContainsFunc(links, func(l maps.Sub) bool { return l.State != maps.Free && l.Name == mac.dev })
		})
	})
}

// TestServeUnnamed has other tools take sub-interfaces from one network namespace
// to another that nothing but a process leads to, which the parent's has no id of, and
// change them there.
func TestServeUnnamed(t *testing.T) {
	lab.NeedTool(t, "nsenter")
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		mac, ip := s.sub(t, "mac1"), s.sub(t, "ip1")
		s.addAtOnce(t, mac, mac.ip4)
		s.addAtOnce(t, ip, ip.ip4)
		s.serve(t)
		pid := unnamed(t, s.host.ns)
		inside := func(args ...string) {
			t.Helper()
			s.host.ns.Run(t, "nsenter", append([]string{"-t", pid, "-n", "ip"}, args...)...)
		}
		links := func() (all []Link) {
			t.Helper()
			s.do(t, func(h *Host) (err error) { all, err = h.Links(); return err })
			return all
		}
		for _, e := range []*end{mac, ip} {
			e.ns.Run(t, "ip", "link", "set", e.dev, "netns", pid)
			inside("link", "set", e.dev, "up")
		}
		changed, a := net.HardwareAddr{2, 0, 0, 0, 0, 0x78}, netip.MustParsePrefix("10.77.0.120/24")
		inside("link", "set", mac.dev, "address", changed.String())
		inside("addr", "add", mac.ip4.String(), "dev", mac.dev)
		inside("addr", "add", a.String(), "dev", ip.dev)
		lab.Eventually(t, "the datapath has the new MAC", func() bool {
			return slices.ContainsFunc(links(), func(l Link) bool { return l.Name == mac.dev && slices.Equal(l.WireMAC, changed) })
		})
		lab.Eventually(t, "the datapath has the new address", func() bool {
			return slices.ContainsFunc(links(), func(l Link) bool {
				return l.Name == ip.dev && l.Place == maps.Away && slices.Contains(l.Addrs, LinkAddr{Addr: a.Addr(), Origin: maps.Learned})
			})
		})
		s.wire.ping(t, mac.ip4.Addr())
		s.wire.ping(t, a.Addr())
	})
}

// TestServeMany has many changes at once, the last of which must not be missed.
func TestServeMany(t *testing.T) {
	s := newSite(t, onClsact, siteOption{})
	s.populate(t)
	s.serve(t)
	e := s.sub(t, "mac1")
	var last net.HardwareAddr
	for i := range 100 {
		last = net.HardwareAddr{2, 0, 0, 1, 0, byte(i)}
		link := e.ns.Link(t, e.dev)
		if err := e.ns.Handle().LinkSetHardwareAddr(link, last); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			time.Sleep(settleTime / 2)
		}
	}
	lab.Eventually(t, "the datapath has the last MAC", func() bool { return slices.Equal(s.link(t, e).WireMAC, last) })
}

// TestPromiscFollows has macvlans made promiscuous, one after the other.
func TestPromiscFollows(t *testing.T) {
	onRungs(t, withMacvlan, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		s.serve(t)
		mac1, mac2 := s.sub(t, "mac1"), s.sub(t, "mac2")
		parent := func() int { return s.host.ns.Link(t, parentDev).Attrs().Promisc }
		found := parent()
		step := func(what string, want bool, e *end, args ...string) {
			t.Helper()
			e.ns.Run(t, "ip", append([]string{"link", "set", e.dev}, args...)...)
			lab.Eventually(t, what, func() bool { return (parent() > found) == want })
		}
		step("one is promiscuous, and so is the parent", true, mac1, "promisc", "on")
		step("so are two", true, mac2, "promisc", "on")
		step("the other still is", true, mac1, "promisc", "off")
		mac2.ns.Run(t, "ip", "link", "set", mac2.dev, "address", "02:00:00:00:00:44")
		lab.Eventually(t, "the datapath has the new MAC", func() bool { return s.link(t, mac2).WireMAC.String() == "02:00:00:00:00:44" })
		s.wire.ping(t, s.host.ip4.Addr()) // by when all that belongs to it is done
		step("still is", true, mac2, "mtu", "1400")
		step("is down", false, mac2, "down")
		step("is up again", true, mac2, "up")
		s.del(t, mac2)
		if parent() != found {
			t.Errorf("the parent's promiscuity is %d, and was %d", parent(), found)
		}
		// What others have asked for stays.
		s.host.ns.Run(t, "ip", "link", "set", parentDev, "promisc", "on")
		step("it was before", true, mac1, "promisc", "on")
		s.del(t, mac1)
		if s.host.linkFlags(t)&unix.IFF_PROMISC == 0 {
			t.Error("the administrator's own is gone")
		}
	})
}

// TestPromiscEnds detaches a parent that several have made promiscuous.
func TestPromiscEnds(t *testing.T) {
	s := newSite(t, onTCX, siteOption{})
	parent := func() int { return s.host.ns.Link(t, parentDev).Attrs().Promisc }
	found := parent()
	for _, name := range []string{"mac1", "mac2"} {
		e := s.sub(t, name)
		s.addAtOnce(t, e, e.ip4)
		e.ns.Run(t, "ip", "link", "set", e.dev, "promisc", "on")
	}
	s.sweep(t)
	if parent() <= found {
		t.Fatal("the parent is not promiscuous")
	}
	s.do(t, func(h *Host) error { return h.Detach(parentDev) })
	if parent() != found {
		t.Errorf("the parent's promiscuity is %d, and was %d", parent(), found)
	}
	s.checkGone(t)
}
