package bpf_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
)

// Sub-interfaces in the modes l3 and l3s, and siblings of other modes.
const (
	r3 = 20 + iota // l3, inner leg in another namespace
	r3Here
	r3Unset // its leg does not forward: nothing can be looked up
	r3VEPA
	r3Private
	r3Private2
	r3Pending
	rs // l3s
	rsVEPA
	rsPrivate
	rl2 // l2
	rl2VEPA
	rMAC           // macvlan, with given addresses
	routedCapacity = rMAC
)

const (
	noRoute = bpf.XvlanVerdictVERDICT_DROP_ROUTE
	gateway = 201 // ends its address
)

var (
	farIP4    = netip.MustParseAddr("198.51.100.1") // no route leads there
	farIP6    = netip.MustParseAddr("2001:db9::1")
	beyondIP4 = netip.MustParseAddr("203.0.113.1") // a route by the gateway does
	beyondIP6 = netip.MustParseAddr("2001:dba::1")
)

// routedWorld has the host's addresses and routes on the parent.
func routedWorld(tb testing.TB) *world {
	tb.Helper()
	const here, away, stack = bpf.XvlanSubPlacePLACE_LOCAL, bpf.XvlanSubPlacePLACE_AWAY, bpf.XvlanSubPlacePLACE_HOST
	w := newWorld(tb, routedCapacity)
	for _, s := range []struct {
		id    uint32
		mode  bpf.XvlanSubMode
		class bpf.XvlanSubClass
		place bpf.XvlanSubPlace
	}{
		{r3, bpf.XvlanSubModeMODE_L3, classBridge, away},
		{r3Here, bpf.XvlanSubModeMODE_L3, classBridge, here},
		{r3Unset, bpf.XvlanSubModeMODE_L3, classBridge, away},
		{r3VEPA, bpf.XvlanSubModeMODE_L3, classVEPA, away},
		{r3Private, bpf.XvlanSubModeMODE_L3, classPrivate, away},
		{r3Private2, bpf.XvlanSubModeMODE_L3, classPrivate, away},
		{r3Pending, bpf.XvlanSubModeMODE_L3, classBridge, away},
		{rs, bpf.XvlanSubModeMODE_L3S, classBridge, stack},
		{rsVEPA, bpf.XvlanSubModeMODE_L3S, classVEPA, stack},
		{rsPrivate, bpf.XvlanSubModeMODE_L3S, classPrivate, stack},
		{rl2, bpf.XvlanSubModeMODE_L2, classBridge, away},
		{rl2VEPA, bpf.XvlanSubModeMODE_L2, classVEPA, away},
	} {
		sub := ipvlan(s.place)
		sub.Mode, sub.Class = s.mode, s.class
		if s.id == r3Pending {
			sub.State = bpf.XvlanSubStateSUB_PENDING
		}
		w.add(tb, s.id, sub)
		w.give(s.id)
		if s.id != r3Unset {
			w.host.Sysctl(tb, "net.ipv4.conf."+legName(s.id)+".forwarding", "1")
			w.host.Sysctl(tb, "net.ipv6.conf."+legName(s.id)+".forwarding", "1")
		}
	}
	w.add(tb, rMAC, macvlan(away))
	w.give(rMAC)
	w.outside = []uint32{r3, r3Here, r3Unset, r3VEPA, r3Private, r3Private2, r3Pending, rs, rsVEPA, rsPrivate}
	w.dests = append(w.dests, usualDests[0], usualDests[1],
		entry{0, ip4Of(gateway), 0, 0, bpf.XvlanDestFlagDEST_RESERVED | bpf.XvlanDestFlagDEST_GATEWAY},
		entry{0, ip6Of(gateway), 0, 0, bpf.XvlanDestFlagDEST_RESERVED | bpf.XvlanDestFlagDEST_GATEWAY},
		entry{0, ip4Of(taught), rl2, generation, bpf.XvlanDestFlagDEST_LEARNED},
		entry{0, ip6Of(taught), rl2, generation, bpf.XvlanDestFlagDEST_LEARNED})
	w.host.Sysctl(tb, "net.ipv6.conf.p0.disable_ipv6", "0")
	w.host.Addr(tb, "p0", ip4Of(reserved).String()+"/24", ip6Of(reserved).String()+"/64")
	w.host.Run(tb, "ip", "route", "add", beyondIP4.String(), "via", ip4Of(gateway).String())
	w.host.Run(tb, "ip", "route", "add", beyondIP6.String(), "via", ip6Of(gateway).String())
	w.host.Run(tb, "ip", "route", "add", "unreachable", "203.0.113.2")
	w.host.Run(tb, "ip", "route", "add", "blackhole", "203.0.113.3")
	w.host.Run(tb, "ip", "route", "add", "prohibit", "203.0.113.4")
	w.enter(tb)
	return w
}

// packet builds a datagram as a device without ARP sends it: to its own MAC.
func packet(dst, src netip.Addr) builder {
	return func(m mac) []byte { return udp(m, m, dst, src, 18) }
}

// routed completes a case: the source MAC alone is the parent's now.
func routed(name string, from uint32, b builder, end func(string, uint32, []byte) frameCase) frameCase {
	c := end(name, from, b(macOf(from)))
	c.out = set(c.frame, 6, parentMAC[:]...)
	return c
}

// away is the end of a frame that goes nowhere, up that of one which the host's
// stack is to route.
func away(why bpf.XvlanVerdict) func(string, uint32, []byte) frameCase {
	return func(name string, from uint32, frame []byte) frameCase { return refused(name, from, why, frame) }
}

func up(name string, from uint32, frame []byte) frameCase {
	c := sent(name, from, frame)
	c.ret = actNext
	return c
}

// both makes a case of each family.
func both(name string, from uint32, to uint32, end func(string, uint32, []byte) frameCase) []frameCase {
	return []frameCase{
		routed(name+", IPv4", from, packet(ip4Of(to), ip4Of(from)), end),
		routed(name+", IPv6", from, packet(ip6Of(to), ip6Of(from)), end),
	}
}

// toMAC completes cases whose destination MAC is changed.
func toMAC(m mac, cases []frameCase) []frameCase {
	for i := range cases {
		cases[i].out = set(cases[i].out, 0, m[:]...)
	}
	return cases
}

func concat(lists ...[]frameCase) (all []frameCase) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// txSiblings go by the destination IP, whatever the modes of the two ends.
func txSiblings() []frameCase {
	return concat(
		both("l3 to l2", r3, rl2, to(rl2)),
		toMAC(macOf(r3Here), both("l3 to one here", r3, r3Here, to(r3Here))),
		both("one here to l3", r3Here, r3, to(r3)),
		both("to itself", r3, r3, func(name string, from uint32, frame []byte) frameCase {
			c := sent(name, from, frame)
			c.hits = append(c.hits, hit{id: from, verdict: rx})
			return c
		}),
		toMAC(macOf(rs), both("l3 to l3s: by its leg", r3, rs, to(rs))),
		both("l3s to l3", rs, r3, to(r3)),
		both("l3 to a vepa one", r3, r3VEPA, sent),
		both("l3 to a private one", r3, r3Private, sent),
		both("l3 to l2 vepa", r3, rl2VEPA, sent),
		both("l3 to one pending", r3, r3Pending, sent),
		both("one pending to l3", r3Pending, r3, to(r3)),
		both("l3 to macvlan: by the wire", r3, rMAC, sent),
		both("vepa to l3", r3VEPA, r3, sent),
		both("private to l3", r3Private, r3, away(modes)),
		both("private to private", r3Private, r3Private2, away(modes)),
		both("private to itself", r3Private, r3Private, away(modes)),
		both("l3s vepa to l3", rsVEPA, r3, up),
		both("l3s private to l3", rsPrivate, r3, away(modes)),
		both("l3s to a private one", rs, r3Private, up),
		[]frameCase{
			masked("l2 to l3", rl2, func(m mac) []byte { return udp(parentMAC, m, ip4Of(r3), ip4Of(rl2), 18) }, to(r3)),
			handed("macvlan to l3", rMAC, r3, udp(parentMAC, macOf(rMAC), ip4Of(r3), ip4Of(rMAC), 18)),
			routed("to another MAC", r3, func(m mac) []byte { return udp(strangerMAC, m, ip4Of(rl2), ip4Of(r3), 18) }, to(rl2)),
		})
}

// txRoutes go out by the host's routes.
func txRoutes() []frameCase {
	far := func(name string, from uint32, dst, src netip.Addr, end func(string, uint32, []byte) frameCase) frameCase {
		return routed(name, from, packet(dst, src), end)
	}
	cases := concat(
		both("on the link", r3, 99, sent),
		both("gateway", r3, gateway, sent),
		toMAC(parentMAC, both("host", r3, reserved, sent)),
		toMAC(parentMAC, both("host, no look-up", r3Unset, reserved, sent)),
		both("vepa", r3VEPA, 99, sent),
		both("private", r3Private, 99, sent),
		both("l3s", rs, 99, up),
		both("l3s, host", rs, reserved, up),
		both("l3s, private", rsPrivate, 99, up),
		[]frameCase{
			far("by the gateway, IPv4", r3, beyondIP4, ip4Of(r3), sent),
			far("by the gateway, IPv6", r3, beyondIP6, ip6Of(r3), sent),
			far("no route, IPv4", r3, farIP4, ip4Of(r3), away(noRoute)),
			far("no route, IPv6", r3, farIP6, ip6Of(r3), away(noRoute)),
			far("no route, vepa", r3VEPA, farIP4, ip4Of(r3VEPA), away(noRoute)),
			far("no route, no look-up, IPv4", r3Unset, farIP4, ip4Of(r3Unset), sent),
			far("no route, no look-up, IPv6", r3Unset, farIP6, ip6Of(r3Unset), sent),
			far("no route, l3s: the stack's to say", rs, farIP4, ip4Of(rs), up),
			far("broadcast address of the link", r3, ip4Of(255), ip4Of(r3), away(noRoute)),
			far("link-local", r3, netip.MustParseAddr("fe80::1"), ip6Of(r3), sent),
		})
	for _, end := range []string{"2", "3", "4"} {
		dst := netip.MustParseAddr("203.0.113." + end)
		cases = append(cases, far("refused by the host, "+end, r3, dst, ip4Of(r3), away(noRoute)))
	}
	fromLL := far("from a link-local address", r3, farIP6, netip.MustParseAddr("fe80::7"), sent)
	return append(cases, learns(fromLL, netip.MustParseAddr("fe80::7")))
}

// txNotRouted is what the modes do not carry.
func txNotRouted() []frameCase {
	var cases []frameCase
	for _, me := range []uint32{r3, rs, r3VEPA, r3Private} {
		add := func(name string, b builder) {
			cases = append(cases, routed(fmt.Sprintf("%s from %d", name, me), me, b, away(modes)))
		}
		add("broadcast", func(m mac) []byte { return udp(broadcastMAC, m, ip4Of(99), ip4Of(me), 18) })
		add("limited broadcast", packet(netip.MustParseAddr("255.255.255.255"), ip4Of(me)))
		add("multicast", func(m mac) []byte { return udp(multicastMAC, m, allNodes, ip6Of(me), 18) })
		add("multicast for a sibling", func(m mac) []byte { return udp(multicastMAC, m, ip6Of(rl2), ip6Of(me), 18) })
		add("IPv4 group at a unicast MAC", packet(netip.MustParseAddr("224.0.0.1"), ip4Of(me)))
		add("IPv6 group at a unicast MAC", packet(allNodes, ip6Of(me)))
		add("unknown EtherType", func(m mac) []byte { return set(packet(ip4Of(99), ip4Of(me))(m), 12, 0x88, 0xb5) })
		add("tagged", func(m mac) []byte { return tagged(packet(ip4Of(rl2), ip4Of(me))(m), 0x8100, 10) })
		add("priority tag", func(m mac) []byte { return tagged(packet(ip4Of(rl2), ip4Of(me))(m), 0x8100, 0) })
		cases = append(cases,
			masked(fmt.Sprintf("ARP from %d", me), me, func(m mac) []byte { return whoHas(m, ip4Of(me), ip4Of(rl2)) }, away(modes)),
			masked(fmt.Sprintf("solicitation from %d", me), me, func(m mac) []byte {
				return solicit(m, ip6Of(me), ip6Of(rl2), sourceLL(m))
			}, away(modes)))
	}
	const me = r3
	v4, v6 := packet(ip4Of(99), ip4Of(me))(macOf(me)), packet(ip6Of(99), ip6Of(me))(macOf(me))
	return append(cases,
		dropped("IPv4 of version 6", me, set(v4, 14, 0x65)),
		dropped("IPv4 of four words", me, set(v4, 14, 0x44)),
		dropped("IPv6 of version 4", me, set(v6, 14, 0x40)),
		dropped("ARP cut", me, whoHas(macOf(me), ip4Of(me), ip4Of(99))[:40]),
		masked("advertisement to a sibling", me, func(m mac) []byte {
			return icmp6(parentMAC, m, ip6Of(rl2), ip6Of(me), layers.ICMPv6TypeNeighborAdvertisement, advertBody(0x60, ip6Of(me), targetLL(m)))
		}, to(rl2)))
}

// txLearned are addresses learned from what is sent, of which ARP would tell in
// other modes.
func txLearned() []frameCase {
	var cases []frameCase
	for name, of := range map[string]func(uint32) netip.Addr{"IPv4": ip4Of, "IPv6": ip6Of} {
		add := func(what string, from uint32, src netip.Addr) *frameCase {
			cases = append(cases, routed(what+", "+name, from, packet(of(99), src), sent))
			return &cases[len(cases)-1]
		}
		*add("new", r3, of(50)) = learns(routed("new, "+name, r3, packet(of(99), of(50)), sent), of(50))
		for what, id := range map[string]uint32{
			"given to a sibling": rl2, "learned by a sibling": taught, "the host's": reserved,
			"the gateway's": gateway, "a macvlan's": rMAC,
		} {
			c := add(what, r3, of(id))
			*c = duplicate(*c)
		}
		up := routed("l3s, "+name, rs, packet(of(99), of(50)), up)
		cases = append(cases, learns(up, of(50)))
		group := routed("from a group-addressed one, "+name, r3, func(m mac) []byte {
			return udp(multicastMAC, m, of(99), of(50), 18)
		}, away(modes))
		cases = append(cases, learns(group, of(50)))
	}
	return append(cases,
		routed("loopback", r3, packet(ip4Of(99), netip.MustParseAddr("127.0.0.1")), sent),
		routed("none", r3, packet(ip6Of(99), anyIP6), sent))
}

// rxRouted is what comes from the wire: unicast as in l2, nothing for all.
func rxRouted() []frameCase {
	wire := func(to uint32, of func(uint32) netip.Addr) []byte {
		return udp(parentMAC, routerMAC, of(to), of(99), 18)
	}
	stack := func(name string, id uint32, frame []byte) frameCase {
		return frameCase{name: name, frame: frame, ret: actNext, hits: []hit{{id: id, verdict: rx}}}
	}
	others := []uint32{rl2, rl2VEPA, rMAC}
	return []frameCase{
		delivered("IPv4", r3, wire(r3, ip4Of)),
		delivered("IPv6", r3, wire(r3, ip6Of)),
		readdressed(delivered("here", r3Here, wire(r3Here, ip4Of)), macOf(r3Here)),
		delivered("private", r3Private, wire(r3Private, ip4Of)),
		left("pending", wire(r3Pending, ip4Of)),
		stack("l3s, IPv4", rs, wire(rs, ip4Of)),
		stack("l3s, IPv6", rs, wire(rs, ip6Of)),
		stack("l3s vepa", rsVEPA, wire(rsVEPA, ip6Of)),
		stack("l3s private", rsPrivate, wire(rsPrivate, ip6Of)),
		stack("l3s, ARP answer", rs, arp(layers.ARPReply, parentMAC, routerMAC, ip4Of(99), parentMAC, ip4Of(rs))),
		{name: "l3s private, of a sibling", frame: udp(parentMAC, parentMAC, ip4Of(rsPrivate), ip4Of(rl2), 18),
			ret: actDrop, hits: []hit{{id: rsPrivate, verdict: returned}}},
		heard("ARP question for l3", whoHas(routerMAC, routerIP4, ip4Of(r3)), others),
		heard("ARP question for l3s", whoHas(routerMAC, routerIP4, ip4Of(rs)), others),
		heard("solicitation for l3", solicit(routerMAC, routerIP6, ip6Of(r3)), others),
		delivered("ARP question for l2", rl2, whoHas(routerMAC, routerIP4, ip4Of(rl2))),
		heard("broadcast", udp(broadcastMAC, routerMAC, ip4Of(255), ip4Of(99), 18), others),
		heard("broadcast for l3", udp(broadcastMAC, routerMAC, ip4Of(r3), ip4Of(99), 18), others),
		heard("broadcast with a private one's address", udp(broadcastMAC, parentMAC, ip4Of(255), ip4Of(r3Private), 18), []uint32{rl2VEPA}),
		heard("multicast", udp(multicastMAC, routerMAC, allNodes, ip6Of(99), 18), others),
	}
}

func TestRouted(t *testing.T) {
	lab.NeedTool(t, "ip")
	w := routedWorld(t)
	for name, cases := range map[string][]frameCase{
		"siblings": txSiblings(), "routes": txRoutes(), "not routed": txNotRouted(), "learned": txLearned(),
	} {
		t.Run(name, func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanTx, cases) })
	}
	t.Run("wire", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanRx, rxRouted()) })
	t.Run("question of a sibling", func(t *testing.T) {
		ask := func(m mac) []byte { return whoHas(m, ip4Of(rl2), ip4Of(r3)) }
		c := masked("for l3", rl2, ask, sent)
		c.hits = append(c.hits, hit{id: rMAC, verdict: rx})
		checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{c})
	})
	w.meta.Mtu = 30
	if err := w.host.Handle().LinkSetMTU(w.host.Link(t, "p0"), 1280); err != nil {
		t.Fatal(err)
	}
	checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{
		refused("over the MTU", r3, overMTU, padded(packet(ip4Of(99), ip4Of(50))(macOf(r3)), 1300)),
	})
}

// Each of them holds as many addresses as by ARP.
func TestRoutedRing(t *testing.T) {
	lab.NeedTool(t, "ip")
	w := routedWorld(t)
	for name, of := range map[string]func(uint32) netip.Addr{"IPv4": ip4Of, "IPv6": ip6Of} {
		t.Run(name, func(t *testing.T) {
			w.enter(t)
			var held []netip.Addr
			for i := range uint32(2 * bpf.LearnSlots) {
				w.run(t, bpf.XvlanProgXvlanTx, r3, packet(of(99), of(60+i))(macOf(r3)), 0)
				held = append(held, of(60+i))
				held = held[max(0, len(held)-bpf.LearnSlots):]
				wantLearned(t, w, r3, held...)
			}
		})
	}
}
