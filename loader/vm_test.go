package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// The tests here are for network cards, which unlike veth filter what they
// receive. The virtual machines of `make test-vm` have two.

// cards are a site whose host and wire have a virtio-net card each, joined by
// a cable.
type cards struct {
	*site
	mac, ip *end // the sub-interfaces to be
	capture *lab.Capture
	number  uint32 // of the frame sent last
}

// needCards takes the virtual machine's cards until the test ends. A real
// machine's may be what it is reached by, and are left alone.
func needCards(t *testing.T) *cards {
	t.Helper()
	if os.Getenv("XVLAN_VM") == "" {
		t.Skip("no cards that could be taken: not in a virtual machine of lab/vm")
	}
	links, err := whole(func() ([]netlink.Link, error) { return netlink.LinkList() })
	if err != nil {
		t.Fatalf("list devices: %v", err)
	}
	links = slices.DeleteFunc(links, func(l netlink.Link) bool { return driver(l) != "virtio_net" })
	if len(links) < 2 {
		t.Fatalf("%d virtio-net cards: start the machine with -net 2", len(links))
	}
	ends := []*end{
		newEnd("host", lab.NewNetns(t, "host"), links[0].Attrs().Name, 0, 1),
		newEnd("wire", lab.NewNetns(t, "wire"), links[1].Attrs().Name, 0, 2),
		newEnd("mac1", lab.NewNetns(t, "mac1"), "mac1", maps.Macvlan, 11),
		newEnd("ip1", lab.NewNetns(t, "ip1"), "ip1", maps.Ipvlan, 21),
	}
	c := &cards{mac: ends[2], ip: ends[3]}
	c.site = &site{host: ends[0], wire: ends[1], subs: ends[2:]}
	for i, e := range ends[:2] {
		take(t, links[i], e.ns)
		e.ns.Up(t, e.dev)
		e.ns.Addr(t, e.dev, e.ip4.String(), e.ip6.String())
	}
	c.h = openHost(t, c.host.ns, rungCase{})
	c.capture = c.host.ns.Capture(t, c.host.dev)
	return c
}

// take moves a card into a namespace, and back when the test ends.
func take(t *testing.T, l netlink.Link, to *lab.Netns) {
	t.Helper()
	home, err := netns.Get()
	if err != nil {
		t.Fatalf("open own netns: %v", err)
	}
	name := l.Attrs().Name
	if err := netlink.LinkSetNsFd(l, to.Fd()); err != nil {
		t.Fatalf("move %s: %v", name, err)
	}
	t.Cleanup(func() {
		defer home.Close()
		if err := to.Handle().LinkSetNsFd(to.Link(t, name), int(home)); err != nil {
			t.Errorf("move %s back: %v", name, err)
		}
	})
}

func (c *cards) spec(e *end) LinkSpec {
	spec := c.site.spec(e)
	spec.Parent = c.host.dev
	spec.Netns, spec.Up, spec.Addrs = e.ns.Name(), true, []netip.Prefix{e.ip4, e.ip6}
	if e == c.mac {
		spec.MAC = ownMAC
	}
	return spec
}

func (c *cards) add(t *testing.T, e *end) {
	t.Helper()
	c.do(t, func(h *Host) error { return h.Add(c.spec(e)) })
}

// talk shows traffic between the wire and a sub-interface.
func (c *cards) talk(t *testing.T, e *end) {
	t.Helper()
	for i, a := range e.addrs() {
		c.wire.ping(t, a)
		e.ping(t, c.wire.addrs()[i])
	}
	bulk(t, c.wire, e, ip4Of, 1<<20)
	bulk(t, e, c.wire, ip6Of, 1<<20)
}

var (
	ownMAC     = net.HardwareAddr{0x02, 0xc0, 0, 0, 0, 0x11}
	foreignMAC = net.HardwareAddr{0x02, 0xc0, 0, 0, 0, 0x66}
)

// solicited is the group that ND's questions for an address go to.
func solicited(e *end) net.HardwareAddr {
	ip := e.ip6.Addr().As16()
	return net.HardwareAddr{0x33, 0x33, 0xff, ip[13], ip[14], ip[15]}
}

// numbered makes a frame of no protocol that carries a number.
func (c *cards) numbered(t *testing.T, dst net.HardwareAddr) []byte {
	t.Helper()
	c.number++
	kind := []byte{0x88, 0xb5} // IEEE 802, local experiments
	frame := slices.Concat(dst, c.wire.mac(t), kind, binary.BigEndian.AppendUint32(nil, c.number))
	return append(frame, make([]byte, 60-len(frame))...)
}

// admits tells whether a frame for dst comes in by the host's card: behind it
// one is sent that comes in at any rate.
func (c *cards) admits(t *testing.T, dst net.HardwareAddr) bool {
	t.Helper()
	c.capture.Frames(math.MaxInt, 0) // makes room
	frame, fence := c.numbered(t, dst), c.numbered(t, c.host.mac(t))
	c.wire.ns.Send(t, c.wire.dev, frame)
	c.wire.ns.Send(t, c.wire.dev, fence)
	var seen bool
	last := c.capture.Matching(1, socketTime, func(f lab.Frame) bool {
		seen = seen || string(f.Data) == string(frame)
		return string(f.Data) == string(fence)
	})
	if len(last) == 0 {
		t.Fatalf("a frame for %s itself did not come in", c.host.dev)
	}
	return seen
}

// checkAdmits wants frames to come in, or not. The driver may set the card's
// filter a moment after it was told.
func (c *cards) checkAdmits(t *testing.T, want bool, to ...net.HardwareAddr) {
	t.Helper()
	for _, dst := range to {
		lab.Eventually(t, fmt.Sprintf("frames for %s come in: %v", dst, want), func() bool {
			return c.admits(t, dst) == want
		})
	}
}

// operState is what goes by itself: states, a bridge's timers, and what ip says
// of another test's namespace that ends while it looks for the peer's name.
var operState = regexp.MustCompile(`Error: Peer netns reference is invalid\.\n| state [A-Z]+| state (listening|learning|forwarding)|[a-z_]+_timer +[0-9.]+`)

// state is all that is changed on a parent and has to be put back: its flags,
// promiscuity, allmulti and XDP program, its unicast filter, its qdiscs, tc
// filters and tcx programs.
func state(t *testing.T, ns *lab.Netns, dev string) string {
	t.Helper()
	s := operState.ReplaceAllString(ns.Run(t, "ip", "-d", "link", "show", "dev", dev), "") +
		ns.Run(t, "tc", "qdisc", "show", "dev", dev)
	if strings.Contains(s, "qdisc clsact") || strings.Contains(s, "qdisc ingress") {
		s += ns.Run(t, "tc", "filter", "show", "dev", dev, "ingress")
	}
	var filter []string
	for line := range strings.Lines(ns.Run(t, "bridge", "fdb", "show", "dev", dev)) {
		if mac, err := net.ParseMAC(strings.Fields(line)[0]); err == nil && mac[0]&1 == 0 {
			filter = append(filter, line)
		}
	}
	slices.Sort(filter)
	s += strings.Join(filter, "")
	var (
		tcx *link.QueryResult
		err error
	)
	query := link.QueryOptions{Target: ns.Link(t, dev).Attrs().Index, Attach: ebpf.AttachTCXIngress}
	ns.Do(t, func() { tcx, err = link.QueryPrograms(query) })
	if err == nil { // Linux 6.6
		s += fmt.Sprintf("tcx programs: %v\n", tcx.Programs)
	}
	return s
}

func checkState(t *testing.T, ns *lab.Netns, dev, want string) {
	t.Helper()
	if got := state(t, ns, dev); got != want {
		t.Errorf("%s is now\n%sand was\n%s", dev, got, want)
	}
}

// TestCardFilter opens the card's filter for a sub-interface's MAC and for
// groups, and closes it behind the last.
func TestCardFilter(t *testing.T) {
	c := needCards(t)
	all := []net.HardwareAddr{foreignMAC, ownMAC, solicited(c.mac), solicited(c.ip)}
	c.checkAdmits(t, false, all...)
	before := state(t, c.host.ns, c.host.dev)

	c.add(t, c.mac)
	c.checkAdmits(t, true, ownMAC, solicited(c.mac))
	c.checkAdmits(t, false, foreignMAC)
	c.talk(t, c.mac)
	c.add(t, c.ip)
	c.talk(t, c.ip)
	for _, a := range c.ip.addrs() {
		c.mac.ping(t, a)
	}
	c.wire.ping(t, c.host.ip4.Addr())

	c.del(t, c.mac)
	c.checkAdmits(t, false, ownMAC)
	c.checkAdmits(t, true, solicited(c.ip))
	c.talk(t, c.ip)
	c.del(t, c.ip)
	c.checkAdmits(t, false, all...)
	checkState(t, c.host.ns, c.host.dev, before)
	c.checkGone(t)
}

// TestCardFilterOfOthers keeps what others have asked of the card before.
func TestCardFilterOfOthers(t *testing.T) {
	c := needCards(t)
	c.host.ns.Run(t, "bridge", "fdb", "add", ownMAC.String(), "dev", c.host.dev, "self", "permanent")
	c.host.ns.Run(t, "ip", "link", "set", c.host.dev, "allmulticast", "on")
	before := state(t, c.host.ns, c.host.dev)
	c.add(t, c.mac)
	c.add(t, c.ip)
	c.del(t, c.mac)
	c.checkAdmits(t, true, ownMAC)
	c.del(t, c.ip)
	c.checkAdmits(t, true, ownMAC, solicited(c.mac))
	c.checkAdmits(t, false, foreignMAC)
	checkState(t, c.host.ns, c.host.dev, before)
}

// TestCardRung finds the rung that a card gets unasked.
func TestCardRung(t *testing.T) {
	c := needCards(t)
	want := Rung{maps.RungTC, "virtio_net: native XDP would turn its receive offloads off"}
	c.do(t, func(h *Host) error {
		p, err := h.Probe(c.host.dev)
		if err == nil && p.Rung != want {
			t.Errorf("probe says %v, want %v", p.Rung, want)
		}
		return err
	})
	c.add(t, c.mac)
	if got := c.link(t, c.mac).Rung; got != want {
		t.Errorf("sub-interface stands on %v, want %v", got, want)
	}
}

// TestCardXDP asks for native XDP, which works, or is refused and leaves
// nothing: before Linux 6.3 the driver takes none over a page's MTU.
func TestCardXDP(t *testing.T) {
	for _, mtu := range []int{1500, 9000} {
		t.Run(strconv.Itoa(mtu), func(t *testing.T) {
			c := needCards(t)
			for _, e := range []*end{c.host, c.wire} {
				old := e.ns.Link(t, e.dev).Attrs().MTU
				e.ns.Run(t, "ip", "link", "set", e.dev, "mtu", strconv.Itoa(mtu))
				t.Cleanup(func() { e.ns.Run(t, "ip", "link", "set", e.dev, "mtu", strconv.Itoa(old)) })
			}
			before := state(t, c.host.ns, c.host.dev)
			err := c.try(t, func(h *Host) error {
				return h.Attach(c.host.dev, AttachSpec{Datapath: XDP, Unknown: UnknownDrop})
			})
			switch {
			case err == nil:
				c.checkXDP(t)
				c.do(t, func(h *Host) error { return h.Detach(c.host.dev) })
			case !errors.Is(err, ErrUnsupported):
				t.Fatal(err)
			case mtu == 1500 || lab.KernelFrom(t, 6, 3):
				t.Errorf("refused: %v", err)
			default:
				t.Logf("refused: %v", err)
			}
			checkState(t, c.host.ns, c.host.dev, before)
			c.checkGone(t)
		})
	}
}

func (c *cards) checkXDP(t *testing.T) {
	t.Helper()
	for _, e := range c.subs {
		c.add(t, e)
		c.talk(t, e)
	}
	if got, want := c.link(t, c.ip).Rung, (Rung{maps.RungXDP, askedFor}); got != want {
		t.Errorf("sub-interface stands on %v, want %v", got, want)
	}
	// The card's filter is opened, so that frames for nobody come as far as
	// the program, which drops them before a capture sees them.
	c.host.ns.Run(t, "ip", "link", "set", c.host.dev, "promisc", "on")
	lab.Eventually(t, "a frame for nobody is dropped", func() bool {
		if c.admits(t, foreignMAC) {
			t.Error("a frame for nobody has passed")
		}
		stats := c.parentStats(t)
		return stats.Drops().Packets > 0
	})
	c.host.ns.Run(t, "ip", "link", "set", c.host.dev, "promisc", "off")
}

// TestCardVLAN has a VLAN device on the card as the parent: it hands on to the
// card what is asked of it.
func TestCardVLAN(t *testing.T) {
	c := needCards(t)
	testVLAN(t, c.site)
}
