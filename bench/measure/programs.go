package measure

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// MinLinks and MaxLinks bound with how many sub-interfaces programs can be
// measured: a sender and a sibling at the least.
const (
	MinLinks = 2
	MaxLinks = 4096
)

// ProgramCost is what a program takes of one frame, in nanoseconds.
type ProgramCost struct {
	Frame string `json:"frame"`
	Rung  string `json:"rung"`  // whose program it is
	Links int    `json:"links"` // sub-interfaces on the parent; 0 where none matter
	NS    Spread `json:"ns"`
}

// Verdicts, by which it is known that a frame has gone the way it was meant for.
const (
	tcNext     = 0xffffffff // TCX_NEXT, TC_ACT_UNSPEC
	tcShot     = 2
	tcRedirect = 7
	xdpDrop    = 1
	xdpPass    = 2
)

// A stage is what all measured programs have in common: a parent, the leg that
// is sent from, and one that stands for all that is sent to, whose other ends
// are in another namespace.
type stage struct {
	spaces                   []*space
	host                     *space
	parent, sender, receiver int // ifindexes
	mac                      net.HardwareAddr
}

func newStage() (*stage, error) {
	spaces, err := newSpaces(2)
	if err != nil {
		return nil, err
	}
	s := &stage{spaces: spaces, host: spaces[0], mac: net.HardwareAddr{2, 0x57, 0xff, 0, 0, 0xfd}}
	for _, dev := range []struct {
		name  string
		mac   net.HardwareAddr
		index *int
	}{{"parent", s.mac, &s.parent}, {"sender", nil, &s.sender}, {"receiver", nil, &s.receiver}} {
		if *dev.index, err = s.host.cable(dev.name, dev.mac, spaces[1], dev.name); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *stage) close() error { return closeSpaces(s.spaces) }

// A bed is a private copy of the programs with maps full of sub-interfaces of
// one kind.
type bed struct {
	stage *stage
	kind  maps.Kind
	coll  *ebpf.Collection
	set   *maps.Set
	subs  []maps.Sub // by id; the first is never in use
}

// newBed runs in the host's namespace.
func (s *stage) newBed(kind maps.Kind, links int) (*bed, error) {
	capacity := max(loader.DefaultCapacity, uint32(links))
	coll, err := bpf.Load(capacity)
	if err != nil {
		return nil, err
	}
	set, err := maps.New(coll)
	if err != nil {
		coll.Close()
		return nil, err
	}
	b := &bed{stage: s, kind: kind, coll: coll, set: set}
	if err := b.fill(capacity, links); err != nil {
		b.close()
		return nil, fmt.Errorf("fill maps: %w", err)
	}
	return b, nil
}

func (b *bed) close() {
	b.coll.Close()
	b.set.Close() // maps without pins: there is nothing to fail
}

// The first sub-interface sends, the others are sent to.
const senderID, receiverID = 1, 2

// fill enters the parent and its sub-interfaces, as making them does, but that
// all which do not send share one leg.
func (b *bed) fill(capacity uint32, links int) error {
	s := b.stage
	parent := maps.Parent{Schema: bpf.Schema, Capacity: capacity, Index: s.parent, MTU: 1500, UnknownDrop: true, Rung: maps.RungXDP, MAC: s.mac}
	if b.kind == maps.Ipvlan {
		parent.IPKeyed = uint32(links)
	}
	if err := b.set.PutParent(parent); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(0, 0)) // the same each time, but as scattered as those of real ones
	b.subs = make([]maps.Sub, links+1)
	for i := range links {
		sub := maps.Sub{
			State: maps.Active, Gen: 1, Leg: s.receiver, Place: maps.Away, Kind: b.kind, Mode: maps.Bridge, Class: maps.ClassBridge,
			MAC: binary.BigEndian.AppendUint32([]byte{2, 0x57}, random.Uint32()),
		}
		if b.kind == maps.Ipvlan {
			sub.Mode = maps.L2
		}
		if i+1 == senderID {
			sub.Leg = s.sender
		}
		b.subs[i+1] = sub
	}
	if err := b.enter(); err != nil {
		return err
	}
	return b.meet()
}

// enter writes the keys and records.
func (b *bed) enter() error {
	var errs []error
	for i, sub := range b.subs[1:] {
		id := maps.ID(i + 1)
		dest := maps.Dest{ID: id, Gen: sub.Gen, Origin: maps.Given}
		errs = append(errs, b.set.PutSub(id, sub), b.set.Reindex(sub, b.subs))
		if id <= receiverID {
			errs = append(errs, b.set.PutLeg(sub.Leg, dest))
		}
		if b.kind == maps.Macvlan {
			errs = append(errs, b.set.PutMAC(0, sub.MAC, dest))
		} else {
			errs = append(errs, b.set.PutAddr(0, subAddr(int(id)), dest))
		}
	}
	return errors.Join(errs...)
}

// meet lets the records know the devices at the legs' other ends.
func (b *bed) meet() error {
	for _, leg := range []int{b.stage.sender, b.stage.receiver} {
		if err := bpf.Meet(b.coll.Programs[bpf.XvlanProgXvlanMeet], leg); err != nil {
			return err
		}
	}
	met, err := b.set.Sub(receiverID)
	if err != nil {
		return err
	}
	for id := receiverID; id < len(b.subs); id++ {
		b.subs[id].Device = met.Device
		if err := b.set.PutSub(maps.ID(id), b.subs[id]); err != nil {
			return err
		}
	}
	return nil
}

func subAddr(id int) netip.Addr { return netip.AddrFrom4([4]byte{10, 57, byte(id >> 8), byte(id)}) }

// others are up to 32 of those that are sent to, from all over the maps.
func (b *bed) others() []int {
	const most = 32
	n := len(b.subs) - receiverID
	var ids []int
	for i := range min(n, most) {
		ids = append(ids, receiverID+i*n/min(n, most))
	}
	return ids
}

// to are frames of 60 bytes from a MAC to sub-interfaces.
func (b *bed) to(from net.HardwareAddr) [][]byte {
	var all [][]byte
	for _, id := range b.others() {
		mac := b.subs[id].MAC
		if b.kind == maps.Ipvlan {
			mac = b.stage.mac
		}
		all = append(all, frame(mac, from, subAddr(senderID), subAddr(id)))
	}
	return all
}

// frame makes an IPv4 UDP datagram of 60 bytes with its Ethernet header.
func frame(dst, src net.HardwareAddr, from, to netip.Addr) []byte {
	f := append(append(make([]byte, 0, 60), dst...), src...)
	f = append(f, 8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0)
	f = append(append(f, from.AsSlice()...), to.AsSlice()...)
	f = append(f, 0, sinkPort, 0, sinkPort, 0, 26, 0, 0)
	f = f[:cap(f)]
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	binary.BigEndian.PutUint16(f[24:], ^uint16(sum+sum>>16))
	return f
}

// runs lists what is measured with the bed's programs.
func (b *bed) runs() []run {
	s, self := b.stage, b.subs[senderID].MAC
	away := netip.AddrFrom4([4]byte{192, 0, 2, 1})
	rx, tx := b.coll.Programs[bpf.XvlanProgXvlanRx], b.coll.Programs[bpf.XvlanProgXvlanTx]
	one := func(dst, src net.HardwareAddr) [][]byte { return [][]byte{frame(dst, src, subAddr(senderID), away)} }
	kind := b.kind.String()
	runs := []run{
		{"wire to " + kind, rx, s.parent, b.to(wireMAC()), tcRedirect},
		{"wire to the host, beside " + kind, rx, s.parent, one(s.mac, wireMAC()), tcNext},
		{kind + " to a sibling", tx, s.sender, b.to(self), tcRedirect},
		{kind + " to the wire", tx, s.sender, one(wireMAC(), self), tcRedirect},
	}
	if b.kind == maps.Macvlan {
		runs = append(runs, run{"wire to nobody", rx, s.parent, one(nobodyMAC(), wireMAC()), tcShot})
	}
	return runs
}

// xdpRuns are those of the program on the parent that comes before tc. They take
// some hundredths of a second each, in which the kernel waits.
func (b *bed) xdpRuns() []run {
	prog := b.coll.Programs[bpf.XvlanProgXvlanXdp]
	return []run{
		{"wire to nobody", prog, 0, [][]byte{frame(nobodyMAC(), wireMAC(), subAddr(senderID), subAddr(receiverID))}, xdpDrop},
		{"wire to " + b.kind.String() + ", before tc", prog, 0, b.to(wireMAC())[:1], xdpPass},
	}
}

func wireMAC() net.HardwareAddr   { return net.HardwareAddr{2, 0x57, 0xff, 0, 0, 0xfe} }
func nobodyMAC() net.HardwareAddr { return net.HardwareAddr{2, 0x57, 0xee, 0, 0, 0} }

// A run is of a program, with frames.
type run struct {
	what    string
	prog    *ebpf.Program
	dev     int // of a tc program: what the frames come in by
	frames  [][]byte
	verdict uint32 // which they have to get
}

// minTimes is how often a frame is run at the least, so that asking for it costs
// little of the time.
const minTimes = 1000

// probe measures the mean of the frames, each of which is run many times over.
// The program says what is to become of them, and nothing does.
func (r run) probe() probe {
	times := minTimes
	return func(d time.Duration) (float64, error) {
		var spent time.Duration
		begin := time.Now()
		for _, f := range r.frames {
			t, err := r.repeat(f, times)
			if err != nil {
				return 0, err
			}
			spent += t
		}
		n := float64(times * len(r.frames))
		ns := float64(spent) / n
		per := time.Since(begin).Seconds() / n
		if r.prog.Type() == ebpf.XDP {
			per = ns / 1e9 // the rest is waiting
		}
		times = max(minTimes, int(d.Seconds()/per)/len(r.frames))
		return ns, nil
	}
}

// repeat tells what running a frame so often took.
func (r run) repeat(frame []byte, times int) (spent time.Duration, err error) {
	var verdict uint32
	if r.prog.Type() == ebpf.XDP { // preparing it costs more than running it
		verdict, spent, err = r.prog.Benchmark(frame, times, nil)
		spent *= time.Duration(times)
	} else {
		spent, err = cpuTime(func() (err error) {
			verdict, err = r.prog.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(times), Context: bpf.OnDevice(r.dev)})
			return err
		})
	}
	if err == nil && verdict != r.verdict {
		err = fmt.Errorf("it got the verdict %d, and should get %d", verdict, r.verdict)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", r.what, err)
	}
	return spent, nil
}

// Programs measures what xvlan's programs take of a frame, with so many
// sub-interfaces of each kind. A frame is run, never sent. What an empty program
// takes, and so is in all figures, comes first.
func Programs(ctx context.Context, links []int, budget Budget) (costs []ProgramCost, err error) {
	end := time.Now().Add(budget.Time)
	s, err := newStage()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	err = s.host.do(func() (err error) {
		costs, err = s.measure(ctx, links, end, budget.Progress)
		return err
	})
	return costs, err
}

// measure is Programs in the host's namespace.
func (s *stage) measure(ctx context.Context, links []int, end time.Time, progress func(float64)) (costs []ProgramCost, err error) {
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, tcShot), asm.Return()},
	})
	if err != nil {
		return nil, fmt.Errorf("load empty program: %w", err)
	}
	defer empty.Close()
	var probes []probe
	add := func(rung string, links int, runs ...run) {
		for _, r := range runs {
			costs = append(costs, ProgramCost{Frame: r.what, Rung: rung, Links: links})
			probes = append(probes, r.probe())
		}
	}
	add("tc", 0, run{"an empty program", empty, s.parent, [][]byte{frame(s.mac, wireMAC(), subAddr(senderID), subAddr(receiverID))}, tcShot})
	for _, kind := range []maps.Kind{maps.Macvlan, maps.Ipvlan} {
		for _, n := range links {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			b, err := s.newBed(kind, n)
			if err != nil {
				return nil, err
			}
			defer b.close()
			add("tc", n, b.runs()...)
			if kind == maps.Macvlan && n == links[len(links)-1] { // looks MACs up, of whatever kind
				add("xdp", n, b.xdpRuns()...)
			}
		}
	}
	spreads, err := interleave(ctx, end, progress, probes)
	if err != nil {
		return nil, err
	}
	for i, spread := range spreads {
		costs[i].NS = spread
	}
	return costs, nil
}
