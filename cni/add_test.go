package cni

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// TestModes attaches two containers in each mode on each rung, has them reach the
// wire and, where the mode lets them, each other, and leaves nothing.
func TestModes(t *testing.T) {
	for _, datapath := range []string{"tc", "kernel"} {
		for _, mode := range []string{"", "bridge", "private", "vepa", "passthru", "source", "l2", "l3", "l3s"} {
			t.Run(fmt.Sprintf("%s-%s", datapath, mode), func(t *testing.T) {
				kind := "macvlan"
				if strings.HasPrefix(mode, "l") {
					kind = "ipvlan"
				}
				if datapath == "kernel" && !lab.HasKind(t, kind) {
					t.Skipf("the kernel has no %s", kind)
				}
				t.Parallel()
				w := newWorld(t)
				c := w.net("net", "datapath", datapath)
				if mode != "" {
					c["mode"] = mode
				}
				if mode == "source" {
					c["macaddr"] = []string{wireMAC}
				}
				w.tryMode(t, c, mode)
			})
		}
	}
}

// TestNetkit does it with netkit pairs.
func TestNetkit(t *testing.T) {
	t.Parallel()
	if !lab.HasKind(t, "netkit") {
		t.Skip("the kernel has no netkit, which comes with Linux 6.8")
	}
	for _, mode := range []string{"bridge", "l2"} {
		w := newWorld(t)
		w.tryMode(t, w.net("net", "datapath", "tc", "mode", mode, "leg", "netkit"), mode)
	}
}

func (w *world) tryMode(t *testing.T, c object, mode string) {
	a, b := lab.NewNetns(t, "a"), lab.NewNetns(t, "b")
	first := w.attach(t, c, a)
	l := w.links(t)["cni/net/"+a.Name()+"/eth0"]
	if l.Mode.String() != cmp.Or(mode, "bridge") {
		t.Errorf("it is in mode %s", l.Mode)
	}
	if l.Rung.String() != c["datapath"] {
		t.Errorf("it stands on rung %s", l.Rung)
	}
	if l.ID != 0 && (len(l.Addrs) == 0 || l.Addrs[0].Addr.String() != first || l.Addrs[0].Origin != maps.Given) {
		t.Errorf("%s is not given to it: %v", first, l.Addrs)
	}
	second := ""
	if mode == "passthru" {
		_, err := w.add(t, c.list(t), container(b))
		failed(t, err, codeBusy, "master lan0|mode passthru")
	} else {
		second = w.attach(t, c, b)
	}
	if l.Mode.Routed() { // nobody answers ARP for them
		for _, addr := range []string{first, second} {
			w.wire.Run(t, "ip", "route", "add", addr, "via", hostAddr)
		}
	}
	ping(t, a, wireAddr)
	ping(t, w.wire, first)
	if mode == "" || mode == "bridge" || l.Mode.IsIpvlan() {
		ping(t, a, second)
		ping(t, b, first)
	}
	if err := w.check(t, c, a); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	w.detach(t, c, a)
	w.detach(t, c, b)
	w.clean(t)
}

// TestGivenAtOnce reaches an ipvlan from which nothing has been heard, by the
// parent's MAC alone: its addresses were entered before the device was up.
func TestGivenAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	c := w.net("net", "mode", "l2")
	c["ipam"] = w.hostLocal("10.88.0.0/24", "fd88::/64")
	first := w.attach(t, c, a)
	l := w.links(t)["cni/net/"+a.Name()+"/eth0"]
	given := 0
	for _, x := range l.Addrs {
		if x.Origin == maps.Given {
			given++
		}
	}
	if given != 2 {
		t.Errorf("addresses %v, want two that are given", l.Addrs)
	}
	w.wire.Run(t, "ip", "neigh", "replace", first, "lladdr", w.host.Link(t, "lan0").Attrs().HardwareAddr.String(), "dev", "w0")
	ping(t, w.wire, first)
	ping(t, a, wire6)
	w.detach(t, c, a)
	w.clean(t)
}

// raw runs the plugin as a process of its own, in the host.
func (w *world) raw(t *testing.T, verb string, c object, n *lab.Netns, env ...string) (map[string]any, error) {
	t.Helper()
	stdin, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	line := append(slices.Clone(w.strace), filepath.Join(w.bin(), "xvlan-cni"))
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdin = strings.NewReader(string(stdin))
	cmd.Env = append(cmd.Environ(), "CNI_COMMAND="+verb, "CNI_PATH="+w.bin())
	if n != nil {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+n.Name(), "CNI_NETNS="+n.Path(), "CNI_IFNAME=eth0")
	}
	cmd.Env = append(cmd.Env, env...)
	var out []byte
	var failure error
	w.host.Do(t, func() { out, failure = cmd.Output() })
	var result map[string]any
	if len(out) > 0 {
		if err := json.Unmarshal(out, &result); err != nil {
			t.Fatalf("%s: %v\n%s", verb, err, out)
		}
	}
	if failure == nil {
		return result, nil
	}
	code, _ := result["code"].(float64)
	return nil, types.NewError(uint(code), fmt.Sprint(result["msg"]), "")
}

// TestVersions looks at the form of results, and at which verbs each version of
// the specification has.
func TestVersions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	spoken, err := w.raw(t, "VERSION", nil, nil)
	if want := "[0.3.0 0.3.1 0.4.0 1.0.0 1.1.0]"; err != nil || fmt.Sprint(spoken["supportedVersions"]) != want {
		t.Errorf("VERSION says %v, %v", spoken, err)
	}
	for _, v := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			if v == "1.1.0" {
				w.newer(t)
			}
			c := w.net("net", "cniVersion", v, "mtu", 1400)
			result, err := w.raw(t, "ADD", c, a)
			if err != nil {
				t.Fatal(err)
			}
			dev, ip := result["interfaces"].([]any)[0].(map[string]any), result["ips"].([]any)[0].(map[string]any)
			if result["cniVersion"] != v || dev["name"] != "eth0" || dev["sandbox"] != a.Path() ||
				dev["mac"] != a.Link(t, "eth0").Attrs().HardwareAddr.String() || ip["interface"] != 0.0 || ip["gateway"] != wireAddr {
				t.Errorf("result %v", result)
			}
			if _, has := ip["version"]; has != (v < "1") {
				t.Errorf("an address in the form %v", ip)
			}
			if mtu, has := dev["mtu"]; has != (v == "1.1.0") || has && mtu != 1400.0 {
				t.Errorf("a device in the form %v", dev)
			}
			c["prevResult"] = result
			for verb, since := range map[string]string{"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"} {
				c["cni.dev/valid-attachments"] = []object{{"containerID": a.Name(), "ifname": "eth0"}}
				if _, err := w.raw(t, verb, c, a); v >= since {
					if err != nil {
						t.Errorf("%s: %v", verb, err)
					}
				} else {
					failed(t, err, types.ErrIncompatibleCNIVersion, verb)
				}
			}
			if _, err := w.raw(t, "DEL", c, a); err != nil {
				t.Error(err)
			}
			w.clean(t)
		})
	}
	_, err = w.raw(t, "ADD", w.net("net", "cniVersion", "0.2.0"), a)
	failed(t, err, types.ErrIncompatibleCNIVersion, "")
}

// TestDefaults leaves master and addresses out: it is the default route's device,
// and the sub-interface has a link and nothing else.
func TestDefaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	c := w.net("net")
	delete(c, "master")
	delete(c, "ipam")
	_, err := w.add(t, c.list(t), container(a))
	failed(t, err, types.ErrInvalidNetworkConfig, "master|default route")
	w.host.Run(t, "ip", "route", "add", "default", "via", wireAddr)
	w.attach(t, c, a)
	a.Addr(t, "eth0", "10.88.0.99/24")
	ping(t, a, wireAddr)
	l := w.links(t)["cni/net/"+a.Name()+"/eth0"]
	if l.Parent != "lan0" || l.Mode != maps.Bridge {
		t.Errorf("made %+v", l)
	}
	w.detach(t, c, a)
	w.clean(t)
}

// TestOwnKeys has the words of xvlan do what they do with xvlan.
func TestOwnKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := lab.NewNetns(t, "a")
	for _, c := range []object{
		w.net("net", "kind", "ipvlan"),
		w.net("net", "mode", "l3", "flag", "private"),
		w.net("net", "mode", "passthru", "flag", "nopromisc"),
		w.net("net", "mode", "source", "flag", "nodst", "macaddr", []string{wireMAC, "02:00:00:00:88:aa"}),
		w.net("net", "mode", "l2", "guard", "on,dhcp", "bcrate", 50, "via-host", []string{"fd00:96::/112", "10.96.0.0/12"}),
		w.net("net", "mode", "l2", "vlan", 10, "qinq", 300),
		w.net("net", "vlan", 5, "vlanTrunk", []object{{"id": 10}, {"minID": 20, "maxID": 29}}),
		w.net("net", "bcqueuelen", 10, "bclim", -1, "mtu", 1300, "mac", "02:00:00:00:88:10"),
	} {
		w.attach(t, c, a)
		l := w.links(t)["cni/net/"+a.Name()+"/eth0"]
		var spec loader.LinkSpec
		err := w.loader(t, func(h *loader.Host) (err error) { spec, err = h.Spec(l); return err })
		if err != nil {
			t.Error(err)
		}
		if word, ok := c["guard"]; ok && (l.Guard.String() != word || l.Guard.Rate != 50 || l.Guard.Learn4) {
			t.Errorf("its guard is %+v", l.Guard)
		}
		if _, ok := c["via-host"]; ok && fmt.Sprint(l.Via) != "[10.96.0.0/12 fd00:96::/112]" {
			t.Errorf("by way of the host it reaches %v", l.Via)
		}
		vlan := map[any]string{10: "vlan 10 qinq 300", 5: "vlan 5 trunk 10,20-29"}[c["vlan"]]
		if l.VLAN.String() != vlan {
			t.Errorf("%v made %s, want %s", c, l.VLAN, vlan)
		}
		slices.SortFunc(spec.Source.MACs, func(a, b net.HardwareAddr) int { return bytes.Compare(a, b) })
		is := fmt.Sprintf("%s %s %s nopromisc=%v nodst=%v %v", spec.Kind, spec.Mode, l.Class, spec.NoPromisc, spec.Source.NoDst, spec.Source.MACs)
		want := map[string]string{
			"":         "macvlan bridge bridge nopromisc=false nodst=false []",
			"ipvlan":   "ipvlan l2 bridge nopromisc=false nodst=false []",
			"l2":       "ipvlan l2 bridge nopromisc=false nodst=false []",
			"l3":       "ipvlan l3 private nopromisc=false nodst=false []",
			"passthru": "macvlan passthru private nopromisc=true nodst=false []",
			"source":   "macvlan source source nopromisc=false nodst=true [02:00:00:00:88:aa " + wireMAC + "]",
		}
		key, _ := c["mode"].(string)
		if c["kind"] != nil {
			key = "ipvlan"
		}
		if is != want[key] {
			t.Errorf("%v made %s", c, is)
		}
		if key == "" && vlan == "" && (spec.MTU != 1300 || spec.MAC.String() != "02:00:00:00:88:10") {
			t.Errorf("%v made mtu %d, mac %s", c, spec.MTU, spec.MAC)
		}
		if err := w.check(t, c, a); err != nil {
			t.Errorf("CHECK %v: %v", c, err)
		}
		w.detach(t, c, a)
	}
	w.clean(t)
}
