package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// parentMaps opens the maps of the only parent, for as long as fn takes.
func (w *world) parentMaps(tb testing.TB, fn func(set *maps.Set) error) {
	tb.Helper()
	set, err := maps.Open(filepath.Join(pinDir, fmt.Sprintf("%d-%d", w.cookie, parentIndex)))
	if err != nil {
		tb.Fatal(err)
	}
	defer set.Close()
	if err := fn(set); err != nil {
		tb.Fatal(err)
	}
}

// watchedBits are the places that are taken on the only parent.
func (w *world) watchedBits(tb testing.TB) (bits uint32) {
	tb.Helper()
	w.parentMaps(tb, func(set *maps.Set) error {
		rec, err := set.Parent()
		bits = rec.Watched
		return err
	})
	return bits
}

// watching starts a command that watches the parent, and waits until it does.
func (w *world) watching(tb testing.TB, line string) *exec.Cmd {
	tb.Helper()
	before := w.watchedBits(tb)
	cmd := command(tb, strings.Fields(line)...)
	start(tb, w.do, cmd)
	tb.Cleanup(func() { cmd.Process.Kill() }) // it ends before, if all is well
	lab.Eventually(tb, line+" watches", func() bool { return w.watchedBits(tb) != before })
	return cmd
}

// interrupt ends a command that watches and returns what it has printed.
func interrupt(tb testing.TB, cmd *exec.Cmd) result {
	tb.Helper()
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		tb.Fatal(err)
	}
	r := wait(tb, cmd)
	if r.code != exitOK {
		tb.Errorf("exit status %d\n%s%s", r.code, r.out, r.err)
	}
	return r
}

// events parses lines of JSON.
func events(tb testing.TB, out string) (all []eventJSON) {
	tb.Helper()
	for line := range strings.Lines(out) {
		var e eventJSON
		unmarshal(tb, line, &e)
		all = append(all, e)
	}
	return all
}

// ethernet is a frame without sense of this length, of an EtherType that
// nobody has.
func ethernet(tb testing.TB, dst, src string, size int) []byte {
	tb.Helper()
	frame := append(append(mac(tb, dst), mac(tb, src)...), 0x88, 0xb5)
	return append(frame, make([]byte, size-len(frame))...)
}

// counted waits until a verdict was counted so often, of a sub-interface or, by 0, of
// the parent. It does not look by a command, which would follow what it finds.
func (w *world) counted(tb testing.TB, id maps.ID, v maps.Verdict, n uint64) {
	tb.Helper()
	lab.Eventually(tb, fmt.Sprintf("%d has %d %s", id, n, v), func() (done bool) {
		w.parentMaps(tb, func(set *maps.Set) error {
			stats, err := set.Stats(id)
			done = stats[v].Packets == n
			return err
		})
		return done
	})
}

// bpfRungs runs a test on the rungs that have programs, on tc with legs of either kind.
func bpfRungs(t *testing.T, test func(t *testing.T, w *world)) {
	for name, on := range map[string]struct{ rung, leg string }{"tc": {"tc", "veth"}, "xdp": {"xdp", "veth"}, "netkit": {"tc", "netkit"}} {
		t.Run(name, func(t *testing.T) {
			if on.leg == "netkit" {
				lab.NeedNetkit(t)
			}
			w := newWorld(t)
			w.rung, w.leg = on.rung, on.leg
			w.must(t, "parent attach eth0 unknown drop --datapath "+w.rung)
			t.Cleanup(func() { w.must(t, "parent detach eth0") })
			test(t, w)
		})
	}
}

const (
	dropsEach = 30
	nobodyMAC = "02:00:00:00:77:99"
)

// dropped makes drops of three reasons, dropsEach of each, and waits until they
// are counted.
func (w *world) dropped(t *testing.T) (want map[string]int) {
	t.Helper()
	w.must(t, "link add link eth0 c1 leg "+w.leg+" addr 10.77.0.11/24 netns "+w.inside.Name()+" up type ipvlan mode l2 private")
	w.must(t, "link add link eth0 c2 leg "+w.leg+" addr 10.77.0.12/24 netns "+w.inside.Name()+" up type ipvlan mode l2 private")
	w.inside.Run(t, "ip", "link", "set", "c1", "mtu", "3000")
	packet := append(ethernet(t, parentMAC, nobodyMAC, 14+20)[:12], 8, 0)
	packet = append(packet, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 77, 0, 11, 10, 77, 0, 12)
	for range dropsEach {
		w.wire.Send(t, "w0", ethernet(t, nobodyMAC, wireMAC, 60))
		w.inside.Send(t, "c1", ethernet(t, wireMAC, nobodyMAC, 2000))
		w.inside.Send(t, "c1", packet)
	}
	w.counted(t, 0, maps.DropUnknown, dropsEach)
	w.counted(t, 1, maps.DropMTU, dropsEach)
	w.counted(t, 1, maps.DropMode, dropsEach)
	return map[string]int{
		"drop_unknown  in 60": dropsEach, "drop_mtu c1 out 2000": dropsEach, "drop_mode c1 out 34": dropsEach,
	}
}

// Every drop is shown once, with its reason, by whom and what it was.
func TestMonitorDrops(t *testing.T) {
	bpfRungs(t, func(t *testing.T, w *world) {
		cmd, text := w.watching(t, "-j monitor drops"), w.watching(t, "monitor eth0 drops")
		want := w.dropped(t)
		got := map[string]int{}
		for _, e := range events(t, interrupt(t, cmd).out) {
			got[fmt.Sprintf("%s %s %s %d", e.Verdict, e.Name, e.Direction, e.Length)]++
			if e.Event != "drop" || e.Parent != "eth0" || e.Frame == "" {
				t.Errorf("%+v", e)
			}
			if when, err := time.Parse(time.RFC3339Nano, e.Time); err != nil || time.Since(when).Abs() > time.Hour {
				t.Errorf("time %s: %v", e.Time, err)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("shown %v, want %v", got, want)
		}
		out := interrupt(t, text).out
		for _, line := range []string{
			`\S+ eth0 drop_unknown in 60 bytes ` + wireMAC + ` > ` + nobodyMAC + `: EtherType 0x88b5`,
			`\S+ c1@eth0 drop_mtu out 2000 bytes ` + nobodyMAC + ` > ` + wireMAC + `: EtherType 0x88b5`,
			`\S+ c1@eth0 drop_mode out 34 bytes ` + parentMAC + ` > ` + parentMAC + `: 10.77.0.11 > 10.77.0.12 .*`,
		} {
			if n := len(regexp.MustCompile(`(?m)^`+line+`$`).FindAllString(out, -1)); n != dropsEach {
				t.Errorf("%d lines, want %d, of %s:\n%s", n, dropsEach, line, out)
			}
		}
		if bits := w.watchedBits(t); bits != 0 {
			t.Errorf("watched by %b, and nobody does", bits)
		}
	})
}

// A flood is shown as far as the rate allows, and the rest counted.
func TestMonitorRate(t *testing.T) {
	bpfRungs(t, func(t *testing.T, w *world) {
		const rate, frames = 7, 500
		cmd := w.watching(t, fmt.Sprintf("-j monitor drops --rate %d", rate))
		begun := time.Now()
		for range frames {
			w.wire.Send(t, "w0", ethernet(t, nobodyMAC, wireMAC, 60))
		}
		w.counted(t, 0, maps.DropUnknown, frames)
		most := rate * (int(time.Since(begun).Seconds()) + 2) // windows begun
		shown, withheld := 0, uint64(0)
		for _, e := range events(t, interrupt(t, cmd).out) {
			if e.Event == "drop" {
				shown++
			}
			withheld += e.Withheld
			if e.Lost != 0 {
				t.Errorf("%d lost", e.Lost)
			}
		}
		if shown+int(withheld) != frames || shown < rate || shown > most {
			t.Errorf("%d shown, %d not, want %d together and %d to %d shown", shown, withheld, frames, rate, most)
		}
	})
}

// What is learned is told, and what is not since a sibling has it.
func TestMonitorLearned(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"c1", "c2"} {
		w.must(t, "link add link eth0 "+name+" netns "+w.inside.Name()+" up type ipvlan mode l2")
	}
	cmd, drops := w.watching(t, "-j monitor learned"), w.watching(t, "monitor drops")
	// ARP of both that they are 10.77.0.13.
	arp := append(ethernet(t, "ff:ff:ff:ff:ff:ff", nobodyMAC, 14)[:12], 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	arp = append(append(arp, mac(t, nobodyMAC)...), 10, 77, 0, 13, 0, 0, 0, 0, 0, 0, 10, 77, 0, 254)
	w.inside.Send(t, "c1", arp)
	w.counted(t, 1, maps.TX, 1)
	w.inside.Send(t, "c2", arp)
	w.counted(t, 2, maps.LearnDup, 1)
	var got []string
	for _, e := range events(t, interrupt(t, cmd).out) {
		got = append(got, e.Event+" "+e.Name+" "+e.Addr)
	}
	if want := []string{"learned c1 10.77.0.13", "learn_dup c2 10.77.0.13"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	if out := interrupt(t, drops).out; out != "" {
		t.Errorf("told of drops, and there were none:\n%s", out)
	}
	w.must(t, "parent detach eth0")
}

// Changes are told in the order in which they come.
func TestMonitorLinks(t *testing.T) {
	w := newWorld(t)
	cmd := command(t, "monitor", "links")
	start(t, w.do, cmd)
	defer cmd.Process.Kill()
	out := func() string { return cmd.Stdout.(*lab.Output).String() }
	lab.Eventually(t, "it listens", func() bool { return hasBuffer(cmd) })
	in := w.inside.Name()
	for _, step := range []struct {
		do   string // of xvlan, or of ip in the namespace where c1 is
		want []string
	}{
		{"parent attach eth0 --datapath tc", []string{`eth0 made: datapath tc unknown pass address ` + parentMAC + ` mtu 1500 links 0`}},
		{"link add link eth0 c1 address " + subMAC + " type macvlan mode bridge",
			[]string{`eth0 changed: links 0 -> 1`, `c1@eth0 made: type macvlan mode bridge datapath tc address ` + subMAC + ` mtu 1500 state DOWN .*`}},
		{"link set c1 netns " + in, []string{`c1@eth0 changed: netns none -> ` + in + `.*`}},
		{"ip link set c1 up", []string{`c1@eth0 changed: state DOWN -> UP, flags .*`}},
		{"ip link set c1 down", []string{`c1@eth0 changed: state UP -> DOWN, flags .*`}},
		{"ip link set c1 name c9", []string{`c9@eth0 changed: name c1 -> c9`}},
		{"link set c9 type macvlan mode private", []string{`c9@eth0 changed: mode bridge -> private`}},
		{"ip link set c9 mtu 1400", []string{`c9@eth0 changed: mtu 1500 -> 1400`}},
		{"ip link del c9", []string{`c9@eth0 removed`}},
		{"parent detach eth0", []string{`eth0 removed`}},
	} {
		if words, ok := strings.CutPrefix(step.do, "ip "); ok {
			w.inside.Run(t, "ip", strings.Fields(words)...)
		} else {
			w.must(t, step.do)
		}
		for _, want := range step.want {
			line := regexp.MustCompile(`(?m)^\S+ ` + want + `$`)
			lab.Eventually(t, want+" is told after "+step.do+"\n"+out(), func() bool { return line.MatchString(out()) })
		}
	}
	interrupt(t, cmd)
}

// hasBuffer tells that a command that watches has come to making its buffer, which
// it does when it listens already.
func hasBuffer(cmd *exec.Cmd) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
	return slices.ContainsFunc(fds, func(fd string) bool {
		target, _ := os.Readlink(fd)
		return strings.Contains(target, "perf_event")
	})
}

// The place of a watcher that was killed is emptied by the next command, that
// of one who lives is not, and there are so many places and no more.
func TestMonitorKilled(t *testing.T) {
	w := newWorld(t)
	w.must(t, "parent attach eth0")
	first, second := w.watching(t, "monitor"), w.watching(t, "monitor eth0 drops")
	both := w.watchedBits(t)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	wait(t, first)
	if bits := w.watchedBits(t); bits != both {
		t.Fatalf("watched by %b, by nobody's doing", bits)
	}
	w.must(t, "link show")
	if bits := w.watchedBits(t); bits == both || bits == 0 {
		t.Errorf("watched by %b, want one of %b", bits, both)
	}
	locks, err := filepath.Glob(fmt.Sprintf("%s/watch-%d-*", lockDir, w.cookie))
	if err != nil || len(locks) != 1 {
		t.Errorf("locks %v, %v", locks, err)
	}
	for range 7 {
		w.watching(t, "monitor drops")
	}
	ninth := w.xvlan(t, "monitor", "drops")
	ninth.refused(t, exitFail)
	ninth.says(t, "watch eth0|in use|8 watch it already")
	// Those who are named a parent that goes end by themselves.
	w.must(t, "parent detach eth0")
	if r := wait(t, second); r.code != exitOK {
		t.Errorf("exit status %d\n%s%s", r.code, r.out, r.err)
	}
}

// What cannot be watched is refused with a reason.
func TestMonitorRefused(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add --datapath kernel link eth0 c1 type macvlan mode bridge")
	w.refuses(t, map[string]refusal{
		"monitor c1":             {exitFail, "sub-interface c1|not supported|kernel rung"},
		"monitor eth0 drops":     {exitFail, "parent eth0|not supported|kernel rung"},
		"monitor c2":             {exitFail, "c2|not found"},
		"monitor c1 c2":          {exitUsage, "c2"},
		"monitor --rate -1":      {exitUsage, "rate"},
		"monitor drops --rate x": {exitUsage, "rate"},
	})
	w.must(t, "link del c1")
	w.must(t, "parent attach eth0")
	lab.NeedTool(t, "setpriv")
	for _, line := range []string{"monitor", "capture eth0"} {
		args := append([]string{"setpriv", "--bounding-set", "-sys_admin,-bpf,-perfmon"}, command(t, strings.Fields(line)...).Args...)
		r := w.process(t, wrapped(args...))
		r.refused(t, exitFail)
		r.says(t, "not permitted")
	}
	w.must(t, "parent detach eth0")
}
