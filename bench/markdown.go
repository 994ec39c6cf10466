package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// page is the report.
var page = template.Must(template.New("").Parse(`# Benchmark report

How fast xvlan is beside the kernel's own drivers. ` + "`make bench`" + ` measures the ratios and
` + "`make bench-count`" + ` counts the instructions; both write this page, and ` + "`make bench-report`" + `
writes it anew from [ratios.json](ratios.json) and [baseline.json](../baseline.json). What it
was measured on:

| | ratios | instructions |
|---|---|---|
| Linux | {{.Res.Kernel}} | {{.All.Kernel}} |
| CPU | {{.Res.CPU}} | {{.All.CPU}} |
| CPUs | {{.Res.CPUs}} | {{.All.CPUs}} |
| machine | {{.Res.System}} | {{.All.System}} |
| built with | {{.Res.Go}} | {{.All.Go}} |
| xvlan | {{.Res.Commit}} | {{.All.Commit}} |
| date | {{.Res.Date}} | {{.All.Date}} |
| load as it began | {{.Res.Load}} | of no account |

## Ratios

Two sides, alike but for the kernel's macvlan in mode bridge on one and xvlan on rung
` + "`tc`" + ` on the other, on parents that are veth devices, take turns of some hundredths of a
second. A round's value is the lower quartile of its turns, the ratio is the median of
{{.Res.Rounds}} rounds, and beside it are the least and the most of a round. Unless a row says that
less is better, a ratio over 1 is good; *loses* is said of every median on the wrong side
of 1, be it by little. The last table is about xvlan alone, with one address and with many.

**{{len .Missed}} of {{.Goals}} goals are missed, and xvlan loses in {{len .Losing}} of {{len .Res.Rows}} rows.**
{{- with .Missed}}

Goals missed:

{{range .}}- {{.What}}: {{printf "%.2f" .Ratio}} instead of {{.GoalText}}
{{end}}{{end}}
![Ratios of xvlan to macvlan, with their spread and goals](ratios.svg)
{{.Tables}}
## Instructions

In a virtual machine whose clock counts instructions pktgen sends 60-byte frames, each
alone, by a veth cable with GRO. What making a frame takes is left out. Figures repeat
within half a percent; of caches, branch prediction and contention they say nothing.

![Instructions by way and contender, with one destination](paths.svg)

![Instructions of a frame from the wire against the number of destinations](destinations.svg)

![Instructions of an ARP question against the number of sub-interfaces](arp.svg)

Columns are numbers of destinations: sub-interfaces with MACs of their own; for ipvlan,
addresses of sub-interfaces that have up to {{.Each}} each. Of ARP questions all columns are
numbers of sub-interfaces.
{{.Counts}}
What is not there:

- A bridge has 1,023 ports at the most, one of them the parent.
- Nobody hears ARP in the modes l3.
- More than 16,384 addresses of the kernel's ipvlan take more than ten minutes to make in such
  a machine: it compares each address with all others on the parent.
- More of xvlan's sub-interfaces have not been counted yet.
- A sub-interface has up to {{.Each}} of the addresses, since the kernel looks through a device's
  list of them for each that is added.
`))

const notes = `
"From the driver on" leaves out what a frame costs until the parent's driver
has it, as measured by an XDP program that drops it there; "from the stack's
edge on" leaves out the driver, too, as measured by a tc program on the parent
that drops it. All else is counted whole, with generator, sockets and sink.
Percentiles are of 4,000 round trips a turn. While frames for everybody are
measured, the stack's queue on each CPU (net.core.netdev_max_backlog) is 16,384
long: xvlan makes all copies of a frame at once.
`

// writeTables writes the rows as Markdown, a table a case.
func writeTables(to io.Writer, rows []*row) error {
	var buf bytes.Buffer
	for _, c := range cases {
		first := true
		for _, r := range rows {
			if r.Case != c.name {
				continue
			}
			if first {
				names := r.Contenders
				if r.Missing != "" {
					names = [2]string{"macvlan", "xvlan"}
				}
				fmt.Fprintf(&buf, "\n### %s\n\n| | unit | %s | %s | ratio | least..most | goal | |\n|---|---|---:|---:|---:|---:|---:|---|\n",
					c.title, names[0], names[1])
				first = false
			}
			if r.Missing != "" {
				fmt.Fprintf(&buf, "| %s | | | | | | | %s |\n", r.What, r.Missing)
				continue
			}
			less := ""
			if r.Less {
				less = ", less is better"
			}
			fmt.Fprintf(&buf, "| %s | %s%s | %.4g | %.4g | %.2f | %.2f..%.2f | %s | %s |\n",
				r.What, r.Unit, less, r.Medians[0], r.Medians[1], r.Ratio, r.Min, r.Max, r.GoalText(), r.verdict())
		}
	}
	buf.WriteString(notes)
	if _, err := buf.WriteTo(to); err != nil {
		return fmt.Errorf("write tables: %w", err)
	}
	return nil
}

// writePage writes the report's text.
func writePage(to io.Writer, res results, all counted) error {
	var tables, numbers strings.Builder
	if err := writeTables(&tables, res.Rows); err != nil {
		return err
	}
	if err := printCounts(&numbers, all.Counts); err != nil {
		return err
	}
	p := struct {
		Res            results
		All            counted
		Goals          int
		Missed, Losing []*row
		Tables, Counts string
		Each           int
	}{Res: res, All: all, Tables: tables.String(), Counts: numbers.String(), Each: addrsEach}
	for _, r := range res.Rows {
		if r.loses() {
			p.Losing = append(p.Losing, r)
		}
		if r.Goal != 0 {
			p.Goals++
		}
		if r.misses() {
			p.Missed = append(p.Missed, r)
		}
	}
	if err := page.Execute(to, p); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

// writeReport writes page, charts and results into a folder.
func writeReport(dir string, res results, all counted) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	var text bytes.Buffer
	if err := writePage(&text, res, all); err != nil {
		return err
	}
	files := map[string][]byte{"README.md": text.Bytes()}
	for name, c := range charts(res, all) {
		var svg bytes.Buffer
		if err := c.WriteSVG(&svg); err != nil {
			return fmt.Errorf("draw %s: %w", name, err)
		}
		files[name] = svg.Bytes()
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	return writeJSON(filepath.Join(dir, "ratios.json"), res)
}
