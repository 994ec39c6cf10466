package docker

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/loader"
)

// makeParent makes a network's parent where it is missing and can be made: the
// VLAN device that its name says, or, of a network that has none, a dummy device,
// as Docker's own drivers do. It tells whether it did.
func makeParent(n *Network) (made bool, err error) {
	_, err = netlink.LinkByName(n.Parent)
	if err == nil {
		return false, nil
	}
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, fmt.Errorf("find parent %s: %w", n.Parent, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.Parent
	var l netlink.Link = &netlink.Dummy{LinkAttrs: attrs}
	if n.Parent != dummyName(n.ID) {
		if l, err = vlanLink(attrs); err != nil {
			return false, err
		}
	}
	if err := netlink.LinkAdd(l); err != nil {
		return false, fmt.Errorf("make parent %s of type %s: %w", n.Parent, l.Type(), err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return false, errors.Join(fmt.Errorf("set parent %s up: %w", n.Parent, err), netlink.LinkDel(l))
	}
	return true, nil
}

// vlanLink is the VLAN device that a name such as eth0.10 says.
func vlanLink(attrs netlink.LinkAttrs) (netlink.Link, error) {
	dot := strings.LastIndexByte(attrs.Name, '.')
	if dot < 0 {
		return nil, fmt.Errorf("parent %s: %w: there is no such device", attrs.Name, loader.ErrInvalid)
	}
	id, err := strconv.Atoi(attrs.Name[dot+1:])
	if err != nil || id < 1 || id > 4094 {
		return nil, fmt.Errorf("parent %s: %w: there is no such device, and %q is no VLAN from 1 to 4094", attrs.Name, loader.ErrInvalid, attrs.Name[dot+1:])
	}
	base, err := netlink.LinkByName(attrs.Name[:dot])
	if err != nil {
		return nil, fmt.Errorf("parent %s: find %s, to make a VLAN device on it: %w", attrs.Name, attrs.Name[:dot], err)
	}
	attrs.ParentIndex = base.Attrs().Index
	return &netlink.Vlan{LinkAttrs: attrs, VlanId: id}, nil
}

// dummyName is what the parent of a network that has none is called.
func dummyName(id string) string { return "dm-" + id[:min(len(id), 12)] }

// removeParent removes a parent that was made.
func removeParent(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("remove parent %s: %w", name, err)
	}
	return nil
}
