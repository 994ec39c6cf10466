package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
)

// A row compares xvlan with the kernel's macvlan in one respect, or with
// itself.
type row struct {
	Case       string     `json:"case"`
	What       string     `json:"what"`
	Unit       string     `json:"unit"`
	Contenders [2]string  `json:"contenders"`
	Medians    [2]float64 `json:"medians"` // of the rounds
	Ratio      float64    `json:"ratio"`   // median of the rounds' ratios, second to first
	Min        float64    `json:"min"`
	Max        float64    `json:"max"`
	Less       bool       `json:"less_is_better"`
	Goal       float64    `json:"goal,omitempty"` // 0: none is set
	Ratios     series     `json:"ratios"`
	Missing    string     `json:"missing,omitempty"` // why there are no figures
}

// compare makes a row of macvlan's and xvlan's figures.
func compare(what, unit string, macvlan, xvlan series) *row {
	ratios := xvlan.per(macvlan)
	return &row{
		What:       what,
		Unit:       unit,
		Contenders: [2]string{"macvlan", "xvlan"},
		Medians:    [2]float64{macvlan.quantile(0.5), xvlan.quantile(0.5)},
		Ratio:      ratios.quantile(0.5),
		Min:        ratios.quantile(0),
		Max:        ratios.quantile(1),
		Ratios:     ratios,
	}
}

// missing is a row of what cannot be measured.
func missing(what, why string) *row { return &row{What: what, Missing: why} }

// lessIsBetter marks a row of latencies or the like.
func (r *row) lessIsBetter() *row {
	r.Less = true
	return r
}

// between names others than macvlan and xvlan.
func (r *row) between(first, second string) *row {
	r.Contenders = [2]string{first, second}
	return r
}

func (r *row) goal(g float64) *row {
	r.Goal = g
	return r
}

// better tells whether the ratio, as it is shown, is at least as good as g.
func (r *row) better(g float64) bool {
	shown := math.Round(r.Ratio*100) / 100
	if r.Less {
		return shown <= g
	}
	return shown >= g
}

// loses tells whether the kernel's macvlan is better, by however little.
func (r *row) loses() bool { return r.Contenders[0] == "macvlan" && !r.better(1) }

func (r *row) misses() bool { return r.Goal != 0 && !r.better(r.Goal) }

// verdict says whether the goal was reached, and whether xvlan loses.
func (r *row) verdict() string {
	var words []string
	switch {
	case r.misses():
		words = append(words, "**missed**")
	case r.Goal != 0:
		words = append(words, "reached")
	}
	if r.loses() {
		words = append(words, "**loses**")
	}
	return strings.Join(words, ", ")
}

func (r *row) GoalText() string {
	switch {
	case r.Goal == 0:
		return ""
	case r.Less:
		return fmt.Sprintf("<= %.2f", r.Goal)
	}
	return fmt.Sprintf(">= %.2f", r.Goal)
}

// results are what -json writes, and -from reads.
type results struct {
	machine
	Rounds int    `json:"rounds"`
	Rows   []*row `json:"rows"`
}

// readJSON reads what writeJSON wrote.
func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read results: %w", err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("read results in %s: %w", path, err)
	}
	return nil
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
