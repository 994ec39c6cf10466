package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxFrame      = 1 << 19 // the longest super-packet with its headers
	captureBuffer = 8 << 20 // what the kernel keeps for us between two reads
	macsLen       = 12      // both MAC addresses, before a VLAN tag
	auxdataLen    = 20
)

// A Frame is an Ethernet frame as a packet socket on a device sees it.
type Frame struct {
	Data    []byte // from the destination MAC on, without a tag that stands in VLANTCI
	PktType uint8  // unix.PACKET_HOST, PACKET_OUTGOING ...

	HasVLAN  bool // the outer tag was in the kernel's metadata, not in Data
	VLANTCI  uint16
	VLANTPID uint16

	ChecksumPartial bool // the L4 checksum is yet to be filled in
}

// Wire returns the frame with its outer VLAN tag where it is on the wire.
func (f Frame) Wire() []byte {
	if !f.HasVLAN || len(f.Data) < macsLen {
		return f.Data
	}
	wire := append([]byte(nil), f.Data[:macsLen]...)
	wire = binary.BigEndian.AppendUint16(wire, f.VLANTPID)
	wire = binary.BigEndian.AppendUint16(wire, f.VLANTCI)
	return append(wire, f.Data[macsLen:]...)
}

// A Capture holds the frames that have passed a device, in both directions,
// since it was made.
type Capture struct {
	tb   testing.TB
	name string
	fd   int
	buf  []byte
}

// Capture begins to keep the frames that pass a device. The device is not put
// into promiscuous mode.
func (n *Netns) Capture(tb testing.TB, dev string) *Capture {
	tb.Helper()
	c := &Capture{tb: tb, name: n.name + "/" + dev, buf: make([]byte, maxFrame)}
	index := n.Link(tb, dev).Attrs().Index
	fd, err := n.packetSocket(tb)
	if err != nil {
		tb.Fatalf("open packet socket on %s: %v", c.name, err)
	}
	c.fd = fd
	tb.Cleanup(func() { unix.Close(fd) })
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index}))
	if err != nil {
		tb.Fatalf("set up packet socket on %s: %v", c.name, err)
	}
	return c
}

// packetSocket opens a packet socket in the namespace that receives nothing
// until it is bound.
func (n *Netns) packetSocket(tb testing.TB) (fd int, err error) {
	tb.Helper()
	n.Do(tb, func() {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	})
	return fd, err
}

// Frames returns the next n frames, or those that came until the time is up.
func (c *Capture) Frames(n int, timeout time.Duration) []Frame {
	c.tb.Helper()
	return c.Matching(n, timeout, func(Frame) bool { return true })
}

// Matching is Frames for those frames that match; the others are gone. To see
// that there are exactly n, ask for n+1.
func (c *Capture) Matching(n int, timeout time.Duration, match func(Frame) bool) []Frame {
	c.tb.Helper()
	var frames []Frame
	deadline := time.Now().Add(timeout)
	for len(frames) < n {
		f, ok, err := c.next(time.Until(deadline))
		if err != nil {
			c.tb.Fatalf("read packet socket on %s: %v", c.name, err)
		}
		if !ok {
			break
		}
		if match(f) {
			frames = append(frames, f)
		}
	}
	return frames
}

// next waits for one frame. With no time left it takes only what is there.
func (c *Capture) next(wait time.Duration) (Frame, bool, error) {
	deadline := time.Now().Add(wait)
	for {
		ms := max(0, time.Until(deadline).Milliseconds())
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, int(ms))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || ready == 0 {
			return Frame{}, false, err
		}
		oob := make([]byte, unix.CmsgSpace(auxdataLen))
		size, oobSize, _, from, err := unix.Recvmsg(c.fd, c.buf, oob, unix.MSG_DONTWAIT)
		// ENETDOWN tells once that the device went down; it may come up again.
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
			continue
		}
		if err != nil {
			return Frame{}, false, err
		}
		f := Frame{Data: append([]byte(nil), c.buf[:size]...)}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok {
			f.PktType = ll.Pkttype
		}
		return f, true, f.readAuxdata(oob[:oobSize])
	}
}

// readAuxdata takes what the frame's struct tpacket_auxdata says.
func (f *Frame) readAuxdata(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("parse control message: %w", err)
	}
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < auxdataLen {
			continue
		}
		status := binary.NativeEndian.Uint32(m.Data)
		f.ChecksumPartial = status&unix.TP_STATUS_CSUMNOTREADY != 0
		f.HasVLAN = status&unix.TP_STATUS_VLAN_VALID != 0
		if f.HasVLAN {
			f.VLANTCI = binary.NativeEndian.Uint16(m.Data[16:])
			f.VLANTPID = binary.NativeEndian.Uint16(m.Data[18:])
		}
	}
	return nil
}

// Send sends one Ethernet frame out of a device, as it stands. One that the
// device tells that it has dropped counts as sent.
func (n *Netns) Send(tb testing.TB, dev string, frame []byte) {
	tb.Helper()
	if len(frame) < macsLen+2 {
		tb.Fatalf("send on %s: frame of %d bytes has no Ethernet header", dev, len(frame))
	}
	fd, err := n.packetSocket(tb)
	if err != nil {
		tb.Fatalf("open packet socket in %s: %v", n.name, err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{
		Ifindex:  n.Link(tb, dev).Attrs().Index,
		Protocol: binary.NativeEndian.Uint16(frame[macsLen:]), // already in network order
	}
	if err := unix.Sendto(fd, frame, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
		tb.Fatalf("send %d bytes on %s in %s: %v", len(frame), dev, n.name, err)
	}
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
