package loader

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// tagged makes an end that is in a VLAN of another end's device: by VLAN devices of the
// kernel's or, where that has none, by an ipvlan on it.
func (s *site) tagged(t *testing.T, on *end, name, words string, number byte) *end {
	t.Helper()
	e := newEnd(name, lab.NewNetns(t, name), name, 0, number)
	if v := vlanWords(t, words).Of(VLAN{}); lab.HasKind(t, "vlan") {
		under := on.dev
		if v.Outer != 0 {
			under = "s" + name
			on.ns.Run(t, "ip", "link", "add", "link", on.dev, "name", under, "up", "type", "vlan", "proto", "802.1ad", "id", fmt.Sprint(v.Outer))
		}
		on.ns.Run(t, "ip", "link", "add", "link", under, "name", e.dev, "type", "vlan", "id", fmt.Sprint(v.ID))
		on.ns.Run(t, "ip", "link", "set", e.dev, "netns", e.ns.Name())
	} else {
		h := openHost(t, on.ns, rungCase{})
		spec := LinkSpec{Parent: on.dev, Name: e.dev, Kind: maps.Ipvlan, Mode: maps.L2, Netns: e.ns.Name(), Datapath: TC, VLAN: vlanWords(t, words)}
		var err error
		if on.ns.Do(t, func() { err = h.Add(spec) }); err != nil {
			t.Fatal(err)
		}
	}
	e.ns.Addr(t, e.dev, e.ip4.String(), e.ip6.String())
	e.ns.Up(t, e.dev)
	e.settle(t)
	return e
}

// addIn makes a sub-interface in the VLANs of these words, its addresses given.
func (s *site) addIn(t *testing.T, e *end, words string, change ...func(*LinkSpec)) {
	t.Helper()
	spec := s.vlanned(t, e, words)
	spec.Addrs = []netip.Prefix{e.ip4, e.ip6}
	for _, fn := range change {
		fn(&spec)
	}
	s.do(t, func(h *Host) error { return h.Add(spec) })
	s.settle(t, e)
}

// apart checks that two ends do not reach each other.
func apart(t *testing.T, a, b *end) {
	t.Helper()
	for _, to := range b.addrs() {
		a.pingFails(t, to)
	}
}

// together checks that two ends reach each other, by all that is usual.
func together(t *testing.T, a, b *end) {
	t.Helper()
	a.ping(t, b.ip4.Addr(), "-s", "4000")
	b.ping(t, a.ip6.Addr(), "-s", "4000")
	bulk(t, a, b, ip6Of, 1<<18)
}

// vlanRungs are the ways that differ on this kernel.
func vlanRungs(t *testing.T) []rungCase {
	t.Helper()
	if !lab.KernelFrom(t, 6, 6) {
		return []rungCase{onXDP, onClsact}
	}
	return []rungCase{onXDP, onTCX}
}

// Who is in a VLAN meets who is in it, too, on the wire and beside, and nobody else,
// whatever MAC and address these have.
func TestVLANs(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(vlanRungs(t)), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		wire10 := s.tagged(t, s.wire, "wire10", "vlan 10", 3)
		wire20 := s.tagged(t, s.wire, "wire20", "vlan 20", 4)
		wireQ := s.tagged(t, s.wire, "wireq", "vlan 10 qinq 30", 5)
		mac1, mac2, ip1, ip2 := s.sub(t, "mac1"), s.sub(t, "mac2"), s.sub(t, "ip1"), s.sub(t, "ip2")
		plain := newEnd("plain", lab.NewNetns(t, "plain"), "plain", maps.Macvlan, 40)
		s.subs = append(s.subs, plain)
		mac2.ip4, mac2.ip6 = mac1.ip4, mac1.ip6
		same := func(spec *LinkSpec) { spec.MAC = vlanMAC }
		s.addIn(t, mac1, "vlan 10", same)
		s.addIn(t, mac2, "vlan 20", same)
		s.addIn(t, ip1, "vlan 10")
		s.addIn(t, ip2, "vlan 10 qinq 30")
		s.addIn(t, plain, "")

		onWire := s.wire.ns.Link(t, s.wire.dev).Attrs().Statistics.RxBytes
		together(t, mac1, ip1)
		if sent := s.wire.ns.Link(t, s.wire.dev).Attrs().Statistics.RxBytes - onWire; sent > 100<<10 {
			t.Errorf("two in one VLAN met by the wire: %d bytes", sent)
		}
		together(t, mac1, wire10)
		together(t, ip1, wire10)
		together(t, mac2, wire20)
		together(t, ip2, wireQ)
		together(t, plain, s.wire)
		s.wholePackets(t, mac1, wire10)
		s.wholePackets(t, ip2, wireQ)
		for _, pair := range [][2]*end{ // beside, on the wire, and the host
			{ip1, ip2}, {plain, ip1}, {plain, ip2}, {ip1, wireQ}, {ip2, wire10}, {ip1, s.wire}, {ip1, s.host}, {plain, wire10},
		} {
			apart(t, pair[0], pair[1])
		}
		for _, pair := range [][2]*end{{mac1, ip2}, {mac1, plain}, {mac1, wire20}, {mac2, ip1}, {mac2, wire10}, {mac1, s.host}, {wireQ, mac1}} {
			for _, a := range pair[1].addrs() { // one way, as the others' way there is another of this address
				pair[0].pingFails(t, a)
			}
		}

		// To another VLAN and back, and none at all.
		set := func(e *end, words string) {
			t.Helper()
			s.do(t, func(h *Host) error { return h.SetVLAN(Selector{Name: e.dev, Netns: e.ns.Name()}, vlanWords(t, words)) })
		}
		set(ip1, "vlan 20")
		together(t, ip1, wire20)
		apart(t, ip1, wire10)
		set(ip1, "vlan off")
		together(t, ip1, s.wire)
		apart(t, ip1, wire20)
		for _, e := range s.subs {
			s.del(t, e)
		}
		s.checkGone(t)
	})
}

// wholePackets checks that super-packets stay whole between a sub-interface and the
// wire, if the rung leaves the parent's peer its TSO.
func (s *site) wholePackets(t *testing.T, e, wire *end) {
	t.Helper()
	if s.datapath == XDP {
		return
	}
	rx, tx := e.packets(t)
	bulk(t, e, wire, ip4Of, 1<<20)
	rx2, tx2 := e.packets(t)
	if rx2-rx > 500 || tx2-tx > 500 { // cut to frames 720 each way, and acknowledgements
		t.Errorf("%s: 1 MiB came in %d and went in %d packets: super-packets were cut", e.name, rx2-rx, tx2-tx)
	}
}

// A trunk has part in the VLANs of its list by their tags, and in that of its untagged
// frames without; what else it sends is dropped.
func TestVLANTrunk(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, vlanRungs(t), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		wire10 := s.tagged(t, s.wire, "wire10", "vlan 10", 3)
		wire20 := s.tagged(t, s.wire, "wire20", "vlan 20", 4)
		wire30 := s.tagged(t, s.wire, "wire30", "vlan 30", 5)
		trunk, native, access := s.sub(t, "mac1"), s.sub(t, "mac2"), s.sub(t, "ip1")
		s.addIn(t, trunk, "trunk 0,10,20-21")
		s.addIn(t, native, "vlan 10 trunk 20")
		s.addIn(t, access, "vlan 10")
		in10 := s.tagged(t, trunk, "in10", "vlan 10", 13)
		in20 := s.tagged(t, trunk, "in20", "vlan 20", 14)
		in30 := s.tagged(t, trunk, "in30", "vlan 30", 15)
		far20 := s.tagged(t, native, "far20", "vlan 20", 16)
		for _, pair := range [][2]*end{
			{trunk, s.wire}, {in10, wire10}, {in20, wire20}, {native, wire10}, {far20, wire20},
			{in10, access}, {in10, native}, {native, access}, {in20, far20},
		} {
			together(t, pair[0], pair[1])
		}
		s.wholePackets(t, in10, wire10)
		for _, pair := range [][2]*end{{trunk, native}, {in10, wire20}, {in20, access}, {far20, access}, {in30, wire30}, {in10, far20}} {
			apart(t, pair[0], pair[1])
		}
		if n := s.link(t, trunk).Stats[maps.DropTag].Packets; n == 0 {
			t.Error("nothing that it sends in a VLAN that is not on its list is counted as dropped")
		}
		if n := s.link(t, access).Stats[maps.DropTag].Packets; n != 0 {
			t.Errorf("%d packets of one that sends no tags are counted as dropped for them", n)
		}
	})
}

// A tag goes its way whether the cards take it off and put it on, or not; and the
// priority that a sub-interface's own tag says stands in it on the wire.
func TestVLANOffloads(t *testing.T) {
	lab.NeedTool(t, "ethtool")
	onRungs(t, vlanRungs(t), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		wire10 := s.tagged(t, s.wire, "wire10", "vlan 10", 3)
		wireQ := s.tagged(t, s.wire, "wireq", "vlan 10 qinq 30", 5)
		e, q := s.sub(t, "mac1"), s.sub(t, "ip1")
		s.addIn(t, e, "vlan 10")
		s.addIn(t, q, "vlan 10 qinq 30")
		for _, state := range []string{"on", "off"} {
			for _, on := range []*end{s.host, s.wire} {
				on.offload(t, "rxvlan", state, "txvlan", state)
			}
			together(t, e, wire10)
			together(t, q, wireQ)
		}

		c := s.wire.ns.Capture(t, s.wire.dev)
		for _, tt := range []struct {
			name string
			tag  []byte
			want uint16
		}{{"no tag", nil, 10}, {"a priority tag", []byte{0x81, 0, 0xa0, 0}, 0xa00a}} {
			frame := slices.Concat(s.wire.mac(t), e.mac(t), tt.tag, []byte{0x88, 0xb5}, []byte(tt.name), make([]byte, 60))
			e.ns.Send(t, e.dev, frame)
			got := c.Matching(1, socketTime, func(f lab.Frame) bool { return strings.Contains(string(f.Data), tt.name) })
			if len(got) == 0 {
				t.Errorf("a frame with %s does not come", tt.name)
				continue
			}
			wire := got[0].Wire()
			if proto, tci := binary.BigEndian.Uint16(wire[12:]), binary.BigEndian.Uint16(wire[14:]); proto != 0x8100 || tci != tt.want {
				t.Errorf("a frame with %s comes with tag %#x %#x, want 0x8100 %#x", tt.name, proto, tci, tt.want)
			}
		}
	})
}

// The priority of a tag that is taken off is the packet's inside, where the kernel keeps
// it without a tag.
func TestVLANPriority(t *testing.T) {
	lab.NeedTool(t, "nft")
	onRungs(t, withNetkit(vlanRungs(t)), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		e := s.sub(t, "mac1")
		s.addIn(t, e, "vlan 10")
		e.ns.Run(t, "nft", "add table netdev t; add chain netdev t in { type filter hook ingress device "+e.dev+" priority 0; }; "+
			"add rule netdev t in meta protocol 0x88b5 meta priority 0:5 counter; "+
			"add rule netdev t in meta protocol 0x88b5 meta priority 0:0 counter")
		for _, priority := range []byte{5, 0, 5} {
			s.wire.ns.Send(t, s.wire.dev, slices.Concat(e.mac(t), s.wire.mac(t), []byte{0x81, 0, priority << 5, 10, 0x88, 0xb5}, make([]byte, 60)))
		}
		lab.Eventually(t, "two frames of priority 5 and one of 0 come", func() bool {
			rules := e.ns.Run(t, "nft", "list table netdev t")
			return strings.Contains(rules, "priority 0:5 counter packets 2 ") && strings.Contains(rules, "packets 1 ")
		})
	})
}

// Unicast in a VLAN reaches a port, too.
func TestVLANPort(t *testing.T) {
	lab.NeedTool(t, "ethtool")
	onRungs(t, []rungCase{onXDP}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		s.host.offload(t, "rxvlan", "off")
		s.wire.offload(t, "tx", "off") // checksums are in the frames, as with a NIC
		wire10 := s.tagged(t, s.wire, "wire10", "vlan 10", 3)
		mac, ip := s.sub(t, "mac1"), s.sub(t, "ip1")
		for _, e := range []*end{mac, ip} {
			s.addIn(t, e, "vlan 10", func(spec *LinkSpec) { spec.Port = true })
			together(t, e, wire10)
		}
		together(t, mac, ip)
	})
}

// Stock DHCP clients get leases in a VLAN, an ipvlan's behind the parent's MAC.
func TestVLANDHCP(t *testing.T) {
	for _, tool := range []string{"dnsmasq", "udhcpc"} {
		lab.NeedTool(t, tool)
	}
	onRungs(t, vlanRungs(t), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		server := s.tagged(t, s.wire, "wire10", "vlan 10", 3)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "script"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		server.ns.Start(t, "dnsmasq", "-k", "-C", "/dev/null", "-u", "root", "-p", "0", "-i", server.dev, "--bind-interfaces", "--no-ping",
			"-F", "10.77.0.100,10.77.0.110,2m", "-l", filepath.Join(dir, "leases"), "-x", filepath.Join(dir, "pid"))
		for _, name := range []string{"mac1", "ip1"} {
			e := s.sub(t, name)
			spec := s.vlanned(t, e, "vlan 10")
			s.do(t, func(h *Host) error { return h.Add(spec) })
			s.settle(t, e)
			e.ns.Start(t, "udhcpc", "-f", "-i", e.dev, "-t", "20", "-T", "1", "-s", filepath.Join(dir, "script"))
			lab.Eventually(t, e.name+" has a lease", func() bool {
				return strings.Contains(e.ns.Run(t, "ip", "-4", "addr", "show", "dev", e.dev), "10.77.0.1")
			})
			e.ping(t, server.ip4.Addr())
		}
	})
}

// A later version takes over VLANs and trunks, too.
func TestMigrateVLANs(t *testing.T) {
	s := newSite(t, onClsact, siteOption{noIPv6: true})
	words := map[string]string{"mac1": "vlan 10", "mac2": "trunk 0,20-29", "ip1": "vlan 10 qinq 30", "ip2": "vlan 20"}
	for _, e := range s.subs {
		spec := s.vlanned(t, e, words[e.name])
		spec.Addrs = []netip.Prefix{e.ip4}
		s.do(t, func(h *Host) error { return h.Add(spec) })
		s.settle(t, e)
	}
	wire10 := s.tagged(t, s.wire, "wire10", "vlan 10", 3)
	known := s.known(t)
	s.next(t, "parent", "upgrade")
	var lines []string
	for _, l := range s.nextLinks(t) {
		lines = append(lines, l.line())
	}
	if !slices.Equal(lines, known) {
		t.Errorf("the next version knows\n%q\nand this one did\n%q", lines, known)
	}
	shown := s.next(t, "link", "show", "-d")
	for name, w := range words {
		if !strings.Contains(shown, "    "+w+"\n") {
			t.Errorf("%s is not in %s any more:\n%s", name, w, shown)
		}
	}
	s.sub(t, "mac1").ping(t, wire10.ip4.Addr())
	s.sub(t, "mac2").ping(t, s.wire.ip4.Addr())
	s.sub(t, "ip1").pingFails(t, wire10.ip4.Addr())
	s.next(t, "link", "add", "link", parentDev, "new0", "trunk", "20", "type", "macvlan", "mode", "bridge")
	s.next(t, "parent", "detach", parentDev)
	s.checkGone(t)
}

// A card whose filter of VLANs cannot be turned off is made promiscuous while anybody is
// in one.
func TestCardVLANs(t *testing.T) {
	c := needCards(t)
	needKind(t, "vlan")
	wire10 := c.tagged(t, c.wire, "wire10", "vlan 10", 3)
	c.capture.Frames(math.MaxInt, 0)
	before := state(t, c.host.ns, c.host.dev)
	for _, e := range []*end{c.mac, c.ip} {
		spec := c.spec(e)
		spec.VLAN = vlanWords(t, "vlan 10")
		c.do(t, func(h *Host) error { return h.Add(spec) })
		c.settle(t, e)
		together(t, e, wire10)
	}
	c.do(t, func(h *Host) error {
		return h.SetVLAN(Selector{Name: c.ip.dev, Netns: c.ip.ns.Name()}, vlanWords(t, "vlan off"))
	})
	c.talk(t, c.ip)
	together(t, c.mac, wire10)
	c.del(t, c.mac)
	c.checkAdmits(t, false, foreignMAC)
	c.del(t, c.ip)
	checkState(t, c.host.ns, c.host.dev, before)
	c.checkGone(t)
}
