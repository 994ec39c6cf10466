package main

import (
	"encoding/hex"
	"fmt"
	"net"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/watch"
)

func (a *app) traceCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: `trace PARENT [from {wire | host | SUB [netns NAME]}] FRAME
  FRAME  := hex BYTES | pcap FILE [frame NUMBER] | [src MAC] [dst MAC] [vlan ID [qinq OUTER]]
             [len BYTES] PACKET
  PACKET := arp SRC DST | nd SRC DST | ip SRC DST [proto {udp|tcp|icmp}] [sport PORT] [dport PORT]`,
		Short: "Say what the programs would do with a frame, and why",
		Long: `Says which program would decide what about a frame, by which entries of the maps.
Nothing is sent, counted or learned. A frame comes from the wire unless a
sub-interface is said, or the host, where one has host access. It is described in
words, given in hex, or taken from a capture file (pcap or pcapng, the first frame
unless another is said). What is left out of the description is filled in: the
sender's MAC, and the MAC of the sub-interface or group that has the address.`,
		Example: `  xvlan trace eth0 ip 192.0.2.1 192.0.2.7
  xvlan trace eth0 from c1 arp 192.0.2.7 192.0.2.1
  xvlan trace eth0 pcap lost.pcapng frame 17`,
		RunE: func(_ *cobra.Command, args []string) error {
			req, err := parseTraceWords(&words{left: args})
			if err != nil {
				return err
			}
			return a.with(func(h *loader.Host) error { return a.trace(h, req) })
		},
	}
	a.completeWords(cmd, "trace")
	return cmd
}

// traceRequest is what `trace` was asked.
type traceRequest struct {
	parent string
	from   *loader.Selector // nil: the wire, or
	host   bool             // the host
	frame  frameWords
}

// parseTraceWords reads the words of `trace`.
func parseTraceWords(w *words) (req traceRequest, err error) {
	for {
		word, ok := w.next()
		if !ok {
			break
		}
		switch {
		case word == "from":
			switch from := w.value(word); from {
			case "wire":
			case "host":
				req.host = true
			default:
				req.from = &loader.Selector{Name: from}
			}
		case word == "netns" && req.from != nil:
			req.from.Netns = w.value(word)
		case req.parent == "":
			req.parent = word
		case !req.frame.parse(w, word):
			w.fail(usagef("%s: not known here; see `xvlan trace --help`", word))
		}
	}
	if req.from != nil {
		req.from.Parent = req.parent
	}
	switch {
	case w.err != nil:
		return req, w.err
	case req.parent == "":
		return req, usagef("parent: say which")
	}
	return req, req.frame.check()
}

func (a *app) trace(h *loader.Host, req traceRequest) error {
	links, err := h.Links()
	if err != nil {
		return err
	}
	if req.host && req.frame.src == nil {
		if req.frame.src, err = macOfParent(h, req.parent); err != nil {
			return err
		}
	}
	frame, err := req.frame.build(links, req.parent, req.from)
	if err != nil {
		return err
	}
	var t loader.Trace
	if req.host {
		t, err = h.TraceHost(req.parent, frame)
	} else {
		t, err = h.Trace(req.parent, req.from, frame)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(newTraceJSON(t, frame))
	}
	return a.printTrace(t, frame)
}

// macOfParent finds the MAC of an attached parent, nil if there is none.
func macOfParent(h *loader.Host, parent string) (net.HardwareAddr, error) {
	all, err := h.Parents()
	for _, p := range all {
		if p.Name == parent {
			return p.MAC, err
		}
	}
	return nil, err
}

type traceJSON struct {
	Parent   string         `json:"link"`
	Frame    string         `json:"frame"`
	Programs []traceRunJSON `json:"programs"`
}

type traceRunJSON struct {
	Program string          `json:"program"`
	Dev     string          `json:"dev"`
	Steps   []traceStepJSON `json:"steps"`
	Missing int             `json:"missing_steps,omitempty"`
	Fate    string          `json:"fate"`
	Frame   string          `json:"frame"`
}

type traceStepJSON struct {
	Step    string `json:"step"`
	Sub     string `json:"ifname,omitempty"`
	Verdict string `json:"verdict,omitempty"`
	Text    string `json:"text"`
}

func newTraceJSON(t loader.Trace, frame []byte) traceJSON {
	j := traceJSON{Parent: t.Parent, Frame: hex.EncodeToString(frame)}
	for _, r := range t.Runs {
		run := traceRunJSON{r.Program, r.Dev, []traceStepJSON{}, r.Missing, r.Fate, hex.EncodeToString(r.Frame)}
		for _, s := range r.Steps {
			step := traceStepJSON{Step: s.Kind, Sub: s.Sub, Text: s.Text}
			if s.Kind == "verdict" {
				step.Verdict = s.Verdict.String()
			}
			run.Steps = append(run.Steps, step)
		}
		j.Programs = append(j.Programs, run)
	}
	return j
}

// printTrace prints a heading for each program, its steps, and what becomes of
// the frame.
func (a *app) printTrace(t loader.Trace, frame []byte) error {
	fmt.Fprintf(a.out, "%s, %d bytes\n", watch.Describe(frame), len(frame))
	for _, r := range t.Runs {
		fmt.Fprintf(a.out, "%s on %s\n", r.Program, printable(r.Dev))
		w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
		for _, s := range r.Steps {
			whose := s.Sub
			if whose == "" {
				whose = "-"
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\n", s.Kind, printable(whose), printable(s.Text))
		}
		if r.Missing > 0 {
			fmt.Fprintf(w, "  ...\t\tand %d more\n", r.Missing)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if string(r.Frame) != string(frame) {
			fmt.Fprintf(a.out, "  as %s\n", watch.Describe(r.Frame))
		}
		fmt.Fprintf(a.out, "  => %s\n", printable(r.Fate))
	}
	return nil
}
