package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// The alias of a device of the kernel rung, which has no maps to know it by. It
// goes with the device through namespaces. Behind kernelAlias stands the reason
// for the rung, and its owner; pendingAlias marks a device that is not complete.
const (
	kernelAlias  = "xvlan kernel: "
	pendingAlias = "xvlan pending"
)

// kernelLink is a sub-interface on the kernel rung.
type kernelLink struct {
	link  netlink.Link
	space string // its netns, as openSpace takes it; "" for the parent's
	flags uint16 // of a macvlan
	queue Queue  // likewise
}

// addKernel makes a device of the kernel's own driver. It gets a name of ours
// first, then the alias, and moves to its own name and namespace in one step,
// so that what an interrupted command leaves can be told from others' devices.
// That the alias ceases to say PENDING completes it.
func (h *Host) addKernel(parent netlink.Link, rung Rung, in *space, spec *LinkSpec) (err error) {
	if err := h.removePending(parent.Attrs().Index); err != nil {
		return err
	}
	siblings, err := h.kernelLinks(parent.Attrs().Index)
	if err != nil {
		return err
	}
	if err := checkKernel(parent, spec, siblings); err != nil {
		return err
	}
	l := newKernelLink(parent.Attrs().Index, spec)
	temp := l.Attrs().Name
	if err := h.nl.LinkAdd(l); err != nil {
		return h.explainKernel(err, parent, spec)
	}
	undo := func() error { return h.delDevice(temp) }
	defer func() {
		if err != nil {
			err = errors.Join(err, undo())
		}
	}()
	made, err := h.nl.LinkByName(temp)
	if err != nil {
		return fmt.Errorf("find %s: %w", temp, err)
	}
	if err := h.nl.LinkSetAlias(made, pendingAlias); err != nil {
		return fmt.Errorf("mark %s: %w", spec.Name, err)
	}
	own, err := openSpace("")
	if err != nil {
		return err
	}
	defer own.close()
	if err := h.setFlags(own, made, spec); err != nil {
		return err
	}
	if err := moveAs(made.Attrs().Index, in, spec.Name); err != nil {
		return err
	}
	undo = func() error { return in.del(spec.Name) }
	if err := in.configure(spec); err != nil {
		return err
	}
	return in.mark(spec.Name, aliasOf(rung.Reason, spec.Owner))
}

// mark gives a device its alias.
func (s *space) mark(name, alias string) error {
	l, err := s.nl.LinkByName(name)
	if err == nil {
		err = s.nl.LinkSetAlias(l, alias)
	}
	if err != nil {
		return fmt.Errorf("mark %s%s: %w", name, s.where(), err)
	}
	return nil
}

func newKernelLink(index int, spec *LinkSpec) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = legName(index, 0)
	attrs.ParentIndex = index
	attrs.HardwareAddr = spec.MAC
	attrs.MTU = spec.MTU
	if spec.Kind == maps.Macvlan {
		return &netlink.Macvlan{LinkAttrs: attrs, Mode: kernelModes[spec.Mode]}
	}
	attrs.MTU = 0 // the driver sets the parent's, and takes no other
	return &netlink.IPVlan{LinkAttrs: attrs, Mode: ipvlanModes[spec.Mode], Flag: kernelFlags[spec.class()]}
}

var kernelModes = map[maps.Mode]netlink.MacvlanMode{
	maps.Private:  netlink.MACVLAN_MODE_PRIVATE,
	maps.VEPA:     netlink.MACVLAN_MODE_VEPA,
	maps.Bridge:   netlink.MACVLAN_MODE_BRIDGE,
	maps.Passthru: netlink.MACVLAN_MODE_PASSTHRU,
	maps.Source:   netlink.MACVLAN_MODE_SOURCE,
}

// rawModes are the same as the kernel numbers them.
var rawModes = map[maps.Mode]uint32{
	maps.Private:  nl.MACVLAN_MODE_PRIVATE,
	maps.VEPA:     nl.MACVLAN_MODE_VEPA,
	maps.Bridge:   nl.MACVLAN_MODE_BRIDGE,
	maps.Passthru: nl.MACVLAN_MODE_PASSTHRU,
	maps.Source:   nl.MACVLAN_MODE_SOURCE,
}

var ipvlanModes = map[maps.Mode]netlink.IPVlanMode{
	maps.L2:  netlink.IPVLAN_MODE_L2,
	maps.L3:  netlink.IPVLAN_MODE_L3,
	maps.L3S: netlink.IPVLAN_MODE_L3S,
}

var kernelFlags = map[maps.Class]netlink.IPVlanFlag{
	maps.ClassBridge:  netlink.IPVLAN_FLAG_BRIDGE,
	maps.ClassPrivate: netlink.IPVLAN_FLAG_PRIVATE,
	maps.ClassVEPA:    netlink.IPVLAN_FLAG_VEPA,
}

// The macvlan flags of linux/if_link.h, which the netlink library lacks.
const (
	macvlanNoPromisc = 1
	macvlanNoDst     = 2
)

// setData changes one attribute of a device's driver and nothing else; the
// netlink library would send all that it knows of the device.
func setData(in *space, l netlink.Link, attr int, value []byte) error {
	sock, err := in.socket()
	if err != nil {
		return err
	}
	defer sock.Close()
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: sock}}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(l.Type()))
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(attr, value)
	req.AddData(info)
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// macvlanData reads a macvlan's data, of which the netlink library leaves
// something out: IFLA_INFO_DATA, for nested.
func macvlanData(in *space, l netlink.Link) ([]byte, error) {
	sock, err := in.socket()
	if err != nil {
		return nil, err
	}
	defer sock.Close()
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: sock}}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.Attrs().Index)
	req.AddData(msg)
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, fmt.Errorf("read %s%s: %w", l.Attrs().Name, in.where(), err)
	}
	for _, m := range msgs {
		if value := nested(m[unix.SizeofIfInfomsg:], unix.IFLA_LINKINFO, nl.IFLA_INFO_DATA); value != nil {
			return value, nil
		}
	}
	return nil, nil
}

// readMacvlan reads a macvlan's flags and queue.
func (k *kernelLink) readMacvlan(in *space, l *netlink.Macvlan) error {
	data, err := macvlanData(in, l)
	if err != nil {
		return err
	}
	if flags := nested(data, nl.IFLA_MACVLAN_FLAGS); len(flags) == 2 {
		k.flags = binary.NativeEndian.Uint16(flags)
	}
	length, limit := l.BCQueueLen, defaultLimit
	if value := nested(data, macvlanCutoff); len(value) == 4 {
		limit = int32(binary.NativeEndian.Uint32(value))
	}
	k.queue = Queue{&length, &limit}
	return nil
}

// nested finds an attribute by the way to it; nil if it is not there.
func nested(data []byte, path ...uint16) []byte {
	for _, want := range path {
		attrs, err := nl.ParseRouteAttr(data)
		if err != nil {
			return nil
		}
		i := slices.IndexFunc(attrs, func(a syscall.NetlinkRouteAttr) bool { return a.Attr.Type&nl.NLA_TYPE_MASK == want })
		if i < 0 {
			return nil
		}
		data = attrs[i].Value
	}
	return data
}

// setFlags sets a new macvlan's flags, sources and queue.
func (h *Host) setFlags(own *space, l netlink.Link, spec *LinkSpec) error {
	var flags uint16
	if spec.NoPromisc {
		flags |= macvlanNoPromisc
	}
	if spec.Source.NoDst {
		flags |= macvlanNoDst
	}
	if flags != 0 {
		if err := setData(own, l, nl.IFLA_MACVLAN_FLAGS, nl.Uint16Attr(flags)); err != nil {
			return fmt.Errorf("set macvlan flags: %w", err)
		}
	}
	for _, mac := range spec.Source.MACs {
		if err := h.nl.MacvlanMACAddrAdd(l, mac); err != nil {
			return fmt.Errorf("macaddr %s: %w", mac, err)
		}
	}
	return spec.Queue.set(own, l)
}

// checkKernel refuses what the kernel's drivers cannot do.
func checkKernel(parent netlink.Link, spec *LinkSpec, siblings []kernelLink) error {
	if spec.Port {
		return errKernelPort
	}
	if spec.Netkit {
		return errKernelNetkit
	}
	if spec.DHCP != nil && *spec.DHCP {
		return errKernelDHCP
	}
	if spec.Host {
		return errKernelHost
	}
	if len(spec.Via) > 0 {
		return errKernelVia
	}
	if spec.VLAN.Of(VLAN{}) != (VLAN{}) {
		return errKernelVLAN
	}
	if spec.Guard.Of(maps.Guard{}).Active() {
		return errKernelGuard
	}
	if spec.Kind == maps.Ipvlan && spec.MAC != nil {
		return fmt.Errorf("address %s: %w: on the kernel rung an ipvlan has its parent's MAC; leave it out", spec.MAC, ErrUnsupported)
	}
	if spec.Kind == maps.Ipvlan && spec.MTU != parent.Attrs().MTU {
		return fmt.Errorf("mtu %d: %w: on the kernel rung an ipvlan has its parent's MTU; leave it out", spec.MTU, ErrUnsupported)
	}
	for _, l := range siblings {
		if spec.MAC != nil && l.link.Attrs().HardwareAddr.String() == spec.MAC.String() {
			return fmt.Errorf("address %s: %w: a sibling on %s has it; leave it out for a random one", spec.MAC, ErrExists, parent.Attrs().Name)
		}
		if l.link.Type() != spec.Kind.String() {
			return fmt.Errorf("type %s: %w: on the kernel rung a parent takes one kind, and %s has %s on it",
				spec.Kind, ErrUnsupported, parent.Attrs().Name, l.link.Type())
		}
		if v, ok := l.link.(*netlink.IPVlan); ok && (v.Mode != ipvlanModes[spec.Mode] || v.Flag != kernelFlags[spec.class()]) {
			return fmt.Errorf("mode %s %s: %w: on the kernel rung all ipvlans of a parent have one mode and flag, and those on %s have others",
				spec.Mode, spec.class(), ErrUnsupported, parent.Attrs().Name)
		}
	}
	return nil
}

// explainKernel gives the driver's error its meaning.
func (h *Host) explainKernel(err error, parent netlink.Link, spec *LinkSpec) error {
	name := parent.Attrs().Name
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("type %s: %w: this kernel is built without %[1]s, and the kernel rung needs it", spec.Kind, ErrUnsupported)
	case errors.Is(err, unix.EINVAL) && spec.Mode == maps.Passthru:
		return fmt.Errorf("mode passthru: %w: it leaves nothing for siblings, and %s has some", ErrBusy, name)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("parent %s: %w: another driver (bridge, bond, macvlan, ipvlan) receives on it", name, ErrBusy)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("address %s: %w on %s", spec.MAC, ErrExists, name)
	}
	return fmt.Errorf("add kernel %s on %s: %w", spec.Kind, name, err)
}

// moveAs gives a device its namespace and its name in one message, which the
// netlink library does not offer.
func moveAs(index int, in *space, name string) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	if !in.own {
		req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(in.file.Fd()))))
	}
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("name %s: %w%s", name, ErrExists, in.where())
	}
	if err != nil {
		return fmt.Errorf("name device %s%s: %w", name, in.where(), err)
	}
	return nil
}

// del deletes a device by name, if it is one that is being made.
func (s *space) del(name string) error {
	l, err := s.nl.LinkByName(name)
	if err != nil || !isKernelLink(l, pendingAlias) {
		return nil // not there, or not ours
	}
	if err := s.nl.LinkDel(l); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// removePending removes the devices on a parent whose making was interrupted.
// The caller holds the lock.
func (h *Host) removePending(index int) error {
	if err := h.delDevice(legName(index, 0)); err != nil { // without its own name yet
		return err
	}
	pending, err := h.findKernel(index, pendingAlias)
	if err != nil {
		return err
	}
	for _, k := range pending {
		if err := h.delKernel(k); err != nil {
			return err
		}
	}
	return nil
}

// sweepKernel is removePending for all parents that nobody is working on.
func (h *Host) sweepKernel() error {
	pending, err := h.findKernel(0, pendingAlias)
	if err != nil {
		return err
	}
	own, err := openSpace("")
	if err != nil {
		return err
	}
	defer own.close()
	links, err := own.kernelDevices()
	if err != nil {
		return err
	}
	parents := map[int]bool{}
	for _, k := range pending {
		parents[k.link.Attrs().ParentIndex] = true
	}
	for _, l := range links {
		if index, id, ok := parseLeg(l.Attrs().Name); ok && id == 0 {
			parents[index] = true
		}
	}
	for index := range parents {
		f, _, err := h.folderOf(index)
		if err != nil {
			return err
		}
		unlock, err := flock(f.String(), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return err
		}
		err = h.removePending(index)
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// kernelLinks finds a parent's sub-interfaces on the kernel rung, in its own
// namespace and in the named ones; index 0 stands for every parent.
func (h *Host) kernelLinks(index int) ([]kernelLink, error) {
	return h.findKernel(index, kernelAlias)
}

// findKernel is kernelLinks for the devices whose alias begins with this one.
func (h *Host) findKernel(index int, alias string) ([]kernelLink, error) {
	own, err := openSpace("")
	if err != nil {
		return nil, err
	}
	defer own.close()
	all, err := kernelLinksIn(own, index, alias, -1)
	if err != nil {
		return nil, err
	}
	err = h.eachSpace(func(s *space, here int) error {
		if here < 0 { // a device there on a parent there says -1, too
			return nil
		}
		there, err := kernelLinksIn(s, index, alias, here)
		all = append(all, there...)
		return err
	})
	return all, err
}

// kernelLinksIn finds those in one namespace, from which home is the id of the
// parent's.
func kernelLinksIn(s *space, index int, alias string, home int) ([]kernelLink, error) {
	links, err := s.kernelDevices()
	if err != nil {
		return nil, err
	}
	var all []kernelLink
	for _, l := range links {
		if !isKernelLink(l, alias) || l.Attrs().NetNsID != home || index != 0 && l.Attrs().ParentIndex != index {
			continue
		}
		k := kernelLink{link: l, space: s.name}
		if m, ok := l.(*netlink.Macvlan); ok {
			if err := k.readMacvlan(s, m); err != nil {
				return nil, err
			}
		}
		all = append(all, k)
	}
	return all, nil
}

// kernelParents lists the parents that have sub-interfaces on the kernel rung.
func (h *Host) kernelParents() ([]ParentInfo, error) {
	links, err := h.kernelLinks(0)
	if err != nil {
		return nil, err
	}
	var all []ParentInfo
	for _, k := range links {
		index := k.link.Attrs().ParentIndex
		i := slices.IndexFunc(all, func(p ParentInfo) bool { return p.Index == index })
		if i >= 0 {
			all[i].Links++
			continue
		}
		l, err := h.nl.LinkByIndex(index)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue // gone since, and its sub-interfaces with it
		}
		if err != nil {
			return nil, fmt.Errorf("find parent of %s: %w", k.link.Attrs().Name, err)
		}
		a := l.Attrs()
		all = append(all, ParentInfo{Links: 1, folderKey: index, Parent: maps.Parent{
			Index: index, MTU: a.MTU, Rung: maps.RungKernel, MAC: a.HardwareAddr, Name: a.Name, Reason: k.reason(),
		}})
	}
	return all, nil
}

func isKernelLink(l netlink.Link, alias string) bool {
	return (l.Type() == "macvlan" || l.Type() == "ipvlan") && strings.HasPrefix(l.Attrs().Alias, alias)
}

// delKernel deletes a sub-interface of the kernel rung.
func (h *Host) delKernel(k kernelLink) error {
	s, err := k.open()
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.nl.LinkDel(k.link); err != nil {
		return fmt.Errorf("delete %s: %w", k.link.Attrs().Name, err)
	}
	return nil
}

// open opens the namespace that a device has been found in, and makes sure that
// it is still there: what led to that may lead elsewhere now.
func (k kernelLink) open() (*space, error) {
	s, _, err := k.find()
	return s, err
}

// again reads the device anew.
func (k kernelLink) again() (netlink.Link, error) {
	s, now, err := k.find()
	if err != nil {
		return nil, err
	}
	s.close()
	return now, nil
}

func (k kernelLink) find() (*space, netlink.Link, error) {
	s, err := openSpace(k.space)
	if err != nil {
		return nil, nil, err
	}
	now, err := s.nl.LinkByIndex(k.link.Attrs().Index)
	if err == nil && now.Attrs().Alias == k.link.Attrs().Alias && now.Attrs().ParentIndex == k.link.Attrs().ParentIndex {
		return s, now, nil
	}
	s.close()
	return nil, nil, fmt.Errorf("sub-interface %s: %w: it has just left netns %s", k.link.Attrs().Name, ErrNotFound, k.space)
}
