package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
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

// modes are those of each kind, the default first, which is the reference
// plugins' and not ip's.
var modes = map[maps.Kind][]maps.Mode{
	maps.Macvlan: {maps.Bridge, maps.Private, maps.VEPA, maps.Passthru, maps.Source},
	maps.Ipvlan:  {maps.L2, maps.L3, maps.L3S},
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
	spec := loader.LinkSpec{MTU: c.MTU, Name: args.IfName, Netns: args.Netns, Owner: c.owner, Port: c.Delivery == "xdp"}
	if c.Delivery != "" && c.Delivery != "auto" && c.Delivery != "xdp" {
		return spec, invalid("delivery: %q: not known; auto and xdp are", c.Delivery)
	}
	spec.Datapath = loader.Datapath(c.Datapath)
	if !slices.Contains([]loader.Datapath{loader.Auto, loader.XDP, loader.TC, loader.Kernel}, spec.Datapath) {
		return spec, invalid("datapath: %q: not known; xdp, tc and kernel are", c.Datapath)
	}
	if bandwidth := string(c.RuntimeConfig.Bandwidth); bandwidth != "" && bandwidth != "null" {
		return spec, types.NewError(types.ErrUnsupportedField, fmt.Sprintf("runtimeConfig.bandwidth: %s: nothing here limits rates; "+
			"take the capability bandwidth out of the configuration", bandwidth), "")
	}
	if len(c.RuntimeConfig.IPs) > 0 && c.IPAM.Type == "" {
		return spec, types.NewError(types.ErrUnsupportedField, fmt.Sprintf("runtimeConfig.ips: %s: there is no ipam to give them; "+
			"say ipam of type static", strings.Join(c.RuntimeConfig.IPs, ", ")), "")
	}
	if err := c.readMode(&spec); err != nil {
		return spec, err
	}
	if err := c.readFlag(&spec); err != nil {
		return spec, err
	}
	if err := c.readMacvlan(&spec); err != nil {
		return spec, err
	}
	var err error
	spec.MAC, err = c.readMAC(args.Args)
	return spec, err
}

func (c *conf) readMode(spec *loader.LinkSpec) error {
	switch c.Kind {
	case "macvlan":
		spec.Kind = maps.Macvlan
	case "ipvlan":
		spec.Kind = maps.Ipvlan
	case "":
		spec.Kind = maps.Macvlan
		if slices.ContainsFunc(modes[maps.Ipvlan], func(m maps.Mode) bool { return m.String() == c.Mode }) {
			spec.Kind = maps.Ipvlan
		}
	default:
		return invalid("kind: %q: not known; macvlan and ipvlan are", c.Kind)
	}
	of := modes[spec.Kind]
	if c.Mode == "" {
		spec.Mode = of[0]
		return nil
	}
	i := slices.IndexFunc(of, func(m maps.Mode) bool { return m.String() == c.Mode })
	switch {
	case i >= 0:
		spec.Mode = of[i]
		return nil
	case c.Kind == "":
		return invalid("mode: %q: not known; these are: %s of macvlan, %s of ipvlan", c.Mode, list(modes[maps.Macvlan]), list(modes[maps.Ipvlan]))
	}
	return invalid("mode: %q: no mode of %s; these are: %s", c.Mode, c.Kind, list(of))
}

func list(modes []maps.Mode) string {
	names := make([]string, len(modes))
	for i, m := range modes {
		names[i] = m.String()
	}
	return strings.Join(names, ", ")
}

func (c *conf) readFlag(spec *loader.LinkSpec) error {
	flags := []maps.Class{maps.ClassBridge, maps.ClassPrivate, maps.ClassVEPA}
	switch {
	case c.Flag == "":
		return nil
	case spec.Kind == maps.Ipvlan:
		i := slices.IndexFunc(flags, func(f maps.Class) bool { return f.String() == c.Flag })
		if i < 0 {
			return invalid("flag: %q: no flag of ipvlan; these are: bridge, private, vepa", c.Flag)
		}
		spec.Flag = flags[i]
	case c.Flag == "nopromisc" && spec.Mode == maps.Passthru:
		spec.NoPromisc = true
	case c.Flag == "nodst" && spec.Mode == maps.Source:
		spec.Source.NoDst = true
	default:
		return invalid("flag: %q: not with mode %s; mode passthru has nopromisc, mode source nodst, "+
			"and an ipvlan bridge, private or vepa", c.Flag, spec.Mode)
	}
	return nil
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
