package loader

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/xvlan/xvlan/lab"
)

// A flow is a row of numbered datagrams from one end to another, without a
// pause until it is stopped.
type flow struct {
	from, to *end
	stop     chan struct{}
	sent     chan uint32 // how many, when stopped
	err      error       // of the sender, when stopped
	arrived  chan struct{}
	seen     []int // how often each number came; read after arrived is closed
	in, out  *net.UDPConn
	drops    uint64 // of the machine, before
}

// startFlow begins to send.
func startFlow(t *testing.T, from, to *end) *flow {
	t.Helper()
	f := &flow{
		from: from, to: to,
		stop: make(chan struct{}), sent: make(chan uint32, 1), arrived: make(chan struct{}),
		drops: backlogDrops(t),
		in:    to.udp(t, to.ip4.Addr(), 0), out: from.udp(t, from.ip4.Addr(), 0),
	}
	go f.send()
	go f.receive()
	return f
}

func (f *flow) send() {
	var n uint32
	defer func() { f.sent <- n }()
	for {
		select {
		case <-f.stop:
			return
		default:
		}
		if _, err := f.out.WriteTo(binary.BigEndian.AppendUint32(nil, n), f.in.LocalAddr()); err != nil {
			f.err = err
			return
		}
		n++
		time.Sleep(200 * time.Microsecond)
	}
}

// receive counts until the one after the last number comes.
func (f *flow) receive() {
	defer close(f.arrived)
	buf := make([]byte, 8)
	for {
		n, err := f.in.Read(buf)
		if err != nil || n > 4 {
			return
		}
		i := int(binary.BigEndian.Uint32(buf))
		for len(f.seen) <= i {
			f.seen = append(f.seen, 0)
		}
		f.seen[i]++
	}
}

// check stops the flow and fails on what was lost or came twice.
func (f *flow) check(t *testing.T) {
	t.Helper()
	close(f.stop)
	sent := <-f.sent
	if f.err != nil {
		t.Errorf("send from %s to %s: %v", f.from.name, f.to.name, f.err)
	}
	// The end is repeated: if it were lost, that would be told by the count.
	lab.Eventually(t, "the flow's end arrives", func() bool {
		if _, err := f.out.WriteTo([]byte("the end"), f.in.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-f.arrived:
			return true
		default:
			return false
		}
	})
	if err := errors.Join(f.in.Close(), f.out.Close()); err != nil {
		t.Error(err)
	}
	var lost, twice []int
	for i := range int(sent) {
		switch {
		case i >= len(f.seen) || f.seen[i] == 0:
			lost = append(lost, i)
		case f.seen[i] > 1:
			twice = append(twice, i)
		}
	}
	if len(lost)+len(twice) > 0 {
		lossless(t, f.drops)
		t.Errorf("of %d datagrams from %s to %s %d were lost and %d came twice: %v %v",
			sent, f.from.name, f.to.name, len(lost), len(twice), lost, twice)
	}
	t.Logf("%d datagrams from %s to %s", sent, f.from.name, f.to.name)
}

// TestHostUndisturbed lets the host and the wire exchange datagrams while
// sub-interfaces come, talk and go. Adding or removing a clsact qdisc makes
// the kernel stop the device's queues for a moment, and lose what is sent: so
// where filters are used, the qdisc is there before.
func TestHostUndisturbed(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, allRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		if r.legacyTC {
			lab.NeedTool(t, "tc")
			s.host.ns.Run(t, "tc", "qdisc", "add", "dev", parentDev, "clsact")
		}
		s.host.ping(t, s.wire.ip4.Addr()) // both know each other's MAC
		flows := []*flow{startFlow(t, s.host, s.wire), startFlow(t, s.wire, s.host)}
		s.populate(t)
		for _, p := range s.pairs() {
			p[0].ping(t, p[1].ip4.Addr())
		}
		for _, e := range s.subs {
			s.del(t, e)
		}
		s.populate(t)
		s.do(t, func(h *Host) error { return h.Detach(parentDev) })
		for _, f := range flows {
			f.check(t)
		}
		s.checkGone(t)
	})
}

// TestSiblingsUndisturbed lets sub-interfaces exchange datagrams with the wire
// and each other while more of them come, talk, move and go.
func TestSiblingsUndisturbed(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(allRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		var stay, come []*end
		for i, e := range s.subs {
			if i%2 == 0 {
				s.addByHand(t, e, e.ip4, e.ip6)
				stay = append(stay, e)
			} else {
				come = append(come, e)
			}
		}
		ends := append(stay, s.wire)
		var flows []*flow
		for _, a := range ends {
			for _, b := range ends {
				if a != b {
					a.ping(t, b.ip4.Addr())
					flows = append(flows, startFlow(t, a, b))
				}
			}
		}
		for range 2 {
			for _, e := range come {
				s.addAtOnce(t, e, e.ip4, e.ip6)
				e.ping(t, s.wire.ip4.Addr())
				away := *e
				away.ns = stay[0].ns
				e.moveTo(t, &away)
				away.ping(t, s.wire.ip4.Addr())
				s.sweep(t)
				s.del(t, &away)
			}
		}
		for _, f := range flows {
			f.check(t)
		}
	})
}
