package referee

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

const (
	parentDev = "p0"
	wireDev   = "w0"
	vlanDev   = "p0v10" // a VLAN device on the parent
	vlanID    = 10      // and its VLAN
	strangeID = 20      // a VLAN without a device
	smallMTU  = 1400    // B's; all others have 1500
)

// A port is a device that frames are sent from.
type port struct {
	ns    *lab.Netns
	dev   string
	index int
	mac   net.HardwareAddr
	fd    int
}

// A world is one topology: a parent on a cable, with the sub-interfaces of a
// pair on it, made by one driver.
type world struct {
	pair
	driver
	ports   map[role]*port
	hasVLAN bool // the host has a VLAN device on the parent
	eyes    *observers
	seq     uint16         // the scenario under way
	expect  map[string]int // what a round of sentinels brings, see calibrate
	isDown  bool           // subDown has been set down
}

// newWorld makes a world that lasts as long as the test. It returns errNotBuilt
// where the driver does not have the pair's modes.
func newWorld(tb testing.TB, d driver, p pair) (*world, error) {
	tb.Helper()
	w := &world{pair: p, driver: d, ports: make(map[role]*port)}
	wireNS, hostNS := quietNetns(tb, "wire"), quietNetns(tb, "host")
	lab.VethWith(tb, wireNS, wireDev, hostNS, parentDev,
		lab.VethOptions{MACA: givenMAC(wire), MACB: givenMAC(host)})
	w.addPort(tb, wire, wireNS, wireDev)
	w.addPort(tb, host, hostNS, parentDev)
	if strings.HasPrefix(p.a, "l3s") { // all at once, or not at all
		hostNS.Sysctl(tb, "net.ipv6.conf.all.forwarding", "1")
	}
	if err := w.addVLAN(tb); err != nil {
		return nil, err
	}
	tb.Cleanup(func() { d.detach(tb, hostNS) })
	for _, r := range subs {
		if !p.has(r) {
			continue
		}
		if err := w.addSub(tb, r); err != nil {
			return nil, err
		}
	}
	w.address(tb)
	w.watch(tb)
	w.announce(tb)
	d.follow(tb, hostNS)
	if p.has(subDown) {
		w.setDown(tb)
	}
	return w, w.calibrate()
}

// quietNetns is a namespace whose stack says nothing by itself and answers no
// ARP.
func quietNetns(tb testing.TB, name string) *lab.Netns {
	ns := lab.NewNetns(tb, name)
	for _, conf := range []string{"all", "default"} {
		ns.Sysctl(tb, "net.ipv4.conf."+conf+".arp_ignore", "8")
		ns.Sysctl(tb, "net.ipv4.conf."+conf+".rp_filter", "0")
		ns.Sysctl(tb, "net.ipv4.conf."+conf+".forwarding", "0")
		ns.Sysctl(tb, "net.ipv6.conf."+conf+".forwarding", "0")
		ns.Sysctl(tb, "net.ipv6.conf."+conf+".accept_ra", "0")
		ns.Sysctl(tb, "net.ipv6.conf."+conf+".router_solicitations", "0")
	}
	ns.Sysctl(tb, "net.ipv6.conf.default.addr_gen_mode", "1")
	return ns
}

func (w *world) addPort(tb testing.TB, r role, ns *lab.Netns, dev string) {
	tb.Helper()
	attrs := ns.Link(tb, dev).Attrs()
	w.ports[r] = &port{ns: ns, dev: dev, index: attrs.Index, mac: attrs.HardwareAddr, fd: packetSocket(tb, ns, 0, 0)}
}

// addVLAN puts a VLAN device on the parent where the kernel has such.
func (w *world) addVLAN(tb testing.TB) error {
	parent := w.ports[host]
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = vlanDev, parent.index
	err := parent.ns.Handle().LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: vlanID})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("add VLAN device: %w", err)
	}
	parent.ns.Up(tb, vlanDev)
	w.hasVLAN = true
	return nil
}

// addSub makes a sub-interface by the driver's words and sets it up.
func (w *world) addSub(tb testing.TB, r role) error {
	tb.Helper()
	dev := "c" + strconv.Itoa(int(numbers[r]))
	ns := w.ports[host].ns
	words := []string{"link", parentDev, "name", dev}
	if w.kind == "macvlan" && !w.alone() {
		words = append(words, "address", givenMAC(r).String())
	}
	if !w.here || r != subB {
		ns = quietNetns(tb, string(r))
		words = append(words, "netns", ns.Name())
	}
	words = append(words, "type", w.kind, "mode")
	words = append(words, modeWords(w.mode(r))...)
	if err := w.add(tb, w.ports[host].ns, words...); err != nil {
		return err
	}
	if r == subB {
		if err := ns.Handle().LinkSetMTU(ns.Link(tb, dev), smallMTU); err != nil {
			return fmt.Errorf("set MTU of %s: %w", r, err)
		}
	}
	ns.Up(tb, dev)
	w.addPort(tb, r, ns, dev)
	return nil
}

// alone tells of a mode that has the parent's own MAC.
func (w *world) alone() bool { return w.b == "" }

// address gives everybody addresses, neighbours and somebody who listens.
func (w *world) address(tb testing.TB) {
	tb.Helper()
	for r, p := range w.ports {
		n := numbers[r]
		p.ns.Addr(tb, p.dev, ip4(n).String()+"/24", ip6(n).String()+"/64")
		if r == subA {
			p.ns.Addr(tb, p.dev, ip4(secondA).String()+"/24", ip6(secondA).String()+"/64")
		}
		listen(tb, p)
	}
	// l3 sub-interfaces have the host route and resolve for them, also where
	// what is for a sibling goes to the wire.
	for _, r := range []role{wire, unknown, subA, subB, subDown} {
		mac := givenMAC(r)
		if r != wire && r != unknown {
			mac = givenMAC(host)
		}
		for _, a := range []netip.Addr{ip4(numbers[r]), ip6(numbers[r])} {
			err := w.ports[host].ns.Handle().NeighSet(&netlink.Neigh{
				LinkIndex: w.ports[host].index, State: netlink.NUD_PERMANENT,
				IP: a.AsSlice(), HardwareAddr: mac,
			})
			if err != nil {
				tb.Fatalf("add neighbour %s: %v", a, err)
			}
		}
	}
	if p := w.ports[subB]; p != nil {
		join(tb, p)
	}
}

// listen opens the port that test datagrams go to, so that no stack answers
// with an error.
func listen(tb testing.TB, p *port) {
	tb.Helper()
	var fd int
	var err error
	p.ns.Do(tb, func() { fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		tb.Fatalf("open socket: %v", err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet6{Port: testPort}))
	if err != nil {
		tb.Fatalf("bind socket: %v", err)
	}
}

// join makes a port a member of the groups that count as joined.
func join(tb testing.TB, p *port) {
	tb.Helper()
	var fds [2]int
	var errs [2]error
	p.ns.Do(tb, func() {
		fds[0], errs[0] = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		fds[1], errs[1] = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	})
	if err := errors.Join(errs[:]...); err != nil {
		tb.Fatalf("open sockets: %v", err)
	}
	raw := packetSocket(tb, p.ns, 0, 0)
	tb.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	mreq := &unix.PacketMreq{Ifindex: int32(p.index), Type: unix.PACKET_MR_MULTICAST, Alen: 6}
	copy(mreq.Address[:], joinedMAC)
	err := errors.Join(
		unix.SetsockoptIPMreqn(fds[0], unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: joined4.As4(), Ifindex: int32(p.index)}),
		unix.SetsockoptIPv6Mreq(fds[1], unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
			&unix.IPv6Mreq{Multiaddr: joined6.As16(), Interface: uint32(p.index)}),
		unix.SetsockoptPacketMreq(raw, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, mreq))
	if err != nil {
		tb.Fatalf("join groups: %v", err)
	}
}

// watch begins to observe.
func (w *world) watch(tb testing.TB) {
	tb.Helper()
	byNS := make(map[*lab.Netns]*place)
	var places []*place
	for r, p := range w.ports {
		if byNS[p.ns] == nil {
			byNS[p.ns] = &place{ns: p.ns, names: make(map[int]string), parents: p.ns == w.ports[host].ns}
			places = append(places, byNS[p.ns])
		}
		byNS[p.ns].names[p.index] = string(r)
	}
	if w.hasVLAN {
		byNS[w.ports[host].ns].names[w.ports[host].ns.Link(tb, vlanDev).Attrs().Index] = "host's VLAN device"
	}
	w.eyes = observe(tb, places)
}

// setDown sets the sub-interface down that was up to say who it is.
func (w *world) setDown(tb testing.TB) {
	tb.Helper()
	p := w.ports[subDown]
	if err := p.ns.Handle().LinkSetDown(p.ns.Link(tb, p.dev)); err != nil {
		tb.Fatalf("set %s down: %v", subDown, err)
	}
	w.isDown = true
}

// own is the MAC of a role's device.
func (w *world) own(r role) net.HardwareAddr {
	if p := w.ports[r]; p != nil {
		return p.mac
	}
	return givenMAC(r)
}

// to is the MAC at which others reach a role: the parent's, for an ipvlan.
func (w *world) to(r role) net.HardwareAddr {
	if w.kind == "ipvlan" && (r == subA || r == subB || r == subDown) {
		return w.own(host)
	}
	return w.own(r)
}

// send sends a frame out of a role's device.
func (w *world) send(r role, frame []byte) error {
	p := w.ports[r]
	return unix.Sendto(p.fd, frame, 0, &unix.SockaddrLinklayer{
		Ifindex: p.index, Protocol: nativeProto(frame),
	})
}
