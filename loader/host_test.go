package loader

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// The host's address elsewhere.
var otherAddr = netip.MustParsePrefix("10.88.0.1/32")

// hosted makes all sub-interfaces with host access, one more in mode l3, and one of
// each kind without.
func hosted(t *testing.T, r rungCase) (s *site, with, without []*end) {
	t.Helper()
	s = newSite(t, r, siteOption{})
	s.host.ns.Addr(t, "lo", otherAddr.String())
	s.subs = append(s.subs, newEnd("l3", lab.NewNetns(t, "l3"), "l3", maps.Ipvlan, 31))
	with = slices.Clone(s.subs)
	without = []*end{
		newEnd("mac3", lab.NewNetns(t, "mac3"), "mac3", maps.Macvlan, 13),
		newEnd("ip3", lab.NewNetns(t, "ip3"), "ip3", maps.Ipvlan, 23),
	}
	s.subs = append(s.subs, without...)
	for _, e := range s.subs {
		spec := s.spec(e)
		spec.Netns, spec.Up, spec.Addrs = e.ns.Name(), true, []netip.Prefix{e.ip4, e.ip6}
		spec.Host = slices.Contains(with, e)
		if e.name == "l3" {
			spec.Mode = maps.L3
		}
		if e.name == "mac2" {
			spec.Mode = maps.Private
		}
		s.do(t, func(h *Host) error { return h.Add(spec) })
		s.settle(t, e)
	}
	return s, with, without
}

// The host and sub-interfaces with host access reach each other, by all that an
// ordinary stack sends, whichever of the host's addresses it is; the others do not,
// and the wire carries none of it.
func TestHostAccess(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s, with, without := hosted(t, r)
		for _, e := range with {
			for i, a := range e.addrs() {
				s.host.ping(t, a)
				e.ping(t, s.host.addrs()[i])
				e.ping(t, s.host.addrs()[i], "-s", "4000")
			}
			e.ns.Run(t, "ip", "route", "add", otherAddr.String(), "dev", e.dev)
			e.ping(t, otherAddr.Addr())
			for _, ip := range []func(*end) netip.Addr{ip4Of, ip6Of} {
				before := s.wire.ns.Link(t, s.wire.dev).Attrs().Statistics.RxBytes
				rx, tx := e.packets(t)
				bulk(t, s.host, e, ip, 1<<20)
				bulk(t, e, s.host, ip, 1<<20)
				if wire := s.wire.ns.Link(t, s.wire.dev).Attrs().Statistics.RxBytes - before; wire > 100<<10 {
					t.Errorf("%s: %d bytes of it went to the wire", e.name, wire)
				}
				// Cut to frames it would be 1,450 each way and acknowledgements.
				rx2, tx2 := e.packets(t)
				if rx2-rx > 1000 || tx2-tx > 1000 {
					t.Errorf("%s: 4 MiB came in %d and went in %d packets: super-packets were cut", e.name, rx2-rx, tx2-tx)
				}
			}
		}
		for _, e := range without {
			for i, a := range e.addrs() {
				s.host.pingFails(t, a)
				e.pingFails(t, s.host.addrs()[i])
				e.ping(t, s.wire.addrs()[i])
			}
		}
		s.host.ping(t, s.wire.ip4.Addr())
		for _, e := range with {
			if e.name != "l3" { // which has no ARP on the wire
				e.ping(t, s.wire.ip4.Addr())
				s.wire.ping(t, e.ip6.Addr())
			}
		}
	})
}

// packets are those that a device has received and sent, a super-packet being one.
func (e *end) packets(t testing.TB) (rx, tx uint64) {
	t.Helper()
	stats := e.ns.Link(t, e.dev).Attrs().Statistics
	return stats.RxPackets, stats.TxPackets
}

func (s *site) setHost(t testing.TB, e *end, on bool) {
	t.Helper()
	s.do(t, func(h *Host) error { return h.SetHost(Selector{Name: e.dev, Netns: e.ns.Name()}, on) })
}

// Host access is turned on and off while frames flow, of which none is lost. The
// program comes and goes with it, and so do neighbours.
func TestHostAccessSet(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		plain := s.running(t)
		set := func(e *end, on bool) { t.Helper(); s.setHost(t, e, on) }
		e, other := s.sub(t, "mac1"), s.sub(t, "ip2")
		e.ping(t, s.wire.ip4.Addr())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 5 {
				set(e, true)
				set(e, false)
			}
		}()
		e.ping(t, s.wire.ip4.Addr(), "-c", "200", "-i", "0.005")
		<-done
		if now := s.running(t); !slices.Equal(now, plain) {
			t.Errorf("with host access off there run\n%q\nbefore\n%q", now, plain)
		}
		for _, e := range []*end{e, other} {
			set(e, true)
			for _, a := range e.addrs() {
				s.host.ping(t, a)
				if s.host.neighbour(t, a) == nil {
					t.Errorf("the host has no neighbour %s", a)
				}
			}
		}
		if now := s.running(t); len(now) <= len(plain) {
			t.Errorf("with host access on there run\n%q\nbefore\n%q", now, plain)
		}
		// A MAC that has gone is no neighbour's any more.
		s.do(t, func(h *Host) error {
			return h.SetDevice(Selector{Name: e.dev, Netns: e.ns.Name()}, DeviceChange{MAC: randomMAC()})
		})
		if n := s.host.neighbour(t, e.ip4.Addr()); n != nil {
			t.Errorf("the host still has neighbour %s, whose mac was changed", n)
		}
		s.host.ping(t, e.ip4.Addr())
		set(e, false)
		s.del(t, other)
		for _, a := range append(e.addrs(), other.addrs()...) {
			if n := s.host.neighbour(t, a); n != nil {
				t.Errorf("the host still has neighbour %s at %s", a, n)
			}
		}
		s.host.pingFails(t, e.ip4.Addr())
		e.ping(t, s.wire.ip4.Addr())
		for _, e := range s.subs {
			if e != other {
				s.del(t, e)
			}
		}
		s.checkGone(t)
	})
}

// withoutHost are the modes that neither have host access nor go by way of the host.
var withoutHost = []struct {
	kind maps.Kind
	mode maps.Mode
	flag maps.Class
}{
	{maps.Macvlan, maps.VEPA, 0}, {maps.Macvlan, maps.Passthru, 0}, {maps.Macvlan, maps.Source, 0},
	{maps.Ipvlan, maps.L3S, 0}, {maps.Ipvlan, maps.L2, maps.ClassVEPA},
}

// What has no host access is refused by name.
func TestHostAccessRefused(t *testing.T) {
	s := newSite(t, onClsact, siteOption{noIPv6: true})
	for _, c := range withoutHost {
		spec := LinkSpec{Parent: parentDev, Name: "c1", Kind: c.kind, Mode: c.mode, Flag: c.flag, Host: true}
		if err := s.try(t, func(h *Host) error { return h.Add(spec) }); !errors.Is(err, ErrUnsupported) {
			t.Errorf("mode %s %s: %v", c.mode, c.flag, err)
		}
	}
	e := s.sub(t, "ip1")
	spec := s.spec(e)
	spec.Host = true
	s.do(t, func(h *Host) error { return h.Add(spec) })
	sel := Selector{Name: e.dev}
	if err := s.try(t, func(h *Host) error { return h.SetMode(sel, ModeChange{Mode: maps.L3S}) }); !errors.Is(err, ErrUnsupported) {
		t.Errorf("into mode l3s with host access: %v", err)
	}
	s.do(t, func(h *Host) error { return h.SetMode(sel, ModeChange{Mode: maps.L3}) })
	s.do(t, func(h *Host) error { return h.SetHost(sel, false) })
	s.do(t, func(h *Host) error { return h.SetMode(sel, ModeChange{Mode: maps.L3S}) })
	if err := s.try(t, func(h *Host) error { return h.SetHost(sel, true) }); !errors.Is(err, ErrUnsupported) {
		t.Errorf("in mode l3s: %v", err)
	}
	onRungs(t, []rungCase{onMacvlan}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		e := s.sub(t, "mac1")
		spec := s.spec(e)
		spec.Host = true
		if err := s.try(t, func(h *Host) error { return h.Add(spec) }); !errors.Is(err, ErrUnsupported) {
			t.Errorf("on the kernel rung: %v", err)
		}
		spec.Host = false
		s.do(t, func(h *Host) error { return h.Add(spec) })
		if err := s.try(t, func(h *Host) error { return h.SetHost(Selector{Name: e.dev}, true) }); !errors.Is(err, ErrUnsupported) {
			t.Errorf("set on the kernel rung: %v", err)
		}
	})
}
