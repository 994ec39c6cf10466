// Package plot draws the benchmark's charts as SVG: on white, in colours that
// the colour-blind tell apart, with the legend beside the data.
package plot

import (
	"bytes"
	"fmt"
	"image/color"
	"io"
	"strconv"

	"golang.org/x/image/font"
	gonum "gonum.org/v1/plot"
	gofont "gonum.org/v1/plot/font"
	"gonum.org/v1/plot/font/liberation"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The colours that Okabe and Ito chose to be told apart by everybody, and darker ones,
// for what is much like another.
var (
	Black     color.Color = color.RGBA{0, 0, 0, 255}
	Slate     color.Color = color.RGBA{70, 70, 70, 255}
	Grey      color.Color = color.RGBA{120, 120, 120, 255}
	Silver    color.Color = color.RGBA{190, 190, 190, 255}
	Orange    color.Color = color.RGBA{230, 159, 0, 255}
	Sky       color.Color = color.RGBA{86, 180, 233, 255}
	Green     color.Color = color.RGBA{0, 158, 115, 255}
	Navy      color.Color = color.RGBA{0, 62, 110, 255}
	Blue      color.Color = color.RGBA{0, 114, 178, 255}
	Vermilion color.Color = color.RGBA{213, 94, 0, 255}
	Purple    color.Color = color.RGBA{204, 121, 167, 255}
	Yellow    color.Color = color.RGBA{240, 228, 66, 255}

	faint color.Color = color.RGBA{222, 222, 222, 255}
)

// A Style is how a series is drawn, alike in all charts.
type Style struct {
	Color  color.Color
	Dashed bool
	Wide   bool // to be seen under another
	Glyph  draw.GlyphDrawer
}

const (
	margin  = vg.Length(16)
	small   = vg.Length(10)
	medium  = vg.Length(11)
	large   = vg.Length(16)
	spacing = vg.Length(8)
)

// family is what text is measured in. A viewer without it takes the next of
// families, which are as wide.
const (
	family   = "font-family:Liberation Sans;"
	families = "font-family:Liberation Sans,Arimo,Arial,Helvetica,sans-serif;"
)

var fonts = gofont.NewCache(liberation.Collection())

// textStyle is text of a size, aligned as said.
func textStyle(size vg.Length, c color.Color, bold bool, x text.XAlignment, y text.YAlignment) text.Style {
	f := gofont.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
	if bold {
		f.Weight = font.WeightBold
	}
	return text.Style{Color: c, Font: f, XAlign: x, YAlign: y, Handler: text.Plain{Fonts: fonts}}
}

// A chart is a picture with title and note, into whose canvas the data go.
type chart struct {
	svg  *vgsvg.Canvas
	data draw.Canvas
}

// newChart begins one of a size in points. The note stands below the title, a
// line each.
func newChart(width, height vg.Length, title string, note ...string) *chart {
	c := &chart{svg: vgsvg.New(width, height)}
	all := draw.New(c.svg)
	all.SetColor(color.White)
	all.Fill(all.Path())
	all = draw.Crop(all, margin, -margin, margin, -margin)
	at := vg.Point{X: all.Min.X, Y: all.Max.Y}
	put := func(sty text.Style, line string) {
		all.FillText(sty, at, line)
		at.Y -= sty.Font.Size * 1.4
	}
	put(textStyle(large, Black, true, text.XLeft, text.YTop), title)
	for _, line := range note {
		put(textStyle(medium, color.Gray{70}, false, text.XLeft, text.YTop), line)
	}
	all.Max.Y = at.Y - spacing
	c.data = all
	return c
}

// writeTo writes the SVG.
func (c *chart) writeTo(w io.Writer) error {
	var buf bytes.Buffer
	if _, err := c.svg.WriteTo(&buf); err != nil {
		return fmt.Errorf("draw: %w", err)
	}
	if _, err := w.Write(bytes.ReplaceAll(buf.Bytes(), []byte(family), []byte(families))); err != nil {
		return fmt.Errorf("write SVG: %w", err)
	}
	return nil
}

// sayY writes what the y axis shows above it, where it reads more easily than
// turned beside it.
func (c *chart) sayY(what string) {
	c.data.FillText(textStyle(medium, Black, false, text.XLeft, text.YTop), vg.Point{X: c.data.Min.X, Y: c.data.Max.Y}, what)
	c.data.Max.Y -= medium + spacing
}

// newPlot returns axes in the charts' style.
func newPlot(x string) *gonum.Plot {
	p := gonum.New()
	p.X.Label.Text = x
	p.X.Label.TextStyle = textStyle(medium, Black, false, text.XCenter, text.YBottom)
	p.Y.Label.TextStyle = p.X.Label.TextStyle
	p.X.Label.Padding = 4
	p.X.Tick.Label = textStyle(small, Black, false, text.XCenter, text.YTop)
	p.Y.Tick.Label = textStyle(small, Black, false, text.XRight, text.YCenter)
	p.X.Padding, p.Y.Padding = 4, 4
	for _, a := range []*gonum.Axis{&p.X, &p.Y} {
		a.LineStyle.Color, a.Tick.LineStyle.Color = Grey, Grey
	}
	return p
}

// thumbnail is a sample of a series for the legend.
type thumbnail struct {
	Style
	bar bool
}

func (t thumbnail) Thumbnail(c *draw.Canvas) {
	y := c.Center().Y
	if t.bar {
		c.FillPolygon(t.Color, []vg.Point{
			{X: c.Min.X + 8, Y: y - 5}, {X: c.Max.X, Y: y - 5}, {X: c.Max.X, Y: y + 5}, {X: c.Min.X + 8, Y: y + 5},
		})
		return
	}
	c.StrokeLine2(t.line(), c.Min.X, y, c.Max.X, y)
	c.DrawGlyph(t.glyph(), c.Center())
}

func (s Style) line() draw.LineStyle {
	l := draw.LineStyle{Color: s.Color, Width: 2}
	if s.Wide {
		l.Width = 3.5
	}
	if s.Dashed {
		l.Dashes = []vg.Length{5, 3}
	}
	return l
}

func (s Style) glyph() draw.GlyphStyle {
	g := draw.GlyphStyle{Color: s.Color, Radius: 3.5, Shape: s.Glyph}
	if s.Wide {
		g.Radius = 4.5
	}
	return g
}

// legend draws one on the right of the data.
func (c *chart) legend(names []string, samples []thumbnail) {
	l := gonum.NewLegend()
	l.TextStyle = textStyle(medium, Black, false, text.XLeft, text.YBottom)
	l.Top, l.Left, l.ThumbnailWidth, l.Padding = true, true, 28, 7
	for i, n := range names {
		l.Add(n, samples[i])
	}
	r := l.Rectangle(c.data)
	width := r.Max.X - r.Min.X + 4
	l.Draw(draw.Crop(c.data, c.data.Max.X-c.data.Min.X-width, 0, 0, 0))
	c.data = draw.Crop(c.data, 0, -width-2*spacing, 0, 0)
}

// number writes one with commas between thousands.
func number(v float64) string {
	s := strconv.FormatFloat(v, 'f', -1, 64)
	for i := len(s) - 3; i > 0 && v >= 1000; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
