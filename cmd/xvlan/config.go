package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// What a file for apply says, in the order that it is printed in.
type configYAML struct {
	Parents []parentYAML `yaml:"parents" json:"parents"`
}

type parentYAML struct {
	Name     string     `yaml:"name" json:"name"`
	Netns    string     `yaml:"netns,omitempty" json:"netns,omitempty"`
	Datapath string     `yaml:"datapath,omitempty" json:"datapath,omitempty"`
	Unknown  string     `yaml:"unknown,omitempty" json:"unknown,omitempty"`
	Capacity uint32     `yaml:"capacity,omitempty" json:"capacity,omitempty"`
	Links    []linkYAML `yaml:"links,omitempty" json:"links,omitempty"`
}

type linkYAML struct {
	Name     string   `yaml:"name" json:"name"`
	Type     string   `yaml:"type" json:"type"`
	Mode     string   `yaml:"mode" json:"mode"`
	Flag     string   `yaml:"flag,omitempty" json:"flag,omitempty"`
	Netns    string   `yaml:"netns,omitempty" json:"netns,omitempty"`
	Address  string   `yaml:"address,omitempty" json:"address,omitempty"`
	Addrs    []string `yaml:"addr,omitempty,flow" json:"addr,omitempty"`
	MTU      int      `yaml:"mtu,omitempty" json:"mtu,omitempty"`
	Up       bool     `yaml:"up,omitempty" json:"up,omitempty"`
	Host     string   `yaml:"host,omitempty" json:"host,omitempty"`
	Via      []string `yaml:"via-host,omitempty,flow" json:"via-host,omitempty"`
	Delivery string   `yaml:"delivery,omitempty" json:"delivery,omitempty"`
	Leg      string   `yaml:"leg,omitempty" json:"leg,omitempty"`
	DHCP     string   `yaml:"dhcp,omitempty" json:"dhcp,omitempty"`
	Guard    string   `yaml:"guard,omitempty" json:"guard,omitempty"`
	Rate     string   `yaml:"bcrate,omitempty" json:"bcrate,omitempty"`
	VLAN     uint16   `yaml:"vlan,omitempty" json:"vlan,omitempty"`
	Outer    uint16   `yaml:"qinq,omitempty" json:"qinq,omitempty"`
	Trunk    string   `yaml:"trunk,omitempty" json:"trunk,omitempty"`
	MACs     []string `yaml:"macaddr,omitempty,flow" json:"macaddr,omitempty"`
	Queue    *uint32  `yaml:"bcqueuelen,omitempty" json:"bcqueuelen,omitempty"`
	Limit    *int32   `yaml:"bclim,omitempty" json:"bclim,omitempty"`
}

// The queue of a new macvlan, as Linux has it.
const (
	defaultQueueLen   = 1000
	defaultQueueLimit = 1
)

func (a *app) configCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print what there is as a file for apply",
		Long: `Prints the parents of this network namespace and their sub-interfaces, which
"apply" then finds nothing to change about, or makes again where they are gone.
MACs are printed, so that sub-interfaces keep them; learned addresses are not.`,
		Example: `  xvlan config > /etc/xvlan/xvlan.yaml`,
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return a.with(a.config) },
	}
}

func (a *app) config(h *loader.Host) error {
	parents, err := h.Parents()
	if err != nil {
		return err
	}
	links, err := h.Links()
	if err != nil {
		return err
	}
	c := configYAML{Parents: []parentYAML{}}
	for _, info := range parents {
		p := parentYAML{Name: info.Name, Netns: a.netns}
		if (loader.Rung{Rung: info.Rung, Reason: info.Reason}).Asked() {
			p.Datapath = info.Rung.String()
		}
		if info.Keep {
			p.Unknown = unknown(info.UnknownDrop)
		}
		if info.Capacity != loader.DefaultCapacity {
			p.Capacity = info.Capacity
		}
		for _, l := range links {
			if l.Parent != info.Name {
				continue
			}
			spec, err := h.Spec(l)
			if errors.Is(err, loader.ErrNotFound) {
				continue
			}
			if err != nil {
				return fmt.Errorf("describe %s: %w", l.Name, err)
			}
			p.Links = append(p.Links, configLink(&spec, l, info.MTU))
		}
		c.Parents = append(c.Parents, p)
	}
	if a.json {
		return a.printJSON(c)
	}
	out, err := yaml.Dump(&c, yaml.WithIndent(2), yaml.WithCompactSeqIndent(false))
	if err != nil {
		return fmt.Errorf("write yaml: %w", err)
	}
	_, err = a.out.Write(out)
	return err
}

// configLink says what is not as it would be anyway.
func configLink(spec *loader.LinkSpec, l loader.Link, parentMTU int) linkYAML {
	y := linkYAML{
		Name: spec.Name, Type: spec.Kind.String(), Mode: spec.Mode.String(), Flag: flagOf(spec), Netns: spec.Netns, Up: spec.Up,
	}
	// The kernel's ipvlan, and passthru anywhere, have their parent's.
	if spec.Mode != maps.Passthru && (l.Rung.Rung != maps.RungKernel || spec.Kind == maps.Macvlan) {
		y.Address = spec.MAC.String()
	}
	for _, x := range spec.Addrs {
		y.Addrs = append(y.Addrs, x.String())
	}
	if spec.MTU != parentMTU {
		y.MTU = spec.MTU
	}
	if spec.Host {
		y.Host = onOff(true)
	}
	y.Via = stringsOf(spec.Via)
	if spec.Port {
		y.Delivery = portWord(true)
	}
	if spec.Netkit {
		y.Leg = pairWord(true)
	}
	if spec.DHCP != nil {
		y.DHCP = onOff(*spec.DHCP)
	}
	if spec.Guard.Guard != nil {
		y.Guard = spec.Guard.Guard.String()
	}
	if spec.Guard.Rate != nil {
		y.Rate = rateWord(*spec.Guard.Rate)
	}
	v := spec.VLAN.Of(loader.VLAN{})
	if y.VLAN, y.Outer = v.ID, v.Outer; v.IsTrunk() {
		y.Trunk = v.Trunk.String()
	}
	if spec.Mode == maps.Source {
		for _, mac := range spec.Source.MACs {
			y.MACs = append(y.MACs, mac.String())
		}
	}
	if n := spec.Queue.Len; n != nil && *n != defaultQueueLen {
		y.Queue = n
	}
	if n := spec.Queue.Limit; n != nil && *n != defaultQueueLimit {
		y.Limit = n
	}
	return y
}
