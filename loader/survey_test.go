package loader

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// passing loads a program that lets everything pass.
func passing(t *testing.T, kind ebpf.ProgramType, name string, verdict int32) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: kind, Name: name, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

// What hangs on a parent, and how it is set up, is seen as it changes.
func TestSurvey(t *testing.T) {
	lab.NeedTool(t, "ethtool")
	s := newSite(t, onTCX, siteOption{noIPv6: true})
	survey := func() (sv *Survey) {
		s.do(t, func(h *Host) (err error) { sv, err = h.Survey(parentDev, true); return err })
		return sv
	}
	bare := survey()
	if bare.Kind != "veth" || bare.Driver != "veth" || !bare.Up || !bare.Carrier || bare.MTU != 1500 || bare.RXQueues != 1 || bare.TXQueues != 1 {
		t.Errorf("device: %+v", bare)
	}
	if bare.XDP != nil || bare.Ingress != nil || bare.Master != "" || bare.Children != nil || bare.Attached || bare.Links != 0 {
		t.Errorf("nothing is attached, but: %+v", bare)
	}
	if bare.Rung != (Rung{maps.RungTC, xdpCosts["veth"]}) || bare.Tried {
		t.Errorf("rung: %+v, tried %v", bare.Rung, bare.Tried)
	}
	for _, on := range []bool{true, false} {
		s.host.ns.Run(t, "ethtool", "-K", parentDev, "gro", map[bool]string{true: "on", false: "off"}[on])
		if sv := survey(); !sv.has("gro", on) || sv.has("gro", !on) || sv.has("lro", true) {
			t.Errorf("gro %v: %+v", on, sv.Offloads)
		}
	}
	s.host.ns.Run(t, "ip", "link", "set", parentDev, "mtu", "1400")
	s.wire.ns.Run(t, "ip", "link", "set", s.wire.dev, "down")
	if sv := survey(); sv.MTU != 1400 || !sv.Up || sv.Carrier {
		t.Errorf("mtu 1400, no carrier: %+v", sv)
	}

	s.host.ns.Do(t, func() {
		l, err := link.AttachXDP(link.XDPOptions{
			Program: passing(t, ebpf.XDP, "others_xdp", 2), Interface: s.host.index(t), Flags: link.XDPGenericMode,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	})
	s.foreignFilter(t)
	// Where a child is, one of another parent with the same index is none.
	away := s.subs[0].ns
	away.Run(t, "ip", "link", "add", "other", "index", fmt.Sprint(s.host.index(t)), "type", "bridge")
	away.Run(t, "ip", "link", "add", "k3", "link", "other", "type", "macvlan", "mode", "bridge")
	s.host.ns.Run(t, "ip", "link", "add", "k1", "link", parentDev, "netns", away.Name(), "type", "macvlan", "mode", "bridge")
	s.host.ns.Run(t, "ip", "link", "add", "k2", "link", parentDev, "type", "macvlan", "mode", "bridge")
	s.do(t, func(h *Host) error {
		return h.Add(LinkSpec{Parent: parentDev, Name: "x1", Kind: maps.Macvlan, Mode: maps.Bridge})
	})
	sv := survey()
	if sv.XDP == nil || *sv.XDP != (XDPProgram{Mode: "generic", Name: "others_xdp"}) {
		t.Errorf("xdp: %+v", sv.XDP)
	}
	slices.Sort(sv.Ingress)
	if got := fmt.Sprint(sv.Ingress); got != "[filter bpf xvlan_rx]" {
		t.Errorf("ingress: %s", got)
	}
	if want := []Child{{"k2", "macvlan", ""}, {"k1", "macvlan", away.Name()}}; !reflect.DeepEqual(sv.Children, want) {
		t.Errorf("children: %v, want %v", sv.Children, want)
	}
	if !sv.Attached || sv.Links != 1 {
		t.Errorf("attached %v, %d sub-interfaces", sv.Attached, sv.Links)
	}
}

// foreignFilter puts a filter of somebody else's on the parent.
func (s *site) foreignFilter(t *testing.T) {
	t.Helper()
	index := s.host.index(t)
	if err := s.host.ns.Handle().QdiscAdd(clsact(index)); err != nil {
		t.Fatal(err)
	}
	attrs := filterAttrs(index, false)
	attrs.Priority = 5
	prog := passing(t, ebpf.SchedCLS, "others_tc", -1)
	err := s.host.ns.Handle().FilterAdd(&netlink.BpfFilter{FilterAttrs: attrs, Fd: prog.FD(), Name: "others", DirectAction: true})
	if err != nil {
		t.Fatal(err)
	}
}

// Where native XDP may be had, it is tried, but only if that is wanted.
func TestSurveyTries(t *testing.T) {
	s := newSite(t, onTCX, siteOption{noIPv6: true})
	s.host.ns.Run(t, "ip", "link", "add", "br0", "type", "bridge")
	s.host.ns.Run(t, "ip", "link", "set", parentDev, "master", "br0")
	for _, attach := range []bool{true, false} {
		var bridge, port *Survey
		s.do(t, func(h *Host) (err error) { bridge, err = h.Survey("br0", attach); return err })
		want := maps.RungXDP // it may be had
		if attach {
			want = maps.RungTC
		}
		if bridge.Tried != attach || bridge.Rung.Rung != want || !attach && !strings.Contains(bridge.Rung.Reason, "not tried") {
			t.Errorf("attach %v: tried %v, rung %s: %s", attach, bridge.Tried, bridge.Rung, bridge.Rung.Reason)
		}
		s.do(t, func(h *Host) (err error) { port, err = h.Survey(parentDev, attach); return err })
		if port.Master != "br0" || port.MasterKind != "bridge" {
			t.Errorf("port of %s, %s", port.Master, port.MasterKind)
		}
	}
	// On one that xvlan stands on nothing is tried, and its rung is that.
	var sv *Survey
	s.do(t, func(h *Host) error { return h.Attach("br0", AttachSpec{Datapath: TC, Keep: true}) })
	s.do(t, func(h *Host) (err error) { sv, err = h.Survey("br0", true); return err })
	if sv.Tried || sv.Rung != (Rung{maps.RungTC, askedFor}) || !sv.Attached {
		t.Errorf("attached: %+v", sv)
	}
}

// Each thing that stands in the way has its warning, and nothing else has one.
func TestRecommend(t *testing.T) {
	const nic = "device"
	on, off, fixed := []Offload{{"gro", true, false}}, []Offload{{"gro", false, false}}, []Offload{{"gro", false, true}}
	xdp := Rung{maps.RungXDP, "ixgbe has native XDP"}
	tc := Rung{maps.RungTC, "the driver has none"}
	good := Survey{Name: "eth0", Kind: nic, Driver: "ixgbe", Up: true, Carrier: true, Offloads: on, Rung: xdp}
	for name, tt := range map[string]struct {
		change func(*Survey)
		rung   maps.Rung
		asked  bool
		warns  string // pieces of the warnings, in order, separated by |
	}{
		"all is well":       {func(*Survey) {}, maps.RungXDP, false, ""},
		"tc":                {func(s *Survey) { s.Rung = tc }, maps.RungTC, false, ""},
		"down":              {func(s *Survey) { s.Up, s.Carrier = false, false }, maps.RungXDP, false, "ip link set eth0 up"},
		"no carrier":        {func(s *Survey) { s.Carrier = false }, maps.RungXDP, false, "no carrier"},
		"virtual":           {func(s *Survey) { s.Driver = "vmxnet3" }, maps.RungXDP, false, "use type ipvlan"},
		"lro":               {func(s *Survey) { s.Offloads = append(on, Offload{"lro", true, false}) }, maps.RungXDP, false, "lro off gro on"},
		"no gro":            {func(s *Survey) { s.Offloads = off }, maps.RungXDP, false, "ethtool -K eth0 gro on"},
		"no gro to be had":  {func(s *Survey) { s.Offloads = fixed }, maps.RungXDP, false, ""},
		"no gro, veth":      {func(s *Survey) { s.Offloads, s.Kind = off, "veth" }, maps.RungXDP, false, ""},
		"own xdp":           {func(s *Survey) { s.XDP, s.Attached = &XDPProgram{"native", "xvlan_xdp", true}, true }, maps.RungXDP, false, ""},
		"others' xdp":       {func(s *Survey) { s.XDP = &XDPProgram{"native", "filter", false} }, maps.RungTC, true, "native XDP program, filter"},
		"others' xdp on tc": {func(s *Survey) { s.XDP, s.Rung = &XDPProgram{"native", "filter", false}, tc }, maps.RungTC, false, "filter"},
		"generic xdp":       {func(s *Survey) { s.XDP = &XDPProgram{"generic", "filter", false} }, maps.RungTC, true, "a copy"},
		"own tc":            {func(s *Survey) { s.Ingress = []string{"xvlan_rx"} }, maps.RungXDP, false, ""},
		"others' tc":        {func(s *Survey) { s.Ingress = []string{"cil", "xvlan_rx", "cil"} }, maps.RungXDP, false, "tc ingress (2)"},
		"bridge port":       {func(s *Survey) { s.Master, s.MasterKind = "br0", "bridge" }, maps.RungXDP, false, "port of br0 (bridge)"},
		"bond port":         {func(s *Survey) { s.Master, s.MasterKind = "bond0", "bond" }, maps.RungXDP, false, "port of bond0: make that the parent"},
		"kernel macvlans":   {func(s *Survey) { s.Children = []Child{{"k1", "macvlan", ""}, {"v", "vlan", ""}} }, maps.RungXDP, false, "ipvlan (1)"},
		"vlan, tags taken": {func(s *Survey) {
			s.Children, s.Offloads = []Child{{"v", "vlan", ""}}, append(on, Offload{"rxvlan", true, true})
		}, maps.RungXDP, false, "rxvlan is on"},
		"vlan, tags left": {func(s *Survey) {
			s.Children, s.Offloads = []Child{{"v", "vlan", ""}}, append(on, Offload{"rxvlan", false, true})
		}, maps.RungXDP, false, ""},
		"two": {func(s *Survey) { s.Offloads, s.Master, s.MasterKind = off, "br0", "bridge" }, maps.RungXDP, false, "gro on|br0"},
	} {
		s := good
		tt.change(&s)
		r := s.Recommend()
		if r.Rung != tt.rung || r.Asked != tt.asked || r.Reason == "" {
			t.Errorf("%s: %s (asked for: %v): %s", name, r.Rung, r.Asked, r.Reason)
		}
		want := strings.Split(tt.warns, "|")
		if tt.warns == "" {
			want = nil
		}
		if !slices.EqualFunc(r.Warnings, want, strings.Contains) {
			t.Errorf("%s: warns of %q", name, r.Warnings)
		}
	}
}

// The kernel's names of offloads are those that are looked for.
func TestOffloadNames(t *testing.T) {
	s := newSite(t, onTCX, siteOption{noIPv6: true})
	sv := &Survey{Name: parentDev}
	if s.do(t, func(*Host) error { return sv.readEthtool() }); len(sv.Offloads) != len(offloadNames) {
		t.Errorf("offloads: %+v", sv.Offloads)
	}
}
