package netavark

import (
	"errors"
	"fmt"
	stdmaps "maps"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// A network is netavark's, as far as it matters here.
type network struct {
	Name      string            `json:"name"`
	ID        string            `json:"id"`
	Interface string            `json:"network_interface"` // the parent
	Internal  bool              `json:"internal"`
	DNS       bool              `json:"dns_enabled"`
	Options   map[string]string `json:"options"`
	IPAM      map[string]string `json:"ipam_options"`
	Subnets   []subnet          `json:"subnets"`
	Routes    []route           `json:"routes"`
}

type subnet struct {
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	Range   any          `json:"lease_range,omitempty"` // podman's own
}

type route struct {
	Destination netip.Prefix `json:"destination"`
	Gateway     netip.Addr   `json:"gateway"`
	Metric      *int         `json:"metric"`
}

// container is what is asked for of one network for one container.
type container struct {
	ID      string  `json:"container_id"`
	Network network `json:"network"`
	Options struct {
		Name string       `json:"interface_name"`
		IPs  []netip.Addr `json:"static_ips"`
		MAC  string       `json:"static_mac"`
	} `json:"network_options"`
}

// options are a network's, understood.
type options struct {
	spec           loader.LinkSpec // kind, mode, flag, MTU, queue, datapath, host, via-host, guard and VLANs
	metric         int             // of default routes
	noDefaultRoute bool
}

// defaultMetric is netavark's for macvlan and ipvlan: it wins over its bridges.
const defaultMetric = 99

// parseOptions reads the options that netavark's macvlan and ipvlan have, and
// xvlan's own.
func (n *network) parseOptions() (o options, err error) {
	o.metric = defaultMetric
	for _, key := range slices.Sorted(stdmaps.Keys(n.Options)) {
		if err := n.option(&o, key, n.Options[key]); err != nil {
			return o, fmt.Errorf("option %s: %w", key, err)
		}
	}
	err = errors.Join(o.spec.SetMode(n.Options["mode"]), o.spec.SetFlag(n.Options["flag"]), o.spec.SetDatapath(n.Options["datapath"]), o.spec.SetHost(n.Options["host"]),
		o.spec.SetVia(n.Options["via-host"]), o.spec.Guard.Parse(n.Options["guard"], n.Options["bcrate"]), o.spec.VLAN.Parse(n.Options["vlan"], n.Options["qinq"], n.Options["trunk"]))
	if err == nil && o.spec.Mode == maps.Source {
		err = fmt.Errorf("mode source: %w: it takes a list, which podman has no words for", loader.ErrInvalid)
	}
	if err == nil && o.spec.Queue.Limit != nil && o.spec.Kind != maps.Macvlan {
		err = fmt.Errorf("option bclim: %w: only a macvlan has it, and this is mode %s", loader.ErrInvalid, o.spec.Mode)
	}
	return o, err
}

func (n *network) option(o *options, key, value string) (err error) {
	switch key {
	case "parent":
		if n.Interface != "" && n.Interface != value {
			return fmt.Errorf("%w: the network's interface is %s; say one", loader.ErrInvalid, n.Interface)
		}
		n.Interface = value
	case "mode", "flag", "datapath", "host", "via-host", "guard", "bcrate", "vlan", "qinq", "trunk": // together, when all are known
	case "mtu":
		o.spec.MTU, err = number(value, 1)
	case "metric":
		o.metric, err = number(value, 0)
	case "bclim":
		limit, err := strconv.ParseInt(value, 10, 32)
		if err != nil {
			return fmt.Errorf("%w: %q is no number", loader.ErrInvalid, value)
		}
		bclim := int32(limit)
		o.spec.Queue.Limit = &bclim
	case "no_default_route":
		if o.noDefaultRoute, err = strconv.ParseBool(value); err != nil {
			return fmt.Errorf("%w: %q is neither true nor false", loader.ErrInvalid, value)
		}
	default:
		return fmt.Errorf("%w: not known; parent, mode, flag, mtu, metric, no_default_route, bclim, host, datapath, guard, bcrate, vlan, qinq and trunk are", loader.ErrInvalid)
	}
	return err
}

func number(value string, least int) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < least {
		return 0, fmt.Errorf("%w: %q is no number from %d on", loader.ErrInvalid, value, least)
	}
	return n, nil
}

// complete checks a new network and fills in what podman's own macvlan networks
// have: a gateway in each subnet, and who chooses addresses.
func (n *network) complete() error {
	if _, err := n.parseOptions(); err != nil {
		return err
	}
	for i, s := range n.Subnets {
		if !s.Gateway.IsValid() && !n.Internal {
			n.Subnets[i].Gateway = s.Subnet.Masked().Addr().Next()
		} else if s.Gateway.IsValid() && !s.Subnet.Contains(s.Gateway) {
			return fmt.Errorf("gateway %s: %w: not in subnet %s", s.Gateway, loader.ErrInvalid, s.Subnet)
		}
	}
	if n.IPAM == nil {
		n.IPAM = map[string]string{}
	}
	switch driver := n.IPAM["driver"]; {
	case driver == "" && len(n.Subnets) > 0:
		n.IPAM["driver"] = "host-local"
	case driver == "":
		n.IPAM["driver"] = "none"
	case driver == "host-local" && len(n.Subnets) == 0:
		return fmt.Errorf("ipam driver host-local: %w: it needs a subnet", loader.ErrInvalid)
	case driver == "none" && len(n.Subnets) > 0:
		return fmt.Errorf("ipam driver none: %w: subnets are said, of which nobody would give addresses", loader.ErrInvalid)
	case driver != "host-local" && driver != "none":
		return fmt.Errorf("ipam driver %s: %w: host-local and none are; with none a DHCP client in the container may ask", driver, loader.ErrUnsupported)
	}
	n.DNS = false // netavark's name server knows nothing of plugins' networks
	return nil
}

// addrs are the container's addresses, with the length of their subnets.
func (c *container) addrs() (all []netip.Prefix, err error) {
	for _, ip := range c.Options.IPs {
		i := slices.IndexFunc(c.Network.Subnets, func(s subnet) bool { return s.Subnet.Contains(ip) })
		if i < 0 {
			return nil, fmt.Errorf("static_ips: %s: %w: it is in no subnet of network %s", ip, loader.ErrInvalid, c.Network.Name)
		}
		all = append(all, netip.PrefixFrom(ip, c.Network.Subnets[i].Subnet.Bits()))
	}
	return all, nil
}

// mac is the container's, nil for a random one.
func (c *container) mac() (net.HardwareAddr, error) {
	if c.Options.MAC == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(c.Options.MAC)
	if err != nil {
		return nil, fmt.Errorf("static_mac: %q: %w: no MAC address", c.Options.MAC, loader.ErrInvalid)
	}
	return mac, nil
}
