package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/lab"
)

// A stay is a sub-interface that stays.
type stay struct {
	name, addr, words string
	ns                *lab.Netns
	id                int
}

// newSoak makes a world with those that are to stay.
func newSoak(t *testing.T) *soak {
	t.Helper()
	w := newWorld(t)
	s := &soak{world: w, t: t, said: map[string]int{}}
	for last := range byte(2) {
		s.macs = append(s.macs, binary.BigEndian.AppendUint32([]byte{2, last}, uint32(*soakSeed)))
	}
	w.host.Run(t, "ip", "link", "set", "eth0", "address", s.macs[0].String())
	for i, x := range []struct{ name, words string }{
		{"m1", "macvlan mode bridge"}, {"m2", "macvlan mode bridge"}, {"i1", "ipvlan mode l2"}, {"i2", "ipvlan mode l2"},
	} {
		ns := lab.NewNetns(t, x.name)
		ns.Sysctl(t, "net.ipv6.conf.default.disable_ipv6", "1")
		s.stays = append(s.stays, &stay{name: x.name, addr: fmt.Sprintf("10.77.0.%d", 11+i), words: x.words, ns: ns})
	}
	var more []*lab.Netns
	for _, e := range s.stays {
		more = append(more, e.ns)
	}
	w.seal(t, more...)
	s.dir = filepath.Join(pinDir, fmt.Sprintf("%d-%d", w.cookie, parentIndex))
	// Attaching once makes what is there for good.
	s.must(t, "parent attach eth0")
	s.must(t, "parent detach eth0")
	s.look0 = s.snapshot(t)
	return s
}

// A stream is a row of numbered datagrams from one end to another.
type stream struct {
	name    string
	out, in *net.UDPConn
	stop    chan struct{}
	done    chan struct{} // closed by the sender
	drained chan struct{} // closed by the receiver
	sent    atomic.Uint64
	seen    map[uint64]int // how often each number came; read after drained is closed
}

func udpIn(t *testing.T, ns *lab.Netns, addr string) (conn *net.UDPConn) {
	t.Helper()
	ns.Do(t, func() {
		var err error
		if conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(addr)}); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// startStreams sends from the wire to all that stay and back, and between them.
func (s *soak) startStreams(t *testing.T) (streams []*stream) {
	t.Helper()
	ends := append(slices.Clone(s.stays), &stay{name: "wire", addr: wireAddr, ns: s.wire})
	for _, from := range ends {
		for _, to := range ends {
			if from == to {
				continue
			}
			f := &stream{
				name: from.name + " to " + to.name, out: udpIn(t, from.ns, from.addr), in: udpIn(t, to.ns, to.addr),
				stop: make(chan struct{}), done: make(chan struct{}), drained: make(chan struct{}), seen: map[uint64]int{},
			}
			go f.send()
			go f.receive()
			streams = append(streams, f)
		}
	}
	return streams
}

func (f *stream) send() {
	defer close(f.done)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
		n := f.sent.Load()
		// Longer than the parent's MTU at times. What cannot be sent now is not sent.
		size := 8 + int(n%1600)
		if _, err := f.out.WriteTo(binary.BigEndian.AppendUint64(make([]byte, 0, size), n)[:size], f.in.LocalAddr()); err == nil {
			f.sent.Add(1)
		}
	}
}

func (f *stream) receive() {
	defer close(f.drained)
	buf := make([]byte, 2000)
	for {
		n, err := f.in.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n >= 8 {
			f.seen[binary.BigEndian.Uint64(buf)]++
		}
	}
}

// end ends the stream, of which nothing may have come twice, and something at all.
func (f *stream) end(t *testing.T) {
	t.Helper()
	close(f.stop)
	<-f.done
	if err := errors.Join(f.out.Close(), f.in.Close()); err != nil {
		t.Error(err)
	}
	<-f.drained
	var twice []uint64
	for n, times := range f.seen {
		if times > 1 {
			twice = append(twice, n)
		}
	}
	if len(twice) > 0 {
		t.Errorf("%s: came twice: %v", f.name, twice)
	}
	t.Logf("%s: %d of %d datagrams", f.name, len(f.seen), f.sent.Load())
}

// balance checks that for each that stays what was handed to it has arrived or
// was dropped for a reason, and what it has sent likewise.
func (s *soak) balance(t *testing.T) {
	t.Helper()
	var books []string
	defer func() { t.Log(strings.Join(books, "\n")) }()
	lab.Eventually(t, "the books balance", func() bool {
		books = nil
		ok := true
		for i, l := range s.links(t) {
			dev, v := s.stays[i].ns.Link(t, l.Name).Attrs().Statistics, func(name string) uint64 { return l.Verdicts[name].Packets }
			in, out := dev.RxPackets+v("drop_ring"), v("tx")+v("drop_mtu")+v("drop_malformed")+v("drop_mode")+v("drop_route")+v("drop_inactive")
			books = append(books, fmt.Sprintf("%s: %d handed over = %d arrived + %d dropped by ring; %d sent = %d tx + %d dropped",
				l.Name, v("rx"), dev.RxPackets, v("drop_ring"), dev.TxPackets, v("tx"), out-v("tx")))
			ok = ok && v("rx") == in && dev.TxPackets == out && v("rx") > 0 && out > 0
		}
		return ok && len(books) == len(s.stays)
	})
}

// nothingLeft checks that there are neither pins nor locks, and no maps, programs
// or links that have none.
func (s *soak) nothingLeft(t *testing.T) {
	t.Helper()
	s.do(t, func() {
		for _, dir := range []string{pinDir, lockDir} {
			entries, err := os.ReadDir(dir)
			entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ".debug") }) // the kernel's
			if err != nil || len(entries) > 0 {
				t.Errorf("in %s there are %v, %v", dir, entries, err)
			}
		}
	})
	lab.Eventually(t, "maps, programs and links are gone", func() bool { return s.owned() == 0 })
}

// owned counts the maps in the kernel that are records of this world's parent,
// which programs hold, as links hold programs: with the last of them all is gone.
// They are known by the parent's MACs, which are no other world's.
func (s *soak) owned() (n int) {
	for id, err := ebpf.MapGetNextID(0); err == nil; id, err = ebpf.MapGetNextID(id) {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		var record []byte
		if info, err := m.Info(); err == nil && strings.Contains(info.Name, "meta") && m.Lookup(uint32(0), &record) == nil {
			for _, mac := range s.macs {
				if bytes.Contains(record, mac) {
					n++
					break
				}
			}
		}
		m.Close()
	}
	return n
}
