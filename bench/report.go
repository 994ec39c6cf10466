package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// A row compares xvlan with the kernel's macvlan in one respect.
type row struct {
	Case    string  `json:"case"`
	What    string  `json:"what"`
	Unit    string  `json:"unit"`
	Macvlan float64 `json:"macvlan"` // medians of the rounds
	Xvlan   float64 `json:"xvlan"`
	Ratio   float64 `json:"ratio"` // median of the rounds' ratios, xvlan to macvlan
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	Less    bool    `json:"less_is_better"`
	Goal    float64 `json:"goal,omitempty"` // 0: none is set
	Ratios  series  `json:"ratios"`
	Missing string  `json:"missing,omitempty"` // why there are no figures
}

// compare makes a row of two contenders' figures.
func compare(what, unit string, macvlan, xvlan series) *row {
	ratios := xvlan.per(macvlan)
	return &row{
		What:    what,
		Unit:    unit,
		Macvlan: macvlan.quantile(0.5),
		Xvlan:   xvlan.quantile(0.5),
		Ratio:   ratios.quantile(0.5),
		Min:     ratios.quantile(0),
		Max:     ratios.quantile(1),
		Ratios:  ratios,
	}
}

// missing is a row of what cannot be measured.
func missing(what, why string) *row { return &row{What: what, Missing: why} }

// lessIsBetter marks a row of latencies or the like.
func (r *row) lessIsBetter() *row {
	r.Less = true
	return r
}

func (r *row) goal(g float64) *row {
	r.Goal = g
	return r
}

// better tells whether the ratio is at least as good as g.
func (r *row) better(g float64) bool {
	if r.Less {
		return r.Ratio <= g
	}
	return r.Ratio >= g
}

// verdict says whether the goal was reached, and whether xvlan loses.
func (r *row) verdict() string {
	v := ""
	if !r.better(1) {
		v = "loses"
	}
	switch {
	case r.Goal == 0:
		return v
	case r.better(r.Goal) && v == "":
		return "reached"
	case r.better(r.Goal):
		return "reached, " + v
	case v == "":
		return "**missed**"
	}
	return "**missed**, " + v
}

func (r *row) goalText() string {
	switch {
	case r.Goal == 0:
		return ""
	case r.Less:
		return fmt.Sprintf("<= %.2f", r.Goal)
	}
	return fmt.Sprintf(">= %.2f", r.Goal)
}

const notes = `
"From the driver on" leaves out what a frame costs until the parent's driver
has it, as measured by an XDP program that drops it there; "from the stack's
edge on" leaves out the driver, too, as measured by a tc program on the parent
that drops it. All else is counted whole, with generator, sockets and sink.
`

// table writes the rows as Markdown.
func table(w io.Writer, rows []*row) error {
	_, err := fmt.Fprint(w, "| case | what | unit | macvlan | xvlan | ratio | min..max | goal | |\n",
		"|---|---|---|---:|---:|---:|---:|---:|---|\n")
	for _, r := range rows {
		if err != nil {
			break
		}
		if r.Missing != "" {
			_, err = fmt.Fprintf(w, "| %s | %s | | | | | | | %s |\n", r.Case, r.What, r.Missing)
			continue
		}
		_, err = fmt.Fprintf(w, "| %s | %s | %s | %.4g | %.4g | %.2f | %.2f..%.2f | %s | %s |\n",
			r.Case, r.What, r.Unit, r.Macvlan, r.Xvlan, r.Ratio, r.Min, r.Max, r.goalText(), r.verdict())
	}
	if err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// results are what -json writes.
type results struct {
	Kernel string `json:"kernel"`
	Rounds int    `json:"rounds"`
	Rows   []*row `json:"rows"`
}

// writeJSON writes to a file, or to standard output for "-".
func writeJSON(path string, v any) error {
	out, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	out = append(out, '\n')
	if path == "-" {
		_, err = os.Stdout.Write(out)
	} else {
		err = os.WriteFile(path, out, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
