package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/xvlan/xvlan/bench/measure"
	"github.com/xvlan/xvlan/loader"
)

func (a *app) printBench(res *benchResult) error {
	if res.survey != nil {
		if err := printSurvey(a.out, res.survey); err != nil {
			return err
		}
	}
	if res.unmeasured != "" {
		fmt.Fprintf(a.out, "Not measured: %s.\n\n", res.unmeasured)
	}
	if len(res.forward) > 0 {
		if err := printForward(a.out, res); err != nil {
			return err
		}
	}
	if len(res.programs) > 0 {
		if err := printPrograms(a.out, res); err != nil {
			return err
		}
	}
	if res.busy() {
		fmt.Fprint(a.out, "The machine was busy meanwhile, and most figures spread by more than a half: take these as\n"+
			"rough ones, or measure again when it is quiet, or for longer (--time).\n\n")
	}
	if res.survey != nil {
		printRecommendation(a.out, res.survey)
	}
	return nil
}

// busy tells that what was measured is not to be relied on.
func (res *benchResult) busy() bool {
	var all, wide int
	count := func(s measure.Spread) {
		all++
		if s.Most > 1.5*s.Least {
			wide++
		}
	}
	for _, c := range res.forward {
		count(c.Cost)
	}
	for _, c := range res.programs {
		count(c.NS)
	}
	return 2*wide > all
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// or says what there is, or that there is nothing.
func or(list []string, nothing string) string {
	if len(list) == 0 {
		return nothing
	}
	return strings.Join(list, ", ")
}

func printSurvey(out io.Writer, s *loader.Survey) error {
	state := "down"
	if s.Up && s.Carrier {
		state = "up"
	} else if s.Up {
		state = "up, no carrier"
	}
	var offloads []string
	for _, o := range s.Offloads {
		offloads = append(offloads, o.Name+" "+onOff(o.On))
	}
	var others []string
	if s.XDP != nil {
		others = append(others, fmt.Sprintf("XDP, %s: %s", s.XDP.Mode, s.XDP.Name))
	}
	if len(s.Ingress) > 0 {
		others = append(others, "tc ingress: "+strings.Join(s.Ingress, ", "))
	}
	if s.Master != "" {
		others = append(others, fmt.Sprintf("port of %s (%s)", s.Master, s.MasterKind))
	}
	for _, c := range s.Children {
		where := ""
		if c.Netns != "" {
			where = " in netns " + c.Netns
		}
		others = append(others, c.Kind+" "+c.Name+where)
	}
	if s.Links > 0 {
		others = append(others, fmt.Sprintf("sub-interfaces of xvlan: %d", s.Links))
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "parent\t%s, driver %s, %s\n", s.Name, or(strings.Fields(s.Driver), "unknown"), state)
	fmt.Fprintf(w, "mtu\t%d\n", s.MTU)
	fmt.Fprintf(w, "queues\t%d in, %d out\n", s.RXQueues, s.TXQueues)
	fmt.Fprintf(w, "offloads\t%s\n", or(offloads, "none told"))
	fmt.Fprintf(w, "attached\t%s\n", or(others, "nothing"))
	fmt.Fprintf(w, "rung\t%s: %s\n", s.Rung, s.Rung.Reason)
	fmt.Fprintln(w)
	return w.Flush()
}

// spread prints the median, and how far the rounds spread.
type spread measure.Spread

func (s spread) String() string {
	digits := 0
	if s.Median < 100 {
		digits = 1
	}
	return fmt.Sprintf("%.*f (%.*f..%.*f)", digits, s.Median, digits, s.Least, digits, s.Most)
}

// printForward prints a line for each thing that is compared of a kind, with the
// rungs beside each other.
func printForward(out io.Writer, res *benchResult) error {
	type row struct{ kind, what, unit string }
	var (
		rows  []row
		cells = map[row]map[string]measure.Spread{}
	)
	for _, c := range res.forward {
		r := row{c.Kind, c.What, c.Unit}
		if cells[r] == nil {
			rows, cells[r] = append(rows, r), map[string]measure.Spread{}
		}
		cells[r][c.Rung] = c.Cost
	}
	fmt.Fprintf(out, "Sub-interfaces of the kernel's drivers and xvlan's, on Linux %s, with a veth pair in place of\n"+
		"a NIC: ns of CPU time, µs of time, median (least..most); x is how many times the kernel's:\n\n", res.kernel)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "TYPE\tWHAT\tUNIT\tKERNEL\tXVLAN TC\tXVLAN XDP")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s", r.kind, r.what, r.unit)
		kernel, compared := cells[r]["kernel"]
		for _, rung := range []string{"kernel", "tc", "xdp"} {
			text := "-"
			if s, ok := cells[r][rung]; ok {
				text = spread(s).String()
				if compared && rung != "kernel" {
					text += fmt.Sprintf(" x%.2f", s.Median/kernel.Median)
				}
			}
			fmt.Fprintf(w, "\t%s", text)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
	return w.Flush()
}

// printPrograms prints a line a frame and a column a number of sub-interfaces.
func printPrograms(out io.Writer, res *benchResult) error {
	type row struct{ frame, rung string }
	var (
		rows  []row
		links []int
		cells = map[row]map[int]measure.Spread{}
	)
	for _, c := range res.programs {
		r := row{c.Frame, c.Rung}
		if cells[r] == nil {
			rows, cells[r] = append(rows, r), map[int]measure.Spread{}
		}
		cells[r][c.Links] = c.NS
		if c.Links > 0 && !slices.Contains(links, c.Links) {
			links = append(links, c.Links)
		}
	}
	fmt.Fprintf(out, "What a 60-byte frame takes in xvlan's programs, in ns on Linux %s, median (least..most),\n"+
		"by number of sub-interfaces; an empty program's time is in all:\n\n", res.kernel)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "FRAME\tPROGRAM")
	for _, n := range links {
		fmt.Fprintf(w, "\t%d", n)
	}
	fmt.Fprintln(w)
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s", r.frame, r.rung)
		for _, n := range links {
			s, ok := cells[r][n]
			if !ok {
				s, ok = cells[r][0]
			}
			text := "-"
			if ok {
				text = spread(s).String()
			}
			fmt.Fprintf(w, "\t%s", text)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
	return w.Flush()
}

// firstLink is what to type for the first sub-interface of a parent; "" where
// there are some.
func firstLink(s *loader.Survey, r loader.Recommendation) string {
	if s.Links > 0 {
		return ""
	}
	datapath := ""
	if r.Asked {
		datapath = " --datapath " + r.Rung.String()
	}
	return fmt.Sprintf("xvlan link add link %s name c1%s type macvlan mode bridge", s.Name, datapath)
}

func printRecommendation(out io.Writer, s *loader.Survey) {
	r := s.Recommend()
	fmt.Fprintf(out, "Recommended: rung %s (%s)\n", r.Rung, r.Reason)
	if line := firstLink(s, r); line != "" {
		fmt.Fprintf(out, "\n    %s\n", line)
	}
	if len(r.Warnings) == 0 {
		return
	}
	fmt.Fprintf(out, "\nMind of %s:\n\n", s.Name)
	for _, text := range r.Warnings {
		fmt.Fprintf(out, "  - %s\n", text)
	}
}

// The JSON form has the key names of `ip -j` where there are any.
type benchJSON struct {
	Kernel         string                `json:"kernel"`
	Unmeasured     string                `json:"unmeasured,omitempty"` // why
	Parent         *surveyJSON           `json:"parent,omitempty"`
	Forward        []measure.ForwardCost `json:"forward"`
	Programs       []measure.ProgramCost `json:"programs"`
	Busy           bool                  `json:"busy"`
	Recommendation *recommendationJSON   `json:"recommendation,omitempty"`
}

type surveyJSON struct {
	Name     string          `json:"ifname"`
	Kind     string          `json:"info_kind"`
	Driver   string          `json:"driver"`
	Up       bool            `json:"up"`
	Carrier  bool            `json:"carrier"`
	MTU      int             `json:"mtu"`
	RXQueues int             `json:"num_rx_queues"`
	TXQueues int             `json:"num_tx_queues"`
	Offloads map[string]bool `json:"offloads"`
	XDP      *xdpJSON        `json:"xdp,omitempty"`
	Ingress  []string        `json:"tc_ingress"`
	Master   string          `json:"master,omitempty"`
	Children []childJSON     `json:"children"`
	Links    int             `json:"links"`
	Datapath rungJSON        `json:"datapath"`
	Tried    bool            `json:"xdp_tried"`
}

type xdpJSON struct {
	Mode string `json:"mode"`
	Name string `json:"name"`
}

type childJSON struct {
	Name  string `json:"ifname"`
	Kind  string `json:"info_kind"`
	Netns string `json:"netns,omitempty"`
}

type recommendationJSON struct {
	rungJSON
	Command  string   `json:"command,omitempty"`
	Warnings []string `json:"warnings"`
}

func (res *benchResult) json() benchJSON {
	j := benchJSON{
		Kernel: res.kernel, Unmeasured: res.unmeasured, Busy: res.busy(),
		Forward: append([]measure.ForwardCost{}, res.forward...), Programs: append([]measure.ProgramCost{}, res.programs...),
	}
	s := res.survey
	if s == nil {
		return j
	}
	j.Parent = &surveyJSON{
		Name: s.Name, Kind: s.Kind, Driver: s.Driver, Up: s.Up, Carrier: s.Carrier, MTU: s.MTU, RXQueues: s.RXQueues, TXQueues: s.TXQueues,
		Offloads: map[string]bool{}, Ingress: append([]string{}, s.Ingress...), Master: s.Master, Children: []childJSON{}, Links: s.Links,
		Datapath: rungJSON{s.Rung.String(), s.Rung.Reason}, Tried: s.Tried,
	}
	for _, o := range s.Offloads {
		j.Parent.Offloads[o.Name] = o.On
	}
	if s.XDP != nil {
		j.Parent.XDP = &xdpJSON{s.XDP.Mode, s.XDP.Name}
	}
	for _, c := range s.Children {
		j.Parent.Children = append(j.Parent.Children, childJSON(c))
	}
	r := s.Recommend()
	j.Recommendation = &recommendationJSON{rungJSON{r.Rung.String(), r.Reason}, firstLink(s, r), append([]string{}, r.Warnings...)}
	return j
}
