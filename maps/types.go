package maps

import (
	"bytes"
	"fmt"
	"math"
	"net"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
)

// ID names a sub-interface of one parent. 0 is the parent itself.
type ID uint32

// Kind says by what a sub-interface is reached.
type Kind bpf.XvlanSubKind

// The kinds, after the kernel drivers they stand in for.
const (
	Macvlan = Kind(bpf.XvlanSubKindKIND_MACVLAN) // by destination MAC
	Ipvlan  = Kind(bpf.XvlanSubKindKIND_IPVLAN)  // by destination IP, behind the parent's MAC
)

func (k Kind) String() string {
	switch k {
	case Macvlan:
		return "macvlan"
	case Ipvlan:
		return "ipvlan"
	}
	return fmt.Sprintf("kind %d", uint32(k))
}

// Mode is a sub-interface's mode, as its kernel driver names it.
type Mode bpf.XvlanSubMode

// The modes: macvlan's, then ipvlan's.
const (
	Private  = Mode(bpf.XvlanSubModeMODE_PRIVATE)
	VEPA     = Mode(bpf.XvlanSubModeMODE_VEPA)
	Bridge   = Mode(bpf.XvlanSubModeMODE_BRIDGE)
	Passthru = Mode(bpf.XvlanSubModeMODE_PASSTHRU)
	Source   = Mode(bpf.XvlanSubModeMODE_SOURCE)
	L2       = Mode(bpf.XvlanSubModeMODE_L2)
	L3       = Mode(bpf.XvlanSubModeMODE_L3)
	L3S      = Mode(bpf.XvlanSubModeMODE_L3S)
)

var modeNames = map[Mode]string{
	Private: "private", VEPA: "vepa", Bridge: "bridge", Passthru: "passthru", Source: "source",
	L2: "l2", L3: "l3", L3S: "l3s",
}

// IsIpvlan tells the modes of ipvlan from those of macvlan.
func (m Mode) IsIpvlan() bool { return m == L2 || m.Routed() }

// Routed tells the modes without a link: nothing is resolved, and nothing
// group-addressed is sent or received.
func (m Mode) Routed() bool { return m == L3 || m == L3S }

func (m Mode) String() string {
	if name, ok := modeNames[m]; ok {
		return name
	}
	return fmt.Sprintf("mode %d", uint32(m))
}

// Class is what mode and flags come down to for who meets whom; see enum
// sub_class. For an ipvlan it is its flag.
type Class bpf.XvlanSubClass

// The classes.
const (
	ClassBridge  = Class(bpf.XvlanSubClassCLASS_BRIDGE)
	ClassVEPA    = Class(bpf.XvlanSubClassCLASS_VEPA)
	ClassPrivate = Class(bpf.XvlanSubClassCLASS_PRIVATE)
	ClassSource  = Class(bpf.XvlanSubClassCLASS_SOURCE)
)

func (c Class) String() string {
	switch c {
	case ClassBridge:
		return "bridge"
	case ClassVEPA:
		return "vepa"
	case ClassPrivate:
		return "private"
	case ClassSource:
		return "source"
	}
	return fmt.Sprintf("class %d", uint32(c))
}

// State is how far a sub-interface's making has come.
type State bpf.XvlanSubState

// The states of a record.
const (
	Free    = State(bpf.XvlanSubStateSUB_FREE)
	Pending = State(bpf.XvlanSubStateSUB_PENDING) // being made or removed
	Active  = State(bpf.XvlanSubStateSUB_ACTIVE)
)

// Place is where the inner leg is, as far as delivery cares, or what is at it.
type Place bpf.XvlanSubPlace

// The places.
const (
	Local = Place(bpf.XvlanSubPlacePLACE_LOCAL) // in the parent's netns, or not known to have left it
	Away  = Place(bpf.XvlanSubPlacePLACE_AWAY)  // in another netns
	Stack = Place(bpf.XvlanSubPlacePLACE_HOST)  // anywhere: the host's stack forwards to the leg
	Port  = Place(bpf.XvlanSubPlacePLACE_XDP)   // anywhere: unicast passes an XDP program there
)

// Rung is what a parent's datapath runs on.
type Rung bpf.XvlanRung

// The rungs of the ladder, lowest first.
const (
	RungKernel = Rung(bpf.XvlanRungRUNG_KERNEL)
	RungTC     = Rung(bpf.XvlanRungRUNG_TC)
	RungXDP    = Rung(bpf.XvlanRungRUNG_XDP)
)

func (r Rung) String() string {
	switch r {
	case RungKernel:
		return "kernel"
	case RungTC:
		return "tc"
	case RungXDP:
		return "xdp"
	}
	return fmt.Sprintf("rung %d", uint32(r))
}

// Origin says how an address came to its owner.
type Origin bpf.XvlanDestFlag

// The origins.
const (
	Given    = Origin(bpf.XvlanDestFlagDEST_GIVEN)    // by the administrator
	Learned  = Origin(bpf.XvlanDestFlagDEST_LEARNED)  // from what the owner says of itself
	Reserved = Origin(bpf.XvlanDestFlagDEST_RESERVED) // the host's or a gateway's
	Leased   = Origin(bpf.XvlanDestFlagDEST_LEASED)   // by a DHCP server on the wire
)

func (o Origin) String() string {
	switch o {
	case Given:
		return "given"
	case Learned:
		return "learned"
	case Reserved:
		return "reserved"
	case Leased:
		return "leased"
	}
	return fmt.Sprintf("origin %d", uint32(o))
}

// Verdict is what became of a frame: enum verdict of the packet path.
type Verdict bpf.XvlanVerdict

// The verdicts, see xvlan.h for what each counts and at whom.
const (
	Pass          = Verdict(bpf.XvlanVerdictVERDICT_PASS)
	RX            = Verdict(bpf.XvlanVerdictVERDICT_RX)
	TX            = Verdict(bpf.XvlanVerdictVERDICT_TX)
	DropUnknown   = Verdict(bpf.XvlanVerdictVERDICT_DROP_UNKNOWN)
	DropFanout    = Verdict(bpf.XvlanVerdictVERDICT_DROP_FANOUT)
	DropMalformed = Verdict(bpf.XvlanVerdictVERDICT_DROP_MALFORMED)
	DropMTU       = Verdict(bpf.XvlanVerdictVERDICT_DROP_MTU)
	DropReturned  = Verdict(bpf.XvlanVerdictVERDICT_DROP_RETURNED)
	DropMode      = Verdict(bpf.XvlanVerdictVERDICT_DROP_MODE)
	DropRoute     = Verdict(bpf.XvlanVerdictVERDICT_DROP_ROUTE)
	DropInactive  = Verdict(bpf.XvlanVerdictVERDICT_DROP_INACTIVE)
	LearnDup      = Verdict(bpf.XvlanVerdictVERDICT_LEARN_DUP)
	GroupMany     = Verdict(bpf.XvlanVerdictVERDICT_GROUP_MANY)
	DropSourceMAC = Verdict(bpf.XvlanVerdictVERDICT_DROP_SOURCE_MAC)
	DropSourceIP  = Verdict(bpf.XvlanVerdictVERDICT_DROP_SOURCE_IP)
	DropARP       = Verdict(bpf.XvlanVerdictVERDICT_DROP_ARP)
	DropND        = Verdict(bpf.XvlanVerdictVERDICT_DROP_ND)
	DropRouter    = Verdict(bpf.XvlanVerdictVERDICT_DROP_ROUTER)
	DropDHCP      = Verdict(bpf.XvlanVerdictVERDICT_DROP_DHCP)
	DropTag       = Verdict(bpf.XvlanVerdictVERDICT_DROP_TAG)
	DropEtherType = Verdict(bpf.XvlanVerdictVERDICT_DROP_ETHERTYPE)
	DropRate      = Verdict(bpf.XvlanVerdictVERDICT_DROP_RATE)

	// What the kernel lost after or before the programs' verdict, in frames: a
	// super-packet is one. Package loader reads them off the devices.
	DropRing   = Verdict(bpf.XvlanVerdictVERDICT_MAX)     // sub-interface: handed to it, and its device had no room or took none so long
	DropRingTX = Verdict(bpf.XvlanVerdictVERDICT_MAX) + 1 // sub-interface: sent, and the host leg had no room; no program saw it
	verdicts   = Verdict(bpf.XvlanVerdictVERDICT_MAX) + 2
)

var verdictNames = [verdicts]string{
	Pass:          "pass",
	RX:            "rx",
	TX:            "tx",
	DropUnknown:   "drop_unknown",
	DropFanout:    "drop_fanout",
	DropMalformed: "drop_malformed",
	DropMTU:       "drop_mtu",
	DropReturned:  "drop_returned",
	DropMode:      "drop_mode",
	DropRoute:     "drop_route",
	DropInactive:  "drop_inactive",
	LearnDup:      "learn_dup",
	GroupMany:     "group_many",
	DropSourceMAC: "drop_source_mac",
	DropSourceIP:  "drop_source_ip",
	DropARP:       "drop_arp",
	DropND:        "drop_nd",
	DropRouter:    "drop_router",
	DropDHCP:      "drop_dhcp",
	DropTag:       "drop_tag",
	DropEtherType: "drop_ethertype",
	DropRate:      "drop_rate",
	DropRing:      "drop_ring",
	DropRingTX:    "drop_ring_tx",
}

// String is the verdict's label in metrics and output.
func (v Verdict) String() string {
	if v < verdicts {
		return verdictNames[v]
	}
	return fmt.Sprintf("verdict %d", uint32(v))
}

// IsDrop tells the verdicts that lost a frame.
func (v Verdict) IsDrop() bool { return v < verdicts && strings.HasPrefix(verdictNames[v], "drop_") }

// Verdicts lists all verdicts in the order of their counters.
func Verdicts() []Verdict {
	all := make([]Verdict, verdicts)
	for i := range all {
		all[i] = Verdict(i)
	}
	return all
}

// Counter counts what the wire carries: a GSO packet as its segments, bytes
// with the Ethernet header and without the FCS.
type Counter struct {
	Packets uint64
	Bytes   uint64
}

// Stats holds one Counter a Verdict.
type Stats [verdicts]Counter

// Drops sums the verdicts that lost a frame.
func (s *Stats) Drops() Counter {
	var sum Counter
	for v, c := range s {
		if Verdict(v).IsDrop() {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
	}
	return sum
}

// DroppedRX counts the packets for a sub-interface that did not reach it.
func (s *Stats) DroppedRX() uint64 {
	return s[DropFanout].Packets + s[DropReturned].Packets + s[DropRing].Packets
}

// SentDrops lists the verdicts that lost what a sub-interface sent.
func SentDrops() []Verdict {
	return []Verdict{
		DropMalformed, DropMTU, DropMode, DropRoute, DropInactive, DropSourceMAC, DropSourceIP, DropARP, DropND, DropRouter,
		DropDHCP, DropTag, DropEtherType, DropRate, DropRingTX,
	}
}

// DroppedTX counts the packets it sent that went nowhere.
func (s *Stats) DroppedTX() (sum uint64) {
	for _, v := range SentDrops() {
		sum += s[v].Packets
	}
	return sum
}

// Sub is one sub-interface's record.
type Sub struct {
	State    State
	Gen      uint32 // raised each time the id is taken
	Leg      int    // ifindex of the host leg, in the parent's netns
	Place    Place
	Kind     Kind
	Mode     Mode
	Class    Class
	UCFilter bool // its MAC was added to the parent's unicast filter
	NoDst    bool // source mode: what its list matches is for nobody else
	Promisc  bool // passthru: the parent was made promiscuous for it
	Netkit   bool // its legs are a netkit pair, not veth
	Host     bool // it and the host reach each other
	Trunk    bool // it has part in the VLANs of its Trunk, by their tags
	Via      bool // it reaches networks by way of the host: see Vias
	NoDHCP   bool // of an ipvlan: its DHCP is left as it is
	Guarded  bool // what it sends is looked at first, as its Guard says
	MAC      net.HardwareAddr
	VLAN     VLAN   // of its untagged frames; NoVLAN where it has none
	Name     string // of the inner leg when it was made
	Device   uint64 // where the kernel keeps the inner leg; written by xvlan_meet
}

// Keyed tells whether frames find the sub-interface by its MAC: a passthru one
// has its parent's, and gets what nobody else does.
func (s *Sub) Keyed() bool { return s.Kind == Macvlan && s.Mode != Passthru }

// HearsHost tells whether what the host sends goes to the sub-interface.
func (s *Sub) HearsHost() bool { return s.Host || s.Via }

func (s *Sub) toC() bpf.XvlanSub {
	c := bpf.XvlanSub{
		State: bpf.XvlanSubState(s.State),
		Gen:   s.Gen,
		Leg:   uint32(s.Leg),
		Place: bpf.XvlanSubPlace(s.Place),
		Kind:  bpf.XvlanSubKind(s.Kind),
		Mode:  bpf.XvlanSubMode(s.Mode),
		Class: bpf.XvlanSubClass(s.Class),
		Vlan:  uint32(s.VLAN),

		Device: s.Device,
	}
	if s.UCFilter {
		c.Flags |= bpf.XvlanSubFlagSUB_UC_FILTER
	}
	if s.NoDst {
		c.Flags |= bpf.XvlanSubFlagSUB_NODST
	}
	if s.Promisc {
		c.Flags |= bpf.XvlanSubFlagSUB_PROMISC
	}
	if s.Netkit {
		c.Flags |= bpf.XvlanSubFlagSUB_NETKIT
	}
	if s.NoDHCP {
		c.Flags |= bpf.XvlanSubFlagSUB_NO_DHCP
	}
	if s.Host {
		c.Flags |= bpf.XvlanSubFlagSUB_HOST
	}
	if s.Trunk {
		c.Flags |= bpf.XvlanSubFlagSUB_TRUNK
	}
	if s.Via {
		c.Flags |= bpf.XvlanSubFlagSUB_VIA
	}
	if s.Guarded {
		c.Flags |= bpf.XvlanSubFlagSUB_GUARDED
	}
	c.Flags |= s.plain()
	copy(c.Mac[:], s.MAC)
	copy(c.Name[:], s.Name)
	return c
}

// plain is the flag of those who get all that is for their MAC, or for their
// addresses, whoever sends it.
func (s *Sub) plain() bpf.XvlanSubFlag {
	switch {
	case s.State != Active || s.Trunk || s.Class&(ClassBridge|ClassVEPA) == 0:
		return 0
	case s.Kind == Macvlan && s.VLAN != 0 && s.VLAN <= LastVLAN:
		return bpf.XvlanSubFlagSUB_PLAIN_VLAN
	case s.VLAN != 0:
		return 0
	case s.Kind == Ipvlan:
		return bpf.XvlanSubFlagSUB_PLAIN_IP
	}
	return bpf.XvlanSubFlagSUB_PLAIN
}

// subFromC takes MAC and name over, as there may be thousands of records: c is not
// to change any more.
func subFromC(c *bpf.XvlanSub) Sub {
	if c.State == bpf.XvlanSubStateSUB_FREE {
		return Sub{Gen: c.Gen}
	}
	return Sub{
		State:    State(c.State),
		Gen:      c.Gen,
		Leg:      int(c.Leg),
		Place:    Place(c.Place),
		Kind:     Kind(c.Kind),
		Mode:     Mode(c.Mode),
		Class:    Class(c.Class),
		NoDst:    c.Flags&bpf.XvlanSubFlagSUB_NODST != 0,
		Promisc:  c.Flags&bpf.XvlanSubFlagSUB_PROMISC != 0,
		Netkit:   c.Flags&bpf.XvlanSubFlagSUB_NETKIT != 0,
		NoDHCP:   c.Flags&bpf.XvlanSubFlagSUB_NO_DHCP != 0,
		Host:     c.Flags&bpf.XvlanSubFlagSUB_HOST != 0,
		Trunk:    c.Flags&bpf.XvlanSubFlagSUB_TRUNK != 0,
		Via:      c.Flags&bpf.XvlanSubFlagSUB_VIA != 0,
		Guarded:  c.Flags&bpf.XvlanSubFlagSUB_GUARDED != 0,
		UCFilter: c.Flags&bpf.XvlanSubFlagSUB_UC_FILTER != 0,
		MAC:      net.HardwareAddr(c.Mac[:]),
		VLAN:     VLAN(c.Vlan),
		Name:     unsafe.String(&c.Name[0], cLen(c.Name[:])),
		Device:   c.Device,
	}
}

// Parent is the parent's own record.
type Parent struct {
	Schema      uint32
	Capacity    uint32 // highest ID
	Index       int    // ifindex; 0 while it is gone
	MTU         int    // in bytes, without the Ethernet header; 0 likewise, and until it is up again
	UnknownDrop bool   // drop unicast that is neither the parent's nor a sub-interface's
	Keep        bool   // attached by name: stays when the last sub-interface goes
	Passthru    ID     // gets all unicast that is no other's; 0 for none
	Sources     uint32 // number of sub-interfaces in source mode
	IPKeyed     uint32 // number of ipvlan sub-interfaces
	Watched     uint32 // bits of those who watch what the programs decide
	Ports       uint32 // number of sub-interfaces whose Place is Port
	Hosts       uint32 // number of sub-interfaces that the host's frames go to
	VLANs       uint32 // number of sub-interfaces in a VLAN, trunks among them
	Trunks      uint32 // number of trunks
	LastID      ID     // taken last
	SetAllmulti bool   // allmulti was turned on, detach turns it off
	AddClsact   bool   // the clsact qdisc was added, detach removes it
	SetForward4 bool   // forwarding was turned on for who goes through the host's stack, and goes with the last of these
	SetForward6 bool   // likewise force_forwarding
	HadCTag     bool   // its filter of VLANs was turned off, and is on again with the last of them
	HadSTag     bool   // likewise that of service VLANs
	SetPromisc  bool   // likewise it was made promiscuous, since there was no switch for these
	Rung        Rung
	MAC         net.HardwareAddr
	FoundMAC    net.HardwareAddr // before a passthru sub-interface's became its own; nil if none has
	Name        string
	Reason      string // why it stands on this rung
}

func (p *Parent) toC() bpf.XvlanParent {
	c := bpf.XvlanParent{
		Schema:   p.Schema,
		Capacity: p.Capacity,
		Ifindex:  uint32(p.Index),
		Mtu:      uint32(p.MTU),
		Passthru: uint32(p.Passthru),
		Sources:  p.Sources,
		IpKeyed:  p.IPKeyed,
		Watched:  p.Watched,
		Ports:    p.Ports,
		Hosts:    p.Hosts,
		Vlans:    p.VLANs,
		Trunks:   p.Trunks,
		LastId:   uint32(p.LastID),
		Rung:     bpf.XvlanRung(p.Rung),
	}
	if p.UnknownDrop {
		c.Policy |= bpf.XvlanPolicyPOLICY_UNKNOWN_DROP
	}
	if p.Keep {
		c.Policy |= bpf.XvlanPolicyPOLICY_KEEP
	}
	if p.SetAllmulti {
		c.Found |= bpf.XvlanFoundFOUND_SET_ALLMULTI
	}
	if p.AddClsact {
		c.Found |= bpf.XvlanFoundFOUND_ADD_CLSACT
	}
	if p.SetForward4 {
		c.Found |= bpf.XvlanFoundFOUND_SET_FORWARD4
	}
	if p.SetForward6 {
		c.Found |= bpf.XvlanFoundFOUND_SET_FORWARD6
	}
	if p.HadCTag {
		c.Found |= bpf.XvlanFoundFOUND_CTAG_FILTER
	}
	if p.HadSTag {
		c.Found |= bpf.XvlanFoundFOUND_STAG_FILTER
	}
	if p.SetPromisc {
		c.Found |= bpf.XvlanFoundFOUND_SET_PROMISC
	}
	if p.FoundMAC != nil {
		c.Found |= bpf.XvlanFoundFOUND_SET_MAC
	}
	copy(c.Mac[:], p.MAC)
	copy(c.FoundMac[:], p.FoundMAC)
	copy(c.Name[:], p.Name)
	copy(c.Reason[:len(c.Reason)-1], p.Reason)
	return c
}

func parentFromC(c *bpf.XvlanParent) Parent {
	var foundMAC net.HardwareAddr
	if c.Found&bpf.XvlanFoundFOUND_SET_MAC != 0 {
		foundMAC = bytes.Clone(c.FoundMac[:])
	}
	return Parent{
		Schema:      c.Schema,
		Capacity:    c.Capacity,
		Index:       int(c.Ifindex),
		MTU:         int(c.Mtu),
		UnknownDrop: c.Policy&bpf.XvlanPolicyPOLICY_UNKNOWN_DROP != 0,
		Keep:        c.Policy&bpf.XvlanPolicyPOLICY_KEEP != 0,
		Passthru:    ID(c.Passthru),
		Sources:     c.Sources,
		IPKeyed:     c.IpKeyed,
		Watched:     c.Watched,
		Ports:       c.Ports,
		Hosts:       c.Hosts,
		VLANs:       c.Vlans,
		Trunks:      c.Trunks,
		LastID:      ID(c.LastId),
		SetAllmulti: c.Found&bpf.XvlanFoundFOUND_SET_ALLMULTI != 0,
		AddClsact:   c.Found&bpf.XvlanFoundFOUND_ADD_CLSACT != 0,
		SetForward4: c.Found&bpf.XvlanFoundFOUND_SET_FORWARD4 != 0,
		SetForward6: c.Found&bpf.XvlanFoundFOUND_SET_FORWARD6 != 0,
		HadCTag:     c.Found&bpf.XvlanFoundFOUND_CTAG_FILTER != 0,
		HadSTag:     c.Found&bpf.XvlanFoundFOUND_STAG_FILTER != 0,
		SetPromisc:  c.Found&bpf.XvlanFoundFOUND_SET_PROMISC != 0,
		Rung:        Rung(c.Rung),
		MAC:         net.HardwareAddr(bytes.Clone(c.Mac[:])),
		FoundMAC:    foundMAC,
		Name:        cString(c.Name[:]),
		Reason:      cString(c.Reason[:]),
	}
}

// Dest is the value of a key: whose it is. It counts only while the owner's
// record is active and of the same generation.
type Dest struct {
	ID      ID
	Gen     uint32
	Origin  Origin
	Gateway bool // of a reserved address: it is not the host's own
	Until   Uptime
}

// Uptime is when a lease ends, in seconds since boot, those of suspension too; 0 of
// what is not leased.
type Uptime uint32

// Forever is the end of a lease that has none.
const Forever = Uptime(math.MaxUint32)

// UptimeNow is the present moment.
func UptimeNow() (Uptime, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("read time since boot: %w", err)
	}
	return Uptime(now.Sec), nil
}

func (d Dest) toC() bpf.XvlanDest {
	c := bpf.XvlanDest{Id: uint32(d.ID), Gen: d.Gen, Flags: bpf.XvlanDestFlag(d.Origin), Until: uint32(d.Until)}
	if d.Gateway {
		c.Flags |= bpf.XvlanDestFlagDEST_GATEWAY
	}
	return c
}

func destFromC(c bpf.XvlanDest) Dest {
	const gateway = bpf.XvlanDestFlagDEST_GATEWAY
	return Dest{
		ID: ID(c.Id), Gen: c.Gen, Origin: Origin(c.Flags &^ (gateway | bpf.XvlanDestFlagDEST_AWAITED)),
		Gateway: c.Flags&gateway != 0, Until: Uptime(c.Until),
	}
}

func cString(b []byte) string { return string(b[:cLen(b)]) }

// cLen is how long the string in an array is.
func cLen(b []byte) int {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return i
	}
	return len(b)
}
