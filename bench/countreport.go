package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// counted are what -json writes of a count, and what -baseline reads.
type counted struct {
	Kernel string  `json:"kernel"`
	Counts []count `json:"counts"`
}

// tolerance is how much more a frame may take than the baseline says. Counts
// repeat within a fifth of it.
const tolerance = 0.02

// countMain runs a count, prints it and compares it.
func countMain(ctx context.Context, kernel string, short bool, path, baseline string) error {
	macs, addrs, who := []int{1, 16, 256}, []int{1, 16, 256, 4096}, contenders
	if short {
		macs, addrs = []int{1}, []int{1}
		who = slices.DeleteFunc(slices.Clone(who), func(c contender) bool { return !strings.HasPrefix(c.name, string(xvlan)) })
	}
	all, err := counts(ctx, who, macs, addrs)
	if err != nil {
		return err
	}
	tables := io.Writer(os.Stdout)
	if path == "-" {
		tables = os.Stderr
	}
	if err := printCounts(tables, kernel, all); err != nil {
		return err
	}
	if path != "" {
		if err := writeJSON(path, counted{kernel, all}); err != nil {
			return err
		}
	}
	if baseline == "" {
		return nil
	}
	return compareCounts(all, baseline)
}

// printCounts writes a Markdown table a way, a column a number of destinations.
func printCounts(to io.Writer, kernel string, all []count) error {
	if _, err := fmt.Fprintf(to, "Instructions a 60-byte frame, Linux %s\n", kernel); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	for _, way := range ways {
		var sizes []int
		for _, c := range all {
			if c.Way == way && !slices.Contains(sizes, c.Destinations) {
				sizes = append(sizes, c.Destinations)
			}
		}
		slices.Sort(sizes)
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
				i := slices.IndexFunc(all, func(k count) bool {
					return k.Way == way && k.Contender == c.name && k.Destinations == n
				})
				cell := ""
				if i >= 0 {
					cell, some = fmt.Sprintf("%.0f", all[i].Instructions), true
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
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read baseline: %w", err)
	}
	var base counted
	if err := json.Unmarshal(raw, &base); err != nil {
		return fmt.Errorf("read baseline %s: %w", path, err)
	}
	var errs []error
	for _, c := range all {
		if c.Way == arp {
			continue // kernel threads have a share in it, which does not repeat so well
		}
		i := slices.IndexFunc(base.Counts, func(b count) bool {
			return b.Way == c.Way && b.Contender == c.Contender && b.Destinations == c.Destinations
		})
		what := fmt.Sprintf("%s, %s, %d", c.Contender, c.Way, c.Destinations)
		if i < 0 {
			errs = append(errs, fmt.Errorf("%s: not in the baseline: make bench-count writes it", what))
			continue
		}
		was := base.Counts[i].Instructions
		if c.Instructions > was*(1+tolerance) {
			errs = append(errs, fmt.Errorf("%s: %.0f instructions instead of %.0f: make it cheaper, or give the reason and commit what make bench-count writes", what, c.Instructions, was))
		}
	}
	return errors.Join(errs...)
}
