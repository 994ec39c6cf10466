package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What is done to the device inside the container, in its namespace.

// enableIPv6 lets the device have IPv6 addresses, which runtimes often forbid by
// default, and keep them while it is down.
func (c *call) enableIPv6() error {
	for _, s := range []struct{ dev, key, value string }{
		{"lo", "disable_ipv6", "0"}, {c.args.IfName, "disable_ipv6", "0"}, {c.args.IfName, "keep_addr_on_down", "1"},
	} {
		path := filepath.Join("/proc/sys/net/ipv6/conf", s.dev, s.key)
		if err := os.WriteFile(path, []byte(s.value), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("enable ipv6: %w", err)
		}
	}
	return nil
}

// configure sets the device up, adds routes, and tells the result of the device.
func (c *call) configure(result *current.Result) error {
	l, err := netlinksafe.LinkByName(c.args.IfName)
	if err != nil {
		return fmt.Errorf("find %s: %w", c.args.IfName, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", c.args.IfName, err)
	}
	if gatewayOf(result, false) != nil {
		if err := settle(l); err != nil {
			return err
		}
	}
	for _, r := range result.Routes {
		if err := addRoute(l, r, gatewayOf(result, isIPv4(r.Dst))); err != nil {
			return err
		}
	}
	dev := result.Interfaces[0]
	dev.Mac, dev.Mtu = l.Attrs().HardwareAddr.String(), l.Attrs().MTU
	return nil
}

func isIPv4(dst net.IPNet) bool { return dst.IP.To4() != nil }

// addRoute adds a route, by the gateway if it names none of its own.
func addRoute(l netlink.Link, r *types.Route, gateway net.IP) error {
	route := routeOf(l, r)
	if route.Gw == nil {
		route.Gw = gateway
	}
	if err := netlink.RouteAddEcmp(route); err != nil {
		return fmt.Errorf("add route %s via %s: %w", route.Dst, route.Gw, err)
	}
	return nil
}

func routeOf(l netlink.Link, r *types.Route) *netlink.Route {
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: &r.Dst, Gw: r.GW, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
	if r.Table != nil {
		route.Table = *r.Table
	}
	if r.Scope != nil {
		route.Scope = netlink.Scope(*r.Scope)
	}
	return route
}

// settle waits until duplicate address detection is through with the device's
// IPv6 addresses: before, what leaves by a route has no source. Without a wire
// they do not become usable, which is no failure of ours.
func settle(l netlink.Link) error {
	const limit, step = 5 * time.Second, 20 * time.Millisecond
	for deadline := time.Now().Add(limit); ; time.Sleep(step) {
		addrs, err := netlinksafe.AddrList(l, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		tentative := false
		for _, a := range addrs {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return fmt.Errorf("address %s: somebody else on the wire has it", a.IP)
			}
			tentative = tentative || a.Flags&unix.IFA_F_TENTATIVE != 0
		}
		if !tentative || time.Now().After(deadline) {
			return nil
		}
	}
}
