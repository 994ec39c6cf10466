package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// Neighbours and switches that know an address or a MAC from before hold on to
// it for a while; an announcement, which is gratuitous ARP or an unsolicited
// neighbour advertisement, ends that. For a device that is new, comes up or has
// been given another MAC the kernel announces its addresses, IPv6 ones when
// duplicate address detection is through, if only the device is set to it.
// What it cannot know of is announced here. Modes l3 and l3s speak neither.
//
// One announcement may be lost. RFC 5227 wants two of ARP, two seconds apart, RFC
// 4861 up to three advertisements, one second apart: the others are sent by who
// stays, as a command does not wait for them. He announces, too, what he sees come
// by itself: addresses that others set, a device that comes up or gets its carrier
// back.

const (
	announceTimes = 3 // of them ARP has the first and the last
	announceSpace = time.Second
	// Siblings hear each announcement, too, each in a copy of about a microsecond of
	// CPU: when all of a big parent's are due at once, they take a quarter of a CPU.
	announceCopy = 4 * time.Microsecond
)

// repeat is what is still to be said of a sub-interface.
type repeat struct {
	done int // of announceTimes
	next time.Time
}

// announces sets a device to announce its addresses. It is lost when the device
// goes to another namespace.
func (s *space) announces(name string) error {
	return s.within(func() error {
		for _, key := range []string{"ipv4/conf/" + name + "/arp_notify", "ipv6/conf/" + name + "/ndisc_notify"} {
			err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte("1"), 0o644)
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // without IPv6
				return fmt.Errorf("have addresses announced: %w", err)
			}
		}
		return nil
	})
}

// announceAll announces the addresses of those sub-interfaces that are picked.
// It is a service to the neighbours: what cannot be announced is found out in
// time.
func (p *parent) announceAll(pick func(maps.Sub) bool) {
	subs, err := p.maps.Subs()
	if err != nil {
		p.h.log.Warn("cannot announce addresses", "parent", p.rec.Name, "err", err)
		return
	}
	for i, s := range subs {
		if s.State != maps.Active || s.Mode.Routed() || !pick(s) {
			continue
		}
		if p.h.stays {
			p.h.watch.announce(leg{s.Leg, p.legName(maps.ID(i))})
			continue
		}
		if err := p.h.announce(leg{s.Leg, p.legName(maps.ID(i))}, true); err != nil {
			p.h.log.Warn("cannot announce addresses", "parent", p.rec.Name, "name", s.Name, "err", err)
		}
	}
}

// announce has a sub-interface announced, at once and again. Who only watches leaves
// that to others.
func (w *watched) announce(l leg) {
	if l != (leg{}) && w.repeats != nil {
		w.repeats[l] = repeat{next: time.Now()}
	}
}

// announceDue sends what is due, as far as that is for now, and tells when more will
// be; that is zero if nothing is left.
func (h *Host) announceDue() (next time.Time) {
	w := h.watch
	for l, r := range w.repeats {
		if time.Now().Before(w.pause) {
			return w.pause
		}
		if time.Now().Before(r.next) {
			next = earlier(next, r.next)
			continue
		}
		w.pause = time.Now().Add(announceCopy * time.Duration(len(w.devices)/2)) // two legs each
		if err := h.announce(l, r.done == 0 || r.done == announceTimes-1); err != nil {
			h.log.Warn("cannot announce addresses", "leg", l.name, "err", err)
			r.done = announceTimes
		}
		if r.done++; r.done >= announceTimes {
			delete(w.repeats, l)
			continue
		}
		r.next = time.Now().Add(announceSpace)
		w.repeats[l] = r
		next = earlier(next, r.next)
	}
	return next
}

// earlier is the first of two moments, of which zero ones are none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// announce sends one announcement of each address that a device has for good, IPv4
// ones if arp says so, out of that device, so that siblings hear it, too. One that
// is down, or speaks neither, announces nothing.
func (h *Host) announce(l leg, arp bool) error {
	nsid, inner, err := h.inner(l.index, l.name)
	if inner == nil || err != nil || inner.Attrs().RawFlags&(unix.IFF_UP|unix.IFF_NOARP) != unix.IFF_UP {
		return err // gone meanwhile, or it will announce itself when it comes up
	}
	addrs, err := addrsIn(nsid, inner.Attrs().Index)
	if err != nil || len(addrs) == 0 {
		return err
	}
	in, err := h.spaceByID(nsid)
	if err != nil {
		return err
	}
	defer in.close()
	var fd int
	err = in.within(func() (err error) { // of no protocol: it is to receive nothing
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer unix.Close(fd)
	mac := inner.Attrs().HardwareAddr
	for a, settled := range addrs {
		if !settled || a.Is4() && !arp { // somebody else may have the former
			continue
		}
		to := &unix.SockaddrLinklayer{Ifindex: inner.Attrs().Index}
		if err := unix.Sendto(fd, announcement(mac, a), 0, to); err != nil {
			return fmt.Errorf("announce %s: %w", a, err)
		}
	}
	return nil
}

// announcement makes a gratuitous ARP request (RFC 5227, section 3) or an
// unsolicited neighbour advertisement (RFC 4861, section 7.2.6).
func announcement(mac net.HardwareAddr, a netip.Addr) []byte {
	if a.Is4() {
		ip := a.AsSlice()
		f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
		f = append(f, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1) // ARP, Ethernet, IPv4, request
		f = append(append(f, mac...), ip...)
		return append(append(f, 0, 0, 0, 0, 0, 0), ip...)
	}
	const (
		icmpv6        = 58
		advertisement = 136
		override      = 0x20
	)
	allNodes := netip.MustParseAddr("ff02::1").AsSlice()
	ip := a.AsSlice()
	na := append([]byte{advertisement, 0, 0, 0, override, 0, 0, 0}, ip...)
	na = append(append(na, 2, 1), mac...) // target link-layer address
	pseudo := append(append(append([]byte{}, ip...), allNodes...), 0, 0, 0, byte(len(na)), 0, 0, 0, icmpv6)
	binary.BigEndian.PutUint16(na[2:], checksum(append(pseudo, na...)))

	f := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(na)), icmpv6, 255)
	return append(append(append(f, ip...), allNodes...), na...)
}

// checksum is the Internet checksum of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
