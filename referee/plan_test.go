package referee

import (
	"net"
	"net/netip"
	"strings"
)

// A role is somebody in the topology, or an address that nobody has.
type role string

const (
	wire    role = "wire"    // the other end of the parent's cable
	host    role = "host"    // the parent itself and the stack behind it
	subA    role = "A"       // a sub-interface of the pair's first mode
	subB    role = "B"       // one of the second mode
	subDown role = "down"    // another of the second mode, set down again
	unknown role = "unknown" // an address that nobody has
	foreign role = "foreign" // a source that is not the sender's
)

var subs = []role{subA, subB, subDown}

// A pair is the modes of two sub-interfaces that share a parent, in ip's words.
// A mode that takes the parent for itself stands alone, with b empty.
type pair struct {
	kind string
	a, b string
	here bool // B stays in the parent's namespace
}

func (p pair) String() string {
	name := p.kind + " " + p.a
	if p.b != "" {
		name += " with " + p.b
	}
	if p.here {
		name += " here"
	}
	return strings.ReplaceAll(name, " ", "_")
}

// has tells whether the pair has a sub-interface in that role.
func (p pair) has(r role) bool { return r != subB && r != subDown || p.b != "" }

// mode is the words of a role's mode.
func (p pair) mode(r role) string {
	if r == subA {
		return p.a
	}
	return p.b
}

// pairs lists all of them: every combination of macvlan's modes, of which the
// parent takes any mixture, and every mode of ipvlan, which is the parent's.
func pairs() []pair {
	var all []pair
	modes := []string{"bridge", "private", "vepa", "source", "source nodst"}
	for i, a := range modes {
		for _, b := range modes[i:] {
			all = append(all, pair{kind: "macvlan", a: a, b: b})
		}
	}
	all = append(all,
		pair{kind: "macvlan", a: "bridge", b: "bridge", here: true},
		pair{kind: "macvlan", a: "passthru"},
		pair{kind: "macvlan", a: "passthru nopromisc"})
	for _, mode := range []string{"l2", "l3", "l3s"} {
		for _, flag := range []string{"bridge", "private", "vepa"} {
			words := mode + " " + flag
			all = append(all, pair{kind: "ipvlan", a: words, b: words})
		}
	}
	return append(all, pair{kind: "ipvlan", a: "l2 bridge", b: "l2 bridge", here: true})
}

// numbers give each role the end of its addresses.
var numbers = map[role]byte{
	wire: 1, host: 2, subA: 0x11, subB: 0x12, subDown: 0x13, unknown: 0x99, foreign: 0xf0,
}

// secondA ends an address that A has besides, for those to claim that do not
// own it.
const secondA = 0x21

// givenMAC is what a role's device is told to have, or would have.
func givenMAC(r role) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0xac, 0x1d, 0x00, 0x00, numbers[r]}
}

func ip4(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, n}) }

func ip6(n byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 15: n})
}

// Groups: of the joined ones B is a member.
var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

	joined4    = netip.MustParseAddr("239.77.0.1")
	joined6    = netip.MustParseAddr("ff02::7701")
	joinedMAC  = net.HardwareAddr{0x03, 0x00, 0x00, 0x77, 0x00, 0x01}
	strange4   = netip.MustParseAddr("239.77.0.99")
	strange6   = netip.MustParseAddr("ff02::7799")
	strangeMAC = net.HardwareAddr{0x03, 0x00, 0x00, 0x77, 0x00, 0x99}
	allHosts4  = netip.MustParseAddr("224.0.0.1")
	allNodes6  = netip.MustParseAddr("ff02::1")

	lldpMAC  = net.HardwareAddr{0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e}
	stpMAC   = net.HardwareAddr{0x01, 0x80, 0xc2, 0x00, 0x00, 0x00}
	pauseMAC = net.HardwareAddr{0x01, 0x80, 0xc2, 0x00, 0x00, 0x01}
)

// groupMAC is the MAC that a multicast address goes to.
func groupMAC(a netip.Addr) net.HardwareAddr {
	if a.Is4() {
		b := a.As4()
		return net.HardwareAddr{0x01, 0x00, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	b := a.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// solicited is the group that an address is asked for in.
func solicited(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}
