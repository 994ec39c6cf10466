package cni

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
)

// TestRuntimeAsks has the runtime choose MAC and address, by capabilities and by
// CNI_ARGS.
func TestRuntimeAsks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	const capable, env, configured = "02:00:00:00:88:01", "02:00:00:00:88:02", "02:00:00:00:88:03"
	c := w.net("net", "mac", configured, "capabilities", object{"mac": true, "ips": true}, "ipam", object{"type": "static"})
	rt := container(a)
	rt.CapabilityArgs = map[string]any{"mac": capable, "ips": []string{"10.88.0.77/24", "fd88::77/64"}}
	rt.Args = [][2]string{{"IgnoreUnknown", "1"}, {"MAC", env}, {"K8S_POD_NAME", "pod"}}
	result, err := w.add(t, c.list(t), rt)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.IPs) != 2 || result.IPs[0].Address.String() != "10.88.0.77/24" || result.Interfaces[0].Mac != capable {
		t.Errorf("result %+v", result)
	}
	ping(t, w.wire, "10.88.0.77")
	ping(t, w.wire, "fd88::77")
	w.detach(t, c, a)
	rt.CapabilityArgs = nil
	c["ipam"] = w.hostLocal("10.88.0.0/24")
	if result, err = w.add(t, c.list(t), rt); err != nil || result.Interfaces[0].Mac != env {
		t.Errorf("result %+v, %v", result, err)
	}
	w.detach(t, c, a)
	rt.Args = [][2]string{{"K8S_POD_NAME", "pod"}}
	_, err = w.add(t, c.list(t), rt)
	failed(t, err, types.ErrInvalidEnvironmentVariables, "CNI_ARGS|K8S_POD_NAME=pod")
	w.clean(t)
}

// TestLinkInContainer has the master in the container's own namespace.
func TestLinkInContainer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	lab.Veth(t, a, "net1", w.wire, "w1")
	w.wire.Run(t, "ip", "link", "add", "br0", "type", "bridge")
	w.wire.Run(t, "ip", "addr", "flush", "dev", "w0")
	for _, dev := range []string{"w0", "w1"} {
		w.wire.Run(t, "ip", "link", "set", dev, "master", "br0")
	}
	w.wire.Addr(t, "br0", wireAddr+"/24")
	w.wire.Up(t, "br0")
	for _, datapath := range []string{"tc", "kernel"} {
		c := w.net("net", "master", "net1", "linkInContainer", true, "datapath", datapath)
		w.attach(t, c, a)
		a.Run(t, "ping", "-c1", "-w20", "-i0.2", "-q", "-I", "eth0", wireAddr)
		if err := w.check(t, c, a); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		w.detach(t, c, a)
		if _, err := a.Handle().LinkByName("eth0"); err == nil {
			t.Error("eth0 is left")
		}
		w.clean(t)
	}
	// Without master it is the container's default route that counts.
	c := w.net("net", "linkInContainer", true)
	delete(c, "master")
	a.Addr(t, "net1", "10.88.0.2/24")
	a.Run(t, "ip", "route", "add", "default", "via", wireAddr)
	c["ipam"].(object)["routes"] = []object{}
	w.attach(t, c, a)
	w.detach(t, c, a)
	w.attach(t, c, a)
	a.Remove(t) // the master goes with its namespace, and so does what is on it
	w.detach(t, c, a)
	w.clean(t)
}

// TestChain puts the reference plugin tuning behind, which finds the device.
func TestChain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	c := w.net("net")
	l := c.list(t, object{"type": "tuning", "mac": "02:00:00:00:88:44", "dataDir": filepath.Join(w.dir, "tuning")})
	result, err := w.add(t, l, container(a))
	if err != nil {
		t.Fatal(err)
	}
	if result.Interfaces[0].Mac != "02:00:00:00:88:44" {
		t.Errorf("result %+v", result)
	}
	if err := w.loader(t, (*loader.Host).Sweep); err != nil { // follows the MAC, as serve does at once
		t.Error(err)
	}
	ping(t, a, wireAddr)
	w.host.Do(t, func() {
		if err := w.cni.CheckNetworkList(t.Context(), l, container(a)); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		if err := w.cni.DelNetworkList(t.Context(), l, container(a)); err != nil {
			t.Errorf("DEL: %v", err)
		}
	})
	w.clean(t)
}

// TestChained has another plugin in front, whose device is the master and whose
// addresses the sub-interface gets.
func TestChained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	c := w.net("net", "mode", "l2", "prevResult", object{
		"cniVersion": "1.0.0", "interfaces": []object{{"name": "lan0"}}, "dns": object{"nameservers": []string{wireAddr}},
		"ips": []object{{"address": "10.88.0.66/24", "interface": 0, "gateway": wireAddr}}, "routes": []object{{"dst": "10.99.0.0/16", "gw": wireAddr}},
	})
	delete(c, "ipam")
	delete(c, "master")
	result, err := w.raw(t, "ADD", c, a)
	if err != nil {
		t.Fatal(err)
	}
	if dev := result["interfaces"].([]any)[0].(map[string]any); dev["name"] != "eth0" || result["dns"] == nil {
		t.Errorf("result %v", result)
	}
	ping(t, w.wire, "10.88.0.66")
	if out := a.Run(t, "ip", "route", "show", "10.99.0.0/16"); !strings.Contains(out, "via "+wireAddr+" dev eth0") {
		t.Errorf("the route is %q", out)
	}
	if _, err := w.raw(t, "DEL", c, a); err != nil {
		t.Error(err)
	}
	c["prevResult"].(object)["interfaces"] = []object{{"name": "lan0"}, {"name": "lan1"}}
	_, err = w.raw(t, "ADD", c, a)
	failed(t, err, types.ErrInvalidNetworkConfig, "master|prevResult has 2 interfaces")
	w.clean(t)
}

// TestRoutes takes all that a route can say.
func TestRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.newer(t)
	a := lab.NewNetns(t, "a")
	c := w.net("net", "cniVersion", "1.1.0", "dns", object{"nameservers": []string{"192.0.2.53"}}, "ipam", object{
		"type": "static", "addresses": []object{{"address": "10.88.0.7/24", "gateway": wireAddr}, {"address": "fd88::7/64", "gateway": wire6}},
		"routes": []object{
			{"dst": "0.0.0.0/0"}, {"dst": "::/0"},
			{"dst": "10.99.0.0/16", "gw": "10.88.0.253", "mtu": 1200, "advmss": 1100, "priority": 7},
			{"dst": "10.98.0.0/16", "table": 99, "scope": 0},
		},
		"dns": object{"nameservers": []string{"192.0.2.54"}},
	})
	result, err := w.add(t, c.list(t), container(a))
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Routes) != 4 || len(result.DNS.Nameservers) != 1 || result.DNS.Nameservers[0] != "192.0.2.53" {
		t.Errorf("result %+v", result)
	}
	for route, want := range map[string]string{
		"-4 route show default":             "via " + wireAddr,
		"-6 route show default":             "via " + wire6,
		"route show 10.99.0.0/16":           "via 10.88.0.253 dev eth0 metric 7 mtu 1200 advmss 1100",
		"route show table 99 10.98.0.0/16 ": "via " + wireAddr + " dev eth0",
	} {
		if out := a.Run(t, "ip", strings.Fields(route)...); !strings.Contains(out, want) {
			t.Errorf("ip %s: %q, want %q", route, out, want)
		}
	}
	if err := w.check(t, c, a); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	w.detach(t, c, a)
	w.clean(t)
}

// TestDHCP has the reference plugin dhcp get the address from a server on the
// wire, by the sub-interface.
func TestDHCP(t *testing.T) {
	t.Parallel()
	lab.NeedTool(t, "dnsmasq")
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	socket := filepath.Join(w.dir, "dhcp.sock")
	server := w.wire.Start(t, "dnsmasq", "--keep-in-foreground", "--no-resolv", "--port=0", "--interface=w0", "--leasefile-ro", "--no-ping", "--user=root",
		"--pid-file="+filepath.Join(w.dir, "pid"), "--log-facility=-", "--dhcp-range=10.88.0.100,10.88.0.110,1h", "--dhcp-option=3,"+wireAddr)
	w.host.Start(t, filepath.Join(debianPlugins, "dhcp"), "daemon", "-socketpath", socket)
	lab.Eventually(t, "the server and the daemon are there", func() bool {
		_, err := os.Stat(socket)
		return err == nil && strings.Contains(lab.OutputOf(server), "DHCP, IP range")
	})
	for i, kind := range []string{"macvlan", "ipvlan"} {
		c := w.net("net", "kind", kind, "ipam", object{"type": "dhcp", "daemonSocketPath": socket})
		addr := w.attach(t, c, a)
		if !strings.HasPrefix(addr, "10.88.0.1") {
			t.Errorf("%s: the address is %s", kind, addr)
		}
		ping(t, a, wireAddr)
		if err := w.check(t, c, a); err != nil {
			t.Errorf("%s: CHECK: %v", kind, err)
		}
		w.detach(t, c, a)
		lab.Eventually(t, "the lease is given back", func() bool { return strings.Count(lab.OutputOf(server), "DHCPRELEASE") > i })
	}
	w.clean(t)
}
