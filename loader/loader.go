// Package loader builds sub-interfaces: it chooses a parent's rung on the
// ladder, attaches and pins the programs, makes the devices over netlink and
// enters them into the maps. No process has to stay for packets to flow.
//
// All calls act in the network namespace of the calling thread, which the
// caller has locked (runtime.LockOSThread) if it has switched it.
package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// What a caller can act on. Errors wrap these and name what was wrong.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already taken")
	ErrInvalid     = errors.New("not valid")
	ErrBusy        = errors.New("in use by somebody else")
	ErrPrivilege   = errors.New("not permitted")
	ErrUnsupported = errors.New("not supported here")
	ErrTransient   = errors.New("would vanish with this command")
)

// DefaultCapacity is how many sub-interfaces a parent is made for when nothing
// else is asked for.
const DefaultCapacity = 1024

// Host is the host's side of xvlan in one network namespace.
type Host struct {
	log    *slog.Logger
	nl     *netlink.Handle
	cookie uint64 // of the namespace

	legacyTC bool          // attach by clsact filters even where tcx can be had; set by tests
	repair   time.Duration // in the place of RepairTime, if it is not 0; set by tests
	glanced  int           // how many sub-interfaces a glance looks at; changed by tests

	stays bool     // see Serve
	watch *watched // what Serve listens to; nil for everybody else

	listed map[int]map[int]netlink.Link // see listDevices
}

// Open prepares a Host for the calling thread's network namespace. It changes
// nothing and needs no privilege.
func Open(log *slog.Logger) (*Host, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	cookie, err := netnsCookie()
	if err != nil {
		nl.Close()
		return nil, err
	}
	return &Host{log: log, nl: nl, cookie: cookie, glanced: glanced}, nil
}

// Close lets go of the Host; what it built stays.
func (h *Host) Close() { h.nl.Close() }

// netnsCookie returns the kernel's number for the calling thread's network
// namespace, unique until reboot (Linux 5.14).
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read netns cookie: %w", err)
	}
	return cookie, nil
}

// Datapath is a rung asked for, or Auto.
type Datapath string

// The datapaths that can be asked for.
const (
	Auto   Datapath = ""
	XDP    Datapath = "xdp"
	TC     Datapath = "tc"
	Kernel Datapath = "kernel"
)

// LinkSpec describes a sub-interface to be made.
type LinkSpec struct {
	Parent    string
	Name      string
	Kind      maps.Kind
	Mode      maps.Mode
	Flag      maps.Class       // of an ipvlan: ClassBridge (also 0), ClassPrivate or ClassVEPA
	Source    SourceSpec       // of a macvlan in source mode
	Queue     Queue            // of a macvlan
	NoPromisc bool             // of a macvlan in passthru mode: leave the parent's promiscuity alone
	MAC       net.HardwareAddr // nil: a random one
	Addrs     []netip.Prefix   // set on the device and given to it in the maps
	GiveOnly  bool             // Addrs are left for others to set on the device
	MTU       int              // 0: the parent's
	Netns     string           // "", a name under /run/netns, a path, or a process ID
	Up        bool
	Port      bool           // unicast is to pass an XDP program on the device: see ports.go
	Netkit    bool           // its legs are a netkit pair instead of veth (Linux 6.8)
	Host      bool           // it and the host are to reach each other: see host.go
	Via       []netip.Prefix // what it is to reach by way of the host: see via.go
	DHCP      *bool          // of an ipvlan: whether its DHCP clients are helped; nil: in mode l2
	Guard     GuardSpec
	VLAN      VLANSpec
	Datapath  Datapath
	Owner     string // for whom it is made, to be found by; see owner.go
}

// SourceSpec is what a macvlan in source mode is given.
type SourceSpec struct {
	MACs  []net.HardwareAddr // whose frames it gets
	NoDst bool               // and nobody else does
}

// class is what mode and flag come down to.
func (s *LinkSpec) class() maps.Class { return classOf(s.Mode, s.Flag) }

func classOf(mode maps.Mode, flag maps.Class) maps.Class {
	switch mode {
	case maps.Bridge:
		return maps.ClassBridge
	case maps.VEPA:
		return maps.ClassVEPA
	case maps.Private, maps.Passthru:
		return maps.ClassPrivate
	case maps.Source:
		return maps.ClassSource
	}
	if flag == 0 {
		return maps.ClassBridge
	}
	return flag
}

// Unknown is what becomes of unicast that is neither the parent's nor a
// sub-interface's.
type Unknown string

// The policies for it.
const (
	UnknownPass Unknown = "pass" // on to what else hangs on the parent, and to the host
	UnknownDrop Unknown = "drop"
)

// AttachSpec describes how a parent is to be attached.
type AttachSpec struct {
	Datapath Datapath
	Capacity uint32  // 0: DefaultCapacity
	Unknown  Unknown // "": as it is, or UnknownPass
	Keep     bool    // stay attached when the last sub-interface goes
}

// minMTU is the least an IPv4 device can have, RFC 791.
const minMTU = 68

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// check finds what is wrong with a spec by itself and against its parent.
func (s *LinkSpec) check(parent netlink.Link) error {
	if err := checkName(s.Name); err != nil {
		return err
	}
	attrs := parent.Attrs()
	if s.Kind == maps.Macvlan && s.Mode != maps.Passthru && ownMACOnly(parent) {
		return fmt.Errorf("parent %s: %w: it is a %s, which receives no MAC but its own; use type ipvlan, or its own parent",
			attrs.Name, ErrUnsupported, parent.Type())
	}
	if s.MAC != nil {
		if err := checkMAC(s.MAC); err != nil {
			return err
		}
		if s.MAC.String() == attrs.HardwareAddr.String() {
			return fmt.Errorf("address %s: %w: it is the parent's; leave it out for a random one", s.MAC, ErrExists)
		}
	}
	if s.MAC != nil && s.Mode == maps.Passthru {
		return fmt.Errorf("address %s: %w: a passthru sub-interface has its parent's; leave it out", s.MAC, ErrUnsupported)
	}
	for _, mac := range s.Source.MACs {
		if err := checkMAC(mac); err != nil {
			return fmt.Errorf("macaddr: %w", err)
		}
	}
	if err := checkOwner(s.Owner); err != nil {
		return err
	}
	if err := checkDHCP(s.DHCP, s.Mode); err != nil {
		return err
	}
	if s.Host {
		if err := canHost("host on", s.Mode, s.class()); err != nil {
			return err
		}
	}
	if err := checkVia(s.Via, s.Mode, s.class()); err != nil {
		return err
	}
	v := s.VLAN.Of(VLAN{})
	if err := v.suits(s.Mode, s.Host || len(s.Via) > 0, s.Guard.Of(maps.Guard{})); err != nil {
		return err
	}
	if err := v.holds(addrsOf(s.Addrs)); err != nil {
		return err
	}
	if s.Port {
		if err := v.canPort(); err != nil {
			return err
		}
	}
	if s.MTU != 0 && (s.MTU < minMTU || s.MTU > attrs.MTU) {
		return fmt.Errorf("mtu %d: %w: %s allows %d to %d", s.MTU, ErrInvalid, attrs.Name, minMTU, attrs.MTU)
	}
	return checkAddrs(s.Addrs)
}

// checkDHCP refuses to help where DHCP does not pass, or needs no help.
func checkDHCP(on *bool, mode maps.Mode) error {
	switch {
	case on == nil || mode == maps.L2:
		return nil
	case !mode.IsIpvlan():
		return fmt.Errorf("dhcp: %w: it is for ipvlans, and a macvlan has a MAC of its own; leave it out", ErrUnsupported)
	case *on:
		return fmt.Errorf("dhcp on: %w: mode %s carries no broadcasts, which DHCP needs; use mode l2", ErrUnsupported, mode)
	}
	return nil
}

var errKernelDHCP = fmt.Errorf("dhcp on: %w: on the kernel rung clients of ipvlans have one MAC, and servers tell them apart by client-id only; leave it out, or ask for datapath tc", ErrUnsupported)

// checkAddrs refuses what cannot be given.
func checkAddrs(addrs []netip.Prefix) error {
	for i, p := range addrs {
		a := p.Addr()
		if !a.IsValid() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() || a == broadcast {
			return fmt.Errorf("addr %s: %w: not a unicast address", p, ErrInvalid)
		}
		if slices.ContainsFunc(addrs[:i], func(q netip.Prefix) bool { return q.Addr() == a }) {
			return fmt.Errorf("addr %s: %w: given twice", p, ErrInvalid)
		}
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("name: %w: give the sub-interface one", ErrInvalid)
	case len(name) >= unix.IFNAMSIZ:
		return fmt.Errorf("name %q: %w: %d characters, at most %d fit", name, ErrInvalid, len(name), unix.IFNAMSIZ-1)
	case name == "." || name == "..":
		return fmt.Errorf("name %q: %w", name, ErrInvalid)
	}
	for _, c := range name {
		// What the kernel's dev_valid_name refuses, and '%', which it expands.
		if c <= ' ' || c == '/' || c == ':' || c == '%' || c == 0x7f {
			return fmt.Errorf("name %q: %w: character %q", name, ErrInvalid, c)
		}
	}
	return nil
}

func checkMAC(mac net.HardwareAddr) error {
	switch {
	case len(mac) != 6:
		return fmt.Errorf("address %s: %w: an Ethernet MAC has 6 bytes", mac, ErrInvalid)
	case mac[0]&1 != 0:
		return fmt.Errorf("address %s: %w: a group address; the first byte must be even", mac, ErrInvalid)
	case mac.String() == "00:00:00:00:00:00":
		return fmt.Errorf("address %s: %w: all zeroes", mac, ErrInvalid)
	}
	return nil
}
