package loader

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// socketTime is how long a socket waits before its test fails.
const socketTime = 5 * time.Second

// backlogDrops counts the frames that this machine's CPUs have dropped because
// too many were waiting. The queue is one for all namespaces: if others flood
// it, a test may lose frames by no fault of what it tests.
func backlogDrops(t testing.TB) (sum uint64) {
	t.Helper()
	stat, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(stat)) {
		var processed, dropped uint64
		if _, err := fmt.Sscanf(line, "%x %x", &processed, &dropped); err != nil {
			t.Fatalf("read %q: %v", line, err)
		}
		sum += dropped
	}
	return sum
}

// lossless skips the rest of a test that has lost something, if the machine has
// dropped frames since its counter stood at before.
func lossless(t testing.TB, before uint64) {
	t.Helper()
	if now := backlogDrops(t); now > before {
		t.Skipf("the machine has dropped %d frames of somebody's", now-before)
	}
}

// ping sends an echo request, unless args say how many, and fails if one is not
// answered, with what the machine may have dropped repeated.
func (e *end) ping(t testing.TB, to netip.Addr, args ...string) {
	t.Helper()
	args = append([]string{"-n", "-c", "1", "-W", "5", "-I", e.dev}, args...)
	for try := 1; ; try++ {
		before := backlogDrops(t)
		out, err := e.ns.Try(t, "ping", append(args, to.String())...)
		if err == nil && strings.Contains(out, " 0% packet loss") {
			return
		}
		if backlogDrops(t) == before || try == 10 {
			t.Fatalf("%s has no answer from %s: %v\n%s", e.name, to, err, out)
		}
	}
}

// pingFails tells that nothing answers one echo request; the time it waits can
// hide a fault, but not make one up.
func (e *end) pingFails(t testing.TB, to netip.Addr) {
	t.Helper()
	if out, err := e.ns.Try(t, "ping", "-n", "-c", "1", "-W", "0.2", "-I", e.dev, to.String()); err == nil {
		t.Errorf("%s has an answer from %s:\n%s", e.name, to, out)
	}
}

// A udpOption prepares a socket before it is bound.
type udpOption func(fd int) error

func sockopt(level, name, value int) udpOption {
	return func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) }
}

// udp opens a socket on the end's device until the test is over.
func (e *end) udp(t testing.TB, addr netip.Addr, port uint16, options ...udpOption) *net.UDPConn {
	t.Helper()
	return e.udpAnywhere(t, addr, port, append(options, func(fd int) error { return unix.BindToDevice(fd, e.dev) })...)
}

// udpAnywhere opens a socket in the end's namespace until the test is over.
func (e *end) udpAnywhere(t testing.TB, addr netip.Addr, port uint16, options ...udpOption) *net.UDPConn {
	t.Helper()
	options = append(options, sockopt(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var errs []error
		err := raw.Control(func(fd uintptr) {
			for _, o := range options {
				errs = append(errs, o(int(fd)))
			}
		})
		return errors.Join(err, errors.Join(errs...))
	}}
	network := "udp4"
	if addr.Is6() {
		network = "udp6"
	}
	var (
		conn net.PacketConn
		err  error
	)
	e.ns.Do(t, func() {
		conn, err = lc.ListenPacket(context.WithoutCancel(t.Context()), network, netip.AddrPortFrom(addr, port).String())
	})
	if err != nil {
		t.Fatalf("open UDP socket at %s: %v", e.name, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UDPConn)
}

// read takes the next datagram, which must come.
func read(t testing.TB, conn *net.UDPConn) []byte {
	t.Helper()
	buf := make([]byte, 1<<16)
	conn.SetReadDeadline(time.Now().Add(socketTime))
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatalf("nothing comes to %s: %v", conn.LocalAddr(), err)
	}
	return buf[:n]
}

// echoUDP sends a datagram of this length from one end to another's address,
// and back.
func echoUDP(t testing.TB, from, to *end, ip func(*end) netip.Addr, length int) {
	t.Helper()
	a, b := from.udp(t, ip(from), 0), to.udp(t, ip(to), 0)
	defer a.Close()
	defer b.Close()
	want := payload(length)
	for _, hop := range []struct{ from, to *net.UDPConn }{{a, b}, {b, a}} {
		dest := hop.to.LocalAddr().(*net.UDPAddr)
		if _, err := hop.from.WriteToUDP(want, dest); err != nil {
			t.Fatalf("send %d bytes from %s to %s: %v", length, hop.from.LocalAddr(), dest, err)
		}
		if !bytes.Equal(read(t, hop.to), want) {
			t.Fatalf("datagram of %d bytes from %s to %s came damaged", length, hop.from.LocalAddr(), dest)
		}
	}
}

func payload(length int) []byte {
	b := make([]byte, length)
	rand.NewChaCha8([32]byte{byte(length)}).Read(b)
	return b
}

func ip4Of(e *end) netip.Addr { return e.ip4.Addr() }
func ip6Of(e *end) netip.Addr { return e.ip6.Addr() }

// bulk sends size bytes by TCP from one end to another and as many back, at
// the same time, and compares what came with what went.
func bulk(t testing.TB, from, to *end, ip func(*end) netip.Addr, size int64) {
	t.Helper()
	bulkBy(t, from, to, ip(from), ip(to), ip(to), size)
}

// bulkBy is bulk to a service at an address of its end's that is called by another.
func bulkBy(t testing.TB, from, to *end, local, called, at netip.Addr, size int64) {
	t.Helper()
	var (
		ln  net.Listener
		err error
	)
	to.ns.Do(t, func() { ln, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String()) })
	if err != nil {
		t.Fatalf("listen at %s: %v", to.name, err)
	}
	defer ln.Close()
	result := make(chan error, 2)
	go func() {
		ln.(*net.TCPListener).SetDeadline(time.Now().Add(socketTime))
		conn, err := ln.Accept()
		if err != nil {
			result <- err
			return
		}
		result <- exchange(conn, size, 1, 2)
	}()
	var conn net.Conn
	dialer := net.Dialer{Timeout: socketTime, LocalAddr: &net.TCPAddr{IP: local.AsSlice()}}
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	from.ns.Do(t, func() { conn, err = dialer.Dial("tcp", netip.AddrPortFrom(called, port).String()) })
	if err != nil {
		t.Fatalf("connect from %s to %s: %v", from.name, to.name, err)
	}
	result <- exchange(conn, size, 2, 1)
	if err := errors.Join(<-result, <-result); err != nil {
		t.Errorf("TCP from %s to %s: %v", from.name, to.name, err)
	}
}

// exchange sends and receives size bytes, each made from its seed, at once.
func exchange(conn net.Conn, size int64, send, receive byte) error {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(4 * socketTime))
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, stream(send, size))
		sent <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, conn)
	err = errors.Join(err, <-sent)
	if _, err := io.Copy(want, stream(receive, size)); err != nil {
		return err
	}
	if err == nil && (n != size || !bytes.Equal(got.Sum(nil), want.Sum(nil))) {
		return fmt.Errorf("%d bytes came of %d, or other ones", n, size)
	}
	return err
}

func stream(seed byte, size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
}

// markers numbers the frames that end a capture.
var markers atomic.Uint32

// received are the frames that have come to the wire since the capture began.
// One sent last, of a kind that nobody else uses, tells that all are there; it
// is sent again where it found the capture's buffer full.
func (s *site) received(t testing.TB, c *lab.Capture) []lab.Frame {
	t.Helper()
	kind := []byte{0x88, 0xb6} // IEEE 802, local experiments
	marker := slices.Concat(s.wire.mac(t), s.host.mac(t), kind, binary.BigEndian.AppendUint32(nil, markers.Add(1)))
	marker = append(marker, make([]byte, 60-len(marker))...)
	var frames []lab.Frame
	lab.Eventually(t, "the end of the capture comes", func() bool {
		s.host.ns.Send(t, s.host.dev, marker)
		return len(c.Matching(1, 100*time.Millisecond, func(f lab.Frame) bool {
			if f.PktType != unix.PACKET_OUTGOING && !bytes.Equal(f.Data[12:14], kind) {
				frames = append(frames, f)
			}
			return bytes.Equal(f.Data, marker)
		})) == 1
	})
	return frames
}

// checkSums verifies every checksum in the frames, which must hold at least one
// of each of the layers.
func checkSums(t testing.TB, frames []lab.Frame, want ...gopacket.LayerType) {
	t.Helper()
	seen := map[gopacket.LayerType]int{}
	bad := 0
	for _, f := range frames {
		if f.ChecksumPartial {
			t.Errorf("a frame of %d bytes came without its checksum", len(f.Data))
			return
		}
		p := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
		for _, l := range p.Layers() {
			seen[l.LayerType()]++
			if l, ok := l.(interface {
				SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
			}); ok {
				l.SetNetworkLayerForChecksum(p.NetworkLayer())
			}
		}
		err, wrong := p.VerifyChecksums()
		if err != nil || len(wrong) > 0 {
			bad++
			t.Logf("wrong checksum: %v %v\n%s", err, wrong, p)
		}
		if bad == 3 {
			break
		}
	}
	if bad > 0 {
		t.Errorf("%d frames with wrong checksums", bad)
	}
	for _, l := range want {
		if seen[l] == 0 {
			t.Errorf("no %s among %d frames", l, len(frames))
		}
	}
}

// longest is the length of the longest frame.
func longest(frames []lab.Frame) int {
	n := 0
	for _, f := range frames {
		n = max(n, len(f.Wire()))
	}
	return n
}

// offload turns offloads of an end's device on or off: "tx", "off", "gro" ...
func (e *end) offload(t testing.TB, args ...string) {
	t.Helper()
	lab.NeedTool(t, "ethtool")
	e.ns.Run(t, "ethtool", append([]string{"-K", e.dev}, args...)...)
}

// qdiscCounts are the packets and bytes that a device has sent, as its qdisc
// counts them: a GSO packet as its segments. The qdisc is a pfifo at the root.
func (e *end) qdiscCounts(t testing.TB) maps.Counter {
	t.Helper()
	out := e.ns.Run(t, "tc", "-s", "qdisc", "show", "dev", e.dev, "root")
	var c maps.Counter
	_, sent, _ := strings.Cut(out, "Sent ")
	if _, err := fmt.Sscanf(sent, "%d bytes %d pkt", &c.Bytes, &c.Packets); err != nil {
		t.Fatalf("read counts of %s: %v\n%s", e.name, err, out)
	}
	return c
}
