package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// topRow is a sub-interface with its rates, a second.
type topRow struct {
	loader.Flow
	known bool // there is a reading before
	rates topRates
}

type topRates struct{ inPackets, inBits, outPackets, outBits, inDrops, outDrops float64 }

func newTopRow(f loader.Flow) topRow {
	r := topRow{Flow: f, known: f.Since > 0}
	if !r.known {
		return r
	}
	rate := func(n uint64) float64 { return float64(n) / f.Since.Seconds() }
	rx, tx := f.Delta[maps.RX], f.Delta[maps.TX]
	r.rates = topRates{rate(rx.Packets), rate(8 * rx.Bytes), rate(tx.Packets), rate(8 * tx.Bytes),
		rate(f.Delta.DroppedRX()), rate(f.Delta.DroppedTX())}
	return r
}

func (t *topRates) drops() float64 { return t.inDrops + t.outDrops }

func (t *topRates) add(o topRates) {
	t.inPackets += o.inPackets
	t.inBits += o.inBits
	t.outPackets += o.outPackets
	t.outBits += o.outBits
	t.inDrops += o.inDrops
	t.outDrops += o.outDrops
}

// topColumn is what can be sorted by, and is shown if it has a title: a text, or
// a rate, whose greatest is sorted first.
type topColumn struct {
	key, title string
	text       func(*topRow) string
	rate       func(*topRow) float64
}

// The first are what a narrow window is left with.
var topColumns = []topColumn{
	{key: "name", title: "NAME", text: func(r *topRow) string { return r.Name }},
	{key: "parent", title: "PARENT", text: func(r *topRow) string { return r.Parent }},
	{key: "in-packets", title: "IN PKT/S", rate: func(r *topRow) float64 { return r.rates.inPackets }},
	{key: "in-bits", title: "IN BIT/S", rate: func(r *topRow) float64 { return r.rates.inBits }},
	{key: "out-packets", title: "OUT PKT/S", rate: func(r *topRow) float64 { return r.rates.outPackets }},
	{key: "out-bits", title: "OUT BIT/S", rate: func(r *topRow) float64 { return r.rates.outBits }},
	{key: "bits", rate: func(r *topRow) float64 { return r.rates.inBits + r.rates.outBits }},
	{key: "drops", title: "DROP/S", rate: func(r *topRow) float64 { return r.rates.drops() }},
	{key: "rung", title: "RUNG", text: func(r *topRow) string { return r.Rung.String() }},
	{key: "mode", title: "MODE", text: topMode},
	{key: "state", title: "STATE", text: func(r *topRow) string { return r.OperState }},
	{key: "netns", title: "NETNS", text: func(r *topRow) string { return r.Netns }},
}

func topMode(r *topRow) string {
	words := []string{r.Kind.String(), r.Mode.String()}
	if r.Kind == maps.Ipvlan {
		words = append(words, r.Class.String())
	}
	if r.VLAN != (loader.VLAN{}) {
		words = append(words, r.VLAN.String())
	}
	return strings.Join(words, " ")
}

func topKeys() []string {
	var keys []string
	for _, c := range topColumns {
		keys = append(keys, c.key)
	}
	return keys
}

// topView is what is shown of one look.
type topView struct {
	spec  topSpec
	time  time.Time
	rows  []topRow // those asked for, sorted
	of    int      // so many there are
	total topRates // of the rows
}

func newTopView(spec topSpec, flows []loader.Flow, now time.Time) *topView {
	v := &topView{spec: spec, time: now, of: len(flows)}
	for _, f := range flows {
		if spec.shows(&f.Link) {
			row := newTopRow(f)
			v.rows = append(v.rows, row)
			v.total.add(row.rates)
		}
	}
	by := topColumns[slices.Index(topKeys(), spec.sort)]
	slices.SortFunc(v.rows, func(a, b topRow) int {
		var order int
		if by.rate != nil {
			order = cmp.Compare(by.rate(&b), by.rate(&a))
		} else {
			order = strings.Compare(by.text(&a), by.text(&b))
		}
		if spec.turned {
			order = -order
		}
		return cmp.Or(order, strings.Compare(a.Parent, b.Parent), strings.Compare(a.Name, b.Name), strings.Compare(a.Netns, b.Netns))
	})
	return v
}

func (s *topSpec) shows(l *loader.Link) bool {
	if s.parent != "" && l.Parent != s.parent || s.state != "" && (l.OperState == "UP") != (s.state == "up") {
		return false
	}
	ok, err := nameMatches(s.name, l.Name)
	return ok || err != nil // a pattern half typed
}

// head says what is shown, in two lines.
func (v *topView) head() [2]string {
	what := fmt.Sprintf("xvlan top - %s, %d of %d sub-interfaces", v.time.Format(time.TimeOnly), len(v.rows), v.of)
	if v.spec.parent != "" {
		what += ", parent " + v.spec.parent
	}
	if v.spec.name != "" {
		what += ", name " + v.spec.name
	}
	if v.spec.state != "" {
		what += ", " + v.spec.state
	}
	what += ", by " + v.spec.sort
	if v.spec.turned {
		what += ", reverse"
	}
	return [2]string{printable(what), fmt.Sprintf("in %s pkt/s %s bit/s, out %s pkt/s %s bit/s, dropped %s pkt/s",
		short(v.total.inPackets), short(v.total.inBits), short(v.total.outPackets), short(v.total.outBits), short(v.total.drops()))}
}

// table lays out the titles and the rows from..to.
func (v *topView) table(from, to int) (titles string, rows []string) {
	cells := [][]string{nil}
	var right []bool
	for _, c := range topColumns {
		if c.title != "" {
			cells[0] = append(cells[0], c.title)
			right = append(right, c.rate != nil)
		}
	}
	for i := range v.rows[from:to] {
		cells = append(cells, v.rows[from+i].cells())
	}
	widths := make([]int, len(right))
	for _, line := range cells {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, line := range cells {
		var b strings.Builder
		for i, cell := range line {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if right[i] {
				b.WriteString(pad + cell + "  ")
			} else {
				b.WriteString(cell + pad + "  ")
			}
		}
		rows = append(rows, strings.TrimRight(b.String(), " "))
	}
	return rows[0], rows[1:]
}

func (r *topRow) cells() []string {
	var cells []string
	for _, c := range topColumns {
		switch {
		case c.title == "":
		case c.rate == nil:
			cells = append(cells, cmp.Or(printable(c.text(r)), "-"))
		case !r.known:
			cells = append(cells, "-")
		default:
			cells = append(cells, short(c.rate(r)))
		}
	}
	return cells
}

// printable keeps what a container has put into a device's name from being
// obeyed by a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return '?'
	}, s)
}

// short writes a rate in at most five characters.
func short(v float64) string {
	unit := ""
	for _, next := range []string{"k", "M", "G", "T", "P"} {
		if v < 999.5 {
			break
		}
		v, unit = v/1000, next
	}
	switch {
	case unit == "" && (v == float64(int(v)) || v >= 9.95), v >= 99.95:
		return fmt.Sprintf("%.0f%s", v, unit)
	case v >= 9.95 || unit == "":
		return fmt.Sprintf("%.1f%s", v, unit)
	}
	return fmt.Sprintf("%.2f%s", v, unit)
}

// printTop prints one look, with a blank line to the one before.
func (a *app) printTop(v *topView, behind bool) error {
	var b strings.Builder
	if behind {
		b.WriteString("\n")
	}
	head := v.head()
	titles, rows := v.table(0, len(v.rows))
	for _, line := range append([]string{head[0], head[1], titles}, rows...) {
		b.WriteString(line + "\n")
	}
	_, err := fmt.Fprint(a.out, b.String())
	return err
}

// The JSON form has the names of `link show -s`, and each counter's rate.
type topJSON struct {
	Time  time.Time     `json:"time"`
	Links []topLinkJSON `json:"links"`
}

type topLinkJSON struct {
	Index     int         `json:"ifindex"`
	Name      string      `json:"ifname"`
	Parent    string      `json:"link"`
	Netns     string      `json:"netns,omitempty"`
	OperState string      `json:"operstate"`
	Info      infoJSON    `json:"linkinfo"`
	Datapath  rungJSON    `json:"datapath"`
	Interval  *float64    `json:"interval"` // s; null, as all rates, where no reading is before
	RX        topFlowJSON `json:"rx"`
	TX        topFlowJSON `json:"tx"`
}

type topFlowJSON struct {
	directionJSON
	PacketRate *float64 `json:"packets_per_second"`
	BitRate    *float64 `json:"bits_per_second"`
	DropRate   *float64 `json:"dropped_per_second"`
}

func (a *app) printTopJSON(v *topView) error {
	j := topJSON{Time: v.time, Links: []topLinkJSON{}}
	for i := range v.rows {
		r := &v.rows[i]
		l := topLinkJSON{Index: r.Index, Name: r.Name, Parent: r.Parent, Netns: r.Netns, OperState: r.OperState,
			Info: linkInfo(r.Link), Datapath: rungJSON{r.Rung.String(), r.Rung.Reason}}
		stats := statsOf(&r.Stats)
		l.RX.directionJSON, l.TX.directionJSON = stats.RX, stats.TX
		if r.known {
			interval := r.Since.Seconds()
			l.Interval = &interval
			l.RX.PacketRate, l.RX.BitRate, l.RX.DropRate = &r.rates.inPackets, &r.rates.inBits, &r.rates.inDrops
			l.TX.PacketRate, l.TX.BitRate, l.TX.DropRate = &r.rates.outPackets, &r.rates.outBits, &r.rates.outDrops
		}
		j.Links = append(j.Links, l)
	}
	return json.NewEncoder(a.out).Encode(j)
}
