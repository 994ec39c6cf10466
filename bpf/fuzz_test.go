package bpf_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/xvlan/xvlan/bpf"
)

// tableFrames are the frames of all tables.
func tableFrames() [][]byte {
	var frames [][]byte
	for _, cases := range [][]frameCase{
		rxByMAC(), rxByIP(), rxOddIP(), rxNeighbour(), rxGroup(), rxAsked(), rxClaims(),
		txMAC(), txAsked(), txInactive(), txIP(), txARP(), txBadARP(), txND(), txNDOptions(), txOddND(),
		learnIP4(), learnIP6(), learnLimits(),
		modesFromWire(), modesReturned(), modesTx(),
		txSiblings(), txRoutes(), txNotRouted(), txLearned(), rxRouted(),
		txDHCP(), rxDHCP(),
		lies(sceneOf(macGiven), macGiven), lies(sceneOf(ipAway), ipAway),
		hostSends(), viaSends(),
	} {
		for _, c := range cases {
			frames = append(frames, c.frame)
		}
	}
	return frames
}

// FuzzPrograms looks for frames that are changed where they must not be, for
// frames that are not counted exactly once, and for frames that the dry run
// decides otherwise.
func FuzzPrograms(f *testing.F) {
	w, moded, routed := usualWorld(f), modesWorld(f), routedWorld(f)
	guarded, hosts, via := guardedWorld(f), hostsWorld(f, false), viaWorld(f)
	guarded.enter(f)
	moded.meta.Sources = 0 // their copies come besides
	moded.set(f, bpf.MapMeta, 0, moded.meta)
	for _, w := range []*world{w, moded, routed, guarded, hosts, via} {
		w.loadDry(f) // a frame has ten seconds
	}
	for _, frame := range tableFrames() {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 2000 || cutHeader(frame) {
			return
		}
		// The short ways know no tag in the frame, which the kernel puts beside it before.
		w.meta.Watched = 0
		if hasTag(frame) {
			w.meta.Watched = 1
		}
		for _, policy := range []bpf.XvlanPolicy{0, bpf.XvlanPolicyPOLICY_UNKNOWN_DROP} {
			w.meta.Policy = policy
			w.set(t, bpf.MapMeta, 0, w.meta)
			fuzzXDP(t, w, frame)
			fuzzRx(t, w, frame)
		}
		for _, from := range []uint32{macAway, macHere, ipAway, ipHere, ipVLAN} {
			fuzzTx(t, w, from, frame)
		}
		for _, from := range []uint32{macGiven, ipAway} {
			fuzzGuard(t, guarded, from, frame)
		}
		fuzzInactive(t, w, frame)
		fuzzRx(t, moded, frame)
		for _, from := range []uint32{mBridge, mVEPA, mPrivate, iBridge, iPrivate} {
			fuzzTx(t, moded, from, frame)
		}
		fuzzRx(t, routed, frame)
		for _, from := range []uint32{r3, r3Here, r3Unset, r3VEPA, r3Private, rs, rsVEPA} {
			fuzzTx(t, routed, from, frame)
		}
		fuzzHost(t, hosts, frame)
		for _, from := range []uint32{vMAC, vHere, vPrivate, vIP, v3} {
			fuzzTx(t, via, from, frame)
		}
	})
}

// fuzzed is one run of a program: what it counted at the frame's own place, and
// at others.
type fuzzed struct {
	ret    uint32
	out    []byte
	own    []hit // fates counted at the parent, or at the sender
	others []hit
}

func fuzzRun(t *testing.T, w *world, prog string, from uint32, frame []byte) (r fuzzed) {
	t.Helper()
	w.clearStats(t)
	dry := w.decide(t, prog, from, frame) // first, as the programs learn
	r.ret, r.out = w.run(t, prog, from, frame, 0)
	counted := w.counted(t)
	if !changesAddrs(&dry) {
		wantDecision(t, dry, r.ret, counted, r.out)
	}
	for _, h := range counted {
		switch {
		case h.verdict == learnDup:
			// A routed one's advertisement tells two addresses: its source and its target.
			// A lease that the wire acknowledges may be refused, too.
			if h.id != from && prog != bpf.XvlanProgXvlanRx || h.packets > 2 || h.packets == 2 && !w.isRouted(from) || h.bytes != 0 {
				t.Errorf("%s: %v", prog, h)
			}
			continue
		case h.packets != 1 || h.bytes != uint64(len(frame)) && h.bytes != uint64(len(frame)+w.tagsOf(from)):
			t.Errorf("%s: a frame of %d bytes counts as %v", prog, len(frame), h)
		}
		if h.id == from && h.verdict != rx { // it may send to itself
			r.own = append(r.own, h)
		} else {
			r.others = append(r.others, h)
		}
	}
	return r
}

// changesAddrs reports whether a frame would make an address be learned or
// forgotten: it may be the very one that the frame is for, and the dry run, which
// changes nothing, still finds it.
func changesAddrs(d *bpf.Decision) bool {
	return slices.ContainsFunc(d.Steps, func(s bpf.TraceStep) bool {
		return s.Kind == bpf.TraceStepKindSTEP_LEARN || s.Kind == bpf.TraceStepKindSTEP_YIELD
	})
}

// is reports whether the program counted one fate of the frame's own.
func (r *fuzzed) is(verdicts ...bpf.XvlanVerdict) bool {
	return len(r.own) == 1 && slices.Contains(verdicts, r.own[0].verdict)
}

// alone reports whether exactly one other got the frame.
func (r *fuzzed) alone() bool { return len(r.others) == 1 && r.others[0].verdict == rx }

// copied reports whether others got copies, or were refused them.
func (r *fuzzed) copied() bool {
	return !slices.ContainsFunc(r.others, func(h hit) bool { return h.verdict != rx && h.verdict != fanout })
}

func fuzzXDP(t *testing.T, w *world, frame []byte) {
	t.Helper()
	r := fuzzRun(t, w, bpf.XvlanProgXvlanXdp, 0, frame)
	counted := len(r.own) + len(r.others)
	switch {
	case r.ret == xdpPass && counted == 0:
	case r.ret == xdpDrop && counted == 1 && r.is(unknown) && w.meta.Policy != 0:
	default:
		t.Errorf("xdp returned %d and counted %v %v", r.ret, r.own, r.others)
	}
	wantBytes(t, r.out, frame)
}

// fuzzHost looks that what the host sends is counted once there, and goes to one, to
// copies and the wire, or back to it as the answer.
func fuzzHost(t *testing.T, w *world, frame []byte) {
	t.Helper()
	r := fuzzRun(t, w, bpf.XvlanProgXvlanHost, 0, frame)
	answer := r.ret == actRedir && len(r.others) == 0
	switch {
	case !r.is(tx):
	case r.ret == actNext && r.copied() && (frame[0]&1 != 0 || len(r.others) == 0):
		wantBytes(t, r.out, frame)
		return
	case answer && len(r.out) == len(frame) && mac(r.out[6:12]) == parentMAC:
		return
	case r.ret == actRedir && r.alone():
		out := frame
		if to := w.subs[r.others[0].id]; to.Kind == bpf.XvlanSubKindKIND_IPVLAN && frame[0]&1 == 0 {
			out = set(frame, 0, to.Mac[:]...)
		}
		wantBytes(t, r.out, out)
		return
	}
	t.Errorf("host returned %d and counted %v %v", int32(r.ret), r.own, r.others)
}

func fuzzRx(t *testing.T, w *world, frame []byte) {
	t.Helper()
	r := fuzzRun(t, w, bpf.XvlanProgXvlanRx, 0, frame)
	group := frame[0]&1 != 0
	switch {
	case r.ret == actNext && r.is(passed) && (group && r.copied() || len(r.others) == 0):
	case r.ret == actDrop && r.is(unknown) && len(r.others) == 0 && !group && w.meta.Policy != 0:
	case r.ret == actRedir && len(r.own) == 0 && r.alone():
	case r.ret == actNext && len(r.own) == 0 && r.alone() && w.isL3S(r.others[0].id) && !group:
	case r.ret == actDrop && len(r.own) == 0 && len(r.others) == 1 && r.others[0].verdict == returned && !group:
	default:
		t.Errorf("rx returned %d and counted %v %v", int32(r.ret), r.own, r.others)
	}
	wantBytes(t, r.out, retagged(w, &r, readdress(w, &r, frame)))
}

// hasTag tells what begins with a tag.
func hasTag(frame []byte) bool {
	proto := binary.BigEndian.Uint16(frame[12:])
	return proto == 0x8100 || proto == 0x88a8
}

// tagsOf is how many bytes of tags the wire has of what a sub-interface sends without.
func (w *world) tagsOf(id uint32) int {
	if w.subs[id].Vlan == 0 {
		return 0
	}
	return 4
}

// retagged takes off as many bytes of tags as a frame may have lost: the outer one,
// or one that the next has come beside the frame for.
func retagged(w *world, r *fuzzed, frame []byte) []byte {
	lost := len(frame) - len(r.out)
	if w.meta.Vlans == 0 || !hasTag(frame) || lost != 4 && lost != 8 {
		return frame
	}
	return slices.Delete(bytes.Clone(frame), 12, 12+lost)
}

// readdress puts the inner MAC of an IP-keyed sub-interface into a unicast
// frame that goes to it by its host leg.
func readdress(w *world, r *fuzzed, frame []byte) []byte {
	if frame[0]&1 != 0 || !r.alone() {
		return frame
	}
	to := w.subs[r.others[0].id]
	if to.Kind != bpf.XvlanSubKindKIND_IPVLAN || to.Place == bpf.XvlanSubPlacePLACE_AWAY || r.ret != actRedir {
		return frame
	}
	return set(frame, 0, to.Mac[:]...)
}

func (w *world) isRouted(id uint32) bool {
	return w.isL3S(id) || w.subs[id].Mode == bpf.XvlanSubModeMODE_L3
}

func (w *world) isL3S(id uint32) bool { return w.subs[id].Mode == bpf.XvlanSubModeMODE_L3S }

func fuzzTx(t *testing.T, w *world, from uint32, frame []byte) {
	t.Helper()
	r := fuzzRun(t, w, bpf.XvlanProgXvlanTx, from, frame)
	group := frame[0]&1 != 0
	switch {
	case r.ret == actRedir && r.is(tx) && (group && r.copied() || r.alone() || len(r.others) == 0):
	case r.ret == actDrop && r.is(overMTU, malformed, modes) && len(r.others) == 0:
	case r.ret == actDrop && r.is(tagDrop) && len(r.others) == 0 && w.tagsOf(from) != 0 && hasTag(frame):
	case r.ret == actDrop && r.is(noRoute) && len(r.others) == 0 && !group && w.subs[from].Mode == bpf.XvlanSubModeMODE_L3:
	case r.ret == actNext && r.is(tx) && len(r.others) == 0 && !group && w.isL3S(from):
	default:
		t.Errorf("tx from %d returned %d and counted %v %v", from, int32(r.ret), r.own, r.others)
	}
	via := w.subs[from].Flags&bpf.XvlanSubFlagSUB_VIA != 0 && r.is(tx)
	if via && r.alone() && r.others[0].id == from && len(r.out) == len(frame) && isAnswer(r.out, macOf(from)) {
		return
	}
	want := readdress(w, &r, frame)
	want = retagged(w, &r, want)
	if w.subs[from].Kind == bpf.XvlanSubKindKIND_IPVLAN && !r.is(overMTU, tagDrop) {
		want = rewritten(t, want, r.out)
		if w.subs[from].Mode == bpf.XvlanSubModeMODE_L3 && r.is(tx) && len(r.others) == 0 && mac(r.out) == parentMAC {
			want = set(want, 0, parentMAC[:]...) // for the host
		}
	}
	if via {
		if len(r.others) == 0 && mac(r.out) == viaMAC {
			want = set(want, 0, viaMAC[:]...)
		}
	}
	wantBytes(t, r.out, want)
}

// isAnswer tells an answer that the parent gives to a question of this MAC.
func isAnswer(frame []byte, to mac) bool {
	if mac(frame) != to || mac(frame[6:]) != parentMAC {
		return false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0806:
		return frame[21] == 2
	case 0x86dd:
		return frame[54] == 136
	}
	return false
}

func fuzzInactive(t *testing.T, w *world, frame []byte) {
	t.Helper()
	r := fuzzRun(t, w, bpf.XvlanProgXvlanTx, free, frame)
	parent := hit{0, inactive, 1, uint64(len(frame))}
	if r.ret != actDrop || len(r.own) != 0 || !slices.Equal(r.others, []hit{parent}) {
		t.Errorf("inactive leg returned %d and counted %v %v", int32(r.ret), r.own, r.others)
	}
	wantBytes(t, r.out, frame)
}

// cutHeader tells frames that a test run refuses.
func cutHeader(frame []byte) bool {
	return len(frame) < map[uint16]int{0x0800: 34, 0x86dd: 54}[binary.BigEndian.Uint16(frame[12:])]
}

// rewritten is the frame with the parent's MAC for the source, and with what
// xvlan_tx may have rewritten as it is in out: the MACs that ARP and neighbour
// discovery speak of, where they are the parent's now, and the checksum, where
// it is right if it was.
func rewritten(t *testing.T, frame, out []byte) []byte {
	t.Helper()
	want := set(frame, 6, parentMAC[:]...)
	l3, proto := 14, binary.BigEndian.Uint16(frame[12:])
	if (proto == 0x8100 || proto == 0x88a8) && len(frame) >= 18 {
		l3, proto = 18, binary.BigEndian.Uint16(frame[16:])
	}
	if len(out) != len(frame) {
		return want
	}
	mayBeParents := func(off int) {
		if off+6 <= len(out) && mac(out[off:]) == parentMAC {
			copy(want[off:], parentMAC[:])
		}
	}
	switch l4 := l3 + 40; {
	case isQuery(frame, l3):
		const flags, sum = 38, 26
		want[l3+flags] |= out[l3+flags] & 0x80
		copy(want[l3+sum:l3+sum+2], out[l3+sum:])
		if none := frame[l3+sum]|frame[l3+sum+1] == 0; none != (out[l3+sum]|out[l3+sum+1] == 0) ||
			!none && onesSum(want[l3+20:]) != onesSum(frame[l3+20:]) {
			t.Errorf("checksum is wrong now")
		}
	case proto == 0x0806:
		mayBeParents(l3 + 8)
	case proto == 0x86dd && len(frame) >= l4+8 && frame[l3+6] == 58:
		first := map[byte]int{133: 8, 134: 16, 135: 24, 136: 24}[frame[l4]]
		if first == 0 {
			break
		}
		for off := l4 + first; off+8 <= len(frame) && frame[off+1] != 0; off += 8 * int(frame[off+1]) {
			if kind := frame[off]; frame[off+1] == 1 && (kind == 1 || kind == 2) {
				mayBeParents(off + 2)
			}
		}
		copy(want[l4+2:l4+4], out[l4+2:])
		if onesSum(want[l4:]) != onesSum(frame[l4:]) {
			t.Errorf("checksum is wrong now")
		}
	}
	return want
}

// isQuery tells what may be a DHCP client's message behind an IP header without
// options.
func isQuery(frame []byte, l3 int) bool {
	return binary.BigEndian.Uint16(frame[l3-2:]) == 0x0800 && len(frame) >= l3+28+240 && frame[l3]&0xf == 5 && frame[l3+9] == 17 &&
		binary.BigEndian.Uint32(frame[l3+20:]) == 68<<16|67
}

// onesSum is the sum that the Internet checksum is made of.
func onesSum(data []byte) (sum int) {
	for i, b := range data {
		sum += int(b) << (8 * (1 - i%2))
	}
	return sum % 0xffff
}
