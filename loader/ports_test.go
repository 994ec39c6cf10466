package loader

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// xdpCounter puts a native XDP program on a device that counts unicast IPv4
// frames and lets all pass.
func (e *end) xdpCounter(t *testing.T) *counterProg {
	t.Helper()
	count, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { count.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT", Instructions: asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */),
		asm.Mov.Reg(asm.R4, asm.R6),
		asm.Add.Imm(asm.R4, 14),
		asm.JGT.Reg(asm.R4, asm.R3, "out"),
		asm.LoadMem(asm.R2, asm.R6, 0, asm.Byte),
		asm.JSet.Imm(asm.R2, 1, "out"),
		asm.LoadMem(asm.R2, asm.R6, 12, asm.Half),
		asm.JNE.Imm(asm.R2, 0x0008, "out"),
		asm.LoadMapValue(asm.R1, count.FD(), 0),
		asm.Mov.Imm(asm.R2, 1),
		asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
		asm.Return().WithSymbol("out"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	index := e.index(t)
	e.ns.Do(t, func() {
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: index, Flags: link.XDPDriverMode})
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { l.Close() })
	})
	return &counterProg{prog, count}
}

// port makes a sub-interface that unicast reaches through its driver.
func (s *site) port(t *testing.T, e *end, addrs ...netip.Prefix) {
	t.Helper()
	spec := s.spec(e)
	spec.Netns, spec.Up, spec.Addrs, spec.Port = e.ns.Name(), true, addrs, true
	s.do(t, func(h *Host) error { return h.Add(spec) })
	s.settle(t, e)
}

// newPorts is a site whose first sub-interface of each kind is a port.
func newPorts(t *testing.T, opt siteOption) *site {
	t.Helper()
	s := newSite(t, onXDP, opt)
	s.host.offload(t, "rxvlan", "off")
	s.wire.offload(t, "tx", "off") // checksums are in the frames, as with a NIC
	for i, e := range s.subs {
		add := s.addAtOnce
		if i%2 == 0 {
			add = func(t testing.TB, e *end, addrs ...netip.Prefix) { s.port(t.(*testing.T), e, addrs...) }
		}
		if opt.noIPv6 {
			add(t, e, e.ip4)
		} else {
			add(t, e, e.ip4, e.ip6)
		}
	}
	return s
}

// A kernel stack behind the driver gets all that it would get otherwise.
func TestPortStack(t *testing.T) {
	s := newPorts(t, siteOption{})
	for _, p := range s.pairs() {
		for i := range p[0].addrs() {
			p[0].ping(t, p[1].addrs()[i])
		}
	}
	for _, name := range []string{"mac1", "ip1"} {
		e := s.sub(t, name)
		if got := s.link(t, e).Place; got != maps.Port {
			t.Errorf("%s is listed with place %v", name, got)
		}
		bulk(t, s.wire, e, ip4Of, 1<<20)
	}
}

// A program on the device sees every unicast frame, from the wire and from
// siblings of both kinds, and each is counted; also after the device has moved,
// and no more once delivery is the usual one again.
func TestPortProgram(t *testing.T) {
	const pings = 20
	s := newPorts(t, siteOption{noIPv6: true})
	know(t, s, s.all()...)
	for _, name := range []string{"mac1", "ip1"} {
		e := s.sub(t, name)
		seen := e.xdpCounter(t)
		expect := func(what string, want uint64) {
			t.Helper()
			for _, from := range append([]*end{s.wire}, s.subs...) {
				if from == e {
					continue
				}
				was, counted := seen.value(t), s.link(t, e).Stats[maps.RX]
				from.ping(t, e.ip4.Addr(), "-c", "20", "-i", "0.002", "-q")
				if got := seen.value(t) - was; got != want {
					t.Errorf("%s: from %s to %s the program saw %d frames, want %d", what, from.name, name, got, want)
				}
				if got := s.link(t, e).Stats[maps.RX].Packets - counted.Packets; got != pings {
					t.Errorf("%s: from %s to %s %d frames are counted, want %d", what, from.name, name, got, pings)
				}
			}
		}
		sel := Selector{Name: e.dev, Netns: e.ns.Name()}
		expect("port", pings)
		s.do(t, func(h *Host) error { return h.SetPort(sel, false) })
		if got := s.link(t, e).Place; got != maps.Away {
			t.Errorf("%s, no port any more, is listed with place %v", name, got)
		}
		expect("no port", 0)
		s.do(t, func(h *Host) error { return h.SetPort(sel, true) })
		expect("port again", pings)
	}
}

func TestPortRefused(t *testing.T) {
	s := newSite(t, onXDP, siteOption{})
	refused := func(names string, fn func(h *Host) error) {
		t.Helper()
		err := s.try(t, fn)
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), names) {
			t.Errorf("%v; want it to name %s", err, names)
		}
	}
	mac, ip := s.sub(t, "mac1"), s.sub(t, "ip1")
	port := func(e *end, mode maps.Mode, rung Datapath) func(h *Host) error {
		spec := s.spec(e)
		spec.Port, spec.Mode, spec.Datapath = true, mode, rung
		return func(h *Host) error { return h.Add(spec) }
	}
	refused("rxvlan off", port(mac, maps.Bridge, XDP))
	s.host.offload(t, "rxvlan", "off")
	for _, mode := range []maps.Mode{maps.Passthru, maps.Source} {
		refused("mode "+mode.String(), port(mac, mode, XDP))
	}
	for _, mode := range []maps.Mode{maps.L3, maps.L3S} {
		refused("mode "+mode.String(), port(ip, mode, XDP))
	}
	refused("rung tc", port(mac, maps.Bridge, TC))
	refused("kernel rung", port(mac, maps.Bridge, Kernel))
	s.checkGone(t)

	s.port(t, mac, mac.ip4)
	s.port(t, ip, ip.ip4)
	for e, mode := range map[*end]maps.Mode{mac: maps.Source, ip: maps.L3} {
		refused("mode "+mode.String(), func(h *Host) error {
			return h.SetMode(Selector{Name: e.dev, Netns: e.ns.Name()}, ModeChange{Mode: mode})
		})
	}
	for _, e := range []*end{mac, ip} {
		s.wire.ping(t, e.ip4.Addr())
	}
}

// Who turns off GRO of a port, which it is reached by, has it turned on again by
// whoever looks, and at once while somebody follows.
func TestPortGRO(t *testing.T) {
	s := newPorts(t, siteOption{noIPv6: true})
	know(t, s, s.all()...)
	e := s.sub(t, "mac1")
	on := func() (on bool) {
		t.Helper()
		e.ns.Do(t, func() {
			var err error
			if on, err = feature(e.dev, featureGRO); err != nil {
				t.Error(err)
			}
		})
		return on
	}
	off := func() {
		t.Helper()
		e.offload(t, "gro", "off")
		s.wire.pingFails(t, e.ip4.Addr())
	}
	off()
	s.sweep(t)
	s.wire.ping(t, e.ip4.Addr())

	e.offload(t, "gro", "off")
	e.ns.Run(t, "ip", "link", "set", e.dev, "down")
	s.sweep(t)
	e.ns.Up(t, e.dev)
	s.settle(t, e)
	s.wire.ping(t, e.ip4.Addr())

	stop := s.serve(t)
	e.offload(t, "gro", "off")
	lab.Eventually(t, "it is on again", on)
	s.wire.ping(t, e.ip4.Addr())
	stop()

	e.xdpCounter(t) // which is reached without
	e.offload(t, "gro", "off")
	s.sweep(t)
	if on() {
		t.Error("it is turned on where it is not needed")
	}
	s.wire.ping(t, e.ip4.Addr())
}
