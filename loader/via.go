package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
)

// What a sub-interface sends to chosen networks goes to the host's stack, as if it had
// come in by the parent, and the host's answers reach it as they do with host access:
// see bpf/via.h. The stack forwards what comes by the parent meanwhile.

var errKernelVia = fmt.Errorf("via-host: %w: the kernel's drivers keep host and sub-interface apart; leave it out, or ask for datapath tc", ErrUnsupported)

// ParseVia reads networks that are separated by commas; "off", which "" is, too, is none.
func ParseVia(words string) (nets []netip.Prefix, err error) {
	if words == "" || words == "off" {
		return nil, nil
	}
	for word := range strings.SplitSeq(words, ",") {
		p, err := netip.ParsePrefix(word)
		if a, err2 := netip.ParseAddr(word); err2 == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("via-host %q: %w: no network; write them as 10.96.0.0/12,fd00:96::/112, or off", word, ErrInvalid)
		}
		nets = append(nets, p)
	}
	return nets, nil
}

// checkVia refuses networks that nothing is routed to, and modes that go through the
// host's stack anyway, or never.
func checkVia(nets []netip.Prefix, mode maps.Mode, class maps.Class) error {
	if len(nets) == 0 {
		return nil
	}
	if len(nets) > bpf.ViaNets {
		return fmt.Errorf("via-host: %w: %d networks, at most %d can be; say fewer that are larger", ErrInvalid, len(nets), bpf.ViaNets)
	}
	for i, p := range nets {
		a := p.Addr()
		switch {
		case a.Is4In6():
			return fmt.Errorf("via-host %s: %w: IPv4 in IPv6 form; write it as IPv4", p, ErrInvalid)
		case p != p.Masked():
			return fmt.Errorf("via-host %s: %w: more bits are set than its length says; the network is %s, the address alone %s",
				p, ErrInvalid, p.Masked(), netip.PrefixFrom(a, a.BitLen()))
		case a.IsMulticast() || a.IsLoopback() || a.Is6() && a.IsLinkLocalUnicast() || a == broadcast:
			return fmt.Errorf("via-host %s: %w: no host routes that", p, ErrInvalid)
		case slices.Contains(nets[:i], p):
			return fmt.Errorf("via-host %s: %w: said twice", p, ErrInvalid)
		}
	}
	return canHost("via-host", mode, class)
}

// SetVia makes these networks those that a sub-interface reaches by way of the host,
// traffic flowing.
func (h *Host) SetVia(sel Selector, nets []netip.Prefix) error {
	return h.change(sel,
		func(kernelLink) error {
			if len(nets) > 0 {
				return errKernelVia
			}
			return nil
		},
		func(p *parent, l Link, sub maps.Sub) error {
			if err := errors.Join(checkVia(nets, sub.Mode, sub.Class), l.VLAN.suits(sub.Mode, len(nets) > 0, maps.Guard{})); err != nil {
				return err
			}
			if err := p.setVia(l.ID, sub, nets); err != nil {
				return errors.Join(err, p.setVia(l.ID, sub, l.Via))
			}
			p.warnViaBack(l.Name, nets, givenOf(l))
			return nil
		})
}

// setVia has the networks before the record says that there are any, and until it no
// longer does.
func (p *parent) setVia(id maps.ID, sub maps.Sub, nets []netip.Prefix) error {
	on := len(nets) > 0
	if on {
		if err := p.maps.PutVia(id, nets); err != nil {
			return err
		}
	} else if !sub.Host {
		if err := p.unmeet(id, sub); err != nil {
			return err
		}
	}
	sub.Via = on
	if err := p.maps.PutSub(id, sub); err != nil {
		return err
	}
	if !on {
		if err := p.maps.PutVia(id, nil); err != nil {
			return err
		}
	}
	return p.reindex(sub)
}

// warnViaBack tells of given addresses that the host does not reach by the parent: it
// answers elsewhere, if rp_filter lets it take the question.
func (p *parent) warnViaBack(name string, nets []netip.Prefix, addrs []netip.Addr) {
	if p.link == nil {
		return
	}
	for _, a := range addrs {
		if !slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Addr().BitLen() == a.BitLen() }) {
			continue
		}
		routes, err := p.h.nl.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].LinkIndex == p.rec.Index {
			continue
		}
		p.h.log.Warn("the host's answers to what goes by way of it do not come back: it has no route to the address by the parent; "+
			"add one, or an address in that subnet", "parent", p.rec.Name, "name", name, "addr", a)
	}
}
