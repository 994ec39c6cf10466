package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// deleteParent deletes the parent, and so the wire's end of it, and returns what
// makes a device of that name, and the wire behind it, up and with their addresses.
// Neighbours still know the wire.
func (s *site) deleteParent(t *testing.T) (again func()) {
	t.Helper()
	mac := s.wire.mac(t)
	again = func() {
		t.Helper()
		lab.VethWith(t, s.host.ns, s.host.dev, s.wire.ns, s.wire.dev, lab.VethOptions{MACB: mac})
		for _, e := range []*end{s.host, s.wire} {
			e.ns.Addr(t, e.dev, e.ip4.String(), e.ip6.String())
			e.settle(t)
		}
		s.host.ping(t, s.wire.ip6.Addr())
	}
	s.host.ns.Run(t, "ip", "link", "del", s.host.dev)
	return again
}

// parents is what Parents tells.
func (s *site) parents(t *testing.T) []ParentInfo {
	t.Helper()
	var all []ParentInfo
	s.do(t, func(h *Host) (err error) { all, err = h.Parents(); return err })
	return all
}

// talk shows that each sub-interface and the wire reach each other.
func (s *site) talk(t *testing.T, subs ...*end) {
	t.Helper()
	for _, e := range subs {
		s.settle(t, e)
		for i, a := range e.addrs() {
			e.ping(t, s.wire.addrs()[i])
			s.wire.ping(t, a)
		}
	}
}

// TestParentDeleted deletes the parent under its sub-interfaces, which on the kernel
// rung go with it. Otherwise they stay, and what they send is dropped, until a
// device of that name is there.
func TestParentDeleted(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(allRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		if r.datapath == Kernel {
			again := s.deleteParent(t)
			s.sweep(t)
			s.checkGone(t)
			for _, e := range s.subs {
				if _, err := e.ns.Handle().LinkByName(e.dev); err == nil {
					t.Errorf("%s has not gone with its parent", e.name)
				}
			}
			again()
			s.populate(t)
			s.talk(t, s.subs...)
			return
		}
		s.talk(t, s.subs...)
		before := map[*end]Link{}
		for _, e := range s.subs {
			before[e] = s.link(t, e)
		}
		again := s.deleteParent(t)
		s.sweep(t)
		if all := s.parents(t); len(all) != 1 || !all[0].Gone() || all[0].Name != parentDev || all[0].Links != len(s.subs) {
			t.Errorf("parents are %+v", all)
		}
		last := s.subs[len(s.subs)-1]
		s.del(t, last) // works all the same
		left := s.subs[:len(s.subs)-1]
		for _, e := range left {
			was, now := before[e], s.link(t, e)
			if !now.Orphan || now.ID != was.ID || now.gen != was.gen || !slices.Equal(now.WireMAC, was.WireMAC) ||
				slices.ContainsFunc(was.Addrs, func(a LinkAddr) bool { return !slices.Contains(now.Addrs, a) }) {
				t.Errorf("%s is now\n%+v\nand was\n%+v", e.name, now, was)
			}
			dropped := now.Stats[maps.DropInactive].Packets
			e.ns.Send(t, e.dev, arpQuestion(t, e, s.wire))
			lab.Eventually(t, "what "+e.name+" sends is counted as dropped", func() bool {
				return s.link(t, e).Stats[maps.DropInactive].Packets > dropped
			})
		}
		err := s.try(t, func(h *Host) error { return h.Add(s.spec(last)) })
		checkError(t, err, ErrNotFound, "parent "+parentDev)

		again()
		s.host.ns.Run(t, "ip", "link", "set", parentDev, "allmulticast", "on") // as others may have
		found := s.state(t)
		s.sweep(t)
		for _, e := range left {
			was, now := before[e], s.link(t, e)
			if now.Orphan || now.ID != was.ID || now.Leg != was.Leg || now.Stats[maps.RX].Packets < was.Stats[maps.RX].Packets {
				t.Errorf("%s is again\n%+v\nand was\n%+v", e.name, now, was)
			}
			if e.kind == maps.Ipvlan && !slices.Equal(now.WireMAC, s.host.mac(t)) {
				t.Errorf("%s has %s on the wire, and its parent %s", e.name, now.WireMAC, s.host.mac(t))
			}
			if e.kind == maps.Macvlan && !strings.Contains(state(t, s.host.ns, parentDev), e.mac(t).String()) {
				t.Errorf("%s's MAC is not in the parent's filter", e.name)
			}
		}
		s.talk(t, left...)
		s.addAtOnce(t, last, last.ip4, last.ip6)
		s.talk(t, s.subs...)
		for _, e := range s.subs {
			s.del(t, e)
		}
		s.checkGone(t)
		if diff := s.settled(t, found); len(diff) > 0 {
			t.Errorf("the new device is changed:\n%s", strings.Join(diff, "\n"))
		}
	})
}

// TestParentDeletedServed has somebody who follows: sub-interfaces lose their
// carrier with their parent, and are at work when it is back and up.
func TestParentDeletedServed(t *testing.T) {
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		s.serve(t)
		for range 2 {
			again := s.deleteParent(t)
			for _, e := range s.subs {
				lab.Eventually(t, e.name+" has no carrier", func() bool { return e.linkFlags(t)&unix.IFF_LOWER_UP == 0 })
			}
			again()
			for _, e := range s.subs {
				lab.Eventually(t, e.name+" has its carrier again", func() bool { return e.linkFlags(t)&unix.IFF_LOWER_UP != 0 })
			}
			s.talk(t, s.subs...)
		}
		s.deleteParent(t)
		lab.Eventually(t, "the parent is known to be gone", func() bool { return s.parents(t)[0].Gone() })
		s.do(t, func(h *Host) error { return h.Detach(parentDev) })
		s.checkGone(t)
	})
}

// TestParentBusy adds to a parent that has come back while another command works on it
// and has not seen that yet: it is waited for, and the device becomes no second parent.
func TestParentBusy(t *testing.T) {
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		e, more := s.sub(t, "mac1"), s.sub(t, "mac2")
		s.addAtOnce(t, e, e.ip4, e.ip6)
		f, _, err := s.h.folderOf(s.host.index(t))
		if err != nil {
			t.Fatal(err)
		}
		lock := f.String()
		again := s.deleteParent(t)
		s.sweep(t)
		unlock, err := lockFile(lock)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { unlock() }()
		var held unix.Stat_t
		if err := unix.Stat(filepath.Join(lockDir, lock), &held); err != nil {
			t.Fatal(err)
		}
		again()
		spec := s.spec(more)
		spec.Netns, spec.Up, spec.Addrs = more.ns.Name(), true, []netip.Prefix{more.ip4, more.ip6}
		done := make(chan error, 1)
		go func() { done <- s.try(t, func(h *Host) error { return h.Add(spec) }) }()
		lab.Eventually(t, "the lock is waited for", func() bool {
			locks, err := os.ReadFile("/proc/locks")
			if err != nil {
				t.Fatal(err)
			}
			return len(done) > 0 || slices.ContainsFunc(strings.Split(string(locks), "\n"), func(line string) bool {
				return strings.Contains(line, "-> FLOCK") && strings.Contains(line, fmt.Sprintf(":%d ", held.Ino))
			})
		})
		unlock()
		unlock = func() {}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if all := s.parents(t); len(all) != 1 || all[0].Gone() || all[0].Links != 2 {
			t.Errorf("parents are %+v", all)
		}
		s.talk(t, e, more)
	})
}

// TestParentModes gives a new device what modes ask of it, and takes it back.
func TestParentModes(t *testing.T) {
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		for _, mode := range []maps.Mode{maps.Passthru, maps.L3S} {
			t.Run(mode.String(), func(t *testing.T) {
				s := newSite(t, r, siteOption{})
				e := s.sub(t, "mac1")
				if mode.IsIpvlan() {
					e = s.sub(t, "ip1")
				}
				spec := s.spec(e)
				spec.Mode, spec.Netns, spec.Up, spec.Addrs = mode, e.ns.Name(), true, []netip.Prefix{e.ip4}
				s.do(t, func(h *Host) error { return h.Add(spec) })
				again := s.deleteParent(t)
				s.sweep(t)
				leg := s.link(t, e).Leg
				again()
				found := slices.DeleteFunc(s.state(t), func(line string) bool { return strings.Contains(line, leg) })
				s.do(t, func(h *Host) error { return h.sweepDead(folder{}) }) // as a command for another parent would
				s.settle(t, e)
				flags := s.host.linkFlags(t)
				if flags&unix.IFF_ALLMULTI == 0 {
					t.Error("the parent does not take all multicast")
				}
				if promisc := flags&unix.IFF_PROMISC != 0; promisc != (mode == maps.Passthru) {
					t.Errorf("the parent is promiscuous: %v", promisc)
				}
				if mode == maps.Passthru {
					if got, want := e.mac(t), s.host.mac(t); !slices.Equal(got, want) {
						t.Errorf("%s has %s, its parent %s", e.name, got, want)
					}
					s.wire.ping(t, e.ip4.Addr())
				} else {
					e.ns.Run(t, "ip", "route", "replace", "default", "dev", e.dev)
					s.wire.ns.Run(t, "ip", "route", "add", e.ip4.Addr().String(), "via", s.host.ip4.Addr().String())
					s.wire.ping(t, e.ip4.Addr())
				}
				s.del(t, e)
				s.checkGone(t)
				if diff := s.settled(t, found); len(diff) > 0 {
					t.Errorf("the new device is changed:\n%s", strings.Join(diff, "\n"))
				}
			})
		}
	})
}

// TestParentAway takes the parent to another network namespace, where it is still
// itself: another device of its name is not it.
func TestParentAway(t *testing.T) {
	onRungs(t, []rungCase{onTCX}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		away := lab.NewNetns(t, "away")
		index := s.host.index(t)
		s.host.ns.Run(t, "ip", "link", "set", parentDev, "netns", away.Name())
		for _, other := range [][]string{nil, {"index", strconv.Itoa(index)}} {
			s.host.ns.Run(t, "ip", append(append([]string{"link", "add"}, other...), parentDev, "type", "veth", "peer", "peer0")...)
			s.sweep(t)
			if all := s.parents(t); len(all) != 1 || !all[0].Gone() {
				t.Errorf("with another of its name parents are %+v", all)
			}
			if other == nil {
				s.host.ns.Run(t, "ip", "link", "del", parentDev)
				continue
			}
			// Another of its number, by which it was known, may be a parent, too.
			e := s.sub(t, "mac1")
			spec := s.spec(e)
			spec.Name = "another"
			s.do(t, func(h *Host) error { return h.Add(spec) })
			if all := s.parents(t); len(all) != 2 || all[0].Gone() == all[1].Gone() {
				t.Errorf("with another at its number parents are %+v", all)
			}
			s.host.ns.Run(t, "ip", "link", "set", parentDev, "name", "other0")
		}
		away.Run(t, "ip", "link", "set", parentDev, "netns", s.host.ns.Name())
		if got := s.host.index(t); got == index {
			t.Fatalf("it has its number %d again", got)
		}
		s.host.ns.Up(t, s.host.dev)
		s.host.ns.Addr(t, s.host.dev, s.host.ip4.String(), s.host.ip6.String())
		s.host.settle(t)
		s.sweep(t)
		s.talk(t, s.subs...)
		s.do(t, func(h *Host) error { return errors.Join(h.Del(Selector{Name: "another"}), h.Detach(parentDev)) })
		s.checkGone(t)
	})
}

// TestParentRenamed has another device take the parent's name, which stays itself.
func TestParentRenamed(t *testing.T) {
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		s.host.ns.Run(t, "ip", "link", "set", parentDev, "down")
		s.host.ns.Run(t, "ip", "link", "set", parentDev, "name", "lan0")
		s.host.ns.Run(t, "ip", "link", "set", "lan0", "up")
		s.host.ns.Run(t, "ip", "link", "add", parentDev, "type", "veth", "peer", "peer0")
		s.host.dev = "lan0"
		s.host.ns.Addr(t, s.host.dev, s.host.ip6.String())
		s.sweep(t)
		if all := s.parents(t); len(all) != 1 || all[0].Gone() || all[0].Name != "lan0" {
			t.Errorf("parents are %+v", all)
		}
		s.talk(t, s.subs...)
		// Gone, it does not take the other one.
		s.deleteParent(t)
		s.sweep(t)
		if all := s.parents(t); len(all) != 1 || !all[0].Gone() || all[0].Name != "lan0" {
			t.Errorf("parents are %+v", all)
		}
		// Nor when that has its name and is a parent itself.
		s.do(t, func(h *Host) error { return h.Attach(parentDev, AttachSpec{Datapath: TC, Keep: true}) })
		s.host.ns.Run(t, "ip", "link", "set", parentDev, "name", "lan0")
		s.sweep(t)
		if all := s.parents(t); len(all) != 2 || all[0].Gone() == all[1].Gone() {
			t.Errorf("parents are %+v", all)
		}
		s.do(t, func(h *Host) error { return h.Detach("lan0") }) // the one that is there
		s.host.ns.Run(t, "ip", "link", "set", "lan0", "name", "other0")
		s.do(t, func(h *Host) error { return h.Detach("lan0") })
		s.checkGone(t)
	})
}

// TestParentBackMTU has a device come back with the MTU that all begin with: only
// what it has when it is up is handed on, or macvlans would be left with it.
func TestParentBackMTU(t *testing.T) {
	s := newSite(t, onClsact, siteOption{mtu: 9000})
	s.populate(t)
	s.serve(t)
	s.deleteParent(t)
	lab.Eventually(t, "the parent is known to be gone", func() bool { return s.parents(t)[0].Gone() })
	s.host.ns.Run(t, "ip", "link", "add", parentDev, "type", "veth", "peer", s.wire.dev, "netns", s.wire.ns.Name())
	lab.Eventually(t, "the parent is known to be back", func() bool { return !s.parents(t)[0].Gone() })
	s.sweep(t)
	s.setMTU(t, 9000)
	for _, e := range []*end{s.host, s.wire} {
		e.ns.Up(t, e.dev)
		e.ns.Addr(t, e.dev, e.ip4.String(), e.ip6.String())
		e.settle(t)
	}
	for _, e := range s.subs {
		lab.Eventually(t, e.name+" has its carrier again", func() bool { return e.linkFlags(t)&unix.IFF_LOWER_UP != 0 })
		if mtu := e.ns.Link(t, e.dev).Attrs().MTU; mtu != 9000 {
			t.Errorf("%s has mtu %d", e.name, mtu)
		}
		e.ping(t, s.wire.ip4.Addr(), "-M", "do", "-s", fmt.Sprint(9000-28))
	}
}
