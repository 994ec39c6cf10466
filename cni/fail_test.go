package cni

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// TestRefused has every key said wrongly once: the error has its code and names
// the key with its value, and nothing is left.
func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	const invalidConf, unsupported, decode, env = types.ErrInvalidNetworkConfig, types.ErrUnsupportedField, types.ErrDecodingFailure, types.ErrInvalidEnvironmentVariables
	for _, wrong := range []struct {
		conf object
		code uint
		says string
	}{
		{object{"master": "nope"}, invalidConf, "master nope|no such device"},
		{object{"master": "lo"}, invalidConf, "master lo|loopback"},
		{object{"master": 5}, decode, "master: is a number"},
		{object{"mode": "l4"}, invalidConf, `mode "l4"|bridge, private, vepa, passthru, source, l2, l3, l3s`},
		{object{"kind": "macvtap"}, invalidConf, `kind: "macvtap"|macvlan and ipvlan`},
		{object{"kind": "macvlan", "mode": "l2"}, invalidConf, `mode "l2"|bridge, private, vepa, passthru, source are known`},
		{object{"flag": "private"}, invalidConf, "flag private|not with mode bridge"},
		{object{"flag": "nodst", "mode": "l2"}, invalidConf, `flag "nodst"|bridge, private, vepa`},
		{object{"flag": "nopromisc", "mode": "source"}, invalidConf, "flag nopromisc|not with mode source"},
		{object{"macaddr": []string{wireMAC}}, invalidConf, "macaddr: " + wireMAC},
		{object{"macaddr": []string{"x"}, "mode": "source"}, invalidConf, `macaddr: "x"`},
		{object{"macaddr": []string{"01:00:00:00:00:01"}, "mode": "source"}, invalidConf, "macaddr: address 01:00:00:00:00:01"},
		{object{"mtu": 9000}, invalidConf, "mtu 9000|lan0 allows 68 to 1500"},
		{object{"mtu": -1}, invalidConf, "mtu -1"},
		{object{"mtu": "big"}, decode, "mtu: is a string"},
		{object{"mac": "02:00"}, invalidConf, `mac: "02:00"`},
		{object{"mac": "01:00:00:00:00:01"}, invalidConf, "address 01:00:00:00:00:01|group"},
		{object{"mac": "02:00:00:00:88:10", "mode": "passthru"}, unsupported, "address 02:00:00:00:88:10|passthru"},
		{object{"bcqueuelen": -5}, decode, "bcqueuelen: is a number -5"},
		{object{"bcqueuelen": 5, "mode": "l2"}, invalidConf, "bcqueuelen|only a macvlan"},
		{object{"datapath": "ebpf"}, invalidConf, `datapath "ebpf"`},
		{object{"delivery": "fast"}, invalidConf, `delivery: "fast"`},
		{object{"leg": "tap"}, invalidConf, `leg: "tap"|veth and netkit`},
		{object{"leg": "netkit", "datapath": "kernel"}, unsupported, "leg netkit"},
		{object{"host": "true"}, invalidConf, `host: "true"`},
		{object{"host": "on", "datapath": "kernel"}, unsupported, "host on"},
		{object{"via-host": "10.96.0.0/12"}, decode, "via-host: is a string"},
		{object{"via-host": []string{"10.96.0.1/12"}}, invalidConf, "via-host 10.96.0.1/12|10.96.0.0/12"},
		{object{"via-host": []string{"10.96.0.0/12"}, "datapath": "kernel"}, unsupported, "via-host"},
		{object{"guard": "yes"}, invalidConf, `guard "yes"|off and on`},
		{object{"guard": "on,everything"}, invalidConf, `guard "on,everything"`},
		{object{"guard": true}, decode, "guard: is a bool"},
		{object{"guard": "on", "datapath": "kernel"}, unsupported, "guard"},
		{object{"vlan": 4095}, invalidConf, `vlan "4095"`},
		{object{"vlan": "10"}, decode, "vlan: is a string"},
		{object{"qinq": 10}, invalidConf, "qinq 10"},
		{object{"vlan": 10, "mode": "l3"}, unsupported, "vlan|mode l3"},
		{object{"vlan": 10, "datapath": "kernel"}, unsupported, "vlan"},
		{object{"vlanTrunk": []object{{"minID": 10}}}, invalidConf, "vlanTrunk"},
		{object{"vlanTrunk": []object{{"minID": 11, "maxID": 10}}}, invalidConf, `"11-10"`},
		{object{"vlanTrunk": []object{{"id": 10}}, "mode": "l2"}, unsupported, "trunk"},
		{object{"bcrate": -1}, invalidConf, `bcrate "-1"`},
		{object{"bcrate": "some"}, invalidConf, `bcrate "some"`},
		{object{"delivery": "xdp", "datapath": "tc"}, unsupported, "delivery xdp"},
		{object{"linkInContainer": true}, invalidConf, "master lan0|no such device"},
		{object{"runtimeConfig": object{"mac": "no"}}, invalidConf, `runtimeConfig.mac: "no"`},
		{object{"runtimeConfig": object{"bandwidth": object{"ingressRate": 1000}}}, unsupported, `runtimeConfig.bandwidth: {"ingressRate":1000}`},
		{object{"ipam": object{}, "runtimeConfig": object{"ips": []string{"10.88.0.9/24"}}}, unsupported, "runtimeConfig.ips: 10.88.0.9/24"},
		{object{"ipam": object{"type": "nope"}}, invalidConf, `ipam.type: "nope"`},
		{object{"ipam": object{"type": "static", "addresses": []object{{"address": "10.88.0.300/24"}}}}, types.ErrInternal, "ipam static|10.88.0.300"},
		{object{"ipam": object{"type": "static", "addresses": []object{{"address": hostAddr + "/24"}}}}, codeExists, "addr " + hostAddr + "|the host"},
		{object{"ipam": object{"type": "static", "addresses": []object{{"address": "10.88.0.9/24"}}, "routes": []object{{"dst": "10.0.0.0/8", "gw": "192.0.2.1"}}}},
			types.ErrInternal, "add route 10.0.0.0/8 via 192.0.2.1"},
		{object{"ipam": object{"type": "host-local", "dataDir": filepath.Join(w.dir, "ipam"), "subnet": "10.88.0.0/24", "routes": []object{{"dst": "10.0.0.0/8", "gw": "192.0.2.1"}}}},
			types.ErrInternal, "add route 10.0.0.0/8 via 192.0.2.1"},
		{object{"prevResult": object{"cniVersion": "1.0.0", "ips": "none"}}, decode, "prevResult"},
		{object{"name": strings.Repeat("n", 200)}, invalidConf, "owner cni/nnn"},
	} {
		c := w.net("net")
		for key, value := range wrong.conf {
			c[key] = value
		}
		_, err := w.raw(t, "ADD", c, a)
		failed(t, err, wrong.code, wrong.says)
		if reserved := w.reserved(t); len(reserved) > 0 {
			t.Errorf("addresses left: %v", reserved)
		}
		if t.Failed() {
			t.Logf("%v: %v", wrong.conf, err)
		}
		if _, err := w.raw(t, "DEL", c, a); err != nil && c["ipam"].(object)["type"] == "host-local" && wrong.code != decode {
			t.Errorf("DEL with %v: %v", wrong.conf, err)
		}
		if _, err := a.Handle().LinkByName("eth0"); err == nil {
			t.Fatalf("%v: eth0 is left", wrong.conf)
		}
	}
	c := w.net("net")
	_, err := w.raw(t, "ADD", c, a, "CNI_ARGS=MAC=02:00:00")
	failed(t, err, invalidConf, `CNI_ARGS MAC: "02:00:00"`)
	_, err = w.raw(t, "ADD", c, a, "CNI_NETNS=/run/netns/none")
	failed(t, err, types.ErrUnknownContainer, "CNI_NETNS /run/netns/none")
	_, err = w.raw(t, "ADD", c, w.host)
	failed(t, err, env, "CNI_NETNS "+w.host.Path())
	w.clean(t)
}

// TestTaken refuses a device name and an address that somebody has, and DEL of
// what was refused leaves those alone.
func TestTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := lab.NewNetns(t, "a"), lab.NewNetns(t, "b")
	c := w.net("net", "ipam", object{"type": "static", "addresses": []object{{"address": "10.88.0.9/24"}}})
	w.attach(t, c, a)
	_, err := w.add(t, c.list(t), container(b))
	failed(t, err, codeExists, "addr 10.88.0.9|sibling eth0")
	w.detach(t, c, b)

	// The device of another network, or made by hand, has the name.
	err = w.loader(t, func(h *loader.Host) error {
		return h.Add(loader.LinkSpec{Parent: "lan0", Name: "eth0", Netns: b.Name(), Kind: maps.Macvlan, Mode: maps.Bridge})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*lab.Netns{a, b} {
		other := w.net("other")
		_, err := w.add(t, other.list(t), container(n))
		failed(t, err, codeExists, "name eth0|"+n.Path())
		w.detach(t, other, n)
		n.Link(t, "eth0")
	}
	ping(t, a, wireAddr)
	if err := w.loader(t, func(h *loader.Host) error { return h.Del(loader.Selector{Name: "eth0", Netns: b.Name()}) }); err != nil {
		t.Error(err)
	}
	w.detach(t, c, a)
	w.clean(t)
}

// TestIPAMFails has the IPAM plugin fail when the device is there already, give
// nothing, or give what cannot be set.
func TestIPAMFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := lab.NewNetns(t, "a"), lab.NewNetns(t, "b")
	c := w.net("net")
	c["ipam"].(object)["ranges"] = [][]object{{{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.10"}}}
	w.attach(t, c, a)
	_, err := w.add(t, c.list(t), container(b))
	failed(t, err, types.ErrInternal, "ipam host-local|10.88.0.10")
	if _, err := b.Handle().LinkByName("eth0"); err == nil {
		t.Error("eth0 is left")
	}
	w.detach(t, c, b)
	w.detach(t, c, a)
	w.clean(t)
	for answer, says := range map[string]string{
		`{"cniVersion":"1.0.0"}`: "no address",
		`nonsense`:               "ipam strange",
		`{"cniVersion":"1.0.0","ips":[{"address":"224.0.0.1/4"}]}`: "224.0.0.1",
	} {
		w.script(t, "strange", fmt.Sprintf("cat >/dev/null; [ $CNI_COMMAND = ADD ] && echo '%s'; exit 0", answer))
		c["ipam"] = object{"type": "strange"}
		if _, err := w.add(t, c.list(t), container(b)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("IPAM says %s: %v", answer, err)
		}
		w.clean(t)
	}
}

// TestVanished has the container's namespace go while its address is asked for.
func TestVanished(t *testing.T) {
	t.Parallel()
	for _, datapath := range []string{"tc", "kernel"} {
		w := newWorld(t)
		a := lab.NewNetns(t, "a")
		w.plugin(t, "host-local.real", debianPlugins+"/host-local")
		w.script(t, "host-local", fmt.Sprintf("[ $CNI_COMMAND = ADD ] && umount -l %s && rm %[1]s; exec %s/host-local.real", a.Path(), w.bin()))
		c := w.net("net", "datapath", datapath)
		_, err := w.add(t, c.list(t), container(a))
		failed(t, err, types.ErrUnknownContainer, "CNI_NETNS "+a.Path())
		w.detach(t, c, a)
		w.clean(t)
		w.host.Run(t, "touch", a.Path()) // for the clean-up to remove
		w.host.Run(t, "mount", "--bind", w.wire.Path(), a.Path())
	}
}

// TestKilled kills ADD at its system calls, and while the IPAM plugin goes on, when
// there is a device. DEL or GC leaves nothing then.
func TestKilled(t *testing.T) {
	t.Parallel()
	lab.NeedTool(t, "strace")
	lab.NeedTool(t, "nsenter")
	for _, datapath := range []string{"tc", "kernel"} {
		t.Run(datapath, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.newer(t)
			a := lab.NewNetns(t, "a")
			// static keeps nothing: host-local, orphaned, might reserve after DEL.
			c := w.net("net", "cniVersion", "1.1.0", "datapath", datapath, "ipam", object{"type": "static", "addresses": []object{{"address": "10.88.0.9/24"}}})
			tidy := func(verb string) {
				t.Helper()
				c["cni.dev/valid-attachments"] = []object{}
				if _, err := w.raw(t, verb, c, a); err != nil {
					t.Errorf("%s: %v", verb, err)
				}
				w.clean(t)
				if _, err := a.Handle().LinkByName("eth0"); err == nil {
					t.Errorf("eth0 is left")
				}
			}
			killed := 0
			for _, call := range []string{"sendto", "openat", "bpf", "write"} {
				for nth := 1; nth < 1000; nth = 4*nth + 1 {
					wrapped := *w
					wrapped.strace = []string{"strace", "-qq", "-o", "/dev/null", "-e", "inject=" + call + fmt.Sprintf(":signal=SIGKILL:when=%d", nth)}
					_, err := wrapped.raw(t, "ADD", c, a)
					if err == nil {
						tidy("DEL")
						break
					}
					killed++
					tidy([]string{"DEL", "GC"}[killed%2])
				}
			}
			w.script(t, "killer", `[ $CNI_COMMAND = ADD ] && { until nsenter --net=$CNI_NETNS ip link show eth0; do :; done; kill -9 $PPID; }; cat`)
			c["ipam"] = object{"type": "killer"}
			if _, err := w.raw(t, "ADD", c, a); err == nil {
				t.Error("it was not killed")
			}
			if _, err := a.Handle().LinkByName("eth0"); err != nil {
				t.Errorf("it was killed before it had made anything: %v", err)
			}
			tidy("GC")
			t.Logf("killed %d times", killed)
		})
	}
}
