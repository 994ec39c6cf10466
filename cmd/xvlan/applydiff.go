package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// linkDiff is what a sub-interface that is there has otherwise than a file
// wants it. Of type, mode, flag, host, via-host, delivery, guard, bcrate and VLANs what is not said is as
// `link add` has it; all else that is not said may be as it is.
type linkDiff struct {
	want  *wantedLink
	have  loader.Link
	now   loader.LinkSpec // of have
	moves bool            // to another network namespace

	changes []change
	fixed   []change // which a device that is there does not take

	mode  loader.ModeChange
	port  *bool
	host  *bool
	via   *[]netip.Prefix
	guard loader.GuardSpec
	vlan  loader.VLANSpec
	dev   loader.DeviceChange
	addr  bool // its given addresses are to be others
}

// find fills in all that follows from want, have, now and moves.
func (d *linkDiff) find() {
	want, now := d.want.spec, d.now
	if want.Kind != now.Kind {
		d.fixed = append(d.fixed, change{"type", now.Kind.String(), want.Kind.String()})
		return
	}
	d.findMode()
	switch {
	case !d.want.keys.has("leg"):
		d.want.spec.Netkit = now.Netkit // by which the rest is checked
	case want.Netkit != now.Netkit:
		d.fixed = append(d.fixed, change{"leg", pairWord(now.Netkit), pairWord(want.Netkit)})
	}
	if want.Port != now.Port {
		d.differs("delivery", portWord(now.Port), portWord(want.Port))
		d.port = &want.Port
	}
	if want.Host != now.Host {
		d.differs("host", onOff(now.Host), onOff(want.Host))
		d.host = &want.Host
	}
	d.findVia()
	d.findGuard()
	if is, was := want.VLAN.Of(loader.VLAN{}), now.VLAN.Of(loader.VLAN{}); is != was {
		d.differs("vlan", orNone(was.String()), orNone(is.String()))
		d.vlan = loader.VLANSpec{ID: &is.ID, Outer: &is.Outer, Trunk: &is.Trunk}
	}
	if mac := want.MAC; mac != nil && !bytes.Equal(mac, now.MAC) {
		d.differs("address", now.MAC.String(), mac.String())
		d.dev.MAC = mac
	}
	if want.MTU != 0 && want.MTU != now.MTU {
		d.differs("mtu", fmt.Sprint(now.MTU), fmt.Sprint(want.MTU))
		d.dev.MTU = want.MTU
	}
	if d.moves {
		d.differs("netns", netnsWord(now.Netns), netnsWord(want.Netns))
	}
	d.findAddrs()
	if up := want.Up; d.want.keys.has("up") {
		if up != now.Up {
			d.differs("up", fmt.Sprint(now.Up), fmt.Sprint(up))
		}
		if up != now.Up || d.moves { // which sets it down
			d.dev.Up = &up
		}
	}
}

// findVia finds what differs of the networks that are reached by way of the host.
func (d *linkDiff) findVia() {
	want := slices.SortedFunc(slices.Values(d.want.spec.Via), netip.Prefix.Compare)
	if !slices.Equal(want, d.now.Via) {
		d.differs("via-host", listWord(d.now.Via), listWord(want))
		d.via = &want
	}
}

// findGuard finds what differs of guard and budget.
func (d *linkDiff) findGuard() {
	want, now := d.want.spec.Guard.Of(maps.Guard{}), d.have.Guard
	if want.String() != now.String() {
		d.differs("guard", now.String(), want.String())
	}
	if want.Rate != now.Rate {
		d.differs("bcrate", rateWord(now.Rate), rateWord(want.Rate))
	}
	if want.String() != now.String() || want.Rate != now.Rate {
		d.guard = loader.GuardSpec{Guard: &want, Rate: &want.Rate}
	}
}

func (d *linkDiff) differs(key, from, to string) {
	d.changes = append(d.changes, change{key, from, to})
}

// findMode finds what differs of what is said behind the type.
func (d *linkDiff) findMode() {
	want, now := d.want.spec, d.now
	if want.Mode != now.Mode {
		c := change{"mode", now.Mode.String(), want.Mode.String()}
		if want.Mode == maps.Passthru || now.Mode == maps.Passthru {
			d.fixed = append(d.fixed, c)
		} else {
			d.changes, d.mode.Mode = append(d.changes, c), want.Mode
		}
	}
	if want.Kind == maps.Ipvlan {
		flag := want.Flag
		if flag == 0 {
			flag = maps.ClassBridge
		}
		if flag != now.Flag {
			d.differs("flag", now.Flag.String(), flag.String())
			d.mode.Flag = flag
		}
		if on, was := want.DHCP == nil || *want.DHCP, now.DHCP == nil || *now.DHCP; on != was {
			d.differs("dhcp", onOff(was), onOff(on))
			d.mode.DHCP = &on
		}
	}
	promisc := want.Mode == maps.Passthru && d.have.NoPromisc != nil && want.NoPromisc != now.NoPromisc
	if promisc || want.Mode == maps.Source && want.Source.NoDst != now.Source.NoDst {
		d.fixed = append(d.fixed, change{"flag", orNone(flagOf(&now)), orNone(flagOf(&want))})
	}
	d.findSources()
	if n, was := want.Queue.Len, now.Queue.Len; n != nil && was != nil && *n != *was {
		d.differs("bcqueuelen", fmt.Sprint(*was), fmt.Sprint(*n))
		d.mode.Queue.Len = n
	}
	if n, was := want.Queue.Limit, now.Queue.Limit; n != nil && was != nil && *n != *was {
		d.differs("bclim", fmt.Sprint(*was), fmt.Sprint(*n))
		d.mode.Queue.Limit = n
	}
}

// findSources finds what differs of the list of a macvlan in mode source.
func (d *linkDiff) findSources() {
	if !d.want.keys.has("macaddr") {
		return
	}
	was, is := d.now.Source.MACs, d.want.spec.Source.MACs
	without := func(macs, those []net.HardwareAddr) (rest []net.HardwareAddr) {
		for _, mac := range macs {
			if !slices.ContainsFunc(those, func(x net.HardwareAddr) bool { return bytes.Equal(x, mac) }) {
				rest = append(rest, mac)
			}
		}
		return rest
	}
	edit := loader.SourceEdit{Add: without(is, was), Del: without(was, is)}
	if len(edit.Add)+len(edit.Del) > 0 {
		d.differs("macaddr", listWord(was), listWord(is))
		d.mode.Source = &edit
	}
}

// findAddrs finds what differs of the given addresses. On the kernel rung, where
// they are the device's alone, others are nobody's business.
func (d *linkDiff) findAddrs() {
	if !d.want.keys.has("addr") {
		return
	}
	was, is := d.now.Addrs, slices.Clone(d.want.spec.Addrs)
	slices.SortFunc(is, netip.Prefix.Compare)
	if d.have.Rung.Rung == maps.RungKernel {
		was = slices.DeleteFunc(slices.Clone(was), func(a netip.Prefix) bool { return !slices.Contains(is, a) })
	}
	if !slices.Equal(was, is) || d.lost(is) {
		d.differs("addr", listWord(was), listWord(is))
		d.addr = true
	}
	d.addr = d.addr || d.moves // which takes them off the device
}

// lost tells whether an address is given that is not wanted, and that the device
// has no more.
func (d *linkDiff) lost(is []netip.Prefix) bool {
	return slices.ContainsFunc(d.have.Addrs, func(a loader.LinkAddr) bool {
		return a.Origin == maps.Given && !slices.ContainsFunc(is, func(p netip.Prefix) bool { return p.Addr() == a.Addr })
	})
}

// apply makes the changes: the move when all that may be refused is through, and
// then what a move undoes.
func (d *linkDiff) apply(h *loader.Host) error {
	sel := loader.Selector{Name: d.have.Name, Parent: d.have.Parent, Netns: d.have.Netns}
	is := d.want.spec.VLAN.Of(loader.VLAN{})
	none, trunk := is == loader.VLAN{}, is.IsTrunk()
	vlan := func(now bool) error {
		if !now || d.vlan == (loader.VLANSpec{}) {
			return nil
		}
		return h.SetVLAN(sel, d.vlan)
	}
	if d.host != nil && !*d.host { // before a mode that has none
		if err := h.SetHost(sel, false); err != nil {
			return err
		}
	}
	if d.via != nil && len(*d.via) == 0 {
		if err := h.SetVia(sel, nil); err != nil {
			return err
		}
	}
	if err := vlan(none); err != nil { // likewise, or host access
		return err
	}
	if d.mode != (loader.ModeChange{}) {
		if err := h.SetMode(sel, d.mode); err != nil {
			return err
		}
	}
	if err := vlan(!none && !trunk); err != nil { // before a guard, which a trunk has none of
		return err
	}
	if d.host != nil && *d.host {
		if err := h.SetHost(sel, true); err != nil {
			return err
		}
	}
	if d.via != nil && len(*d.via) > 0 {
		if err := h.SetVia(sel, *d.via); err != nil {
			return err
		}
	}
	if d.port != nil {
		if err := h.SetPort(sel, *d.port); err != nil {
			return err
		}
	}
	if d.guard != (loader.GuardSpec{}) {
		if err := h.SetGuard(sel, d.guard); err != nil {
			return err
		}
	}
	if err := vlan(trunk); err != nil {
		return err
	}
	if d.moves {
		if err := h.Move(sel, d.want.spec.Netns); err != nil {
			return err
		}
		sel.Netns = d.want.spec.Netns
	}
	if d.dev.MAC != nil || d.dev.MTU != 0 || d.dev.Up != nil {
		if err := h.SetDevice(sel, d.dev); err != nil {
			return err
		}
	}
	if d.addr {
		return h.SetAddrs(sel, d.want.spec.Addrs)
	}
	return nil
}
