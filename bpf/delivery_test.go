package bpf_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
)

const wire = 0 // in place of a sub-interface's id: the parent's other end

// An arrival is a frame as a device has received it.
type arrival struct {
	at    uint32
	frame []byte
}

// received tells where a case's frame is expected: unchanged or as the case
// says it is after the program, but for one that goes by other bytes.
func received(c *frameCase, ids ...uint32) []arrival {
	var all []arrival
	for _, id := range ids {
		all = append(all, arrival{id, c.frame})
		if c.out != nil {
			all[len(all)-1].frame = c.out
		}
	}
	return all
}

// capture listens on all inner legs and on the wire.
func (w *world) capture(tb testing.TB) map[uint32]*lab.Capture {
	tb.Helper()
	all := map[uint32]*lab.Capture{wire: w.inside.Capture(tb, "w0")}
	for id := range w.subs {
		all[id] = w.innerNetns(id).Capture(tb, innerName(id))
	}
	return all
}

// drain forgets what an attempt before has left.
func drain(captures map[uint32]*lab.Capture) {
	for _, c := range captures {
		c.Frames(1000, 0)
	}
}

func incoming(f lab.Frame) bool { return f.PktType != unix.PACKET_OUTGOING }

// wantArrivals waits for the arrivals and looks that there are no others.
func wantArrivals(tb testing.TB, captures map[uint32]*lab.Capture, want []arrival) {
	tb.Helper()
	for _, a := range want {
		frames := captures[a.at].Matching(1, arriveWithin, incoming)
		if len(frames) == 0 {
			tb.Errorf("nothing arrived at %d", a.at)
			continue
		}
		wantBytes(tb, frames[0].Wire(), a.frame)
		if kind := packetType(a.frame); a.at != wire && frames[0].PktType != kind {
			tb.Errorf("packet type at %d is %d, want %d", a.at, frames[0].PktType, kind)
		}
	}
	for id, c := range captures {
		for _, f := range c.Matching(1, 0, incoming) {
			tb.Errorf("arrived at %d besides: %x", id, f.Wire())
		}
	}
}

// packetType is what an inner device must take a frame for.
func packetType(frame []byte) uint8 {
	switch {
	case mac(frame[:6]) == broadcastMAC:
		return unix.PACKET_BROADCAST
	case frame[0]&1 != 0:
		return unix.PACKET_MULTICAST
	}
	return unix.PACKET_HOST
}

// travel sends a case's frame and follows it.
func (c *frameCase) travel(t *testing.T, w *world, prog string, captures map[uint32]*lab.Capture, want []arrival) {
	t.Helper()
	undisturbed(t, func(tb testing.TB) {
		w.enter(tb)
		drain(captures)
		w.send(tb, prog, c.from, c.frame)
		awaitHits(tb, w, len(c.frame)+c.tags, c.hits...)
		wantArrivals(tb, captures, want)
	})
}

func TestRxArrives(t *testing.T) { onPairs(t, testRxArrives) }

func testRxArrives(t *testing.T, netkit bool) {
	w := usualWorldOf(t, netkit)
	w.attach(t)
	captures := w.capture(t)
	for _, c := range []frameCase{
		delivered("MAC", macAway, fromWire(macOf(macAway), 99)),
		delivered("MAC, here", macHere, fromWire(macOf(macHere), 99)),
		delivered("MAC, tagged", macAway, tagged(fromWire(macOf(macAway), 99), 0x8100, 0x2014)),
		untagged(delivered("MAC, in its VLAN", macVLAN, tagged(fromWire(macOf(macVLAN), 99), 0x8100, 10))),
		delivered("MAC, QinQ", macAway, tagged(fromWire(macOf(macAway), 99), 0x88a8, 10, 0x8100, 20)),
		delivered("IP", ipAway, fromWire6(parentMAC, ipAway)),
		delivered("IP, in another VLAN", ipAway, tagged(fromWire(parentMAC, ipAway), 0x8100, 30)),
		delivered("IP, priority tag", ipAway, tagged(fromWire(parentMAC, ipAway), 0x8100, 0xe000)),
		readdressed(delivered("IP, here", ipHere, fromWire(parentMAC, ipHere)), macOf(ipHere)),
		untagged(delivered("IP, in its VLAN", ipVLAN, tagged(fromWire(parentMAC, ipVLAN), 0x8100, 10))),
		untagged(delivered("ARP in a VLAN", ipVLAN, tagged(arp(2, parentMAC, routerMAC, routerIP4, parentMAC, ip4Of(ipVLAN)), 0x8100, 10))),
		delivered("question", ipAway, whoHas(routerMAC, routerIP4, ip4Of(ipAway))),
		delivered("question, MAC-keyed", macGiven, solicit(routerMAC, routerIP6, ip6Of(macGiven))),
		untagged(delivered("question in the VLAN", ipVLAN, tagged(whoHas(routerMAC, routerIP4, ip4Of(ipVLAN)), 0x8100, 10))),
	} {
		t.Run(c.name, func(t *testing.T) {
			c.travel(t, w, bpf.XvlanProgXvlanRx, captures, received(&c, c.hits[0].id))
		})
	}
	for _, c := range []frameCase{
		flooded("broadcast", whoHas(routerMAC, routerIP4, ip4Of(99))),
		flooded("multicast, tagged", tagged(udp(multicastMAC, routerMAC, allNodes, routerIP6, 18), 0x8100, 20)),
	} {
		t.Run(c.name, func(t *testing.T) { c.travel(t, w, bpf.XvlanProgXvlanRx, captures, received(&c, receivers...)) })
	}
	for _, c := range []frameCase{
		left("to the host, in a VLAN", tagged(fromWire(parentMAC, ipVLAN), 0x8100, 30)),
		left("to the host, not in its VLAN", tagged(fromWire(macOf(macVLAN), 99), 0x8100, 30)),
		left("to the host", fromWire(parentMAC, 99)),
	} {
		t.Run(c.name, func(t *testing.T) { c.travel(t, w, bpf.XvlanProgXvlanRx, captures, nil) })
	}
}

func TestTxArrives(t *testing.T) { onPairs(t, testTxArrives) }

func testTxArrives(t *testing.T, netkit bool) {
	w := usualWorldOf(t, netkit)
	w.attach(t)
	captures := w.capture(t)
	setMTU(t, w.inside, innerName(macAway), 2000) // more than the parent's
	setMTU(t, w.host, legName(macAway), 2000)
	send := func(dst mac, id uint32) builder {
		return func(m mac) []byte { return udp(dst, m, ip4Of(id), ip4Of(99), 18) }
	}
	fromMAC := func(b builder) []byte { return b(macOf(macAway)) }
	ask := func(m mac) []byte { return whoHas(m, ip4Of(ipAway), ip4Of(99)) }
	for _, c := range []frameCase{
		sent("wire", macAway, fromMAC(send(routerMAC, 99))),
		sent("wire, tagged", macAway, tagged(fromMAC(send(routerMAC, 99)), 0x8100, 20)),
		sent("wire, QinQ", macAway, tagged(fromMAC(send(routerMAC, 99)), 0x88a8, 20, 0x8100, 10)),
		masked("wire, IP-keyed", ipAway, send(routerMAC, 99), sent),
		masked("wire, IP-keyed, here", ipHere, send(routerMAC, 99), sent),
		masked("ND to the wire", ipAway, func(m mac) []byte {
			return icmp6(routerMAC, m, routerIP6, ip6Of(ipAway), 136, advertBody(0x60, ip6Of(ipAway), targetLL(m)))
		}, sent),
		handed("sibling", macAway, macHere, fromMAC(send(macOf(macHere), 99))),
		sent("tagged for a VLAN", macHere, tagged(fromMAC(send(macOf(macVLAN), 99)), 0x8100, 10)),
		handed("IP-keyed sibling", macAway, ipAway, fromMAC(send(parentMAC, ipAway))),
		readdressed(handed("IP-keyed sibling, here", macAway, ipHere, fromMAC(send(parentMAC, ipHere))), macOf(ipHere)),
		masked("IP-keyed to IP-keyed", ipHere, send(parentMAC, ipAway), to(ipAway)),
		masked("question", ipAway, func(m mac) []byte { return whoHas(m, ip4Of(ipAway), ip4Of(macGiven)) }, to(macGiven)),
		shouted("broadcast", macHere, fromMAC(send(broadcastMAC, 255))),
		masked("broadcast, IP-keyed", ipAway, send(broadcastMAC, 255), shouted),
		masked("ARP", ipAway, ask, shouted),
		refused("over the MTU", macAway, overMTU, padded(fromMAC(send(routerMAC, 99)), 1515)),
		refused("tagged over the MTU", macAway, overMTU, tagged(padded(fromMAC(send(routerMAC, 99)), 1515), 0x8100, 20)),
		sent("tagged, full", macAway, tagged(padded(fromMAC(send(routerMAC, 99)), 1514), 0x8100, 20)),
		dropped("malformed", ipAway, set(ask(macOf(ipAway)), 18, 5)),
	} {
		var ids []uint32
		for _, h := range c.hits {
			if h.verdict == rx {
				ids = append(ids, h.id)
			}
		}
		if c.ret == actRedir && len(ids) != 1 {
			ids = append(ids, wire)
		}
		t.Run(c.name, func(t *testing.T) { c.travel(t, w, bpf.XvlanProgXvlanTx, captures, received(&c, ids...)) })
	}
}

func setMTU(tb testing.TB, ns *lab.Netns, dev string, mtu int) {
	tb.Helper()
	if err := ns.Handle().LinkSetMTU(ns.Link(tb, dev), mtu); err != nil {
		tb.Fatalf("set MTU of %s: %v", dev, err)
	}
}

// Real super-packets: counted as segments, checked against the MTU as segments,
// delivered whole.
func TestGSOArrives(t *testing.T) { onPairs(t, testGSOArrives) }

func testGSOArrives(t *testing.T, netkit bool) {
	w := usualWorldOf(t, netkit)
	w.attach(t)
	captures := w.capture(t)
	const tcp4, tcp6, udpL4 = 1, 4, 5 // virtio_net_hdr's GSO types
	from, sibling := macOf(macAway), macOf(macGiven)
	frame4, frame6 := tcp(routerMAC, from, routerIP4, ip4Of(99), 4000), tcp(routerMAC, from, routerIP6, ip6Of(99), 4000)
	datagrams := udp(routerMAC, from, routerIP4, ip4Of(99), 4000)
	for _, c := range []struct {
		frameCase
		kind byte
	}{
		{super(sent("TCP, IPv4", macAway, frame4), 1448, 3, 66), tcp4},
		{super(refused("TCP, IPv4, a byte over the MTU", macAway, overMTU, frame4), 1449, 3, 66), tcp4},
		{super(sent("TCP, IPv6", macAway, frame6), 1428, 3, 86), tcp6},
		{super(refused("TCP, IPv6, a byte over the MTU", macAway, overMTU, frame6), 1429, 3, 86), tcp6},
		{super(sent("UDP", macAway, datagrams), 1472, 3, 42), udpL4},
		{super(refused("UDP, a byte over the MTU", macAway, overMTU, datagrams), 1473, 3, 42), udpL4},
		{super(sent("tagged", macAway, tagged(frame4, 0x8100, 20)), 1448, 3, 70), tcp4},
		{super(handed("sibling", macAway, macGiven, set(frame4, 0, sibling[:]...)), 1448, 3, 66), tcp4},
		{super(refused("sibling, over the MTU", macAway, overMTU, set(frame4, 0, sibling[:]...)), 1500, 3, 66), tcp4},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.kind == udpL4 {
				lab.NeedKernel(t, 6, 2, "UDP super-packets from packet sockets")
			}
			want := received(&c.frameCase, c.hits[len(c.hits)-1].id)
			switch {
			case c.ret == actDrop:
				want = nil
			case len(c.hits) == 1:
				want[0].at = wire
			}
			undisturbed(t, func(tb testing.TB) {
				w.enter(tb)
				drain(captures)
				sendGSO(tb, w.inside, innerName(macAway), c.frame, c.gso, c.kind)
				awaitHits(tb, w, len(c.frame), c.hits...)
				wantArrivals(tb, captures, want)
			})
		})
	}
}

// sendGSO sends a TCP or UDP super-packet, whose checksum is for the device to
// complete.
func sendGSO(tb testing.TB, ns *lab.Netns, dev string, frame []byte, gso uint32, kind byte) {
	tb.Helper()
	l4 := slices.Index([]int{0x0800, 0x86dd}, int(binary.BigEndian.Uint16(frame[12:])))
	start := map[int]uint16{0: 34, 1: 54, -1: 38}[l4] // -1: tagged IPv4
	const tcpSum, udpSum = 16, 6
	sum := uint16(tcpSum)
	if kind == 5 {
		sum = udpSum
	}
	header := []byte{1 /* needs checksum */, kind}
	for _, v := range []uint16{start, uint16(gso), start, sum} {
		header = binary.NativeEndian.AppendUint16(header, v)
	}
	var fd int
	var err error
	ns.Do(tb, func() { fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		tb.Fatalf("open packet socket: %v", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		tb.Fatalf("ask for super-packets: %v", err)
	}
	address := &unix.SockaddrLinklayer{
		Ifindex: ns.Link(tb, dev).Attrs().Index, Protocol: binary.NativeEndian.Uint16(frame[12:])}
	err = unix.Sendto(fd, append(header, frame...), 0, address)
	if err != nil && !errors.Is(err, unix.ENOBUFS) { // which tells of a drop, as does a count
		tb.Fatalf("send: %v", err)
	}
}

// What xvlan_tx sees of its leg: whether the inner one has left.
func TestPlace(t *testing.T) { onPairs(t, testPlace) }

func testPlace(t *testing.T, netkit bool) {
	const here, away = bpf.XvlanSubPlacePLACE_LOCAL, bpf.XvlanSubPlacePLACE_AWAY
	w := usualWorldOf(t, netkit)
	unicast, group := udp(routerMAC, routerMAC, routerIP4, ip4Of(99), 18), udp(broadcastMAC, routerMAC, routerIP4, ip4Of(99), 18)
	for _, c := range []struct {
		id            uint32
		frame         []byte
		recorded, now bpf.XvlanSubPlace
	}{
		{macAway, unicast, here, away},
		{macAway, group, here, away},
		{macAway, unicast, away, away},
		{macHere, group, away, here},
		{macHere, unicast, away, away}, // looked at with group-addressed frames only
		{macHere, unicast, here, here},
		{ipAway, unicast, here, away},
		{ipHere, group, away, here},
	} {
		t.Run(fmt.Sprintf("%d recorded %d", c.id, c.recorded), func(t *testing.T) {
			w.enter(t)
			want := plain(w.subs[c.id])
			want.Place = c.recorded
			w.set(t, bpf.MapSubs, c.id, want)
			w.run(t, bpf.XvlanProgXvlanTx, c.id, c.frame, 0)
			want.Place = c.now
			if got := w.record(t, c.id); got != want {
				t.Errorf("record is %+v\nwant      %+v", got, want)
			}
		})
	}
}
