package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// DryRun is the programs of a parent in a build that decides by the parent's own
// maps, but neither writes to them nor sends anything: it notes its steps.
type DryRun struct {
	coll *ebpf.Collection
}

// LoadDryRun loads it for a parent's maps, which are by name as Load returns
// them, and of this capacity. The caller closes it. It takes what Load takes.
func LoadDryRun(capacity uint32, maps map[string]*ebpf.Map) (*DryRun, error) {
	spec, err := sized(LoadTrace, capacity)
	if err != nil {
		return nil, err
	}
	delete(spec.Programs, TraceProgXvlanMeet)
	delete(spec.Programs, TraceProgXvlanTurn)
	coll, err := onMaps(spec, maps)
	if err != nil {
		return nil, fmt.Errorf("load dry run: %w", err)
	}
	return &DryRun{coll: coll}, nil
}

// Close unloads the programs; the parent's maps stay.
func (d *DryRun) Close() { d.coll.Close() }

// A Decision is what a program would do with a frame.
type Decision struct {
	Return  uint32 // what the program returned
	Frame   []byte // as it would be then
	Steps   []TraceStep
	Missing int // steps that there was no room for
}

// ErrFrameLength is returned for a frame that the kernel gives to no program for a
// test: it has to fit into a page, beside some hundred bytes of the kernel's own.
var ErrFrameLength = errors.New("longer than the kernel can try")

// longFrame fits into a page on every kernel.
const longFrame = 3000

// Run gives a frame to a program, XvlanProgXvlanXdp or one of the tc programs, as if
// it had come in by a device of the calling thread's network namespace.
func (d *DryRun) Run(prog string, index int, frame []byte) (Decision, error) {
	trail := d.coll.Variables[TraceVarTrail]
	if err := trail.Set(TraceSteps{}); err != nil {
		return Decision{}, fmt.Errorf("clear steps: %w", err)
	}
	opts := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: OnDevice(index)}
	if prog == TraceProgXvlanXdp {
		opts.Context = onDeviceXDP(index, len(frame))
	}
	ret, err := d.coll.Programs[prog].Run(opts)
	if errors.Is(err, unix.EINVAL) && len(frame) > longFrame {
		return Decision{}, fmt.Errorf("run %s: %w: %d bytes", prog, ErrFrameLength, len(frame))
	}
	if err != nil {
		return Decision{}, fmt.Errorf("run %s: %w", prog, err)
	}
	var steps TraceSteps
	if err := trail.Get(&steps); err != nil {
		return Decision{}, fmt.Errorf("read steps: %w", err)
	}
	n := min(int(steps.Number), len(steps.Step))
	return Decision{ret, opts.DataOut, steps.Step[:n], int(steps.Number) - n}, nil
}

// onDeviceXDP is OnDevice for an XDP program and a frame of this length.
func onDeviceXDP(index, length int) []byte {
	const end, ingress, size = 4, 12, 24 // in struct xdp_md
	ctx := make([]byte, size)
	binary.NativeEndian.PutUint32(ctx[end:], uint32(length))
	binary.NativeEndian.PutUint32(ctx[ingress:], uint32(index))
	return ctx
}
