package referee

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// protocols are those that frames under test are taken for by a stack.
var protocols = []uint16{
	typeIP4, typeIP6, typeARP, typeOther, typeLLDP, typePause, typeLLC, typeVLAN, typeQinQ,
}

const (
	maxFrame   = 1 << 16
	auxdataLen = 20 // of struct tpacket_auxdata
)

// An arrival is a frame that a stack was given.
type arrival struct {
	where   string // the role of the device it came by, or host.DEVICE for others
	pktType uint8
	data    []byte // with its VLAN tags
}

// observers listen in all of a world's namespaces. In the parent's, a packet
// socket that is bound to one protocol and to no device stands where the IP
// stack does: behind tc and the receive handlers by which macvlan and ipvlan
// take frames off their parent. It is told the device that the frame has in the
// end, and that is not the parent for a frame they took. What it is not told is
// the VLAN tag, so elsewhere, where nothing stands before the stack, a socket
// for all protocols listens.
type observers struct {
	fds   []unix.PollFd
	place []*place // likewise
	buf   []byte
	oob   []byte
}

// A place is a namespace and what its devices, by index, are called.
type place struct {
	ns      *lab.Netns
	names   map[int]string
	parents bool // it is the parent's namespace
}

func observe(tb testing.TB, places []*place) *observers {
	tb.Helper()
	o := &observers{buf: make([]byte, maxFrame), oob: make([]byte, 128)}
	for _, p := range places {
		listened := []uint16{unix.ETH_P_ALL}
		if p.parents {
			listened = protocols
		}
		for _, proto := range listened {
			fd := packetSocket(tb, p.ns, proto, 0)
			err := errors.Join(
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20),
				unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1))
			if err != nil {
				tb.Fatalf("set up packet socket: %v", err)
			}
			o.fds = append(o.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			o.place = append(o.place, p)
		}
	}
	return o
}

// packetSocket opens a packet socket in a namespace, bound to a protocol (0:
// it receives nothing) and a device (0: any), until the test ends.
func packetSocket(tb testing.TB, ns *lab.Netns, proto uint16, index int) int {
	tb.Helper()
	be := binary.NativeEndian.Uint16(bigEndian.AppendUint16(nil, proto))
	var fd int
	var err error
	ns.Do(tb, func() { fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		tb.Fatalf("open packet socket: %v", err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	if proto != 0 {
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: be, Ifindex: index}); err != nil {
			tb.Fatalf("bind packet socket: %v", err)
		}
	}
	return fd
}

// read hands over the frames that are there, or waits for the first until the
// deadline; a zero deadline does not wait. False: there was none.
func (o *observers) read(deadline time.Time, got func(arrival)) (bool, error) {
	ms := max(0, time.Until(deadline).Milliseconds())
	n, err := unix.Poll(o.fds, int(ms))
	if errors.Is(err, unix.EINTR) {
		return true, nil
	}
	if err != nil || n == 0 {
		return false, err
	}
	for i := range o.fds {
		if o.fds[i].Revents == 0 {
			continue
		}
		for {
			a, ok, err := o.next(i)
			if err != nil {
				return true, err
			}
			if !ok {
				break
			}
			if a.pktType != unix.PACKET_OUTGOING && a.pktType != unix.PACKET_LOOPBACK {
				got(a)
			}
		}
	}
	return true, nil
}

func (o *observers) next(i int) (arrival, bool, error) {
	size, oobSize, _, from, err := unix.Recvmsg(int(o.fds[i].Fd), o.buf, o.oob, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
		return arrival{}, false, nil
	}
	if err != nil {
		return arrival{}, false, fmt.Errorf("read packet socket: %w", err)
	}
	a := arrival{data: append([]byte(nil), o.buf[:size]...)}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		a.pktType = ll.Pkttype
		a.where = o.place[i].name(ll.Ifindex)
	}
	a.data, err = withTag(a.data, o.oob[:oobSize])
	return a, true, err
}

// name calls devices that the world has not made itself what they are.
func (p *place) name(index int) string {
	if name, ok := p.names[index]; ok {
		return name
	}
	return "a device nobody made"
}

// withTag puts a tag that the kernel keeps aside back into the frame.
func withTag(frame, oob []byte) ([]byte, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < auxdataLen {
			continue
		}
		if binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID != 0 {
			frame = tagged(frame, binary.NativeEndian.Uint16(m.Data[18:]), binary.NativeEndian.Uint16(m.Data[16:]))
		}
	}
	return frame, nil
}

var pktTypes = map[uint8]string{
	unix.PACKET_HOST:      "HOST",
	unix.PACKET_BROADCAST: "BROADCAST",
	unix.PACKET_MULTICAST: "MULTICAST",
	unix.PACKET_OTHERHOST: "OTHERHOST",
}

func pktTypeName(t uint8) string {
	if name, ok := pktTypes[t]; ok {
		return name
	}
	return fmt.Sprintf("type %d", t)
}
