package main

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// The bench's own little programs, which make frames and take them off.

// A hook is a place on a device that a sink can be put on.
type hook int

const (
	xdpHook hook = iota // the driver, as soon as it has a frame
	ingress             // the stack, before all that takes frames from it
	egress
)

// Verdicts that drop.
const (
	xdpDrop = 1
	tcShot  = 2
)

// newCounter makes a map that a program counts in and Go reads.
func newCounter() (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "xvb_count", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("make counter: %w", err)
	}
	return m, nil
}

// A sink drops all that comes to where it is put, and counts it. Only one CPU
// at a time may reach it.
type sink struct {
	hook  hook
	count *ebpf.Map
	prog  *ebpf.Program
	links []link.Link
}

func newSink(h hook) (*sink, error) {
	count, err := newCounter()
	if err != nil {
		return nil, err
	}
	spec := &ebpf.ProgramSpec{Name: "xvb_sink", Type: ebpf.SchedCLS, License: "MIT"}
	verdict := int32(tcShot)
	if h == xdpHook {
		spec.Type, verdict = ebpf.XDP, xdpDrop
	}
	spec.Instructions = asm.Instructions{
		asm.LoadMapValue(asm.R1, count.FD(), 0),
		asm.LoadMem(asm.R2, asm.R1, 0, asm.DWord),
		asm.Add.Imm(asm.R2, 1),
		asm.StoreMem(asm.R1, 0, asm.R2, asm.DWord),
		asm.Mov.Imm(asm.R0, verdict),
		asm.Return(),
	}
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load sink: %w", err), count.Close())
	}
	return &sink{hook: h, count: count, prog: prog}, nil
}

// on puts the sink on a device, before all other programs there.
func (k *sink) on(in *space, dev string) error {
	l, err := in.link(dev)
	if err != nil {
		return err
	}
	index := l.Attrs().Index
	return in.do(func() (err error) {
		var l link.Link
		switch k.hook {
		case xdpHook:
			l, err = link.AttachXDP(link.XDPOptions{Program: k.prog, Interface: index, Flags: link.XDPDriverMode})
		case ingress:
			l, err = link.AttachTCX(link.TCXOptions{Program: k.prog, Interface: index, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		case egress:
			l, err = link.AttachTCX(link.TCXOptions{Program: k.prog, Interface: index, Attach: ebpf.AttachTCXEgress, Anchor: link.Head()})
		}
		if err != nil {
			return fmt.Errorf("attach sink to %s: %w", dev, err)
		}
		k.links = append(k.links, l)
		return nil
	})
}

func (k *sink) seen() (n uint64, err error) {
	if err := k.count.Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("read counter: %w", err)
	}
	return n, nil
}

func (k *sink) close() error {
	var errs []error
	for _, l := range k.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, k.prog.Close(), k.count.Close())...)
}

// liveFrames is BPF_F_TEST_XDP_LIVE_FRAMES: verdicts are carried out.
const liveFrames = 2

// A generator sends frames out of a device as XDP frames: no socket, no copy,
// and all of it on the caller's CPU time.
type generator struct {
	next *ebpf.Map
	prog *ebpf.Program
}

// A rotation is how a generator addresses many receivers in turn: it writes a
// number into 16 bits of each frame, which goes from first on to one less than
// first + count and begins anew. A count of 0 leaves frames as they are.
type rotation struct {
	offset, first, count int
	stride               int  // 1, or a number without a divisor in common with count
	id                   bool // also write the complement into the IP header's id, so that smallFrame's checksum stays right
}

// byMAC goes through sub-interfaces of their own MACs.
func byMAC(subs int) rotation { return rotation{offset: 4, first: 1, count: subs, stride: 1} }

// byAddr goes through addresses from one on, here and there as traffic does.
func byAddr(first, count int) rotation {
	return rotation{offset: ipOffset + 18, first: first, count: count, stride: 40_503, id: true}
}

// instructions write the number made of the counter in R1 into the frame at R2.
func (r rotation) instructions() asm.Instructions {
	if r.count == 0 {
		return nil
	}
	insns := asm.Instructions{
		asm.Mul.Imm(asm.R1, int32(r.stride)),
		asm.Mod.Imm(asm.R1, int32(r.count)),
		asm.Add.Imm(asm.R1, int32(r.first)),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(asm.R2, int16(r.offset), asm.R1, asm.Half),
	}
	if r.id {
		insns = append(insns, asm.Xor.Imm(asm.R1, 0xffff), asm.StoreMem(asm.R2, ipOffset+4, asm.R1, asm.Half))
	}
	return insns
}

// newGenerator makes one for the device with this index; 0 drops each frame at
// once.
func newGenerator(ifindex int, r rotation) (*generator, error) {
	next, err := newCounter()
	if err != nil {
		return nil, err
	}
	insns := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, ipOffset+20),
		asm.Mov.Imm(asm.R0, xdpDrop),
		asm.JGT.Reg(asm.R4, asm.R3, "exit"),
		asm.LoadMapValue(asm.R5, next.FD(), 0),
		asm.LoadMem(asm.R1, asm.R5, 0, asm.DWord),
		asm.Mov.Reg(asm.R3, asm.R1),
		asm.Add.Imm(asm.R3, 1),
		asm.StoreMem(asm.R5, 0, asm.R3, asm.DWord),
	}
	insns = append(insns, r.instructions()...)
	if ifindex > 0 {
		insns = append(insns, asm.Mov.Imm(asm.R1, int32(ifindex)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call())
	}
	insns = append(insns, asm.Return().WithSymbol("exit"))
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "xvb_generate", Type: ebpf.XDP, License: "MIT", Instructions: insns})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load generator: %w", err), next.Close())
	}
	return &generator{next: next, prog: prog}, nil
}

// send makes n frames, so many at once, in the network namespace of the calling
// thread. A signal may make it more.
func (g *generator) send(frame []byte, n, batch int) error {
	_, err := g.prog.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(n), Flags: liveFrames, BatchSize: uint32(batch)})
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("generate frames: %w: it takes Linux 5.18", err)
	}
	if err != nil {
		return fmt.Errorf("generate frames: %w", err)
	}
	return nil
}

func (g *generator) sent() (n uint64, err error) {
	if err := g.next.Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("read counter: %w", err)
	}
	return n, nil
}

func (g *generator) close() error { return errors.Join(g.prog.Close(), g.next.Close()) }
