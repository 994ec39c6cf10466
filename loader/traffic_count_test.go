package loader

import (
	"net/netip"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// know enters for good what ends would find out about each other by ARP.
func know(t *testing.T, s *site, ends ...*end) {
	t.Helper()
	for _, e := range ends {
		for _, other := range ends {
			if e == other {
				continue
			}
			mac := other.mac(t)
			if other.kind == maps.Ipvlan {
				mac = s.host.mac(t)
			}
			err := e.ns.Handle().NeighSet(&netlink.Neigh{
				LinkIndex: e.index(t), State: netlink.NUD_PERMANENT, IP: other.ip4.Addr().AsSlice(), HardwareAddr: mac,
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// populateQuiet makes the sub-interfaces with everybody's MACs known, and has
// nobody announce himself.
func (s *site) populateQuiet(t *testing.T) {
	t.Helper()
	for _, e := range s.subs {
		spec := s.spec(e)
		spec.Netns, spec.Addrs = e.ns.Name(), []netip.Prefix{e.ip4}
		s.do(t, func(h *Host) error { return h.Add(spec) })
		e.ns.Sysctl(t, "net.ipv4.conf."+e.dev+".arp_notify", "0")
		e.ns.Up(t, e.dev)
		s.settle(t, e)
	}
	know(t, s, s.all()...)
}

// checkStats compares a sub-interface's counters with what they should be; the
// rest is to be zero.
func (s *site) checkStats(t *testing.T, e *end, want map[maps.Verdict]maps.Counter) {
	t.Helper()
	stats := s.link(t, e).Stats
	for _, v := range maps.Verdicts() {
		if stats[v] != want[v] {
			t.Errorf("%s: %s is %+v, want %+v", e.name, v, stats[v], want[v])
		}
	}
}

// parentStats are the parent's own counters.
func (s *site) parentStats(t *testing.T) maps.Stats {
	t.Helper()
	var parents []ParentInfo
	s.do(t, func(h *Host) (err error) { parents, err = h.Parents(); return err })
	if len(parents) != 1 {
		t.Fatalf("%d parents", len(parents))
	}
	return parents[0].Stats
}

// TestPingCounts sends a known number of echo requests and nothing else.
func TestPingCounts(t *testing.T) {
	lab.NeedTool(t, "ping")
	const pings, size = 20, 14 + 20 + 8 + 56
	onRungs(t, withNetkit(allRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		s.populateQuiet(t)
		drops := backlogDrops(t)
		count := strconv.Itoa(pings)
		want, siblings := map[*end]int{}, map[*end]int{}
		for _, p := range s.pairs() {
			p[0].ping(t, p[1].ip4.Addr(), "-c", count, "-i", "0.002", "-q")
			for _, e := range p { // requests out and answers in, or the other way round
				want[e] += pings
				if p[0].kind != 0 && p[1].kind != 0 {
					siblings[e] += pings
				}
			}
		}
		lossless(t, drops) // what was lost was repeated
		for _, e := range s.subs {
			tx := maps.Counter{Packets: uint64(want[e]), Bytes: uint64(want[e]) * size}
			rx := tx
			if r.datapath == Kernel && e.kind == maps.Ipvlan {
				rx.Bytes += uint64(siblings[e]) * 14 // the driver counts their Ethernet header twice
			}
			s.checkStats(t, e, map[maps.Verdict]maps.Counter{maps.RX: rx, maps.TX: tx})
			dev := e.ns.Link(t, e.dev).Attrs().Statistics
			if dev.RxPackets != rx.Packets || dev.TxPackets != tx.Packets || dev.RxBytes != rx.Bytes || dev.TxBytes != tx.Bytes {
				t.Errorf("%s: the device counts %d packets, %d bytes in, %d, %d out, want %+v in, %+v out",
					e.name, dev.RxPackets, dev.RxBytes, dev.TxPackets, dev.TxBytes, rx, tx)
			}
		}
		if r.datapath == Kernel {
			return
		}
		for _, e := range s.subs { // what goes by a leg costs a turn more
			leg := s.link(t, e).Leg
			if n := s.host.ns.Link(t, leg).Attrs().Statistics.TxPackets; n > 0 {
				t.Errorf("%d packets for %s went by %s", n, e.name, leg)
			}
		}
		// What the host has exchanged with the wire has passed.
		stats := s.parentStats(t)
		for _, v := range maps.Verdicts() {
			var n maps.Counter
			if v == maps.Pass {
				n = maps.Counter{Packets: 2 * pings, Bytes: 2 * pings * size}
			}
			if stats[v] != n {
				t.Errorf("parent: %s is %+v, want %+v", v, stats[v], n)
			}
		}
	})
}

// TestBulkCounts compares what is counted of super-packets with what the
// devices at both ends of the wire count, segment by segment.
func TestBulkCounts(t *testing.T) {
	lab.NeedTool(t, "tc")
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		for _, e := range []*end{s.host, s.wire} {
			e.ns.Run(t, "tc", "qdisc", "add", "dev", e.dev, "root", "pfifo", "limit", "100000")
		}
		s.populateQuiet(t)
		for _, e := range s.subs {
			out, in := s.host.qdiscCounts(t), s.wire.qdiscCounts(t)
			before := e.ns.Link(t, e.dev).Attrs().Statistics
			bulk(t, e, s.wire, ip4Of, 2<<20)
			bulk(t, s.wire, e, ip4Of, 2<<20)
			// The last acknowledgements may still be on their way.
			var got, want [2]maps.Counter
			lab.Eventually(t, e.name+" and the wire have counted the same", func() bool {
				stats := s.link(t, e).Stats
				got = [2]maps.Counter{stats[maps.RX], stats[maps.TX]}
				want = [2]maps.Counter{since(in, s.wire.qdiscCounts(t)), since(out, s.host.qdiscCounts(t))}
				if got != want {
					t.Logf("%s: %+v, want %+v", e.name, got, want)
				}
				return got == want
			})
			after := e.ns.Link(t, e.dev).Attrs().Statistics
			if sent := after.TxPackets - before.TxPackets; sent >= got[1].Packets {
				t.Errorf("%s has sent no super-packets: %d packets, %d on the wire", e.name, sent, got[1].Packets)
			}
		}
	})
}

func since(before, now maps.Counter) maps.Counter {
	return maps.Counter{Packets: now.Packets - before.Packets, Bytes: now.Bytes - before.Bytes}
}
