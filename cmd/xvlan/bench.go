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
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/xvlan/xvlan/bench/measure"
	"github.com/xvlan/xvlan/loader"
)

// Bounds of how long a measurement is asked to take.
const (
	minBenchTime = time.Second
	maxBenchTime = 10 * time.Minute
)

// benchSpec is what is asked for.
type benchSpec struct {
	parent   string // "" for none
	time     time.Duration
	links    []int
	noAttach bool
}

func (a *app) benchCmd() *cobra.Command {
	var spec benchSpec
	cmd := &cobra.Command{
		Use:   "bench [PARENT]",
		Short: "Measure what sub-interfaces cost here, and say what a parent is good for",
		Long: `Measures, on this machine, what xvlan's programs take of a frame and what
sub-interfaces cost against the kernel's, in network namespaces of its own. Of
a parent it tells how it is set up, what is attached, the rung that it would
get, and what stands in the way; nothing is sent by it, and nothing on it is
changed, but that native XDP is tried for a moment where its driver may have it.`,
		Example: `  xvlan bench
  xvlan bench eth0
  xvlan bench eth0 --no-attach --time 60s --links 16,256,4096`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				spec.parent = args[0]
			}
			if err := spec.check(); err != nil {
				return err
			}
			return a.bench(spec)
		},
	}
	completeFirst(cmd, a.devices)
	f := cmd.Flags()
	f.DurationVar(&spec.time, "time", 20*time.Second, "about how long to take")
	f.IntSliceVar(&spec.links, "links", []int{16, loader.DefaultCapacity}, "sub-interfaces to measure the programs with")
	f.BoolVar(&spec.noAttach, "no-attach", false, "do not try native XDP on the parent, not even for a moment")
	return cmd
}

func (s *benchSpec) check() error {
	if s.time < minBenchTime || s.time > maxBenchTime {
		return usagef("time %s: not in %s..%s", s.time, minBenchTime, maxBenchTime)
	}
	for _, n := range s.links {
		if n < measure.MinLinks || n > measure.MaxLinks {
			return usagef("links %d: not in %d..%d", n, measure.MinLinks, measure.MaxLinks)
		}
	}
	slices.Sort(s.links)
	s.links = slices.Compact(s.links)
	if s.noAttach && s.parent == "" {
		return usagef("no-attach: it is about a parent; name one, or leave it out")
	}
	return nil
}

// benchResult is all that was found out.
type benchResult struct {
	kernel     string
	unmeasured string // why not; "" if all was measured
	survey     *loader.Survey
	forward    []measure.ForwardCost
	programs   []measure.ProgramCost
}

// bench finds all out before it prints, so that what is interrupted prints
// nothing.
func (a *app) bench(spec benchSpec) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	var res benchResult
	err := a.with(func(h *loader.Host) error {
		p, err := h.Probe("")
		if err != nil {
			return err
		}
		res.kernel = p.Kernel
		for _, f := range p.Features {
			if f.Name == "bpf" && !f.Have {
				res.unmeasured = f.Detail
			}
		}
		if spec.parent != "" {
			res.survey, err = h.Survey(spec.parent, !spec.noAttach)
		}
		return err
	})
	if err != nil {
		return err
	}
	if res.unmeasured != "" && res.survey == nil {
		return fmt.Errorf("measure: %w: %s", loader.ErrUnsupported, res.unmeasured)
	}
	if err := a.measure(ctx, spec, &res); errors.Is(err, context.Canceled) {
		return errors.New("interrupted; nothing is left behind")
	} else if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(res.json())
	}
	return a.printBench(&res)
}

// measure takes the time that is asked for: two parts of three for what is sent.
func (a *app) measure(ctx context.Context, spec benchSpec, res *benchResult) (err error) {
	if res.unmeasured != "" {
		return nil
	}
	progress, done := a.progress()
	defer done()
	res.forward, err = measure.Forward(ctx, measure.Budget{Time: spec.time * 2 / 3, Progress: func(part float64) { progress(part * 2 / 3) }})
	if err != nil {
		return fmt.Errorf("measure sub-interfaces: %w", err)
	}
	res.programs, err = measure.Programs(ctx, spec.links, measure.Budget{Time: spec.time / 3, Progress: func(part float64) { progress(2./3 + part/3) }})
	if err != nil {
		return fmt.Errorf("measure programs: %w", err)
	}
	return nil
}

// progress shows a bar on a terminal, until done takes it away.
func (a *app) progress() (progress func(part float64), done func()) {
	f, ok := a.err.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func(float64) {}, func() {}
	}
	const steps = 1000
	bars := mpb.New(mpb.WithOutput(f), mpb.WithWidth(60))
	bar := bars.AddBar(steps, mpb.PrependDecorators(decor.Name("measuring")), mpb.AppendDecorators(decor.Percentage()))
	progress = func(part float64) { bar.SetCurrent(min(int64(part*steps), steps-1)) } // complete it would stay
	return progress, func() { bar.Abort(true); bars.Wait() }
}
