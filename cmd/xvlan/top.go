package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/loader"
)

// topSpec is what is to be watched, and how it is shown.
type topSpec struct {
	parent string // "" for all
	name   string // see nameMatches
	state  string // up, down, or "" for both
	sort   string // key of a topColumn
	turned bool   // the other way round

	batch bool
	count int // looks, 0 for no end
	delay seconds
}

const (
	minTopDelay  = 100 * time.Millisecond
	maxTopDelay  = time.Hour
	firstTopLook = 300 * time.Millisecond // until there are rates to be seen
)

func (a *app) topCmd() *cobra.Command {
	spec := topSpec{delay: seconds(2 * time.Second), sort: "bits"}
	cmd := &cobra.Command{
		Use:   "top [PARENT]",
		Short: "Watch sub-interfaces by what they send and receive",
		Long: `Shows rates of packets, bits and drops, the busiest sub-interfaces first, and
again every few seconds. IN is what a sub-interface receives, OUT what it sends,
DROP what was for it, or sent by it, and went nowhere.

  q            ends
  < >          sort by another column, r the other way round
  /            show those of a name: a part of it, or a pattern as web*
  p            show one parent's, and the next one's
  u            show those that are up, down, and all
  arrows, PgUp, PgDn, Home, End    go through the list
  space        look now

-n and -d behind the word top are those of top(1); a network namespace is said
before it: xvlan -n NETNS top.`,
		Example: `  xvlan top
  xvlan top eth0 --name 'web*' --sort drops
  xvlan top -b -n 3 -d 5
  xvlan -j top -b -n 1`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				spec.parent = args[0]
			}
			if err := spec.check(); err != nil {
				return err
			}
			return a.top(spec)
		},
	}
	completeFirst(cmd, a.parents)
	f := cmd.Flags()
	f.BoolVarP(&spec.batch, "batch", "b", false, "print, for pipes and files; with -j a line of JSON each time")
	f.VarP((*topCount)(&spec.count), "count", "n", "end after so many looks")
	f.VarP(&spec.delay, "delay", "d", "seconds between looks")
	f.StringVar(&spec.name, "name", "", "only those with `TEXT` in their name, or of a pattern as 'web*'")
	f.Var(choice{&spec.state, []string{"up", "down"}}, "state", "only those that are so")
	f.VarP(choice{&spec.sort, topKeys()}, "sort", "o", "`COLUMN` to sort by: "+strings.Join(topKeys(), ", "))
	f.BoolVarP(&spec.turned, "reverse", "r", false, "sort the other way round")
	// Their letters are this command's own, see ownLetters.
	f.StringVar(&a.netns, "netns", "", "act in network namespace `NETNS`")
	f.BoolVar(&a.details, "details", false, "")
	f.Lookup("details").Hidden = true
	return cmd
}

// ownLetters lets top have -n and -d for itself, and capture -s: what stands before the word is
// then the root's, as it is with ip, and what stands behind it the command's.
func ownLetters(root *cobra.Command, args []string) {
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		args = args[1:]
	}
	if cmd, _, err := root.Find(args); err == nil && (cmd.Name() == "top" || cmd.Name() == "capture") {
		root.TraverseChildren = true
	}
}

func (s *topSpec) check() error {
	if _, err := nameMatches(s.name, ""); err != nil {
		return usagef("name %s: no pattern; write it as web*, c? or c[0-9]", s.name)
	}
	return nil
}

// seconds is a delay as it is said to top(1).
type seconds time.Duration

func (s *seconds) String() string {
	return strconv.FormatFloat(time.Duration(*s).Seconds(), 'f', -1, 64)
}
func (s *seconds) Type() string { return "SECONDS" }
func (s *seconds) Set(v string) error {
	n, err := strconv.ParseFloat(v, 64)
	if !(err == nil && n >= minTopDelay.Seconds() && n <= maxTopDelay.Seconds()) {
		return fmt.Errorf("no number of seconds from %v to %v", minTopDelay.Seconds(), maxTopDelay.Seconds())
	}
	*s = seconds(n * float64(time.Second))
	return nil
}

// topCount is a number of looks.
type topCount int

func (c *topCount) String() string {
	if *c == 0 {
		return "" // says no default
	}
	return strconv.Itoa(int(*c))
}
func (c *topCount) Type() string { return "COUNT" }
func (c *topCount) Set(v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n <= 0 {
		return errors.New("no positive number; a network namespace is said before top: xvlan -n NETNS top")
	}
	*c = topCount(n)
	return nil
}

// nameMatches tells whether a name is asked for: by a part of it, or by a
// pattern of path.Match.
func nameMatches(pattern, name string) (bool, error) {
	if !strings.ContainsAny(pattern, `*?[\`) {
		return strings.Contains(name, pattern), nil
	}
	return path.Match(pattern, name)
}

func (a *app) top(spec topSpec) error {
	spec.batch = spec.batch || a.json
	var tty *terminal
	if !spec.batch {
		var err error
		if tty, err = a.terminal(); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	return a.with(func(h *loader.Host) error {
		// As with show: once is enough, and it may be looked without.
		if err := h.Sweep(); err != nil && !errors.Is(err, loader.ErrPrivilege) {
			return err
		}
		if err := findParent(h, spec.parent); err != nil {
			return err
		}
		m := h.NewMeter()
		first, err := m.Read()
		if err != nil {
			return err
		}
		if spec.batch {
			return a.topBatch(ctx, m, spec)
		}
		return a.topScreen(ctx, m, spec, tty, first)
	})
}

func findParent(h *loader.Host, name string) error {
	if name == "" {
		return nil
	}
	parents, err := h.Parents()
	if err == nil && !slices.ContainsFunc(parents, func(p loader.ParentInfo) bool { return p.Name == name }) {
		err = fmt.Errorf("parent %s: %w; `xvlan parent show` lists them", name, loader.ErrNotFound)
	}
	return err
}

// topBatch prints a table, or a line of JSON, each time. What cannot be read
// once is logged and tried again.
func (a *app) topBatch(ctx context.Context, m *loader.Meter, spec topSpec) error {
	tick := time.NewTicker(time.Duration(spec.delay))
	defer tick.Stop()
	for n := 0; spec.count == 0 || n < spec.count; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		flows, err := m.Read()
		if errors.Is(err, loader.ErrAstray) {
			return err
		}
		if err != nil {
			a.logger().Error("cannot look", "err", err)
			continue
		}
		v := newTopView(spec, flows, time.Now())
		if a.json {
			err = a.printTopJSON(v)
		} else {
			err = a.printTop(v, n > 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
