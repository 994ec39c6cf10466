package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab/spoof"
	"github.com/xvlan/xvlan/maps"
)

const (
	sourceIP = bpf.XvlanVerdictVERDICT_DROP_SOURCE_IP
	badARP   = bpf.XvlanVerdictVERDICT_DROP_ARP
	badDHCP  = bpf.XvlanVerdictVERDICT_DROP_DHCP
	overRate = bpf.XvlanVerdictVERDICT_DROP_RATE

	guardOn   = bpf.XvlanGuardFlagGUARD_SOURCE
	learnBoth = bpf.XvlanGuardFlagGUARD_LEARN4 | bpf.XvlanGuardFlagGUARD_LEARN6
)

// sceneOf has one speak, among those of the usual world.
func sceneOf(id uint32) spoof.Scene {
	party := func(m mac, id uint32) spoof.Party {
		return spoof.Party{MAC: spoof.MAC(m), IP4: ip4Of(id), IP6: ip6Of(id)}
	}
	return spoof.Scene{
		Me: party(macOf(id), id), Sibling: party(macOf(ipHere), ipHere), Host: party(parentMAC, reserved), Wire: party(routerMAC, 254),
		Local: netip.MustParseAddr("fe80::5:1"), Free4: ip4Of(99), Free6: ip6Of(99), Broadcast4: ip4Of(255), Stranger: spoof.MAC(strangerMAC),
	}
}

// guardedWorld is the usual one with guards.
func guardedWorld(tb testing.TB) *world {
	w := usualWorld(tb)
	w.guards = map[uint32]bpf.XvlanGuard{
		macGiven: {Flags: guardOn}, ipAway: {Flags: guardOn}, macAway: {Flags: guardOn | learnBoth},
	}
	return w
}

func TestGuard(t *testing.T) {
	w := guardedWorld(t)
	for name, id := range map[string]uint32{"MAC": macGiven, "IP": ipAway} {
		cases := append(lies(sceneOf(id), id), refused("tag cut", id, bpf.XvlanVerdictVERDICT_DROP_ETHERTYPE, // the kernel drops it before a tc program
			tagged(udp(routerMAC, macOf(id), routerIP4, ip4Of(id), 18), 0x8100, 10)[:16]))
		if id == macGiven { // what becomes of an IP-keyed one's is tried elsewhere
			one, all := sceneOf(id).Truths()
			for _, m := range one {
				cases = append(cases, sent(m.Name, id, m.Frame))
			}
			for _, m := range all {
				cases = append(cases, shouted(m.Name, id, m.Frame))
			}
		}
		t.Run(name, func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanTx, cases) })
	}
	t.Run("learned", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanTx, guardLearns()) })
	t.Run("allowed", func(t *testing.T) {
		const allowed = bpf.XvlanGuardFlagGUARD_ROUTER | bpf.XvlanGuardFlagGUARD_DHCP
		w.guards[macGiven] = bpf.XvlanGuard{Flags: guardOn | allowed}
		w.enter(t)
		for _, m := range sceneOf(macGiven).Lies() {
			if m.Why != maps.DropRouter && m.Why != maps.DropDHCP {
				continue
			}
			w.clearStats(t)
			if ret, _ := w.run(t, bpf.XvlanProgXvlanTx, macGiven, m.Frame, 0); (ret == actDrop) != hidden[m.Name] {
				t.Errorf("%s: %d, %v", m.Name, ret, w.counted(t))
			}
		}
	})
}

// lies are to be dropped, each for its reason.
func lies(s spoof.Scene, id uint32) (cases []frameCase) {
	for _, m := range s.Lies() {
		cases = append(cases, refused(m.Name, id, bpf.XvlanVerdict(m.Why), m.Frame))
	}
	return cases
}

// hidden are a router's words that not even a router may say so.
var hidden = map[string]bool{
	"RA behind an extension": true, "RA behind authentication": true, "RA in a first fragment": true, "RA behind an extension in a fragment": true,
}

// guardLearns is what one without given addresses takes by speaking.
func guardLearns() []frameCase {
	const me = macAway
	m, v4, v6, ll := macOf(me), ip4Of(99), ip6Of(99), netip.MustParseAddr("fe80::5:2")
	news := func(c frameCase, addr netip.Addr) frameCase {
		c.news = append(c.news, entry{0, addr, me, generation, bpf.XvlanDestFlagDEST_LEARNED})
		return c
	}
	inherits := ip4Of(inherited) // a former owner's
	return []frameCase{
		news(sent("IPv4", me, udp(routerMAC, m, routerIP4, v4, 18)), v4),
		news(sent("IPv6", me, udp(routerMAC, m, routerIP6, v6, 18)), v6),
		news(sent("link-local", me, udp(routerMAC, m, routerIP6, ll, 18)), ll),
		news(sent("link-local where others are given", macGiven, udp(routerMAC, macOf(macGiven), routerIP6, ll, 18)), ll).by(macGiven),
		news(shouted("ARP", me, whoHas(m, v4, routerIP4)), v4),
		shouted("ARP probe", me, whoHas(m, anyIP4, v4)),
		shouted("address detection", me, solicit(m, anyIP6, v6)),
		news(shouted("NA", me, advertise(m, v6, targetLL(m))), v6),
		news(sent("what nobody has any more", me, udp(routerMAC, m, routerIP4, inherits, 18)), inherits),
		refused("a given one", me, sourceIP, udp(routerMAC, m, routerIP4, ip4Of(ipHere), 18)),
		refused("a learned one", me, sourceIP, udp(routerMAC, m, routerIP4, ip4Of(taught), 18)),
		refused("the host's", me, sourceIP, udp(routerMAC, m, routerIP6, ip6Of(reserved), 18)),
		refused("loopback", me, sourceIP, udp(routerMAC, m, routerIP4, netip.MustParseAddr("127.0.0.1"), 18)),
		refused("ARP for a given one", me, badARP, whoHas(m, ip4Of(ipHere), routerIP4)),
		refused("DHCP server", me, badDHCP, set(udp(routerMAC, m, routerIP4, v4, 18), 36, 0, 68)),
	}
}

// by has another learn.
func (c frameCase) by(id uint32) frameCase {
	c.news[0].id = id
	return c
}

// fuzzGuard has one with given addresses send a frame: it is dropped, or its own as far
// as its headers tell at first sight.
func fuzzGuard(t *testing.T, w *world, from uint32, frame []byte) {
	t.Helper()
	w.set(t, bpf.MapGuards, from, w.guards[from]) // with nothing spent
	r := fuzzRun(t, w, bpf.XvlanProgXvlanTx, from, frame)
	switch {
	case r.ret == actDrop && len(r.own) == 1 && len(r.others) == 0 && maps.Verdict(r.own[0].verdict).IsDrop():
	case r.ret == actRedir && r.is(tx) && isOwn(from, frame):
	default:
		t.Errorf("tx from %d returned %d and counted %v %v", from, int32(r.ret), r.own, r.others)
	}
}

func isOwn(id uint32, frame []byte) bool {
	if mac(frame[6:]) != macOf(id) || len(frame) < 14+28 {
		return false
	}
	switch body := frame[14:]; binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		src := netip.AddrFrom4([4]byte(body[12:]))
		return src == ip4Of(id) || id == ipAway && src == ip4Of(taught) || src.IsUnspecified()
	case 0x86dd:
		src := netip.AddrFrom16([16]byte(body[8:]))
		return src == ip6Of(id) || id == ipAway && src == ip6Of(taught) || src.IsUnspecified() || src.IsLinkLocalUnicast()
	case 0x0806:
		spa := netip.AddrFrom4([4]byte(body[14:]))
		return mac(body[8:]) == macOf(id) && (spa == ip4Of(id) || id == ipAway && spa == ip4Of(taught) || spa.IsUnspecified())
	}
	return false
}

// TestGuardRouted tries the same on one in mode l3.
func TestGuardRouted(t *testing.T) {
	w := routedWorld(t)
	w.guards = map[uint32]bpf.XvlanGuard{r3: {Flags: guardOn}}
	s := sceneOf(r3)
	s.Sibling = spoof.Party{MAC: spoof.MAC(macOf(r3Here)), IP4: ip4Of(r3Here), IP6: ip6Of(r3Here)}
	checkAll(t, w, bpf.XvlanProgXvlanTx, lies(s, r3))
}

// TestGuardBudget spends a budget, with a guard and without.
func TestGuardBudget(t *testing.T) {
	w := usualWorld(t)
	const me = macGiven
	m, v4, v6 := macOf(me), ip4Of(me), ip6Of(me)
	calls := map[string][]byte{
		"ARP question": whoHas(m, v4, routerIP4),
		"ARP answer":   arp(layers.ARPReply, routerMAC, m, v4, routerMAC, routerIP4),
		"broadcast":    udp(broadcastMAC, m, ip4Of(255), v4, 18),
		"to all nodes": udp(multicastMAC, m, allNodes, v6, 18),
		"NS":           solicit(m, v6, routerIP6, sourceLL(m)),
		"NA to one":    icmp6(routerMAC, m, routerIP6, v6, layers.ICMPv6TypeNeighborAdvertisement, advertBody(0x60, v6, targetLL(m))),
	}
	for _, flags := range []bpf.XvlanGuardFlag{0, guardOn} {
		var cases []frameCase
		spent := bpf.XvlanGuard{Flags: flags, Rate: 10, FramesNs: 1 << 62} // all is spent
		w.guards = map[uint32]bpf.XvlanGuard{macGiven: spent}
		for name, frame := range calls {
			cases = append(cases, refused(name, me, overRate, frame))
		}
		cases = append(cases, sent("none of it", me, udp(routerMAC, m, routerIP4, v4, 18)),
			shouted("multicast", me, udp(mac{1, 0, 0x5e, 1, 2, 3}, m, netip.MustParseAddr("239.1.2.3"), v4, 18)))
		checkAll(t, w, bpf.XvlanProgXvlanTx, cases)
		// So many at once, and a second later as many.
		spent.FramesNs, spent.Rate = 0, 5
		w.guards[macGiven] = spent
		w.enter(t)
		for n := range 12 {
			w.run(t, bpf.XvlanProgXvlanTx, me, calls["ARP question"], 0)
			if hits := w.counted(t); n == 4 && slices.ContainsFunc(hits, func(h hit) bool { return h.verdict == overRate }) {
				t.Errorf("five in a second: %v", hits)
			}
		}
		if !slices.ContainsFunc(w.counted(t), func(h hit) bool { return h.id == macGiven && h.verdict == overRate }) {
			t.Errorf("twelve at once: %v", w.counted(t))
		}
	}
}

// TestGuardLearnBudget tries to come from one address after the other.
func TestGuardLearnBudget(t *testing.T) {
	w := usualWorld(t)
	w.guards = map[uint32]bpf.XvlanGuard{macAway: {Flags: guardOn | learnBoth}}
	w.enter(t)
	for n := range 60 {
		w.run(t, bpf.XvlanProgXvlanTx, macAway, udp(routerMAC, macOf(macAway), routerIP4, netip.AddrFrom4([4]byte{10, 0, 0, byte(n + 1)}), 18), 0)
	}
	went, held := uint64(0), 0
	for _, h := range w.counted(t) {
		if h.id == macAway && h.verdict == tx {
			went = h.packets
		}
	}
	for _, e := range w.entries(t) {
		if e.id == macAway {
			held++
		}
	}
	const burst = 16 // LEARN_BURST; a slow machine may have time for another
	if went < burst || went > burst+6 || held != bpf.LearnSlots {
		t.Errorf("%d frames went, each from another address, and it holds %d", went, held)
	}
}
