package cni

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// check compares the sub-interface with the configuration and with what add has
// told of it.
func check(args *skel.CmdArgs) error {
	c, err := begin(args)
	if err != nil {
		return err
	}
	defer c.netns.Close()
	spec, err := c.spec(args)
	if err != nil {
		return err
	}
	was, err := c.previous()
	if err != nil {
		return err
	}
	if was == nil {
		return invalid("prevResult: missing")
	}
	if err := c.exec(args, invoke.DelegateCheck); err != nil {
		return err
	}
	i := slices.IndexFunc(was.Interfaces, func(d *current.Interface) bool { return d.Name == args.IfName && d.Sandbox == args.Netns })
	if i < 0 {
		return invalid("prevResult.interfaces: no %s in sandbox %s among them", args.IfName, args.Netns)
	}
	var l loader.Link
	err = c.host(func(h *loader.Host) (err error) {
		l, err = h.Find(c.selector())
		return err
	})
	if err != nil {
		return types.NewError(types.ErrInternal, err.Error(), "")
	}
	if err := c.compare(l, &spec, was.Interfaces[i]); err != nil {
		return err
	}
	return c.inside(func() error { return checkInside(l, was, i) })
}

// compare finds the difference between a sub-interface and what it should be.
func (c *call) compare(l loader.Link, spec *loader.LinkSpec, was *current.Interface) error {
	differs := func(what string, is, want any) error {
		return fmt.Errorf("%s: %s is %v, and should be %v", l.Name, what, is, want)
	}
	flag := spec.Flag
	if flag == 0 {
		flag = maps.ClassBridge
	}
	guard := spec.Guard.Of(maps.Guard{})
	switch {
	case l.Name != was.Name:
		return differs("its name", l.Name, was.Name)
	case l.Kind != spec.Kind || l.Mode != spec.Mode:
		return differs("its mode", l.Kind.String()+" "+l.Mode.String(), spec.Kind.String()+" "+spec.Mode.String())
	case l.Kind == maps.Ipvlan && l.Class != flag:
		return differs("its flag", l.Class, flag)
	case c.Master != "" && l.Parent != c.Master:
		return differs("its master", l.Parent, c.Master)
	case was.Mac != "" && l.MAC.String() != was.Mac:
		return differs("its MAC", l.MAC, was.Mac)
	case was.Mtu != 0 && l.MTU != was.Mtu:
		return differs("its mtu", l.MTU, was.Mtu)
	case l.Host != spec.Host:
		return differs("its host access", onOff[l.Host], onOff[spec.Host])
	case !slices.Equal(l.Via, slices.SortedFunc(slices.Values(spec.Via), netip.Prefix.Compare)):
		return differs("what it reaches by way of the host", l.Via, spec.Via)
	case l.Guard.String() != guard.String():
		return differs("its guard", l.Guard, guard)
	case l.VLAN != spec.VLAN.Of(loader.VLAN{}):
		return differs("its VLAN", orNone(l.VLAN), orNone(spec.VLAN.Of(loader.VLAN{})))
	case l.Guard.Rate != guard.Rate:
		return differs("its bcrate", l.Guard.Rate, guard.Rate)
	case l.Flags&unix.IFF_UP == 0:
		return differs("it", "down", "up")
	}
	return nil
}

var onOff = map[bool]string{false: "off", true: "on"}

// orNone is a VLAN in words.
func orNone(v loader.VLAN) string {
	if v == (loader.VLAN{}) {
		return "none"
	}
	return v.String()
}

// checkInside looks for the addresses of the device, which is the result's i-th,
// and for the routes.
func checkInside(l loader.Link, was *current.Result, i int) error {
	dev, err := netlinksafe.LinkByName(l.Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", l.Name, err)
	}
	addrs, err := netlinksafe.AddrList(dev, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", l.Name, err)
	}
	for _, want := range was.IPs {
		if want.Interface != nil && *want.Interface != i {
			continue
		}
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == want.Address.String() }) {
			return fmt.Errorf("%s: it has lost its address %s", l.Name, want.Address.String())
		}
		a, _ := netip.AddrFromSlice(want.Address.IP)
		if l.ID != 0 && !slices.Contains(l.Addrs, loader.LinkAddr{Addr: a.Unmap(), Origin: maps.Given}) {
			return fmt.Errorf("%s: its address %s does not lead to it any more", l.Name, want.Address.String())
		}
	}
	for _, r := range was.Routes {
		if err := checkRoute(dev, r, gatewayOf(was, isIPv4(r.Dst))); err != nil {
			return err
		}
	}
	return nil
}

// checkRoute looks for a route, by whichever device: it may have been changed by
// a plugin behind this one.
func checkRoute(dev netlink.Link, r *types.Route, gateway net.IP) error {
	want, family := routeOf(dev, r), netlink.FAMILY_V6
	if isIPv4(r.Dst) {
		family = netlink.FAMILY_V4
	}
	if want.Gw == nil {
		want.Gw = gateway
	}
	if want.Table == 0 {
		want.Table = unix.RT_TABLE_MAIN
	}
	routes, err := netlinksafe.RouteListFiltered(family, want, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	if !slices.ContainsFunc(routes, func(got netlink.Route) bool { return want.Gw == nil || got.Gw.Equal(want.Gw) }) {
		return fmt.Errorf("route to %s: it is not there any more", r.Dst.String())
	}
	return nil
}
