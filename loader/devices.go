package loader

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// ownSpace is the id of the own network namespace.
const ownSpace = -1

// manyDevices is from how many devices on a list of all devices is asked for,
// instead of for each of them. Others in their namespace are on it, too.
const manyDevices = 16

// device reads a device in a namespace by that namespace's id, which needs no
// way to open it (Linux 4.20). A negative id is the own namespace. The error is
// unix.ENODEV where there is no such device.
func (h *Host) device(nsid, index int) (netlink.Link, error) {
	if l := h.listed[max(nsid, ownSpace)][index]; l != nil {
		return l, nil
	}
	if nsid < 0 {
		l, err := h.nl.LinkByIndex(index)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil, unix.ENODEV
		}
		return l, err
	}
	msgs, err := linkRequest(nsid, index, 0).Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, err
	}
	if len(msgs) != 1 {
		return nil, fmt.Errorf("read device %d: %d answers", index, len(msgs))
	}
	return netlink.LinkDeserialize(nil, msgs[0])
}

func linkRequest(nsid, index, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, flags)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	if nsid >= 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(nsid))))
	}
	return req
}

// listDevices lists the legs of these sub-interfaces for device, which asks for
// no more than the list has not, until forgetDevices.
func (h *Host) listDevices(subs []maps.Sub) error {
	active := 0
	for _, s := range subs {
		if s.State == maps.Active {
			active++
		}
	}
	if active < manyDevices {
		return nil
	}
	here, err := list(ownSpace)
	if err != nil {
		return err
	}
	h.listed = map[int]map[int]netlink.Link{ownSpace: here}
	there := map[int]int{} // how many inner legs, by namespace
	for _, s := range subs {
		if leg := here[s.Leg]; s.State == maps.Active && leg != nil && leg.Attrs().NetNsID >= 0 {
			there[leg.Attrs().NetNsID]++
		}
	}
	for nsid, n := range there {
		if n < manyDevices {
			continue
		}
		if h.listed[nsid], err = list(nsid); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) forgetDevices() { h.listed = nil }

// list lists the devices of a namespace by their indexes. Some may be missing
// that come or go at the time; a namespace that is gone has none.
func list(nsid int) (map[int]netlink.Link, error) {
	msgs, err := linkRequest(nsid, 0, unix.NLM_F_DUMP).Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if errors.Is(err, unix.EINVAL) && nsid >= 0 {
		return nil, nil
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	all := make(map[int]netlink.Link, len(msgs))
	for _, m := range msgs {
		l, err := netlink.LinkDeserialize(nil, m)
		if err != nil {
			return nil, fmt.Errorf("list devices: %w", err)
		}
		all[l.Attrs().Index] = l
	}
	return all, nil
}

// kernelDevices lists the devices of the kernel's drivers that there are in a
// namespace, among however many others.
func (s *space) kernelDevices() (all []netlink.Link, err error) {
	for _, kind := range []maps.Kind{maps.Macvlan, maps.Ipvlan} {
		some, err := whole(func() ([]netlink.Link, error) { return s.ofKind(kind.String()) })
		if err != nil {
			return nil, fmt.Errorf("list devices of type %s%s: %w", kind, s.where(), err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// ofKind lists the devices of one kind. A kernel that does not know it lists all
// devices, as the first of them shows, and the rest is left unread.
func (s *space) ofKind(kind string) (all []netlink.Link, err error) {
	sock, err := s.socket()
	if err != nil {
		return nil, err
	}
	defer sock.Close()
	req := linkRequest(ownSpace, 0, unix.NLM_F_DUMP)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
	req.AddData(info)
	if err := sock.Send(req); err != nil {
		return nil, err
	}
	for interrupted := false; ; {
		msgs, _, err := sock.Receive()
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			interrupted = interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			if m.Header.Type == unix.NLMSG_DONE || m.Header.Type == unix.NLMSG_ERROR {
				if len(m.Data) >= 4 {
					if errno := -int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
						return nil, unix.Errno(errno)
					}
				}
				if interrupted {
					return nil, netlink.ErrDumpInterrupted
				}
				return all, nil
			}
			l, err := netlink.LinkDeserialize(nil, m.Data)
			if err != nil {
				return nil, err
			}
			if l.Type() != kind {
				return nil, nil
			}
			all = append(all, l)
		}
	}
}
