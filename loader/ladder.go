package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// xdpCosts names the drivers whose devices lose something that their users
// need while native XDP is attached, so that it is not taken unasked.
var xdpCosts = map[string]string{
	"veth":       "veth: native XDP would make its peer give up TSO",
	"tun":        "tun: native XDP would turn its receive offloads off",
	"virtio_net": "virtio_net: native XDP would turn its receive offloads off",
}

// noFilter are the kinds whose own fdb makes adding a unicast address to them
// wrong: the default handler is not theirs.
var noFilter = []string{"vxlan"}

// askedFor is the reason of a rung that --datapath chose.
const askedFor = "asked for"

// Rung says what a parent can stand on and why not higher.
type Rung struct {
	maps.Rung
	Reason string
}

// Asked tells whether it is the rung that was asked for, and not one that was
// chosen.
func (r Rung) Asked() bool { return r.Reason == askedFor }

// noBPF says why this process cannot use BPF; "" if it can.
func noBPF() (string, error) {
	const lacks = "BPF takes CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, which this process lacks"
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	switch {
	case errors.Is(err, unix.ENOSYS):
		return "this kernel is built without BPF", nil
	case errors.Is(err, unix.EPERM):
		return lacks, nil
	case err != nil:
		return "", fmt.Errorf("try BPF: %w", err)
	}
	if err := m.Close(); err != nil {
		return "", fmt.Errorf("try BPF: %w", err)
	}
	// A map is not all, and what a program needs is found out from a log only.
	if ok, err := capable(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN); err != nil || !ok {
		return lacks, err
	}
	return "", nil
}

// capable tells whether this process has all capabilities asked for, or for
// those that were once part of it CAP_SYS_ADMIN.
func capable(caps ...uint) (bool, error) {
	var data [2]unix.CapUserData // 32 capabilities each
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	has := func(c uint) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	for _, c := range caps {
		if !has(c) && (c == unix.CAP_NET_ADMIN || !has(unix.CAP_SYS_ADMIN)) {
			return false, nil
		}
	}
	return true, nil
}

// driver names a device's driver as ethtool does; "" where it has none to say.
func driver(l netlink.Link) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, l.Attrs().Name)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}

// choose says which rung a parent is to be tried on first. Attaching may still
// find that xdp cannot be had, see attachRung.
func (h *Host) choose(l netlink.Link, want Datapath) (Rung, error) {
	if want == Kernel {
		return Rung{maps.RungKernel, askedFor}, nil
	}
	reason, err := noBPF()
	if err != nil {
		return Rung{}, err
	}
	switch {
	case reason != "" && want != Auto:
		return Rung{}, fmt.Errorf("datapath %s: %w: %s", want, ErrPrivilege, reason)
	case reason != "":
		return Rung{maps.RungKernel, reason}, nil
	case want == TC:
		return Rung{maps.RungTC, askedFor}, nil
	case want == XDP:
		return Rung{maps.RungXDP, askedFor}, nil
	}
	d := driver(l)
	if d == "" {
		d = l.Type()
	}
	if cost, ok := xdpCosts[d]; ok {
		return Rung{maps.RungTC, cost}, nil
	}
	if l.Type() == "bond" {
		if cost, err := h.bondCosts(l); cost != "" || err != nil {
			return Rung{maps.RungTC, cost}, err
		}
	}
	return Rung{maps.RungXDP, fmt.Sprintf("%s has native XDP", d)}, nil
}

// bondCosts says what native XDP on a bond, which is native XDP on its ports,
// would cost; "" for nothing. One without ports has none to say so yet.
func (h *Host) bondCosts(bond netlink.Link) (string, error) {
	links, err := whole(h.nl.LinkList)
	if err != nil {
		return "", fmt.Errorf("list devices: %w", err)
	}
	none := true
	for _, port := range links {
		if port.Attrs().MasterIndex != bond.Attrs().Index {
			continue
		}
		none = false
		if cost, ok := xdpCosts[driver(port)]; ok {
			return fmt.Sprintf("bond: native XDP would be its port's, %s, %s", port.Attrs().Name, cost), nil
		}
	}
	if none {
		return "bond: it has no ports yet, and native XDP might keep some away", nil
	}
	return "", nil
}

// Probe is what a host, and a parent if one was named, can do.
type Probe struct {
	Kernel   string
	Features []Feature
	Parent   string // "" if none was named
	Driver   string
	Rung     Rung
}

// Feature is one thing that the datapath uses where it is there.
type Feature struct {
	Name   string
	Have   bool
	Detail string // what it is for, or why it is missing
}

// Probe finds out what can be had here. It attaches nothing that stays; native
// XDP is tried on the parent by attaching a program that passes everything,
// for a moment, unless another program is there.
func (h *Host) Probe(parent string) (*Probe, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("read kernel version: %w", err)
	}
	p := &Probe{Kernel: unix.ByteSliceToString(uts.Release[:]), Features: h.features()}
	if parent == "" {
		return p, nil
	}
	l, err := h.parentLink(parent)
	if err != nil {
		return nil, err
	}
	p.Parent, p.Driver = parent, driver(l)
	if p.Rung, _, err = h.tryRung(l, true); err != nil {
		return nil, err
	}
	return p, nil
}

// tryRung finds the rung that a parent would get, and tells whether native XDP
// was tried for that, which it is only if attach says so.
func (h *Host) tryRung(l netlink.Link, attach bool) (rung Rung, tried bool, err error) {
	if rung, err = h.choose(l, Auto); err != nil || rung.Rung != maps.RungXDP {
		return rung, false, err
	}
	if !attach {
		return Rung{maps.RungXDP, "if its driver has native XDP, which was not tried; else tc"}, false, nil
	}
	switch err := tryXDP(l.Attrs().Index); {
	case err == nil:
	case unsupported(err):
		rung = Rung{maps.RungTC, noXDP(err)}
	default:
		rung.Reason = fmt.Sprintf("%s, but not now: %v", rung.Reason, err)
	}
	return rung, true, nil
}

// noXDP says why native XDP cannot be had, in few words.
func noXDP(err error) string {
	var errno unix.Errno
	switch {
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EOPNOTSUPP):
		return "no native XDP: the driver has none"
	case errors.As(err, &errno):
		return fmt.Sprintf("no native XDP: the driver refuses it as the device is set up (%v)", errno)
	}
	return fmt.Sprintf("no native XDP: %v", err)
}

// tryXDP attaches a program that passes everything, and detaches it.
func tryXDP(index int) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.XDP,
		Flags:        unix.BPF_F_XDP_HAS_FRAGS,
		License:      "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("load probe: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: index, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach xdp: %w", err)
	}
	return l.Close()
}

func (h *Host) features() []Feature {
	reason, err := noBPF()
	if err != nil {
		reason = err.Error()
	}
	all := []Feature{have("bpf", reason, "the tc and xdp rungs")}
	all = append(all, have("tcx", probeTCX(), "programs attach by links that others' keep their place beside (Linux 6.6)"))
	all = append(all, have("netkit", h.probeKind("netkit"), "leg netkit (Linux 6.8)"))
	for _, kind := range []string{"macvlan", "ipvlan"} {
		all = append(all, have(kind, h.probeKind(kind), "the kernel rung"))
	}
	ok, err := mounted()
	switch {
	case err != nil:
		reason = err.Error()
	case ok:
		reason = ""
	default:
		reason = "mounted with the first parent"
		if private, err := privateMounts(); err == nil && private {
			reason = "not mounted, and this is a mount namespace of its own"
		}
	}
	return append(all, have("bpffs", reason, pinRoot))
}

func have(name, missing, use string) Feature {
	if missing != "" {
		return Feature{Name: name, Detail: missing}
	}
	return Feature{Name: name, Have: true, Detail: use}
}

// probeTCX says why tcx links cannot be had; "" if they can.
func probeTCX() string {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		License:      "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1 /* TCX_NEXT */), asm.Return()},
	})
	if err != nil {
		return err.Error()
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Program: prog, Interface: 1, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return "Linux 6.6 or later has it; clsact filters do instead"
	}
	if err != nil {
		return err.Error()
	}
	if err := l.Close(); err != nil {
		return err.Error()
	}
	return ""
}

// probeKind says why a driver of the kernel's cannot be had; "" if it can. It
// asks for a device on the loopback device, or of a netkit for one in a mode that
// there is none of, which the drivers refuse with EINVAL, where a kernel without
// the driver says EOPNOTSUPP.
func (h *Host) probeKind(kind string) string {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "xvprobe", 1
	var l netlink.Link
	switch kind {
	case "macvlan":
		l = &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}
	case "ipvlan":
		l = &netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2}
	case "netkit":
		l = &netlink.Netkit{LinkAttrs: attrs, Mode: 1 << 16}
	}
	err := h.nl.LinkAdd(l)
	switch {
	case err == nil:
		return fmt.Sprintf("unexpected: made one: %v", h.nl.LinkDel(l))
	case errors.Is(err, unix.EINVAL):
		return ""
	case errors.Is(err, unix.EOPNOTSUPP):
		return "this kernel is built without it"
	}
	return err.Error()
}

// parentLink finds a parent and refuses devices that cannot be one.
func (h *Host) parentLink(name string) (netlink.Link, error) {
	l, err := h.nl.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("parent %s: %w: no such device in this network namespace; `ip link` lists them", name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("find parent %s: %w", name, err)
	}
	if err := checkParent(l); err != nil {
		return nil, err
	}
	return l, nil
}

// checkParent refuses devices that cannot be a parent.
func checkParent(l netlink.Link) error {
	attrs := l.Attrs()
	name := attrs.Name
	if attrs.RawFlags&unix.IFF_LOOPBACK != 0 {
		return fmt.Errorf("parent %s: %w: a loopback device has no wire; name an Ethernet device", name, ErrInvalid)
	}
	if attrs.EncapType != "ether" || len(attrs.HardwareAddr) != 6 {
		return fmt.Errorf("parent %s: %w: its link type is %s; name an Ethernet device", name, ErrInvalid, attrs.EncapType)
	}
	if _, _, ok := parseLeg(name); ok && isPair(l) {
		return fmt.Errorf("parent %s: %w: it is the host leg of a sub-interface; name its parent", name, ErrInvalid)
	}
	if l.Type() == "ipvlan" || l.Type() == "ipvtap" {
		return fmt.Errorf("parent %s: %w: it is an ipvlan, which receives nothing but what is for its own addresses; name its parent",
			name, ErrUnsupported)
	}
	return nil
}

// Candidates lists the devices of this namespace that can be parents.
func (h *Host) Candidates() ([]netlink.Link, error) {
	links, err := whole(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool { return checkParent(l) != nil }), nil
}

// filters tells whether a device takes MACs besides its own.
func filters(l netlink.Link) bool {
	return !slices.Contains(noFilter, l.Type()) && !ownMACOnly(l)
}

// ownMACOnly tells the parents that frames for no other MAC come to: macvlans.
// One in passthru mode gets all that its own parent does.
func ownMACOnly(l netlink.Link) bool {
	switch m := l.(type) {
	case *netlink.Macvlan:
		return m.Mode != netlink.MACVLAN_MODE_PASSTHRU
	case *netlink.Macvtap:
		return m.Mode != netlink.MACVLAN_MODE_PASSTHRU
	}
	return false
}
