package bpf_test

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
)

// What has a tag that a VLAN device on the parent takes is that device's, by
// protocol and number, and also when the device has gone elsewhere.
func TestVLANDevices(t *testing.T) {
	if !lab.HasKind(t, "vlan") {
		t.Skip("this kernel has no VLAN devices")
	}
	w := usualWorld(t)
	parent := int(w.meta.Ifindex)
	for name, v := range map[string]netlink.Vlan{
		"v0":    {VlanId: 0, VlanProtocol: netlink.VLAN_PROTOCOL_8021AD},
		"v10":   {VlanId: 10, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q},
		"v20":   {VlanId: 20, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q},
		"v4094": {VlanId: 4094, VlanProtocol: netlink.VLAN_PROTOCOL_8021AD},
	} {
		v.LinkAttrs = netlink.NewLinkAttrs()
		v.Name, v.ParentIndex = name, parent
		if err := w.host.Handle().LinkAdd(&v); err != nil {
			t.Fatalf("add %s: %v", name, err)
		}
	}
	if err := w.host.Handle().LinkSetNsFd(w.host.Link(t, "v20"), w.inside.Fd()); err != nil {
		t.Fatal(err)
	}
	to, all, own := fromWire(macOf(macAway), 99), udp(broadcastMAC, routerMAC, ip4Of(255), routerIP4, 18), fromWire(macOf(macVLAN), 99)
	cases := []frameCase{
		left("802.1Q", tagged(to, 0x8100, 10)),
		left("802.1Q, priority", tagged(to, 0x8100, 0xf00a)),
		left("802.1Q, its device elsewhere", tagged(to, 0x8100, 20)),
		left("802.1ad", tagged(to, 0x88a8, 4094)),
		left("802.1ad priority tag", tagged(to, 0x88a8, 0xe000)),
		left("QinQ by the outer tag", tagged(to, 0x8100, 10, 0x8100, 30)),
		left("broadcast", tagged(all, 0x8100, 10)),
		left("MAC in a VLAN", tagged(own, 0x8100, 10)),
		delivered("untagged", macAway, to),
		delivered("802.1Q priority tag", macAway, tagged(to, 0x8100, 0xe000)),
		delivered("802.1Q, another number", macAway, tagged(to, 0x8100, 11)),
		delivered("802.1Q, 512 more", macAway, tagged(to, 0x8100, 522)),
		delivered("802.1Q, the other's number", macAway, tagged(to, 0x8100, 4094)),
		delivered("802.1ad, the other's number", macAway, tagged(to, 0x88a8, 20)),
		delivered("QinQ by the inner tag", macAway, tagged(to, 0x8100, 30, 0x8100, 10)),
		flooded("broadcast in another VLAN", tagged(all, 0x8100, 11)),
	}
	// Sent, since only then the kernel moves the tag into the skb.
	w.attach(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			undisturbed(t, func(tb testing.TB) {
				w.enter(tb)
				w.send(tb, bpf.XvlanProgXvlanRx, 0, c.frame)
				awaitHits(tb, w, len(c.frame), c.hits...)
			})
		})
	}
}

// XDP leaves it to them, too.
func TestVLANDevicesXDP(t *testing.T) {
	if !lab.HasKind(t, "vlan") {
		t.Skip("this kernel has no VLAN devices")
	}
	w := usualWorld(t)
	v := &netlink.Vlan{LinkAttrs: netlink.NewLinkAttrs(), VlanId: 10}
	v.Name, v.ParentIndex = "v10", int(w.meta.Ifindex)
	prog := w.coll.Programs[bpf.XvlanProgXvlanXdp]
	if err := w.host.Handle().LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	// Only then has a veth the receive queue that a test run can take.
	parent := w.host.Link(t, "p0")
	w.host.Do(t, func() {
		if err := netlink.LinkSetXdpFdWithFlags(parent, prog.FD(), nl.XDP_FLAGS_DRV_MODE); err != nil {
			t.Error(err)
		}
	})
	w.meta.Policy = bpf.XvlanPolicyPOLICY_UNKNOWN_DROP
	w.enter(t)
	frame := fromWire(strangerMAC, 99)
	for tag, want := range map[uint16]uint32{10: xdpPass, 11: xdpDrop} {
		in := tagged(frame, 0x8100, tag)
		var got uint32
		var err error
		w.host.Do(t, func() {
			got, err = prog.Run(&ebpf.RunOptions{
				Data: in, Context: xdpMD{DataEnd: uint32(len(in)), IngressIfindex: w.meta.Ifindex}})
		})
		if err != nil || got != want {
			t.Errorf("VLAN %d: returned %d, %v; want %d", tag, got, err, want)
		}
	}
}
