package loader

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// Link is a sub-interface as it stands.
type Link struct {
	Parent    string
	Orphan    bool   // its parent is gone, and expected back
	Name      string // what it is called now, in its namespace
	Netns     string // "" for the parent's; "nsid N" for one without a name
	Index     int    // ifindex in its namespace
	Flags     uint32 // IFF_*
	MTU       int
	OperState string
	MAC       net.HardwareAddr // of the device
	WireMAC   net.HardwareAddr // what the wire sees
	Kind      maps.Kind
	Mode      maps.Mode
	Class     maps.Class // an ipvlan's flag
	NoDst     bool
	NoPromisc *bool              // of a macvlan in passthru mode; nil: nobody can tell, as others have made the parent promiscuous
	Sources   []net.HardwareAddr // of a macvlan in source mode
	Queue     Queue              // of a macvlan on the kernel rung
	Rung      Rung
	ID        maps.ID        // 0 on the kernel rung
	Leg       string         // host leg, "" on the kernel rung
	Owner     string         // as LinkSpec has it
	Netkit    bool           // its legs are a netkit pair, not veth
	NoDHCP    bool           // of an ipvlan: its DHCP clients are not helped
	Host      bool           // it and the host reach each other
	Via       []netip.Prefix // what it reaches by way of the host
	Guard     maps.Guard
	VLAN      VLAN
	Place     maps.Place
	Addrs     []LinkAddr // known to the datapath
	Stats     maps.Stats // on the kernel rung RX, TX and no reasons

	gen  uint32 // of the record it was read from
	nsid int    // the id of its namespace, negative for the parent's; not on the kernel rung
}

// LinkAddr is an address that leads to a sub-interface.
type LinkAddr struct {
	Addr   netip.Addr
	Origin maps.Origin
	Until  maps.Uptime // of a leased one
}

// ParentInfo is an attached parent as it stands.
type ParentInfo struct {
	maps.Parent            // its Index is 0 while it is gone
	Links       int        // sub-interfaces on it
	Stats       maps.Stats // of what was for none of them

	folderKey int // on the kernel rung its Index
}

// Gone tells whether its device is gone, and expected back.
func (p *ParentInfo) Gone() bool { return p.Index == 0 }

// Parents lists the parents of this namespace by name, and of one name those that
// are gone last: those attached, and
// those that have sub-interfaces on the kernel rung, which attaches nothing and
// so has no capacity, policy or counters.
func (h *Host) Parents() ([]ParentInfo, error) {
	var all []ParentInfo
	err := h.eachParent(func(f folder, set *maps.Set, rec maps.Parent) error {
		info := ParentInfo{Parent: rec, folderKey: f.key}
		subs, err := set.Subs()
		if err != nil {
			return err
		}
		for _, s := range subs {
			if s.State == maps.Active {
				info.Links++
			}
		}
		if info.Stats, err = set.Stats(0); err != nil {
			return err
		}
		all = append(all, info)
		return nil
	})
	if err != nil {
		return nil, err
	}
	kernel, err := h.kernelParents()
	all = append(all, kernel...)
	slices.SortFunc(all, func(a, b ParentInfo) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(b.Index, a.Index))
	})
	return all, err
}

// Attached names the parents of this namespace to which something of xvlan is
// attached, whatever version that is.
func (h *Host) Attached() ([]string, error) {
	folders, err := folders()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range folders {
		if f.cookie != h.cookie {
			continue
		}
		rec, there, err := f.record()
		if err != nil {
			return nil, err
		}
		if there && rec.Name == "" {
			rec.Name = h.nameOf(rec.Index)
		}
		if there {
			names = append(names, rec.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// eachParent opens the maps of every complete parent of this namespace. One
// that goes while it is looked at is passed over.
func (h *Host) eachParent(fn func(f folder, set *maps.Set, rec maps.Parent) error) error {
	folders, err := folders()
	if err != nil {
		return err
	}
	for _, f := range folders {
		if f.cookie != h.cookie {
			continue
		}
		err := h.readParent(f, func(set *maps.Set, rec maps.Parent) error { return fn(f, set, rec) })
		if err != nil {
			return err
		}
	}
	return nil
}

// readParent opens the maps of one parent, if it is there.
func (h *Host) readParent(f folder, fn func(set *maps.Set, rec maps.Parent) error) error {
	set, err := h.openMaps(f)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	rec, err := set.Parent()
	if err == nil {
		err = fn(set, rec)
	}
	return errors.Join(err, set.Close())
}

// nameOf returns what a device is called now, for people.
func (h *Host) nameOf(index int) string {
	l, err := h.nl.LinkByIndex(index)
	if err != nil {
		return "device " + strconv.Itoa(index)
	}
	return l.Attrs().Name
}

// Links lists the sub-interfaces of all parents of this namespace, by parent
// and in the order they were made; those whose device is gone are left out.
func (h *Host) Links() ([]Link, error) {
	names, err := h.spaceNames()
	if err != nil {
		return nil, err
	}
	var all []Link
	err = h.eachParent(func(f folder, set *maps.Set, rec maps.Parent) error {
		links, err := h.linksOf(f, set, rec, names, 0)
		all = append(all, links...)
		return err
	})
	if err != nil {
		return nil, err
	}
	kernel, err := h.kernelLinks(0)
	if err != nil {
		return nil, err
	}
	for _, k := range kernel {
		l, err := h.fromKernel(k)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	slices.SortStableFunc(all, func(a, b Link) int { return strings.Compare(a.Parent, b.Parent) })
	return all, nil
}

// linksOf lists a parent's sub-interfaces, or the one of an id that is not 0.
func (h *Host) linksOf(f folder, set *maps.Set, rec maps.Parent, names map[int]string, only maps.ID) ([]Link, error) {
	subs, err := set.Subs()
	if err != nil {
		return nil, err
	}
	addrs, err := set.Addrs()
	if err != nil {
		return nil, err
	}
	var sources map[maps.ID][]net.HardwareAddr
	if rec.Sources > 0 {
		if sources, err = set.Sources(); err != nil {
			return nil, err
		}
	}
	var vias map[maps.ID][]netip.Prefix
	if slices.ContainsFunc(subs, func(s maps.Sub) bool { return s.Via }) {
		if vias, err = set.Vias(); err != nil {
			return nil, err
		}
	}
	var stats []maps.Stats
	var guards []maps.Guard
	if only == 0 {
		if stats, err = set.AllStats(); err != nil {
			return nil, err
		}
		if guards, err = set.Guards(); err != nil {
			return nil, err
		}
		if err := h.listDevices(subs); err != nil {
			return nil, err
		}
		defer h.forgetDevices()
	}
	byID := map[maps.ID][]LinkAddr{}
	now, err := maps.UptimeNow()
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if a.Origin == maps.Leased && a.Until <= now {
			a.Origin, a.Until = maps.Learned, 0 // as which it counts
		}
		if a.Origin != maps.Reserved && subs[a.ID].Gen == a.Gen {
			byID[a.ID] = append(byID[a.ID], LinkAddr{a.Addr, a.Origin, a.Until})
		}
	}
	var all []Link
	for i, s := range subs {
		id := maps.ID(i)
		if s.State != maps.Active || only != 0 && id != only {
			continue
		}
		l := Link{
			Parent: rec.Name, Orphan: rec.Index == 0, Kind: s.Kind, Mode: s.Mode, Class: s.Class, NoDst: s.NoDst, Sources: sources[id], Rung: Rung{rec.Rung, rec.Reason},
			ID: id, Leg: legName(f.key, id), Netkit: s.Netkit, Host: s.Host, Via: vias[id], NoDHCP: s.NoDHCP, Place: s.Place, Addrs: byID[id], WireMAC: s.MAC, gen: s.Gen,
		}
		if only == 0 {
			l.Stats, l.Guard = stats[id], guards[id]
		} else if l.Stats, err = set.Stats(id); err != nil {
			return nil, err
		} else if l.Guard, err = set.Guard(id); err != nil {
			return nil, err
		}
		if l.VLAN, err = vlanOf(set, id, s); err != nil {
			return nil, err
		}
		if s.Kind == maps.Ipvlan {
			l.WireMAC = rec.MAC
		}
		if s.Mode == maps.Passthru {
			if l.NoPromisc, err = h.noPromisc(rec.Index, s.Promisc); err != nil {
				return nil, err
			}
		}
		slices.SortFunc(l.Addrs, func(a, b LinkAddr) int { return a.Addr.Compare(b.Addr) })
		if ok, err := h.fillInner(&l, s.Leg, names); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		if err := l.lessTold(set); err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// noPromisc tells whether a parent was not to be made promiscuous for its
// passthru sub-interface. Where somebody else had done so it was not needed.
func (h *Host) noPromisc(index int, made bool) (*bool, error) {
	no := !made
	if made {
		return &no, nil
	}
	parent, err := h.nl.LinkByIndex(index)
	if index == 0 || errors.As(err, new(netlink.LinkNotFoundError)) {
		return &no, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find device %d: %w", index, err)
	}
	if parent.Attrs().RawFlags&unix.IFF_PROMISC != 0 {
		return nil, nil
	}
	return &no, nil
}

// fillInner reads the inner leg's state; ok is false where it is gone.
func (h *Host) fillInner(l *Link, leg int, names map[int]string) (ok bool, err error) {
	dev, err := h.legs(leg, l.Leg)
	if dev == nil || err != nil {
		return false, err
	}
	nsid := dev.nsid
	fill(l, dev.inner)
	l.Owner = dev.host.Attrs().Alias
	lost(&l.Stats, dev)
	l.nsid = nsid
	if nsid >= 0 {
		if l.Netns = names[nsid]; l.Netns == "" {
			l.Netns = "nsid " + strconv.Itoa(nsid)
		}
	}
	return true, nil
}

// lost adds what the pair of devices has lost. A copy that was refused has its
// verdict, and the host leg has counted it besides.
func lost(s *maps.Stats, dev *legs) {
	if outer := dev.host.Attrs().Statistics; outer != nil && outer.TxDropped > s[maps.DropFanout].Packets {
		s[maps.DropRing].Packets = outer.TxDropped - s[maps.DropFanout].Packets
	}
	if inner := dev.inner.Attrs().Statistics; inner != nil {
		s[maps.DropRingTX].Packets = inner.TxDropped
	}
}

// lessTold takes off what xvlan_tx has dropped and counted from what the inner leg of
// a netkit pair has, whose transmit that is. The verdicts are read after the device,
// so that none is missing; of a super-packet they count each segment.
func (l *Link) lessTold(set *maps.Set) error {
	ring := &l.Stats[maps.DropRingTX].Packets
	if !l.Netkit || *ring == 0 {
		return nil
	}
	told, err := set.Stats(l.ID)
	if err != nil {
		return err
	}
	*ring -= min(*ring, told.DroppedTX())
	return nil
}

func fill(l *Link, dev netlink.Link) {
	a := dev.Attrs()
	l.Name, l.Index, l.Flags, l.MTU, l.MAC = a.Name, a.Index, a.RawFlags, a.MTU, a.HardwareAddr
	l.OperState = strings.ToUpper(a.OperState.String())
}

// fromKernel describes a device of the kernel rung.
func (h *Host) fromKernel(k kernelLink) (Link, error) {
	a := k.link.Attrs()
	l := Link{Netns: k.space, Rung: Rung{maps.RungKernel, k.reason()}, Owner: k.owner(), WireMAC: a.HardwareAddr}
	if k.space != "" {
		l.Place = maps.Away
	}
	parent, err := h.nl.LinkByIndex(a.ParentIndex)
	if err != nil {
		return l, fmt.Errorf("find parent of %s: %w", a.Name, err)
	}
	l.Parent = parent.Attrs().Name
	fill(&l, k.link)
	l.Kind = maps.Macvlan
	switch dev := k.link.(type) {
	case *netlink.Macvlan:
		l.Sources, l.NoDst, l.Queue = dev.MACAddrs, k.flags&macvlanNoDst != 0, k.queue
		no := k.flags&macvlanNoPromisc != 0
		l.NoPromisc = &no
		for mode, kernel := range kernelModes {
			if kernel == dev.Mode {
				l.Mode = mode
			}
		}
		l.Class = classOf(l.Mode, 0)
	case *netlink.IPVlan:
		l.Kind = maps.Ipvlan
		for mode, kernel := range ipvlanModes {
			if kernel == dev.Mode {
				l.Mode = mode
			}
		}
		for class, flag := range kernelFlags {
			if flag == dev.Flag {
				l.Class = class
			}
		}
	}
	l.Stats = deviceStats(k.link)
	return l, nil
}

// deviceStats are a device's own counters, as ours where there are such.
func deviceStats(l netlink.Link) (stats maps.Stats) {
	if s := l.Attrs().Statistics; s != nil {
		stats[maps.RX] = maps.Counter{Packets: s.RxPackets, Bytes: s.RxBytes}
		stats[maps.TX] = maps.Counter{Packets: s.TxPackets, Bytes: s.TxBytes}
	}
	return stats
}

// spaceNames maps the ids of other namespaces, as seen from here, to names.
func (h *Host) spaceNames() (map[int]string, error) {
	names := map[int]string{}
	err := h.eachSpace(func(s *space, _ int) error {
		id, err := h.nl.GetNetNsIdByFd(int(s.file.Fd()))
		if err != nil {
			return fmt.Errorf("read id of netns %s: %w", s.name, err)
		}
		names[id] = s.name
		return nil
	})
	return names, err
}
