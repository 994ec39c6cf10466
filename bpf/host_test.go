package bpf_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
)

// What an IP-keyed sub-interface sends to the MAC that it shares with the
// parent, and that is for no sibling, the host receives, once; with vepa the
// wire does.
func TestTxToHost(t *testing.T) {
	w := modesWorld(t)
	w.attach(t)
	captures := w.capture(t)
	parent := w.host.Capture(t, "p0")
	send := func(id uint32) builder {
		return func(m mac) []byte { return udp(parentMAC, m, ip4Of(id), ip4Of(99), 18) }
	}
	other := func(m mac) []byte { return set(send(99)(m), 12, 0x88, 0xb5) }
	toHost := func(name string, from uint32, frame []byte) frameCase {
		c := sent(name, from, frame)
		c.hits = append(c.hits, hit{id: 0, verdict: passed})
		return c
	}
	for _, c := range []frameCase{
		masked("nobody's address", iBridge, send(98), toHost),
		masked("host's address", iBridge, send(reserved), toHost),
		masked("from a private one", iPrivate, send(reserved), toHost),
		masked("no IP", iBridge, other, toHost),
		masked("from vepa", iVEPA, send(reserved), sent),
		masked("vepa sibling", iBridge, send(iVEPA), sent),
		sent("from a macvlan", mBridge, send(reserved)(macOf(mBridge))),
	} {
		t.Run(c.name, func(t *testing.T) {
			undisturbed(t, func(tb testing.TB) {
				w.enter(tb)
				drain(captures)
				parent.Frames(1000, 0)
				w.send(tb, bpf.XvlanProgXvlanTx, c.from, c.frame)
				awaitHits(tb, w, len(c.frame), c.hits...)
				if len(c.hits) == 1 {
					wantArrivals(tb, captures, received(&c, wire))
					return
				}
				frames := parent.Matching(1, arriveWithin, incoming)
				if len(frames) != 1 {
					tb.Errorf("the host got nothing")
					return
				}
				wantBytes(tb, frames[0].Wire(), c.out)
				if frames[0].PktType != unix.PACKET_HOST {
					tb.Errorf("packet type is %d, want host", frames[0].PktType)
				}
				if more := parent.Matching(1, 0, incoming); len(more) != 0 {
					tb.Errorf("the host got it again")
				}
				wantArrivals(tb, captures, nil)
			})
		})
	}
}
