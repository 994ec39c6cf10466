// Bench compares xvlan with the kernel's macvlan in bridge mode, side by side
// in one run, and prints a table of ratios; with -report it writes a report with
// charts. It must run as root, and makes network namespaces and devices of its
// own, which it takes away again.
//
// Machines differ and are never quiet, so only the ratios mean anything:
// contenders take short turns, and what is shown is the median of the rounds
// and how far they spread. Packets are set against CPU time, which a busy
// machine disturbs less than it does throughput.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bench is what all cases share.
type bench struct {
	rounds int
	time   time.Duration // for each contender in each round
	cpus   *cpus
	large  bool           // with what takes minutes
	netkit bool           // xvlan's are netkit pairs, where that makes a difference
	worlds map[int]*world // that cases share, by the number of sub-interfaces
}

// A testCase makes its own world and returns its rows.
type testCase struct {
	name, title string
	run         func(*bench, context.Context) ([]*row, error)
}

var cases = []testCase{
	{"tcp", "Bulk TCP", (*bench).tcp},
	{"latency", "Question and answer", (*bench).latency},
	{"receive", "Small frames in", (*bench).receive},
	{"nobody", "Frames for nobody", (*bench).nobody},
	{"send", "Small frames out", (*bench).send},
	{"broadcast", "Frames for everybody", (*bench).broadcast},
	{"consumer", "A program in the container", (*bench).consumer},
	{"addresses", "Many addresses", (*bench).addresses},
	{"control", "Making and removing", (*bench).control},
	{"cni", "Containers", (*bench).cni},
	{"function", "Equal function", (*bench).function},
}

func caseNames() string {
	var names []string
	for _, c := range cases {
		names = append(names, c.name)
	}
	return strings.Join(names, ",")
}

// options are what the flags say.
type options struct {
	only, json, report, from, baseline string
	counting, short                    bool
}

func main() {
	var b bench
	var o options
	flag.IntVar(&b.rounds, "rounds", 9, "how many `times` everything is measured; the median counts")
	flag.DurationVar(&b.time, "time", 250*time.Millisecond, "how long each contender is measured in each round")
	flag.StringVar(&o.only, "only", caseNames(), "the `cases` to run, with commas between")
	flag.BoolVar(&b.large, "large", false, "also make 10,000 sub-interfaces, in case control, and 1,000, in case cni")
	flag.BoolVar(&b.netkit, "netkit", false, "make xvlan's of netkit pairs, in the cases tcp, latency and send (Linux 6.8)")
	flag.StringVar(&o.json, "json", "", "also write the results to this `file`; - is standard output")
	flag.StringVar(&o.report, "report", "", "write a report with charts into this `folder`, with the counts of -baseline")
	flag.StringVar(&o.from, "from", "", "measure nothing, take the results from this `file`")
	flag.BoolVar(&o.counting, "count", false, "count instructions, by pktgen, in a machine whose clock counts them (lab/vm -icount)")
	flag.BoolVar(&o.short, "short", false, "count xvlan alone, with one destination")
	flag.StringVar(&o.baseline, "baseline", "", "counts in a `file`: with -count fail where one is over them by more than 2 %")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := b.main(ctx, o)
	stop()
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) main(ctx context.Context, o options) error {
	if b.rounds < 1 || flag.NArg() > 0 {
		return errors.New("at least one round and no arguments; -h lists the flags")
	}
	if o.report != "" && o.baseline == "" {
		return errors.New("-report takes -baseline, with the counts to report")
	}
	var res results
	if o.from != "" {
		if err := readJSON(o.from, &res); err != nil {
			return err
		}
	} else {
		if unix.Geteuid() != 0 {
			return errors.New("run as root: it makes network namespaces and loads BPF programs")
		}
		this, err := thisMachine()
		if err != nil {
			return err
		}
		if o.counting {
			return countMain(ctx, this, o)
		}
		res.machine, res.Rounds = this, b.rounds
		if res.Rows, err = b.measure(ctx, strings.Split(o.only, ",")); err != nil {
			return err
		}
		fmt.Printf("xvlan against macvlan, Linux %s, median of %d rounds\n", res.Kernel, res.Rounds)
		if err := writeTables(os.Stdout, res.Rows); err != nil {
			return err
		}
	}
	if o.json != "" {
		if err := writeJSON(o.json, res); err != nil {
			return err
		}
	}
	if o.report == "" {
		return nil
	}
	var counts counted
	if err := readJSON(o.baseline, &counts); err != nil {
		return err
	}
	return writeReport(o.report, res, counts)
}

// measure runs the cases named.
func (b *bench) measure(ctx context.Context, only []string) (rows []*row, err error) {
	for _, name := range only {
		if !slices.ContainsFunc(cases, func(c testCase) bool { return c.name == name }) {
			return nil, fmt.Errorf("no case %q; there are %s", name, caseNames())
		}
	}
	if b.cpus, err = findCPUs(); err != nil {
		return nil, err
	}
	defer func() {
		for _, w := range b.worlds {
			err = errors.Join(err, w.close())
		}
	}()
	for _, c := range cases {
		if !slices.Contains(only, c.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s ...\n", c.name)
		some, err := c.run(b, ctx)
		if err != nil {
			return nil, fmt.Errorf("case %s: %w", c.name, err)
		}
		for _, r := range some {
			r.Case = c.name
		}
		rows = append(rows, some...)
	}
	return rows, nil
}
