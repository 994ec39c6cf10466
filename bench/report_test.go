package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fixed is a small result: a row that reaches its goal, one that misses it and
// loses, one that loses without a goal, and one that wins and misses it.
func fixed() (results, counted) {
	this := machine{Kernel: "6.99", CPU: "A CPU", CPUs: 3, System: "A machine", Go: "go1.99", Commit: "abc123", Date: "2026-01-02", Load: "0.12"}
	rows := []*row{
		compare("bulk in", "Gbit/s", series{10, 10, 10}, series{11, 12, 13}).goal(1),
		compare("there and back: p50", "us", series{10, 10, 10}, series{12, 13, 14}).lessIsBetter().goal(1.05),
		compare("frames out", "M packets/CPU-s", series{2, 2, 2}, series{1.7, 1.8, 1.9}),
		compare("frames for nobody", "M packets/CPU-s", series{1, 1, 1}, series{12, 12, 12}).goal(15),
	}
	rows[0].Case, rows[1].Case, rows[2].Case, rows[3].Case = "tcp", "latency", "send", "nobody"
	all := counted{machine: this}
	for i, c := range contenders {
		for j, way := range ways {
			if way == arp && c.kind.routed() {
				continue // as when it is counted
			}
			for _, n := range []int{1, 16} {
				all.Counts = append(all.Counts, count{way, c.name, n, float64(1000*(j+1) + 100*i + n)})
			}
		}
	}
	return results{machine: this, Rounds: 3, Rows: rows}, all
}

// write writes the fixed report and returns its files.
func write(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	res, all := fixed()
	if err := writeReport(dir, res, all); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(content)
	}
	return files
}

func TestReportPage(t *testing.T) {
	files := write(t)
	page := files["README.md"]
	for _, want := range []string{
		"| Linux | 6.99 | 6.99 |", "| CPU | A CPU | A CPU |", "| CPUs | 3 | 3 |", "| machine | A machine | A machine |",
		"| built with | go1.99 | go1.99 |", "| xvlan | abc123 | abc123 |", "| date | 2026-01-02 | 2026-01-02 |", "| load as it began | 0.12 |",
		"**2 of 3 goals are missed, and xvlan loses in 2 of 4 rows.**",
		"- there and back: p50: 1.30 instead of <= 1.05",
		"### Bulk TCP\n\n| | unit | macvlan | xvlan |",
		"| bulk in | Gbit/s | 10 | 12 | 1.20 | 1.10..1.30 | >= 1.00 | reached |",
		"| there and back: p50 | us, less is better | 10 | 13 | 1.30 | 1.20..1.40 | <= 1.05 | **missed**, **loses** |",
		"| frames out | M packets/CPU-s | 2 | 1.8 | 0.90 | 0.85..0.95 |  | **loses** |",
		"| frames for nobody | M packets/CPU-s | 1 | 12 | 12.00 | 12.00..12.00 | >= 15.00 | **missed** |",
		"(ratios.json)", "(../baseline.json)",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("not in the page: %s", want)
		}
	}
	if files["ratios.json"] == "" {
		t.Error("no ratios.json")
	}
	for name := range files {
		if name != "README.md" && !strings.Contains(page, "("+name+")") {
			t.Errorf("the page does not refer to %s", name)
		}
	}
	var numbers bytes.Buffer
	_, all := fixed()
	if err := printCounts(&numbers, all.Counts); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(page, numbers.String()) {
		t.Error("the page lacks the tables of counts")
	}
	if t.Failed() {
		t.Log(page)
	}
}

// TestReportAgain writes the report from the results that it has written.
func TestReportAgain(t *testing.T) {
	res, all := fixed()
	dir := t.TempDir()
	from, counts := filepath.Join(dir, "ratios.json"), filepath.Join(dir, "counts.json")
	if err := errors.Join(writeJSON(from, res), writeJSON(counts, all)); err != nil {
		t.Fatal(err)
	}
	b := bench{rounds: 1}
	if err := b.main(t.Context(), options{from: from, baseline: counts, report: dir}); err != nil {
		t.Fatal(err)
	}
	for name, want := range write(t) {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s is not the same when written from the results (%v)", name, err)
		}
	}
}

// TestReportCommitted is about the report in the repository: it is what its
// numbers give.
func TestReportCommitted(t *testing.T) {
	dir := t.TempDir()
	b := bench{rounds: 1}
	if err := b.main(t.Context(), options{from: "report/ratios.json", baseline: "baseline.json", report: dir}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, path := range files {
		name := filepath.Base(path)
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join("report", name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("report/%s is not what the numbers give (%v): make bench-report writes it", name, err)
		}
	}
}

// texts returns what an SVG's text elements say, in their order.
func texts(t *testing.T, svg string) (all []string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(svg))
	inside, root := false, ""
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			if root == "" {
				root = e.Name.Local
			}
			inside = e.Name.Local == "text"
		case xml.EndElement:
			inside = false
		case xml.CharData:
			if inside {
				all = append(all, string(e))
			}
		}
	}
	if root != "svg" {
		t.Fatalf("the root is %q", root)
	}
	return all
}

func TestReportCharts(t *testing.T) {
	lines := []string{"kernel macvlan", "kernel ipvlan l2", "bridge and veth", "xvlan macvlan, tc", "xvlan ipvlan l2, tc", "1", "16"}
	files := write(t)
	for name, labels := range map[string][]string{
		"destinations.svg": append(lines, "destinations"),
		"arp.svg":          append(lines, "sub-interfaces", "10,000"),
		"paths.svg": append(slices.Clone(ways), "kernel macvlan", "kernel ipvlan l3", "xvlan macvlan, xdp", "xvlan ipvlan l3, tc",
			"1,001", "5,701"),
		"ratios.svg": {"More is better", "Less is better", "bulk in", "there and back: p50", "frames out",
			"1.20", "1.10..1.30", "1.30", "0.90", "goal 15"},
	} {
		svg, ok := files[name]
		if !ok {
			t.Errorf("%s was not written", name)
			continue
		}
		got := texts(t, svg)
		for _, want := range labels {
			if !slices.Contains(got, want) {
				t.Errorf("%s does not say %q; it says %q", name, want, got)
			}
		}
	}
}
