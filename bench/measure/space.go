package measure

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/internal/thread"
	"github.com/xvlan/xvlan/loader"
)

// A space is a network namespace without a name.
type space struct {
	ns netns.NsHandle
	nl *netlink.Handle
}

func newSpace() (*space, error) {
	s := &space{}
	err := thread.Run(func() (err error) {
		s.ns, err = netns.New()
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("make netns: %w: run it as root", loader.ErrPrivilege)
		}
		if err != nil {
			return fmt.Errorf("make netns: %w", err)
		}
		s.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return errors.Join(fmt.Errorf("open netlink: %w", err), s.ns.Close())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// newSpaces makes several, or none.
func newSpaces(n int) ([]*space, error) {
	var all []*space
	for range n {
		s, err := newSpace()
		if err != nil {
			return nil, errors.Join(err, closeSpaces(all))
		}
		all = append(all, s)
	}
	return all, nil
}

func closeSpaces(all []*space) error {
	var errs []error
	for _, s := range all {
		s.nl.Close()
		errs = append(errs, s.ns.Close())
	}
	return errors.Join(errs...)
}

// do runs fn on a thread of its own in the namespace.
func (s *space) do(fn func() error) error {
	return thread.Run(func() error {
		if err := netns.Set(s.ns); err != nil {
			return fmt.Errorf("enter netns: %w", err)
		}
		return fn()
	})
}

// path leads other threads of this process to the namespace.
func (s *space) path() string { return fmt.Sprintf("/proc/self/fd/%d", int(s.ns)) }

// cable makes a veth pair with one end here and one elsewhere, sets both up and
// returns the index of the end that is here. A nil MAC is a random one.
func (s *space) cable(name string, mac net.HardwareAddr, to *space, peer string) (index int, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	if err := s.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNamespace: netlink.NsFd(to.ns)}); err != nil {
		return 0, fmt.Errorf("add veth pair: %w", err)
	}
	if err := to.setUp(peer); err != nil {
		return 0, err
	}
	if err := s.setUp(name); err != nil {
		return 0, err
	}
	l, err := s.nl.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", name, err)
	}
	return l.Attrs().Index, nil
}

func (s *space) setUp(dev string) error {
	l, err := s.nl.LinkByName(dev)
	if err == nil {
		err = s.nl.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", dev, err)
	}
	return nil
}
