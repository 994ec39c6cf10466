package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
)

// Survey is a parent as it is set up, as far as it matters to sub-interfaces,
// and the rung that it stands on or would get.
type Survey struct {
	Name               string
	Kind               string // of device: "device" is a NIC's
	Driver             string // "" where it has none to say
	Up, Carrier        bool
	MTU                int
	RXQueues, TXQueues int
	Offloads           []Offload // those it has, in the order of offloadNames
	XDP                *XDPProgram
	Ingress            []string // programs and filters at tc ingress, in the order they run, by name or kind
	Master             string   // what it is a port of; "" for nothing
	MasterKind         string   // bridge, bond ...
	Children           []Child  // others' devices on it
	Attached           bool     // xvlan has sub-interfaces on it, or is told to stay
	Links              int      // xvlan's sub-interfaces on it
	Rung               Rung
	Tried              bool // native XDP was, by attaching for a moment
}

// Offload is one that the device has.
type Offload struct {
	Name  string
	On    bool
	Fixed bool // it cannot be changed
}

// XDPProgram is what is attached to a device.
type XDPProgram struct {
	Mode string // native, generic or offloaded
	Name string
	Own  bool // it is xvlan's
}

// Child is a device that another driver has made on the parent.
type Child struct {
	Name  string
	Kind  string
	Netns string // "" for the parent's
}

// offloadNames ties the kernel's names of offloads to those of `ethtool -K`.
var offloadNames = []struct{ kernel, name string }{
	{"rx-gro", "gro"},
	{"rx-lro", "lro"},
	{"tx-tcp-segmentation", "tso"},
	{"rx-vlan-hw-parse", "rxvlan"},
}

// Survey looks at a parent. It changes nothing, but that native XDP is tried as
// Probe does if attach says so and nothing of xvlan is on the parent.
func (h *Host) Survey(parent string, attach bool) (*Survey, error) {
	l, err := h.parentLink(parent)
	if err != nil {
		return nil, err
	}
	a := l.Attrs()
	s := &Survey{
		Name: parent, Kind: l.Type(), Driver: driver(l), MTU: a.MTU,
		Up: a.RawFlags&unix.IFF_UP != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		RXQueues: a.NumRxQueues, TXQueues: a.NumTxQueues,
	}
	if err := s.readEthtool(); err != nil {
		return nil, err
	}
	if err := h.readHooks(s, l); err != nil {
		return nil, err
	}
	if a.MasterIndex != 0 {
		master, err := h.nl.LinkByIndex(a.MasterIndex)
		if err != nil {
			return nil, fmt.Errorf("find what %s is a port of: %w", parent, err)
		}
		s.Master, s.MasterKind = master.Attrs().Name, master.Type()
	}
	if s.Children, err = h.children(a.Index); err != nil {
		return nil, err
	}
	return s, h.readRung(s, l, attach)
}

// readRung finds the rung that a parent stands on, or what Probe says.
func (h *Host) readRung(s *Survey, l netlink.Link, attach bool) error {
	parents, err := h.Parents()
	if err != nil {
		return err
	}
	for _, p := range parents {
		if p.Index == l.Attrs().Index {
			s.Attached, s.Links, s.Rung = true, p.Links, Rung{p.Rung, p.Reason}
			return nil
		}
	}
	s.Rung, s.Tried, err = h.tryRung(l, attach)
	return err
}

// readEthtool reads queues and offloads; a device that tells none has none.
func (s *Survey) readEthtool() error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open ethtool: %w", err)
	}
	defer e.Close()
	if c, err := e.GetChannels(s.Name); err == nil {
		s.RXQueues, s.TXQueues = int(c.RxCount+c.CombinedCount), int(c.TxCount+c.CombinedCount)
	}
	features, err := e.FeaturesWithState(s.Name)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read offloads of %s: %w", s.Name, err)
	}
	for _, o := range offloadNames {
		if f, ok := features[o.kernel]; ok {
			s.Offloads = append(s.Offloads, Offload{o.name, f.Active, f.NeverChanged || !f.Available})
		}
	}
	return nil
}

// has tells whether an offload is on, or if on is false, off and can be turned
// on.
func (s *Survey) has(name string, on bool) bool {
	return slices.ContainsFunc(s.Offloads, func(o Offload) bool { return o.Name == name && o.On == on && (on || !o.Fixed) })
}

var xdpModes = map[uint32]string{
	nl.XDP_ATTACHED_DRV: "native", nl.XDP_ATTACHED_SKB: "generic", nl.XDP_ATTACHED_HW: "offloaded",
}

// readHooks reads what is attached to a device where frames come in.
func (h *Host) readHooks(s *Survey, l netlink.Link) error {
	if x := l.Attrs().Xdp; x != nil && x.Attached {
		s.XDP = &XDPProgram{Mode: "native", Name: "one of several"} // a NIC may run one, too
		if mode, ok := xdpModes[x.AttachMode]; ok {
			s.XDP.Mode, s.XDP.Name = mode, programName(ebpf.ProgramID(x.ProgId))
			s.XDP.Own = s.XDP.Name == bpf.XvlanProgXvlanXdp
		}
	}
	tcx, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: ebpf.AttachTCXIngress})
	switch {
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL): // before Linux 6.6
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("list programs of %s: %w: it takes CAP_NET_ADMIN", s.Name, ErrPrivilege)
	case err != nil:
		return fmt.Errorf("list programs of %s: %w", s.Name, err)
	default:
		for _, p := range tcx.Programs {
			s.Ingress = append(s.Ingress, programName(p.ID))
		}
	}
	has, err := h.hasClsact(l.Attrs().Index)
	if err != nil || !has {
		return err
	}
	filters, err := whole(func() ([]netlink.Filter, error) { return h.nl.FilterList(l, netlink.HANDLE_MIN_INGRESS) })
	if err != nil {
		return fmt.Errorf("list filters of %s: %w", s.Name, err)
	}
	for _, f := range filters {
		name := "filter " + f.Type()
		if f.Attrs().Priority == filterPrio {
			name = bpf.XvlanProgXvlanRx
		}
		s.Ingress = append(s.Ingress, name)
	}
	return nil
}

// programName is the name of a loaded program, or its number where it has none
// or has just gone.
func programName(id ebpf.ProgramID) string {
	number := fmt.Sprintf("program %d", id)
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return number
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil || info.Name == "" {
		return number
	}
	return info.Name
}

// childKinds are the drivers whose devices hang on another.
var childKinds = []string{"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan"}

// children finds the devices that others' drivers have made on a parent, in its
// namespace and in those that can be entered.
func (h *Host) children(index int) ([]Child, error) {
	own, err := openSpace("")
	if err != nil {
		return nil, err
	}
	defer own.close()
	all, err := childrenIn(own, index, -1)
	if err != nil {
		return nil, err
	}
	err = h.eachSpace(func(s *space, here int) error {
		if here < 0 { // a device there on a parent there says -1, too
			return nil
		}
		there, err := childrenIn(s, index, here)
		all = append(all, there...)
		return err
	})
	return all, err
}

// childrenIn finds those in one namespace, from which home is the id of the
// parent's.
func childrenIn(s *space, index, home int) ([]Child, error) {
	links, err := whole(s.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices%s: %w", s.where(), err)
	}
	var all []Child
	for _, l := range links {
		a := l.Attrs()
		if a.ParentIndex == index && a.NetNsID == home && slices.Contains(childKinds, l.Type()) && !isKernelLink(l, kernelAlias) {
			all = append(all, Child{a.Name, l.Type(), s.name})
		}
	}
	return all, nil
}

// A Recommendation is what a survey comes down to.
type Recommendation struct {
	Rung     maps.Rung
	Reason   string
	Asked    bool     // it has to be asked for by --datapath
	Warnings []string // what stands in the way, or will be found odd
}

// macsFiltered are the drivers of virtual NICs whose other side commonly lets
// through what is for their own MAC alone.
var macsFiltered = []string{"virtio_net", "vmxnet3", "hv_netvsc", "ena", "gve"}

// Recommend says which rung to stand on, and what to know before.
func (s *Survey) Recommend() Recommendation {
	r := Recommendation{Rung: s.Rung.Rung, Reason: s.Rung.Reason}
	if s.Attached {
		r.Reason = "it stands on it: " + s.Rung.Reason
	} else if s.XDP != nil && s.Rung.Rung == maps.RungXDP {
		r.Rung, r.Asked = maps.RungTC, true
		r.Reason = fmt.Sprintf("a %s XDP program, %s, is in the place of xvlan's", s.XDP.Mode, s.XDP.Name)
	}
	r.Warnings = slices.Concat(s.warnDevice(), s.warnOffloads(), s.warnOthers())
	return r
}

func (s *Survey) warnDevice() []string {
	var all []string
	if !s.Up {
		all = append(all, fmt.Sprintf("it is down: nothing gets through until `ip link set %s up`", s.Name))
	} else if !s.Carrier {
		all = append(all, "it has no carrier: is the cable in?")
	}
	if slices.Contains(macsFiltered, s.Driver) {
		all = append(all, fmt.Sprintf("a NIC of %s is virtual, and what is behind it may carry frames of its own MAC only: "+
			"then allow more there, or use type ipvlan, which has that MAC", s.Driver))
	}
	return all
}

func (s *Survey) warnOffloads() []string {
	var all []string
	if s.has("lro", true) {
		all = append(all, fmt.Sprintf("LRO is on: drivers refuse native XDP beside it, and a sub-interface cannot forward what it has merged; "+
			"GRO does the same without harm: `ethtool -K %s lro off gro on`", s.Name))
	}
	if s.has("gro", false) && s.Kind != "veth" { // a veth's other end sends super-packets as they are
		all = append(all, fmt.Sprintf("GRO is off: bulk TCP comes in frame by frame, which costs more than any rung saves: "+
			"`ethtool -K %s gro on`", s.Name))
	}
	isVLAN := func(c Child) bool { return c.Kind == "vlan" }
	if s.Rung.Rung == maps.RungXDP && s.has("rxvlan", true) && slices.ContainsFunc(s.Children, isVLAN) {
		all = append(all, fmt.Sprintf("rxvlan is on, and XDP does not see the tags that it takes off: with `unknown drop` a VLAN device "+
			"on %s loses what is for a MAC of its own", s.Name))
	}
	return all
}

func (s *Survey) warnOthers() []string {
	var all []string
	if s.XDP != nil && !s.XDP.Own {
		text := fmt.Sprintf("a %s XDP program, %s, is attached: what it drops or redirects no sub-interface gets, and native XDP "+
			"cannot be attached beside it", s.XDP.Mode, s.XDP.Name)
		if s.XDP.Mode == "generic" {
			text += "; a generic one may cost each frame a copy"
		}
		all = append(all, text)
	}
	if others := slices.DeleteFunc(slices.Clone(s.Ingress), func(n string) bool { return n == bpf.XvlanProgXvlanRx }); len(others) > 0 {
		all = append(all, fmt.Sprintf("others are at tc ingress (%d): what they take or accept before xvlan's turn no sub-interface gets", len(others)))
	}
	switch s.MasterKind {
	case "":
	case "bond", "team":
		all = append(all, fmt.Sprintf("it is a port of %s: make that the parent, or sub-interfaces are lost with this port", s.Master))
	default:
		all = append(all, fmt.Sprintf("it is a port of %s (%s): sub-interfaces come first, the rest goes on to it; "+
			"`unknown drop` would cut it off", s.Master, s.MasterKind))
	}
	kernel := 0
	for _, c := range s.Children {
		if c.Kind != "vlan" {
			kernel++
		}
	}
	if kernel > 0 {
		all = append(all, fmt.Sprintf("it carries devices of the kernel's macvlan or ipvlan (%d): they go on working, do not meet "+
			"xvlan's sub-interfaces, and `unknown drop` would cut macvlans off", kernel))
	}
	return all
}
