package bpf_test

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
)

// Sub-interfaces with host access, and two without.
const (
	hMAC = 20 + iota
	hPrivate
	hHere
	hIP
	hIPPrivate
	h3
	hNone
	hNoneIP
	hNone3
	hostsCapacity = hNone3
)

const (
	hostIP   = reserved
	markCopy = 0x78766c6f // MARK_COPY
)

func hostsWorld(tb testing.TB, netkit bool) *world {
	tb.Helper()
	const here, away = bpf.XvlanSubPlacePLACE_LOCAL, bpf.XvlanSubPlacePLACE_AWAY
	w := newWorld(tb, hostsCapacity)
	w.netkit = netkit
	for _, s := range []struct {
		id    uint32
		sub   bpf.XvlanSub
		class bpf.XvlanSubClass
	}{
		{hMAC, macvlan(away), classBridge},
		{hPrivate, macvlan(away), classPrivate},
		{hHere, macvlan(here), classBridge},
		{hIP, ipvlan(away), classBridge},
		{hIPPrivate, ipvlan(away), classPrivate},
		{h3, ipvlan(away), classBridge},
		{hNone, macvlan(away), classBridge},
		{hNoneIP, ipvlan(away), classBridge},
		{hNone3, ipvlan(away), classBridge},
	} {
		s.sub.Class = s.class
		if s.id < hNone {
			s.sub.Flags |= bpf.XvlanSubFlagSUB_HOST
			w.meta.Hosts++
		}
		if s.id == h3 || s.id == hNone3 {
			s.sub.Mode = bpf.XvlanSubModeMODE_L3
			w.outside = append(w.outside, s.id)
		}
		w.add(tb, s.id, s.sub)
		w.give(s.id)
	}
	w.dests = append(w.dests, usualDests[0], usualDests[1],
		entry{0, ip4Of(taught), h3, generation, bpf.XvlanDestFlagDEST_LEARNED},
		entry{0, ip6Of(taught), h3, generation, bpf.XvlanDestFlagDEST_LEARNED})
	w.meet(tb)
	return w
}

// withAccess are those that the host's group-addressed frames go to.
var withAccess = []uint32{hMAC, hPrivate, hHere, hIP, hIPPrivate}

var bySent = hit{id: 0, verdict: tx} // the host's frame

// toWire, toSub and toAll are what xvlan_host makes of a frame.
func toWire(name string, frame []byte) frameCase {
	return frameCase{name: name, frame: frame, ret: actNext, hits: []hit{bySent}}
}

func toSub(name string, id uint32, frame []byte) frameCase {
	return frameCase{name: name, frame: frame, ret: actRedir, hits: []hit{bySent, {id: id, verdict: rx}}}
}

func toAll(name string, frame []byte) frameCase {
	c := toWire(name, frame)
	c.hits = append(c.hits, copied(0, withAccess)...)
	return c
}

// answered is a question that is answered in a sub-interface's name.
func answered(name string, frame, answer []byte) frameCase {
	return frameCase{name: name, frame: frame, ret: actRedir, hits: []hit{bySent}, out: answer}
}

func hostSends() []frameCase {
	from := func(dst mac, id uint32) []byte { return udp(dst, parentMAC, ip4Of(id), ip4Of(hostIP), 18) }
	from6 := func(dst mac, id uint32) []byte { return udp(dst, parentMAC, ip6Of(id), ip6Of(hostIP), 18) }
	asks := func(id uint32) []byte { return whoHas(parentMAC, ip4Of(hostIP), ip4Of(id)) }
	asks6 := func(id uint32) []byte { return solicit(parentMAC, ip6Of(hostIP), ip6Of(id), sourceLL(parentMAC)) }
	isAt := func(id uint32) []byte { return arp(2, parentMAC, parentMAC, ip4Of(id), parentMAC, ip4Of(hostIP)) }
	isAt6 := func(id uint32) []byte {
		return icmp6(parentMAC, parentMAC, ip6Of(hostIP), ip6Of(id), 136, advertBody(0x60, ip6Of(id), targetLL(parentMAC)))
	}
	probe := arp(1, parentMAC, parentMAC, ip4Of(hostIP), zeroMAC, ip4Of(h3))
	probe6 := icmp6(parentMAC, parentMAC, ip6Of(h3), ip6Of(hostIP), 135, solicitBody(ip6Of(h3), sourceLL(parentMAC)))
	broadcast := udp(broadcastMAC, parentMAC, ip4Of(255), ip4Of(hostIP), 18)
	return []frameCase{
		toSub("macvlan", hMAC, from(macOf(hMAC), hMAC)),
		toSub("macvlan, IPv6", hMAC, from6(macOf(hMAC), hMAC)),
		toSub("macvlan, another address", hMAC, from(macOf(hMAC), 99)),
		toSub("macvlan, here", hHere, from(macOf(hHere), hHere)),
		toSub("private macvlan", hPrivate, from(macOf(hPrivate), hPrivate)),
		toSub("no IP", hMAC, set(from(macOf(hMAC), hMAC), 12, 0x88, 0xb5)),
		toSub("header alone", hMAC, set(from(macOf(hMAC), hMAC), 12, 0x88, 0xb5)[:14]),
		toSub("priority tag", hMAC, tagged(from(macOf(hMAC), hMAC), 0x8100, 0xe000)),
		readdressed(toSub("ipvlan", hIP, from(parentMAC, hIP)), macOf(hIP)),
		readdressed(toSub("ipvlan, IPv6", hIP, from6(parentMAC, hIP)), macOf(hIP)),
		readdressed(toSub("private ipvlan", hIPPrivate, from(parentMAC, hIPPrivate)), macOf(hIPPrivate)),
		readdressed(toSub("l3", h3, from(parentMAC, h3)), macOf(h3)),
		readdressed(toSub("l3, IPv6", h3, from6(parentMAC, h3)), macOf(h3)),
		readdressed(toSub("ARP answer to an ipvlan", hIP,
			arp(2, parentMAC, parentMAC, ip4Of(hostIP), parentMAC, ip4Of(hIP))), macOf(hIP)),
		toWire("macvlan without access", from(macOf(hNone), hNone)),
		toWire("ipvlan without access", from(parentMAC, hNoneIP)),
		toWire("l3 without access", from(parentMAC, hNone3)),
		toWire("question for l3 without access", set(asks(hNone3), 0, routerMAC[:]...)),
		toWire("nobody's address", from(parentMAC, 99)),
		toWire("the wire's", from(routerMAC, 99)),
		toWire("ipvlan's own MAC", from(macOf(hIP), hIP)),
		toWire("tagged", tagged(from(macOf(hMAC), hMAC), 0x8100, 20)),
		toWire("broadcast, tagged", tagged(broadcast, 0x8100, 20)),
		toWire("question, tagged", tagged(asks(h3), 0x8100, 20)),
		toWire("pause frame", pause(parentMAC)),
		toAll("broadcast", broadcast),
		toAll("multicast", udp(multicastMAC, parentMAC, allNodes, ip6Of(hostIP), 18)),
		toAll("question for nobody", asks(99)),
		toAll("question for one without access", asks(hNone)),
		toAll("question for one without access, IPv6", asks6(hNoneIP)),
		toAll("announcement", announce(parentMAC, ip4Of(hMAC))),
		toAll("question, malformed", set(asks(hMAC), 18, 5)),
		toAll("question, cut", asks(hMAC)[:30]),
		toSub("question", hMAC, asks(hMAC)),
		toSub("question, IPv6", hMAC, asks6(hMAC)),
		toSub("question for an ipvlan", hIP, asks(hIP)),
		toSub("question for a private one", hPrivate, asks(hPrivate)),
		toSub("probe", hMAC, whoHas(parentMAC, anyIP4, ip4Of(hMAC))),
		answered("question for l3", asks(h3), isAt(h3)),
		answered("question for l3, learned", asks(taught), isAt(taught)),
		answered("question for l3, again", probe, isAt(h3)),
		answered("question for l3, IPv6", asks6(h3), isAt6(h3)),
		answered("question for l3, IPv6, learned", asks6(taught), isAt6(taught)),
		answered("question for l3, IPv6, again", probe6, isAt6(h3)),
		toWire("l3, IPv6, duplicate address detection", solicit(parentMAC, anyIP6, ip6Of(h3))),
		toWire("question for l3, IPv6, cut", asks6(h3)[:80]),
	}
}

// What the host sends goes to those with host access, and on to the wire what is
// for others.
func TestHostSends(t *testing.T) {
	w := hostsWorld(t, false)
	checkAll(t, w, bpf.XvlanProgXvlanHost, hostSends())
	w.crowded = true
	t.Run("crowded", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanHost, hostSends()) })
}

// Super-packets go whole and count as their segments.
func TestHostSendsGSO(t *testing.T) {
	const size, mss = 3000, 1000
	w := hostsWorld(t, false)
	frame := tcp(macOf(hMAC), parentMAC, ip4Of(hMAC), ip4Of(hostIP), size)
	bytes := uint64(len(frame) + 2*(len(frame)-size))
	checkAll(t, w, bpf.XvlanProgXvlanHost, []frameCase{{name: "TCP", frame: frame, gso: mss, ret: actRedir,
		hits: []hit{{0, tx, 3, bytes}, {hMAC, rx, 3, bytes}}}})
}

// The host's copy of a group-addressed frame goes nowhere else, and its mark is
// taken off. Of what a switch returns nobody gets a second one.
func TestHostReceives(t *testing.T) {
	w := hostsWorld(t, false)
	for _, frame := range [][]byte{
		udp(broadcastMAC, macOf(hMAC), ip4Of(255), ip4Of(hMAC), 18),
		whoHas(parentMAC, ip4Of(hIP), ip4Of(hNone)),
		whoHas(routerMAC, routerIP4, ip4Of(hMAC)),
	} {
		w.enter(t)
		in, out := &skBuff{Ifindex: w.meta.Ifindex, Mark: markCopy}, &skBuff{}
		w.host.Do(t, func() {
			ret, err := w.coll.Programs[bpf.XvlanProgXvlanRx].Run(&ebpf.RunOptions{Data: frame, Context: in, ContextOut: out})
			if err != nil || ret != actNext || out.Mark != 0 {
				t.Errorf("returned %d with mark %#x: %v", int32(ret), out.Mark, err)
			}
		})
		wantHits(t, w, len(frame), hit{id: 0, verdict: passed})
	}
	returnedOnce := func(name string, frame []byte) frameCase {
		return frameCase{name: name, frame: frame, ret: actDrop, hits: []hit{{id: 0, verdict: returned}}}
	}
	checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{
		heard("the host's", whoHas(parentMAC, ip4Of(hostIP), ip4Of(99)), []uint32{hNone, hNoneIP}),
		heard("another's", whoHas(routerMAC, routerIP4, ip4Of(99)), withAccess, []uint32{hNone, hNoneIP}),
		heard("of one without access", udp(broadcastMAC, macOf(hNone), ip4Of(255), ip4Of(hNone), 18)),
		returnedOnce("of one with access", udp(broadcastMAC, macOf(hMAC), ip4Of(255), ip4Of(hMAC), 18)),
		returnedOnce("of an ipvlan with access", whoHas(parentMAC, ip4Of(hIP), ip4Of(99))),
		returnedOnce("of a private ipvlan with access", whoHas(parentMAC, ip4Of(hIPPrivate), ip4Of(99))),
	})
}

// attachHost puts xvlan_host on the parent's egress.
func (w *world) attachHost(tb testing.TB) {
	tb.Helper()
	err := w.host.Handle().FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: int(w.meta.Ifindex), Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Priority: 1, Protocol: 3 /* ETH_P_ALL */},
		Fd: w.coll.Programs[bpf.XvlanProgXvlanHost].FD(), Name: "xvlan_host", DirectAction: true})
	if err != nil {
		tb.Fatalf("attach xvlan_host: %v", err)
	}
}

// What the host sends arrives once at each that it is for.
func TestHostSendsArrives(t *testing.T) {
	onPairs(t, func(t *testing.T, netkit bool) {
		w := hostsWorld(t, netkit)
		w.attach(t)
		w.attachHost(t)
		captures := w.capture(t)
		for _, c := range hostSends() {
			var ids []uint32
			for _, h := range c.hits {
				if h.verdict == rx {
					ids = append(ids, h.id)
				}
			}
			if c.ret == actNext {
				ids = append(ids, wire)
			}
			if c.ret == actRedir && len(ids) == 0 {
				c.hits = append(slices.Clone(c.hits), hit{id: 0, verdict: passed}) // the answer
			}
			if cutHeader(c.frame) || len(c.frame) < 15 || c.name == "pause frame" {
				continue // which a device does not send so
			}
			t.Run(c.name, func(t *testing.T) {
				undisturbed(t, func(tb testing.TB) {
					w.enter(tb)
					drain(captures)
					w.host.Send(tb, "p0", c.frame)
					awaitHits(tb, w, len(c.frame), c.hits...)
					wantArrivals(tb, captures, received(&c, ids...))
				})
			})
		}
	})
}

// What a sub-interface with host access sends to the host arrives there once, and of
// what it sends to a group one copy, besides one at each other. What goes to the wire
// is looked at by xvlan_host, which lets it pass.
func TestTxHostAccess(t *testing.T) {
	onPairs(t, func(t *testing.T, netkit bool) {
		w := hostsWorld(t, netkit)
		w.attach(t)
		w.attachHost(t)
		captures := w.capture(t)
		parent := w.host.Capture(t, "p0")
		siblings := func(except uint32) (ids []uint32) {
			for _, id := range []uint32{hMAC, hHere, hIP, hNone, hNoneIP} {
				if id != except {
					ids = append(ids, id)
				}
			}
			return ids
		}
		send := func(dst mac, id uint32) builder {
			return func(m mac) []byte { return udp(dst, m, ip4Of(id), ip4Of(99), 18) }
		}
		ask := func(from, id uint32) builder {
			return func(m mac) []byte { return whoHas(m, ip4Of(from), ip4Of(id)) }
		}
		for _, c := range []struct {
			name   string
			from   uint32
			frame  builder
			host   int // of how many the host has a sight
			others []uint32
		}{
			{"macvlan to the host", hMAC, send(parentMAC, hostIP), 1, nil},
			{"macvlan to the host's other address", hMAC, send(parentMAC, 98), 1, nil},
			{"private macvlan to the host", hPrivate, send(parentMAC, hostIP), 1, nil},
			{"macvlan, here, to the host", hHere, send(parentMAC, hostIP), 1, nil},
			{"ipvlan to the host", hIP, send(parentMAC, hostIP), 1, nil},
			{"macvlan without access", hNone, send(parentMAC, hostIP), 0, []uint32{wire}},
			{"macvlan to the wire", hMAC, send(routerMAC, 98), 0, []uint32{wire}},
			{"macvlan without access to the wire", hNone, send(routerMAC, 98), 0, []uint32{wire}},
			{"ipvlan to the wire", hIP, send(routerMAC, 98), 0, []uint32{wire}},
			{"macvlan to a sibling", hMAC, send(macOf(hNone), hNone), 0, []uint32{hNone}},
			{"macvlan to an ipvlan", hMAC, send(parentMAC, hIP), 0, []uint32{hIP}},
			{"macvlan to a private one with access", hMAC, send(macOf(hPrivate), hPrivate), 0, []uint32{wire}},
			{"private macvlan to one with access", hPrivate, send(macOf(hMAC), hMAC), 0, []uint32{wire}},
			{"question of a macvlan for the host", hMAC, ask(hMAC, hostIP), 1, append(siblings(hMAC), wire)},
			{"question of an ipvlan for the host", hIP, ask(hIP, hostIP), 1, append(siblings(hIP), wire)},
			{"question of a private one", hPrivate, ask(hPrivate, hostIP), 1, []uint32{wire}},
			{"question of a private ipvlan", hIPPrivate, ask(hIPPrivate, hostIP), 1, []uint32{wire}},
			{"question of one without access", hNone, ask(hNone, hostIP), 0, append(siblings(hNone), wire)},
			{"question for a sibling", hMAC, ask(hMAC, hNone), 0, []uint32{hNone}},
			{"broadcast", hMAC, send(broadcastMAC, 255), 1, append(siblings(hMAC), wire)},
			{"pause frame", hMAC, pause, 0, []uint32{wire}},
			{"tagged, to the host", hMAC, func(m mac) []byte { return tagged(send(parentMAC, hostIP)(m), 0x8100, 20) }, 0, []uint32{wire}},
			{"tagged broadcast", hPrivate, func(m mac) []byte { return tagged(send(broadcastMAC, 255)(m), 0x8100, 20) }, 0, []uint32{wire}},
		} {
			t.Run(c.name, func(t *testing.T) {
				seen := frameCase{frame: c.frame(macOf(c.from))}
				out := seen.frame
				if w.subs[c.from].Kind == bpf.XvlanSubKindKIND_IPVLAN {
					out = c.frame(parentMAC)
					seen.out = out
				}
				hits := append(copied(wire, c.others), hit{id: c.from, verdict: tx})
				if c.host > 0 {
					hits = append(hits, hit{id: 0, verdict: passed})
				}
				undisturbed(t, func(tb testing.TB) {
					w.enter(tb)
					drain(captures)
					parent.Frames(1000, 0)
					w.send(tb, bpf.XvlanProgXvlanTx, c.from, seen.frame)
					awaitHits(tb, w, len(seen.frame), hits...)
					wantArrivals(tb, captures, received(&seen, c.others...))
					frames := parent.Matching(c.host, arriveWithin, incoming)
					frames = append(frames, parent.Matching(1, 0, incoming)...)
					if len(frames) != c.host {
						tb.Fatalf("the host got %d, want %d", len(frames), c.host)
					}
					for _, f := range frames {
						wantHostFrame(tb, f, out)
					}
				})
			})
		}
	})
}

func wantHostFrame(tb testing.TB, f lab.Frame, want []byte) {
	tb.Helper()
	wantBytes(tb, f.Wire(), want)
	kind := uint8(unix.PACKET_HOST)
	if want[0]&1 != 0 {
		kind = packetType(want)
	}
	if f.PktType != kind {
		tb.Errorf("packet type is %d, want %d", f.PktType, kind)
	}
}
