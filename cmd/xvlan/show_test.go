package main

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// What varies, with the spaces that keep its column.
var masks = []struct {
	what *regexp.Regexp
	mask string
}{
	{regexp.MustCompile(`xvt\d+-\d+-`), "NETNS-"},
	{regexp.MustCompile(`(?m)^kernel( +)\S+$`), "kernel${1}RELEASE"},
	{regexp.MustCompile(`(?m)^(tcx|netkit|ipvlan|macvlan)( +)(yes|no )  .+$`), "$1${2}HAVE WHY"},
}

// golden compares what was printed, what varies masked, with a text that
// begins with a line break.
func golden(t *testing.T, what, got, want string) {
	t.Helper()
	for _, m := range masks {
		got = m.what.ReplaceAllString(got, m.mask)
	}
	if want = strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("%s prints\n%s\nwant\n%s", what, got, want)
	}
}

// goldenWorld has two sub-interfaces, about which everything is known.
func goldenWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.must(t, "link add link eth0 m1 address "+subMAC+" addr 10.77.0.10/24 addr 10.77.0.11/24 up netns "+w.inside.Name()+" type macvlan mode bridge")
	w.must(t, "link add link eth0 i1 address 02:00:00:00:77:20 mtu 1400 type ipvlan mode l2")
	lab.Eventually(t, "m1 is up", func() bool { return w.inside.Link(t, "m1").Attrs().OperState.String() == "up" })
	// 100 bytes from the wire, twice; one frame to it, behind the announcements
	// of its addresses, and one that is too long for it, which a container's
	// root can make.
	counted := func(verdict string) func() uint64 {
		return func() uint64 { return w.links(t)[0].Verdicts[verdict].Packets }
	}
	fromWire := func() { send(t, w.wire, "w0", frame(t, subMAC, wireMAC, 100)) }
	untilCounted(t, 1, counted("rx"), fromWire)
	untilCounted(t, 2, counted("rx"), fromWire)
	untilCounted(t, 3, counted("tx"), func() { send(t, w.inside, "m1", frame(t, wireMAC, subMAC, 1000)) })
	w.inside.Run(t, "ip", "link", "set", "m1", "mtu", "3000")
	untilCounted(t, 1, counted("drop_mtu"), func() { send(t, w.inside, "m1", frame(t, wireMAC, subMAC, 2000)) })
	w.inside.Run(t, "ip", "link", "set", "m1", "mtu", "1500")
	return w
}

// untilCounted sends a frame, and again where a busy machine has lost it, until
// the counter says n.
func untilCounted(t *testing.T, n uint64, counter func() uint64, again func()) {
	t.Helper()
	for range 20 {
		again()
		for range 100 {
			if counter() >= n {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	t.Fatalf("counted %d, want %d", counter(), n)
}

// send sends a frame, which a busy machine may lose at once.
func send(tb testing.TB, n *lab.Netns, dev string, frame []byte) {
	tb.Helper()
	to := &unix.SockaddrLinklayer{Ifindex: n.Link(tb, dev).Attrs().Index, Protocol: binary.NativeEndian.Uint16(frame[12:])}
	n.Do(tb, func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			tb.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, frame, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			tb.Fatalf("send on %s: %v", dev, err)
		}
	})
}

// frame makes an IPv4 packet of a protocol that nobody answers.
func frame(tb testing.TB, dst, src string, size int) []byte {
	tb.Helper()
	f := append(append([]byte{}, mac(tb, dst)...), mac(tb, src)...)
	f = append(f, 8, 0, 0x45, 0, byte((size-14)>>8), byte(size-14), 0, 0, 0, 0, 64, 253, 0, 0)
	f = append(f, ip4(tb, "10.77.0.200")...)
	f = append(f, ip4(tb, "10.77.0.201")...)
	return append(f, make([]byte, size-len(f))...)
}

func ip4(tb testing.TB, s string) []byte {
	tb.Helper()
	a, err := netip.ParseAddr(s)
	if err != nil {
		tb.Fatal(err)
	}
	return a.AsSlice()
}

func TestGoldenLinks(t *testing.T) {
	w := goldenWorld(t)
	golden(t, "link show", w.must(t, "link show"), `
2: m1@eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 state UP netns NETNS-in
    link/ether 02:00:00:00:77:10 brd ff:ff:ff:ff:ff:ff
    macvlan mode bridge datapath tc
    addr 10.77.0.10 given
    addr 10.77.0.11 given
4: i1@eth0: <BROADCAST,MULTICAST> mtu 1400 state DOWN
    link/ether 02:00:00:00:77:20 brd ff:ff:ff:ff:ff:ff
    ipvlan mode l2 bridge datapath tc
`)
	golden(t, "link show -d -s", w.must(t, "-d -s link show"), `
2: m1@eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 state UP netns NETNS-in
    link/ether 02:00:00:00:77:10 brd ff:ff:ff:ff:ff:ff
    macvlan mode bridge datapath tc
    addr 10.77.0.10 given
    addr 10.77.0.11 given
    datapath reason: veth: native XDP would make its peer give up TSO
    id 1 leg veth host leg xv2-1 wire mac 02:00:00:00:77:10 host off delivery peer
           bytes  packets  dropped
      RX:    200        2        0
      TX:   1084        3        1
    drops: drop_mtu 1
4: i1@eth0: <BROADCAST,MULTICAST> mtu 1400 state DOWN
    link/ether 02:00:00:00:77:20 brd ff:ff:ff:ff:ff:ff
    ipvlan mode l2 bridge datapath tc
    datapath reason: veth: native XDP would make its peer give up TSO
    id 2 leg veth host leg xv2-2 wire mac 02:00:00:00:77:01 host off delivery leg
    dhcp on
           bytes  packets  dropped
      RX:      0        0        0
      TX:      0        0        0
`)
	w.inside.Run(t, "ip", "link", "set", "m1", "down")
	golden(t, "link show m1", w.must(t, "link show m1"), `
2: m1@eth0: <BROADCAST,MULTICAST> mtu 1500 state DOWN netns NETNS-in
    link/ether 02:00:00:00:77:10 brd ff:ff:ff:ff:ff:ff
    macvlan mode bridge datapath tc
    addr 10.77.0.10 given
    addr 10.77.0.11 given
`)
	w.must(t, "parent detach eth0")
}

func TestGoldenParents(t *testing.T) {
	w := goldenWorld(t)
	lab.Veth(t, w.host, "a-long-name", w.wire, "w1")
	w.must(t, "parent attach a-long-name unknown drop capacity 3 --datapath xdp")
	untilCounted(t, 1, func() uint64 {
		var parents []struct {
			Verdicts map[string]struct{ Packets uint64 }
		}
		unmarshal(t, w.must(t, "-j parent show a-long-name"), &parents)
		return parents[0].Verdicts["drop_unknown"].Packets
	}, func() { send(t, w.wire, "w1", frame(t, "02:00:00:00:00:99", wireMAC, 100)) })
	golden(t, "parent show", w.must(t, "parent show"), `
PARENT       RUNG  LINKS   UNKNOWN  PASSED  DROPPED  REASON
a-long-name  xdp   0/3     drop     0       1        asked for
eth0         tc    2/1024  pass     0       0        veth: native XDP would make its peer give up TSO
`)
	golden(t, "parent show eth0", w.must(t, "parent show eth0"), `
PARENT  RUNG  LINKS   UNKNOWN  PASSED  DROPPED  REASON
eth0    tc    2/1024  pass     0       0        veth: native XDP would make its peer give up TSO
`)
	golden(t, "probe", w.must(t, "probe"), `
kernel   RELEASE
bpf      yes  the tc and xdp rungs
tcx      HAVE WHY
netkit   HAVE WHY
macvlan  HAVE WHY
ipvlan   HAVE WHY
bpffs    yes  /run/xvlan/bpf
`)
	golden(t, "probe eth0", w.must(t, "probe eth0"), `
kernel   RELEASE
bpf      yes  the tc and xdp rungs
tcx      HAVE WHY
netkit   HAVE WHY
macvlan  HAVE WHY
ipvlan   HAVE WHY
bpffs    yes  /run/xvlan/bpf
eth0     tc   veth: native XDP would make its peer give up TSO
`)
	for _, parent := range []string{"eth0", "a-long-name"} {
		w.must(t, "parent detach "+parent)
	}
}

// The features that probe tells are those that this kernel has.
func TestProbe(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	var probe struct {
		Kernel   string
		Features []struct {
			Name, Detail string
			Have         bool
		}
		Parent, Driver string
		Datapath       *struct{ Rung, Reason string }
	}
	unmarshal(t, w.must(t, "-j probe"), &probe)
	if probe.Datapath != nil || probe.Parent != "" {
		t.Errorf("probe without a parent: %+v", probe)
	}
	major, minor, err := lab.KernelVersion()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{
		"bpf": true, "tcx": major > 6 || major == 6 && minor >= 6,
		"netkit": lab.HasKind(t, "netkit"), "macvlan": lab.HasKind(t, "macvlan"), "ipvlan": lab.HasKind(t, "ipvlan"), "bpffs": true,
	}
	if len(probe.Features) != len(want) {
		t.Errorf("%d features, want %d", len(probe.Features), len(want))
	}
	for _, f := range probe.Features {
		if f.Have != want[f.Name] || f.Detail == "" {
			t.Errorf("feature %s: %v (%s)", f.Name, f.Have, f.Detail)
		}
	}
	for parent, rung := range map[string]string{"eth0": "tc", "vx0": "tc", "br0": "tc"} {
		switch parent {
		case "vx0":
			w.host.Run(t, "ip", "link", "add", "vx0", "type", "vxlan", "id", "5", "dstport", "4789", "remote", wireAddr, "dev", "eth0")
		case "br0":
			w.host.Run(t, "ip", "link", "add", "br0", "type", "bridge")
		}
		unmarshal(t, w.must(t, "-j probe "+parent), &probe)
		if probe.Parent != parent || probe.Driver == "" || probe.Datapath == nil || probe.Datapath.Rung != rung || probe.Datapath.Reason == "" {
			t.Errorf("probe %s: %+v %+v", parent, probe, probe.Datapath)
		}
		// What it gets is what probe has told.
		w.must(t, "parent attach "+parent)
		var parents []struct {
			Name     string `json:"ifname"`
			Datapath struct{ Rung, Reason string }
		}
		unmarshal(t, w.must(t, "-j parent show "+parent), &parents)
		if parents[0].Datapath != *probe.Datapath {
			t.Errorf("%s: probe says %+v, attach %+v", parent, probe.Datapath, parents[0].Datapath)
		}
		w.must(t, "parent detach "+parent)
		if parent != "eth0" {
			w.host.Run(t, "ip", "link", "del", parent)
		}
	}
	w.same(t, before)
}
