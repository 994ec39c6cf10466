package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
)

// A Sighting is one verdict on one frame.
type Sighting struct {
	Time    time.Time
	Parent  int     // ifindex
	ID      maps.ID // of the sub-interface, 0 for the parent itself
	Verdict maps.Verdict
	Type    uint8  // unix.PACKET_HOST ...; of what XDP sees always that
	Len     int    // of the whole frame
	Frame   []byte // what is seen of it, with its tag where it is on the wire
}

// A Reader hands out what is seen from all places that it was given to.
type Reader struct {
	sightings *ebpf.Map
	perf      *perf.Reader
	record    perf.Record
	held      []Sighting // read, but perhaps not the next in time
}

const (
	bufferAll   = 32 << 20 // for all CPUs together
	bufferLeast = 256 << 10
	batchBytes  = 16 << 20 // of frames that Read gathers
)

// NewReader makes the buffer.
func NewReader() (*Reader, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: bpf.XvlanMapSightings, Type: ebpf.PerfEventArray})
	if err != nil {
		return nil, fmt.Errorf("make buffer: %w", err)
	}
	size := max(bufferAll/runtime.NumCPU(), bufferLeast)
	// The kernel wakes the reader when much waits; a little is had when Read's
	// time is up.
	rd, err := perf.NewReaderWithOptions(m, size, perf.ReaderOptions{Watermark: size / 4})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make buffer: %w", err), m.Close())
	}
	return &Reader{sightings: m, perf: rd}, nil
}

// Close gives the buffer back.
func (r *Reader) Close() error { return errors.Join(r.perf.Close(), r.sightings.Close()) }

// settled is how long after its time stamp a sighting is in the buffer for sure.
const settled = time.Millisecond

// Read gathers what is seen until a moment, and returns it in the order of time.
// What was seen right before that moment may be kept for the next call, since
// another CPU's may have come first. Where very much comes it returns earlier.
func (r *Reader) Read(until time.Time) ([]Sighting, error) {
	whole, err := r.gather(until)
	if err != nil {
		return nil, err
	}
	n := len(r.held)
	if whole {
		sure := until.Add(-settled)
		for n > 0 && r.held[n-1].Time.After(sure) {
			n--
		}
	}
	out := r.held[:n:n]
	r.held = slices.Clone(r.held[n:])
	return out, nil
}

// Rest returns all that is left, when nothing is added any more.
func (r *Reader) Rest() ([]Sighting, error) {
	for {
		if whole, err := r.gather(time.Unix(1, 0)); err != nil {
			return nil, err
		} else if whole {
			out := r.held
			r.held = nil
			return out, nil
		}
	}
}

// gather reads until a moment, all that there is if it has passed, and puts what is
// held in order. whole tells that nothing was left.
func (r *Reader) gather(until time.Time) (whole bool, err error) {
	clock, err := bootToWall()
	if err != nil {
		return false, err
	}
	r.perf.SetDeadline(until)
	for size := 0; size < batchBytes; {
		err := r.perf.ReadInto(&r.record)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			whole = true
			break
		}
		if err != nil {
			return false, fmt.Errorf("read buffer: %w", err)
		}
		if len(r.record.RawSample) == 0 {
			continue // tells of lost ones, which are counted where they are lost
		}
		s, err := parse(r.record.RawSample, clock)
		if err != nil {
			return false, err
		}
		size += len(s.Frame) + int(unsafe.Sizeof(s))
		r.held = append(r.held, s)
	}
	slices.SortStableFunc(r.held, func(a, b Sighting) int { return a.Time.Compare(b.Time) })
	return whole, nil
}

// bootToWall is when CLOCK_MONOTONIC, which programs have, was zero by the clock
// on the wall.
func bootToWall() (time.Time, error) {
	var mono unix.Timespec
	now := time.Now().Round(0)
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
		return time.Time{}, fmt.Errorf("read clock: %w", err)
	}
	return now.Add(-time.Duration(mono.Nano())), nil
}

func parse(raw []byte, clock time.Time) (Sighting, error) {
	var head bpf.XvlanSighting
	n, err := binary.Decode(raw, binary.NativeEndian, &head)
	if err != nil || len(raw) < n+int(head.Copied) {
		return Sighting{}, fmt.Errorf("read buffer: a record of %d bytes, %d of them frame: %w", len(raw), head.Copied, err)
	}
	s := Sighting{
		Time:    clock.Add(time.Duration(head.TimeNs)),
		Parent:  int(head.Parent),
		ID:      maps.ID(head.Id),
		Verdict: maps.Verdict(head.Verdict),
		Type:    uint8(head.Type),
		Len:     int(head.Len),
		Frame:   bytes.Clone(raw[n : n+int(head.Copied)]),
	}
	s.putTagBack(&head)
	return s, nil
}

// putTagBack makes the frame what it is on the wire.
func (s *Sighting) putTagBack(head *bpf.XvlanSighting) {
	const macs, tag = 12, 4
	if head.TpidBe == 0 || len(s.Frame) < macs {
		return
	}
	var b [tag]byte
	binary.NativeEndian.PutUint16(b[:], head.TpidBe)
	binary.BigEndian.PutUint16(b[2:], head.Tci)
	cut := len(s.Frame) < s.Len
	s.Frame = slices.Insert(s.Frame, macs, b[:]...)
	s.Len += tag
	if cut { // as short as was asked for
		s.Frame = s.Frame[:head.Copied]
	}
}
