package main

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const bridgeDev = "bridge"

func portName(i int) string { return fmt.Sprintf("p%d", i) }

// addBridge makes the parent a port of a new bridge.
func (s *side) addBridge(parent netlink.Link) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeDev
	quiet := false // no queries for groups
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &quiet}
	if err := s.host.nl.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("add bridge: %w", err)
	}
	if err := s.host.nl.LinkSetMaster(parent, br); err != nil {
		return nil, fmt.Errorf("make parent a port: %w", err)
	}
	if err := s.setUp(s.host, bridgeDev); err != nil {
		return nil, err
	}
	return br, s.forward(parentDev, wireMAC())
}

// addPort adds a veth pair whose host's end is a port.
func (s *side) addPort(br netlink.Link, i int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = portName(i)
	attrs.MasterIndex = br.Attrs().Index
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: subName(i), PeerHardwareAddr: subMAC(i), PeerNamespace: netlink.NsFd(s.box(i).ns),
	}
	if err := s.host.nl.LinkAdd(veth); err != nil {
		return err
	}
	return errors.Join(s.setUp(s.host, portName(i)), s.forward(portName(i), subMAC(i)))
}

// forward enters a MAC behind a port, as if it had been learned.
func (s *side) forward(port string, mac net.HardwareAddr) error {
	l, err := s.host.link(port)
	if err != nil {
		return err
	}
	err = s.host.nl.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, State: unix.NUD_NOARP, Flags: unix.NTF_MASTER, HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("enter %s behind %s: %w", mac, port, err)
	}
	return nil
}
