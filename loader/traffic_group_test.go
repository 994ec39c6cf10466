package loader

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const groupPort = 7777

var (
	group4 = netip.MustParseAddr("239.1.2.3")
	group6 = netip.MustParseAddr("ff02::1234")
)

// A listener keeps how often it has received what.
type listener struct {
	mu  sync.Mutex
	got map[string]int
}

func (l *listener) read(conn *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return // closed with the test
		}
		l.mu.Lock()
		l.got[string(buf[:n])]++
		l.mu.Unlock()
	}
}

func (l *listener) counts() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.got)
}

// A station is an end that takes part in groups.
type station struct {
	*end
	listener
	v4, v6 *net.UDPConn
}

// join opens the end's sockets: any address, so that broadcasts come in, and
// both groups joined.
func join(t testing.TB, e *end) *station {
	t.Helper()
	st := &station{end: e, listener: listener{got: map[string]int{}}}
	index := e.index(t)
	join4 := func(fd int) error {
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: group4.As4(), Ifindex: int32(index)})
	}
	join6 := func(fd int) error {
		return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
			&unix.IPv6Mreq{Multiaddr: group6.As16(), Interface: uint32(index)})
	}
	st.v4 = e.udp(t, netip.IPv4Unspecified(), groupPort, join4,
		sockopt(unix.SOL_SOCKET, unix.SO_BROADCAST, 1), sockopt(unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0))
	st.v6 = e.udp(t, netip.IPv6Unspecified(), groupPort, join6,
		sockopt(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0))
	go st.read(st.v4)
	go st.read(st.v6)
	return st
}

// say sends a text to an address on the station's link.
func (st *station) say(t testing.TB, to netip.Addr, text string) {
	t.Helper()
	conn := st.v4
	if to.Is6() {
		conn, to = st.v6, to.WithZone(fmt.Sprint(st.index(t)))
	}
	if _, err := conn.WriteToUDPAddrPort([]byte(text), netip.AddrPortFrom(to, groupPort)); err != nil {
		t.Fatalf("%s sends to %s: %v", st.name, to, err)
	}
}

// TestGroups sends broadcasts and multicasts from everywhere and counts what
// arrives where: from the wire at the host and each sub-interface, from a
// sub-interface at the wire and its siblings, from the host at the wire.
func TestGroups(t *testing.T) {
	const times = 5
	dests := map[string]netip.Addr{
		"limited broadcast": netip.MustParseAddr("255.255.255.255"),
		"subnet broadcast":  netip.MustParseAddr("10.77.0.255"),
		"multicast":         group4,
		"v6 multicast":      group6,
	}
	onRungs(t, withNetkit(allRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.populate(t)
		drops := backlogDrops(t)
		var stations []*station
		for _, e := range s.all() {
			stations = append(stations, join(t, e))
		}
		want := map[*station]map[string]int{}
		for _, st := range stations {
			want[st] = map[string]int{}
		}
		for _, from := range stations {
			for name, to := range dests {
				for n := range times {
					text := fmt.Sprintf("%s from %s, %d", name, from.name, n)
					for _, st := range stations {
						if s.hears(st.end, from.end) {
							want[st][text]++
						}
					}
					if to == dests["limited broadcast"] || to == dests["subnet broadcast"] {
						want[from][text]++ // the sender's own stack hands it a copy
					}
					from.say(t, to, text)
				}
			}
		}
		compare(t, drops, stations, want)
	})
}

// hears tells whether what one end sends to a group is for another.
func (s *site) hears(to, from *end) bool {
	switch {
	case to == from:
		return false
	case to == s.host, from == s.host:
		return to == s.wire || from == s.wire
	}
	return true
}

// compare waits until everything wanted is there, drops being the machine's before, and a moment longer for what
// is not wanted.
func compare(t *testing.T, drops uint64, stations []*station, want map[*station]map[string]int) {
	t.Helper()
	missing := func() (texts []string) {
		for _, st := range stations {
			got := st.counts()
			for text, n := range want[st] {
				if got[text] < n {
					texts = append(texts, fmt.Sprintf("%s at %s", text, st.name))
				}
			}
		}
		slices.Sort(texts)
		return texts
	}
	deadline := time.Now().Add(socketTime)
	for len(missing()) > 0 {
		if time.Now().After(deadline) {
			lossless(t, drops)
			t.Fatalf("did not come: %q", missing())
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	for _, st := range stations {
		got := st.counts()
		for _, text := range slices.Sorted(maps.Keys(got)) {
			if got[text] != want[st][text] {
				t.Errorf("%s: came %d times at %s, want %d", text, got[text], st.name, want[st][text])
			}
		}
	}
}

// TestHairpin returns to the parent what sub-interfaces have sent to a group,
// as a switch can be set to: nobody but the host hears it, who had not before.
func TestHairpin(t *testing.T) {
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.host.offload(t, "tx", "off") // no checksum is left to a card
		s.populate(t)
		drops := backlogDrops(t)
		wire := s.wire.ns.Capture(t, s.wire.dev)
		var stations []*station
		for _, e := range s.all() {
			stations = append(stations, join(t, e))
		}
		want := map[*station]map[string]int{}
		for _, from := range stations[2:] {
			text := "hello from " + from.name
			from.say(t, group4, text)
			for _, st := range stations[1:] {
				if want[st] == nil {
					want[st] = map[string]int{}
				}
				if st != from {
					want[st][text] = 1
				}
			}
		}
		compare(t, drops, stations, want)
		for _, f := range s.received(t, wire) {
			s.wire.ns.Send(t, s.wire.dev, f.Data)
		}
		want[stations[0]] = map[string]int{}
		for _, from := range stations[2:] {
			want[stations[0]]["hello from "+from.name] = 1
		}
		compare(t, drops, stations, want)
	})
}
