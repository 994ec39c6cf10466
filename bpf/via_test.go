package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/xvlan/xvlan/bpf"
)

// Sub-interfaces that reach networks by way of the host, and siblings.
const (
	vMAC = 20 + iota
	vHere
	vPrivate
	vIP
	v3
	vSibling
	vSiblingIP
	viaCapacity = vSiblingIP
)

// What is reached that way: addresses with these last bytes, and one of a sibling's.
const (
	viaFirst = 64
	viaLast  = 79
	viaTwin  = vSiblingIP
)

const markVia = 0x78766c70 // MARK_VIA

// viaMAC is the parent's on the way there.
var viaMAC = mac{parentMAC[0] | 1, parentMAC[1], parentMAC[2], parentMAC[3], parentMAC[4], parentMAC[5]}

func viaWorld(tb testing.TB) *world {
	tb.Helper()
	const here, away = bpf.XvlanSubPlacePLACE_LOCAL, bpf.XvlanSubPlacePLACE_AWAY
	w := newWorld(tb, viaCapacity)
	for _, s := range []struct {
		id    uint32
		sub   bpf.XvlanSub
		class bpf.XvlanSubClass
	}{
		{vMAC, macvlan(away), classBridge},
		{vHere, macvlan(here), classBridge},
		{vPrivate, macvlan(away), classPrivate},
		{vIP, ipvlan(away), classBridge},
		{v3, ipvlan(away), classBridge},
		{vSibling, macvlan(away), classBridge},
		{vSiblingIP, ipvlan(away), classBridge},
	} {
		s.sub.Class = s.class
		if s.id < vSibling {
			s.sub.Flags |= bpf.XvlanSubFlagSUB_VIA
			w.meta.Hosts++
			w.put(tb, bpf.XvlanMapVias, s.id, viaNets())
		}
		if s.id == v3 {
			s.sub.Mode = bpf.XvlanSubModeMODE_L3
			w.outside = append(w.outside, s.id)
		}
		w.add(tb, s.id, s.sub)
		w.give(s.id)
	}
	w.dests = append(w.dests, usualDests[0], usualDests[1])
	w.meet(tb)
	return w
}

func viaNets() (via bpf.XvlanVia) {
	for _, p := range []netip.Prefix{
		netip.PrefixFrom(ip4Of(viaTwin), 32), netip.PrefixFrom(ip6Of(viaTwin), 128),
		netip.PrefixFrom(ip4Of(viaFirst), 28), netip.PrefixFrom(ip6Of(viaFirst), 124),
		netip.MustParsePrefix("fe80::/10"),
	} {
		addr, bits := p.Addr().As16(), p.Bits()
		if p.Addr().Is4() {
			bits += 96
		}
		mask := [2]uint64{^uint64(0), 0}
		if bits > 64 {
			mask[1] = ^uint64(0) << (128 - bits)
		} else {
			mask[0] <<= 64 - bits
		}
		net := &via.Net[via.Number]
		for w := range 2 {
			net.Addr[w] = binary.NativeEndian.Uint64(addr[8*w:])
			net.Mask[w] = binary.NativeEndian.Uint64(binary.BigEndian.AppendUint64(nil, mask[w]))
		}
		via.Number++
	}
	return via
}

// byHost is what goes to the host; out is the frame but for its destination.
func byHost(name string, from uint32, b builder) frameCase {
	c := sent(name, from, b(macOf(from)))
	c.out = c.frame
	if from == vIP || from == v3 {
		c.out = b(parentMAC)
	}
	c.out = set(c.out, 0, viaMAC[:]...)
	return c
}

// told is a question that is answered in the host's name.
func told(name string, from uint32, question, answer []byte) frameCase {
	c := handed(name, from, from, question)
	c.out = answer
	return c
}

func viaSends() (all []frameCase) {
	at := func(dst mac, id, from uint32) builder {
		return func(m mac) []byte { return udp(dst, m, ip4Of(id), ip4Of(from), 18) }
	}
	at6 := func(dst mac, id, from uint32) builder {
		return func(m mac) []byte { return udp(dst, m, ip6Of(id), ip6Of(from), 18) }
	}
	isAt := func(id, to uint32) []byte { return arp(2, macOf(to), parentMAC, ip4Of(id), macOf(to), ip4Of(to)) }
	isAt6 := func(id, to uint32) []byte {
		return icmp6(macOf(to), parentMAC, ip6Of(to), ip6Of(id), 136, advertBody(0x60, ip6Of(id), targetLL(parentMAC)))
	}
	for _, from := range []uint32{vMAC, vHere, vPrivate, vIP} {
		m := macOf(from)
		unicast := icmp6(routerMAC, m, ip6Of(viaFirst), ip6Of(from), 135, solicitBody(ip6Of(viaFirst), sourceLL(m)))
		all = append(all,
			byHost("by a gateway", from, at(routerMAC, viaFirst, from)),
			byHost("the last one", from, at(routerMAC, viaLast, from)),
			byHost("IPv6", from, at6(routerMAC, viaFirst, from)),
			byHost("to the parent's MAC", from, at(parentMAC, viaFirst, from)),
			byHost("a sibling's MAC", from, at(macOf(vSibling), viaFirst, from)),
			byHost("a sibling's address", from, at(routerMAC, viaTwin, from)),
			byHost("a sibling's address by the parent's MAC", from, at6(parentMAC, viaTwin, from)),
			byHost("a later fragment", from, func(m mac) []byte { return set(at(routerMAC, viaFirst, from)(m), 20, 0, 185) }),
			told("question", from, whoHas(m, ip4Of(from), ip4Of(viaFirst)), isAt(viaFirst, from)),
			told("question for a sibling's", from, whoHas(m, ip4Of(from), ip4Of(viaTwin)), isAt(viaTwin, from)),
			told("question again", from, arp(1, parentMAC, m, ip4Of(from), parentMAC, ip4Of(viaFirst)), isAt(viaFirst, from)),
			told("question, IPv6", from, solicit(m, ip6Of(from), ip6Of(viaFirst), sourceLL(m)), isAt6(viaFirst, from)),
			told("question again, IPv6", from, unicast, isAt6(viaFirst, from)),
		)
	}
	answer := func(m mac) []byte { return arp(2, parentMAC, m, ip4Of(vMAC), parentMAC, ip4Of(reserved)) }
	link := netip.MustParseAddr("fe80::1")
	return append(all,
		byHost("l3", v3, at(routerMAC, viaFirst, v3)),
		byHost("l3, IPv6", v3, at6(zeroMAC, viaFirst, v3)),
		byHost("l3, a sibling's address", v3, at(routerMAC, viaTwin, v3)),
		sent("before the first", vMAC, at(routerMAC, viaFirst-1, vMAC)(macOf(vMAC))),
		sent("behind the last", vMAC, at6(routerMAC, viaLast+1, vMAC)(macOf(vMAC))),
		sent("link-local", vMAC, udp(routerMAC, macOf(vMAC), link, ip6Of(vMAC), 18)),
		sent("the host's other address", vMAC, at(parentMAC, reserved, vMAC)(macOf(vMAC))),
		masked("the host's other address, ipvlan", vIP, at(parentMAC, reserved, vIP), sent),
		sent("tagged", vMAC, tagged(at(routerMAC, viaFirst, vMAC)(macOf(vMAC)), 0x8100, 20)),
		sent("answer to the host", vMAC, answer(macOf(vMAC))),
		sent("from one without", vSibling, at(routerMAC, viaFirst, vSibling)(macOf(vSibling))),
		handed("sibling", vMAC, vSibling, at(macOf(vSibling), vSibling, vMAC)(macOf(vMAC))),
		frameCase{name: "l3, the host's other address", from: v3, frame: at(parentMAC, reserved, v3)(macOf(v3)),
			out: at(parentMAC, reserved, v3)(parentMAC), ret: actDrop, hits: []hit{{id: v3, verdict: bpf.XvlanVerdictVERDICT_DROP_ROUTE}}},
	)
}

// What goes by way of the host comes in by the parent, whatever MAC it is to and
// whoever has the address, and questions for it are answered.
func TestTxVia(t *testing.T) {
	w := viaWorld(t)
	checkAll(t, w, bpf.XvlanProgXvlanTx, viaSends())
	w.crowded = true
	t.Run("crowded", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanTx, viaSends()) })
}

// Who asks in nobody's name, or for what he has himself, asks all others.
func TestTxViaProbe(t *testing.T) {
	w := viaWorld(t)
	others := []uint32{vHere, vIP, vSibling, vSiblingIP}
	probe := func(name string, frame []byte) frameCase {
		c := sent(name, vMAC, frame)
		c.hits = append(c.hits, copied(vMAC, others)...)
		return c
	}
	checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{
		probe("probe", whoHas(macOf(vMAC), anyIP4, ip4Of(viaFirst))),
		probe("announcement", announce(macOf(vMAC), ip4Of(viaFirst))),
		probe("answer", arp(layers.ARPReply, broadcastMAC, macOf(vMAC), ip4Of(vMAC), zeroMAC, ip4Of(viaFirst))),
		probe("duplicate address detection", solicit(macOf(vMAC), anyIP6, ip6Of(viaFirst))),
		probe("question without a MAC", solicit(macOf(vMAC), ip6Of(vMAC), ip6Of(viaFirst))),
	})
}

// The host gets it under its own MAC, and a sibling that has the address does not.
func TestRxVia(t *testing.T) {
	w := viaWorld(t)
	for _, id := range []uint32{viaFirst, viaTwin} {
		frame := udp(viaMAC, macOf(vMAC), ip4Of(id), ip4Of(vMAC), 18)
		w.enter(t)
		in, out, got := &skBuff{Ifindex: w.meta.Ifindex, Mark: markVia}, &skBuff{}, make([]byte, len(frame)+64)
		opts := &ebpf.RunOptions{Data: frame, DataOut: got, Context: in, ContextOut: out}
		w.host.Do(t, func() {
			ret, err := w.coll.Programs[bpf.XvlanProgXvlanRx].Run(opts)
			if err != nil || ret != actNext || out.Mark != 0 {
				t.Errorf("returned %d with mark %#x: %v", int32(ret), out.Mark, err)
			}
		})
		wantBytes(t, opts.DataOut, set(frame, 0, parentMAC[:]...))
		wantHits(t, w, len(frame), hit{id: 0, verdict: passed})
	}
}

// What the host sends goes to them as to those with host access.
func TestHostSendsVia(t *testing.T) {
	w := viaWorld(t)
	from := func(dst mac, id uint32) []byte { return udp(dst, parentMAC, ip4Of(id), ip4Of(hostIP), 18) }
	all := toWire("question for nobody", whoHas(parentMAC, ip4Of(hostIP), ip4Of(99)))
	all.hits = append(all.hits, copied(0, []uint32{vMAC, vHere, vPrivate, vIP})...)
	checkAll(t, w, bpf.XvlanProgXvlanHost, []frameCase{
		toSub("macvlan", vMAC, from(macOf(vMAC), vMAC)),
		readdressed(toSub("ipvlan", vIP, from(parentMAC, vIP)), macOf(vIP)),
		readdressed(toSub("l3", v3, from(parentMAC, v3)), macOf(v3)),
		toSub("question", vMAC, whoHas(parentMAC, ip4Of(hostIP), ip4Of(vMAC))),
		toWire("one without", from(macOf(vSibling), vSibling)),
		all,
	})
}
