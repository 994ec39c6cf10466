package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

// captureSpec says what is to be captured, and where to.
type captureSpec struct {
	target loader.Selector
	in     bool // only what goes to sub-interfaces or the host
	out    bool // only what sub-interfaces send
	drops  bool
	file   string // "" prints lines, "-" is standard output
	count  int    // frames, 0 for no end
	snap   int    // bytes of each, 0 for all
}

const (
	captureTick  = 50 * time.Millisecond // until frames are shown
	captureCheck = time.Second           // between looks whether what is captured is still there
)

func (a *app) captureCmd() *cobra.Command {
	var spec captureSpec
	cmd := &cobra.Command{
		Use:   "capture [dev] PARENT|NAME [link PARENT] [netns NETNS] [in|out]",
		Short: "Show the frames of a parent or a sub-interface, or write them to a file",
		Long: fmt.Sprintf(`Shows each frame where xvlan's programs decide on it, with what they decide: also
those between siblings, those that XDP takes or drops, and each copy of a
broadcast, which tcpdump on the parent does not see. Of a sub-interface it is what
is for it (in) and what it sends (out); of a parent that of all its
sub-interfaces, what is left to the host, and what is for nobody. A frame from one
sibling to another is there twice then: as the one sends it and as the other
receives it. An ipvlan's frames have the MAC by then that the wire sees.

With -w it writes pcapng, for Wireshark and tcpdump -r: each parent and
sub-interface is an interface of its own, and each frame has a comment with the
verdict. Without it prints a line a frame. Super-packets are shown as they are,
the first %d bytes of them. It goes on until it is interrupted, until -c frames,
or until what is captured is gone, and then says how many frames it was, and how
many there was no room for. Meanwhile frames that come in take the long way through
the programs.`, watch.MaxSnap),
		Example: `  xvlan capture c1
  xvlan capture eth0 --drops -w lost.pcapng
  xvlan capture c1 in -w - | wireshark -k -i -`,
		RunE: func(_ *cobra.Command, args []string) (err error) {
			if err := spec.parse(&words{left: args}); err != nil {
				return err
			}
			return a.capture(spec)
		},
	}
	a.completeWords(cmd, "capture")
	f := cmd.Flags()
	f.StringVarP(&spec.file, "write", "w", "", "write pcapng to this `FILE`, - for standard output")
	f.IntVarP(&spec.count, "count", "c", 0, "end after so many frames")
	f.IntVarP(&spec.snap, "snaplen", "s", 0, "so many bytes of each frame at most (default all)")
	f.BoolVar(&spec.drops, "drops", false, "only frames that are dropped")
	// Its letter is this command's own, see ownLetters.
	f.BoolVar(&a.stats, "statistics", false, "")
	f.Lookup("statistics").Hidden = true
	return cmd
}

// parse reads a selector, and the direction wherever that stands.
func (s *captureSpec) parse(w *words) (err error) {
	w.left = slices.DeleteFunc(slices.Clone(w.left), func(word string) bool {
		s.in, s.out = s.in || word == "in", s.out || word == "out"
		return word == "in" || word == "out"
	})
	if s.target, err = parseSelector(w, nil); err != nil {
		return err
	}
	switch {
	case s.in && s.out:
		return usagef("in out: say one of the two, or none for both")
	case s.count < 0:
		return usagef("count %d: no positive number", s.count)
	case s.snap < 0:
		return usagef("snaplen %d: no positive number", s.snap)
	}
	return nil
}

// verdicts are those on the frames that are wanted; those that are no frame's fate
// are not among them.
func (s *captureSpec) verdicts() (all []maps.Verdict) {
	for _, v := range maps.Verdicts() {
		goesIn := slices.Contains(inVerdicts, v)
		if goesIn && !s.out || slices.Contains(outVerdicts, v) && !s.in {
			if v.IsDrop() || !s.drops {
				all = append(all, v)
			}
		}
	}
	return all
}

// A sink takes frames.
type sink interface {
	put(s *loader.Sighting) error
	flush() error // after those that came together
	end(t watch.Tally) error
}

// lines prints a line a frame.
type lines struct{ a *app }

func (l lines) put(s *loader.Sighting) error {
	e := loader.Event{Time: s.Time, Sighting: s}
	if l.a.json {
		return l.a.showEventJSON(e)
	}
	return l.a.showEvent(e)
}

func (l lines) flush() error          { return nil }
func (l lines) end(watch.Tally) error { return nil }

func (a *app) capture(spec captureSpec) error {
	if spec.file == "-" && isTerminal(a.out) {
		return usagef("write -: standard output is a terminal; send it to a program or a file")
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	snap := spec.snap
	if snap == 0 || snap > watch.MaxSnap {
		snap = watch.MaxSnap
	}
	return a.with(func(h *loader.Host) (err error) {
		seen := snap
		if spec.file == "" && !a.json {
			seen = min(snap, monitorSnap)
		}
		w, err := h.Watch(loader.WatchSpec{Target: spec.target, Verdicts: spec.verdicts(), Snap: seen})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.Close()) }()
		out, closeOut, err := a.openSink(spec.file, snap, w.Target())
		if err != nil {
			return err
		}
		n, gone, err := captureTo(ctx, w, out, spec.count)
		tally, tallyErr := w.Tally()
		err = errors.Join(err, tallyErr, out.end(tally), closeOut())
		if gone && err == nil {
			fmt.Fprintf(a.err, "%s is gone\n", spec.target.Name)
		}
		fmt.Fprintf(a.err, "%s frames captured, %s lost for want of room\n", thousands(uint64(n)), thousands(tally.Lost))
		return err
	})
}

// openSink opens the file, if one is to be written, or else prints.
func (a *app) openSink(file string, snap int, target loader.Sighting) (out sink, closeOut func() error, err error) {
	nothing := func() error { return nil }
	switch file {
	case "":
		return lines{a}, nothing, nil
	case "-":
		out, err = newPcap(a.out, snap, target)
		return out, nothing, err
	}
	f, err := os.Create(file)
	if err != nil {
		return nil, nil, fmt.Errorf("write: %w", err)
	}
	if out, err = newPcap(f, snap, target); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return out, f.Close, nil
}

// captureTo captures until ctx ends, so many frames are there, or what is captured
// is gone, and stops the watcher.
func captureTo(ctx context.Context, w *loader.Watcher, out sink, count int) (n int, gone bool, err error) {
	full := func() bool { return count > 0 && n >= count }
	put := func(seen []loader.Sighting) error {
		for i := range seen {
			if full() {
				break
			}
			if err := out.put(&seen[i]); err != nil {
				return err
			}
			n++
		}
		return out.flush()
	}
	for checked := time.Now(); ctx.Err() == nil && !full() && !gone; {
		seen, err := w.Read(time.Now().Add(captureTick))
		if err == nil {
			err = put(seen)
		}
		if err == nil && time.Since(checked) >= captureCheck {
			checked = time.Now()
			gone, err = w.Gone()
		}
		if err != nil {
			return n, gone, err
		}
	}
	rest, err := w.Stop()
	return n, gone, errors.Join(err, put(rest))
}
