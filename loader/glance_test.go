package loader

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/xvlan/xvlan/maps"
)

// TestGlance has commands look at nothing but what they are about, as they nearly do
// where there are thousands: what is wanted of those that are gone they find out, and
// what an interrupted command has left they remove.
func TestGlance(t *testing.T) {
	s := newSite(t, onTCX, siteOption{})
	s.h.glanced = 0
	s.do(t, func(h *Host) error { return h.Attach(parentDev, AttachSpec{Capacity: 3}) })
	mac := net.HardwareAddr{2, 0x77, 0, 0, 0, 1}
	a, b := s.sub(t, "mac1"), s.sub(t, "mac2")
	spec := s.spec(a)
	spec.Netns, spec.MAC, spec.Addrs = a.ns.Name(), mac, []netip.Prefix{a.ip4}
	other := s.spec(b)
	other.Netns = b.ns.Name()
	s.do(t, func(h *Host) error { return errors.Join(h.Add(spec), h.Add(other)) })
	taken := func() (n int) {
		s.do(t, func(h *Host) error {
			return h.eachParent(func(_ folder, set *maps.Set, _ maps.Parent) error {
				subs, err := set.Subs()
				for _, sub := range subs {
					if sub.State != maps.Free {
						n++
					}
				}
				return err
			})
		})
		return n
	}

	for _, again := range []struct {
		what  string
		mac   net.HardwareAddr
		addrs []netip.Prefix
	}{{"mac", mac, nil}, {"address", nil, []netip.Prefix{a.ip4}}, {"id", nil, nil}} {
		a.ns.Run(t, "ip", "link", "del", a.dev)
		s.do(t, func(h *Host) error {
			return h.SetDevice(Selector{Name: b.dev, Netns: b.ns.Name()}, DeviceChange{MTU: 1400})
		})
		if n := taken(); n != 2 {
			t.Fatalf("%d sub-interfaces, not 2: it was looked for who is gone", n)
		}
		if again.what == "id" {
			third := other
			third.Name = "third"
			s.do(t, func(h *Host) error { return h.Add(third) })
		}
		next := spec
		next.MAC, next.Addrs = again.mac, again.addrs
		if err := s.try(t, func(h *Host) error { return h.Add(next) }); err != nil {
			t.Fatalf("the %s is still that of one that is gone: %v", again.what, err)
		}
		if again.what == "id" {
			break
		}
		s.do(t, func(h *Host) error { return h.Del(Selector{Name: next.Name, Netns: next.Netns}) })
		s.do(t, func(h *Host) error { return h.Add(spec) })
	}

	give := func(addr string) error {
		given := []netip.Prefix{netip.MustParsePrefix(addr)}
		return s.try(t, func(h *Host) error { return h.SetAddrs(Selector{Name: b.dev, Netns: b.ns.Name()}, given) })
	}
	s.host.ns.Addr(t, s.host.dev, "10.77.0.99/24")
	s.sweep(t)
	s.host.ns.Run(t, "ip", "addr", "del", "10.77.0.99/24", "dev", s.host.dev)
	if err := give("10.77.0.99/24"); err != nil {
		t.Errorf("an address is still the host's that it has no more: %v", err)
	}
	for _, addr := range []string{"10.77.0.98/24", "fd77::98/64"} {
		s.host.ns.Addr(t, s.host.dev, addr)
		if err := give(addr); !errors.Is(err, ErrExists) {
			t.Errorf("given the host's new address %s: %v", addr, err)
		}
	}
	if err := give("fd77::99/64"); err != nil {
		t.Errorf("given an address that nobody has: %v", err)
	}
	s.do(t, func(h *Host) error { return h.Del(Selector{Name: "third", Netns: b.ns.Name()}) })

	l := s.link(t, b)
	s.do(t, func(h *Host) error {
		p, unlock, err := h.lockFolder(h.folder(s.host.index(t)))
		if err != nil {
			return err
		}
		defer unlock()
		defer p.close()
		sub, err := p.maps.Sub(l.ID)
		sub.State = maps.Pending
		return errors.Join(err, p.maps.PutSub(l.ID, sub))
	})
	s.do(t, func(h *Host) error { return h.Del(Selector{Name: a.dev, Netns: a.ns.Name()}) })
	s.checkGone(t)
}
