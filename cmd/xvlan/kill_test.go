package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// everyCall, set to anything, makes the tests stop a command at each of its
// system calls, not at some of them only, and where something has changed by
// then to go on in each of the ways.
const everyCall = "XVLAN_TEST_EVERY_CALL"

// A scene is a command that is stopped in the middle.
type scene struct {
	name    string
	prepare []string // commands
	line    string   // what is stopped
	moves   bool     // afterwards there is a c1 without address; what has moved stays
	removes bool     // what fails is not undone but gone on with
}

const (
	addFirst = "link add link eth0 c1 address " + subMAC + " addr 10.77.0.10/24 mtu 1400 netns IN up type macvlan mode bridge"
	addOther = "link add link eth0 c2 address 02:00:00:00:77:20 addr 10.77.0.20/24 netns IN up type ipvlan mode l2"
	addThird = "link add link eth0 c3 address 02:00:00:00:77:30 addr 10.77.0.30/24 netns IN up type macvlan mode bridge"
)

var scenes = []scene{
	{name: "first add", line: addFirst},
	{name: "first add, xdp", line: addFirst + " --datapath xdp"},
	{name: "first add, delivery xdp", line: strings.Replace(addFirst, " up ", " up delivery xdp ", 1) + " --datapath xdp"},
	{name: "first add, netkit", line: strings.Replace(addFirst, " up ", " up leg netkit ", 1)},
	{name: "set delivery", prepare: []string{addFirst + " --datapath xdp"}, line: "link set c1 delivery xdp"},
	{name: "first add, host on", line: strings.Replace(addFirst, " up ", " up host on ", 1)},
	{name: "set host", prepare: []string{addFirst}, line: "link set c1 host on"},
	{name: "set host off", prepare: []string{strings.Replace(addFirst, " up ", " up host on ", 1)}, line: "link set c1 host off"},
	{name: "set via-host", prepare: []string{addFirst}, line: "link set c1 via-host 10.96.0.0/12"},
	{name: "set via-host off", prepare: []string{strings.Replace(addFirst, " up ", " up via-host 10.96.0.0/12 ", 1)}, line: "link set c1 via-host off"},
	{name: "first add, vlan", line: strings.Replace(addFirst, " up ", " up vlan 5 ", 1)},
	{name: "set trunk", prepare: []string{strings.Replace(addFirst, " up ", " up vlan 5 ", 1)}, line: "link set c1 trunk 6,8-9"},
	{name: "first add, kernel", line: addFirst + " --datapath kernel"},
	{name: "first add, passthru", line: "link add link eth0 c1 addr 10.77.0.10/24 netns IN up type macvlan mode passthru"},
	{name: "first add, source", line: strings.Replace(addFirst, "mode bridge", "mode source macaddr add "+wireMAC, 1)},
	{name: "first add, l3s", line: strings.Replace(addFirst, "macvlan mode bridge", "ipvlan mode l3s", 1)},
	{name: "second add", prepare: []string{addFirst}, line: addOther},
	{name: "second add, kernel", prepare: []string{addFirst + " --datapath kernel"}, line: addThird},
	{name: "del of two", prepare: []string{addFirst, addOther}, line: "link del c2", removes: true},
	{name: "del of the last", prepare: []string{addFirst}, line: "link del c1", removes: true},
	{name: "del, kernel", prepare: []string{addFirst + " --datapath kernel"}, line: "link del c1", removes: true},
	{name: "set netns", prepare: []string{strings.Replace(addFirst, "netns IN up", "", 1)}, line: "link set c1 netns IN", moves: true},
	{name: "set netns back", prepare: []string{addFirst}, line: "link set c1 netns HOST", moves: true},
	{name: "set netns, kernel", prepare: []string{addFirst + " --datapath kernel"}, line: "link set c1 netns HOST", moves: true},
	{name: "attach", line: "parent attach eth0 unknown drop capacity 5"},
	{name: "detach", prepare: []string{"parent attach eth0 --datapath xdp", addFirst, addOther}, line: "parent detach eth0", removes: true},
}

// A rig is a scene in a world.
type rig struct {
	*world
	scene
	fill   *strings.Replacer
	clean  []string // before everything
	before []string // with what was prepared
	after  []string // with what line does
	calls  []call
}

func newRig(t *testing.T, s scene) *rig {
	t.Helper()
	lab.NeedTool(t, "strace")
	if strings.Contains(s.line, "leg netkit") {
		lab.NeedNetkit(t)
	}
	r := &rig{world: seal(t), scene: s}
	r.fill = strings.NewReplacer("IN", r.inside.Name(), "HOST", r.host.Name())
	if strings.Contains(s.line, "l3s") { // answers no questions
		r.wire.Run(t, "ip", "neigh", "add", subAddr, "dev", "w0", "lladdr", parentMAC)
	}
	if strings.Contains(s.line+strings.Join(s.prepare, " "), "vlan 5") { // where the wire is then
		r.wire.Run(t, "ip", "addr", "flush", "dev", "w0")
		wire := func(line string) {
			if res := xvlanIn(t, r.wire, strings.Fields(line)...); res.code != exitOK {
				t.Errorf("%s: %s", line, res.err)
			}
		}
		wire("link add link w0 v5 addr " + wireAddr + "/24 up vlan 5 type ipvlan mode l2")
		t.Cleanup(func() { wire("parent detach w0") })
	}
	if strings.Contains(s.line, "delivery xdp") {
		r.host.Run(t, "ethtool", "-K", "eth0", "rxvlan", "off")
	}
	r.must(t, "parent attach eth0") // makes what is there once for all
	r.must(t, "parent detach eth0")
	r.clean = r.look(t)
	r.set(t)
	r.before = r.look(t)
	whole := r.trace(t, r.fill.Replace(r.line), "")
	if whole.code != exitOK || whole.err != "" || len(whole.calls) == 0 {
		t.Fatalf("%s: exit status %d, %d calls\n%s", r.line, whole.code, len(whole.calls), whole.err)
	}
	r.calls, r.after = whole.calls, r.look(t)
	r.reset(t)
	return r
}

// set prepares the scene, reset ends it.
func (r *rig) set(t *testing.T) {
	t.Helper()
	for _, line := range r.prepare {
		r.must(t, r.fill.Replace(line))
	}
}

func (r *rig) reset(t *testing.T) {
	t.Helper()
	if res := r.xvlan(t, "parent", "detach", "eth0"); res.code != exitOK && !strings.Contains(res.err, "not found") {
		t.Errorf("detach in the end: %s", res.err)
	}
	if d := difference(r.clean, r.look(t)); d != "" {
		t.Fatalf("not as it was before everything:\n%s", d)
	}
}

// whole checks that what the sub-interfaces are for works: those that there
// are with an address reach the wire.
func (r *rig) whole(t *testing.T) {
	t.Helper()
	for _, l := range r.links(t) {
		if l.Netns == r.inside.Name() {
			if r.moves && !slices.Contains(l.Flags, "UP") {
				r.inside.Addr(t, "c1", subAddr+"/24")
				r.inside.Up(t, "c1")
			}
			ping(t, r.inside, l.Name, wireAddr)
		}
	}
}

// The ways in which one goes on after an interruption. Each tells what is
// wrong with the state it comes to.
var goOn = []struct {
	name string
	do   func(t *testing.T, r *rig) string
}{
	{"look", func(t *testing.T, r *rig) string {
		r.must(t, "link show")
		now := r.look(t)
		before, after := difference(r.before, now), difference(r.after, now)
		if before != "" && after != "" {
			return fmt.Sprintf("neither as before:\n%sor as after:\n%s", before, after)
		}
		r.whole(t)
		return ""
	}},
	{"again", func(t *testing.T, r *rig) string {
		res := r.xvlan(t, strings.Fields(r.fill.Replace(r.line))...)
		if res.code != exitOK && !strings.Contains(res.err, "already taken") && !strings.Contains(res.err, "not found") {
			return res.err
		}
		if d := difference(r.after, r.look(t)); d != "" {
			return fmt.Sprintf("not as after:\n%s%s", d, res.err)
		}
		r.whole(t)
		return ""
	}},
	{"detach", func(t *testing.T, r *rig) string {
		res := r.xvlan(t, "parent", "detach", "eth0")
		if res.code != exitOK && !strings.Contains(res.err, "not found") {
			return res.err
		}
		if d := difference(r.clean, r.look(t)); d != "" {
			return fmt.Sprintf("not as before everything:\n%s", d)
		}
		return ""
	}},
}

// A command that is killed, wherever that is, leaves what the next one
// completes or removes.
func TestKilled(t *testing.T) {
	all := os.Getenv(everyCall) != ""
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, s)
			changed := states(r.calls)
			points := r.calls
			switch {
			case all:
			case testing.Short():
				points = sample(changed, 2)
			default:
				points = sample(changed, 4)
			}
			runs := 0
			for i, c := range points {
				for way := range goOn {
					if i%len(goOn) == way || all && slices.Contains(changed, c) {
						if !eventually(c, func(c call) bool { return r.killAt(t, c, way) }) {
							t.Errorf("not killed at %v", c)
						}
						runs++
					}
				}
			}
			// It may have made a call more this time, but never so many.
			last := r.calls[len(r.calls)-1]
			for last.nth++; r.killAt(t, last, 0); last.nth++ {
				if runs++; last.nth > 2*len(r.calls) {
					t.Fatal("there is no end to its calls")
				}
			}
			t.Logf("%d calls, %d states, killed %d times", len(r.calls), len(changed), runs)
		})
	}
}

const kill = "signal=SIGKILL"

// eventually tries a call, and those a little before it: where a driver of
// network devices is a module, the types of what others have loaded into the
// kernel are gone through, by calls whose number is theirs.
func eventually(c call, try func(call) bool) bool {
	const tries = 6
	step := max(4, c.nth/50)
	for range tries {
		if try(c) {
			return true
		}
		if c.name != "bpf" || c.nth <= step {
			break
		}
		c.nth -= step
	}
	return false
}

// killAt tells whether the command came to the call.
func (r *rig) killAt(t *testing.T, c call, way int) bool {
	t.Helper()
	r.set(t)
	tr := r.trace(t, r.fill.Replace(r.line), c.inject(kill))
	if last := len(tr.calls) - 1; tr.killed && (last < 0 || tr.calls[last].name != c.name) {
		t.Errorf("killed at %v, want %v", tr.calls[max(last, 0):], c)
	}
	if wrong := goOn[way].do(t, r); wrong != "" {
		t.Errorf("killed at %s %d, %.100s\nthen %s: %s", c.name, c.nth, c.text, goOn[way].name, wrong)
	}
	r.reset(t)
	return tr.killed
}
