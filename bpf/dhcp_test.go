package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
)

const (
	leased  = bpf.XvlanDestFlagDEST_LEASED
	awaited = leased | bpf.XvlanDestFlagDEST_AWAITED
	xid     = 0x01020304
	broad   = 0x8000 // the flag

	// Where a frame's BOOTP message begins, and its UDP checksum.
	bootpAt, udpSumAt = 42, 40
)

var everybody = netip.MustParseAddr("255.255.255.255")

// A message is a DHCP message and what it is sent in.
type message struct {
	op       layers.DHCPOp
	kind     layers.DHCPMsgType
	chaddr   mac
	flags    uint16
	ciaddr   netip.Addr
	yiaddr   netip.Addr
	lease    uint32 // 0: is not said
	xid      uint32 // 0: the usual one
	dst, src mac
	to, from netip.Addr
}

func (m message) frame() []byte {
	l4 := &layers.UDP{SrcPort: 68, DstPort: 67}
	if m.op == layers.DHCPOpReply {
		l4.SrcPort, l4.DstPort = 67, 68
	}
	for _, a := range []*netip.Addr{&m.ciaddr, &m.yiaddr} {
		if !a.IsValid() {
			*a = anyIP4
		}
	}
	if m.xid == 0 {
		m.xid = xid
	}
	d := &layers.DHCPv4{
		Operation: m.op, HardwareType: layers.LinkTypeEthernet, HardwareLen: 6, Xid: m.xid, Flags: m.flags,
		ClientIP: m.ciaddr.AsSlice(), YourClientIP: m.yiaddr.AsSlice(), ClientHWAddr: m.chaddr[:],
		Options: layers.DHCPOptions{
			{Type: layers.DHCPOptPad},
			{Type: layers.DHCPOptHostname, Length: 3, Data: []byte("abc")},
			{Type: layers.DHCPOptMessageType, Length: 1, Data: []byte{byte(m.kind)}},
		},
	}
	if m.lease != 0 {
		d.Options = append(d.Options, layers.DHCPOption{Type: layers.DHCPOptLeaseTime, Length: 4, Data: binary.BigEndian.AppendUint32(nil, m.lease)})
	}
	l3 := ipv4(m.to, m.from, layers.IPProtocolUDP)
	_ = l4.SetNetworkLayerForChecksum(l3) // it is one
	return build(ether(m.dst, m.src, layers.EthernetTypeIPv4), l3, l4, d, gopacket.Payload{})
}

// query is what a client of a sub-interface sends; it is built twice: see builder.
func query(kind layers.DHCPMsgType, id uint32, change ...func(*message)) builder {
	return func(src mac) []byte {
		m := message{
			op: layers.DHCPOpRequest, kind: kind, chaddr: macOf(id),
			dst: broadcastMAC, src: src, to: everybody, from: anyIP4,
		}
		if src == parentMAC {
			m.flags = broad
		}
		for _, c := range change {
			c(&m)
		}
		return m.frame()
	}
}

// renewal makes a query one by unicast from an address that the client has.
func renewal(a netip.Addr) func(*message) {
	return func(m *message) { m.ciaddr, m.from, m.dst, m.to = a, a, routerMAC, routerIP4 }
}

// reply is what the wire's server sends by broadcast.
func reply(kind layers.DHCPMsgType, id uint32, a netip.Addr, change ...func(*message)) []byte {
	m := message{
		op: layers.DHCPOpReply, kind: kind, chaddr: macOf(id), yiaddr: a, lease: 600,
		dst: broadcastMAC, src: routerMAC, to: everybody, from: routerIP4,
	}
	for _, c := range change {
		c(&m)
	}
	return m.frame()
}

// unicast sends a reply to the parent's MAC.
func unicast(m *message) { m.dst, m.to = parentMAC, m.yiaddr }

func txDHCP() []frameCase {
	const me = ipAway
	discover := query(layers.DHCPMsgTypeDiscover, me)
	unsummed := func(m mac) []byte { return set(discover(m), udpSumAt, 0, 0) }
	// What is not DHCP leaves as it is, with the parent's MAC.
	as := func(name string, off int, data ...byte) frameCase {
		frame := set(discover(macOf(me)), off, data...)
		c := shouted(name, me, frame)
		c.out = set(frame, 6, parentMAC[:]...)
		return c
	}
	cut := func(name string, size int) frameCase {
		c := shouted(name, me, discover(macOf(me))[:size])
		c.out = set(c.frame, 6, parentMAC[:]...)
		return c
	}
	return []frameCase{
		masked("discover", me, discover, shouted),
		masked("discover, tagged", me, func(m mac) []byte { return tagged(discover(m), 0x8100, 20) }, shouted),
		masked("discover without a checksum", me, unsummed, shouted),
		masked("discover with the flag", me, query(layers.DHCPMsgTypeDiscover, me, func(m *message) { m.flags = broad }), shouted),
		masked("discover of what is behind it", me, query(layers.DHCPMsgTypeDiscover, ipHere), shouted),
		masked("record pending", pending, query(layers.DHCPMsgTypeDiscover, pending), shouted),
		masked("request", me, query(layers.DHCPMsgTypeRequest, me), shouted),
		masked("renewal", me, query(layers.DHCPMsgTypeRequest, me, renewal(ip4Of(me))), sent),
		masked("release", me, query(layers.DHCPMsgTypeRelease, me, renewal(ip4Of(me))), sent),
		as("a server's", bootpAt, 2),
		as("hardware type", bootpAt+1, 6),
		as("hardware length", bootpAt+2, 8),
		as("no cookie", bootpAt+236, 0),
		as("first fragment", 20, 0x20),
		as("later fragment", 21, 1),
		as("IP options", 14, 0x46),
		as("IP header too short", 14, 0x44),
		as("TCP", 23, 6),
		as("source port", 35, 69),
		as("destination port", 37, 69),
		cut("cut in the cookie", bootpAt+239),
		cut("cut in the message", bootpAt+43),
		cut("cut in the UDP header", bootpAt-1),
		cut("cut in the ports", bootpAt-6),
	}
}

func rxDHCP() []frameCase {
	const me = ipAway
	mine := ip4Of(50)
	ack := reply(layers.DHCPMsgTypeAck, me, mine)
	byUnicast := reply(layers.DHCPMsgTypeAck, me, mine, unicast)
	// is completes a case: the address is leased to the sub-interface afterwards.
	is := func(c frameCase, id uint32, a netip.Addr) frameCase {
		c.news = append(c.news, entry{0, a, id, generation, leased})
		return c
	}
	refused := func(name string, a netip.Addr) frameCase {
		c := delivered(name, me, reply(layers.DHCPMsgTypeAck, me, a))
		c.hits = append(c.hits, hit{id: me, verdict: learnDup, packets: 1})
		c.hits[len(c.hits)-1].bytes = 0
		return c
	}
	from := func(src mac) func(*message) { return func(m *message) { m.src = src } }
	other := func(m *message) { m.xid = xid + 1 }
	return []frameCase{
		delivered("offer", me, reply(layers.DHCPMsgTypeOffer, me, mine)),
		delivered("refusal", me, reply(layers.DHCPMsgTypeNak, me, anyIP4)),
		is(delivered("acknowledgement", me, ack), me, mine),
		is(delivered("acknowledgement, padded", me, padded(ack, len(ack)+60)), me, mine),
		is(delivered("acknowledgement for ever", me, reply(layers.DHCPMsgTypeAck, me, mine, func(m *message) { m.lease = 1<<32 - 1 })), me, mine),
		delivered("acknowledgement, here, not asked for", ipHere, reply(layers.DHCPMsgTypeAck, ipHere, mine)),
		delivered("acknowledgement of another question", me, reply(layers.DHCPMsgTypeAck, me, mine, other)),
		delivered("acknowledgement without a time", me, reply(layers.DHCPMsgTypeAck, me, mine, func(m *message) { m.lease = 0 })),
		delivered("acknowledgement of an inform", me, reply(layers.DHCPMsgTypeAck, me, anyIP4)),
		delivered("acknowledgement of a group's", me, reply(layers.DHCPMsgTypeAck, me, netip.MustParseAddr("224.0.0.1"))),
		delivered("acknowledgement of loopback's", me, reply(layers.DHCPMsgTypeAck, me, netip.MustParseAddr("127.0.0.1"))),
		delivered("acknowledgement of what is given to it", me, reply(layers.DHCPMsgTypeAck, me, ip4Of(me))),
		is(delivered("acknowledgement of what it was learned to have", me, reply(layers.DHCPMsgTypeAck, me, ip4Of(taught))), me, ip4Of(taught)),
		is(delivered("acknowledgement of a former owner's", me, reply(layers.DHCPMsgTypeAck, me, ip4Of(inherited))), me, ip4Of(inherited)),
		is(delivered("acknowledgement of the record free's", me, reply(layers.DHCPMsgTypeAck, me, ip4Of(free))), me, ip4Of(free)),
		refused("acknowledgement of a reserved address", ip4Of(reserved)),
		refused("acknowledgement of a sibling's given address", ip4Of(ipHere)),
		is(delivered("acknowledgement by unicast", me, byUnicast), me, mine),
		is(readdressed(delivered("acknowledgement by unicast, here", askedHere, reply(layers.DHCPMsgTypeAck, askedHere, mine, unicast)), macOf(askedHere)), askedHere, mine),
		readdressed(delivered("to a sibling's address", ipHere, reply(layers.DHCPMsgTypeAck, me, mine, unicast, func(m *message) { m.to = ip4Of(ipHere) })), macOf(ipHere)),
		flooded("for a MAC-keyed one", reply(layers.DHCPMsgTypeAck, macAway, mine)),
		flooded("for nobody here", reply(layers.DHCPMsgTypeAck, 99, mine)),
		flooded("record pending", reply(layers.DHCPMsgTypeAck, pending, mine)),
		flooded("record free", reply(layers.DHCPMsgTypeAck, free, mine)),
		flooded("for another VLAN", reply(layers.DHCPMsgTypeAck, ipVLAN, mine)),
		left("for nobody here, by unicast", reply(layers.DHCPMsgTypeAck, 99, mine, unicast)),
		left("from a sibling's MAC", reply(layers.DHCPMsgTypeAck, me, mine, from(macOf(macAway)))),
		left("from a sibling's MAC, by unicast", reply(layers.DHCPMsgTypeAck, me, mine, unicast, from(macOf(macAway)))),
		left("from the parent's MAC, by unicast", reply(layers.DHCPMsgTypeAck, me, mine, unicast, from(parentMAC))),
		flooded("a client's", set(ack, bootpAt, 1)),
		flooded("hardware type", set(ack, bootpAt+1, 6)),
		flooded("hardware length", set(ack, bootpAt+2, 8)),
		flooded("no cookie", set(ack, bootpAt+236, 0)),
		flooded("first fragment", set(ack, 20, 0x20)),
		flooded("IP options", set(ack, 14, 0x46)),
		flooded("source port", set(ack, 35, 69)),
		flooded("cut in the cookie", ack[:bootpAt+239]),
		delivered("cut in the options", me, ack[:bootpAt+247]),
		delivered("an option longer than the frame", me, set(ack, bootpAt+242, 255)),
		delivered("type of another length", me, set(ack, bootpAt+247, 2)),
		delivered("without options", me, ack[:bootpAt+240]),
	}
}

// askedHere is who has asked by the usual xid besides ipAway.
const askedHere = ipHere

// asking makes clients have asked.
func (w *world) asking(ids ...uint32) {
	w.rings = map[uint32]bpf.XvlanRing{}
	for _, id := range ids {
		w.rings[id] = bpf.XvlanRing{XidBe: htonl(xid)}
	}
}

func htonl(v uint32) uint32 { return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, v)) }

func TestDHCPOut(t *testing.T) {
	w := usualWorld(t)
	checkAll(t, w, bpf.XvlanProgXvlanTx, txDHCP())
	t.Run("switched off", func(t *testing.T) {
		sub := w.subs[ipAway]
		sub.Flags |= bpf.XvlanSubFlagSUB_NO_DHCP
		w.subs[ipAway] = sub
		c := shouted("", ipAway, query(layers.DHCPMsgTypeDiscover, ipAway)(macOf(ipAway)))
		c.out = set(c.frame, 6, parentMAC[:]...)
		c.check(t, w, bpf.XvlanProgXvlanTx)
		c = flooded("", reply(layers.DHCPMsgTypeOffer, ipAway, ip4Of(50)))
		c.check(t, w, bpf.XvlanProgXvlanRx)
	})
}

func TestDHCPIn(t *testing.T) {
	w := usualWorld(t)
	for _, c := range rxDHCP() {
		t.Run(c.name, func(t *testing.T) {
			w.asking(ipAway)
			if c.name == "acknowledgement by unicast, here" {
				w.asking(askedHere)
			}
			c.check(t, w, bpf.XvlanProgXvlanRx)
		})
	}
}

// lets runs a frame and wants the addresses to be these besides the usual.
func (w *world) lets(t *testing.T, what, prog string, from uint32, frame []byte, want ...entry) {
	t.Helper()
	ret, _ := w.run(t, prog, from, frame, 0)
	if ret == actDrop {
		t.Errorf("%s: dropped", what)
	}
	if t.Failed() {
		t.FailNow()
	}
	wantEntries(t, w, want, nil)
	if t.Failed() {
		t.Fatalf("after: %s", what)
	}
}

// TestLease goes through the life of leases.
func TestLease(t *testing.T) {
	const me, rxProg, txProg = ipAway, bpf.XvlanProgXvlanRx, bpf.XvlanProgXvlanTx
	w := usualWorld(t)
	first, second := ip4Of(50), ip4Of(51)
	mine := func(a netip.Addr, flags bpf.XvlanDestFlag) entry { return entry{0, a, me, generation, flags} }
	ask := func(id uint32, kind layers.DHCPMsgType, change ...func(*message)) []byte {
		return query(kind, id, change...)(macOf(id))
	}
	begin := func(t *testing.T) {
		w.enter(t)
		w.lets(t, "request", txProg, me, ask(me, layers.DHCPMsgTypeRequest))
		w.lets(t, "acknowledgement", rxProg, 0, reply(layers.DHCPMsgTypeAck, me, first), mine(first, leased))
	}
	t.Run("another address", func(t *testing.T) {
		begin(t)
		w.lets(t, "acknowledgement", rxProg, 0, reply(layers.DHCPMsgTypeAck, me, second), mine(second, leased))
	})
	t.Run("in a VLAN", func(t *testing.T) {
		w.enter(t)
		ack := reply(layers.DHCPMsgTypeAck, ipVLAN, first)
		w.lets(t, "request", txProg, ipVLAN, ask(ipVLAN, layers.DHCPMsgTypeRequest))
		w.lets(t, "acknowledgement without it", rxProg, 0, ack)
		w.lets(t, "acknowledgement in another", rxProg, 0, tagged(ack, 0x8100, 20))
		w.lets(t, "acknowledgement", rxProg, 0, tagged(ack, 0x8100, 10), entry{10, first, ipVLAN, generation, leased})
	})
	t.Run("refused", func(t *testing.T) {
		begin(t)
		w.lets(t, "refusal of another question", rxProg, 0, reply(layers.DHCPMsgTypeNak, me, anyIP4, func(m *message) { m.xid++ }), mine(first, leased))
		w.lets(t, "refusal", rxProg, 0, reply(layers.DHCPMsgTypeNak, me, anyIP4))
	})
	t.Run("released", func(t *testing.T) {
		begin(t)
		w.lets(t, "release of another", txProg, me, ask(me, layers.DHCPMsgTypeRelease, renewal(second)), mine(first, leased))
		w.lets(t, "release by a sibling", txProg, ipHere, ask(me, layers.DHCPMsgTypeRelease, renewal(first)), mine(first, leased))
		w.lets(t, "release", txProg, me, ask(me, layers.DHCPMsgTypeRelease, renewal(first)))
	})
	t.Run("declined", func(t *testing.T) {
		begin(t)
		w.lets(t, "decline", txProg, me, ask(me, layers.DHCPMsgTypeDecline))
	})
	t.Run("renewed", func(t *testing.T) {
		begin(t)
		was := w.until(t, first)
		to := udp(parentMAC, routerMAC, first, routerIP4, 18)
		w.lets(t, "a frame to it", rxProg, 0, to, mine(first, leased)) // from now on by its slot
		w.lets(t, "renewal", txProg, me, ask(me, layers.DHCPMsgTypeRequest, renewal(first), func(m *message) { m.xid = xid + 1 }), mine(first, awaited))
		w.lets(t, "a frame to it", rxProg, 0, to, mine(first, awaited))
		longer := reply(layers.DHCPMsgTypeAck, me, first, unicast, func(m *message) { m.xid, m.lease = xid+1, 6000 })
		w.lets(t, "acknowledgement", rxProg, 0, longer, mine(first, leased))
		if now := w.until(t, first); now < was+5000 {
			t.Errorf("the lease ends at %d, and before it was renewed at %d", now, was)
		}
	})
	t.Run("claimed", func(t *testing.T) {
		begin(t)
		w.lets(t, "the wire's claim", rxProg, 0, announce(routerMAC, first), mine(first, leased))
		w.lets(t, "a sibling's claim", txProg, ipHere, announce(macOf(ipHere), first), mine(first, leased))
		w.lets(t, "a sibling's acknowledgement", txProg, ipHere,
			set(reply(layers.DHCPMsgTypeAck, me, second), 6, macBytes(ipHere)...), mine(first, leased))
		w.clearStats(t)
		question := whoHas(routerMAC, routerIP4, first)
		w.lets(t, "a question", rxProg, 0, question, mine(first, leased))
		wantHits(t, w, len(question), hit{id: me, verdict: rx})
	})
	t.Run("a sibling's", func(t *testing.T) {
		begin(t)
		w.lets(t, "sibling's request", txProg, ipHere, ask(ipHere, layers.DHCPMsgTypeRequest), mine(first, leased))
		same := reply(layers.DHCPMsgTypeAck, ipHere, first)
		w.lets(t, "acknowledged to both", rxProg, 0, same, mine(first, leased))
		w.end(t, first)
		w.lets(t, "acknowledged when it has ended", rxProg, 0, same, entry{0, first, ipHere, generation, leased})
	})
	t.Run("ended", func(t *testing.T) {
		begin(t)
		w.end(t, first)
		w.clearStats(t)
		question := whoHas(routerMAC, routerIP4, first)
		w.lets(t, "a question", rxProg, 0, question, mine(first, leased))
		wantHits(t, w, len(question), copies(0, hit{id: 0, verdict: passed})...)
		w.lets(t, "the wire's claim", rxProg, 0, announce(routerMAC, first))
	})
	t.Run("learned by a sibling", func(t *testing.T) {
		w.enter(t)
		w.claim(t, ipHere, first)
		w.lets(t, "request", txProg, me, ask(me, layers.DHCPMsgTypeRequest), entry{0, first, ipHere, generation, bpf.XvlanDestFlagDEST_LEARNED})
		w.lets(t, "acknowledgement", rxProg, 0, reply(layers.DHCPMsgTypeAck, me, first), mine(first, leased))
	})
	t.Run("of two with one MAC", func(t *testing.T) {
		w.enter(t)
		sub := w.record(t, ipHere)
		sub.Mac = macOf(me)
		w.set(t, bpf.MapSubs, ipHere, sub)
		w.lets(t, "request", txProg, me, ask(me, layers.DHCPMsgTypeRequest))
		w.lets(t, "acknowledgement", rxProg, 0, reply(layers.DHCPMsgTypeAck, me, first))
	})
}

func macBytes(id uint32) []byte {
	m := macOf(id)
	return m[:]
}

// until reads when a lease ends.
func (w *world) until(t *testing.T, a netip.Addr) uint32 {
	t.Helper()
	var d bpf.XvlanDest
	if err := w.coll.Maps[bpf.XvlanMapByIp4].Lookup(ip4Key(0, a), &d); err != nil {
		t.Fatalf("look up %s: %v", a, err)
	}
	return d.Until
}

// end makes a lease end now.
func (w *world) end(t *testing.T, a netip.Addr) {
	t.Helper()
	var d bpf.XvlanDest
	if err := w.coll.Maps[bpf.XvlanMapByIp4].Lookup(ip4Key(0, a), &d); err != nil {
		t.Fatalf("look up %s: %v", a, err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	d.Until = uint32(now.Sec)
	w.put(t, bpf.XvlanMapByIp4, ip4Key(0, a), d)
}
