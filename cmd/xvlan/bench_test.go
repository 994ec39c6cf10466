package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bench/measure"
	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// Figures, with the blanks that are before and behind them.
var figures = regexp.MustCompile(` *(\d+(\.\d+)? \(\d+(\.\d+)?\.\.\d+(\.\d+)?\)( x\d+\.\d+)?|-)( |$)`)

// benchGolden is what is printed where the kernel has macvlan and no ipvlan.
const benchGolden = `
parent    eth0, driver veth, up
mtu       1500
queues    1 in, 1 out
offloads  gro off, lro off, tso on, rxvlan on
attached  nothing
rung      tc: veth: native XDP would make its peer give up TSO

TYPE WHAT UNIT KERNEL XVLAN TC XVLAN XDP
macvlan 60-byte frame from the wire ns N N N
macvlan 60-byte datagram to the wire ns N N N
macvlan datagram there and back µs N N N
ipvlan 60-byte frame from the wire ns N N N
ipvlan 60-byte datagram to the wire ns N N N
ipvlan datagram there and back µs N N N

FRAME PROGRAM 2 7
an empty program tc N N
wire to macvlan tc N N
wire to the host, beside macvlan tc N N
macvlan to a sibling tc N N
macvlan to the wire tc N N
wire to nobody tc N N
wire to nobody xdp N N
wire to macvlan, before tc xdp N N
wire to ipvlan tc N N
wire to the host, beside ipvlan tc N N
ipvlan to a sibling tc N N
ipvlan to the wire tc N N

Recommended: rung tc (veth: native XDP would make its peer give up TSO)

    xvlan link add link eth0 name c1 type macvlan mode bridge
`

// benchText leaves of what bench prints what does not vary: no figures, no
// headings, which name the kernel, and no columns.
func benchText(out string) string {
	var kept []string
	for _, part := range strings.Split(out, "\n\n") {
		if strings.Contains(part, "Linux ") || strings.HasPrefix(part, "The machine was busy") {
			continue
		}
		if strings.HasPrefix(part, "TYPE") || strings.HasPrefix(part, "FRAME") {
			part = strings.ReplaceAll(figures.ReplaceAllString(strings.ReplaceAll(part, "\n", " \n"), " N "), " \n", "\n")
			part = strings.TrimSpace(regexp.MustCompile(` +`).ReplaceAllString(part, " "))
			part = regexp.MustCompile(` *\n`).ReplaceAllString(part, "\n")
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, "\n\n")
}

// What bench prints, and that it leaves everything as it was.
func TestBench(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	golden(t, "bench eth0", benchText(w.must(t, "bench eth0 --time 1s --links 7,2,7")), benchGolden)
	w.same(t, before)

	var j struct {
		Kernel string
		Parent *struct {
			Name     string `json:"ifname"`
			MTU      int
			Offloads map[string]bool
			Tried    bool `json:"xdp_tried"`
			Datapath struct{ Rung, Reason string }
		}
		Forward, Programs []struct {
			What, Frame, Rung string
			Links             int
			Cost, NS          struct{ Median, Least, Most float64 }
		}
		Recommendation *struct {
			Rung, Command string
			Warnings      []string
		}
	}
	// Of this parent, a port of a bridge, native XDP is not tried.
	w.host.Run(t, "ip", "link", "add", "br0", "type", "bridge")
	w.host.Run(t, "ip", "link", "set", "eth0", "master", "br0")
	before = w.snapshot(t)
	unmarshal(t, w.must(t, "-j bench eth0 --no-attach --time 1s --links 2"), &j)
	if j.Kernel == "" || j.Parent == nil || j.Parent.Name != "eth0" || j.Parent.MTU != 1500 || j.Parent.Offloads["gro"] || j.Parent.Tried {
		t.Errorf("bench -j: %+v", j.Parent)
	}
	if len(j.Forward) < 5 || len(j.Programs) < 10 || j.Programs[0].NS.Median <= 0 || j.Forward[0].Cost.Median <= 0 {
		t.Errorf("bench -j: measured %+v, %+v", j.Forward, j.Programs)
	}
	r := j.Recommendation
	if r == nil || r.Rung != "tc" || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "port of br0 (bridge)") {
		t.Fatalf("bench -j: recommends %+v", r)
	}
	w.same(t, before)
	// What it says to type gives what it says.
	w.must(t, strings.TrimPrefix(r.Command, "xvlan "))
	if l := w.links(t)[0]; l.Datapath.Rung != r.Rung || l.Datapath.Reason != j.Parent.Datapath.Reason {
		t.Errorf("%s: %+v, want what bench says, %+v", r.Command, l.Datapath, j.Parent.Datapath)
	}
	w.must(t, "parent detach eth0")
}

// Interrupted, it ends at once, with nothing printed and nothing left.
func TestBenchInterrupted(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	cmd := command(t, "bench", "eth0", "--time", "10m")
	start(t, w.do, cmd)
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended if all is well
	held := func() (n int) {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); strings.HasPrefix(to, "net:[") {
				n++
			}
		}
		return n
	}
	lab.Eventually(t, "it has made namespaces", func() bool { return held() > 4 })
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	r := wait(t, cmd)
	r.refused(t, exitFail)
	r.says(t, "interrupted")
	w.same(t, before)
}

// Who may not use BPF learns of the parent, and that nothing can be measured.
func TestBenchWithoutBPF(t *testing.T) {
	lab.NeedTool(t, "setpriv")
	w := newWorld(t)
	less := func(line string) result {
		args := append([]string{"setpriv", "--bounding-set", "-sys_admin,-bpf"}, command(t, strings.Fields(line)...).Args...)
		return w.process(t, wrapped(args...))
	}
	r := less("bench eth0")
	if r.code != exitOK || !strings.Contains(r.out, "Not measured: BPF takes CAP_BPF") || !strings.Contains(r.out, "Recommended: rung kernel") {
		t.Errorf("bench eth0: exit status %d\n%s%s", r.code, r.out, r.err)
	}
	r = less("bench")
	r.refused(t, exitFail)
	r.says(t, "measure|CAP_BPF")
}

// What to type is told for the first sub-interface, with the rung where that has
// to be asked for, and is understood.
func TestFirstLink(t *testing.T) {
	for _, tt := range []struct {
		links int
		asked bool
		want  string
	}{
		{0, false, "xvlan link add link eth0 name c1 type macvlan mode bridge"},
		{0, true, "xvlan link add link eth0 name c1 --datapath tc type macvlan mode bridge"},
		{1, true, ""},
	} {
		got := firstLink(&loader.Survey{Name: "eth0", Links: tt.links}, loader.Recommendation{Rung: maps.RungTC, Asked: tt.asked})
		if got != tt.want {
			t.Errorf("%d links, asked for %v: %q", tt.links, tt.asked, got)
		}
		if got == "" {
			continue
		}
		w := newWorld(t)
		w.must(t, strings.TrimPrefix(got, "xvlan "))
		w.must(t, "parent detach eth0")
	}
}

// Figures are not taken for good ones where most of them spread widely.
func TestBusy(t *testing.T) {
	wide, narrow := measure.Spread{Median: 11, Least: 10, Most: 16}, measure.Spread{Median: 11, Least: 10, Most: 15}
	for _, tt := range []struct {
		spreads []measure.Spread
		want    bool
	}{
		{nil, false}, {[]measure.Spread{narrow}, false}, {[]measure.Spread{narrow, wide}, false}, {[]measure.Spread{wide, narrow, wide}, true},
	} {
		var res benchResult
		for i, s := range tt.spreads {
			if i%2 == 0 {
				res.forward = append(res.forward, measure.ForwardCost{Cost: s})
			} else {
				res.programs = append(res.programs, measure.ProgramCost{NS: s})
			}
		}
		if res.busy() != tt.want {
			t.Errorf("%v: busy %v", tt.spreads, res.busy())
		}
	}
}
