package bpf_test

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
)

// Some things a test run does not show: where a redirect leads, an outer tag
// that the kernel has moved into the skb, real super-packets. For these the
// programs are attached, and frames come in through the devices.

// attach puts xvlan_rx on the parent and xvlan_tx on all host legs.
func (w *world) attach(tb testing.TB) {
	tb.Helper()
	w.attachTo(tb, "p0", bpf.XvlanProgXvlanRx)
	for id := range w.subs {
		if w.netkit {
			w.attachNetkit(tb, id)
		} else {
			w.attachTo(tb, legName(id), bpf.XvlanProgXvlanTx)
		}
	}
}

// attachNetkit puts xvlan_tx on what an inner leg sends, and xvlan_turn on the
// host leg.
func (w *world) attachNetkit(tb testing.TB, id uint32) {
	tb.Helper()
	w.attachTo(tb, legName(id), bpf.XvlanProgXvlanTurn)
	w.host.Do(tb, func() {
		l, err := link.AttachNetkit(link.NetkitOptions{
			Program: w.coll.Programs[bpf.XvlanProgXvlanTx], Interface: int(w.subs[id].Leg), Attach: ebpf.AttachNetkitPeer})
		if err != nil {
			tb.Errorf("attach xvlan_tx to %d: %v", id, err)
			return
		}
		tb.Cleanup(func() { l.Close() })
	})
}

// onPairs runs a test with legs of each kind.
func onPairs(t *testing.T, test func(t *testing.T, netkit bool)) {
	t.Run("veth", func(t *testing.T) { test(t, false) })
	t.Run("netkit", func(t *testing.T) {
		lab.NeedNetkit(t)
		test(t, true)
	})
}

func (w *world) attachTo(tb testing.TB, dev, prog string) {
	tb.Helper()
	link := w.host.Link(tb, dev).Attrs().Index
	err := w.host.Handle().QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}})
	if err != nil {
		tb.Fatalf("add clsact to %s: %v", dev, err)
	}
	err = w.host.Handle().FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: 3 /* ETH_P_ALL */},
		Fd: w.coll.Programs[prog].FD(), Name: prog, DirectAction: true})
	if err != nil {
		tb.Fatalf("attach %s to %s: %v", prog, dev, err)
	}
}

// innerNetns is where a sub-interface's inner leg is.
func (w *world) innerNetns(id uint32) *lab.Netns {
	if w.subs[id].Place == bpf.XvlanSubPlacePLACE_AWAY {
		return w.inside
	}
	return w.host
}

// send lets a frame come in by its device: from the wire, or from a
// sub-interface.
func (w *world) send(tb testing.TB, prog string, from uint32, frame []byte) {
	tb.Helper()
	if prog == bpf.XvlanProgXvlanRx {
		w.inside.Send(tb, "w0", frame)
	} else {
		w.innerNetns(from).Send(tb, innerName(from), frame)
	}
}

// awaitHits is wantHits for frames that were sent.
func awaitHits(tb testing.TB, w *world, size int, hits ...hit) {
	tb.Helper()
	want := completed(size, hits)
	for deadline := time.Now().Add(arriveWithin); len(w.counted(tb)) < len(want) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	wantHits(tb, w, size, hits...)
}

// arriveWithin is how long a test waits for what is on its way; it is spent
// only where something is missing.
const arriveWithin = 3 * time.Second

// checkCut is check for a frame that may end in its IP header: those a test run
// refuses, so they are sent, and what cannot be seen then is not checked.
func (c *frameCase) checkCut(t *testing.T, w *world, prog string) {
	t.Helper()
	if !cutHeader(c.frame) {
		c.check(t, w, prog)
		return
	}
	undisturbed(t, func(tb testing.TB) {
		w.enter(tb)
		w.send(tb, prog, c.from, c.frame)
		awaitHits(tb, w, len(c.frame)+c.tags, c.hits...)
		wantEntries(tb, w, c.news, c.gone)
	})
}
