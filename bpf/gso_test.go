package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/xvlan/xvlan/bpf"
)

// A super-packet counts for what the wire carries of it: its segments, each
// with all headers.

// super is a case of a super-packet: every hit counts so many segments, of
// which all but the first repeat so many bytes of headers.
func super(c frameCase, gso uint32, segments, headers int) frameCase {
	c.gso = gso
	for i := range c.hits {
		c.hits[i].packets = uint64(segments)
		c.hits[i].bytes = uint64(len(c.frame) + (segments-1)*headers)
	}
	return c
}

func rxGSO() []frameCase {
	to4 := func(size int) []byte { return tcp(macOf(macAway), routerMAC, ip4Of(99), routerIP4, size) }
	to6 := func(size int) []byte { return tcp(macOf(macAway), routerMAC, ip6Of(99), routerIP6, size) }
	udp4 := udp(macOf(macAway), routerMAC, ip4Of(99), routerIP4, 3000)
	udp6 := udp(macOf(macAway), routerMAC, ip6Of(99), routerIP6, 3000)
	withOptions := ipv4(ip4Of(99), routerIP4, layers.IPProtocolUDP)
	withOptions.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 8, OptionData: make([]byte, 6)}}
	options := build(ether(macOf(macAway), routerMAC, layers.EthernetTypeIPv4), withOptions,
		gopacket.Payload(make([]byte, 1008)))
	to := func(name string, frame []byte) frameCase { return delivered(name, macAway, frame) }
	return []frameCase{
		super(to("TCP, IPv4", to4(3000)), 1448, 3, 66),
		super(to("TCP, IPv6", to6(3000)), 1428, 3, 86),
		super(to("UDP, IPv4", udp4), 1472, 3, 42),
		super(to("UDP, IPv6", udp6), 1452, 3, 62),
		super(to("full segments alone", to4(2896)), 1448, 2, 66),
		super(to("a byte more", to4(2897)), 1448, 3, 66),
		super(to("many segments", to4(3000)), 1, 3000, 66),
		super(to("one segment, full", to4(1448)), 1448, 1, 66),
		super(to("one segment", to4(100)), 1448, 1, 66),
		super(to("no payload", to4(0)), 1448, 1, 66),
		super(to("tagged", tagged(to4(3000), 0x8100, 20)), 1448, 3, 70),
		super(to("IPv4 options", options), 500, 2, 50),
		super(to("neither TCP nor UDP", set(udp4, 23, 132)), 1480, 3, 34),
		super(to("not IP", set(udp4, 12, 0x88, 0xb5)), 1500, 3, 14),
		super(to("TCP header cut", to4(0)[:40]), 4, 2, 34),
		super(left("left to the host", tcp(parentMAC, routerMAC, ip4Of(99), routerIP4, 3000)), 1448, 3, 66),
		super(delivered("by IP", ipAway, tcp(parentMAC, routerMAC, ip6Of(ipAway), routerIP6, 3000)), 1428, 3, 86),
	}
}

func TestGSORx(t *testing.T) {
	w := usualWorld(t)
	checkAll(t, w, bpf.XvlanProgXvlanRx, rxGSO())
	w.meta.Policy = bpf.XvlanPolicyPOLICY_UNKNOWN_DROP
	drop := frameCase{name: "unknown", frame: tcp(strangerMAC, routerMAC, ip4Of(99), routerIP4, 3000),
		ret: actDrop, hits: []hit{{id: 0, verdict: unknown}}}
	checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{super(drop, 1448, 3, 66)})
}

func TestGSOTx(t *testing.T) {
	w := usualWorld(t)
	send := func(dst mac) []byte { return tcp(dst, macOf(macAway), ip4Of(99), ip4Of(macAway), 1000) }
	masqueraded := func(from, to netip.Addr) builder {
		return func(m mac) []byte { return tcp(parentMAC, m, to, from, 1000) }
	}
	checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{
		super(sent("wire", macAway, send(routerMAC)), 400, 3, 66),
		super(handed("sibling", macAway, macHere, send(macOf(macHere))), 400, 3, 66),
		super(masked("IP-keyed", ipAway, masqueraded(ip4Of(ipAway), routerIP4), sent), 400, 3, 66),
		super(masked("IP-keyed sibling", ipHere, masqueraded(ip6Of(ipHere), ip6Of(ipAway)), to(ipAway)), 400, 3, 86),
	})
}
