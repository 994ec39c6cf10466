package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// del removes what add has made, or as much of it as there is. The address is
// given back meanwhile, or before, where the IPAM plugin uses the device; that this
// fails is no reason to leave the device.
func del(args *skel.CmdArgs) error {
	conf, err := parse(args)
	if err != nil {
		return err
	}
	c := &call{conf: conf, args: args}
	release := sync.OnceValue(func() error { return c.exec(args, invoke.DelegateDel) })
	if c.usesDevice() {
		release() // says again below what it says
	} else {
		go release()
	}
	if netns, err := ns.GetNS(args.Netns); err == nil {
		c.netns = netns
		defer netns.Close()
	}
	removed := c.remove()
	return errors.Join(release(), removed)
}

// remove removes the sub-interface; that there is none is no error. What is left
// of one that has gone, by itself or with its namespace, is tidied up then.
func (c *call) remove() error {
	err := c.host(func(h *loader.Host) error { return h.Del(c.selector()) })
	if errors.Is(err, loader.ErrNotFound) {
		return nil
	}
	return err
}

// gc removes the network's sub-interfaces that the runtime does not name. Those
// whose master is in a container go with that.
func gc(args *skel.CmdArgs) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	const key = "cni.dev/valid-attachments"
	var said map[string]json.RawMessage
	if err := json.Unmarshal(args.StdinData, &said); err != nil {
		return types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	if _, ok := said[key]; !ok {
		return invalid("%s: missing; without it nothing is known to be garbage", key)
	}
	valid := map[string]bool{}
	for _, a := range c.ValidAttachments {
		valid[ownerPrefix(c.Name)+a.ContainerID+"/"+a.IfName] = true
	}
	return errors.Join(withHost(func(h *loader.Host) error {
		err := h.Sweep()
		links, lerr := h.Links()
		err = errors.Join(err, lerr)
		for _, l := range links {
			if strings.HasPrefix(l.Owner, c.owner) && !valid[l.Owner] {
				err = errors.Join(err, h.Del(loader.Selector{Owner: l.Owner}))
			}
		}
		return err
	}), c.exec(args, invoke.DelegateGC))
}

// status tells whether an ADD could be served, as far as that does not hang on
// its container.
func status(args *skel.CmdArgs) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	args.IfName = "xvlan-status" // of a device that is not made
	spec, err := c.spec(args)
	if err != nil {
		return err
	}
	if err := c.findIPAM(args); err != nil {
		return err
	}
	if !c.LinkInContainer {
		if err := c.ready(spec); err != nil {
			return types.NewError(codeNotAvailable, err.Error(), "")
		}
	}
	return c.exec(args, invoke.DelegateStatus)
}

// ready finds what would be refused. A passthru network is not out of order for
// being in use.
func (c *conf) ready(spec loader.LinkSpec) (err error) {
	spec.Parent = c.Master
	err = withHost(func(h *loader.Host) (err error) {
		if spec.Parent == "" {
			if spec.Parent, err = h.DefaultParent(); err != nil {
				return fmt.Errorf("master: %w", err)
			}
		}
		return h.Check(spec, loader.Doomed{})
	})
	if errors.Is(err, loader.ErrBusy) && spec.Mode == maps.Passthru {
		return nil
	}
	if err != nil && spec.Parent != "" {
		return fmt.Errorf("master %s: %w", spec.Parent, err)
	}
	return err
}
