package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

func (a *app) parentCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "parent",
		Short: "Attach, detach and show parents",
		Long: `A parent is attached with its first sub-interface and left as it was found with
the last. Attached by name it stays, and takes a policy and a capacity.`,
		RunE: func(_ *cobra.Command, args []string) error { return a.showParents(args) },
		Args: cobra.ArbitraryArgs,
	}
	var datapath string
	attach := &cobra.Command{
		Use:   "attach PARENT [unknown {pass|drop}] [capacity N]",
		Short: "Attach to a parent, or change its policy",
		Example: `  xvlan parent attach eth0 unknown drop
  xvlan parent attach eth0 capacity 4096`,
		RunE: func(_ *cobra.Command, args []string) error {
			name, spec, err := parseAttach(&words{left: args})
			if err != nil {
				return err
			}
			if spec.Datapath, err = parseDatapath(datapath); err != nil {
				return err
			}
			return a.with(func(h *loader.Host) error { return h.Attach(name, spec) })
		},
	}
	attach.Flags().StringVar(&datapath, "datapath", "", "rung to stand on: xdp or tc (default: the highest that costs nothing)")
	cmd.AddCommand(attach,
		&cobra.Command{
			Use:   "detach PARENT",
			Short: "Remove a parent's sub-interfaces and leave it as it was found",
			Args:  exactly("PARENT"),
			RunE: func(_ *cobra.Command, args []string) error {
				return a.with(func(h *loader.Host) error { return h.Detach(args[0]) })
			},
		},
		&cobra.Command{
			Use:   "upgrade [PARENT]",
			Short: "Put this xvlan's programs in the place of another version's",
			Long: `Puts this xvlan's programs in the place of those that another version has
attached, on one parent or all of them: a device at a time, so that no frame is
lost and the counters go on. Maps that an older version has laid out otherwise
are carried over. What fails leaves the old programs at work. Who watches
(monitor, capture) has to begin anew.`,
			Args: cobra.MaximumNArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				return a.with(func(h *loader.Host) error { return a.upgrade(h, args) })
			},
		},
		&cobra.Command{
			Use:     "show [PARENT]",
			Short:   "Show attached parents",
			Aliases: []string{"list", "ls"},
			RunE:    func(_ *cobra.Command, args []string) error { return a.showParents(args) },
		},
	)
	for _, sub := range cmd.Commands() {
		completeFirst(sub, a.parents)
	}
	a.completeWords(attach, "attach")
	return cmd
}

type upgradeJSON struct {
	Name    string `json:"ifname"`
	Changed bool   `json:"changed"`
}

// upgrade upgrades one parent, or all that something is attached to.
func (a *app) upgrade(h *loader.Host, names []string) error {
	if len(names) == 0 {
		var err error
		if names, err = h.Attached(); err != nil {
			return err
		}
	}
	all := []upgradeJSON{}
	var errs []error
	for _, name := range names {
		changed, err := h.Upgrade(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, upgradeJSON{name, changed})
		if a.json {
			continue
		}
		what := "has these programs already"
		if changed {
			what = "upgraded"
		}
		fmt.Fprintf(a.out, "%s: %s\n", printable(name), what)
	}
	if a.json {
		errs = append(errs, a.printJSON(all))
	}
	return errors.Join(errs...)
}

// exactly takes one argument, with an error of our form.
func exactly(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usagef("%s: say one, as in `%s %s`", strings.ToLower(what), cmd.CommandPath(), what)
		}
		return nil
	}
}

func parseAttach(w *words) (string, loader.AttachSpec, error) {
	var (
		name string
		spec = loader.AttachSpec{Keep: true}
	)
	for {
		word, ok := w.next()
		if !ok {
			break
		}
		switch {
		case w.attachWord(word, &spec):
		case name == "":
			name = word
		default:
			w.fail(usagef("%s: not known here; see `xvlan parent attach --help`", word))
		}
	}
	if w.err == nil && name == "" {
		return name, spec, usagef("parent: say which")
	}
	return name, spec, w.err
}

// attachWord reads a parent's policy or capacity, and tells whether the word is
// of that.
func (w *words) attachWord(word string, spec *loader.AttachSpec) bool {
	switch word {
	case "unknown":
		switch v := w.value(word); v {
		case "drop":
			spec.Unknown = loader.UnknownDrop
		case "pass":
			spec.Unknown = loader.UnknownPass
		default:
			w.fail(usagef("unknown %q: pass or drop", v))
		}
	case "capacity":
		n := w.number(word)
		if n > bpf.MaxCapacity {
			w.fail(usagef("capacity %d: not in 1..%d", n, bpf.MaxCapacity))
		}
		spec.Capacity = uint32(n)
	default:
		return false
	}
	return true
}

type parentJSON struct {
	Index    int         `json:"ifindex"`
	Name     string      `json:"ifname"`
	Gone     bool        `json:"gone,omitempty"`
	Datapath rungJSON    `json:"datapath"`
	Unknown  string      `json:"unknown"`
	Keep     bool        `json:"keep"`
	Links    int         `json:"links"`
	Capacity uint32      `json:"capacity"`
	Verdicts verdictJSON `json:"verdicts"`
}

func unknown(drop bool) string {
	if drop {
		return "drop"
	}
	return "pass"
}

func (a *app) showParents(args []string) error {
	if len(args) > 1 {
		return usagef("%s: say at most one parent", args[1])
	}
	return a.with(func(h *loader.Host) error {
		if err := h.Sweep(); err != nil && !errors.Is(err, loader.ErrPrivilege) {
			return err
		}
		parents, err := h.Parents()
		if err != nil {
			return err
		}
		if len(args) == 1 {
			parents = slices.DeleteFunc(parents, func(p loader.ParentInfo) bool { return p.Name != args[0] })
			if len(parents) == 0 {
				return fmt.Errorf("parent %s: %w; it is attached with its first sub-interface", args[0], loader.ErrNotFound)
			}
		}
		if a.json {
			all := []parentJSON{}
			for _, p := range parents {
				all = append(all, parentJSON{p.Index, p.Name, p.Gone(), rungJSON{p.Rung.String(), p.Reason}, unknown(p.UnknownDrop),
					p.Keep, p.Links, p.Capacity, verdictsJSON(p.Stats)})
			}
			return a.printJSON(all)
		}
		if len(parents) == 0 {
			return nil
		}
		w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "PARENT\tRUNG\tLINKS\tUNKNOWN\tPASSED\tDROPPED\tREASON")
		for _, p := range parents {
			if p.Rung == maps.RungKernel { // has neither policy nor counters of ours
				fmt.Fprintf(w, "%s\t%s\t%d\t-\t-\t-\t%s\n", printable(p.Name), p.Rung, p.Links, printable(p.Reason))
				continue
			}
			reason := p.Reason
			if p.Gone() {
				reason = "gone: a device of its name will take its place"
			}
			fmt.Fprintf(w, "%s\t%s\t%d/%d\t%s\t%d\t%d\t%s\n", printable(p.Name), p.Rung, p.Links, p.Capacity,
				unknown(p.UnknownDrop), p.Stats[maps.Pass].Packets, p.Stats.Drops().Packets, printable(reason))
		}
		return w.Flush()
	})
}

func (a *app) probeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "probe [PARENT]",
		Short: "Say what this host, and a parent, can do and which rung it gets",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var parent string
			if len(args) == 1 {
				parent = args[0]
			}
			return a.with(func(h *loader.Host) error {
				p, err := h.Probe(parent)
				if err != nil {
					return err
				}
				return a.printProbe(p)
			})
		},
	}
	completeFirst(cmd, a.devices)
	return cmd
}

type probeJSON struct {
	Kernel   string        `json:"kernel"`
	Features []featureJSON `json:"features"`
	Parent   string        `json:"parent,omitempty"`
	Driver   string        `json:"driver,omitempty"`
	Datapath *rungJSON     `json:"datapath,omitempty"`
}

type featureJSON struct {
	Name   string `json:"name"`
	Have   bool   `json:"have"`
	Detail string `json:"detail"`
}

func (a *app) printProbe(p *loader.Probe) error {
	if a.json {
		j := probeJSON{Kernel: p.Kernel, Parent: p.Parent, Driver: p.Driver}
		for _, f := range p.Features {
			j.Features = append(j.Features, featureJSON(f))
		}
		if p.Parent != "" {
			j.Datapath = &rungJSON{p.Rung.String(), p.Rung.Reason}
		}
		return a.printJSON(j)
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "kernel\t%s\n", p.Kernel)
	for _, f := range p.Features {
		yes := "no"
		if f.Have {
			yes = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Name, yes, f.Detail)
	}
	if p.Parent != "" {
		fmt.Fprintf(w, "%s\t%s\t%s\n", printable(p.Parent), p.Rung, printable(p.Rung.Reason))
	}
	return w.Flush()
}
