package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// The forms in which instructions for macvlan and ipvlan are found.
func TestAddWords(t *testing.T) {
	w := newWorld(t)
	w.host.Sysctl(t, "net.ipv6.conf.default.disable_ipv6", "0")
	before := w.snapshot(t)
	for _, tt := range []struct{ line, name, kind, mode string }{
		{"link add link eth0 dev mac1 type macvlan mode bridge", "mac1", "macvlan", "bridge"},
		{"link add link eth0 name mac1 type macvlan mode bridge", "mac1", "macvlan", "bridge"},
		{"link add link eth0 mac1 type macvlan mode bridge", "mac1", "macvlan", "bridge"},
		{"link add mac1 link eth0 type macvlan mode bridge", "mac1", "macvlan", "bridge"},
		{"link add name mac1 link eth0 type macvlan mode bridge", "mac1", "macvlan", "bridge"},
		{"link add dev eth0.10 link eth0 type macvlan mode bridge", "eth0.10", "macvlan", "bridge"},
		{"link add name up link eth0 type macvlan mode bridge", "up", "macvlan", "bridge"},
		{"link a link eth0 mac1 type macvlan mode bridge", "mac1", "macvlan", "bridge"},
		{"link add up mtu 1400 address " + subMAC + " link eth0 mac1 type macvlan mode bridge", "mac1", "macvlan", "bridge"},
		{"link add link eth0 ip1 type ipvlan mode l2", "ip1", "ipvlan", "l2"},
		{"link add link eth0 name ip1 type ipvlan mode l2 bridge", "ip1", "ipvlan", "l2"},
		{"link add link eth0 name ip1 type ipvlan bridge mode l2", "ip1", "ipvlan", "l2"},
		{"link add link eth0 name ip1 type ipvlan", "ip1", "ipvlan", "l3"},
		{"link add link eth0 name ip1 type ipvlan private", "ip1", "ipvlan", "l3"},
		{"link add link eth0 name ip1 type ipvlan mode l3 vepa", "ip1", "ipvlan", "l3"},
		{"link add link eth0 name ip1 type ipvlan mode l3s", "ip1", "ipvlan", "l3s"},
		{"link add link eth0 name ip1 addr 10.77.0.10 addr fd77::10/64 type ipvlan mode l2", "ip1", "ipvlan", "l2"},
		{"--datapath tc link add link eth0 name ip1 type ipvlan mode l2", "ip1", "ipvlan", "l2"},
		{"link add --datapath tc link eth0 name ip1 type ipvlan mode l2", "ip1", "ipvlan", "l2"},
		{"link add link eth0 name ip1 type ipvlan mode l2 --datapath=tc", "ip1", "ipvlan", "l2"},
	} {
		t.Run(tt.line, func(t *testing.T) {
			w.must(t, tt.line)
			links := w.links(t)
			if len(links) != 1 {
				t.Fatalf("made %+v", links)
			}
			if l := links[0]; l.Name != tt.name || l.Parent != "eth0" || l.Info.Kind != tt.kind || l.Info.Data.Mode != tt.mode {
				t.Errorf("made %+v", l)
			}
			w.must(t, "link del dev "+tt.name)
			w.same(t, before)
		})
	}
}

// Everything that can be said of a sub-interface is found on its device.
func TestAddAll(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	w.inside.Sysctl(t, "net.ipv6.conf.default.disable_ipv6", "0")
	pid := strconv.Itoa(w.inside.Start(t, "sleep", "1000").Process.Pid)
	for _, where := range []string{w.inside.Name(), w.inside.Path(), pid} {
		w.must(t, fmt.Sprintf("link add link eth0 name c1 address %s addr %s/24 addr fd77::10/64 mtu 1400 netns %s up type macvlan mode bridge",
			subMAC, subAddr, where))
		l := w.links(t)[0]
		if l.Netns != w.inside.Name() || l.MTU != 1400 || l.MAC != subMAC || l.Wire != subMAC || !slices.Contains(l.Flags, "UP") {
			t.Errorf("shown as %+v", l)
		}
		if got := fmt.Sprint(l.Addrs); got != fmt.Sprintf("[{%s given} {fd77::10 given}]", subAddr) {
			t.Errorf("addresses shown: %s", got)
		}
		ping(t, w.inside, "", wireAddr)
		var addrs []string
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			found, err := w.inside.Handle().AddrList(w.inside.Link(t, "c1"), family)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range found {
				if !a.IP.IsLinkLocalUnicast() {
					addrs = append(addrs, a.IPNet.String())
				}
			}
		}
		if got := strings.Join(addrs, " "); got != subAddr+"/24 fd77::10/64" {
			t.Errorf("addresses of the device: %s", got)
		}
		w.must(t, "link del c1")
		w.same(t, before)
	}
}

// A namespace may be called by a number, even by one that is a process.
func TestNumberedNetns(t *testing.T) {
	w := seal(t)
	name := strconv.Itoa(os.Getpid())
	w.do(t, func() {
		path := filepath.Join(filepath.Dir(w.inside.Path()), name)
		if err := errors.Join(os.WriteFile(path, nil, 0o444), unix.Mount(w.inside.Path(), path, "", unix.MS_BIND, "")); err != nil {
			t.Error(err)
		}
	})
	w.must(t, "link add link eth0 c1 netns "+name+" type macvlan mode bridge")
	w.inside.Link(t, "c1")
	w.must(t, "link del c1")
}

// A name that several have is that of the one in this namespace, if it is
// there; else one is asked which.
func TestSameNameElsewhere(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	for _, netns := range []string{w.inside.Name(), w.wire.Name(), w.host.Name()} {
		w.must(t, "link add link eth0 c1 netns "+netns+" type macvlan mode bridge")
	}
	w.must(t, "link del c1")
	for _, l := range w.links(t) {
		if l.Netns == "" {
			t.Errorf("del has left the one here")
		}
	}
	r := w.xvlan(t, "link", "del", "c1")
	r.refused(t, exitFail)
	r.says(t, "c1|netns "+w.inside.Name()+"|netns "+w.wire.Name())
	w.must(t, "link del c1 netns "+w.wire.Name())
	w.must(t, "link set c1 netns "+w.host.Name())
	w.must(t, "link del c1")
	w.same(t, before)
}

func TestDelWords(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	for _, line := range []string{
		"link del mac1", "link delete mac1", "link d mac1", "link del dev mac1", "link del name mac1",
		"link del mac1 link eth0", "link delete dev mac1 netns IN",
	} {
		t.Run(line, func(t *testing.T) {
			line = strings.ReplaceAll(line, "IN", w.inside.Name())
			w.must(t, "link add link eth0 mac1 netns "+w.inside.Name()+" type macvlan mode bridge")
			w.must(t, line)
			w.same(t, before)
		})
	}
}

func TestShowWords(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add link eth0 mac1 type macvlan mode bridge")
	w.must(t, "link add link eth0 ip1 netns "+w.inside.Name()+" type ipvlan mode l2")
	for _, tt := range []struct {
		line string
		want string // names shown
	}{
		{"link", "mac1 ip1"}, {"link show", "mac1 ip1"}, {"link list", "mac1 ip1"}, {"link ls", "mac1 ip1"}, {"link s", "mac1 ip1"},
		{"link show mac1", "mac1"}, {"link show dev ip1", "ip1"}, {"link show name ip1", "ip1"}, {"link ls ip1", "ip1"},
		{"link show link eth0", "mac1 ip1"}, {"link show mac1 link eth0", "mac1"},
		{"-d link show", "mac1 ip1"}, {"-s link", "mac1 ip1"}, {"link show -d -s", "mac1 ip1"}, {"link -ds show ip1", "ip1"},
		{"-n HOST link show", "mac1 ip1"}, {"--netns HOST link show", "mac1 ip1"}, {"-n /run/netns/HOST link show", "mac1 ip1"},
		{"-n IN link show", ""}, {"link show link w0", ""},
	} {
		line := strings.NewReplacer("HOST", w.host.Name(), "IN", w.inside.Name()).Replace(tt.line)
		in := w.host
		if strings.Contains(line, "-n") { // from anywhere
			in = w.wire
		}
		r := xvlanIn(t, in, strings.Fields(line)...)
		var names []string
		for _, l := range strings.Split(r.out, "\n") {
			if _, rest, ok := strings.Cut(l, ": "); ok && !strings.HasPrefix(l, " ") {
				name, _, _ := strings.Cut(rest, "@")
				names = append(names, name)
			}
		}
		if got := strings.Join(names, " "); got != tt.want || r.code != exitOK || r.err != "" {
			t.Errorf("%s: shows %q, want %q\n%s", line, got, tt.want, r.err)
		}
	}
	w.must(t, "parent detach eth0")
}

func TestSetNetns(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	for _, datapath := range []string{"tc", "kernel"} {
		w.must(t, "link add --datapath "+datapath+" link eth0 mac1 addr 10.77.0.10/24 type macvlan mode bridge")
		for _, line := range []string{"link set mac1 netns IN", "link set dev mac1 netns HOST", "link set mac1 netns /run/netns/IN", "link set name mac1 netns IN"} {
			w.must(t, strings.NewReplacer("HOST", w.host.Name(), "IN", w.inside.Name()).Replace(line))
			at, want := w.inside, w.inside.Name()
			if strings.HasSuffix(line, "HOST") {
				at, want = w.host, ""
			}
			if l := w.links(t); len(l) != 1 || l[0].Netns != want {
				t.Errorf("%s %s: shown as %+v", datapath, line, l)
			}
			at.Link(t, "mac1")
		}
		// What left its namespace has lost its addresses, as with ip.
		w.inside.Addr(t, "mac1", subAddr+"/24")
		w.inside.Up(t, "mac1")
		ping(t, w.inside, "", wireAddr)
		w.must(t, "link del mac1")
		w.same(t, before)
	}
}

// A namespace that has no name and nobody in it is named as it is shown.
func TestNameless(t *testing.T) {
	w := newWorld(t)
	sleeper := w.host.Start(t, "unshare", "-n", "sleep", "300")
	hosts := strings.TrimSpace(w.host.Run(t, "readlink", "/proc/self/ns/net"))
	lab.Eventually(t, "the process has a namespace of its own", func() bool {
		at, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", sleeper.Process.Pid))
		return err == nil && at != hosts
	})
	space := fmt.Sprintf("/proc/%d/ns/net", sleeper.Process.Pid)
	w.must(t, "link add link eth0 c1 netns "+space+" type macvlan mode bridge")
	holds, err := os.Open(space)
	if err != nil {
		t.Fatal(err)
	}
	defer holds.Close()
	if err := sleeper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = sleeper.Wait() // "killed" is no news
	l := w.links(t)
	if len(l) != 1 || !strings.HasPrefix(l[0].Netns, "nsid ") {
		t.Fatalf("there is %+v", l)
	}
	if out := w.must(t, "link show"); !strings.Contains(out, " netns "+l[0].Netns) {
		t.Errorf("it is shown as\n%s", out)
	}
	for _, line := range []string{"link del c1 netns nsid", "link del c1 netns nsid 4711"} {
		if r := w.xvlan(t, strings.Fields(line)...); r.code == exitOK {
			t.Errorf("%s succeeds", line)
		}
	}
	w.must(t, "link del c1 netns "+l[0].Netns)
}

// What ip deletes is gone for good with whatever xvlan does next.
func TestDeletedByOthers(t *testing.T) {
	for _, tt := range []struct{ del, next string }{
		{"ip -n IN link del c1", "link show"},
		{"ip -n IN link del c1", "-j link"},
		{"ip -n IN link del c1", "parent show"},
		{"ip -n IN link del c1", "link del c1"},
		{"ip -n IN link del c1", "link set c1 netns HOST"},
		{"ip -n IN link del c1", "parent attach eth0"},
		{"ip -n IN link del c1", "parent detach eth0"},
		{"ip -n IN link del c1", "link add link eth0 c2 type macvlan mode bridge"},
		{"ip link del xv2-1", "link show"},
		{"ip link del xv2-1", "link del c1"},
		{"ip netns del IN", "link show"},
		{"ip netns del IN", "link add link eth0 c2 type macvlan mode bridge"},
	} {
		t.Run(tt.del+", "+tt.next, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			gone := w.inside.Name() + "2" // one that nothing but its name holds
			w.host.Run(t, "ip", "netns", "add", gone)
			t.Cleanup(func() { _, _ = w.host.Try(t, "ip", "netns", "del", gone) })
			fill := strings.NewReplacer("HOST", w.host.Name(), "IN", gone)
			before := w.snapshot(t)
			w.must(t, "link add link eth0 c1 up netns "+gone+" type macvlan mode bridge")
			w.must(t, "link add link eth0 c3 up addr 10.77.0.3/24 netns "+gone+" type ipvlan mode l2")
			w.must(t, "link del c3")
			w.host.Run(t, "sh", "-c", fill.Replace(tt.del))
			lab.Eventually(t, "the device is gone", func() bool {
				_, err := w.host.Handle().LinkByName("xv2-1")
				return err != nil
			})
			w.xvlan(t, strings.Fields(fill.Replace(tt.next))...) // may well find nothing
			if strings.HasPrefix(tt.next, "link add") {
				w.must(t, "link del c2")
			} else if tt.next == "parent attach eth0" {
				w.must(t, "parent detach eth0")
			}
			w.same(t, before)
		})
	}
}

// The parent stays attached where that was asked for, and only there.
func TestParentWords(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	for _, tt := range []struct{ line, unknown, capacity string }{
		{"parent attach eth0", "pass", "1024"},
		{"parent attach eth0 unknown drop", "drop", "1024"},
		{"parent attach unknown drop capacity 7 eth0", "drop", "7"},
		{"parent attach eth0 capacity 65535 unknown pass --datapath tc", "pass", "65535"},
		{"parent attach --datapath xdp eth0", "pass", "1024"},
	} {
		w.must(t, tt.line)
		w.must(t, "link add link eth0 mac1 type macvlan mode bridge")
		w.must(t, "link del mac1")
		for _, show := range []string{"-j parent", "-j parent show", "-j parent show eth0", "parent list -j", "-j parent ls"} {
			var parents []map[string]any
			unmarshal(t, w.must(t, show), &parents)
			if len(parents) != 1 {
				t.Fatalf("%s: %d parents", show, len(parents))
			}
			p := parents[0]
			if p["ifname"] != "eth0" || p["unknown"] != tt.unknown || fmt.Sprint(p["capacity"]) != tt.capacity || p["keep"] != true {
				t.Errorf("%s: shown as %v", tt.line, p)
			}
		}
		w.must(t, "parent detach eth0")
		w.same(t, before)
	}
	// The policy of an attached parent is changed in place, and detach takes
	// what is on it along.
	w.must(t, "link add link eth0 mac1 type macvlan mode bridge")
	w.must(t, "parent attach eth0 unknown drop")
	if out := w.must(t, "parent show"); !strings.Contains(out, "drop") {
		t.Errorf("policy after a second attach:\n%s", out)
	}
	w.must(t, "parent detach eth0")
	w.same(t, before)
	if out := w.must(t, "parent show"); out != "" {
		t.Errorf("no parent is shown as:\n%s", out)
	}
	if out := w.must(t, "-j parent show"); strings.TrimSpace(out) != "[]" {
		t.Errorf("no parent is shown as:\n%s", out)
	}
}

// Where `ip -j -d -s link` says the same thing, it has the same name and form.
func TestJSONLikeIP(t *testing.T) {
	w := newWorld(t)
	for _, datapath := range []string{"tc", "kernel"} {
		w.must(t, "link add --datapath "+datapath+" link eth0 mac1 up mtu 1300 addr 10.77.0.10/24 netns "+w.inside.Name()+" type macvlan mode bridge")
		ping(t, w.inside, "", wireAddr)
		lab.Eventually(t, "mac1 is up", func() bool { return w.inside.Link(t, "mac1").Attrs().OperState.String() == "up" })
		var ours, ips []map[string]any
		unmarshal(t, w.must(t, "-j -d -s link show mac1"), &ours)
		unmarshal(t, w.inside.Run(t, "ip", "-j", "-d", "-s", "link", "show", "mac1"), &ips)
		for _, key := range []string{"ifindex", "ifname", "flags", "mtu", "operstate", "link_type", "address"} {
			if !reflect.DeepEqual(ours[0][key], ips[0][key]) {
				t.Errorf("%s: %s is %v, with ip %v", datapath, key, ours[0][key], ips[0][key])
			}
		}
		for key, value := range ours[0] {
			if other, ok := ips[0][key]; ok && reflect.TypeOf(value) != reflect.TypeOf(other) {
				t.Errorf("%s: %s is a %T, with ip a %T", datapath, key, value, other)
			}
		}
		if s := counters(t, ours[0]["stats64"]); s != counters(t, ips[0]["stats64"]) {
			t.Errorf("%s: counted %s, by the device %s", datapath, s, counters(t, ips[0]["stats64"]))
		}
		info := ours[0]["linkinfo"].(map[string]any)
		if datapath == "kernel" && (!reflect.DeepEqual(info["info_kind"], ips[0]["linkinfo"].(map[string]any)["info_kind"])) {
			t.Errorf("kind %v", info)
		}
		if got, _ := json.Marshal(info); string(got) != `{"info_data":{"mode":"bridge"},"info_kind":"macvlan"}` {
			t.Errorf("%s: linkinfo %s", datapath, got)
		}
		w.must(t, "link del mac1")
	}
	if out := w.must(t, "-j link show"); strings.TrimSpace(out) != "[]" {
		t.Errorf("no link is shown as:\n%s", out)
	}
}

// counters picks what both count of a stats64.
func counters(tb testing.TB, stats any) string {
	tb.Helper()
	var s struct {
		RX, TX struct{ Bytes, Packets uint64 }
	}
	raw, err := json.Marshal(stats)
	if err != nil {
		tb.Fatal(err)
	}
	unmarshal(tb, string(raw), &s)
	return fmt.Sprintf("%+v", s)
}

// Whatever a command opens it closes, also when it fails.
func TestNoLeaks(t *testing.T) {
	w := newWorld(t)
	round := func() {
		for _, line := range []string{
			"link add link eth0 c1 netns IN addr 10.77.0.10/24 up type macvlan mode bridge",
			"link add link eth0 c2 type ipvlan mode l2",
			"link add link eth0 c3 addr 10.77.0.10/24 type macvlan mode bridge",
			"link add link eth0 c2 netns IN mtu 9000 type ipvlan mode l2", "link add --datapath xdp link eth0 c3 type ipvlan mode l2",
			"-d -s link show", "-j link show c1", "top -b -n 1 -d 0.1 eth0", "top -b nope", "link show nope", "parent show", "probe eth0", "parent attach eth0 capacity 3",
			"link set c2 netns IN", "link set c1 netns HOST", "link set c1 netns nope", "link del c1", "link del nope",
			"parent detach eth0", "parent detach eth0", "link add --datapath kernel link eth0 c1 netns IN type macvlan mode bridge",
			"link show", "link del c1", "-n HOST link show", "-n IN parent show",
		} {
			w.xvlan(t, strings.Fields(strings.NewReplacer("HOST", w.host.Name(), "IN", w.inside.Name()).Replace(line))...)
		}
	}
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // would close what was forgotten
	round()
	before := open()
	round()
	if after := open(); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}
