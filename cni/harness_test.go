package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
)

// TestMain makes the test binary be the plugin where it is called by its name,
// as runtimes do.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "xvlan-cni" {
		Main()
		return
	}
	os.Exit(m.Run())
}

// debianPlugins is where Debian's containernetworking-plugins are, which speak
// versions up to 1.0.0.
const debianPlugins = "/usr/lib/cni"

// newerPlugins builds those that speak 1.1.0.
var newerPlugins = sync.OnceValues(func() (map[string]string, error) {
	paths := map[string]string{}
	for _, name := range []string{"host-local", "static"} {
		cmd := exec.Command("go", "tool", "-n", name)
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cmd, err)
		}
		paths[name] = strings.TrimSpace(string(out))
	}
	return paths, nil
})

// A world is a host with a parent lan0, whose other end is w0 in the namespace
// wire, and a runtime that calls plugins there.
type world struct {
	host, wire *lab.Netns
	dir        string // with bin, where plugins are, and ipam, where host-local keeps what it has given
	cni        *libcni.CNIConfig
	strace     []string // what raw runs the plugin by, if anything
}

const (
	hostAddr = "10.88.0.1"
	wireAddr = "10.88.0.254" // also the gateway
	wire6    = "fd88::254"
	wireMAC  = "02:00:00:00:88:fe"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{host: lab.NewNetns(t, "host"), wire: lab.NewNetns(t, "wire"), dir: t.TempDir()}
	lab.Veth(t, w.host, "lan0", w.wire, "w0")
	w.wire.Run(t, "ip", "link", "set", "w0", "address", wireMAC)
	w.host.Addr(t, "lan0", hostAddr+"/24")
	w.wire.Addr(t, "w0", wireAddr+"/24", wire6+"/64")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w.plugin(t, "xvlan-cni", exe)
	for _, name := range []string{"host-local", "static", "dhcp", "tuning"} {
		path := filepath.Join(debianPlugins, name)
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%v: apt-get install containernetworking-plugins", err)
		}
		w.plugin(t, name, path)
	}
	w.cni = libcni.NewCNIConfigWithCacheDir([]string{w.bin()}, filepath.Join(w.dir, "cache"), nil)
	t.Cleanup(func() {
		if t.Failed() { // what a failed test leaves is no news
			_ = w.loader(t, func(h *loader.Host) error { return h.Detach("lan0") })
		}
	})
	return w
}

func (w *world) bin() string { return filepath.Join(w.dir, "bin") }

// plugin makes a program a plugin.
func (w *world) plugin(t *testing.T, name, path string) {
	t.Helper()
	link := filepath.Join(w.bin(), name)
	err := errors.Join(os.MkdirAll(w.bin(), 0o755), os.RemoveAll(link), os.Symlink(path, link))
	if err != nil {
		t.Fatal(err)
	}
}

// script makes a shell script a plugin.
func (w *world) script(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join(w.bin(), name)
	// What it takes the place of is a link, and must not be written to.
	if err := errors.Join(os.RemoveAll(file), os.WriteFile(file, []byte("#!/bin/sh\n"+text), 0o755)); err != nil {
		t.Fatal(err)
	}
}

// newer puts the IPAM plugins of version 1.1.0 in place of Debian's.
func (w *world) newer(t *testing.T) {
	t.Helper()
	plugins, err := newerPlugins()
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range plugins {
		w.plugin(t, name, path)
	}
}

// An object of JSON: a network's configuration.
type object map[string]any

// net is a configuration of version 1.0.0 with the keys and values that follow,
// and host-local for IPAM.
func (w *world) net(name string, pairs ...any) object {
	c := object{"cniVersion": "1.0.0", "name": name, "type": "xvlan-cni", "master": "lan0", "ipam": w.hostLocal("10.88.0.0/24")}
	for i := 0; i < len(pairs); i += 2 {
		c[pairs[i].(string)] = pairs[i+1]
	}
	return c
}

func (w *world) hostLocal(subnets ...string) object {
	var ranges [][]object
	for _, s := range subnets {
		r := object{"subnet": s, "rangeStart": "10.88.0.10", "gateway": wireAddr}
		if strings.Contains(s, ":") {
			r = object{"subnet": s, "gateway": wire6}
		}
		ranges = append(ranges, []object{r})
	}
	return object{"type": "host-local", "dataDir": filepath.Join(w.dir, "ipam"), "ranges": ranges, "routes": []object{{"dst": "0.0.0.0/0"}}}
}

// list is a chain of configurations, which has the first one's version and name.
func (c object) list(t *testing.T, more ...object) *libcni.NetworkConfigList {
	t.Helper()
	data, err := json.Marshal(object{"cniVersion": c["cniVersion"], "name": c["name"], "plugins": append([]object{c}, more...)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// container names what is attached to networks: its namespace's name serves as id.
func container(n *lab.Netns) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: n.Name(), NetNS: n.Path(), IfName: "eth0"}
}

// add has the runtime attach a container.
func (w *world) add(t *testing.T, l *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (result *current.Result, err error) {
	t.Helper()
	var r types.Result
	w.host.Do(t, func() { r, err = w.cni.AddNetworkList(t.Context(), l, rt) })
	if err != nil {
		return nil, err
	}
	result, err = current.NewResultFromResult(r)
	if err != nil {
		t.Fatal(err)
	}
	return result, nil
}

// attach is add for what must succeed. It returns the first address.
func (w *world) attach(t *testing.T, c object, n *lab.Netns) string {
	t.Helper()
	result, err := w.add(t, c.list(t), container(n))
	if err != nil {
		t.Fatalf("ADD %v: %v", c, err)
	}
	if len(result.IPs) == 0 {
		return ""
	}
	return result.IPs[0].Address.IP.String()
}

func (w *world) check(t *testing.T, c object, n *lab.Netns) (err error) {
	t.Helper()
	w.host.Do(t, func() { err = w.cni.CheckNetworkList(t.Context(), c.list(t), container(n)) })
	return err
}

// detach removes an attachment, and once more, which is no error.
func (w *world) detach(t *testing.T, c object, n *lab.Netns) {
	t.Helper()
	for range 2 {
		w.host.Do(t, func() {
			if err := w.cni.DelNetworkList(t.Context(), c.list(t), container(n)); err != nil {
				t.Errorf("DEL %v: %v", c, err)
			}
		})
	}
}

// loader runs fn with the loader in the host.
func (w *world) loader(t *testing.T, fn func(h *loader.Host) error) (err error) {
	t.Helper()
	w.host.Do(t, func() {
		var h *loader.Host
		if h, err = loader.Open(slog.New(slog.DiscardHandler)); err == nil {
			err = fn(h)
			h.Close()
		}
	})
	return err
}

// links are the sub-interfaces that there are, by owner.
func (w *world) links(t *testing.T) map[string]loader.Link {
	t.Helper()
	all := map[string]loader.Link{}
	err := w.loader(t, func(h *loader.Host) error {
		links, err := h.Links()
		for _, l := range links {
			all[l.Owner] = l
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// clean checks that nothing is left: no sub-interface, no parent attached, no
// device, no address reserved.
func (w *world) clean(t *testing.T) {
	t.Helper()
	for owner := range w.links(t) {
		t.Errorf("left: %s", owner)
	}
	err := w.loader(t, func(h *loader.Host) error {
		parents, err := h.Parents()
		if len(parents) > 0 {
			t.Errorf("parents left: %v", parents)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	devices, err := w.host.Handle().LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Fatal(err)
	}
	for _, d := range devices {
		if name := d.Attrs().Name; name != "lo" && name != "lan0" {
			t.Errorf("device left: %s", name)
		}
	}
	if reserved := w.reserved(t); len(reserved) > 0 {
		t.Errorf("addresses left: %v", reserved)
	}
}

// reserved are the addresses that host-local holds to be given.
func (w *world) reserved(t *testing.T) []string {
	t.Helper()
	var addrs []string
	err := filepath.WalkDir(filepath.Join(w.dir, "ipam"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.ContainsAny(d.Name(), ".:") && !strings.HasPrefix(d.Name(), "last_") {
			addrs = append(addrs, d.Name())
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	slices.Sort(addrs)
	return addrs
}

// failed checks an error's code, and that it says what is wanted, parts of which
// are divided by bars.
func failed(t *testing.T, err error, code uint, says string) {
	t.Helper()
	e, ok := errors.AsType[*types.Error](err)
	if !ok || e.Code != code {
		t.Errorf("error %+v, want one of code %d", err, code)
		return
	}
	for part := range strings.SplitSeq(says, "|") {
		if !strings.Contains(e.Msg, part) {
			t.Errorf("%q does not say %q", e.Msg, part)
		}
	}
}

// ping goes on until one answer has come.
func ping(t *testing.T, n *lab.Netns, addr string) {
	t.Helper()
	n.Run(t, "ping", "-c1", "-w20", "-i0.2", "-q", addr)
}
