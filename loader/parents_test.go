package loader

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// A parentCase is a kind of parent, made on a site's veth pair.
type parentCase struct {
	kind    string // as HasKind takes it; "" for what every kernel has
	rung    string // the beginning of its reason
	filter  bool   // MACs are entered into it
	macvlan bool   // takes MAC-keyed sub-interfaces
	lone    bool   // has no wire
	make    func(t *testing.T, s *site, on *end)
}

const noDriverXDP = "no native XDP: the driver has none"

var parentCases = map[string]parentCase{
	"veth": {rung: "veth: native XDP would make its peer give up TSO", filter: true, macvlan: true, make: func(*testing.T, *site, *end) {}},
	"eth0.10": {kind: "vlan", rung: noDriverXDP, filter: true, macvlan: true, make: func(t *testing.T, s *site, on *end) {
		on.stack(t, "eth0.10", "link", "add", "link", on.dev, "name", "eth0.10", "type", "vlan", "id", "10")
	}},
	"vxlan": {kind: "vxlan", rung: noDriverXDP, macvlan: true, make: func(t *testing.T, s *site, on *end) {
		peer := map[*end]string{s.host: "10.99.0.2", s.wire: "10.99.0.1"}[on]
		own := map[*end]string{s.host: "10.99.0.1", s.wire: "10.99.0.2"}[on]
		on.stack(t, "vx0", "link", "add", "vx0", "type", "vxlan", "id", "5", "dstport", "4789", "local", own, "remote", peer, "dev", on.dev)
		on.ns.Addr(t, s.under(on), own+"/24")
	}},
	"bridge": {kind: "bridge", rung: noDriverXDP, filter: true, macvlan: true, make: func(t *testing.T, s *site, on *end) {
		if on == s.host {
			port := on.dev
			on.stack(t, "br0", "link", "add", "br0", "type", "bridge")
			on.ns.Run(t, "ip", "link", "set", port, "master", "br0")
		}
	}},
	"bond": {kind: "bond", rung: "bond: native XDP would be its port's, eth0, veth: ", filter: true, macvlan: true, make: func(t *testing.T, s *site, on *end) {
		if on == s.host {
			port := on.dev
			on.ns.Run(t, "ip", "link", "set", port, "down")
			on.stack(t, "bond7", "link", "add", "bond7", "type", "bond", "mode", "active-backup", "miimon", "10")
			on.ns.Run(t, "ip", "link", "set", port, "master", "bond7")
		}
	}},
	"dummy": {kind: "dummy", rung: noDriverXDP, filter: true, macvlan: true, lone: true, make: func(t *testing.T, s *site, on *end) {
		if on == s.host {
			on.stack(t, "dummy7", "link", "add", "dummy7", "type", "dummy")
		}
	}},
	"tap": {rung: "tun: native XDP would turn its receive offloads off", filter: true, macvlan: true, make: func(t *testing.T, s *site, on *end) {
		if on == s.host {
			s.host.dev, s.wire.dev = "tap0", "tap0"
			pump(t, openTap(t, s.host), openTap(t, s.wire))
		}
	}},
	"macvlan": {kind: "macvlan", rung: noDriverXDP, make: func(t *testing.T, s *site, on *end) {
		if on == s.host {
			on.stack(t, "mv0", "link", "add", "link", on.dev, "name", "mv0", "type", "macvlan", "mode", "bridge")
		}
	}},
	"macvlan passthru": {kind: "macvlan", rung: noDriverXDP, filter: true, macvlan: true, make: func(t *testing.T, s *site, on *end) {
		if on == s.host {
			on.stack(t, "mv0", "link", "add", "link", on.dev, "name", "mv0", "type", "macvlan", "mode", "passthru")
		}
	}},
}

// under is the veth of one of the ends.
func (s *site) under(on *end) string {
	if on == s.host {
		return parentDev
	}
	return "wire0"
}

// stack makes a device that takes the place of the end's.
func (e *end) stack(t *testing.T, dev string, args ...string) {
	t.Helper()
	e.ns.Run(t, "ip", args...)
	e.dev = dev
}

// openTap makes a tap device and opens it.
func openTap(t *testing.T, e *end) *os.File {
	t.Helper()
	var (
		f   *os.File
		err error
	)
	e.ns.Do(t, func() {
		var fd int
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return
		}
		ifr, _ := unix.NewIfreq(e.dev) // short enough
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		f = os.NewFile(uintptr(fd), "tap")
	})
	if err != nil {
		t.Fatalf("open tap device: %v", err)
	}
	return f
}

// pump is a cable between two taps.
func pump(t *testing.T, a, b *os.File) {
	t.Helper()
	done := make(chan bool, 2)
	run := func(from, to *os.File) {
		buf := make([]byte, 1<<16)
		for {
			n, err := from.Read(buf)
			if errors.Is(err, os.ErrClosed) {
				break
			}
			if err == nil {
				_, _ = to.Write(buf[:n]) // lost while the other is down
			}
		}
		done <- true
	}
	go run(a, b)
	go run(b, a)
	t.Cleanup(func() {
		a.Close()
		b.Close()
		<-done
		<-done
	})
}

// TestParents has each kind of parent carry sub-interfaces, and be left as it
// was found.
func TestParents(t *testing.T) {
	lab.NeedTool(t, "ping")
	lab.NeedTool(t, "bridge")
	for name, c := range parentCases {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			if c.kind != "" {
				needKind(t, c.kind)
			}
			s := newSite(t, rungCase{kinds: both}, siteOption{})
			for _, on := range []*end{s.host, s.wire} {
				on.ns.Run(t, "ip", "addr", "flush", "dev", on.dev)
			}
			for _, on := range []*end{s.host, s.wire} {
				c.make(t, s, on)
			}
			for _, on := range []*end{s.host, s.wire} {
				on.ns.Up(t, s.under(on), on.dev)
				on.ns.Addr(t, on.dev, on.ip4.String(), on.ip6.String())
				on.settle(t)
			}
			if !c.lone {
				s.wire.ping(t, s.host.ip4.Addr())
			}
			for _, dev := range []string{s.under(s.host), s.host.dev} {
				lab.Eventually(t, dev+" says that it has a carrier", func() bool { // the kernel's link watch takes its time
					return s.host.ns.Link(t, dev).Attrs().RawFlags&unix.IFF_RUNNING != 0
				})
			}
			c.test(t, s)
		})
	}
}

func (c parentCase) test(t *testing.T, s *site) {
	t.Helper()
	dev := s.host.dev
	before, under := state(t, s.host.ns, dev), state(t, s.host.ns, s.under(s.host))
	c.probe(t, s)
	subs := []*end{s.sub(t, "mac1"), s.sub(t, "ip1"), s.sub(t, "ip2")}
	if !c.macvlan {
		spec := s.spec(subs[0])
		spec.Parent = dev
		err := s.try(t, func(h *Host) error { return h.Add(spec) })
		checkError(t, err, ErrUnsupported, "receives no MAC but its own", "type ipvlan")
		checkState(t, s.host.ns, dev, before)
		subs = subs[1:]
	}
	for _, e := range subs {
		spec := s.spec(e)
		spec.Parent, spec.Netns, spec.Up, spec.Addrs = dev, e.ns.Name(), true, []netip.Prefix{e.ip4, e.ip6}
		s.do(t, func(h *Host) error { return h.Add(spec) })
		s.settle(t, e)
		l := s.link(t, e)
		if l.Parent != dev || l.Rung.Rung != maps.RungTC || !strings.HasPrefix(l.Rung.Reason, c.rung) {
			t.Errorf("%s is listed as %+v, want tc because %s", e.name, l, c.rung)
		}
		in := strings.Contains(state(t, s.host.ns, dev), e.mac(t).String())
		if want := c.filter && e.kind == maps.Macvlan; in != want {
			t.Errorf("%s's MAC is in the parent's filter: %v, want %v", e.name, in, want)
		}
	}
	if s.host.ns.Link(t, dev).Attrs().RawFlags&unix.IFF_ALLMULTI == 0 {
		t.Error("the parent does not take all multicast")
	}
	for i, e := range subs {
		others := subs[:i:i]
		if !c.lone {
			others = append(others, s.wire)
		}
		for _, other := range others {
			for i, a := range other.addrs() {
				e.ping(t, a)
				other.ping(t, e.addrs()[i])
			}
			bulk(t, other, e, ip4Of, 1<<18)
			bulk(t, e, other, ip6Of, 1<<18)
		}
	}
	for _, e := range subs {
		s.del(t, e)
	}
	checkState(t, s.host.ns, dev, before)
	checkState(t, s.host.ns, s.under(s.host), under)
	s.checkGone(t)
}

// probe wants probe to say beforehand what is then done.
func (c parentCase) probe(t *testing.T, s *site) {
	t.Helper()
	var p *Probe
	s.do(t, func(h *Host) (err error) { p, err = h.Probe(s.host.dev); return err })
	if p.Rung.Rung != maps.RungTC || !strings.HasPrefix(p.Rung.Reason, c.rung) {
		t.Errorf("probe says %v, want tc because %s", p.Rung, c.rung)
	}
}

// TestIpvlanParent is refused: nothing for others would come to it.
func TestIpvlanParent(t *testing.T) {
	needKind(t, "ipvlan")
	s := newSite(t, rungCase{kinds: both}, siteOption{})
	s.host.ns.Run(t, "ip", "link", "add", "link", parentDev, "name", "iv0", "type", "ipvlan", "mode", "l2")
	for _, e := range []*end{s.sub(t, "mac1"), s.sub(t, "ip1")} {
		spec := s.spec(e)
		spec.Parent = "iv0"
		err := s.try(t, func(h *Host) error { return h.Add(spec) })
		checkError(t, err, ErrUnsupported, "parent iv0", "name its parent")
	}
	s.checkGone(t)
}

// TestBondFailover has a bond take its other port: it tells its neighbours, and
// so do the sub-interfaces on it.
func TestBondFailover(t *testing.T) {
	needKind(t, "bond")
	s := newSite(t, onClsact, siteOption{})
	lab.Veth(t, s.host.ns, "eth1", s.wire.ns, "wire1")
	for _, on := range []*end{s.host, s.wire} {
		on.ns.Run(t, "ip", "addr", "flush", "dev", on.dev)
	}
	s.wire.stack(t, "br0", "link", "add", "br0", "type", "bridge")
	s.host.stack(t, "bond7", "link", "add", "bond7", "type", "bond", "mode", "active-backup", "miimon", "10")
	for _, port := range []string{"0", "1"} {
		s.wire.ns.Run(t, "ip", "link", "set", "wire"+port, "master", "br0", "up")
		s.host.ns.Run(t, "ip", "link", "set", "eth"+port, "down")
		s.host.ns.Run(t, "ip", "link", "set", "eth"+port, "master", "bond7")
	}
	for _, on := range []*end{s.host, s.wire} {
		on.ns.Up(t, on.dev)
		on.ns.Addr(t, on.dev, on.ip4.String(), on.ip6.String())
		on.settle(t)
	}
	subs := []*end{s.sub(t, "mac1"), s.sub(t, "ip1")}
	for _, e := range subs {
		spec := s.spec(e)
		spec.Parent, spec.Netns, spec.Up, spec.Addrs = s.host.dev, e.ns.Name(), true, []netip.Prefix{e.ip4, e.ip6}
		s.do(t, func(h *Host) error { return h.Add(spec) })
		s.settle(t, e)
		e.ping(t, s.wire.ip4.Addr())
	}
	s.serve(t)
	for _, port := range []string{"eth1", "eth0"} {
		capture := s.wire.ns.Capture(t, s.wire.dev)
		s.host.ns.Run(t, "ip", "link", "set", "bond7", "type", "bond", "active_slave", port)
		left := map[string][]byte{}
		for _, e := range subs {
			for _, a := range e.addrs() {
				left[fmt.Sprintf("%s's %s", e.name, a)] = announcement(s.link(t, e).WireMAC, a)
			}
		}
		capture.Matching(1, socketTime, func(f lab.Frame) bool {
			for what, want := range left {
				if bytes.HasPrefix(f.Data, want) {
					delete(left, what)
				}
			}
			return len(left) == 0
		})
		for what := range left {
			t.Errorf("with %s active, not announced: %s", port, what)
		}
		for _, e := range subs {
			e.ping(t, s.wire.ip4.Addr())
		}
	}
}
