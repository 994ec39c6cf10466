package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/xvlan/xvlan/lab"
)

// fileOf writes a file for apply, with the world's names for INSIDE and HOST.
func (w *world) fileOf(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "lan.yaml")
	text = strings.NewReplacer("INSIDE", w.inside.Name(), "HOST", w.host.Name()).Replace(text)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// example reads a file of testdata.
func example(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// applies checks what apply prints of a file, first only to be shown, which
// changes nothing, then made, and that a repetition changes nothing.
func (w *world) applies(t *testing.T, text, want string, flags ...string) {
	t.Helper()
	args := append([]string{"apply", "-f", w.fileOf(t, text)}, flags...)
	want = strings.NewReplacer("INSIDE", w.inside.Name(), "HOST", w.host.Name()).Replace(want)
	before := w.snapshot(t)
	for _, run := range []struct{ flag, end string }{{"--dry-run", ", none made (--dry-run)"}, {"", " made"}} {
		r := w.xvlan(t, append(args, strings.Fields(run.flag)...)...)
		count := fmt.Sprintf("%d changes", strings.Count(want, "\n"))
		if count == "1 changes" {
			count = "1 change"
		}
		if r.code != exitOK || r.err != "" || r.out != want+count+run.end+"\n" {
			t.Fatalf("apply %s: exit status %d, prints\n%s%swant\n%s", run.flag, r.code, r.out, r.err, want)
		}
		if run.flag != "" {
			w.same(t, before)
		}
	}
	after := w.snapshot(t)
	if r := w.xvlan(t, args...); r.out != "nothing to change\n" {
		t.Errorf("repeated: %+v", r)
	}
	w.same(t, after)
}

// All that can be said is made, found to be there, printed as a file that says
// the same, and made again by that where it is gone.
func TestApply(t *testing.T) {
	w := newWorld(t)
	w.inside.Sysctl(t, "net.ipv6.conf.default.disable_ipv6", "0")
	lab.Veth(t, w.host, "eth1", w.wire, "w1")
	lab.Veth(t, w.host, "eth2", w.wire, "w2")
	before := w.snapshot(t)
	text := example(t, "all.yaml")
	if !lab.KernelFrom(t, 6, 4) {
		text = strings.Replace(text, "        bclim: -1\n", "", 1)
	}
	if !lab.HasKind(t, "netkit") {
		text = strings.Replace(text, "        leg: netkit\n", "", 1)
	}
	file := w.fileOf(t, text)
	w.must(t, "apply -f "+file)
	ping(t, w.inside, "c1", wireAddr)
	ping(t, w.wire, "", "10.77.0.11")
	made := w.snapshot(t)
	again := func(file string) {
		t.Helper()
		if out := w.must(t, "apply --prune -f "+file); out != "nothing to change\n" {
			t.Errorf("apply again: %s", out)
		}
		w.same(t, made)
	}
	again(file)
	config := w.must(t, "config")
	again(w.fileOf(t, config))
	// As after a reboot.
	for _, parent := range []string{"eth0", "eth1", "eth2"} {
		w.must(t, "parent detach "+parent)
	}
	w.same(t, before)
	w.must(t, "apply -f "+w.fileOf(t, config))
	if now := w.must(t, "config"); now != config {
		t.Errorf("made again, it is\n%sand not\n%s", now, config)
	}
	ping(t, w.inside, "c1", wireAddr)
	w.must(t, "apply --prune -f "+w.fileOf(t, "parents: []"))
	w.same(t, before)
}

// A file from the standard input, for parents in other network namespaces.
func TestApplyNetns(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	cmd := command(t, "apply", "-f", "-")
	text := strings.ReplaceAll("parents: [{name: eth0, netns: HOST, links: [{name: c1, type: macvlan, netns: INSIDE}]}]", "HOST", w.host.Name())
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(text, "INSIDE", w.inside.Name()))
	start(t, w.wire.Do, cmd)
	want := "+ -n " + w.host.Name() + " link c1 link eth0 netns " + w.inside.Name() + " type macvlan mode vepa\n1 change made\n"
	if r := wait(t, cmd); r.code != exitOK || r.out != want || r.err != "" {
		t.Errorf("exit status %d, prints\n%s%swant\n%s", r.code, r.out, r.err, want)
	}
	config := xvlanIn(t, w.wire, "-n", w.host.Name(), "config")
	if r := w.xvlan(t, "apply", "-f", w.fileOf(t, config.out)); r.out != "nothing to change\n" {
		t.Errorf("in the namespace itself: %+v", r)
	}
	if r := xvlanIn(t, w.wire, "-j", "apply", "--prune", "-f", w.fileOf(t, "parents: [{name: eth0, netns: HOST}]")); !strings.Contains(r.out, `"done": true`) {
		t.Errorf("pruned: %+v", r)
	}
	if links := w.links(t); len(links) != 0 {
		t.Errorf("left: %+v", links)
	}
	w.must(t, "parent detach eth0")
	w.same(t, before)
}

// What differs is changed, traffic flowing where it can, and else not unless it
// is asked for. Each file stands on those before it.
func TestApplyChanges(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	head := "parents:\n- name: eth0\n  unknown: drop\n  links:\n"
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: bridge, netns: INSIDE}",
		"+ parent eth0 unknown drop\n+ link c1 link eth0 netns INSIDE type macvlan mode bridge\n")
	was := w.links(t)[0].MAC
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: private, address: 02:00:00:00:77:10, up: true, mtu: 1400}",
		"~ link c1 link eth0 mode bridge -> private, address "+was+" -> 02:00:00:00:77:10, mtu 1500 -> 1400, up false -> true\n")
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: private, addr: [10.77.0.10/24, 10.77.0.11/24]}",
		"~ link c1 link eth0 addr none -> 10.77.0.10/24 10.77.0.11/24\n")
	ping(t, w.inside, "", wireAddr)
	ping(t, w.wire, "", "10.77.0.11")
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: private, addr: 10.77.0.11/25}",
		"~ link c1 link eth0 addr 10.77.0.10/24 10.77.0.11/24 -> 10.77.0.11/25\n")
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: private, via-host: [169.254.169.254, 10.96.0.0/12]}",
		"~ link c1 link eth0 via-host none -> 10.96.0.0/12 169.254.169.254/32\n")
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: private, via-host: '10.96.0.0/12,fd00:96::/112'}",
		"~ link c1 link eth0 via-host 10.96.0.0/12 169.254.169.254/32 -> 10.96.0.0/12 fd00:96::/112\n")
	if out := w.must(t, "-d link show c1"); !strings.Contains(out, "\n    via-host 10.96.0.0/12 fd00:96::/112\n") {
		t.Errorf("it shows\n%s", out)
	}
	if out := w.must(t, "config"); !strings.Contains(out, "via-host: [10.96.0.0/12, 'fd00:96::/112']") {
		t.Errorf("as a file it is\n%s", out)
	}
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: vepa, via-host: off}",
		"~ link c1 link eth0 mode private -> vepa, via-host 10.96.0.0/12 fd00:96::/112 -> none\n")
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: private, via-host: 10.96.0.0/12}",
		"~ link c1 link eth0 mode vepa -> private, via-host none -> 10.96.0.0/12\n")
	w.must(t, "link set c1 via-host off")
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: private, addr: 10.77.0.11/24, netns: HOST, up: true}",
		"~ link c1 link eth0 netns INSIDE -> HOST, addr 10.77.0.11/25 -> 10.77.0.11/24\n")
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: source, macaddr: ["+wireMAC+", "+parentMAC+"]}",
		"~ link c1 link eth0 mode private -> source, macaddr none -> "+wireMAC+" "+parentMAC+"\n")
	w.applies(t, head+"  - {name: c1, type: macvlan, mode: source, macaddr: "+wireMAC+", up: false}",
		"~ link c1 link eth0 macaddr "+parentMAC+" "+wireMAC+" -> "+wireMAC+", up true -> false\n")
	w.applies(t, "parents: [{name: eth0, unknown: pass, links: [{name: c1, type: ipvlan, mode: l2}, {name: c2, type: ipvlan, mode: l3, flag: private}]}]",
		"- link c1 link eth0: to be made anew: type macvlan -> ipvlan\n~ parent eth0 unknown drop -> pass\n"+
			"+ link c1 link eth0 type ipvlan mode l2\n+ link c2 link eth0 type ipvlan mode l3 private\n", "--replace")
	w.applies(t, "parents: [{name: eth0, capacity: 3, links: [{name: c2, type: ipvlan, mode: l2, netns: INSIDE}]}]",
		"- link c1 link eth0\n- parent eth0: to be attached anew: capacity 1024 -> 3\n+ parent eth0 capacity 3\n"+
			"+ link c2 link eth0 netns INSIDE type ipvlan mode l2\n", "--replace", "--prune")
	w.applies(t, "parents: [{name: eth0, links: [{name: c2, type: ipvlan, mode: l2, addr: 10.77.0.12/24, up: true}]}]",
		"~ link c2 link eth0 addr none -> 10.77.0.12/24, up false -> true\n")
	ping(t, w.wire, "", "10.77.0.12") // which nobody answers for unless it is given or learned
	if links := w.links(t); len(links[0].Addrs) != 1 || links[0].Addrs[0].Origin != "given" {
		t.Errorf("addresses: %+v", links[0].Addrs)
	}
	w.applies(t, "parents: []", "- parent eth0\n", "--prune")
	w.same(t, before)
}

// Several of one name are told apart by their namespaces, and the one that only
// has to be the one is found wherever it is.
func TestApplyNames(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	file := func(links string) string { return "parents: [{name: eth0, links: [" + links + "]}]" }
	w.applies(t, file("{name: c1, type: macvlan, netns: INSIDE}, {name: c1, type: macvlan, mode: bridge, netns: HOST}"),
		"+ link c1 link eth0 netns INSIDE type macvlan mode vepa\n+ link c1 link eth0 netns HOST type macvlan mode bridge\n")
	w.applies(t, file("{name: c1, type: macvlan, netns: INSIDE, mode: private}"), "~ link c1 link eth0 mode vepa -> private\n")
	wire := w.wire.Name()
	w.applies(t, file("{name: c1, type: macvlan, netns: "+wire+"}"), "+ link c1 link eth0 netns "+wire+" type macvlan mode vepa\n")
	w.must(t, "link del c1")
	r := w.xvlan(t, "apply", "-f", w.fileOf(t, file("{name: c1, type: macvlan}")))
	r.refused(t, exitUsage)
	r.says(t, "lan.yaml:1:39: link c1: netns: several on eth0 have that name; say which")
	w.must(t, "link del c1 netns "+wire)
	w.applies(t, file("{name: c1, type: macvlan, netns: "+w.wire.Path()+", mode: private}"), "~ link c1 link eth0 netns INSIDE -> "+w.wire.Path()+"\n")
	w.must(t, "link del c1")
	w.same(t, before)
}

// mistakes are files that are refused, with what is said of them, and whether
// the schema refuses them, too.
var mistakes = []struct {
	text, says string
	code       int
	schema     bool
}{
	{"", ":1:1: parents: |0 YAML documents", exitUsage, false},
	{"parents: []\n---\nparents: []", ":1:1: parents: 2 YAML documents", exitUsage, false},
	{"links: []", ":1:1: file: links: not known; its keys are parents", exitUsage, true},
	{"parents:\n  - name: eth0\n   links: []", ":3:4: ", exitUsage, false},
	{"parents:\n- name: eth0\n  name: eth1", ":3:3: parent: name: said twice", exitUsage, false},
	{"parents: eth0", ":1:10: file: parents: write it as a list", exitUsage, true},
	{"parents: [eth0]", ":1:11: parent: write it as lines of KEY: VALUE", exitUsage, true},
	{"parents: [{unknown: drop}]", ":1:11: parent: name: missing", exitUsage, true},
	{"parents: [{name: eth0}, {name: eth0}]", ":1:32: parent eth0: name: it is in the file twice", exitUsage, false},
	{"parents: [{name: eth0, unknow: drop}]", ":1:24: parent: unknow: not known; its keys are name, netns", exitUsage, true},
	{"parents: [{name: eth0, unknow\n\nn: drop}]", ":1:24: parent: unknow?n: not known; its keys are name", exitUsage, true},
	{"parents: [{name: \"eth\\e\", capacity: 0}]", `:1:37: parent eth?: capacity "0": no positive number`, exitUsage, true},
	{"parents: [{name: eth0, unknown: deny}]", `:1:33: parent eth0: unknown "deny": pass or drop`, exitUsage, true},
	{"parents: [{name: eth0, unknown: }]", ":1:33: parent eth0: unknown: its value is missing", exitUsage, true},
	{"parents: [{name: eth0, capacity: 70000}]", ":1:34: parent eth0: capacity 70000: not in 1..65535", exitUsage, true},
	{"parents: [{name: eth0, datapath: xpd}]", `:1:34: parent eth0: datapath "xpd": not known; xdp`, exitUsage, true},
	{"parents: [{name: eth1, datapath: kernel}]", ":1:18: parent eth1: not supported here: the kernel rung attaches nothing", exitFail, false},
	{"parents: [{name: eth9}]", ":1:18: parent eth9: not found: no such device", exitFail, false},
	{"parents: [{name: eth0, netns: nope}]", ":1:31: parent eth0: netns nope: not found; `ip netns` lists", exitFail, false},
	{"parents: [{name: eth9, links: [{name: c1, type: macvlan}]}]", "link c1: parent eth9: not found", exitFail, false},
	{"LINK", ":1:32: link: write it as lines", exitUsage, true},
	{"{type: macvlan}", ":1:32: link: name: missing", exitUsage, true},
	{"{name: c1}", ":1:39: link c1: type: say which: macvlan or ipvlan", exitUsage, true},
	{"{name: c1, type: macvtap}", ":1:49: link c1: type macvtap: not known", exitUsage, true},
	{"{name: c1, type: macvlan, modus: bridge}", ":1:58: link: modus: not known; its keys are name, type, mode", exitUsage, true},
	{"{name: c1, type: macvlan, nodst: true}", ":1:58: link: nodst: not known", exitUsage, true},
	{"{name: c1, type: macvlan, link: eth1}", ":1:58: link: link: not known", exitUsage, true},
	{"{name: c1, type: macvlan, mode: l2}", ":1:64: link c1: mode l2: no mode of macvlan; these are: vepa, bridge", exitUsage, true},
	{"{name: c1, type: ipvlan, mode: bridge}", ":1:63: link c1: mode bridge: no mode of ipvlan", exitUsage, true},
	{"{name: c1, type: ipvlan, flag: nodst}", ":1:63: link c1: flag nodst: no flag of ipvlan; these are: bridge, private, vepa", exitUsage, true},
	{"{name: c1, type: ipvlan, macaddr: []}", ":1:57: link c1: macaddr: only a macvlan has it", exitUsage, true},
	{"{name: c1, type: macvlan, flag: nodst}", ":1:64: link c1: flag nodst: only mode source has it", exitUsage, true},
	{"{name: c1, type: macvlan, mode: bridge, macaddr: [02:00:00:00:77:01]}", ":1:81: link c1: macaddr: only mode source has a list", exitUsage, true},
	{"{name: c1, type: macvlan, mode: source, macaddr: [02:00:00:00:77:01, 2]}", `:1:101: link c1: macaddr "2": no MAC address; write six`, exitUsage, true},
	{"{name: c1, type: macvlan, addr: [10.77.0.10/24, 10.77.0.300]}", `:1:80: link c1: addr "10.77.0.300": no address; write it as`, exitUsage, false},
	{"{name: c1, type: macvlan, addr: {a: b}}", ":1:64: link c1: addr: write it as a list", exitUsage, true},
	{"{name: c1, type: macvlan, up: 1}", ":1:62: link c1: up: say true or false", exitUsage, true},
	{"{name: c1, type: macvlan, mtu: many}", `:1:63: link c1: mtu "many": no positive number`, exitUsage, true},
	{"{name: c1, type: macvlan, mtu: 9000}", ":1:63: link c1: mtu 9000: not valid: eth0 allows 68 to 1500", exitFail, false},
	{"{name: c1, type: macvlan, netns: nope}", ":1:65: link c1: netns nope: not found; `ip netns` lists", exitFail, false},
	{"{name: a-name-far-too-long, type: macvlan}", `:1:39: link a-name-far-too-long: name "a-name-far-too-long": not valid`, exitFail, true},
	{"{name: eth0, type: macvlan}", ":1:39: link eth0: name eth0: already taken", exitFail, false},
	{"{name: c1, type: macvlan, address: " + parentMAC + "}", ":1:67: link c1: address " + parentMAC + ": already taken: it is the parent's", exitFail, false},
	{"{name: c1, type: macvlan, address: " + subMAC + "}, {name: c2, type: macvlan, address: " + subMAC + "}", "link c2: address " + subMAC + ": another on eth0", exitUsage, false},
	{"{name: c1, type: macvlan, addr: 10.77.0.10}, {name: c2, type: ipvlan, addr: 10.77.0.10/24}", "link c2: addr 10.77.0.10/24: it is on eth0 twice", exitUsage, false},
	{"{name: c1, type: macvlan, addr: " + hostAddr + "}", ":1:64: link c1: addr " + hostAddr + ": already taken: the host", exitFail, false},
	{"{name: c1, type: macvlan}, {name: c1, type: ipvlan}", "link c1: name: another in the file has it", exitUsage, false},
	{"{name: c1, type: macvlan, mode: passthru}, {name: c2, type: ipvlan}", ":1:64: link c1: mode passthru: it leaves nothing for siblings", exitUsage, false},
	{"{name: c1, type: macvlan, mode: passthru}", "link c1: mode passthru: in use by somebody else: |there", exitFail, false},
	{"{name: c1, type: macvlan, delivery: xdp}", ":1:68: link c1: delivery xdp: not supported here: eth0 stands on rung tc", exitFail, false},
	{"{name: c1, type: macvlan, host: yes}", `:1:64: link c1: host "yes": not known; on and off are`, exitUsage, true},
	{"{name: c1, type: macvlan, host: on}", ":1:64: link c1: host on: not supported here: vepa", exitFail, false},
	{"{name: c1, type: macvlan, mode: bridge, via-host: 10.96.0.0/33}", `:1:82: link c1: via-host "10.96.0.0/33": not valid: no network; write them as`, exitFail, false},
	{"{name: c1, type: macvlan, mode: bridge, via-host: 10.96.0.1/12}", ":1:82: link c1: via-host 10.96.0.1/12: not valid: more bits are set than its length says; the network is 10.96.0.0/12", exitFail, false},
	{"{name: c1, type: macvlan, mode: bridge, via-host: services}", `:1:82: link c1: via-host "services": not valid: no network`, exitFail, true},
	{"{name: c1, type: macvlan, via-host: 10.96.0.0/12}", ":1:68: link c1: via-host: not supported here: vepa", exitFail, false},
	{"{name: c1, type: macvlan, leg: tap}", `:1:63: link c1: leg "tap": not known; veth and netkit are`, exitUsage, true},
	{"{name: c1, type: macvlan, leg: netkit, delivery: xdp}", ":1:81: link c1: delivery xdp: not supported here: a netkit's driver has no XDP", exitFail, false},
	{"{name: there, type: macvlan, leg: netkit}", "link there: leg veth -> netkit: it is given when the device is made; --replace", exitFail, false},
	{"{name: there, type: ipvlan}", ":1:52: link there: type macvlan -> ipvlan: a device has one type for good; --replace makes it anew", exitFail, false},
	{"{name: there, type: macvlan, mode: passthru}", "link there: mode vepa -> passthru: passthru can neither be entered nor left; --replace", exitFail, false},
	{"{name: there, type: macvlan, mode: source, flag: nodst}", "link there: flag none -> nodst: it is given when the device is made; --replace", exitFail, false},
	{"{name: there, type: macvlan, address: " + parentMAC + "}", "link there: address " + parentMAC + ": already taken", exitFail, false},
	{"parents: [{name: eth0, capacity: 1, links: [{name: c1, type: macvlan}]}]", ":1:34: parent eth0: capacity 1024 -> 1: it is decided when the parent is attached; --replace", exitFail, false},
	{"parents: [{name: eth0, datapath: xdp}]", ":1:34: parent eth0: datapath tc -> xdp: it is decided", exitFail, false},
}

// textOf makes a file of a mistake: what does not say all stands in one.
func textOf(text string) string {
	if text == "" || strings.HasPrefix(text, "parents") || strings.HasPrefix(text, "links") {
		return text
	}
	return "parents: [{name: eth0, links: [" + text + "]}]"
}

// What is wrong is said with its place in the file, and nothing is changed.
func TestApplyRefuses(t *testing.T) {
	w := newWorld(t)
	lab.Veth(t, w.host, "eth1", w.wire, "w1")
	before := w.snapshot(t)
	w.must(t, "link add link eth0 name there type macvlan")
	there := w.snapshot(t)
	for _, m := range mistakes {
		file := w.fileOf(t, textOf(m.text))
		for _, flag := range []string{"", "--dry-run"} {
			r := w.xvlan(t, append([]string{"apply", "-f", file}, strings.Fields(flag)...)...)
			r.refused(t, m.code)
			r.says(t, m.says)
			w.same(t, there)
		}
	}
	// Nor is made anew what others would go with.
	file := w.fileOf(t, "parents: [{name: eth0, capacity: 1, links: [{name: c1, type: macvlan}]}]")
	r := w.xvlan(t, "apply", "--replace", "-f", file)
	r.refused(t, exitFail)
	r.says(t, ":1:34: parent eth0: capacity 1024 -> 1: detaching it removes there, which is not in the file|--prune")
	w.same(t, there)
	w.must(t, "parent detach eth0")
	w.same(t, before)
	r = w.xvlan(t, "apply", "-f", w.fileOf(t, "parents: [{name: eth0, capacity: 1, links: [{name: c1, type: macvlan}, {name: c2, type: macvlan}]}]"))
	r.refused(t, exitFail)
	r.says(t, ":1:34: parent eth0: capacity 1: there would be 2 sub-interfaces; say a higher one")
	w.xvlan(t, "apply").refused(t, exitUsage)
	w.xvlan(t, "apply", "-f", "/nonexistent").refused(t, exitFail)
	w.same(t, before)
}

// What fails stops, and says what is done and what is not; a repetition does
// the rest.
func TestApplyFails(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	file := w.fileOf(t, textOf("{name: c1, type: macvlan}, {name: c2, type: macvlan, netns: INSIDE, addr: 'fd77::10/64'}, {name: c3, type: ipvlan}"))
	r := w.xvlan(t, "apply", "-f", file)
	if r.code != exitFail || r.out != "+ link c1 link eth0 type macvlan mode vepa\n" {
		t.Errorf("exit status %d, prints\n%s", r.code, r.out)
	}
	second := "+ link c2 link eth0 netns " + w.inside.Name() + " addr fd77::10/64 type macvlan mode vepa"
	third := "+ link c3 link eth0 type ipvlan mode l3"
	r.says(t, "lan.yaml:1:66: link c2: add addr fd77::10/64: |1 of 3 changes made, not made: "+second+", "+third+"; a repetition goes on")
	w.inside.Sysctl(t, "net.ipv6.conf.default.disable_ipv6", "0")
	if out := w.must(t, "apply -f "+file); out != second+"\n"+third+"\n2 changes made\n" {
		t.Errorf("repeated: %s", out)
	}
	w.must(t, "parent detach eth0")
	w.same(t, before)
}

// The schema takes what apply takes and config prints, and refuses what is
// wrong by itself.
func TestApplySchema(t *testing.T) {
	w := newWorld(t)
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(w.must(t, "apply --schema")))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("apply.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("apply.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	valid := func(text string) error {
		var v any
		if err := yaml.Load([]byte(text), &v); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return schema.Validate(v)
	}
	w.must(t, "link add link eth0 name c1 netns "+w.inside.Name()+" addr "+subAddr+"/24 addr 10.77.0.11 up type ipvlan mode l2")
	w.must(t, "parent attach eth0 unknown drop")
	for _, text := range []string{example(t, "all.yaml"), w.must(t, "config"), "parents: []"} {
		if err := valid(text); err != nil {
			t.Errorf("%s%v", text, err)
		}
	}
	w.must(t, "parent detach eth0")
	for _, m := range mistakes {
		if m.text == "" || strings.Contains(m.text, "\n") {
			continue // no YAML, or not one document
		}
		if err := valid(textOf(m.text)); (err != nil) != m.schema {
			t.Errorf("%s: %v", m.text, err)
		}
	}
}
