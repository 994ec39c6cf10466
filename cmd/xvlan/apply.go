package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xvlan/xvlan/internal/thread"
	"github.com/xvlan/xvlan/loader"
)

//go:embed apply.schema.json
var applySchema string

// applying is what `apply` was asked for.
type applying struct {
	file      string // as named to people
	dryRun    bool
	pruning   bool
	replacing bool
}

func (a *app) applyCmd() *cobra.Command {
	var (
		how    applying
		schema bool
	)
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make what a file says: parents and their sub-interfaces",
		Long: `The file is YAML, its keys are the words of "parent attach" and "link add":

  parents:
    - name: eth0
      unknown: drop
      links:
        - {name: c1, type: macvlan, mode: bridge}
        - {name: c2, type: ipvlan, mode: l2, netns: ns2, addr: 192.0.2.7/24, up: true}

What is there already is left alone, or changed where it differs, traffic
flowing. All is checked before anything is changed. A repetition changes nothing,
and goes on with what an interruption has left undone.

Of mode, flag, host and delivery what is not said is as link add has it; all else that
is not said is left as it is. Parents with unknown or capacity, or without links,
stay attached when their last sub-interface goes.`,
		Example: `  xvlan apply -f /etc/xvlan/xvlan.yaml --dry-run
  xvlan config > /etc/xvlan/xvlan.yaml
  xvlan apply --schema`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if schema {
				_, err := io.WriteString(a.out, applySchema)
				return err
			}
			return a.apply(how)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&how.file, "file", "f", "", "make what `FILE` says; - is the standard input")
	f.BoolVar(&how.dryRun, "dry-run", false, "show what would be changed, and change nothing")
	f.BoolVar(&how.pruning, "prune", false, "remove sub-interfaces and parents that are not in the file")
	f.BoolVar(&how.replacing, "replace", false, "remove and make anew what cannot be changed otherwise")
	f.BoolVar(&schema, "schema", false, "print the JSON schema of the file")
	err := cmd.RegisterFlagCompletionFunc("file", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault // files
	})
	if err != nil {
		panic(err) // a flag that is not there
	}
	return cmd
}

func (a *app) apply(how applying) error {
	if how.file == "" {
		return usagef("file: say which: -f FILE, or -f - for the standard input")
	}
	data, err := a.readFile(how.file)
	if err != nil {
		return fmt.Errorf("read file: %w", err)
	}
	if how.file == "-" {
		how.file = "<stdin>"
	}
	wanted, err := readConfig(how.file, data)
	if err != nil {
		return err
	}
	groups, err := a.spaces(how.file, wanted)
	if err != nil {
		return err
	}
	var errs []error
	for _, g := range groups {
		errs = append(errs, a.within(g.netns, func(h *loader.Host) (err error) {
			p := planner{applying: how, h: h, netns: g.netns}
			g.steps, err = p.plan(g.wanted)
			return err
		}))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if how.dryRun {
		return a.report(groups, ", none made (--dry-run)")
	}
	for _, g := range groups {
		err := a.within(g.netns, func(h *loader.Host) error { return a.take(how.file, g.steps, h) })
		if err != nil {
			return a.unfinished(groups, err)
		}
	}
	return a.report(groups, " made")
}

func (a *app) readFile(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(a.in)
	}
	return os.ReadFile(name)
}

// A group is what a file says of the parents in one network namespace.
type group struct {
	netns  string // "": where the command acts
	id     uint64
	wanted []*wantedParent
	steps  []*step
}

// spaces sorts parents by their network namespaces. That of the command is
// always among them, as it may have parents that are not in the file.
func (a *app) spaces(file string, wanted []*wantedParent) ([]*group, error) {
	own, err := loader.NetnsID(a.netns)
	if err != nil {
		return nil, err
	}
	groups := []*group{{id: own}}
	for _, w := range wanted {
		id := own
		if w.netns != "" {
			if id, err = loader.NetnsID(w.netns); err != nil {
				at := w.keys["netns"]
				return nil, fmt.Errorf("%s:%d:%d: parent %s: %w", file, at.line, at.column, w.name, err)
			}
		}
		i := slices.IndexFunc(groups, func(g *group) bool { return g.id == id })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{netns: w.netns, id: id})
		}
		groups[i].wanted = append(groups[i].wanted, w)
	}
	return groups, nil
}

// within runs fn on the host in another network namespace, on a thread of its own.
func (a *app) within(netns string, fn func(*loader.Host) error) error {
	if netns == "" {
		return a.with(fn)
	}
	there := *a
	there.netns = netns
	return thread.Run(func() error { return there.with(fn) })
}

// take takes one step after the other, and stops at one that fails.
func (a *app) take(file string, steps []*step, h *loader.Host) error {
	for _, s := range steps {
		if err := s.do(h); err != nil {
			err = fmt.Errorf("%s %s: %w", s.Object, s.Name, err)
			if s.at != (position{}) {
				err = fmt.Errorf("%s:%d:%d: %w", file, s.at.line, s.at.column, err)
			}
			return err
		}
		s.Done = true
		if !a.json {
			fmt.Fprintln(a.out, s)
		}
	}
	return nil
}

// report tells of all steps, those that have been told of already aside.
func (a *app) report(groups []*group, made string) error {
	all := []*step{}
	for _, g := range groups {
		all = append(all, g.steps...)
	}
	if a.json {
		return a.printJSON(all)
	}
	for _, s := range all {
		if !s.Done {
			fmt.Fprintln(a.out, s)
		}
	}
	switch len(all) {
	case 0:
		fmt.Fprintln(a.out, "nothing to change")
	case 1:
		fmt.Fprintf(a.out, "1 change%s\n", made)
	default:
		fmt.Fprintf(a.out, "%d changes%s\n", len(all), made)
	}
	return nil
}

// unfinished says how far it came.
func (a *app) unfinished(groups []*group, err error) error {
	var (
		left  []string
		steps []*step
	)
	for _, g := range groups {
		for _, s := range g.steps {
			steps = append(steps, s)
			if !s.Done {
				left = append(left, s.String())
			}
		}
	}
	err = fmt.Errorf("%w; %d of %d changes made, not made: %s; a repetition goes on with them",
		err, len(steps)-len(left), len(steps), strings.Join(left, ", "))
	if a.json {
		return errors.Join(err, a.printJSON(steps))
	}
	return err
}
