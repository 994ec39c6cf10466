package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

const (
	monitorSnap = 192  // enough of a frame to say what it is
	monitorRate = 1000 // sightings a second and parent, unless told otherwise
	clockFormat = "2006-01-02T15:04:05.000000"
)

// Verdicts by the way that the frame was going: to sub-interfaces or the host, or
// from sub-interfaces. Those that are no frame's fate are in neither.
var (
	inVerdicts  = []maps.Verdict{maps.Pass, maps.RX, maps.DropUnknown, maps.DropFanout, maps.DropReturned}
	outVerdicts = append([]maps.Verdict{maps.TX}, slices.DeleteFunc(maps.SentDrops(), func(v maps.Verdict) bool { return v == maps.DropRingTX })...)
)

func noDrop(v maps.Verdict) bool { return !v.IsDrop() }

// way says which way a frame was going.
func way(v maps.Verdict) string {
	if slices.Contains(inVerdicts, v) {
		return "in"
	}
	return "out"
}

func (a *app) monitorCmd() *cobra.Command {
	var rate uint32
	cmd := &cobra.Command{
		Use:   "monitor [[dev] PARENT|NAME [link PARENT] [netns NETNS]] [drops] [learned] [links]",
		Short: "Tell what is dropped, learned, made, changed and removed, as it happens",
		Long: `Prints a line for each frame that the programs drop, with the reason and what
frame it was; for each address that is learned, or not learned since somebody
else has it; and for each change of a parent or a sub-interface. Without drops,
learned or links it is all of them. It goes on until it is interrupted, or until
what was named is gone.

What it sees is limited by --rate where it happens, so that a flood of drops is
not made worse by being watched; how many are not shown is told each second.
Meanwhile frames that come in take the long way through the programs.`,
		Example: `  xvlan monitor
  xvlan monitor eth0 drops
  xvlan -j monitor c1 learned links`,
		RunE: func(_ *cobra.Command, args []string) error {
			spec, err := parseMonitor(&words{left: args})
			if err != nil {
				return err
			}
			spec.Rate, spec.Snap = rate, monitorSnap
			return a.monitor(spec)
		},
	}
	a.completeWords(cmd, "monitor")
	cmd.Flags().Uint32Var(&rate, "rate", monitorRate, "frames shown a second, of each parent; 0 for all")
	return cmd
}

// parseMonitor reads a selector, and what is to be told of it wherever that
// stands.
func parseMonitor(w *words) (spec loader.MonitorSpec, err error) {
	all := true
	w.left = slices.DeleteFunc(slices.Clone(w.left), func(word string) bool {
		switch word {
		case "drops":
			spec.Verdicts = append(spec.Verdicts, slices.DeleteFunc(maps.Verdicts(), noDrop)...)
		case "learned":
			spec.Verdicts = append(spec.Verdicts, watch.EventLearned, maps.LearnDup)
		case "links":
			spec.Changes = true
		default:
			return false
		}
		all = false
		return true
	})
	if all {
		w.left = append(w.left, "drops", "learned", "links")
		return parseMonitor(w)
	}
	if len(w.left) > 0 {
		spec.Target, err = parseSelector(w, nil)
	}
	return spec, err
}

func (a *app) monitor(spec loader.MonitorSpec) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	show := a.showEvent
	if a.json {
		show = a.showEventJSON
	}
	return a.with(func(h *loader.Host) error { return h.Monitor(ctx, spec, show) })
}

// place names where something happened: c1@eth0, or eth0.
func place(s *loader.Sighting) string {
	if s.ID == 0 {
		return s.ParentName
	}
	return s.Name + "@" + s.ParentName
}

// showEvent prints an event in a line; a change of nothing that is shown in none.
func (a *app) showEvent(e loader.Event) error {
	var what string
	switch {
	case e.Sighting != nil:
		what = place(e.Sighting) + " " + sightingLine(e.Sighting)
	case e.Missed != nil:
		what = missedLine(*e.Missed)
	case e.Link != nil:
		l := current(e.Link)
		what = changeLine(l.Name+"@"+l.Parent, e.Link.Was, e.Link.Is, linkTraits)
	case e.Parent != nil:
		what = changeLine(current(e.Parent).Name, e.Parent.Was, e.Parent.Is, parentTraits)
	}
	if what == "" {
		return nil
	}
	_, err := fmt.Fprintf(a.out, "%s %s\n", e.Time.Format(clockFormat), printable(what))
	return err
}

func sightingLine(s *loader.Sighting) string {
	switch s.Verdict {
	case watch.EventLearned:
		return "learned " + taught(s)
	case maps.LearnDup:
		return fmt.Sprintf("%s %s: somebody else has it", s.Verdict, taught(s))
	}
	return fmt.Sprintf("%s %s %d bytes %s", s.Verdict, way(s.Verdict), s.Len, watch.Describe(s.Frame))
}

func taught(s *loader.Sighting) string {
	addr, ok := watch.Teaches(s.Frame)
	if !ok {
		return "an address by " + watch.Describe(s.Frame)
	}
	return addr.String()
}

func missedLine(t watch.Tally) string {
	var parts []string
	if t.Withheld > 0 {
		parts = append(parts, thousands(t.Withheld)+" more not shown: over the rate")
	}
	if t.Lost > 0 {
		parts = append(parts, thousands(t.Lost)+" more lost: they came too quickly")
	}
	return strings.Join(parts, ", ")
}

// thousands writes 12345 as 12,345.
func thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// current is what there is, or was last.
func current[T any](c *loader.Change[T]) *T {
	if c.Is != nil {
		return c.Is
	}
	return c.Was
}

// A trait is something that is shown of a parent or a sub-interface; an empty one is
// not shown when it is new.
type trait struct{ key, value string }

func linkTraits(l *loader.Link) []trait {
	return []trait{
		{"name", l.Name},
		{"type", l.Kind.String()}, {"mode", l.Mode.String() + modeOptions(*l)}, {"datapath", l.Rung.String()},
		{"netns", l.Netns}, {"address", l.MAC.String()}, {"mtu", strconv.Itoa(l.MTU)}, {"state", l.OperState},
		{"flags", "<" + strings.Join(flags(l.Flags), ",") + ">"}, {"delivery", delivery(l.Place)},
		{"host", onOff(l.Host)}, {"via-host", strings.Join(stringsOf(l.Via), " ")}, {"dhcp", onOff(!l.NoDHCP)},
		{"guard", guardWord(l.Guard)}, {"vlan", l.VLAN.String()},
	}
}

// guardWord is a guard with its budget, "" for neither.
func guardWord(g maps.Guard) string {
	if !g.Active() {
		return ""
	}
	return g.String() + " bcrate " + rateWord(g.Rate)
}

func parentTraits(p *loader.ParentInfo) []trait {
	return []trait{
		{"name", p.Name}, {"gone", yes(p.Gone())}, {"datapath", p.Rung.String()}, {"unknown", unknown(p.UnknownDrop)},
		{"address", p.MAC.String()}, {"mtu", strconv.Itoa(p.MTU)}, {"links", strconv.Itoa(p.Links)},
	}
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return ""
}

// changed lists the traits that differ, as was and is.
func changed[T any](was, is *T, traits func(*T) []trait) (differ [][2]trait) {
	old, now := traits(was), traits(is)
	for i := range old {
		if old[i] != now[i] {
			differ = append(differ, [2]trait{old[i], now[i]})
		}
	}
	return differ
}

func changeLine[T any](name string, was, is *T, traits func(*T) []trait) string {
	if is == nil {
		return name + " removed"
	}
	line := name
	if was == nil {
		line += " made:"
		for _, t := range traits(is)[1:] {
			if t.value != "" {
				line += " " + t.key + " " + t.value
			}
		}
		return line
	}
	differ := changed(was, is, traits)
	if len(differ) == 0 {
		return ""
	}
	line += " changed:"
	for i, d := range differ {
		if i > 0 {
			line += ","
		}
		line += fmt.Sprintf(" %s %s -> %s", d[0].key, orNone(d[0].value), orNone(d[1].value))
	}
	return line
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// eventJSON is an event in a line of JSON.
type eventJSON struct {
	Time   string `json:"time"`
	Event  string `json:"event"` // drop, learned, learn_dup, made, changed, removed, missed; of other frames that are captured the verdict
	Parent string `json:"link,omitempty"`
	Name   string `json:"ifname,omitempty"` // none where it is about the parent itself
	ID     uint32 `json:"id,omitempty"`

	Verdict   string `json:"verdict,omitempty"`
	Direction string `json:"direction,omitempty"`
	Length    int    `json:"length,omitempty"`
	Type      string `json:"packet_type,omitempty"`
	Addr      string `json:"local,omitempty"` // learned, or not
	Summary   string `json:"summary,omitempty"`
	Frame     string `json:"frame,omitempty"` // its first bytes, in hex

	Changes map[string][2]string `json:"changes,omitempty"` // by name: what it was, what it is
	Traits  map[string]string    `json:"traits,omitempty"`  // of what was made

	Withheld uint64 `json:"withheld,omitempty"`
	Lost     uint64 `json:"lost,omitempty"`
}

var packetTypes = map[uint8]string{
	unix.PACKET_HOST: "host", unix.PACKET_BROADCAST: "broadcast", unix.PACKET_MULTICAST: "multicast",
	unix.PACKET_OTHERHOST: "otherhost", unix.PACKET_OUTGOING: "outgoing",
}

func (a *app) showEventJSON(e loader.Event) error {
	j := eventJSON{Time: e.Time.Format(time.RFC3339Nano)}
	switch {
	case e.Sighting != nil:
		j.sighting(e.Sighting)
	case e.Missed != nil:
		j.Event, j.Withheld, j.Lost = "missed", e.Missed.Withheld, e.Missed.Lost
	case e.Link != nil:
		l := current(e.Link)
		j.Name, j.Parent, j.ID = l.Name, l.Parent, uint32(l.ID)
		fillChange(&j, e.Link, linkTraits)
	case e.Parent != nil:
		j.Parent = current(e.Parent).Name
		fillChange(&j, e.Parent, parentTraits)
	}
	if j.Event == "" {
		return nil
	}
	return a.printLine(j)
}

// printLine prints JSON in a line.
func (a *app) printLine(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (j *eventJSON) sighting(s *loader.Sighting) {
	j.Parent, j.Name, j.ID = s.ParentName, s.Name, uint32(s.ID)
	j.Length, j.Type, j.Summary, j.Frame = s.Len, packetTypes[s.Type], watch.Describe(s.Frame), hex.EncodeToString(s.Frame)
	switch {
	case s.Verdict == watch.EventLearned:
		j.Event, j.Addr = "learned", taught(s)
	case s.Verdict == maps.LearnDup:
		j.Event, j.Addr = s.Verdict.String(), taught(s)
	default:
		j.Event, j.Verdict, j.Direction = s.Verdict.String(), s.Verdict.String(), way(s.Verdict)
		if s.Verdict.IsDrop() {
			j.Event = "drop"
		}
	}
}

func fillChange[T any](j *eventJSON, c *loader.Change[T], traits func(*T) []trait) {
	switch {
	case c.Is == nil:
		j.Event = "removed"
	case c.Was == nil:
		j.Event, j.Traits = "made", map[string]string{}
		for _, t := range traits(c.Is)[1:] {
			if t.value != "" {
				j.Traits[t.key] = t.value
			}
		}
	default:
		for _, d := range changed(c.Was, c.Is, traits) {
			if j.Changes == nil {
				j.Event, j.Changes = "changed", map[string][2]string{}
			}
			j.Changes[d[0].key] = [2]string{d[0].value, d[1].value}
		}
	}
}
