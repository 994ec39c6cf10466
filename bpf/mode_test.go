package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"

	"github.com/xvlan/xvlan/bpf"
)

// One sub-interface of each mode and flag, and of most a second.
const (
	mBridge = 1 + iota
	mBridge2
	mVEPA
	mVEPA2
	mPrivate
	mPrivate2
	mSource // its list: the router
	mNodst  // its list: the stranger, of whom it leaves nothing for others
)

const (
	iBridge = 20 + iota
	iVEPA
	iPrivate
	iPrivate2
	modesCapacity = iPrivate2
)

const (
	classBridge  = bpf.XvlanSubClassCLASS_BRIDGE
	classVEPA    = bpf.XvlanSubClassCLASS_VEPA
	classPrivate = bpf.XvlanSubClassCLASS_PRIVATE
	classSource  = bpf.XvlanSubClassCLASS_SOURCE
)

var (
	bridges  = []uint32{mBridge, mBridge2, iBridge}
	vepas    = []uint32{mVEPA, mVEPA2, iVEPA}
	privates = []uint32{mPrivate, mPrivate2, iPrivate, iPrivate2}
)

func modesWorld(tb testing.TB) *world {
	tb.Helper()
	w := newWorld(tb, modesCapacity)
	for id, class := range map[uint32]bpf.XvlanSubClass{
		mBridge: classBridge, mBridge2: classBridge, mVEPA: classVEPA, mVEPA2: classVEPA,
		mPrivate: classPrivate, mPrivate2: classPrivate, mSource: classSource, mNodst: classSource,
		iBridge: classBridge, iVEPA: classVEPA, iPrivate: classPrivate, iPrivate2: classPrivate,
	} {
		sub := macvlan(bpf.XvlanSubPlacePLACE_AWAY)
		if id >= iBridge {
			sub = ipvlan(bpf.XvlanSubPlacePLACE_AWAY)
		}
		sub.Class = class
		if id == mNodst {
			sub.Flags = bpf.XvlanSubFlagSUB_NODST
		}
		w.add(tb, id, sub)
		w.give(id)
	}
	w.dests = append(w.dests, usualDests[0], usualDests[1])
	w.sources = map[uint32][]mac{mSource: {routerMAC}, mNodst: {strangerMAC}}
	w.meta.Sources = 2
	w.meet(tb)
	return w
}

// heard is a case of a group-addressed frame of which these get a copy and the
// host its own.
func heard(name string, frame []byte, by ...[]uint32) frameCase {
	c := left(name, frame)
	c.hits = append(c.hits, copied(0, by...)...)
	return c
}

func copied(except uint32, to ...[]uint32) (hits []hit) {
	for _, ids := range to {
		for _, id := range ids {
			if id != except {
				hits = append(hits, hit{id: id, verdict: rx})
			}
		}
	}
	return hits
}

// pause builds a pause frame of IEEE 802.3x.
func pause(from mac) []byte {
	return build(ether(mac{0x01, 0x80, 0xc2, 0, 0, 1}, from, 0x8808), gopacket.Payload(make([]byte, 46)))
}

// modesFromWire are frames of others.
func modesFromWire() []frameCase {
	const other = 99
	src := mac{0x02, 0xdd, 0, 0, 0, 1} // on no list
	broadcast := func(from mac) []byte { return udp(broadcastMAC, from, ip4Of(255), ip4Of(other), 18) }
	uni := func(from mac, to uint32) []byte { return udp(macOf(to), from, ip4Of(to), ip4Of(other), 18) }
	ip := func(to uint32) []byte { return udp(parentMAC, src, ip6Of(to), ip6Of(other), 18) }
	gone := func(name string, frame []byte) frameCase {
		return frameCase{name: name, frame: frame, ret: actDrop, hits: []hit{{id: mNodst, verdict: rx}}}
	}
	also := func(c frameCase) frameCase {
		c.hits = append(c.hits, hit{id: mSource, verdict: rx})
		return c
	}
	return []frameCase{
		heard("broadcast", broadcast(src), bridges, vepas, privates),
		also(heard("broadcast of one on a list", broadcast(routerMAC), bridges, vepas, privates)),
		gone("broadcast of one on a list, nodst", broadcast(strangerMAC)),
		left("pause frame", pause(src)),
		left("pause frame of a bridge one", pause(macOf(mBridge))),
		delivered("bridge", mBridge, uni(src, mBridge)),
		delivered("vepa", mVEPA, uni(src, mVEPA)),
		delivered("private", mPrivate, uni(src, mPrivate)),
		left("source, not on its list", uni(src, mSource)),
		also(left("source, on its list", uni(routerMAC, mSource))),
		also(delivered("another, on a list", mBridge, uni(routerMAC, mBridge))),
		also(left("nobody, on a list", udp(parentMAC, routerMAC, ip4Of(other), routerIP4, 18))),
		gone("another, on a list, nodst", uni(strangerMAC, mBridge)),
		gone("nobody, on a list, nodst", udp(parentMAC, strangerMAC, ip4Of(other), routerIP4, 18)),
		delivered("IP-keyed bridge", iBridge, ip(iBridge)),
		delivered("IP-keyed vepa", iVEPA, ip(iVEPA)),
		delivered("IP-keyed private", iPrivate, ip(iPrivate)),
		delivered("question for a private one", iPrivate, whoHas(src, ip4Of(other), ip4Of(iPrivate))),
		delivered("question for a vepa one", mVEPA, solicit(src, ip6Of(other), ip6Of(mVEPA))),
		heard("question for one in source mode", whoHas(src, ip4Of(other), ip4Of(mSource)), bridges, vepas, privates),
	}
}

// modesReturned are frames of sub-interfaces that a switch has returned.
func modesReturned() []frameCase {
	shout := func(id uint32) []byte { return udp(broadcastMAC, macOf(id), ip4Of(255), ip4Of(id), 18) }
	shoutIP := func(from netip.Addr) []byte { return whoHas(parentMAC, from, ip4Of(99)) }
	uni := func(from, to uint32) []byte { return udp(macOf(to), macOf(from), ip4Of(to), ip4Of(from), 18) }
	uniIP := func(from, to uint32) []byte { return udp(parentMAC, parentMAC, ip6Of(to), ip6Of(from), 18) }
	drop := func(name string, at uint32, frame []byte) frameCase {
		return frameCase{name: name, frame: frame, ret: actDrop, hits: []hit{{id: at, verdict: returned}}}
	}
	vepaOnly := heard("broadcast of a bridge one", shout(mBridge), vepas)
	ofVEPA := left("broadcast of a vepa one", shout(mVEPA))
	ofVEPA.hits = append(ofVEPA.hits, copied(mVEPA, bridges, vepas)...)
	ofIPVEPA := left("broadcast of an IP-keyed vepa one", shoutIP(ip4Of(iVEPA)))
	ofIPVEPA.hits = append(ofIPVEPA.hits, copied(iVEPA, bridges, vepas)...)
	ownQuestion := left("vepa one's question for itself", whoHas(macOf(mVEPA), anyIP4, ip4Of(mVEPA)))
	ownQuestion.hits = ofVEPA.hits
	return []frameCase{
		vepaOnly, ofVEPA, ofIPVEPA, ownQuestion,
		delivered("broadcast of a private one", mPrivate, shout(mPrivate)),
		delivered("broadcast of one in source mode", mSource, shout(mSource)),
		heard("broadcast of an IP-keyed bridge one", shoutIP(ip4Of(iBridge)), vepas),
		left("broadcast of an IP-keyed private one", shoutIP(ip4Of(iPrivate))),
		heard("broadcast of the host", shoutIP(ip4Of(reserved)), bridges, vepas, privates),
		heard("solicitation of the host", solicit(parentMAC, ip6Of(reserved), ip6Of(99)), bridges, vepas, privates),
		heard("broadcast of nobody known", shoutIP(ip4Of(99)), vepas),
		heard("IPv6 of nobody known", solicit(parentMAC, ip6Of(99), ip6Of(98)), vepas),
		heard("no IP", set(shoutIP(ip4Of(99)), 12, 0x88, 0xb5), bridges, vepas, privates),
		heard("ARP probe", shoutIP(anyIP4), vepas),
		heard("address detection", solicit(parentMAC, anyIP6, ip6Of(99)), vepas),
		heard("DHCP question", udp(broadcastMAC, parentMAC, ip4Of(255), anyIP4, 18), vepas),
		heard("bridge one's question for a bridge one", whoHas(macOf(mBridge), ip4Of(mBridge), ip4Of(iBridge)), vepas),
		delivered("bridge one's question for a vepa one", iVEPA, whoHas(macOf(mBridge), ip4Of(mBridge), ip4Of(iVEPA))),
		delivered("vepa one's question for a bridge one", iBridge, whoHas(macOf(mVEPA), ip4Of(mVEPA), ip4Of(iBridge))),
		delivered("bridge to bridge", mBridge2, uni(mBridge, mBridge2)),
		delivered("private to vepa", mVEPA, uni(mPrivate, mVEPA)),
		drop("bridge to private", mPrivate, uni(mBridge, mPrivate)),
		drop("private to private", mPrivate, uni(mPrivate2, mPrivate)),
		delivered("private to itself", mPrivate, uni(mPrivate, mPrivate)),
		drop("IP-keyed to private", mPrivate, udp(macOf(mPrivate), parentMAC, ip6Of(99), ip6Of(iBridge), 18)),
		delivered("host to private", mPrivate, udp(macOf(mPrivate), parentMAC, ip6Of(99), ip6Of(reserved), 18)),
		drop("IP-keyed bridge to private", iPrivate, uniIP(iBridge, iPrivate)),
		drop("IP-keyed private to private", iPrivate, uniIP(iPrivate2, iPrivate)),
		delivered("IP-keyed private to itself", iPrivate, uniIP(iPrivate, iPrivate)),
		delivered("IP-keyed private to vepa", iVEPA, uniIP(iPrivate, iVEPA)),
		drop("MAC-keyed to IP-keyed private", iPrivate, udp(parentMAC, macOf(mBridge), ip4Of(iPrivate), ip4Of(99), 18)),
		delivered("host to IP-keyed private", iPrivate, udp(parentMAC, parentMAC, ip4Of(iPrivate), ip4Of(reserved), 18)),
		drop("ARP to IP-keyed private", iPrivate, arp(2, parentMAC, parentMAC, ip4Of(iBridge), parentMAC, ip4Of(iPrivate))),
	}
}

func modesTx() []frameCase {
	uni := func(from, to uint32) []byte { return udp(macOf(to), macOf(from), ip4Of(to), ip4Of(from), 18) }
	toIP := func(from, to uint32) []byte { return udp(parentMAC, macOf(from), ip4Of(to), ip4Of(from), 18) }
	fromIP := func(from, to uint32) builder {
		return func(m mac) []byte { return udp(parentMAC, m, ip4Of(to), ip4Of(from), 18) }
	}
	fromIPToMAC := func(from, to uint32) builder {
		return func(m mac) []byte { return udp(macOf(to), m, ip4Of(to), ip4Of(from), 18) }
	}
	apart := func(name string, from uint32, frame []byte) frameCase { return refused(name, from, modes, frame) }
	all := func(name string, from uint32, frame []byte) frameCase {
		c := sent(name, from, frame)
		c.hits = append(c.hits, copied(from, bridges)...)
		return c
	}
	shout := func(id uint32) []byte { return udp(broadcastMAC, macOf(id), ip4Of(255), ip4Of(id), 18) }
	shoutIP := func(id uint32) builder { return func(m mac) []byte { return whoHas(m, ip4Of(id), ip4Of(99)) } }
	ask := func(from, to uint32) []byte { return whoHas(macOf(from), ip4Of(from), ip4Of(to)) }
	return []frameCase{
		handed("bridge to bridge", mBridge, mBridge2, uni(mBridge, mBridge2)),
		sent("bridge to vepa", mBridge, uni(mBridge, mVEPA)),
		sent("bridge to private", mBridge, uni(mBridge, mPrivate)),
		sent("bridge to source", mBridge, uni(mBridge, mSource)),
		sent("vepa to bridge", mVEPA, uni(mVEPA, mBridge)),
		sent("vepa to vepa", mVEPA, uni(mVEPA, mVEPA2)),
		sent("private to private", mPrivate, uni(mPrivate, mPrivate2)),
		sent("private to bridge", mPrivate, uni(mPrivate, mBridge)),
		sent("source to bridge", mSource, uni(mSource, mBridge)),
		handed("bridge to IP-keyed bridge", mBridge, iBridge, toIP(mBridge, iBridge)),
		sent("bridge to IP-keyed private", mBridge, toIP(mBridge, iPrivate)),
		sent("private to IP-keyed private", mPrivate, toIP(mPrivate, iPrivate)),
		sent("vepa to IP-keyed bridge", mVEPA, toIP(mVEPA, iBridge)),
		masked("IP-keyed bridge to private", iBridge, fromIP(iBridge, iPrivate), sent),
		masked("IP-keyed bridge to vepa", iBridge, fromIP(iBridge, iVEPA), sent),
		masked("IP-keyed bridge to bridge", iBridge, fromIPToMAC(iBridge, mBridge), to(mBridge)),
		masked("IP-keyed vepa to bridge", iVEPA, fromIP(iVEPA, iBridge), sent),
		masked("IP-keyed private to private", iPrivate, fromIP(iPrivate, iPrivate2), apart),
		masked("IP-keyed private to bridge", iPrivate, fromIP(iPrivate, iBridge), apart),
		masked("IP-keyed private to itself", iPrivate, fromIP(iPrivate, iPrivate), apart),
		sent("vepa to itself", mVEPA, uni(mVEPA, mVEPA)),
		sent("private to itself", mPrivate, uni(mPrivate, mPrivate)),
		masked("IP-keyed vepa to itself", iVEPA, fromIP(iVEPA, iVEPA), sent),
		masked("IP-keyed private to MAC-keyed", iPrivate, fromIPToMAC(iPrivate, mBridge), sent),
		masked("IP-keyed private to the wire", iPrivate, fromIP(iPrivate, 99), sent),
		all("broadcast of a bridge one", mBridge, shout(mBridge)),
		masked("broadcast of an IP-keyed bridge one", iBridge, shoutIP(iBridge), all),
		sent("pause frame of a bridge one", mBridge, pause(macOf(mBridge))),
		masked("pause frame of an IP-keyed one", iBridge, pause, apart),
		sent("broadcast of a vepa one", mVEPA, shout(mVEPA)),
		sent("broadcast of a private one", mPrivate, shout(mPrivate)),
		sent("broadcast of one in source mode", mSource, shout(mSource)),
		masked("broadcast of an IP-keyed private one", iPrivate, shoutIP(iPrivate), sent),
		handed("question for a bridge one", mBridge, iBridge, ask(mBridge, iBridge)),
		all("question for a private one", mBridge, ask(mBridge, iPrivate)),
		all("question for a vepa one", mBridge, ask(mBridge, mVEPA)),
		sent("vepa one's question for a bridge one", mVEPA, ask(mVEPA, mBridge)),
	}
}

func TestModes(t *testing.T) {
	w := modesWorld(t)
	t.Run("wire", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanRx, modesFromWire()) })
	t.Run("returned", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanRx, modesReturned()) })
	t.Run("tx", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanTx, modesTx()) })

	// With nobody in source mode, lists are not looked at.
	w.meta.Sources = 0
	c := delivered("no lists", mBridge, udp(macOf(mBridge), strangerMAC, ip4Of(99), ip4Of(99), 18))
	checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{c})
	// With no IP-keyed sub-interface, the parent's MAC is the host's.
	w.meta.IpKeyed = 0
	host := heard("host's, returned", whoHas(parentMAC, ip4Of(99), ip4Of(98)), bridges, vepas, privates)
	checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{host})
}

// XDP leaves to xvlan_rx what a list or passthru may want.
func TestModesXDP(t *testing.T) {
	w := modesWorld(t)
	w.meta.Policy = bpf.XvlanPolicyPOLICY_UNKNOWN_DROP
	frame := udp(mac{0x02, 0xdd, 0, 0, 0, 2}, strangerMAC, ip4Of(99), routerIP4, 18)
	pass := frameCase{name: "sources", frame: frame, ret: xdpPass}
	checkAll(t, w, bpf.XvlanProgXvlanXdp, []frameCase{pass})
	w.meta.Sources, w.meta.Passthru, pass.name = 0, mPrivate, "passthru"
	checkAll(t, w, bpf.XvlanProgXvlanXdp, []frameCase{pass})
	w.meta.Passthru = 0
	checkAll(t, w, bpf.XvlanProgXvlanXdp, []frameCase{{
		name: "neither", frame: frame, ret: xdpDrop, hits: []hit{{id: 0, verdict: unknown}}}})
}

// In passthru mode, a sub-interface with the parent's MAC is alone and gets
// all unicast.
func TestPassthru(t *testing.T) {
	const me = 1
	w := newWorld(t, 4)
	sub := macvlan(bpf.XvlanSubPlacePLACE_AWAY)
	sub.Class = classPrivate
	w.add(t, me, sub)
	sub = w.subs[me]
	sub.Mac = parentMAC
	w.subs[me] = sub
	w.meta.Passthru = me
	question := whoHas(routerMAC, routerIP4, ip4Of(99))
	own := whoHas(parentMAC, ip4Of(99), routerIP4)
	cases := []frameCase{
		delivered("stranger", me, fromWire(strangerMAC, 99)),
		delivered("parent's MAC", me, fromWire(parentMAC, 99)),
		delivered("tagged", me, tagged(fromWire(strangerMAC, 99), 0x8100, 10)),
		{name: "broadcast", frame: question, ret: actNext, hits: []hit{{id: 0, verdict: passed}, {id: me, verdict: rx}}},
		delivered("its own broadcast, returned", me, own),
	}
	checkAll(t, w, bpf.XvlanProgXvlanRx, cases)
	w.meta.Policy = bpf.XvlanPolicyPOLICY_UNKNOWN_DROP
	t.Run("unknown drop", func(t *testing.T) { checkAll(t, w, bpf.XvlanProgXvlanRx, cases) })
	w.meta.Policy = 0
	checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{
		sent("out", me, udp(routerMAC, parentMAC, routerIP4, ip4Of(99), 18)),
		sent("broadcast out", me, whoHas(parentMAC, ip4Of(99), routerIP4)),
	})
	for _, state := range []bpf.XvlanSubState{bpf.XvlanSubStateSUB_FREE, bpf.XvlanSubStateSUB_PENDING} {
		sub.State = state
		w.subs[me] = sub
		checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{left("not active", fromWire(strangerMAC, 99))})
	}
}
