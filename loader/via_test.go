package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// What is reached by way of the host, and what stands there, by rules of its own:
// services of the host itself, of a neighbour on the wire and of a sibling.
var (
	viaNets     = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/112")}
	hostService = [2]netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")}
	wireService = [2]netip.Addr{netip.MustParseAddr("10.96.0.2"), netip.MustParseAddr("fd00:96::2")}
	siblings    = [2]netip.Addr{netip.MustParseAddr("10.96.0.3"), netip.MustParseAddr("fd00:96::3")}
	linkService = netip.MustParseAddr("169.254.169.254") // the host's own address
	hostOther   = [2]netip.Prefix{otherAddr, netip.MustParsePrefix("fd88::1/128")}
)

// viaSite makes a sub-interface of each kind that reaches networks by way of the host,
// one with host access, which gives a service, and one with neither.
func viaSite(t *testing.T, r rungCase) (s *site, via []*end, sibling, plain *end) {
	t.Helper()
	lab.NeedTool(t, "nft")
	s = newSite(t, r, siteOption{})
	s.subs = append(s.subs, newEnd("l3", lab.NewNetns(t, "l3"), "l3", maps.Ipvlan, 31))
	via = []*end{s.sub(t, "mac1"), s.sub(t, "ip1"), s.sub(t, "l3")}
	sibling, plain = s.sub(t, "mac2"), s.sub(t, "ip2")
	s.host.ns.Sysctl(t, "net.ipv4.conf.all.forwarding", "0")
	s.host.ns.Sysctl(t, "net.ipv6.conf.all.forwarding", "0")
	if all, _ := s.host.ns.Try(t, "sysctl", "-n", "net.ipv6.conf.all.force_forwarding"); !strings.HasPrefix(all, "0") {
		s.host.ns.Sysctl(t, "net.ipv6.conf.all.forwarding", "1") // before Linux 6.17
	}
	for _, a := range append(hostOther[:], netip.PrefixFrom(linkService, 32)) {
		s.host.ns.Addr(t, "lo", a.String())
	}
	rules := "table inet t {\nchain pre { type nat hook prerouting priority dstnat;\n"
	for i, to := range [][2]netip.Addr{{hostOther[0].Addr(), hostOther[1].Addr()}, {s.wire.ip4.Addr(), s.wire.ip6.Addr()}, {sibling.ip4.Addr(), sibling.ip6.Addr()}} {
		at := [][2]netip.Addr{hostService, wireService, siblings}[i]
		rules += fmt.Sprintf("ip daddr %s dnat ip to %s\nip6 daddr %s dnat ip6 to %s\n", at[0], to[0], at[1], to[1])
	}
	rules += "}\nchain post { type nat hook postrouting priority srcnat; ct status dnat oifname eth0 masquerade; }\n}"
	s.host.ns.Run(t, "nft", rules)
	for _, e := range s.subs {
		spec := s.spec(e)
		spec.Netns, spec.Up, spec.Addrs = e.ns.Name(), true, []netip.Prefix{e.ip4, e.ip6}
		spec.Host = e == sibling
		if slices.Contains(via, e) {
			spec.Via = viaNets
		}
		if e.name == "l3" {
			spec.Mode = maps.L3
		}
		if e.name == "mac1" {
			spec.Guard = GuardSpec{Guard: &maps.Guard{On: true}}
		}
		s.do(t, func(h *Host) error { return h.Add(spec) })
		s.settle(t, e)
		e.ns.Run(t, "ip", "route", "add", "default", "via", s.wire.ip4.Addr().String(), "dev", e.dev, "onlink")
		e.ns.Run(t, "ip", "route", "add", "default", "via", s.wire.ip6.Addr().String(), "dev", e.dev, "onlink")
	}
	return s, via, sibling, plain
}

// Services behind the host's rules are reached by TCP, fragments and echo requests,
// whether the way there is a gateway on the wire or none, with super-packets whole, and
// the wire carries none of it but what a rule sends there. All else is as without.
func TestViaHost(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s, via, sibling, plain := viaSite(t, r)
		for i, a := range s.sub(t, "l3").addrs() { // which has no ARP there
			s.wire.ns.Run(t, "ip", "route", "add", a.String(), "via", s.host.addrs()[i].String())
		}
		for _, e := range via {
			for i, own := range e.addrs() {
				ways := []string{"by the gateway", "on the link"}
				if e.name == "l3" {
					ways = ways[:1] // it asks nobody
				}
				for _, way := range ways {
					if way == "on the link" {
						e.ns.Run(t, "ip", "route", "add", viaNets[i].String(), "dev", e.dev)
					}
					seen := s.wire.ns.Capture(t, s.wire.dev)
					before := s.wire.ns.Link(t, s.wire.dev).Attrs().Statistics.RxBytes
					e.ping(t, hostService[i])
					e.ping(t, hostService[i], "-s", "4000")
					rx, tx := e.packets(t)
					bulkBy(t, e, s.host, own, hostService[i], hostOther[i].Addr(), 1<<20)
					rx2, tx2 := e.packets(t)
					if rx2-rx > 500 || tx2-tx > 500 {
						t.Errorf("%s, %s: 2 MiB came in %d and went in %d packets: super-packets were cut", e.name, way, rx2-rx, tx2-tx)
					}
					if wire := s.wire.ns.Link(t, s.wire.dev).Attrs().Statistics.RxBytes - before; wire > 50<<10 {
						t.Errorf("%s, %s: %d bytes of it went to the wire", e.name, way, wire)
					}
					for _, f := range s.received(t, seen) {
						if strings.Contains(string(f.Data), string(hostService[i].AsSlice())) {
							t.Errorf("%s, %s: the wire has seen\n% x", e.name, way, f.Data)
						}
					}
					bulkBy(t, e, s.wire, own, wireService[i], s.wire.addrs()[i], 1<<18)
					bulkBy(t, e, sibling, own, siblings[i], sibling.addrs()[i], 1<<18)
				}
				e.pingFails(t, hostOther[i].Addr()) // in none of its networks, as is
				e.pingFails(t, s.host.addrs()[i])
				if e.name != "l3" {
					e.neighbourAt(t, s.host.addrs()[i], s.host.mac(t))
					e.pingFails(t, s.host.addrs()[i])
				}
				e.ping(t, s.wire.addrs()[i])
			}
			if e.name != "l3" {
				e.ping(t, sibling.ip4.Addr())
			}
		}
		plain.pingFails(t, hostService[0])
		// What a service there is to all hosts is one to the link.
		e := s.sub(t, "mac1")
		s.do(t, func(h *Host) error {
			return h.SetVia(Selector{Name: e.dev, Netns: e.ns.Name()}, []netip.Prefix{netip.PrefixFrom(linkService, 32)})
		})
		e.ns.Run(t, "ip", "route", "add", linkService.String(), "dev", e.dev)
		e.ping(t, linkService)
		e.pingFails(t, hostService[0])
	})
}

// neighbourAt has an end send to an address by this MAC without a question.
func (e *end) neighbourAt(t testing.TB, a netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	e.ns.Run(t, "ip", "neigh", "replace", a.String(), "lladdr", mac.String(), "dev", e.dev)
}

// It is turned on and off while frames flow, of which none is lost; the program, the
// host's forwarding and its neighbours come and go with it.
func TestViaHostSet(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		s.host.ns.Sysctl(t, "net.ipv4.conf.all.forwarding", "0")
		s.host.ns.Addr(t, "lo", otherAddr.String())
		forwards := func() string {
			return strings.TrimSpace(s.host.ns.Run(t, "sysctl", "-n", "net.ipv4.conf."+parentDev+".forwarding"))
		}
		plain := s.running(t)
		e := s.sub(t, "mac1")
		set := func(nets ...netip.Prefix) {
			t.Helper()
			s.do(t, func(h *Host) error { return h.SetVia(Selector{Name: e.dev, Netns: e.ns.Name()}, nets) })
			if l := s.link(t, e); !slices.Equal(l.Via, nets) {
				t.Errorf("it reaches %v by way of the host, want %v", l.Via, nets)
			}
		}
		other := netip.MustParsePrefix("198.51.100.0/24")
		e.ping(t, s.wire.ip4.Addr())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 5 {
				set(otherAddr)
				set(otherAddr, other)
				set()
			}
		}()
		e.ping(t, s.wire.ip4.Addr(), "-c", "200", "-i", "0.005")
		<-done
		if now := s.running(t); !slices.Equal(now, plain) || forwards() != "0" {
			t.Errorf("with none there run\n%q\nand forwarding is %s; before\n%q", now, forwards(), plain)
		}
		e.ns.Run(t, "ip", "route", "add", otherAddr.String(), "dev", e.dev)
		e.pingFails(t, otherAddr.Addr())
		set(otherAddr)
		e.ping(t, otherAddr.Addr())
		if now := s.running(t); len(now) <= len(plain) || forwards() != "1" {
			t.Errorf("with a network there run\n%q\nand forwarding is %s; before\n%q", now, forwards(), plain)
		}
		if s.host.neighbour(t, e.ip4.Addr()) == nil {
			t.Errorf("the host has no neighbour %s", e.ip4.Addr())
		}
		s.setHost(t, e, true)
		s.setHost(t, e, false)
		e.ping(t, otherAddr.Addr())
		again := s.deleteParent(t)
		s.sweep(t)
		again()
		s.sweep(t)
		if s.settle(t, e); forwards() != "1" {
			t.Errorf("forwarding of the parent that is back is %s", forwards())
		}
		e.ping(t, otherAddr.Addr())
		set()
		if n := s.host.neighbour(t, e.ip4.Addr()); n != nil {
			t.Errorf("the host still has a neighbour %s", n)
		}
		set(otherAddr)
		for _, e := range s.subs {
			s.del(t, e)
		}
		if forwards() != "0" {
			t.Error("forwarding was not put back")
		}
		s.checkGone(t)
	})
}

// Networks that make no sense, and modes that have no such way, are refused by name.
func TestViaHostRefused(t *testing.T) {
	s := newSite(t, onClsact, siteOption{noIPv6: true})
	e := s.sub(t, "mac1")
	sel := Selector{Name: e.dev}
	spec := s.spec(e)
	s.do(t, func(h *Host) error { return h.Add(spec) })
	for nets, want := range map[string]string{
		"10.96.0.1/12": "10.96.0.0/12", "224.0.0.0/4": "224.0.0.0/4", "127.0.0.0/8": "127.0.0.0/8", "fe80::/64": "fe80::/64",
		"::ffff:10.0.0.0/104": "IPv4", "10.0.0.0/8,10.0.0.0/8": "twice", "255.255.255.255": "255.255.255.255",
		strings.Repeat("10.0.0.0/8,", bpf.ViaNets) + "10.0.0.0/8": "17 networks, at most 16",
		"10.96.0.0/33": `"10.96.0.0/33"`, "cluster": `"cluster"`, "10.0.0.0/8,": `""`,
	} {
		all, err := ParseVia(nets)
		if err == nil {
			err = s.try(t, func(h *Host) error { return h.SetVia(sel, all) })
		}
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", nets, err)
		}
	}
	for _, all := range []string{"0.0.0.0/0", "::/0", "10.0.0.1"} {
		nets, err := ParseVia(all)
		if err == nil {
			err = s.try(t, func(h *Host) error { return h.SetVia(sel, nets) })
		}
		if err != nil {
			t.Errorf("%s: %v", all, err)
		}
	}
	if err := s.try(t, func(h *Host) error { return h.SetMode(sel, ModeChange{Mode: maps.VEPA}) }); !errors.Is(err, ErrUnsupported) {
		t.Errorf("into mode vepa: %v", err)
	}
	s.do(t, func(h *Host) error { return h.SetVia(sel, nil) })
	for _, c := range withoutHost {
		spec := LinkSpec{Parent: parentDev, Name: "c1", Kind: c.kind, Mode: c.mode, Flag: c.flag, Via: viaNets}
		if err := s.try(t, func(h *Host) error { return h.Add(spec) }); !errors.Is(err, ErrUnsupported) {
			t.Errorf("mode %s %s: %v", c.mode, c.flag, err)
		}
	}
	tagged := LinkSpec{Parent: parentDev, Name: "c1", Kind: maps.Macvlan, Mode: maps.Bridge, Via: viaNets, VLAN: vlanSpec(VLAN{ID: 10})}
	if err := s.try(t, func(h *Host) error { return h.Add(tagged) }); !errors.Is(err, ErrUnsupported) {
		t.Errorf("in a VLAN: %v", err)
	}
	onRungs(t, []rungCase{onMacvlan}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		spec := s.spec(s.sub(t, "mac1"))
		spec.Via = viaNets
		if err := s.try(t, func(h *Host) error { return h.Add(spec) }); !errors.Is(err, ErrUnsupported) {
			t.Errorf("on the kernel rung: %v", err)
		}
		spec.Via = nil
		s.do(t, func(h *Host) error { return h.Add(spec) })
		if err := s.try(t, func(h *Host) error { return h.SetVia(Selector{Name: spec.Name}, viaNets) }); !errors.Is(err, ErrUnsupported) {
			t.Errorf("set on the kernel rung: %v", err)
		}
	})
}
