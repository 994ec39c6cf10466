package loader

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// glanced is how many sub-interfaces a glance looks at. It takes two ioctls each.
const glanced = 64

// glance is refresh for who acts on one sub-interface, and is not to take the longer
// the more others there are: where there are many it looks at the devices of some, by
// turns, and not at the host's addresses.
func (p *parent) glance() error {
	if p.back {
		return p.refresh()
	}
	return p.look(p.h.glanced)
}

// sure asks again after a look at everything, where a glance has left something out, if
// the answer is a refusal: who is in the way may not be there any more.
func (p *parent) sure(ask func() error) error {
	err := ask()
	if !p.left || !errors.Is(err, ErrExists) && !errors.Is(err, ErrBusy) {
		return err
	}
	if err := p.refresh(); err != nil {
		return err
	}
	return ask()
}

// some picks up to so many of the active sub-interfaces, from a random one on, so
// that all have their turn, and tells whether others are left.
func some(subs []maps.Sub, most int) (active []maps.ID, left bool) {
	for i, s := range subs {
		if s.State == maps.Active {
			active = append(active, maps.ID(i))
		}
	}
	if len(active) <= most {
		return active, false
	}
	first := rand.IntN(len(active))
	return slices.Concat(active[first:], active[:first])[:most], true
}

// isLocal tells whether an address is one of the network namespace's, those of inner
// legs that are in it among them.
func (h *Host) isLocal(a netip.Addr) bool {
	if a.Is4() {
		routes, err := h.nl.RouteGet(a.AsSlice())
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL // an error: no route
	}
	// There is no route before duplicate address detection is through.
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, 0)
	req.AddData(nl.NewIfAddrmsg(unix.AF_INET6))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice()))
	found, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	return err == nil && len(found) == 1 // an error: no such address
}
