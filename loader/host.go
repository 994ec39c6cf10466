package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// A sub-interface with host access and the host of its parent reach each other, past
// the wire. xvlan_host, at the parent's tc egress, hands over what the host sends; it
// is there while there is such a sub-interface, or one that reaches networks by way of
// the host. The other way xvlan_tx does.

var errKernelHost = fmt.Errorf("host on: %w: the kernel's drivers keep host and sub-interface apart; leave it out, or ask for datapath tc", ErrUnsupported)

// canHost refuses the modes in which what is asked for would make no difference, or
// nobody could tell the two apart.
func canHost(asked string, mode maps.Mode, class maps.Class) error {
	why := ""
	switch {
	case class == maps.ClassVEPA:
		why = "vepa leaves it to the switch to bring host and sub-interface together"
	case mode == maps.Passthru:
		why = "mode passthru has the host's MAC, and takes what is for it"
	case mode == maps.Source:
		why = "mode source gets only what its list of senders says"
	case mode == maps.L3S:
		why = "mode l3s goes through the host's stack, and has it anyway"
	default:
		return nil
	}
	return fmt.Errorf("%s: %w: %s", asked, ErrUnsupported, why)
}

// SetHost turns host access on or off, traffic flowing.
func (h *Host) SetHost(sel Selector, on bool) error {
	return h.change(sel,
		func(kernelLink) error {
			if on {
				return errKernelHost
			}
			return nil
		},
		func(p *parent, l Link, sub maps.Sub) error {
			if sub.Host == on {
				return nil
			}
			if on {
				if err := errors.Join(canHost("host on", sub.Mode, sub.Class), l.VLAN.suits(sub.Mode, on, maps.Guard{})); err != nil {
					return err
				}
			} else if err := p.unmeet(l.ID, sub); err != nil {
				return err
			}
			sub.Host = on
			if err := p.maps.PutSub(l.ID, sub); err != nil {
				return err
			}
			if err := p.reindex(sub); err != nil {
				sub.Host = !on
				return errors.Join(err, p.maps.PutSub(l.ID, sub), p.reindex(sub))
			}
			return nil
		})
}

func (p *parent) hostHook() hook {
	return hook{prog: pinHostProg, index: p.rec.Index, pin: filepath.Join(p.dir, pinHost), egress: true}
}

// openHost writes down to how many the host's frames go, and has xvlan_host attached while
// there are any. What a command that is killed between leaves undone, the next one
// does: the number tells what to attach, and the records tell the number.
func (p *parent) openHost(number uint32) error {
	at := p.hostHook()
	if p.rec.Hosts > 0 && number == 0 && p.rec.Index != 0 {
		if err := p.h.detach(at); err != nil {
			return err
		}
	}
	p.rec.Hosts = number
	if err := p.save(); err != nil || number == 0 || p.rec.Index == 0 {
		return err
	}
	if there, err := p.h.attached(at); there || err != nil {
		return err
	}
	if err := errors.Join(unpin(at.pin), p.attach(at)); err != nil {
		return fmt.Errorf("attach %s to %s: %w", at.prog, p.rec.Name, err)
	}
	return nil
}

// detach takes a program off tc, by its link or its filter.
func (h *Host) detach(at hook) error {
	if err := detachLink(at.pin); err != nil {
		return err // with the pin there, which tells that it is attached
	}
	if err := unpin(at.pin); err != nil {
		return err
	}
	if there, err := h.hasFilter(at.index, at.egress); !there || err != nil {
		return err
	}
	err := h.nl.FilterDel(&netlink.BpfFilter{FilterAttrs: filterAttrs(at.index, at.egress)})
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove filter: %w", err)
	}
	return nil
}

// unmeet has the host forget under which MAC it has reached a sub-interface: what goes
// there from now on would be lost until the host finds out by itself.
func (p *parent) unmeet(id maps.ID, sub maps.Sub) error {
	if !sub.HearsHost() || p.link == nil {
		return nil
	}
	mac := sub.MAC
	var addrs []netip.Addr
	if !sub.Keyed() {
		mac = p.rec.MAC
		known, err := p.maps.Addrs()
		if err != nil {
			return err
		}
		for _, a := range known {
			if a.ID == id && a.Gen == sub.Gen {
				addrs = append(addrs, a.Addr)
			}
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		known, err := whole(func() ([]netlink.Neigh, error) { return p.h.nl.NeighList(0, family) })
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range known {
			ip, _ := netip.AddrFromSlice(n.IP)
			if n.HardwareAddr.String() != mac.String() || !sub.Keyed() && !slices.Contains(addrs, ip.Unmap()) {
				continue
			}
			if err := p.h.nl.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("remove neighbour %s: %w", ip, err)
			}
		}
	}
	return nil
}
