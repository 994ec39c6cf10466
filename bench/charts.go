package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/xvlan/xvlan/bench/plot"
	"gonum.org/v1/plot/vg/draw"
)

// styles are how contenders are drawn: the kernel's in greys and dashed, the
// bridge apart, xvlan's in colours.
var styles = map[string]plot.Style{
	"macvlan":                  {Color: plot.Black, Dashed: true, Glyph: draw.BoxGlyph{}},
	"macvlan on a VLAN device": {Color: plot.Slate, Dashed: true, Glyph: draw.BoxGlyph{}},
	"ipvlan l2":                {Color: plot.Grey, Dashed: true, Glyph: draw.BoxGlyph{}},
	"ipvlan l3":                {Color: plot.Silver, Dashed: true, Glyph: draw.BoxGlyph{}},
	"bridge and veth":          {Color: plot.Orange, Dashed: true, Glyph: draw.PyramidGlyph{}},
	"xvlan macvlan, netkit":    {Color: plot.Purple, Glyph: draw.CircleGlyph{}},
	"xvlan ipvlan l2, netkit":  {Color: plot.Yellow, Glyph: draw.CircleGlyph{}},
	"xvlan macvlan, tc":        {Color: plot.Blue, Wide: true, Glyph: draw.CircleGlyph{}},
	"xvlan macvlan, xdp":       {Color: plot.Sky, Glyph: draw.CircleGlyph{}},
	"xvlan macvlan, vlan 10":   {Color: plot.Navy, Glyph: draw.CircleGlyph{}},
	"xvlan ipvlan l2, tc":      {Color: plot.Green, Glyph: draw.CircleGlyph{}},
	"xvlan ipvlan l3, tc":      {Color: plot.Vermilion, Glyph: draw.CircleGlyph{}},
}

// label is a contender's name where others than the kernel's are about.
func label(name string) string {
	if strings.HasPrefix(name, "macvlan") || strings.HasPrefix(name, "ipvlan") {
		return "kernel " + name
	}
	return name
}

// A chart draws itself.
type chart interface{ WriteSVG(io.Writer) error }

// charts are the report's, by the names of their files.
func charts(res results, all counted) map[string]chart {
	where := fmt.Sprintf("Instructions of the kernel and of xvlan's programs, counted on Linux %s; caches and branches aside.", all.Kernel)
	return map[string]chart{
		"destinations.svg": plot.Lines{
			Title: "A small frame from the wire, by the number of destinations",
			Note: []string{where,
				"Destinations: sub-interfaces with MACs of their own, or addresses behind the parent's MAC (up to 256 a sub-interface)."},
			X: "destinations", Y: "instructions a 60-byte frame",
			Lines: linesOf(all.Counts, deliver),
		},
		"arp.svg": plot.Lines{
			Title: "An ARP question from the wire, by the number of sub-interfaces",
			Note: []string{where,
				"xvlan hands it to the owner of the address alone; the others copy it for every sub-interface."},
			X: "sub-interfaces", Y: "instructions a question, with all its copies", LogY: true,
			Lines: linesOf(all.Counts, arp),
		},
		"paths.svg": plot.Bars{
			Title: "What a small frame takes, by its way, with one destination",
			Note:  []string{where, "Less is better. In the modes l3 nobody hears ARP."},
			Y:     "instructions a 60-byte frame", Groups: ways, Bars: bars(all.Counts),
		},
		"ratios.svg": plot.Ranges{
			Title: "xvlan against the kernel's macvlan, measured in turns",
			Note: []string{
				fmt.Sprintf("Median and least..most of %d rounds. Linux %s, %s, %d CPUs.", res.Rounds, res.Kernel, res.CPU, res.CPUs),
				"Blue dots: xvlan does not lose. Red squares: it loses, or misses its goal. Green bars: goals. Arrows: beyond the axis.",
			},
			X: "ratio", Low: 0.3, Top: 2,
			Groups: ranges(res.Rows),
		},
	}
}

// find returns a count, NaN for none.
func find(all []count, way, contender string, destinations int) float64 {
	for _, c := range all {
		if c.Way == way && c.Contender == contender && c.Destinations == destinations {
			return c.Instructions
		}
	}
	return math.NaN()
}

// sizesOf are the numbers of destinations that a way was counted with.
func sizesOf(all []count, way string) (sizes []int) {
	for _, c := range all {
		if c.Way == way && !slices.Contains(sizes, c.Destinations) {
			sizes = append(sizes, c.Destinations)
		}
	}
	slices.Sort(sizes)
	return sizes
}

// linesOf are a way's series, of those contenders that stand for the others.
func linesOf(all []count, way string) (series []plot.Line) {
	for _, name := range []string{"macvlan", "ipvlan l2", "bridge and veth", "xvlan macvlan, tc", "xvlan ipvlan l2, tc"} {
		l := plot.Line{Name: label(name), Style: styles[name]}
		for _, n := range sizesOf(all, way) {
			if v := find(all, way, name, n); !math.IsNaN(v) {
				l.X, l.Y = append(l.X, float64(n)), append(l.Y, v)
			}
		}
		if len(l.X) > 0 {
			series = append(series, l)
		}
	}
	return series
}

// bars are the contenders' series over the ways.
func bars(all []count) (series []plot.Bar) {
	for _, c := range contenders {
		b := plot.Bar{Name: label(c.name), Style: styles[c.name]}
		for _, way := range ways {
			b.Values = append(b.Values, find(all, way, c.name, 1))
		}
		series = append(series, b)
	}
	return series
}

// ranges are the rows, those where less is better apart.
func ranges(rows []*row) []plot.Group {
	groups := []plot.Group{{Heading: "More is better"}, {Heading: "Less is better"}}
	for _, r := range rows {
		if r.Missing != "" {
			continue
		}
		g := &groups[0]
		if r.Less {
			g = &groups[1]
		}
		g.Ranges = append(g.Ranges, plot.Range{
			Name: r.What, Median: r.Ratio, Min: r.Min, Max: r.Max, Goal: r.Goal, Worse: r.loses() || r.misses(),
		})
	}
	return slices.DeleteFunc(groups, func(g plot.Group) bool { return len(g.Ranges) == 0 })
}
