package loader

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// legMTU is the host leg's: the most a veth takes, so that a frame over the
// parent's MTU reaches xvlan_tx, which drops it with a reason.
const legMTU = 65535

// portLegMTU is the host leg's of a port: the most that lets an XDP program on
// the inner leg have its frames in one buffer each. The rest of what is over the
// parent's MTU is then lost on the way to xvlan_tx, at the inner leg's own cost.
const portLegMTU = 3498

// legName is the host leg's name, derived from what cannot repeat in its
// namespace, the key of the parent's folder and the id: 15 characters at most.
func legName(key int, id maps.ID) string {
	return "xv" + strconv.FormatInt(int64(key), 16) + "-" + strconv.FormatUint(uint64(id), 16)
}

// parseLeg undoes legName; ok is false for any other name.
func parseLeg(name string) (key int, id maps.ID, ok bool) {
	rest, found := strings.CutPrefix(name, "xv")
	a, b, dash := strings.Cut(rest, "-")
	i, err1 := strconv.ParseUint(a, 16, 31)
	d, err2 := strconv.ParseUint(b, 16, 31)
	ok = found && dash && err1 == nil && err2 == nil && legName(int(i), maps.ID(d)) == name
	return int(i), maps.ID(d), ok
}

// randomMAC makes a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac) // never fails, see crypto/rand
	mac[0] = mac[0]&^1 | 2
	return mac
}

// space is a network namespace that a device is to go to.
type space struct {
	file *os.File
	nl   *netlink.Handle
	name string
	own  bool // the Host's own
}

func (s *space) close() {
	if s.nl != nil {
		s.nl.Close()
	}
	s.file.Close()
}

// openSpace finds a namespace by a name under /run/netns, a path or a process
// ID, as `ip link set netns` does; "" is the calling thread's own.
func openSpace(name string) (*space, error) {
	path := filepath.Join("/run/netns", name)
	_, unnamed := os.Stat(path) // a number may be a name, too
	if pid, err := strconv.Atoi(name); err == nil && pid > 0 && unnamed != nil {
		path = fmt.Sprintf("/proc/%d/ns/net", pid)
	} else if name == "" {
		path = "/proc/thread-self/ns/net"
	} else if strings.Contains(name, "/") {
		path = name
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("netns %s: %w; `ip netns` lists the named ones", name, ErrNotFound)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("netns %s: %w: %w", name, ErrPrivilege, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open netns %s: %w", name, err)
	}
	s := &space{file: f, name: name}
	if s.own, err = sameFile(f, "/proc/thread-self/ns/net"); err != nil {
		s.close()
		return nil, err
	}
	if s.own { // needs no privilege to enter
		s.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	} else {
		s.nl, err = handleIn(f)
	}
	if errors.Is(err, ErrAstray) {
		s.close()
		return nil, err
	}
	if errors.Is(err, unix.EPERM) {
		s.close()
		return nil, fmt.Errorf("enter netns %s: %w: it takes CAP_SYS_ADMIN", name, ErrPrivilege)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("netns %s: %w: not a network namespace: %w", name, ErrInvalid, err)
	}
	return s, nil
}

// sameFile tells whether a path still leads to an open file.
func sameFile(f *os.File, path string) (bool, error) {
	a, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("look at open file: %w", err)
	}
	b, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("look at file: %w", err)
	}
	return os.SameFile(a, b), nil
}

// whole makes a dump until no change has come in between: the kernel says so
// when what it has listed may be inconsistent.
func whole[T any](dump func() ([]T, error)) ([]T, error) {
	const tries = 100
	for range tries - 1 {
		if all, err := dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return dump()
}

// free tells by ErrExists that a name is taken in the namespace.
func (s *space) free(name string) error {
	_, err := s.nl.LinkByName(name)
	if err == nil {
		return fmt.Errorf("name %s: %w%s; choose another or delete that device", name, ErrExists, s.where())
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	return fmt.Errorf("look for %s: %w", name, err)
}

// free is space's after what an interrupted command has left there is gone.
func (h *Host) free(s *space, name string) error {
	err := s.free(name)
	if !errors.Is(err, ErrExists) {
		return err
	}
	if swept := h.Sweep(); swept != nil {
		return errors.Join(err, swept)
	}
	return s.free(name)
}

func (s *space) where() string {
	if s.name == "" {
		return ""
	}
	return " in netns " + s.name
}

// configure sets a new device's addresses, which it is to announce, and up
// where it is asked for.
func (s *space) configure(spec *LinkSpec) error {
	addrs := spec.Addrs
	if spec.GiveOnly {
		addrs = nil
	}
	if len(addrs) == 0 && !spec.Up {
		return nil
	}
	l, err := s.nl.LinkByName(spec.Name)
	if err != nil {
		return fmt.Errorf("find %s%s: %w", spec.Name, s.where(), err)
	}
	if err := s.setAddrs(l, spec.Mode, addrs); err != nil {
		return err
	}
	if spec.Up {
		if err := s.nl.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", spec.Name, err)
		}
	}
	return nil
}

// addLegs makes a sub-interface's device: the host leg here, down, and the
// inner leg under the user's name in its namespace.
func (h *Host) addLegs(leg string, in *space, spec *LinkSpec) (index int, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = leg, legMTU
	if spec.Port {
		attrs.MTU = max(portLegMTU, spec.MTU)
	}
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	var pair netlink.Link = vethPair(attrs, in, spec)
	if spec.Netkit {
		pair = netkitPair(attrs, in, spec)
	}
	if err := h.nl.LinkAdd(pair); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("name %s: %w%s", spec.Name, ErrExists, in.where())
		}
		return 0, fmt.Errorf("add %s pair: %w", pair.Type(), err)
	}
	if pair.Attrs().Index == 0 { // LinkAdd has looked for it
		return 0, fmt.Errorf("find host leg %s: %w", leg, ErrNotFound)
	}
	return pair.Attrs().Index, nil
}

var errKernelNetkit = fmt.Errorf("leg netkit: %w: on the kernel rung a device has no legs; leave it out, or ask for datapath tc", ErrUnsupported)

// checkNetkit refuses netkit legs where the kernel has none, and where nothing
// would come of them.
func (h *Host) checkNetkit(spec *LinkSpec) error {
	if !spec.Netkit {
		return nil
	}
	if spec.Port {
		return errNetkitPort
	}
	if reason := h.probeKind("netkit"); reason != "" {
		return fmt.Errorf("leg netkit: %w: it takes netkit, which Linux has from 6.8 on (CONFIG_NETKIT): %s; leave it out for veth", ErrUnsupported, reason)
	}
	return nil
}

// isPair tells the kinds of device that have two ends, as legs are.
func isPair(l netlink.Link) bool { return l.Type() == "veth" || l.Type() == "netkit" }

func vethPair(attrs netlink.LinkAttrs, in *space, spec *LinkSpec) *netlink.Veth {
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         spec.Name,
		PeerHardwareAddr: spec.MAC,
		PeerMTU:          uint32(spec.MTU),
	}
	if !in.own {
		veth.PeerNamespace = netlink.NsFd(in.file.Fd())
	}
	return veth
}

// netkitPair is a pair whose inner leg sends nothing but by a program: without
// one, before it is attached and after, what it sends is dropped.
func netkitPair(attrs netlink.LinkAttrs, in *space, spec *LinkSpec) *netlink.Netkit {
	netkit := &netlink.Netkit{
		LinkAttrs:  attrs,
		Mode:       netlink.NETKIT_MODE_L2,
		Policy:     netlink.NETKIT_POLICY_FORWARD,
		PeerPolicy: netlink.NETKIT_POLICY_BLACKHOLE,
		Scrub:      netlink.NETKIT_SCRUB_DEFAULT, // Linux 6.13; before, as if it were said
		PeerScrub:  netlink.NETKIT_SCRUB_DEFAULT,
	}
	inner := netlink.NewLinkAttrs()
	inner.Name, inner.HardwareAddr, inner.MTU = spec.Name, spec.MAC, spec.MTU
	if !in.own {
		inner.Namespace = netlink.NsFd(in.file.Fd())
	}
	netkit.SetPeerAttrs(&inner)
	return netkit
}

// startLeg sets a host leg up, with the host's stack kept off it, no IPv6 and no
// ARP, and its owner, if it has one, written down. All but IPv6 is one message:
// each has to wait for the kernel's one lock on devices.
func (h *Host) startLeg(leg string, index int, owner string) error {
	path := filepath.Join("/proc/sys/net/ipv6/conf", leg, "disable_ipv6")
	if err := os.WriteFile(path, []byte("1"), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("disable ipv6 on host leg: %w", err)
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	msg.Flags = unix.IFF_UP | unix.IFF_NOARP
	msg.Change = msg.Flags
	req.AddData(msg)
	if owner != "" {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(owner)))
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set host leg up, of owner %q: %w", owner, err)
	}
	return nil
}

// delDevice deletes a device by name; one that is not there is no error.
func (h *Host) delDevice(name string) error {
	l, err := h.nl.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := hurried(func() error { return h.nl.LinkDel(l) }); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// delDevices deletes devices by name, together: those that are there get a group of
// their own, which the kernel deletes as one.
func (h *Host) delDevices(names []string) error {
	group := binary.NativeEndian.Uint32(randomMAC()) | 1 // which is nobody's
	there := 0
	for _, name := range names {
		l, err := h.nl.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := h.nl.LinkSetGroup(l, int(group)); errors.Is(err, unix.ENODEV) {
			continue
		} else if err != nil {
			return fmt.Errorf("set group of %s: %w", name, err)
		}
		there++
	}
	if there == 0 {
		return nil
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	err := hurried(func() error {
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %d devices: %w", there, err)
	}
	return nil
}

// removeLegs deletes host legs that no record knows: of a parent whose maps
// were lost with /run.
func (h *Host) removeLegs(key int) error {
	links, err := whole(h.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var legs []string
	for _, l := range links {
		if of, _, ok := parseLeg(l.Attrs().Name); ok && of == key && isPair(l) {
			legs = append(legs, l.Attrs().Name)
		}
	}
	for batch := range slices.Chunk(legs, deletedAtOnce) {
		if err := h.delDevices(batch); err != nil {
			return err
		}
	}
	return nil
}

// isLeg tells whether a device of this index and name is there: one ioctl, as
// this is asked for every sub-interface by every command.
func isLeg(fd, index int, name string) bool {
	ifr, err := unix.NewIfreq("x") // the name is filled in by the kernel
	if err != nil {
		return false
	}
	ifr.SetUint32(uint32(index))
	return unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifr) == nil && ifr.Name() == name
}

// uc adds the MAC to the parent's unicast filter, or removes it. A NIC drops
// foreign unicast otherwise; a device without a filter goes promiscuous.
func (p *parent) uc(mac net.HardwareAddr, add bool) error {
	n := &netlink.Neigh{
		LinkIndex:    p.rec.Index,
		Family:       unix.AF_BRIDGE,
		Flags:        netlink.NTF_SELF,
		State:        netlink.NUD_PERMANENT,
		HardwareAddr: mac,
	}
	if add { // EEXIST: somebody else has added it
		return p.h.nl.NeighAdd(n)
	}
	return p.h.nl.NeighDel(n)
}
