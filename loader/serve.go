package loader

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// How Serve spaces its looks.
const (
	settleTime = 5 * time.Millisecond   // changes come in bursts
	burstTime  = 100 * time.Millisecond // and some bursts do not end
	busyTime   = 50 * time.Millisecond  // until a command has done with a parent
	eventSpace = 4 << 20                // for messages that wait to be read
)

// serveLock begins the names of the locks of those who serve, behind it stands the
// namespace's cookie.
const serveLock = "serve-"

// RepairTime is how often Serve looks for what no message tells of.
const RepairTime = time.Minute

// sizeofTcMsg is that of struct tcmsg, linux/rtnetlink.h: a family, and from byte
// 4 on the device's index.
const sizeofTcMsg = 20

// device names a device by the id of its network namespace, -1 for the own.
type device struct{ nsid, index int }

// leg names a host leg.
type leg struct {
	index int
	name  string
}

// known is what Serve knows of a device that it listens to.
type known struct {
	leg     leg // of an inner leg, the other end
	running bool
	addrs   map[netip.Addr]bool // that have come while it was listened to
}

// watched is what Serve listens to.
type watched struct {
	fd      int
	devices map[device]*known // parents, and both legs of their sub-interfaces
	before  map[device]*known // the same, before they were collected anew; nil in the first look
	parents map[int]bool      // those among them that are to tell their neighbours who they are
	gone    map[string]bool   // names of parents that are to come back
	busy    bool              // a parent was left to a command
	repeats map[leg]repeat    // sub-interfaces that are to be announced; nil for Monitor
	pause   time.Time         // until when none is
}

// collect begins to note anew what is to be listened to.
func (w *watched) collect() {
	w.before, w.devices = w.devices, map[device]*known{}
	w.parents, w.gone = map[int]bool{}, map[string]bool{}
}

// seen notes a device that Serve is to listen to, which is an inner leg if it has
// another end. Such a one is announced where it is new.
func (h *Host) seen(nsid int, dev netlink.Link, end leg) {
	if h.watch == nil {
		return
	}
	at := device{nsid, dev.Attrs().Index}
	k := cmp.Or(h.watch.devices[at], h.watch.before[at])
	if k == nil || k.leg != end {
		k = &known{leg: end, running: running(dev.Attrs().RawFlags), addrs: map[netip.Addr]bool{}}
		if h.watch.before != nil {
			h.watch.announce(end)
		}
	}
	h.watch.devices[at] = k
}

// running tells that a device sends: the flag comes after the carrier's.
func running(flags uint32) bool { return flags&unix.IFF_UP != 0 && flags&unix.IFF_RUNNING != 0 }

// expect notes what Serve is to hear of a parent.
func (h *Host) expect(p *parent) {
	if h.watch == nil {
		return
	}
	if p.link == nil {
		h.watch.gone[p.rec.Name] = true
		return
	}
	delete(h.watch.gone, p.rec.Name)
	h.seen(-1, p.link, leg{})
}

// Serve follows, until ctx ends, what is done to the namespace's parents and
// their sub-interfaces, as each command does once: at once, and the parents'
// carrier besides. Nothing depends on its running, and what it does is in the
// kernel when it ends. After each look around, looked, which may be nil, is told
// whether all could be followed. The calling thread must be locked.
func (h *Host) Serve(ctx context.Context, looked func(error)) error {
	if err := errors.Join(hidden(), ensureLocks()); err != nil {
		return err
	}
	unlock, err := flock(fmt.Sprintf("%s%d", serveLock, h.cookie), unix.LOCK_EX|unix.LOCK_NB)
	for tries := 0; errors.Is(err, unix.EWOULDBLOCK) && tries < 5; tries++ {
		time.Sleep(10 * time.Millisecond) // a sweep may be looking whether anybody has it
		unlock, err = flock(fmt.Sprintf("%s%d", serveLock, h.cookie), unix.LOCK_EX|unix.LOCK_NB)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("serve: %w: another xvlan serves this network namespace", ErrBusy)
	}
	if err != nil {
		return err
	}
	defer unlock()
	fd, err := listen()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	stop, closeStop, err := stopPipe(ctx)
	if err != nil {
		return err
	}
	defer closeStop()
	h.stays, h.watch = true, &watched{fd: fd, repeats: map[leg]repeat{}}
	defer func() { h.stays, h.watch = false, nil }()
	if err := h.keep(stop, looked); err != nil {
		return err
	}
	return h.release()
}

// stopPipe makes a descriptor that can be read when ctx has ended, for poll.
func stopPipe(ctx context.Context) (stop int, closeStop func(), err error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return -1, nil, fmt.Errorf("make pipe: %w", err)
	}
	ended := context.AfterFunc(ctx, func() { unix.Close(ends[1]) })
	return ends[0], func() {
		if ended() {
			unix.Close(ends[1])
		}
		unix.Close(ends[0])
	}, nil
}

// keep looks after what there is whenever something has happened to it.
func (h *Host) keep(stop int, looked func(error)) error {
	var (
		every     = cmp.Or(h.repair, RepairTime)
		complaint string
		repaired  time.Time
	)
	for {
		look := h.sweepParents
		if time.Since(repaired) >= every {
			look, repaired = h.Sweep, time.Now()
			h.watch.collect()
		}
		h.watch.busy = false
		err := look()
		if h.watch.before == nil {
			h.watch.before = map[device]*known{}
		}
		if looked != nil {
			looked(err)
		}
		wait := time.Until(repaired.Add(every))
		switch {
		case errors.Is(err, ErrAstray), errors.Is(err, ErrPrivilege):
			return err
		case err != nil:
			if err.Error() != complaint { // once, not each time
				h.log.Error("cannot follow", "err", err)
			}
			complaint, wait = err.Error(), time.Second
		case h.watch.busy:
			wait = busyTime
		default:
			complaint = ""
		}
		if done, err := h.idle(stop, time.Now().Add(max(wait, time.Millisecond))); done || err != nil {
			return err
		}
	}
}

// idle waits until there is something to look at, or for as long as it may, and
// announces meanwhile what is due.
func (h *Host) idle(stop int, end time.Time) (done bool, err error) {
	for fresh := false; !fresh && time.Now().Before(end); {
		until := earlier(end, h.announceDue())
		if fresh, done, err = h.await(stop, time.Until(until)); done || err != nil {
			return done, err
		}
	}
	return false, nil
}

// release sets up the host legs that are down for a parent that is, or is gone:
// nobody will when it comes up.
func (h *Host) release() error {
	return h.eachAttached(func(p *parent) error {
		subs, err := p.maps.Subs()
		if err != nil {
			return err
		}
		all, _ := some(subs, len(subs))
		return p.setLegs(subs, all, true)
	})
}

// listen opens a socket that hears of links, addresses and routes, those of
// other network namespaces too, as far as this one has ids of them: it has of
// all that sub-interfaces are in.
func listen() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("open netlink: %w", err)
	}
	groups := uint32(0)
	for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_TC} {
		groups |= 1 << (g - 1)
	}
	// Too little space loses messages, which is noticed.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventSpace)
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}))
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: it takes CAP_NET_BROADCAST; run xvlan as root", ErrPrivilege)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen to netlink: %w", err)
	}
	return fd, nil
}

// await waits until something has happened that has to be looked at, and a
// moment longer for what comes with it; done tells that it was asked to stop.
func (h *Host) await(stop int, wait time.Duration) (fresh, done bool, err error) {
	end := time.Now().Add(wait)
	for {
		fds := []unix.PollFd{{Fd: int32(h.watch.fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(end)).Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fresh, false, fmt.Errorf("wait for netlink: %w", err)
		case fds[1].Revents != 0:
			return fresh, true, nil
		case n == 0:
			return fresh, false, nil
		}
		matters, err := h.drain()
		if err != nil {
			return fresh, false, err
		}
		if matters {
			if !fresh {
				fresh, wait = true, burstTime
				end = time.Now().Add(burstTime)
			}
			if soon := time.Now().Add(settleTime); soon.Before(end) {
				end = soon
			}
		}
	}
}

// drain reads the messages that wait, and tells whether one matters.
func (h *Host) drain() (matters bool, err error) {
	buf := make([]byte, 64<<10)
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(h.watch.fd, buf, oob, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return matters, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS): // some are lost: whatever they were
			matters = true
			continue
		case err != nil:
			return false, fmt.Errorf("read netlink: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return false, fmt.Errorf("read netlink: %w", err)
		}
		for _, m := range msgs {
			matters = h.concerns(m, nsidOf(oob[:oobn])) || matters
		}
	}
}

// nsidOf reads which network namespace a message is from.
func nsidOf(oob []byte) int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_NETLINK && m.Header.Type == unix.NETLINK_LISTEN_ALL_NSID && len(m.Data) >= 4 {
			return int(int32(binary.NativeEndian.Uint32(m.Data)))
		}
	}
	return -1
}

// concerns tells whether a message is about a parent, one of its
// sub-interfaces, or an address that the host has.
func (h *Host) concerns(m syscall.NetlinkMessage, nsid int) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Data) < unix.SizeofIfInfomsg {
			return false
		}
		index := int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
		k := h.watch.devices[device{nsid, index}]
		if k != nil && k.starts(binary.NativeEndian.Uint32(m.Data[8:])) {
			h.watch.announce(k.leg)
			h.watch.parents[index] = h.watch.parents[index] || nsid < 0
		}
		if nsid >= 0 {
			return k != nil
		}
		attrs := m.Data[unix.SizeofIfInfomsg:]
		if event := nested(attrs, unix.IFLA_EVENT); k != nil && len(event) == 4 &&
			binary.NativeEndian.Uint32(event) == unix.IFLA_EVENT_NOTIFY_PEERS {
			h.watch.parents[index] = true // a bond has another active port, say
		}
		name := unix.ByteSliceToString(nested(attrs, unix.IFLA_IFNAME))
		_, _, leg := parseLeg(name)
		return k != nil || leg /* a new one's */ || h.watch.gone[name]
	case unix.RTM_DELQDISC, unix.RTM_DELTFILTER: // of which ours may have been one
		return nsid < 0 && len(m.Data) >= sizeofTcMsg && h.watch.devices[device{-1, int(int32(binary.NativeEndian.Uint32(m.Data[4:])))}] != nil
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return false
		}
		k := h.watch.devices[device{nsid, int(binary.NativeEndian.Uint32(m.Data[4:]))}]
		if k != nil {
			h.watch.followAddr(k, m)
		}
		return nsid < 0 || k != nil
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE: // of gateways
		if nsid >= 0 || len(m.Data) < unix.SizeofRtMsg {
			return false
		}
		attrs := m.Data[unix.SizeofRtMsg:]
		oif := nested(attrs, unix.RTA_OIF)
		return len(oif) == 4 && nested(attrs, unix.RTA_GATEWAY) != nil &&
			h.watch.devices[device{-1, int(binary.NativeEndian.Uint32(oif))}] != nil
	}
	return false
}

// starts tells that a device has come up or has its carrier again.
func (k *known) starts(flags uint32) bool {
	was := k.running
	k.running = running(flags)
	return k.running && !was
}

// followAddr has an inner leg announced that has another address. Messages come also
// when the lifetime of one that it has is changed.
func (w *watched) followAddr(k *known, m syscall.NetlinkMessage) {
	if k.leg == (leg{}) {
		return
	}
	a, prefix, flags, err := addrOf(m.Data)
	if err != nil || !a.IsValid() || prefix == 0 {
		return
	}
	if m.Header.Type == unix.RTM_DELADDR {
		delete(k.addrs, a)
		return
	}
	if !unsettled(flags) && !k.addrs[a] {
		k.addrs[a] = true
		w.announce(k.leg)
	}
}

// notified announces all addresses on a parent that was told to, as the
// kernel's drivers do.
func (p *parent) notified() {
	if p.h.watch == nil || !p.h.watch.parents[p.rec.Index] {
		return
	}
	delete(p.h.watch.parents, p.rec.Index)
	p.announceAll(func(maps.Sub) bool { return true })
}
