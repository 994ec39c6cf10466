// Bench compares xvlan with the kernel's macvlan in bridge mode, side by side
// in one run, and prints a table of ratios. It must run as root, and makes
// network namespaces and devices of its own, which it takes away again.
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
	large  bool // with what takes minutes
}

// A testCase makes its own world and returns its rows.
type testCase struct {
	name string
	run  func(*bench, context.Context) ([]*row, error)
}

var cases = []testCase{
	{"tcp", (*bench).tcp},
	{"latency", (*bench).latency},
	{"receive", (*bench).receive},
	{"nobody", (*bench).nobody},
	{"send", (*bench).send},
	{"broadcast", (*bench).broadcast},
	{"control", (*bench).control},
	{"function", (*bench).function},
}

func caseNames() string {
	var names []string
	for _, c := range cases {
		names = append(names, c.name)
	}
	return strings.Join(names, ",")
}

func main() {
	var b bench
	flag.IntVar(&b.rounds, "rounds", 9, "how many `times` everything is measured; the median counts")
	flag.DurationVar(&b.time, "time", 250*time.Millisecond, "how long each contender is measured in each round")
	only := flag.String("only", caseNames(), "the `cases` to run, with commas between")
	flag.BoolVar(&b.large, "large", false, "also make 10,000 sub-interfaces, in case control")
	path := flag.String("json", "", "also write the results to this `file`; - is standard output")
	counting := flag.Bool("count", false, "count instructions, by pktgen, in a machine whose clock counts them (lab/vm -icount)")
	short := flag.Bool("short", false, "count xvlan alone, with one destination")
	baseline := flag.String("baseline", "", "fail where a count is over that in this `file` by more than 2 %")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	var err error
	if *counting {
		err = b.count(ctx, *short, *path, *baseline)
	} else {
		err = b.main(ctx, strings.Split(*only, ","), *path)
	}
	stop()
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) main(ctx context.Context, only []string, path string) (err error) {
	if b.rounds < 1 || flag.NArg() > 0 {
		return errors.New("at least one round and no arguments; -h lists the flags")
	}
	for _, name := range only {
		if !slices.ContainsFunc(cases, func(c testCase) bool { return c.name == name }) {
			return fmt.Errorf("no case %q; there are %s", name, caseNames())
		}
	}
	kernel, err := b.prepare()
	if err != nil {
		return err
	}
	res := results{Kernel: kernel, Rounds: b.rounds}
	for _, c := range cases {
		if !slices.Contains(only, c.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s ...\n", c.name)
		rows, err := c.run(b, ctx)
		if err != nil {
			return fmt.Errorf("case %s: %w", c.name, err)
		}
		for _, r := range rows {
			r.Case = c.name
		}
		res.Rows = append(res.Rows, rows...)
	}
	fmt.Printf("xvlan against macvlan, Linux %s, median of %d rounds\n\n", res.Kernel, res.Rounds)
	if err := table(os.Stdout, res.Rows); err != nil {
		return err
	}
	fmt.Print(notes)
	if path == "" {
		return nil
	}
	return writeJSON(path, res)
}

// prepare finds out what it runs on and returns the kernel's version.
func (b *bench) prepare() (kernel string, err error) {
	if unix.Geteuid() != 0 {
		return "", errors.New("run as root: it makes network namespaces and loads BPF programs")
	}
	if b.cpus, err = findCPUs(); err != nil {
		return "", err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("read kernel version: %w", err)
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

func (b *bench) count(ctx context.Context, short bool, path, baseline string) error {
	if flag.NArg() > 0 {
		return errors.New("no arguments; -h lists the flags")
	}
	kernel, err := b.prepare()
	if err != nil {
		return err
	}
	return countMain(ctx, kernel, short, path, baseline)
}
