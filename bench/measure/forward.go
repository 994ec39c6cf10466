package measure

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// ForwardCost is what something takes with the sub-interfaces of one rung.
type ForwardCost struct {
	What string `json:"what"`
	Kind string `json:"kind"`
	Rung string `json:"rung"`
	Unit string `json:"unit"` // of Cost
	Cost Spread `json:"cost"`
}

// Names in the namespaces of a side.
const (
	wireDev   = "wire"
	parentDev = "parent"
	subDev    = "c1"
)

var (
	wirePrefix = netip.MustParsePrefix("10.57.255.254/16")
	subPrefix  = netip.PrefixFrom(subAddr(senderID), wirePrefix.Bits())
)

// A side is a parent, with a veth pair for its cable, and a sub-interface in a
// namespace of its own.
type side struct {
	kind            maps.Kind
	datapath        loader.Datapath
	spaces          []*space
	wire, host, box *space
	loader          *loader.Host
	mac             net.HardwareAddr // that frames for the sub-interface have
	index           int              // of the wire's end
	generator       *ebpf.Program
	*sockets
}

func newSide(kind maps.Kind, datapath loader.Datapath) (*side, error) {
	spaces, err := newSpaces(3)
	if err != nil {
		return nil, err
	}
	s := &side{kind: kind, datapath: datapath, spaces: spaces, wire: spaces[0], host: spaces[1], box: spaces[2]}
	if err := s.build(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *side) build() (err error) {
	if s.index, err = s.wire.cable(wireDev, wireMAC(), s.host, parentDev); err != nil {
		return err
	}
	if err := s.host.do(gro); err != nil { // so that frames come in as from a NIC
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: wirePrefix.Addr().AsSlice(), Mask: net.CIDRMask(wirePrefix.Bits(), 32)}}
	l, err := s.wire.nl.LinkByName(wireDev)
	if err == nil {
		err = s.wire.nl.AddrAdd(l, addr)
	}
	if err != nil {
		return fmt.Errorf("address the wire: %w", err)
	}
	if err := s.host.do(s.add); err != nil {
		return err
	}
	s.generator, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(s.index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
	}})
	if err != nil {
		return fmt.Errorf("load generator: %w", err)
	}
	s.sockets, err = newSockets(s)
	return err
}

func gro() error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open ethtool: %w", err)
	}
	defer e.Close()
	if err := e.Change(parentDev, map[string]bool{"rx-gro": true}); err != nil {
		return fmt.Errorf("turn GRO on: %w", err)
	}
	return nil
}

// add makes the sub-interface, from the host's namespace.
func (s *side) add() (err error) {
	if s.loader, err = loader.Open(slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	spec := loader.LinkSpec{
		Parent: parentDev, Name: subDev, Kind: s.kind, Mode: maps.Bridge, MAC: net.HardwareAddr{2, 0x57, 0, 0, 0, 1},
		Addrs: []netip.Prefix{subPrefix}, Netns: s.box.path(), Up: true, Datapath: s.datapath,
	}
	s.mac = spec.MAC
	if s.kind == maps.Ipvlan {
		parent, err := s.host.nl.LinkByName(parentDev)
		if err != nil {
			return fmt.Errorf("find parent: %w", err)
		}
		s.mac = parent.Attrs().HardwareAddr
		spec.Mode, spec.MAC = maps.L2, nil
	}
	if s.datapath == loader.XDP { // for what that rung is
		if err := s.loader.Attach(parentDev, loader.AttachSpec{Datapath: s.datapath, Unknown: loader.UnknownDrop}); err != nil {
			return err
		}
	}
	return s.loader.Add(spec)
}

// close also takes away what a failed build has left.
func (s *side) close() error {
	var errs []error
	if s.sockets != nil {
		s.sockets.close()
	}
	if s.generator != nil {
		errs = append(errs, s.generator.Close())
	}
	if s.loader != nil {
		err := s.host.do(func() error { return s.loader.Detach(parentDev) })
		if !errors.Is(err, loader.ErrNotFound) {
			errs = append(errs, err)
		}
		s.loader.Close()
	}
	return errors.Join(append(errs, closeSpaces(s.spaces))...)
}

// forwards is what is measured of a side. Rung xdp differs from tc in what comes
// in by the parent alone, and a veth pair would have to copy a socket's frames for it.
var forwards = []struct {
	what, unit string
	probe      func(*side, *cpu) probe
	xdp        bool
}{
	{"60-byte frame from the wire", "ns", (*side).in, true},
	{"60-byte datagram to the wire", "ns", (*side).out, false},
	{"datagram there and back", "µs", (*side).roundTrip, false},
}

// Forward compares sub-interfaces of the kernel's drivers with xvlan's: the CPU
// time of what comes in, from a driver to a socket, and goes out, from a socket to a
// socket; and the time that a datagram and its answer take. A kind that this
// kernel has no driver for is left out.
func Forward(ctx context.Context, budget Budget) (costs []ForwardCost, err error) {
	end := time.Now().Add(budget.Time)
	on, err := lastCPU()
	if err != nil {
		return nil, err
	}
	var probes []probe
	for _, c := range []struct {
		kind     maps.Kind
		datapath loader.Datapath
	}{
		{maps.Macvlan, loader.Kernel}, {maps.Macvlan, loader.TC}, {maps.Macvlan, loader.XDP}, {maps.Ipvlan, loader.Kernel}, {maps.Ipvlan, loader.TC},
	} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s, failed := newSide(c.kind, c.datapath)
		if errors.Is(failed, loader.ErrUnsupported) {
			continue
		}
		if failed != nil {
			return nil, fmt.Errorf("%s on rung %s: %w", c.kind, c.datapath, failed)
		}
		defer func() { err = errors.Join(err, s.close()) }()
		for _, f := range forwards {
			if c.datapath != loader.XDP || f.xdp {
				costs = append(costs, ForwardCost{What: f.what, Kind: c.kind.String(), Rung: string(c.datapath), Unit: f.unit})
				probes = append(probes, f.probe(s, on))
			}
		}
	}
	spreads, err := interleave(ctx, end, budget.Progress, probes)
	if err != nil {
		return nil, err
	}
	for i, spread := range spreads {
		costs[i].Cost = spread
	}
	return costs, nil
}
