package plot

import (
	"fmt"
	"image/color"
	"io"
	"math"

	gonum "gonum.org/v1/plot"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// A Range is a ratio with its spread.
type Range struct {
	Name             string
	Median, Min, Max float64
	Goal             float64 // 0: none
	Worse            bool
}

// A Group is ranges under one heading.
type Group struct {
	Heading string
	Ranges  []Range
}

// Ranges is a chart of ratios, each a dot on a line from the least to the most,
// with its figures beside it.
type Ranges struct {
	Title    string
	Note     []string
	X        string
	Low, Top float64 // what the axis shows; what is beyond is an arrow at its end
	Groups   []Group
}

const (
	rowHeight  = vg.Length(16)
	axisWidth  = vg.Length(480)
	valueWidth = vg.Length(190)
	lift       = vg.Length(1.5) // brings the middle of small letters to a mark's
)

var (
	headingStyle = textStyle(small, Black, true, text.XRight, text.YCenter)
	nameStyle    = textStyle(small, Black, false, text.XRight, text.YCenter)
)

// WriteSVG draws it.
func (r Ranges) WriteSVG(w io.Writer) error {
	rows, names := 0, vg.Length(0)
	for _, g := range r.Groups {
		rows += len(g.Ranges) + 2 // the heading, and a gap
		for _, one := range g.Ranges {
			names = max(names, nameStyle.Width(one.Name)+2*spacing)
		}
	}
	c := newChart(2*margin+names+axisWidth+valueWidth, rowHeight*vg.Length(rows+6), r.Title, r.Note...)
	p := newPlot(r.X)
	p.HideY()
	p.X.Scale = gonum.LogScale{}
	p.X.Min, p.X.Max, p.X.Padding = r.Low, r.Top, 0
	p.Y.Min, p.Y.Max, p.Y.Padding = 0, float64(rows), 0
	var ticks []gonum.Tick
	for _, v := range []float64{0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 5, 10, 100} {
		if v >= r.Low && v <= r.Top {
			ticks = append(ticks, gonum.Tick{Value: v, Label: number(v)})
		}
	}
	p.X.Tick.Marker = gonum.ConstantTicks(ticks)
	p.Add(rangePlotter(r))
	p.Draw(draw.Crop(c.data, names, -valueWidth, 0, 0))
	return c.writeTo(w)
}

type rangePlotter Ranges

func (r rangePlotter) Plot(c draw.Canvas, p *gonum.Plot) {
	x, y := p.Transforms(&c)
	for _, t := range p.X.Tick.Marker.Ticks(r.Low, r.Top) {
		c.StrokeLine2(draw.LineStyle{Color: faint, Width: 0.5}, x(t.Value), c.Min.Y, x(t.Value), c.Max.Y)
	}
	c.StrokeLine2(draw.LineStyle{Color: Black, Width: 1.2}, x(1), c.Min.Y, x(1), c.Max.Y)
	row := p.Y.Max
	for _, g := range r.Groups {
		row--
		c.FillText(headingStyle, vg.Point{X: c.Min.X - 1.5*spacing, Y: y(row) + lift}, g.Heading)
		for _, one := range g.Ranges {
			row--
			at := y(row)
			c.FillText(nameStyle, vg.Point{X: c.Min.X - 1.5*spacing, Y: at + lift}, one.Name)
			r.mark(c, x, at, one)
		}
		row--
	}
}

// mark draws one range with its figures. A square is for what loses, besides
// its colour.
func (r rangePlotter) mark(c draw.Canvas, x func(float64) vg.Length, at vg.Length, one Range) {
	var shape draw.GlyphDrawer = draw.CircleGlyph{}
	hue := Blue
	if one.Worse {
		shape, hue = draw.BoxGlyph{}, Vermilion
	}
	clamp := func(v float64) float64 { return math.Min(math.Max(v, r.Low), r.Top) }
	if one.Goal >= r.Low && one.Goal <= r.Top {
		g := x(one.Goal)
		c.StrokeLine2(draw.LineStyle{Color: Green, Width: 2.5}, g, at-6, g, at+6)
	}
	line := draw.LineStyle{Color: hue, Width: 2}
	c.StrokeLine2(line, x(clamp(one.Min)), at, x(clamp(one.Max)), at)
	switch {
	case one.Median > r.Top:
		arrow(c, hue, x(r.Top), at, 1)
	case one.Median < r.Low:
		arrow(c, hue, x(r.Low), at, -1)
	default:
		c.DrawGlyphNoClip(draw.GlyphStyle{Color: hue, Radius: 4, Shape: shape}, vg.Point{X: x(one.Median), Y: at})
	}
	say := func(x vg.Length, hue color.Color, bold bool, what string) {
		c.FillText(textStyle(small, hue, bold, text.XLeft, text.YCenter), vg.Point{X: c.Max.X + x, Y: at + lift}, what)
	}
	say(16, hue, true, figure(one.Median))
	say(50, color.Gray{90}, false, fmt.Sprintf("%s..%s", figure(one.Min), figure(one.Max)))
	if one.Goal != 0 {
		say(120, Green, false, "goal "+figure(one.Goal))
	}
}

// figure writes a ratio with two digits behind the point, large ones without.
func figure(v float64) string {
	if v >= 10 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// arrow points out of the axis, to the right (1) or to the left (-1).
func arrow(c draw.Canvas, hue color.Color, x, y, way vg.Length) {
	c.FillPolygon(hue, []vg.Point{{X: x, Y: y - 4.5}, {X: x + 8*way, Y: y}, {X: x, Y: y + 4.5}})
}
