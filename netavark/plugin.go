// Package netavark is a plugin for netavark, podman's network stack: the verbs
// create, setup, teardown and info, with JSON on standard input and output.
package netavark

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/xvlan/xvlan/internal/thread"
	"github.com/xvlan/xvlan/loader"
)

// apiVersion is that of netavark's plugin interface.
const apiVersion = "1.0.0"

// Run answers one call of the plugin, of which args are the words after its name,
// and returns its exit status. An error goes to out, as netavark wants it.
func Run(args []string, in io.Reader, out io.Writer, version string) int {
	answer, err := call(args, in, version)
	code := 0
	if err != nil {
		answer, code = map[string]string{"error": err.Error()}, 1
	}
	if answer == nil {
		return code
	}
	if err := json.NewEncoder(out).Encode(answer); err != nil {
		return 1
	}
	return code
}

func call(args []string, in io.Reader, version string) (any, error) {
	switch {
	case len(args) == 1 && args[0] == "info":
		return map[string]string{"version": version, "api_version": apiVersion}, nil
	case len(args) == 1 && args[0] == "create":
		return create(in)
	case len(args) == 2 && (args[0] == "setup" || args[0] == "teardown"):
		c := &container{}
		if err := json.NewDecoder(in).Decode(c); err != nil {
			return nil, fmt.Errorf("read what is asked for: %w", err)
		}
		if args[0] == "teardown" {
			return nil, c.teardown(args[1])
		}
		return c.setup(args[1])
	}
	return nil, fmt.Errorf("%q: %w: netavark calls this with create, info, setup NETNS or teardown NETNS", args, loader.ErrInvalid)
}

// create answers with the network, completed. What is not known here stays.
func create(in io.Reader) (any, error) {
	raw, err := io.ReadAll(in)
	if err != nil {
		return nil, fmt.Errorf("read network: %w", err)
	}
	var (
		all map[string]any
		n   network
	)
	if err := errors.Join(json.Unmarshal(raw, &all), json.Unmarshal(raw, &n)); err != nil {
		return nil, fmt.Errorf("read network: %w", err)
	}
	if err := n.complete(); err != nil {
		return nil, fmt.Errorf("network %s: %w", n.Name, err)
	}
	all["dns_enabled"], all["ipam_options"], all["network_interface"] = n.DNS, n.IPAM, n.Interface
	if len(n.Subnets) > 0 {
		all["subnets"] = n.Subnets
	}
	return all, nil
}

// status is what netavark is told of a container's interfaces.
type status struct {
	DNSSearch  []string          `json:"dns_search_domains"`
	DNSServers []string          `json:"dns_server_ips"`
	Interfaces map[string]device `json:"interfaces"`
}

type device struct {
	MAC     string    `json:"mac_address"`
	Subnets []address `json:"subnets"`
}

type address struct {
	IPNet   netip.Prefix `json:"ipnet"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// owner is by which a container's sub-interface is found.
func (c *container) owner() string {
	return "netavark/" + c.Network.ID + "/" + c.ID + "/" + c.Options.Name
}

// setup makes a container's sub-interface with its addresses and routes, or
// leaves nothing.
func (c *container) setup(space string) (any, error) {
	o, err := c.Network.parseOptions()
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", c.Network.Name, err)
	}
	spec := o.spec
	spec.Parent, spec.Name, spec.Netns, spec.Owner = c.Network.Interface, c.Options.Name, space, c.owner()
	if spec.Addrs, err = c.addrs(); err != nil {
		return nil, err
	}
	if spec.MAC, err = c.mac(); err != nil {
		return nil, err
	}
	err = withHost(func(h *loader.Host) (err error) {
		if spec.Parent == "" {
			if spec.Parent, err = h.DefaultParent(); err != nil {
				return err
			}
		}
		return h.Add(spec)
	})
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", c.Network.Name, err)
	}
	dev := device{Subnets: []address{}}
	err = inside(space, func() (err error) {
		dev.MAC, err = c.configure(o)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network %s: %w", c.Network.Name, err), c.teardown(space))
	}
	for _, a := range spec.Addrs {
		dev.Subnets = append(dev.Subnets, address{a, c.gatewayOf(a.Addr())})
	}
	return status{[]string{}, []string{}, map[string]device{spec.Name: dev}}, nil
}

// gatewayOf is the gateway of an address's subnet, none of an internal network.
func (c *container) gatewayOf(a netip.Addr) (gateway netip.Addr) {
	for _, s := range c.Network.Subnets {
		if s.Subnet.Contains(a) && !c.Network.Internal {
			return s.Gateway
		}
	}
	return gateway
}

// teardown removes a container's sub-interface, if it is still there.
func (c *container) teardown(space string) error {
	err := withHost(func(h *loader.Host) error {
		return h.Del(loader.Selector{Owner: c.owner(), Name: c.Options.Name, Netns: space})
	})
	if errors.Is(err, loader.ErrNotFound) {
		return nil
	}
	return err
}

// configure does what is to be done to the device in the container: addresses by
// router advertisement are not podman's way, which chooses all; then it is set up
// and gets its routes.
func (c *container) configure(o options) (mac string, err error) {
	l, err := netlink.LinkByName(c.Options.Name)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", c.Options.Name, err)
	}
	autoconf := filepath.Join("/proc/sys/net/ipv6/conf", c.Options.Name, "autoconf")
	if err := os.WriteFile(autoconf, []byte("0"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("turn ipv6 autoconfiguration off: %w", err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return "", fmt.Errorf("set %s up: %w", c.Options.Name, err)
	}
	index := l.Attrs().Index
	if !o.noDefaultRoute {
		for _, r := range c.defaultRoutes(o) {
			r.LinkIndex = index
			if err := netlink.RouteAdd(r); err != nil {
				return "", fmt.Errorf("add default route %s: %w", r, err)
			}
		}
	}
	for _, r := range c.Network.Routes {
		to := &netlink.Route{LinkIndex: index, Dst: prefix(r.Destination), Gw: r.Gateway.AsSlice()}
		if r.Metric != nil {
			to.Priority = *r.Metric
		}
		if err := netlink.RouteAdd(to); err != nil {
			return "", fmt.Errorf("add route %s: %w", to, err)
		}
	}
	return l.Attrs().HardwareAddr.String(), nil
}

// defaultRoutes are those by the gateways of the subnets that the container has
// addresses of, or in the modes l3 and l3s, which have no link to have a gateway
// on, by the device.
func (c *container) defaultRoutes(o options) (all []*netlink.Route) {
	seen := map[netip.Addr]bool{}
	for _, ip := range c.Options.IPs {
		gateway := c.gatewayOf(ip)
		if !gateway.IsValid() || seen[gateway] {
			continue
		}
		seen[gateway] = true
		anywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if ip.Is6() {
			anywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		r := &netlink.Route{Dst: prefix(anywhere), Priority: o.metric}
		if o.spec.Mode.Routed() {
			r.Scope = netlink.SCOPE_LINK
		} else {
			r.Gw = gateway.AsSlice()
		}
		all = append(all, r)
	}
	return all
}

// withHost runs fn with the loader. What is not as it should be, but no reason to
// fail, goes to standard error, where podman's users see it.
func withHost(fn func(*loader.Host) error) error {
	h, err := loader.Open(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

// inside runs fn in a network namespace.
func inside(path string, fn func() error) error {
	return thread.Run(func() error {
		space, err := netns.GetFromPath(path)
		if err != nil {
			return fmt.Errorf("open netns %s: %w", path, err)
		}
		defer space.Close()
		if err := netns.Set(space); err != nil {
			return fmt.Errorf("enter netns %s: %w", path, err)
		}
		return fn()
	})
}

func prefix(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
