package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// counted are what -json writes of a count, and what -baseline reads.
type counted struct {
	machine
	Counts []count `json:"counts"`
}

// tolerance is how much more a frame may take than the baseline says. Counts
// repeat within a fifth of it.
const tolerance = 0.02

// countMain runs a count, prints it and compares it.
func countMain(ctx context.Context, this machine, o options) error {
	most, who := math.MaxInt, contenders
	if o.short {
		most = 1
		who = slices.DeleteFunc(slices.Clone(who), func(c contender) bool { return !strings.HasPrefix(c.name, string(xvlan)) })
	}
	all, err := counts(ctx, who, most)
	if err != nil {
		return err
	}
	tables := io.Writer(os.Stdout)
	if o.json == "-" {
		tables = os.Stderr
	}
	if _, err := fmt.Fprintf(tables, "Instructions a 60-byte frame, Linux %s\n", this.Kernel); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	if err := printCounts(tables, all); err != nil {
		return err
	}
	if o.json != "" {
		if err := writeJSON(o.json, counted{this, all}); err != nil {
			return err
		}
	}
	if o.baseline == "" {
		return nil
	}
	return compareCounts(all, o.baseline)
}

// printCounts writes a Markdown table a way, a column a number of destinations.
func printCounts(to io.Writer, all []count) error {
	for _, way := range ways {
		sizes := sizesOf(all, way)
		if len(sizes) == 0 {
			continue
		}
		var buf bytes.Buffer
		w := tabwriter.NewWriter(&buf, 0, 0, 1, ' ', tabwriter.Debug)
		fmt.Fprintf(w, "\t %s", way)
		for _, n := range sizes {
			fmt.Fprintf(w, "\t %d", n)
		}
		fmt.Fprintf(w, "\t\n\t---%s\t\n", strings.Repeat("\t---:", len(sizes)))
		for _, c := range contenders {
			line, some := "\t "+c.name, false
			for _, n := range sizes {
				cell := ""
				if v := find(all, way, c.name, n); !math.IsNaN(v) {
					cell, some = fmt.Sprintf("%.0f", v), true
				}
				line += "\t " + cell
			}
			if some {
				fmt.Fprintln(w, line+"\t")
			}
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("write table: %w", err)
		}
		// tabwriter pads the empty cell that begins each line.
		if _, err := fmt.Fprint(to, strings.ReplaceAll("\n"+buf.String(), "\n |", "\n|")); err != nil {
			return fmt.Errorf("write table: %w", err)
		}
	}
	return nil
}

// compareCounts fails where something takes more than the baseline says, and
// where the baseline does not know it.
func compareCounts(all []count, path string) error {
	var base counted
	if err := readJSON(path, &base); err != nil {
		return err
	}
	var errs []error
	for _, c := range all {
		if c.Way == arp {
			continue // kernel threads have a share in it, which does not repeat so well
		}
		what := fmt.Sprintf("%s, %s, %d", c.Contender, c.Way, c.Destinations)
		was := find(base.Counts, c.Way, c.Contender, c.Destinations)
		if math.IsNaN(was) {
			errs = append(errs, fmt.Errorf("%s: not in the baseline: make bench-count writes it", what))
			continue
		}
		if c.Instructions > was*(1+tolerance) {
			errs = append(errs, fmt.Errorf("%s: %.0f instructions instead of %.0f: make it cheaper, or give the reason and commit what make bench-count writes", what, c.Instructions, was))
		}
	}
	return errors.Join(errs...)
}
