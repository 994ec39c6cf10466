package loader

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// DefaultParent names the device that the default route leaves by, IPv4's before
// IPv6's: the parent that runtimes take when none is said.
func (h *Host) DefaultParent() (string, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := whole(func() ([]netlink.Route, error) {
			return h.nl.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
		})
		if err != nil {
			return "", fmt.Errorf("list routes: %w", err)
		}
		best := -1
		for i, r := range routes {
			if r.LinkIndex != 0 && (best < 0 || r.Priority < routes[best].Priority) {
				best = i
			}
		}
		if best < 0 {
			continue
		}
		l, err := h.nl.LinkByIndex(routes[best].LinkIndex)
		if err != nil {
			return "", fmt.Errorf("find the default route's device: %w", err)
		}
		return l.Attrs().Name, nil
	}
	return "", fmt.Errorf("choose a parent: %w: there is no default route; say which device", ErrInvalid)
}
