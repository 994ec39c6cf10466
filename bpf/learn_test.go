package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/xvlan/xvlan/bpf"
)

// learns completes a case: the sender is now the learned owner of the address.
func learns(c frameCase, addr netip.Addr) frameCase {
	vlan := uint32(0)
	if c.from == ipVLAN {
		vlan = 10
	}
	c.news = append(c.news, entry{vlan, addr, c.from, generation, bpf.XvlanDestFlagDEST_LEARNED})
	return c
}

// duplicate completes a case: the sender does not get the address.
func duplicate(c frameCase) frameCase {
	c.hits = append(c.hits, hit{c.from, learnDup, 1, 0})
	return c
}

func learnIP4() []frameCase {
	const me = ipHere
	mine := ip4Of(50)
	claim := func(name string, addr netip.Addr) frameCase {
		return masked(name, me, func(m mac) []byte { return whoHas(m, addr, ip4Of(99)) }, shouted)
	}
	return []frameCase{
		learns(claim("request", mine), mine),
		learns(masked("reply", me, func(m mac) []byte {
			return arp(layers.ARPReply, routerMAC, m, mine, routerMAC, routerIP4)
		}, sent), mine),
		learns(masked("announcement", me, func(m mac) []byte { return whoHas(m, mine, mine) }, shouted), mine),
		inVLAN(learns(masked("in the VLAN", ipVLAN, func(m mac) []byte {
			return whoHas(m, mine, routerIP4)
		}, to(macVLAN)), mine)),
		claim("own given address", ip4Of(me)),
		duplicate(claim("another's given address", ip4Of(ipAway))),
		duplicate(claim("a MAC-keyed one's given address", ip4Of(macGiven))),
		duplicate(claim("another's learned address", ip4Of(taught))),
		duplicate(claim("reserved address", ip4Of(reserved))),
		learns(claim("VLAN's given address, untagged", ip4Of(ipVLAN)), ip4Of(ipVLAN)),
		duplicate(claim("of the record pending", ip4Of(pending))),
		learns(claim("of a former owner", ip4Of(stale)), ip4Of(stale)),
		learns(claim("of the id's former owner", ip4Of(inherited)), ip4Of(inherited)),
		learns(claim("of the record free", ip4Of(free)), ip4Of(free)),
		masked("own learned address", ipAway, func(m mac) []byte {
			return whoHas(m, ip4Of(taught), ip4Of(99))
		}, shouted),
		masked("datagram", me, func(m mac) []byte { return udp(routerMAC, m, routerIP4, mine, 18) }, sent),
		dropped("malformed", me, set(whoHas(macOf(me), mine, ip4Of(99)), 19, 5)),
		sent("MAC-keyed", macAway, arp(layers.ARPReply, routerMAC, macOf(macAway), mine, routerMAC, routerIP4)),
	}
}

func learnIP6() []frameCase {
	const me = ipHere
	mine := ip6Of(50)
	claim := func(name string, addr netip.Addr) frameCase {
		return masked(name, me, func(m mac) []byte { return advertise(m, addr, targetLL(m)) }, shouted)
	}
	ask := func(from netip.Addr) builder {
		return func(m mac) []byte { return solicit(m, from, ip6Of(99), sourceLL(m)) }
	}
	routerQuestion := func(m mac) []byte {
		return icmp6(multicastMAC, m, allNodes, mine, layers.ICMPv6TypeRouterSolicitation,
			&layers.ICMPv6RouterSolicitation{Options: layers.ICMPv6Options{sourceLL(m)}})
	}
	answer := func(m mac) []byte {
		return icmp6(routerMAC, m, routerIP6, ip6Of(60), layers.ICMPv6TypeNeighborAdvertisement,
			advertBody(0x60, mine, targetLL(m)))
	}
	return []frameCase{
		learns(masked("solicitation", me, ask(mine), shouted), mine),
		learns(claim("advertisement", mine), mine),
		learns(masked("advertisement from another source: the target", me, answer, sent), mine),
		inVLAN(learns(masked("in the VLAN", ipVLAN, func(m mac) []byte {
			return solicit(m, mine, routerIP6, sourceLL(m))
		}, to(macVLAN)), mine)),
		masked("address detection", me, func(m mac) []byte { return solicit(m, anyIP6, mine) }, shouted),
		masked("router solicitation", me, routerQuestion, shouted),
		masked("datagram", me, func(m mac) []byte { return udp(routerMAC, m, routerIP6, mine, 18) }, sent),
		claim("own given address", ip6Of(me)),
		duplicate(claim("another's given address", ip6Of(ipAway))),
		duplicate(claim("a MAC-keyed one's given address", ip6Of(macGiven))),
		duplicate(claim("another's learned address", ip6Of(taught))),
		duplicate(claim("reserved address", ip6Of(reserved))),
		duplicate(masked("reserved address as source", me, ask(ip6Of(reserved)), shouted)),
		learns(claim("VLAN's given address, untagged", ip6Of(ipVLAN)), ip6Of(ipVLAN)),
		duplicate(claim("of the record pending", ip6Of(pending))),
		learns(claim("of a former owner", ip6Of(stale)), ip6Of(stale)),
		learns(claim("of the id's former owner", ip6Of(inherited)), ip6Of(inherited)),
		learns(claim("of the record free", ip6Of(free)), ip6Of(free)),
		masked("own learned address", ipAway, ask(ip6Of(taught)), shouted),
		sent("MAC-keyed", macAway, set(answer(macOf(macAway)), 0, routerMAC[:]...)),
	}
}

// learnLimits tries addresses on both sides of what can be somebody's.
func learnLimits() []frameCase {
	var cases []frameCase
	claim := func(addr string, taken bool) {
		a := netip.MustParseAddr(addr)
		c := masked(addr, ipHere, func(m mac) []byte {
			if a.Is4() {
				return whoHas(m, a, ip4Of(99))
			}
			return solicit(m, a, ip6Of(99), sourceLL(m))
		}, shouted)
		if taken {
			c = learns(c, a)
		}
		cases = append(cases, c)
	}
	for _, addr := range []string{
		"1.0.0.0", "10.0.0.1", "126.255.255.255", "128.0.0.0", "169.254.0.1", "223.255.255.255",
		"::2", "::1:0:0:0", "64:ff9b::1", "fd00::1", "fe80::1", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "100::", "::1:0:0:0:1",
	} {
		claim(addr, true)
	}
	for _, addr := range []string{
		"0.0.0.0", "0.0.0.1", "0.255.255.255", "127.0.0.0", "127.0.0.1", "127.255.255.255",
		"224.0.0.0", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"::", "::1", "ff00::", "ff02::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		claim(addr, false)
	}
	return cases
}

func TestLearn(t *testing.T) {
	w := usualWorld(t)
	for name, cases := range map[string][]frameCase{
		"IPv4": learnIP4(), "IPv6": learnIP6(), "limits": learnLimits(),
	} {
		t.Run(name, func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanTx, cases) })
	}
	w.meta.Mtu = 30
	if err := w.host.Handle().LinkSetMTU(w.host.Link(t, "p0"), 68); err != nil {
		t.Fatal(err)
	}
	checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{
		refused("over the MTU", ipHere, overMTU, padded(whoHas(macOf(ipHere), ip4Of(50), ip4Of(99)), 100)),
	})
}

// claim lets a sub-interface announce an address.
func (w *world) claim(t *testing.T, id uint32, addr netip.Addr) {
	t.Helper()
	if ret, _ := w.run(t, bpf.XvlanProgXvlanTx, id, announce(macOf(id), addr), 0); ret != actRedir {
		t.Fatalf("announcement of %v: returned %d", addr, int32(ret))
	}
}

// wantLearned compares what a sub-interface has learned, besides what the world
// began with.
func wantLearned(t *testing.T, w *world, id uint32, addrs ...netip.Addr) {
	t.Helper()
	var news []entry
	for _, addr := range addrs {
		news = append(news, entry{0, addr, id, generation, bpf.XvlanDestFlagDEST_LEARNED})
	}
	wantEntries(t, w, news, nil)
}

// A sub-interface holds LearnSlots addresses of a family; with each one more it
// loses its oldest, and neither another's nor one that is no longer its own.
func TestLearnRing(t *testing.T) {
	w := usualWorld(t)
	for name, of := range map[string]func(uint32) netip.Addr{"IPv4": ip4Of, "IPv6": ip6Of} {
		t.Run(name, func(t *testing.T) {
			w.enter(t)
			var held []netip.Addr
			for i := range uint32(3 * bpf.LearnSlots) {
				w.claim(t, ipHere, of(20+i))
				held = append(held, of(20+i))
				held = held[max(0, len(held)-bpf.LearnSlots):]
				wantLearned(t, w, ipHere, held...)
			}
			w.claim(t, ipHere, held[3]) // is its own already: takes no slot
			wantLearned(t, w, ipHere, held...)
		})
	}
	t.Run("families do not share", func(t *testing.T) {
		w.enter(t)
		var held []netip.Addr
		for i := range uint32(bpf.LearnSlots) {
			held = append(held, ip4Of(20+i), ip6Of(20+i))
			w.claim(t, ipHere, ip4Of(20+i))
			w.claim(t, ipHere, ip6Of(20+i))
		}
		wantLearned(t, w, ipHere, held...)
	})
}

func TestLearnRingForgetsOnlyItsOwn(t *testing.T) {
	w := usualWorld(t)
	for name, of := range map[string]func(uint32) netip.Addr{"IPv4": ip4Of, "IPv6": ip6Of} {
		for _, next := range []entry{
			{0, of(20), ipAway, generation, bpf.XvlanDestFlagDEST_LEARNED},
			{0, of(20), ipHere, generation, bpf.XvlanDestFlagDEST_GIVEN},
			{0, of(20), 0, 0, bpf.XvlanDestFlagDEST_RESERVED},
		} {
			t.Run(name, func(t *testing.T) {
				w.enter(t)
				w.claim(t, ipHere, of(20))
				w.putEntry(t, next)
				news := []entry{next}
				for i := range uint32(bpf.LearnSlots) {
					w.claim(t, ipHere, of(30+i))
					news = append(news, entry{0, of(30 + i), ipHere, generation, bpf.XvlanDestFlagDEST_LEARNED})
				}
				wantEntries(t, w, news, nil)
			})
		}
	}
}

// An address whose claim ended goes to who next speaks from it, and counts
// among that one's.
func TestLearnAfterClaim(t *testing.T) {
	w := usualWorld(t)
	for name, of := range map[string]func(uint32) netip.Addr{"IPv4": ip4Of, "IPv6": ip6Of} {
		t.Run(name, func(t *testing.T) {
			w.enter(t)
			w.claim(t, ipHere, of(20))
			w.run(t, bpf.XvlanProgXvlanRx, 0, announce(routerMAC, of(20)), 0)
			wantLearned(t, w, ipHere)
			w.claim(t, ipAway, of(20))
			wantLearned(t, w, ipAway, of(20))
		})
	}
}

// Learned again, an address is among the newest, and is not forgotten for the
// slot that it had before.
func TestLearnTwice(t *testing.T) {
	w := usualWorld(t)
	for name, of := range map[string]func(uint32) netip.Addr{"IPv4": ip4Of, "IPv6": ip6Of} {
		t.Run(name, func(t *testing.T) {
			w.enter(t)
			w.claim(t, ipHere, of(20))
			w.run(t, bpf.XvlanProgXvlanRx, 0, announce(routerMAC, of(20)), 0)
			w.claim(t, ipHere, of(20))
			held := []netip.Addr{of(20)}
			for i := range uint32(bpf.LearnSlots - 1) {
				w.claim(t, ipHere, of(30+i))
				held = append(held, of(30+i))
			}
			wantLearned(t, w, ipHere, held...)
			w.claim(t, ipHere, of(50))
			wantLearned(t, w, ipHere, append(held[1:], of(50))...)
		})
	}
}

// Whoever the keys of an address lead to when its record is gone: the newcomer
// has it, and its frames.
func TestLearnedIsDelivered(t *testing.T) {
	w := usualWorld(t)
	for name, of := range map[string]func(uint32) netip.Addr{"IPv4": ip4Of, "IPv6": ip6Of} {
		t.Run(name, func(t *testing.T) {
			w.enter(t)
			w.claim(t, ipAway, of(stale))
			w.clearStats(t)
			frame := udp(parentMAC, routerMAC, of(stale), of(254), 18)
			if ret, _ := w.run(t, bpf.XvlanProgXvlanRx, 0, frame, 0); ret != actRedir {
				t.Errorf("returned %d", int32(ret))
			}
			wantHits(t, w, len(frame), hit{id: ipAway, verdict: rx})
		})
	}
}
