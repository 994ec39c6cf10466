package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/xvlan/xvlan/loader"
)

// add makes a sub-interface with its addresses and routes, or leaves nothing.
func add(args *skel.CmdArgs) error {
	c, err := begin(args)
	if err != nil {
		return err
	}
	defer c.netns.Close()
	err = c.add()
	if err != nil && ns.IsNSorErr(args.Netns) != nil {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("CNI_NETNS %s: it has gone meanwhile: %v", args.Netns, err), "")
	}
	return err
}

// add asks for addresses while the device is made, or after, where the IPAM plugin
// uses it. The device is not up before they are entered: so nobody else can learn
// them.
func (c *call) add() (err error) {
	spec, err := c.spec(c.args)
	if err != nil {
		return err
	}
	if err := c.findIPAM(c.args); err != nil {
		return err
	}
	before, err := c.previous()
	if err != nil {
		return err
	}
	if spec.Parent, err = c.master(before); err != nil {
		return err
	}
	addresses := sync.OnceValues(func() (*current.Result, error) { return c.addresses(before) })
	if !c.usesDevice() {
		go addresses()
	}
	if err := c.host(func(h *loader.Host) error { return h.Add(spec) }); err != nil {
		err = fmt.Errorf("master %s: %w", spec.Parent, err)
		if c.usesDevice() {
			return err
		}
		if _, none := addresses(); none == nil {
			err = errors.Join(err, c.exec(c.args, invoke.DelegateDel))
		}
		return err
	}
	undo := []func() error{c.remove}
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	result, err := addresses()
	if err != nil {
		return err
	}
	undo = append(undo, func() error { return c.exec(c.args, invoke.DelegateDel) })
	if err := c.give(result); err != nil {
		return err
	}
	if err := c.inside(func() error { return c.configure(result) }); err != nil {
		return err
	}
	return c.print(result)
}

// master is the parent's name: the configuration's, in a chain the one device of
// the plugin before, or the one that the default route leaves by.
func (c *call) master(before *current.Result) (name string, err error) {
	switch {
	case c.Master != "":
		return c.Master, nil
	case before != nil && len(before.Interfaces) == 1 && before.Interfaces[0].Name != "":
		return before.Interfaces[0].Name, nil
	case before != nil:
		return "", invalid("master: not said, and prevResult has %d interfaces to choose from; say which", len(before.Interfaces))
	}
	err = c.host(func(h *loader.Host) (err error) {
		name, err = h.DefaultParent()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("master: %w", err)
	}
	return name, nil
}

// addresses asks the IPAM plugin for addresses and routes. Without one the
// device gets those of the plugin before, or none.
func (c *call) addresses(before *current.Result) (*current.Result, error) {
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	switch {
	case c.IPAM.Type != "":
		var answer types.Result
		err := c.exec(c.args, func(ctx context.Context, plugin string, conf []byte, exec invoke.Exec) (err error) {
			answer, err = invoke.DelegateAdd(ctx, plugin, conf, exec)
			return err
		})
		if err != nil {
			return nil, err
		}
		if result, err = current.NewResultFromResult(answer); err == nil && len(result.IPs) == 0 {
			err = errors.New("it has given no address")
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("ipam %s: %w", c.IPAM.Type, err), c.exec(c.args, invoke.DelegateDel))
		}
	case before != nil:
		result = before
	}
	result.Interfaces = []*current.Interface{{Name: c.args.IfName, Sandbox: c.args.Netns}}
	for _, ip := range result.IPs {
		ip.Interface = current.Int(0)
	}
	if !c.DNS.IsEmpty() {
		result.DNS = c.DNS
	}
	return result, nil
}

// give enters the addresses, so that they lead to the sub-interface at once, and
// sets them on it.
func (c *call) give(result *current.Result) error {
	if len(result.IPs) == 0 {
		return nil
	}
	var addrs []netip.Prefix
	v6 := false
	for _, ip := range result.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		bits, _ := ip.Address.Mask.Size()
		if !ok {
			return fmt.Errorf("address %s: %w", ip.Address.String(), loader.ErrInvalid)
		}
		a = a.Unmap()
		v6 = v6 || a.Is6()
		addrs = append(addrs, netip.PrefixFrom(a, bits))
	}
	if v6 {
		if err := c.inside(c.enableIPv6); err != nil {
			return err
		}
	}
	return c.host(func(h *loader.Host) error { return h.SetAddrs(c.selector(), addrs) })
}

// print writes the result as the configuration's version has it. The device's
// MTU is told from version 1.1.0 on.
func (c *call) print(result *current.Result) error {
	asked, err := (&version.ConfigDecoder{}).Decode(c.args.StdinData)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	newer, err := version.GreaterThanOrEqualTo(asked, "1.1.0")
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	if !newer {
		result.Interfaces[0].Mtu = 0
	}
	return types.PrintResult(result, asked)
}

// gatewayOf is the first gateway of a family among those of the addresses.
func gatewayOf(result *current.Result, v4 bool) net.IP {
	for _, ip := range result.IPs {
		if ip.Gateway != nil && (ip.Gateway.To4() != nil) == v4 {
			return ip.Gateway
		}
	}
	return nil
}
