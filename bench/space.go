package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/xvlan/xvlan/internal/thread"
)

// A space is a network namespace of the bench's own.
type space struct {
	name string
	ns   netns.NsHandle
	nl   *netlink.Handle
}

func newSpace(name string) (*space, error) {
	s := &space{name: name}
	err := thread.Run(func() (err error) {
		s.ns, err = netns.NewNamed(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	if s.nl, err = netlink.NewHandleAt(s.ns); err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink in %s: %w", name, err), s.close())
	}
	// No frames but the bench's: no duplicate address detection, no MLD.
	for _, key := range []string{"all", "default"} {
		if err := s.sysctl("net/ipv6/conf/"+key+"/disable_ipv6", "1"); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *space) close() error {
	if s.nl != nil {
		s.nl.Close()
	}
	if err := errors.Join(s.ns.Close(), netns.DeleteNamed(s.name)); err != nil {
		return fmt.Errorf("remove network namespace %s: %w", s.name, err)
	}
	return nil
}

// do runs fn on a thread of its own in the namespace.
func (s *space) do(fn func() error) error {
	return thread.Run(func() error {
		if err := netns.Set(s.ns); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", s.name, err)
		}
		return fn()
	})
}

// sysctl sets a key; one that the kernel has not is left alone.
func (s *space) sysctl(key, value string) error {
	return s.do(func() error {
		err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set sysctl: %w", err)
		}
		return nil
	})
}

func (s *space) link(dev string) (netlink.Link, error) {
	l, err := s.nl.LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("find device %s in %s: %w", dev, s.name, err)
	}
	return l, nil
}

// Offloads by the kernel's names of features.
var (
	offloadTSO   = []string{"tx-tcp-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation", "tx-tcp6-segmentation"}
	offloadGSO   = []string{"tx-generic-segmentation"}
	offloadGRO   = []string{"rx-gro"}
	offloadStrip = []string{"rx-vlan-hw-parse"}
)

// offload turns an offload of a device on or off.
func (s *space) offload(dev string, features []string, on bool) error {
	return s.do(func() error {
		tool, err := ethtool.NewEthtool()
		if err != nil {
			return fmt.Errorf("open ethtool: %w", err)
		}
		defer tool.Close()
		change := map[string]bool{}
		for _, f := range features {
			change[f] = on
		}
		if err := tool.Change(dev, change); err != nil {
			return fmt.Errorf("set %s of %s: %w", features[0], dev, err)
		}
		return nil
	})
}
