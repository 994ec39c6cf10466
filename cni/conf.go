package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// conf is a network's configuration: what the reference plugins macvlan and
// ipvlan take, under their keys, and what xvlan has besides. Other keys are other
// plugins' or the runtime's.
type conf struct {
	types.PluginConf

	Master          string   `json:"master"` // "": see call.master
	Kind            string   `json:"kind"`   // "": what has the mode
	Mode            string   `json:"mode"`   // "": macvlan's bridge, ipvlan's l2
	Flag            string   `json:"flag"`
	MACs            []string `json:"macaddr"` // of mode source
	MTU             int      `json:"mtu"`     // 0: the master's
	MAC             string   `json:"mac"`
	LinkInContainer bool     `json:"linkInContainer"` // the master is in the container's namespace
	QueueLen        uint32   `json:"bcqueuelen"`      // 0: the driver's
	QueueLimit      *int32   `json:"bclim"`
	Datapath        string   `json:"datapath"`
	Delivery        string   `json:"delivery"`
	Leg             string   `json:"leg"`
	DHCP            string   `json:"dhcp"`
	Host            string   `json:"host"`
	Via             []string `json:"via-host"` // networks
	Guard           string   `json:"guard"`
	VLAN            uint16   `json:"vlan"`
	Outer           uint16   `json:"qinq"`
	Trunk           []struct {
		First *uint16 `json:"minID"`
		Last  *uint16 `json:"maxID"`
		ID    *uint16 `json:"id"`
	} `json:"vlanTrunk"` // as the reference plugin bridge has it

	Rate json.RawMessage `json:"bcrate"` // a number, or "off"

	RuntimeConfig struct { // what the runtime adds for declared capabilities
		MAC       string          `json:"mac"`
		IPs       []string        `json:"ips"`
		Bandwidth json.RawMessage `json:"bandwidth"`
	} `json:"runtimeConfig"`

	owner string // of the one that the call is about; the network's prefix where it is about none
}

// envArgs are the keys of CNI_ARGS that are known here. IP and GATEWAY are for
// IPAM plugins.
type envArgs struct {
	types.CommonArgs
	MAC, IP, GATEWAY types.UnmarshallableString
}

// invalid says what is wrong with a configuration.
func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}

// parse reads a configuration as far as DEL and GC need it: what has been made
// under it may be removed whether or not all of it makes sense.
func parse(args *skel.CmdArgs) (*conf, error) {
	c := &conf{}
	err := json.Unmarshal(args.StdinData, c)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("%s: is a %s, not of type %s", wrong.Field, wrong.Value, wrong.Type), "")
	}
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("network configuration: %v", err), "")
	}
	c.owner = ownerPrefix(c.Name)
	if args.ContainerID != "" {
		c.owner += args.ContainerID + "/" + args.IfName
	}
	return c, nil
}

// ownerPrefix begins the owners of a network's sub-interfaces. None of its parts
// can have a slash in it.
func ownerPrefix(network string) string { return "cni/" + network + "/" }

// spec describes the sub-interface, as far as the configuration tells.
func (c *conf) spec(args *skel.CmdArgs) (loader.LinkSpec, error) {
	kinds := map[string]maps.Kind{"macvlan": maps.Macvlan, "ipvlan": maps.Ipvlan}
	spec := loader.LinkSpec{
		Name: args.IfName, Netns: args.Netns, Owner: c.owner, MTU: c.MTU, Kind: kinds[c.Kind], Port: c.Delivery == "xdp", Netkit: c.Leg == "netkit", Host: c.Host == "on",
	}
	for _, word := range []struct{ key, value, one, other string }{
		{"kind", c.Kind, "macvlan", "ipvlan"}, {"delivery", c.Delivery, "auto", "xdp"}, {"leg", c.Leg, "veth", "netkit"},
		{"dhcp", c.DHCP, "on", "off"}, {"host", c.Host, "off", "on"},
	} {
		if word.value != "" && word.value != word.one && word.value != word.other {
			return spec, invalid("%s: %q: not known; %s and %s are", word.key, word.value, word.one, word.other)
		}
	}
	if c.DHCP != "" {
		on := c.DHCP == "on"
		spec.DHCP = &on
	}
	if bandwidth := string(c.RuntimeConfig.Bandwidth); bandwidth != "" && bandwidth != "null" {
		return spec, types.NewError(types.ErrUnsupportedField, fmt.Sprintf("runtimeConfig.bandwidth: %s: nothing here limits rates; "+
			"take the capability bandwidth out of the configuration", bandwidth), "")
	}
	if len(c.RuntimeConfig.IPs) > 0 && c.IPAM.Type == "" {
		return spec, types.NewError(types.ErrUnsupportedField, fmt.Sprintf("runtimeConfig.ips: %s: there is no ipam to give them; "+
			"say ipam of type static", strings.Join(c.RuntimeConfig.IPs, ", ")), "")
	}
	rate := ""
	if c.Rate != nil && string(c.Rate) != "null" {
		rate = strings.Trim(string(c.Rate), `"`)
	}
	if err := errors.Join(spec.SetMode(c.Mode), spec.SetDatapath(c.Datapath), spec.SetVia(strings.Join(c.Via, ",")), spec.Guard.Parse(c.Guard, rate)); err != nil {
		return spec, err
	}
	if err := spec.SetFlag(c.Flag); err != nil {
		return spec, err
	}
	if err := c.readVLAN(&spec.VLAN); err != nil {
		return spec, err
	}
	if err := c.readMacvlan(&spec); err != nil {
		return spec, err
	}
	var err error
	spec.MAC, err = c.readMAC(args.Args)
	return spec, err
}

// readMacvlan reads what only a macvlan has.
func (c *conf) readMacvlan(spec *loader.LinkSpec) error {
	if len(c.MACs) > 0 && spec.Mode != maps.Source {
		return invalid("macaddr: %s: only mode source has a list", strings.Join(c.MACs, ", "))
	}
	for _, s := range c.MACs {
		mac, err := net.ParseMAC(s)
		if err != nil {
			return invalid("macaddr: %q: no MAC address; write six bytes in hex, as 02:00:5e:10:00:01", s)
		}
		spec.Source.MACs = append(spec.Source.MACs, mac)
	}
	if c.QueueLen != 0 {
		spec.Queue.Len = &c.QueueLen
	}
	spec.Queue.Limit = c.QueueLimit
	if spec.Kind != maps.Macvlan && (spec.Queue.Len != nil || spec.Queue.Limit != nil) {
		return invalid("bcqueuelen, bclim: only a macvlan has them, and this is mode %s", spec.Mode)
	}
	return nil
}

// readVLAN reads in which VLANs it is; 0 says none, as to the reference plugins.
func (c *conf) readVLAN(spec *loader.VLANSpec) error {
	word := func(id uint16) string {
		if id == 0 {
			return ""
		}
		return strconv.Itoa(int(id))
	}
	var trunk []string
	for _, r := range c.Trunk {
		switch {
		case r.ID != nil && r.First == nil && r.Last == nil:
			trunk = append(trunk, strconv.Itoa(int(*r.ID)))
		case r.ID == nil && r.First != nil && r.Last != nil:
			trunk = append(trunk, fmt.Sprintf("%d-%d", *r.First, *r.Last))
		default:
			return invalid("vlanTrunk: each says either id, or minID and maxID")
		}
	}
	if err := spec.Parse(word(c.VLAN), word(c.Outer), strings.Join(trunk, ",")); err != nil {
		return invalid("%v", err)
	}
	return nil
}

// readMAC finds the MAC that is asked for, if any is. The runtime comes before
// CNI_ARGS, and that before the configuration.
func (c *conf) readMAC(env string) (net.HardwareAddr, error) {
	var given envArgs
	if err := types.LoadArgs(env, &given); err != nil {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS %q: %v", env, err), "")
	}
	for _, from := range []struct{ key, value string }{
		{"runtimeConfig.mac", c.RuntimeConfig.MAC}, {"CNI_ARGS MAC", string(given.MAC)}, {"mac", c.MAC},
	} {
		if from.value == "" {
			continue
		}
		mac, err := net.ParseMAC(from.value)
		if err != nil {
			return nil, invalid("%s: %q: no MAC address; write six bytes in hex, as 02:00:5e:10:00:01", from.key, from.value)
		}
		return mac, nil
	}
	return nil, nil
}
