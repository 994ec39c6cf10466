package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

var flagNames = []struct {
	bit  uint32
	name string
}{
	{unix.IFF_LOOPBACK, "LOOPBACK"},
	{unix.IFF_BROADCAST, "BROADCAST"},
	{unix.IFF_POINTOPOINT, "POINTOPOINT"},
	{unix.IFF_MULTICAST, "MULTICAST"},
	{unix.IFF_NOARP, "NOARP"},
	{unix.IFF_ALLMULTI, "ALLMULTI"},
	{unix.IFF_PROMISC, "PROMISC"},
	{unix.IFF_UP, "UP"},
	{unix.IFF_LOWER_UP, "LOWER_UP"},
}

// flags names a device's flags as ip does.
func flags(f uint32) []string {
	var names []string
	if f&unix.IFF_UP != 0 && f&unix.IFF_RUNNING == 0 {
		names = append(names, "NO-CARRIER")
	}
	for _, n := range flagNames {
		if f&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return names
}

// printLink prints a sub-interface in the form of `ip link show`.
func (a *app) printLink(l loader.Link) {
	fmt.Fprintf(a.out, "%d: %s@%s: <%s> mtu %d state %s", l.Index, printable(l.Name), printable(l.Parent), strings.Join(flags(l.Flags), ","), l.MTU, l.OperState)
	if l.Netns != "" {
		fmt.Fprintf(a.out, " netns %s", printable(l.Netns))
	}
	fmt.Fprintf(a.out, "\n    link/ether %s brd ff:ff:ff:ff:ff:ff\n", l.MAC)
	fmt.Fprintf(a.out, "    %s mode %s%s datapath %s", l.Kind, l.Mode, modeOptions(l), l.Rung)
	if l.Orphan {
		fmt.Fprint(a.out, " parent gone")
	}
	fmt.Fprintln(a.out)
	for _, x := range l.Addrs {
		fmt.Fprintf(a.out, "    addr %s %s\n", x.Addr, originOf(x))
	}
	if a.details {
		fmt.Fprintf(a.out, "    datapath reason: %s\n", printable(l.Rung.Reason))
		if l.ID != 0 {
			fmt.Fprintf(a.out, "    id %d leg %s host leg %s wire mac %s host %s delivery %s\n",
				l.ID, pairWord(l.Netkit), l.Leg, l.WireMAC, onOff(l.Host), delivery(l.Place))
		}
		if helpsDHCP(&l) {
			fmt.Fprintf(a.out, "    dhcp %s\n", onOff(!l.NoDHCP))
		}
		if len(l.Via) > 0 {
			fmt.Fprintf(a.out, "    via-host %s\n", listWord(l.Via))
		}
		if l.VLAN != (loader.VLAN{}) {
			fmt.Fprintf(a.out, "    %s\n", l.VLAN)
		}
		if l.Guard.Active() {
			fmt.Fprintf(a.out, "    guard %s\n", guardWord(l.Guard))
		}
		if l.Owner != "" {
			fmt.Fprintf(a.out, "    owner %s\n", l.Owner)
		}
	}
	if a.stats {
		a.printStats(l.Stats)
	}
}

// originOf says how an address came to its owner, and of a leased one for how long
// still.
func originOf(a loader.LinkAddr) string {
	switch left := leaseLeft(a); {
	case left == nil:
		return a.Origin.String()
	case a.Until == maps.Forever:
		return "leased for ever"
	default:
		return fmt.Sprintf("leased for %ds", *left)
	}
}

// leaseLeft counts the seconds until a lease ends, all ones if it does not; nil for
// what is not leased.
func leaseLeft(a loader.LinkAddr) *uint32 {
	now, err := maps.UptimeNow()
	if a.Origin != maps.Leased || err != nil {
		return nil
	}
	left := uint32(max(a.Until, now) - now)
	if a.Until == maps.Forever {
		left = uint32(maps.Forever)
	}
	return &left
}

// modeOptions prints what ip prints behind a mode.
func modeOptions(l loader.Link) string {
	var b strings.Builder
	if l.Kind == maps.Ipvlan {
		fmt.Fprintf(&b, " %s", l.Class)
	}
	if l.NoDst {
		b.WriteString(" nodst")
	}
	if l.Mode == maps.Source {
		fmt.Fprintf(&b, " remotes (%d)", len(l.Sources))
		for _, mac := range l.Sources {
			fmt.Fprintf(&b, " %s", mac)
		}
	}
	return b.String()
}

// helpsDHCP tells the sub-interfaces that have the switch.
func helpsDHCP(l *loader.Link) bool { return l.ID != 0 && l.Mode == maps.L2 }

// delivery says by which way unicast reaches the inner leg.
func delivery(p maps.Place) string {
	switch p {
	case maps.Away:
		return "peer"
	case maps.Stack:
		return "host"
	case maps.Port:
		return "xdp"
	}
	return "leg"
}

// pairWord names the kind of device that the legs are.
func pairWord(netkit bool) string {
	if netkit {
		return "netkit"
	}
	return "veth"
}

// printStats prints the counters as `ip -s` does, and every reason that
// anything was dropped for.
func (a *app) printStats(s maps.Stats) {
	var drops []string
	for _, v := range maps.Verdicts() {
		if v.IsDrop() && s[v].Packets > 0 {
			drops = append(drops, fmt.Sprintf("%s %d", v, s[v].Packets))
		}
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "    \tbytes\tpackets\tdropped\t\n")
	fmt.Fprintf(w, "    RX:\t%d\t%d\t%d\t\n", s[maps.RX].Bytes, s[maps.RX].Packets, s.DroppedRX())
	fmt.Fprintf(w, "    TX:\t%d\t%d\t%d\t\n", s[maps.TX].Bytes, s[maps.TX].Packets, s.DroppedTX())
	w.Flush()
	if n := s[maps.LearnDup].Packets; n > 0 {
		fmt.Fprintf(a.out, "    addresses not learned, others have them: %d\n", n)
	}
	if n := s[maps.GroupMany].Packets; n > 0 {
		fmt.Fprintf(a.out, "    multicast not filtered, in too many groups: %d\n", n)
	}
	if len(drops) > 0 {
		fmt.Fprintf(a.out, "    drops: %s\n", strings.Join(drops, ", "))
	}
}

// The JSON forms follow `ip -j -d -s link`: what has a name there has it here.
type linkJSON struct {
	Index     int         `json:"ifindex"`
	Name      string      `json:"ifname"`
	Parent    string      `json:"link"`
	Orphan    bool        `json:"parent_gone,omitempty"`
	Netns     string      `json:"netns,omitempty"`
	Flags     []string    `json:"flags"`
	MTU       int         `json:"mtu"`
	OperState string      `json:"operstate"`
	LinkType  string      `json:"link_type"`
	MAC       string      `json:"address"`
	Info      infoJSON    `json:"linkinfo"`
	Datapath  rungJSON    `json:"datapath"`
	ID        uint32      `json:"id,omitempty"`
	Leg       string      `json:"host_leg,omitempty"`
	Pair      string      `json:"leg,omitempty"` // not on the kernel rung, as is
	Delivery  string      `json:"delivery,omitempty"`
	Host      string      `json:"host,omitempty"`
	Via       []string    `json:"via_host,omitempty"`
	DHCP      string      `json:"dhcp,omitempty"` // of an ipvlan in mode l2: whether its clients are helped
	Guard     string      `json:"guard,omitempty"`
	Rate      uint32      `json:"bcrate,omitempty"` // broadcasts, ARP and neighbour discovery a second
	VLAN      uint16      `json:"vlan,omitempty"`   // of what it has without a tag
	Outer     uint16      `json:"qinq,omitempty"`   // the service tag in front of that
	Trunk     []rangeJSON `json:"vlans,omitempty"`  // as of `bridge -j vlan`: what it has with its tag, 0 for without
	WireMAC   string      `json:"wire_address"`
	Owner     string      `json:"owner,omitempty"` // who had it made, a container runtime's name for it
	Addrs     []addrJSON  `json:"addrs"`
	Stats     statsJSON   `json:"stats64"`
	Verdicts  verdictJSON `json:"verdicts"`
}

type infoJSON struct {
	Kind string `json:"info_kind"`
	Data struct {
		Mode    string   `json:"mode"`
		Bridge  bool     `json:"bridge,omitempty"` // an ipvlan's flag, as private and vepa
		Private bool     `json:"private,omitempty"`
		VEPA    bool     `json:"vepa,omitempty"`
		NoDst   bool     `json:"nodst,omitempty"`
		Count   int      `json:"macaddr_count,omitempty"`
		MACs    []string `json:"macaddr_data,omitempty"`
	} `json:"info_data"`
}

type rangeJSON struct {
	First uint16 `json:"vlan"`
	Last  uint16 `json:"vlanEnd,omitempty"`
}

type rungJSON struct {
	Rung   string `json:"rung"`
	Reason string `json:"reason"`
}

type addrJSON struct {
	Addr   string `json:"local"`
	Origin string `json:"origin"`
	// As of `ip -j addr`: seconds, all ones for ever.
	ValidLifeTime *uint32 `json:"valid_life_time,omitempty"`
}

type counterJSON struct {
	Bytes   uint64 `json:"bytes"`
	Packets uint64 `json:"packets"`
}

type directionJSON struct {
	counterJSON
	Dropped uint64 `json:"dropped"`
}

type statsJSON struct {
	RX directionJSON `json:"rx"`
	TX directionJSON `json:"tx"`
}

func statsOf(s *maps.Stats) statsJSON {
	return statsJSON{
		RX: directionJSON{counterJSON{s[maps.RX].Bytes, s[maps.RX].Packets}, s.DroppedRX()},
		TX: directionJSON{counterJSON{s[maps.TX].Bytes, s[maps.TX].Packets}, s.DroppedTX()},
	}
}

// verdictJSON holds every counter by its label.
type verdictJSON map[string]counterJSON

func verdictsJSON(s maps.Stats) verdictJSON {
	m := verdictJSON{}
	for _, v := range maps.Verdicts() {
		m[v.String()] = counterJSON{s[v].Bytes, s[v].Packets}
	}
	return m
}

func linksJSON(links []loader.Link) []linkJSON {
	all := []linkJSON{}
	for _, l := range links {
		j := linkJSON{
			Index: l.Index, Name: l.Name, Parent: l.Parent, Orphan: l.Orphan, Netns: l.Netns,
			Flags: flags(l.Flags), MTU: l.MTU, OperState: l.OperState, LinkType: "ether",
			MAC: l.MAC.String(), Datapath: rungJSON{l.Rung.String(), l.Rung.Reason},
			ID: uint32(l.ID), Leg: l.Leg, WireMAC: l.WireMAC.String(), Owner: l.Owner, Addrs: []addrJSON{},
			Verdicts: verdictsJSON(l.Stats),
		}
		j.Info = linkInfo(l)
		if l.ID != 0 {
			j.Pair, j.Delivery, j.Host = pairWord(l.Netkit), delivery(l.Place), onOff(l.Host)
			j.Guard, j.Rate = l.Guard.String(), l.Guard.Rate
		}
		j.Via = stringsOf(l.Via)
		j.VLAN, j.Outer = l.VLAN.ID, l.VLAN.Outer
		for _, r := range l.VLAN.Trunk.Ranges() {
			j.Trunk = append(j.Trunk, rangeJSON{r[0], r[1] * min(r[1]-r[0], 1)})
		}
		if helpsDHCP(&l) {
			j.DHCP = onOff(!l.NoDHCP)
		}
		for _, x := range l.Addrs {
			j.Addrs = append(j.Addrs, addrJSON{x.Addr.String(), x.Origin.String(), leaseLeft(x)})
		}
		j.Stats = statsOf(&l.Stats)
		all = append(all, j)
	}
	return all
}

func linkInfo(l loader.Link) infoJSON {
	info := infoJSON{Kind: l.Kind.String()}
	d := &info.Data
	d.Mode, d.NoDst, d.Count = l.Mode.String(), l.NoDst, len(l.Sources)
	if l.Kind == maps.Ipvlan {
		d.Bridge, d.Private, d.VEPA = l.Class == maps.ClassBridge, l.Class == maps.ClassPrivate, l.Class == maps.ClassVEPA
	}
	for _, mac := range l.Sources {
		d.MACs = append(d.MACs, mac.String())
	}
	return info
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
