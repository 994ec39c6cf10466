package bpf_test

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
)

// join lets an inner leg receive a group until it is left.
func (w *world) join(tb testing.TB, id uint32, group mac) (leave func()) {
	tb.Helper()
	var fd int
	var err error
	ns := w.innerNetns(id)
	ns.Do(tb, func() { fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		tb.Fatalf("open packet socket: %v", err)
	}
	request := &unix.PacketMreq{
		Ifindex: int32(ns.Link(tb, innerName(id)).Attrs().Index), Type: unix.PACKET_MR_MULTICAST, Alen: 6}
	copy(request.Address[:], group[:])
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, request); err != nil {
		tb.Fatalf("join %s: %v", net.HardwareAddr(group[:]), err)
	}
	return func() { unix.Close(fd) }
}

// Of multicast, those get a copy who have joined the group at that moment, or
// who take all groups; of broadcasts, all do.
func TestGroups(t *testing.T) {
	w := usualWorld(t)
	for _, id := range []uint32{macAway, macHere, ipAway} {
		ns := w.innerNetns(id)
		if err := ns.Handle().LinkSetAllmulticastOff(ns.Link(t, innerName(id))); err != nil {
			t.Fatal(err)
		}
	}
	groups := map[string]mac{
		"IPv4": {0x01, 0, 0x5e, 1, 2, 3}, "IPv6": {0x33, 0x33, 1, 2, 3, 4}, "no IP": {0x03, 0, 0, 0, 0, 1},
	}
	without := func(c frameCase, ids ...uint32) frameCase {
		c.hits = slices.DeleteFunc(c.hits, func(h hit) bool { return h.verdict == rx && slices.Contains(ids, h.id) })
		return c
	}
	frame := func(dst, src mac) []byte { return udp(dst, src, ip4Of(255), routerIP4, 18) }
	in := func(name string, dst mac, left ...uint32) {
		t.Helper()
		checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{without(flooded(name, frame(dst, routerMAC)), left...)})
	}
	for name, group := range groups {
		in(name+", none", group, macAway, macHere, ipAway)
		leave := w.join(t, macAway, group)
		in(name+", one", group, macHere, ipAway)
		other := group
		other[5] ^= 1
		in(name+", another group", other, macAway, macHere, ipAway)
		leave2 := w.join(t, ipAway, group)
		in(name+", two", group, macHere)
		checkAll(t, w, bpf.XvlanProgXvlanTx, []frameCase{without(frameCase{
			name: name + ", from a sub-interface", from: macGiven, frame: frame(group, macOf(macGiven)), ret: actRedir,
			hits: copies(macGiven, hit{id: macGiven, verdict: tx})}, macHere)})
		leave()
		in(name+", left", group, macAway, macHere)
		leave2()
	}
	in("broadcast", broadcastMAC)
	promisc(t, w, macHere, true)
	in("promiscuous", groups["IPv4"], macAway, ipAway)
	promisc(t, w, macHere, false)
	in("no more", groups["IPv4"], macAway, macHere, ipAway)
}

func promisc(tb testing.TB, w *world, id uint32, on bool) {
	tb.Helper()
	ns := w.innerNetns(id)
	set := ns.Handle().SetPromiscOff
	if on {
		set = ns.Handle().SetPromiscOn
	}
	if err := set(ns.Link(tb, innerName(id))); err != nil {
		tb.Fatalf("set promiscuity of %d: %v", id, err)
	}
}

const groupsMax = 128 // GROUPS_MAX in group.h

// One that has joined more groups than are looked through gets all, and counts
// them.
func TestGroupsMany(t *testing.T) {
	w := newWorld(t, 2)
	w.add(t, 1, macvlan(bpf.XvlanSubPlacePLACE_AWAY))
	if err := w.inside.Handle().LinkSetAllmulticastOff(w.inside.Link(t, innerName(1))); err != nil {
		t.Fatal(err)
	}
	w.meet(t)
	have := len(groupsOf(t, w, 1))
	for n := have; n < groupsMax-1; n++ {
		defer w.join(t, 1, mac{0x03, 0, 0, 0, byte(n >> 8), byte(n)})()
	}
	frame := udp(mac{0x03, 1, 1, 1, 1, 1}, routerMAC, ip4Of(255), routerIP4, 18)
	own := hit{id: 0, verdict: passed}
	last := mac{0x03, 0, 0, 0, (groupsMax - 2) >> 8, (groupsMax - 2) & 0xff}
	checkAll(t, w, bpf.XvlanProgXvlanRx, []frameCase{
		{name: "one less", frame: frame, ret: actNext, hits: []hit{own}},
		{name: "the last", frame: set(frame, 0, last[:]...), ret: actNext, hits: []hit{own, {id: 1, verdict: rx}}},
	})
	defer w.join(t, 1, mac{0x03, 2})()
	undisturbed(t, func(tb testing.TB) {
		w.enter(tb)
		w.run(tb, bpf.XvlanProgXvlanRx, 0, frame, 0)
		want := []hit{{0, passed, 1, uint64(len(frame))}, {1, rx, 1, uint64(len(frame))}, {1, bpf.XvlanVerdictVERDICT_GROUP_MANY, 1, 0}}
		if got := w.counted(tb); !slices.Equal(got, want) {
			tb.Errorf("counted %v\nwant    %v", got, want)
		}
	})
}

// groupsOf lists the groups that the stack has joined by itself.
func groupsOf(tb testing.TB, w *world, id uint32) []string {
	tb.Helper()
	out := w.innerNetns(id).Run(tb, "ip", "maddr", "show", "dev", innerName(id))
	var all []string
	for line := range strings.Lines(out) {
		var group string
		if n, _ := fmt.Sscanf(line, " link %s", &group); n == 1 {
			all = append(all, group)
		}
	}
	return all
}
