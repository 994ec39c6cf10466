package referee

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
)

// An outcome is what came of a scenario, a line for each frame that arrived
// and for each that could not be sent, sorted.
type outcome []string

// describe says of a frame that arrived where, as what, and how it differs
// from the one that was sent.
func (w *world) describe(a arrival, sent [][]byte) string {
	_, index, _ := findToken(a.data, testMark)
	line := a.where + " " + pktTypeName(a.pktType)
	if index >= len(sent) {
		return line + " a frame nobody sent"
	}
	if len(sent) > 1 {
		line += fmt.Sprintf(" #%d", index)
	}
	was, is := w.canonical(sent[index]), w.canonical(a.data)
	if bytes.Equal(was, is) {
		return line
	}
	if w.inHostNS(a.where) && bytes.Equal(untagged(was), is) {
		return line // its stack is not told the tag
	}
	var changes []string
	if !bytes.Equal(was[:6], is[:6]) {
		changes = append(changes, "to "+w.macName(is[:6]))
	}
	if !bytes.Equal(was[6:12], is[6:12]) {
		changes = append(changes, "from "+w.macName(is[6:12]))
	}
	if bytes.Equal(hop(was)[12:], is[12:]) {
		return line + ", " + strings.Join(append(changes, "a hop further"), ", ")
	}
	if len(was) != len(is) {
		changes = append(changes, fmt.Sprintf("%d bytes, not %d", len(is), len(was)))
	} else if !bytes.Equal(was[12:], is[12:]) {
		changes = append(changes, fmt.Sprintf("with %x, not %x", is[12:], was[12:]))
	}
	return line + ", " + strings.Join(changes, ", ")
}

// hop is a packet as a router hands it on: without its tag, and what may stand
// behind it.
func hop(frame []byte) []byte {
	frame = bytes.Clone(untagged(frame))
	switch proto := bigEndian.Uint16(frame[12:]); {
	case proto == typeIP4 && len(frame) >= 34 && frame[14] == 0x45:
		frame = frame[:max(34, min(len(frame), 14+int(bigEndian.Uint16(frame[16:]))))]
		frame[22]--
		bigEndian.PutUint16(frame[24:], 0)
		bigEndian.PutUint16(frame[24:], checksum(frame[14:34]))
	case proto == typeIP6 && len(frame) >= 54:
		frame[21]--
	}
	return frame
}

// inHostNS tells of a place in the parent's namespace.
func (w *world) inHostNS(where string) bool {
	p := w.ports[role(where)]
	return p == nil || p.ns == w.ports[host].ns
}

// canonical makes frames of different drivers comparable. The kernel's ipvlans
// all have their parent's MAC; those of xvlan have one of their own inside,
// which the wire does not see. So all of these count as one, and an ND
// checksum, which changes with them, as what it should be if it is right.
func (w *world) canonical(frame []byte) []byte {
	frame = append([]byte(nil), frame...)
	if w.kind != "ipvlan" {
		return frame
	}
	packet, message := icmpv6(frame)
	right := message != nil && checksum(packet[8:40], []byte{0, 0, 0, byte(len(message)), 0, 0, 0, protoICM6}, message) == 0
	for _, r := range subs {
		if p := w.ports[r]; p != nil {
			frame = bytes.ReplaceAll(frame, p.mac, w.own(host))
		}
	}
	if right {
		_, message = icmpv6(frame)
		message[2], message[3] = 0, 0
	}
	return frame
}

func (w *world) macName(mac net.HardwareAddr) string {
	if bytes.Equal(mac, broadcast) {
		return "broadcast"
	}
	for _, r := range []role{wire, host, subA, subB, subDown, unknown, foreign} {
		if bytes.Equal(mac, w.own(r)) {
			return string(r) + "'s MAC"
		}
	}
	return mac.String()
}

// diff lists what only one of two outcomes has: with a minus what only the
// first has, with a plus what only the second has.
func diff(first, second outcome) []string {
	var lines []string
	rest := slices.Clone(second)
	for _, l := range first {
		if i := slices.Index(rest, l); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			lines = append(lines, "-"+l)
		}
	}
	for _, l := range rest {
		lines = append(lines, "+"+l)
	}
	return lines
}
