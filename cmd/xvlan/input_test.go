package main

import (
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// What a wrong command says: its exit status, and pieces of its one line, which
// names what was wrong and what to do.
type wrong struct {
	line string
	code int
	says string // pieces, separated by |
}

// In these lines eth0 is the parent, HOST and IN are namespaces; m1 and i1 are
// sub-interfaces that stand there.
var wrongInput = []wrong{
	// The parent.
	{"link add link nope c1 type macvlan mode bridge", exitFail, "parent nope|not found|`ip link` lists them"},
	{"link add link lo c1 type macvlan mode bridge", exitFail, "parent lo|loopback|name an Ethernet device"},
	{"link add link tun0 c1 type macvlan mode bridge", exitFail, "parent tun0|link type is none|name an Ethernet device"},
	{"link add link xv2-1 c1 type macvlan mode bridge", exitFail, "parent xv2-1|host leg|name its parent"},
	{"link add c1 type macvlan mode bridge", exitUsage, "link|link PARENT"},
	{"link add c1 link", exitUsage, "link|value is missing"},

	// The name.
	{"link add link eth0 eth0 type macvlan mode bridge", exitFail, "name eth0|taken|choose another"},
	{"link add link eth0 m1 type macvlan mode bridge", exitFail, "name m1|taken|choose another"},
	{"link add link eth0 taken netns IN type macvlan mode bridge", exitFail, "name taken|taken in netns IN|choose another"},
	{"link add --datapath kernel link eth1 taken netns IN type macvlan mode bridge", exitFail, "name taken|taken in netns IN|choose another"},
	{"link add link eth0 sixteen-letters- type macvlan mode bridge", exitFail, `name "sixteen-letters-"|16 characters|at most 15`},
	{"link add link eth0 a/b type macvlan mode bridge", exitFail, `name "a/b"|not valid|'/'`},
	{"link add link eth0 a:b type macvlan mode bridge", exitFail, `name "a:b"|not valid|':'`},
	{"link add link eth0 a%d type macvlan mode bridge", exitFail, `name "a%d"|not valid|'%'`},
	{"link add link eth0 .. type macvlan mode bridge", exitFail, `name ".."|not valid`},
	{"link add link eth0 type macvlan mode bridge", exitUsage, "name|name NAME"},
	{"link add link eth0 name", exitUsage, "name|value is missing"},
	{"link add link eth0 c1 c2 type macvlan mode bridge", exitUsage, "c2|not known|--help"},

	// The MAC address.
	{"link add link eth0 c1 address 02:00:00:00:00 type macvlan mode bridge", exitUsage, `address "02:00:00:00:00"|six bytes`},
	{"link add link eth0 c1 address 02:00:00:00:00:00:00:01 type macvlan mode bridge", exitFail, "address 02:00:00:00:00:00:00:01|6 bytes"},
	{"link add link eth0 c1 address eth1 type macvlan mode bridge", exitUsage, `address "eth1"|six bytes`},
	{"link add link eth0 c1 address 01:00:5e:00:00:01 type macvlan mode bridge", exitFail, "address 01:00:5e:00:00:01|group address|even"},
	{"link add link eth0 c1 address ff:ff:ff:ff:ff:ff type ipvlan mode l2", exitFail, "address ff:ff:ff:ff:ff:ff|group address|even"},
	{"link add link eth0 c1 address 00:00:00:00:00:00 type macvlan mode bridge", exitFail, "address 00:00:00:00:00:00|zero"},
	{"link add link eth0 c1 address PARENT-MAC type macvlan mode bridge", exitFail, "address PARENT-MAC|the parent's|leave it out"},
	{"link add link eth0 c1 address SUB-MAC type macvlan mode bridge", exitFail, "address SUB-MAC|sibling|leave it out"},
	{"link add link eth0 c1 address", exitUsage, "address|missing"},

	// The addresses.
	{"link add link eth0 c1 addr 10.77.0.1/24 type macvlan mode bridge", exitFail, "addr 10.77.0.1|the host|choose another"},
	{"link add link eth0 c1 addr 10.77.0.254/24 type ipvlan mode l2", exitFail, "addr 10.77.0.254|gateway|choose another"},
	{"link add link eth0 c1 addr 10.77.0.3/24 type ipvlan mode l2", exitFail, "addr 10.77.0.3|sibling m1|(given)|choose another"},
	{"link add link eth0 c1 addr 10.77.0.9/24 addr 10.77.0.4/24 type macvlan mode bridge", exitFail, "addr 10.77.0.4|sibling i1|(given)|choose another"},
	{"link add link eth0 c1 addr 10.77.0.66/24 type macvlan mode bridge", exitFail, "addr 10.77.0.66|sibling i1|(learned)|choose another"},
	{"link add link eth0 c1 addr 10.77.0.9/24 addr 10.77.0.9/24 type ipvlan mode l2", exitFail, "addr 10.77.0.9|twice"},
	{"link add link eth0 c1 addr 224.0.0.1/4 type macvlan mode bridge", exitFail, "addr 224.0.0.1/4|unicast"},
	{"link add link eth0 c1 addr 255.255.255.255 type macvlan mode bridge", exitFail, "addr 255.255.255.255/32|unicast"},
	{"link add link eth0 c1 addr 0.0.0.0/0 type macvlan mode bridge", exitFail, "addr 0.0.0.0/0|unicast"},
	{"link add link eth0 c1 addr 127.0.0.1/8 type macvlan mode bridge", exitFail, "addr 127.0.0.1/8|unicast"},
	{"link add link eth0 c1 addr ff02::1/64 type ipvlan mode l2", exitFail, "addr ff02::1/64|unicast"},
	{"link add link eth0 c1 addr ::/0 type ipvlan mode l2", exitFail, "addr ::/0|unicast"},
	{"link add link eth0 c1 addr ::ffff:10.77.0.9/120 type ipvlan mode l2", exitUsage, "addr|IPv4 address in IPv6 form|10.77.0.9"},
	{"link add link eth0 c1 addr fe80::1%eth0 type ipvlan mode l2", exitUsage, `addr "fe80::1%eth0"|192.0.2.7/24`},
	{"link add link eth0 c1 addr 10.77.0.300/24 type macvlan mode bridge", exitUsage, `addr "10.77.0.300/24"|192.0.2.7/24`},
	{"link add link eth0 c1 addr 10.77.0.9/33 type macvlan mode bridge", exitUsage, `addr "10.77.0.9/33"|192.0.2.7/24`},
	{"link add link eth0 c1 addr", exitUsage, "addr|missing"},

	// The MTU.
	{"link add link eth0 c1 mtu 1501 type macvlan mode bridge", exitFail, "mtu 1501|eth0 allows 68 to 1500"},
	{"link add link eth0 c1 mtu 67 type ipvlan mode l2", exitFail, "mtu 67|eth0 allows 68 to 1500"},
	{"link add link eth0 c1 mtu 0 type macvlan mode bridge", exitUsage, `mtu "0"|number`},
	{"link add link eth0 c1 mtu -5 type macvlan mode bridge", exitUsage, "-5"},
	{"link add link eth0 c1 mtu 1k type macvlan mode bridge", exitUsage, `mtu "1k"|number`},
	{"link add link eth0 c1 mtu 99999999999999999999 type macvlan mode bridge", exitUsage, `mtu "99999999999999999999"|number`},
	{"link add link eth0 c1 mtu", exitUsage, "mtu|missing"},

	// Type and mode.
	{"link add link eth0 c1", exitUsage, "type|type macvlan mode bridge"},
	{"link add link eth0 c1 type", exitUsage, "type|missing"},
	{"link add link eth0 c1 type vlan id 5", exitUsage, "type vlan|not known|macvlan and ipvlan"},
	{"link add link eth0 c1 type macvlan mode bridge bcqueuelen", exitUsage, "bcqueuelen|missing"},
	{"link add link eth0 c1 type macvlan mode bridge bcqueuelen x", exitUsage, `bcqueuelen "x"|0 to 4294967295`},
	{"link add link eth0 c1 type macvlan mode bridge bclim -2147483649", exitUsage, `bclim "-2147483649"|-2147483648 to 2147483647`},
	{"link add link eth0 c1 type macvlan mode bridge bcqueuelen 4294967296", exitUsage, `bcqueuelen "4294967296"|0 to 4294967295`},
	{"link add link eth0 c1 type macvlan mode bridge bclim 2147483648", exitUsage, `bclim "2147483648"|-2147483648 to 2147483647`},
	{"link add link eth0 c1 type macvlan mode bridge bclim x", exitUsage, `bclim "x"|number`},
	{"link add link eth0 c1 type ipvlan mode l2 bcqueuelen 5", exitUsage, "bcqueuelen|not known|ipvlan"},
	{"link add link eth0 c1 type macvlan mode bridge private", exitUsage, "private|not known|macvlan|--help"},
	{"link add link eth0 c1 type macvlan mode bridge nodst", exitUsage, "nodst|source"},
	{"link add link eth0 c1 type macvlan mode bridge nopromisc", exitUsage, "nopromisc|passthru"},
	{"link add link eth0 c1 type macvlan mode bridge macaddr set 02:00:00:00:00:09", exitUsage, "macaddr|source"},
	{"link add link eth0 c1 type macvlan mode source macaddr add", exitUsage, "macaddr add|value is missing"},
	{"link add link eth0 c1 type macvlan mode source macaddr put 02:00:00:00:00:09", exitUsage, "macaddr put|not known"},
	{"link add link eth0 c1 type macvlan mode source macaddr add 01:00:5e:00:00:01", exitFail, "macaddr|01:00:5e:00:00:01|group"},
	{"link add link eth0 c1 type macvlan mode source flag odd", exitUsage, "flag odd|not known"},
	{"link add link eth0 c1 address 02:00:00:00:77:99 type macvlan mode passthru", exitFail, "address|passthru|leave it out"},
	{"link add link eth0 c1 type ipvlan mode bridge", exitUsage, "mode bridge|ipvlan|l2"},
	{"link add link eth0 c1 type macvlan mode l2", exitUsage, "mode l2|macvlan|bridge"},
	{"link add link eth0 c1 type macvlan mode", exitUsage, "mode|missing"},
	{"link add link eth0 c1 delivery peer type macvlan mode bridge", exitUsage, `delivery "peer"|auto and xdp`},
	{"link add link eth0 c1 delivery", exitUsage, "delivery|missing"},
	{"link add link eth0 c1 delivery xdp type macvlan mode bridge", exitFail, "delivery xdp|not supported|eth0 stands on rung tc|datapath xdp"},
	{"link add link eth2 c1 delivery xdp type macvlan mode bridge", exitFail, "delivery xdp|kernel rung|leave it out"},
	{"link add link eth0 c1 leg tap type macvlan mode bridge", exitUsage, `leg "tap"|veth and netkit`},
	{"link add link eth0 c1 leg", exitUsage, "leg|missing"},
	{"link add link eth0 c1 leg netkit delivery xdp type macvlan mode bridge", exitFail, "delivery xdp|not supported|netkit|leg veth"},
	{"link add link eth2 c1 leg netkit type macvlan mode bridge", exitFail, "leg netkit|not supported|leave it out"},
	{"link add link eth0 c1 colour 5 type macvlan mode bridge", exitUsage, "colour|not known|--help"},

	// Namespace and datapath.
	{"link add link eth0 c1 netns nope type macvlan mode bridge", exitFail, "netns nope|not found|`ip netns` lists"},
	{"link add link eth0 c1 netns 999999999 type macvlan mode bridge", exitFail, "netns 999999999|not found"},
	{"link add link eth0 c1 netns /nope/x type macvlan mode bridge", exitFail, "netns /nope/x|not found"},
	{"link add link eth0 c1 netns /proc/self/ns/uts type macvlan mode bridge", exitFail, "netns /proc/self/ns/uts|not a network namespace"},
	{"link add link eth0 c1 netns /etc/passwd type macvlan mode bridge", exitFail, "netns /etc/passwd|not a network namespace"},
	{"link add link eth0 c1 netns", exitUsage, "netns|missing"},
	{"-n nope link show", exitFail, "netns nope|`ip netns` lists"},
	{"-n /etc/passwd link show", exitFail, "/etc/passwd"},
	{"link add --datapath fast link eth0 c1 type macvlan mode bridge", exitUsage, `datapath "fast"|xdp, tc and kernel`},
	{"link add --datapath xdp link eth0 c1 type macvlan mode bridge", exitFail, "datapath xdp|eth0 stands on tc|xvlan parent detach eth0"},
	{"link add --datapath kernel link eth0 c1 type macvlan mode bridge", exitFail, "datapath kernel|eth0 stands on tc|xvlan parent detach eth0"},
	{"link add --datapath tc link eth2 c1 type macvlan mode bridge", exitFail, "datapath tc|eth2 stands on kernel|xvlan parent detach eth2"},
	{"link add link eth2 c1 type ipvlan mode l2", exitFail, "type ipvlan|kernel rung"},
	{"link add link eth2 c1 address SUB-MAC type macvlan mode bridge", exitFail, "address SUB-MAC|sibling|leave it out"},
	{"link add --datapath kernel link eth1 c1 address 02:00:00:00:00:01 type ipvlan mode l2", exitFail, "address 02:00:00:00:00:01|leave it out"},
	{"link add --datapath kernel link eth1 c1 mtu 1400 type ipvlan mode l2", exitFail, "mtu 1400|leave it out"},
	{"link add --datapath xdp link vx0 c1 type macvlan mode bridge", exitFail, "datapath xdp|not supported|ask for tc"},

	// The other commands.
	{"link del nope", exitFail, "sub-interface nope|not found|`xvlan link show` lists them"},
	{"link del eth0", exitFail, "sub-interface eth0|not found"},
	{"link del m1 link eth1", exitFail, "sub-interface m1|not found"},
	{"link del m1 netns IN", exitFail, "sub-interface m1|not found"},
	{"link del", exitUsage, "dev|which"},
	{"link del m1 i1", exitUsage, "i1|not known"},
	{"link show nope", exitFail, "sub-interface nope|not found"},
	{"link show m1 i1", exitUsage, "i1|not known"},
	{"link set m1", exitUsage, "m1|netns NAME|`ip link set`"},
	{"link set m1 up", exitUsage, "up|`ip link`"},
	{"link set m1 netns", exitUsage, "netns|missing"},
	{"link set m1 netns nope", exitFail, "netns nope|not found|`ip netns` lists"},
	{"link set nope netns IN", exitFail, "sub-interface nope|not found"},
	{"link set m1 type", exitUsage, "type|missing"},
	{"link set m1 delivery", exitUsage, "delivery|missing"},
	{"link set m1 delivery fast", exitUsage, `delivery "fast"|auto and xdp`},
	{"link set m1 delivery xdp", exitFail, "delivery xdp|not supported|eth0 stands on rung tc"},
	{"link set m1 leg netkit", exitUsage, "leg|delete it and make it anew"},
	{"link set m1 type vlan", exitUsage, "type vlan|not known|macvlan and ipvlan"},
	{"link set m1 type macvlan mode odd", exitUsage, "mode odd|macvlan|bridge"},
	{"link set m1 type ipvlan private", exitFail, "type|this is macvlan"},
	{"link set i1 type macvlan mode bridge", exitFail, "this is ipvlan"},
	{"link set m1 type macvlan mode passthru", exitFail, "passthru|delete the device and make it anew"},
	{"link set k1 type macvlan mode passthru", exitFail, "passthru|delete the device and make it anew"},
	{"link set m1 type macvlan macaddr add 02:00:00:00:00:09", exitFail, "macaddr|only mode source|bridge"},
	{"link set m1 type macvlan mode source macaddr add 01:00:00:00:00:09", exitFail, "macaddr|01:00:00:00:00:09|group"},
	{"link set m1 type macvlan flag nopromisc", exitUsage, "flag|make it anew"},
	{"link set nope type macvlan mode bridge", exitFail, "nope|not found"},
	{"link set m1 netns IN", exitFail, "name m1|taken in netns IN"},
	{"link set k1 netns IN", exitFail, "name k1|taken in netns IN"},
	{"parent attach nope", exitFail, "parent nope|not found"},
	{"parent attach lo", exitFail, "parent lo|loopback"},
	{"parent attach", exitUsage, "parent|which"},
	{"parent attach eth1 eth0", exitUsage, "eth0|not known|--help"},
	{"parent attach eth1 unknown maybe", exitUsage, `unknown "maybe"|pass or drop`},
	{"parent attach eth1 capacity 0", exitUsage, `capacity "0"|number`},
	{"parent attach eth1 capacity x", exitUsage, `capacity "x"|number`},
	{"parent attach eth1 capacity 65536", exitUsage, "capacity|65536|1..65535"},
	{"parent attach eth1 capacity 4294967297", exitUsage, "capacity|4294967297|1..65535"},
	{"parent attach eth1 capacity", exitUsage, "capacity|missing"},
	{"parent attach eth0 capacity 5", exitFail, "capacity 5|attached for 1024|detach it first"},
	{"parent attach eth1 --datapath kernel", exitFail, "kernel|attaches nothing"},
	{"parent attach eth0 --datapath xdp", exitFail, "datapath xdp|eth0 stands on tc|detach"},
	{"parent detach", exitUsage, "PARENT"},
	{"parent detach eth1", exitFail, "parent eth1|not found|nothing of xvlan"},
	{"parent detach nope", exitFail, "parent nope|not found"},
	{"parent show eth1", exitFail, "parent eth1|not found"},
	{"parent show eth0 eth1", exitUsage, "eth1|at most one"},
	{"probe nope", exitFail, "parent nope|not found"},
	{"probe eth0 eth1", exitUsage, "at most 1|2"},
	{"bench nope", exitFail, "parent nope|not found|`ip link` lists them"},
	{"bench lo", exitFail, "parent lo|loopback|name an Ethernet device"},
	{"bench tun0", exitFail, "parent tun0|link type is none|name an Ethernet device"},
	{"bench xv2-1", exitFail, "parent xv2-1|host leg|name its parent"},
	{"bench eth0 eth1", exitUsage, "at most 1|2"},
	{"bench --time 0s", exitUsage, "time 0s|1s..10m0s"},
	{"bench --time 20", exitUsage, `"20"|--time|missing unit`},
	{"bench --time 11m eth0", exitUsage, "time 11m0s|1s..10m0s"},
	{"bench --links 1", exitUsage, "links 1|2..4096"},
	{"bench --links 16,4097", exitUsage, "links 4097|2..4096"},
	{"bench --links x", exitUsage, `"x"|--links`},
	{"bench --links=", exitUsage, `""|--links`},
	{"bench --no-attach", exitUsage, "no-attach|name one"},
	{"-n nope bench", exitFail, "netns nope|`ip netns` lists"},
	{"top", exitUsage, "terminal|--batch"},
	{"top -b -n 1 nope", exitFail, "parent nope|not found|`xvlan parent show` lists them"},
	{"top -b eth0 eth1", exitUsage, "at most 1|2"},
	{"top -b -n 0", exitUsage, `"0"|-n|no positive number`},
	{"top -b -n IN", exitUsage, `"IN"|-n|xvlan -n NETNS top`},
	{"top -b -d 0", exitUsage, `"0"|-d|from 0.1 to 3600`},
	{"top -b -d nan", exitUsage, `"nan"|-d|seconds`},
	{"top -b -d 2s", exitUsage, `"2s"|-d|seconds`},
	{"top -b --sort size", exitUsage, `"size"|--sort|not known|in-packets`},
	{"top -b --state odd", exitUsage, `"odd"|--state|not known|up, down`},
	{"top -b --name [", exitUsage, "name [|no pattern"},
	{"-n nope top -b", exitFail, "netns nope|`ip netns` lists"},
	{"-x top", exitUsage, "-x"},
	{"version 2", exitUsage, "2"},
	{"lnik show", exitUsage, "lnik|link"},
	{"link add --frobnicate", exitUsage, "--frobnicate|--help"},
	{"-x link", exitUsage, "-x|--help"},
	{"--log-format xml link", exitUsage, `"xml"|--log-format|text, json`},
	{"link --log-level loud", exitUsage, `"loud"|--log-level|debug, info, warn, error`},
}

func TestWrongInput(t *testing.T) {
	w := newWorld(t)
	lab.Veth(t, w.host, "eth1", w.wire, "w1")
	lab.Veth(t, w.host, "eth2", w.wire, "w2")
	lab.Veth(t, w.inside, "taken", w.wire, "w3")
	lab.Veth(t, w.inside, "m1", w.wire, "w4")
	lab.Veth(t, w.inside, "k1", w.wire, "w5")
	w.host.Run(t, "ip", "tuntap", "add", "tun0", "mode", "tun")
	w.host.Run(t, "ip", "link", "add", "vx0", "type", "vxlan", "id", "5", "dstport", "4789", "remote", wireAddr, "dev", "eth0")
	w.must(t, "link add link eth0 m1 address "+subMAC+" addr 10.77.0.3/24 type macvlan mode bridge")
	w.must(t, "link add link eth0 i1 up addr 10.77.0.4/24 type ipvlan mode l2")
	w.must(t, "link add --datapath kernel link eth2 k1 address "+subMAC+" type macvlan mode bridge")
	lab.Eventually(t, "i1 is up", func() bool { return w.host.Link(t, "i1").Attrs().OperState.String() == "up" })
	w.host.Run(t, "ip", "addr", "add", "10.77.0.66/24", "dev", "i1") // a look is enough to learn it
	if got := len(w.links(t)[0].Addrs) + len(w.links(t)[1].Addrs); got < 3 {
		t.Fatalf("%d addresses are known, want the given two and one learned", got)
	}
	before := w.snapshot(t)
	shown := w.must(t, "-d link show") + w.must(t, "parent show")
	fill := strings.NewReplacer("IN", w.inside.Name(), "PARENT-MAC", parentMAC, "SUB-MAC", subMAC)
	for _, tt := range wrongInput {
		t.Run(tt.line, func(t *testing.T) {
			r := w.xvlan(t, strings.Fields(fill.Replace(tt.line))...)
			r.refused(t, tt.code)
			for _, piece := range strings.Split(tt.says, "|") {
				if !strings.Contains(r.err, fill.Replace(piece)) {
					t.Errorf("does not say %q:\n%s", fill.Replace(piece), r.err)
				}
			}
			if strings.HasPrefix(tt.line, "link add") && r.code == exitOK {
				w.must(t, "link del c1") // does not spoil the cases behind it
				return
			}
			w.same(t, before)
		})
	}
	if again := w.must(t, "-d link show") + w.must(t, "parent show"); again != shown {
		t.Errorf("sub-interfaces now:\n%s\nbefore:\n%s", again, shown)
	}
	for _, parent := range []string{"eth0", "eth2"} {
		w.must(t, "parent detach "+parent)
	}
}
