package referee

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

const (
	tokenLen   = 6
	settleTime = 20 * time.Second       // a sentinel that takes longer is lost
	quietTime  = 300 * time.Millisecond // nothing comes any more
	sameRounds = 3                      // of sentinels that bring the same are enough
	mostRounds = 10
)

// Marks by which frames under test and sentinels are known wherever they turn
// up; the scenario's number and the frame's follow.
var (
	testMark     = []byte{0xd6, 0x5e, 0x91}
	sentinelMark = []byte{0xd6, 0x5e, 0x92}
)

func token(mark []byte, seq uint16, index int) []byte {
	return append(bigEndian.AppendUint16(append([]byte(nil), mark...), seq), byte(index))
}

// findToken returns what a frame's token says.
func findToken(frame, mark []byte) (seq uint16, index int, ok bool) {
	at := bytes.Index(frame, mark)
	if at < 0 || at+tokenLen > len(frame) {
		return 0, 0, false
	}
	return bigEndian.Uint16(frame[at+3:]), int(frame[at+5]), true
}

func nativeProto(frame []byte) uint16 { return binary.NativeEndian.Uint16(frame[12:]) }

// sentinels are frames that go every way a frame under test can have gone, and
// wait in the same queues behind it: to each sub-interface, to the host, out of
// each and to everybody.
func (w *world) sentinels() (from []role, frames [][]byte) {
	add := func(r, to role) {
		n := len(frames)
		from = append(from, r)
		frames = append(frames, w.udpTo(r, to, token(sentinelMark, w.seq, n)))
	}
	senders := []role{wire, host, subA, subB}
	for _, r := range senders {
		if w.ports[r] == nil {
			continue
		}
		add(r, everybody)
		for _, to := range []role{wire, host, subA, subB} {
			if to != r && w.ports[to] != nil {
				add(r, to)
			}
		}
	}
	// A source mode may take all that comes from the wire's MAC.
	add(wire, everybody)
	copy(frames[len(frames)-1][6:12], givenMAC(foreign))
	return from, frames
}

const everybody role = "everybody"

// udpTo is a usual datagram between two roles.
func (w *world) udpTo(from, to role, payload []byte) []byte {
	mac, dst := broadcast, netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if to != everybody {
		mac, dst = w.to(to), ip4(numbers[to])
	}
	proto, packet := udp(ip4(numbers[from]), dst, payload)
	return ethernet(mac, w.own(from), proto, packet)
}

// observed is what came of one scenario.
type observed struct {
	arrivals []arrival
	strays   []arrival      // frames of earlier scenarios: they were not waited for
	sentinel map[string]int // by place and sentinel
	late     int            // sentinels of earlier rounds
}

// settle sends a round of sentinels and gathers what arrives until all that
// are expected have come. With expect nil it waits for quiet.
func (w *world) settle() (*observed, error) {
	got := &observed{sentinel: make(map[string]int)}
	from, frames := w.sentinels()
	for i, f := range frames {
		if err := w.send(from[i], f); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return nil, fmt.Errorf("send sentinel from %s: %w", from[i], err)
		}
	}
	deadline := time.Now().Add(settleTime)
	for w.expect == nil || !covers(got.sentinel, w.expect) {
		if w.expect == nil {
			deadline = time.Now().Add(quietTime)
		}
		some, err := w.eyes.read(deadline, func(a arrival) { w.sort(a, got) })
		if err != nil {
			return nil, err
		}
		if !some && w.expect == nil {
			return got, nil
		}
		if !some && time.Now().After(deadline) {
			return got, fmt.Errorf("sentinels: came %v, expected %v", got.sentinel, w.expect)
		}
	}
	for {
		some, err := w.eyes.read(time.Time{}, func(a arrival) { w.sort(a, got) })
		if err != nil {
			return got, err
		}
		if !some {
			return got, w.check(got)
		}
	}
}

// check looks that no sentinel came that is not waited for: another's coming
// would then not be waited for, either.
func (w *world) check(got *observed) error {
	if got.late > 0 || !covers(w.expect, got.sentinel) {
		return fmt.Errorf("sentinels: came %v and %d late, expected %v", got.sentinel, got.late, w.expect)
	}
	return nil
}

// covers tells whether all that is expected has come.
func covers(got, expect map[string]int) bool {
	for k, n := range expect {
		if got[k] < n {
			return false
		}
	}
	return true
}

// sort puts an arrival where it belongs. What stacks say of themselves, and
// errors, which quote what they are about, are not looked at.
func (w *world) sort(a arrival, got *observed) {
	if isError(a.data) {
		return
	}
	if seq, index, ok := findToken(a.data, sentinelMark); ok {
		if seq == w.seq {
			got.sentinel[fmt.Sprintf("%d at %s", index, a.where)]++
		} else {
			got.late++
		}
		return
	}
	if seq, _, ok := findToken(a.data, testMark); ok {
		if seq == w.seq {
			got.arrivals = append(got.arrivals, a)
		} else {
			got.strays = append(got.strays, a)
		}
	}
}

// calibrate finds out which sentinels arrive where, which is different with
// every mode: what some rounds in a row have brought. A device that has just
// come up may lose the first.
func (w *world) calibrate() error {
	w.expect = nil
	var last map[string]int
	for round, same := 0, 0; same < sameRounds; round++ {
		w.seq++
		got, err := w.settle()
		if err != nil {
			return err
		}
		same++
		if got.late > 0 { // it was not waited long enough, last time
			same = 0
		} else if !maps.Equal(got.sentinel, last) {
			same = 1
		}
		if round == mostRounds {
			return fmt.Errorf("sentinels came %v, then %v", last, got.sentinel)
		}
		last = got.sentinel
	}
	w.expect = last
	return nil
}

// announce makes everybody known who is only known by what it sends.
func (w *world) announce(tb testing.TB) {
	tb.Helper()
	for _, r := range subs {
		if w.ports[r] == nil || w.isDown && r == subDown {
			continue
		}
		ends := []byte{numbers[r]}
		if r == subA {
			ends = append(ends, secondA)
		}
		for _, n := range ends {
			w.announceAddr(tb, r, n)
		}
	}
}

func (w *world) announceAddr(tb testing.TB, r role, n byte) {
	tb.Helper()
	none := make([]byte, tokenLen)
	mac := w.own(r)
	nodes := groupMAC(allNodes6)
	proto4, udp4 := udp(ip4(n), ip4(numbers[wire]), none)
	proto6, udp6 := udp(ip6(n), ip6(numbers[wire]), none)
	for _, f := range [][]byte{
		ethernet(broadcast, mac, typeARP, arp(arpRequest, mac, ip4(n), broadcast, ip4(n), none)),
		ethernet(nodes, mac, typeIP6, neighbour(ndAdvertise, ip6(n), allNodes6, ip6(n), mac, none)),
		ethernet(w.to(wire), mac, proto4, udp4),
		ethernet(w.to(wire), mac, proto6, udp6),
	} {
		// A device that is just coming up has no queue yet.
		lab.Eventually(tb, fmt.Sprintf("%s sends", r), func() bool {
			err := w.send(r, f)
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				tb.Fatalf("announce %s: %v", r, err)
			}
			return err == nil || w.dropsGroups(f)
		})
	}
}

// dropsGroups tells of a mode whose sub-interfaces send no group-addressed
// frames, which looks the same.
func (w *world) dropsGroups(frame []byte) bool {
	return frame[0]&1 != 0 && strings.HasPrefix(w.a, "l3")
}
