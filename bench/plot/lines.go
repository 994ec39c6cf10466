package plot

import (
	"fmt"
	"io"
	"math"
	"slices"

	gonum "gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// A Line is one series of a line chart.
type Line struct {
	Name string
	Style
	X, Y []float64
}

// Lines is a chart over a logarithmic x axis, whose ticks are the points'.
type Lines struct {
	Title string
	Note  []string
	X, Y  string // what the axes say
	LogY  bool
	Lines []Line
}

// WriteSVG draws it.
func (l Lines) WriteSVG(w io.Writer) error {
	c := newChart(860, 440, l.Title, l.Note...)
	p := newPlot(l.X)
	p.X.Scale = gonum.LogScale{}
	p.Y.Min = 0
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = faint, faint
	p.Add(grid)
	// The legend is in the order of the lines' ends, from above.
	lines := slices.SortedStableFunc(slices.Values(l.Lines), func(a, b Line) int {
		return int(math.Copysign(1, b.Y[len(b.Y)-1]-a.Y[len(a.Y)-1]))
	})
	var names []string
	var samples []thumbnail
	var ticks []gonum.Tick
	for _, s := range lines {
		xys := make(plotter.XYs, len(s.X))
		for i := range s.X {
			xys[i] = plotter.XY{X: s.X[i], Y: s.Y[i]}
			tick := gonum.Tick{Value: s.X[i], Label: number(s.X[i])}
			if !slices.Contains(ticks, tick) {
				ticks = append(ticks, tick)
			}
		}
		line, points, err := plotter.NewLinePoints(xys)
		if err != nil {
			return fmt.Errorf("draw %s: %w", s.Name, err)
		}
		line.LineStyle, points.GlyphStyle = s.line(), s.glyph()
		p.Add(line, points)
		names, samples = append(names, s.Name), append(samples, thumbnail{Style: s.Style})
	}
	p.X.Tick.Marker = gonum.ConstantTicks(ticks)
	if l.LogY {
		p.Y.Scale = gonum.LogScale{}
		p.Y.Min = lowest(lines)
		p.Y.Min, p.Y.Max = math.Pow(10, math.Floor(math.Log10(p.Y.Min))), math.Pow(10, math.Ceil(math.Log10(p.Y.Max)))
	} else {
		p.Y.Max *= 1.05
	}
	p.Y.Tick.Marker = gonum.TickerFunc(func(min, max float64) []gonum.Tick { return valueTicks(min, max, l.LogY) })
	c.legend(names, samples)
	c.sayY(l.Y)
	p.Draw(c.data)
	return c.writeTo(w)
}

func lowest(lines []Line) float64 {
	low := math.Inf(1)
	for _, l := range lines {
		low = min(low, slices.Min(l.Y))
	}
	return low
}

// valueTicks are some round numbers with commas, and between powers of ten
// ticks without.
func valueTicks(min, max float64, log bool) []gonum.Tick {
	var of gonum.Ticker = gonum.DefaultTicks{}
	if log {
		of = gonum.LogTicks{Prec: -1}
	}
	ticks := of.Ticks(min, max)
	for i, t := range ticks {
		if t.Label != "" {
			ticks[i].Label = number(t.Value)
		}
	}
	return ticks
}

// Bars are a chart of grouped bars.
type Bars struct {
	Title  string
	Note   []string
	Y      string
	Groups []string
	Bars   []Bar
}

// A Bar is one series: a bar in each group; NaN where there is none.
type Bar struct {
	Name string
	Style
	Values []float64
}

// WriteSVG draws it.
func (b Bars) WriteSVG(w io.Writer) error {
	c := newChart(1000, 460, b.Title, b.Note...)
	p := newPlot("")
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Width = faint, 0
	p.Add(grid, barPlotter(b))
	p.NominalX(b.Groups...)
	p.X.Tick.Label = newPlot("").X.Tick.Label
	p.X.Tick.Label.Font.Size = medium
	p.X.Padding, p.X.Min, p.X.Max = 0, -0.5, float64(len(b.Groups))-0.5
	p.Y.Min, p.Y.Padding = 0, 0
	for _, s := range b.Bars {
		for _, v := range s.Values {
			if v*1.1 > p.Y.Max { // NaN is not
				p.Y.Max = v * 1.1
			}
		}
	}
	p.Y.Tick.Marker = gonum.TickerFunc(func(min, max float64) []gonum.Tick { return valueTicks(min, max, false) })
	var names []string
	var samples []thumbnail
	for _, s := range b.Bars {
		names, samples = append(names, s.Name), append(samples, thumbnail{s.Style, true})
	}
	c.legend(names, samples)
	c.sayY(b.Y)
	p.Draw(c.data)
	return c.writeTo(w)
}

// barPlotter draws the bars with their values. A bar that its group lacks
// leaves no gap.
type barPlotter Bars

func (b barPlotter) Plot(c draw.Canvas, p *gonum.Plot) {
	x, y := p.Transforms(&c)
	group := x(1) - x(0)
	width := group * 0.86 / vg.Length(len(b.Bars))
	for g := range b.Groups {
		var bars []Bar
		for _, s := range b.Bars {
			if !math.IsNaN(s.Values[g]) {
				bars = append(bars, s)
			}
		}
		left := x(float64(g)) - width*vg.Length(len(bars))/2
		for _, s := range bars {
			top := y(s.Values[g])
			right := left + width - 1
			c.FillPolygon(s.Color, []vg.Point{{X: left, Y: y(0)}, {X: right, Y: y(0)}, {X: right, Y: top}, {X: left, Y: top}})
			sty := textStyle(7.5, Black, false, draw.XLeft, draw.YCenter)
			sty.Rotation = math.Pi / 2
			c.FillText(sty, vg.Point{X: left + width/2, Y: top + 3}, number(s.Values[g]))
			left += width
		}
	}
}
