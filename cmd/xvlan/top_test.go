package main

import (
	"math"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// topLine is what top prints of one look as JSON.
type topLine struct {
	Time  string
	Links []struct {
		Name     string `json:"ifname"`
		Parent   string `json:"link"`
		Netns    string
		State    string                `json:"operstate"`
		Info     struct{ Kind string } `json:"linkinfo"`
		Datapath struct{ Rung string }
		Interval *float64
		RX, TX   topLineFlow
	}
}

type topLineFlow struct {
	Packets, Bytes, Dropped uint64
	PacketRate              *float64 `json:"packets_per_second"`
	BitRate                 *float64 `json:"bits_per_second"`
	DropRate                *float64 `json:"dropped_per_second"`
}

// topLines parses what a running top has printed, whole lines only.
func topLines(t *testing.T, cmd *exec.Cmd) []topLine {
	t.Helper()
	var all []topLine
	for line := range strings.Lines(lab.OutputOf(cmd)) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var l topLine
		unmarshal(t, line, &l)
		all = append(all, l)
	}
	return all
}

// What the rates come to over their intervals is what was sent, to the packet,
// and nothing for the one that is idle.
func TestTopCounts(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add link eth0 m1 address "+subMAC+" up netns "+w.inside.Name()+" type macvlan mode bridge")
	w.must(t, "link add link eth0 i1 type ipvlan mode l2")
	lab.Eventually(t, "m1 is up", func() bool { return w.inside.Link(t, "m1").Attrs().OperState.String() == "up" })
	w.inside.Run(t, "ip", "link", "set", "m1", "mtu", "3000")
	cmd := command(t, "-j", "top", "-b", "-d", "0.1", "-o", "name")
	start(t, w.do, cmd)
	defer cmd.Process.Kill() // it ends before, if all is well
	patiently(t, "it looks", func() bool { return len(topLines(t, cmd)) > 0 })

	const frames, size = 5, 1000
	counted := func(verdict string) func() uint64 {
		return func() uint64 { return w.links(t)[0].Verdicts[verdict].Packets }
	}
	for i := range uint64(frames) {
		untilCounted(t, i+1, counted("rx"), func() { send(t, w.wire, "w0", frame(t, subMAC, wireMAC, size)) })
		untilCounted(t, i+1, counted("drop_mtu"), func() { send(t, w.inside, "m1", frame(t, wireMAC, subMAC, 2000)) })
	}
	patiently(t, "all is told", func() bool {
		lines := topLines(t, cmd)
		m1 := lines[len(lines)-1].Links[1]
		return m1.RX.Packets == frames && m1.TX.Dropped == frames
	})
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := wait(t, cmd); r.code != exitOK || r.err != "" {
		t.Errorf("exit status %d\n%s", r.code, r.err)
	}
	sums := map[string][6]float64{}
	for _, line := range topLines(t, cmd) {
		if len(line.Links) != 2 {
			t.Fatalf("%d sub-interfaces in %+v", len(line.Links), line)
		}
		for _, l := range line.Links {
			sum := sums[l.Name]
			for i, rate := range []*float64{l.RX.PacketRate, l.RX.BitRate, l.RX.DropRate, l.TX.PacketRate, l.TX.BitRate, l.TX.DropRate} {
				sum[i] += *rate * *l.Interval
			}
			sums[l.Name] = sum
		}
	}
	for name, want := range map[string][6]float64{"m1": {frames, frames * size * 8, 0, 0, 0, frames}, "i1": {}} {
		for i, v := range sums[name] {
			if math.Abs(v-want[i]) > 1e-3 {
				t.Errorf("%s: the rates come to %v, want %v", name, sums[name], want)
				break
			}
		}
	}
	w.must(t, "parent detach eth0")
}

// topNames runs top once and lists the rows.
func (w *world) topNames(t *testing.T, line string) string {
	t.Helper()
	var l topLine
	unmarshal(t, w.must(t, line), &l)
	names := []string{}
	for _, x := range l.Links {
		names = append(names, x.Name)
	}
	return strings.Join(names, " ")
}

func TestTopWords(t *testing.T) {
	w := newWorld(t)
	lab.Veth(t, w.host, "eth1", w.wire, "w1")
	w.must(t, "link add link eth0 web1 up netns "+w.inside.Name()+" type macvlan mode bridge")
	w.must(t, "link add link eth0 web2 type ipvlan mode l2 private")
	w.must(t, "link add --datapath kernel link eth1 db1 type macvlan mode bridge")
	lab.Eventually(t, "web1 is up", func() bool { return w.inside.Link(t, "web1").Attrs().OperState.String() == "up" })
	for line, want := range map[string]string{
		"top -j -o name":                     "db1 web1 web2",
		"-j top -r --sort name":              "web2 web1 db1",
		"top -j -b -o parent":                "web1 web2 db1",
		"top -j -o rung":                     "db1 web1 web2",
		"top eth0 -j -o name":                "web1 web2",
		"top -j eth1":                        "db1",
		"top -j -o name --name web":          "web1 web2",
		"top -j -o name --name *1":           "db1 web1",
		"top -j --name nope":                 "",
		"top -j --state up":                  "web1",
		"top -j -o name --state down":        "db1 web2",
		"-n HOST top -j --name db":           "db1",
		"-n IN top -j":                       "",
		"-d top -j --name db":                "db1",
		"top --netns HOST -j --state up":     "web1",
		"-v -s --netns=HOST top -j eth1":     "db1",
		"top -j -o netns -r eth0":            "web1 web2",
		"top -j -o mode":                     "web2 web1 db1",
		"top -j -o bits":                     "web1 web2 db1",
		"top -j -o drops --reverse --name w": "web1 web2",
	} {
		line += " -n 1 -d 0.1"
		fill := strings.NewReplacer("HOST", w.host.Name(), "IN", w.inside.Name())
		if got := w.topNames(t, fill.Replace(line)); got != want {
			t.Errorf("%s: shows %q, want %q", line, got, want)
		}
	}
	clock := regexp.MustCompile(`\d\d:\d\d:\d\d`)
	golden(t, "top", clock.ReplaceAllString(w.must(t, "top -b -n 2 -d 0.1 -o name"), "NOW"), `
xvlan top - NOW, 3 of 3 sub-interfaces, by name
in 0 pkt/s 0 bit/s, out 0 pkt/s 0 bit/s, dropped 0 pkt/s
NAME  PARENT  IN PKT/S  IN BIT/S  OUT PKT/S  OUT BIT/S  DROP/S  RUNG    MODE               STATE  NETNS
db1   eth1           0         0          0          0       0  kernel  macvlan bridge     DOWN   -
web1  eth0           0         0          0          0       0  tc      macvlan bridge     UP     NETNS-in
web2  eth0           0         0          0          0       0  tc      ipvlan l2 private  DOWN   -

xvlan top - NOW, 3 of 3 sub-interfaces, by name
in 0 pkt/s 0 bit/s, out 0 pkt/s 0 bit/s, dropped 0 pkt/s
NAME  PARENT  IN PKT/S  IN BIT/S  OUT PKT/S  OUT BIT/S  DROP/S  RUNG    MODE               STATE  NETNS
db1   eth1           0         0          0          0       0  kernel  macvlan bridge     DOWN   -
web1  eth0           0         0          0          0       0  tc      macvlan bridge     UP     NETNS-in
web2  eth0           0         0          0          0       0  tc      ipvlan l2 private  DOWN   -
`)
	w.must(t, "parent detach eth0")
	w.must(t, "parent detach eth1")
}

// A sub-interface made while top runs is shown before it has rates, and one
// that is deleted, with its parent, is shown no more.
func TestTopComesAndGoes(t *testing.T) {
	w := newWorld(t)
	cmd := command(t, "-j", "top", "-d", "0.1")
	start(t, w.do, cmd)
	defer cmd.Process.Kill() // it ends before, if all is well
	seen := func(n int) func() bool {
		return func() bool {
			lines := topLines(t, cmd)
			return len(lines) > 0 && len(lines[len(lines)-1].Links) == n
		}
	}
	patiently(t, "it shows none", seen(0))
	for range 2 {
		w.must(t, "link add link eth0 m1 type macvlan mode bridge")
		patiently(t, "m1 is shown", seen(1))
		w.must(t, "link del m1")
		patiently(t, "m1 is shown no more", seen(0))
	}
	fresh := 0
	for _, line := range topLines(t, cmd) {
		for _, l := range line.Links {
			if l.Interval == nil {
				fresh++
			}
			if (l.Interval == nil) != (l.RX.PacketRate == nil) || l.RX.PacketRate != nil && *l.RX.PacketRate != 0 {
				t.Errorf("m1 is told as %+v", l)
			}
		}
	}
	if fresh != 2 {
		t.Errorf("%d times there was no rate yet, want 2", fresh)
	}
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if r := wait(t, cmd); r.code != exitOK || r.err != "" {
		t.Errorf("exit status %d\n%s", r.code, r.err)
	}
}

// flow makes a sub-interface that has received so many packets in two seconds.
func flow(name string, packets uint64) loader.Flow {
	f := loader.Flow{Link: loader.Link{Name: name}, Since: 2 * time.Second}
	f.Delta[maps.RX] = maps.Counter{Packets: packets, Bytes: 100 * packets}
	return f
}

func TestTopSort(t *testing.T) {
	flows := []loader.Flow{flow("b", 4), flow("c", 40), flow("a", 4), {Link: loader.Link{Name: "new"}}}
	flows[0].Delta[maps.DropMTU].Packets = 6
	for _, tt := range []struct {
		by     string
		turned bool
		want   string
	}{
		{"bits", false, "c a b new"}, {"bits", true, "new a b c"}, {"in-packets", false, "c a b new"},
		{"out-bits", false, "a b c new"}, {"drops", false, "b a c new"}, {"name", false, "a b c new"}, {"name", true, "new c b a"},
	} {
		v := newTopView(topSpec{sort: tt.by, turned: tt.turned}, flows, time.Now())
		var names []string
		for _, r := range v.rows {
			names = append(names, r.Name)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("by %s, turned %v: %s, want %s", tt.by, tt.turned, got, tt.want)
		}
	}
	v := newTopView(topSpec{sort: "bits"}, flows, time.Now())
	if got, want := v.total, (topRates{inPackets: 24, inBits: 19200, outDrops: 3}); got != want {
		t.Errorf("in all %+v, want %+v", got, want)
	}
	_, rows := v.table(0, 4)
	if want := "new   -              -         -          -          -       -  kernel  kind 0 mode 0  -      -"; rows[3] != want {
		t.Errorf("without rates: %q, want %q", rows[3], want)
	}
}

func TestTopShort(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1", 7: "7", 0.5: "0.5", 9.94: "9.9", 9.96: "10", 999.4: "999", 999.6: "1.00k", 1234: "1.23k", 12345: "12.3k",
		99940: "99.9k", 99960: "100k", 999499: "999k", 999501: "1.00M", 1e9: "1.00G", 1e12: "1.00T", 400e15: "400P", 0.01: "0.0",
	} {
		if got := short(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}

// What a container calls its device is nothing that a terminal obeys.
func TestTopPrintable(t *testing.T) {
	v := newTopView(topSpec{sort: "name"}, []loader.Flow{flow("a\x1b[2Jb\xff\u0085é", 1)}, time.Now())
	_, rows := v.table(0, 1)
	if !strings.HasPrefix(rows[0], "a?[2Jb??é ") {
		t.Errorf("printed as %q", rows[0])
	}
}

func TestTopKeys(t *testing.T) {
	var keys []string
	for key, rest := cutKey("aé\x1b[A\x1bOB\x1b[15~q\x1b[\x1b"); key != ""; key, rest = cutKey(rest) {
		keys = append(keys, key)
	}
	if want := []string{"a", "é", "\x1b[A", "\x1bOB", "\x1b[15~", "q", "\x1b", "[", "\x1b"}; !slices.Equal(keys, want) {
		t.Errorf("keys %q, want %q", keys, want)
	}
}
