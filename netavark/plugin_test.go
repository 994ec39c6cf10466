package netavark

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
)

// A rig is a host, the wire behind its eth0, and the namespaces of two containers.
type rig struct {
	host, wire *lab.Netns
	containers [2]*lab.Netns
}

const (
	wire4 = "10.81.0.1"
	wire6 = "fd81::1"
	host4 = "10.81.0.2"
	host6 = "fd81::2"
)

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{host: lab.NewNetns(t, "host"), wire: lab.NewNetns(t, "wire")}
	for i := range r.containers {
		r.containers[i] = lab.NewNetns(t, fmt.Sprint("c", i))
	}
	lab.Veth(t, r.host, "eth0", r.wire, "w0")
	r.wire.Addr(t, "w0", wire4+"/24", wire6+"/64")
	r.host.Addr(t, "eth0", host4+"/24", host6+"/64") // l3 goes by the host's routes
	return r
}

// call calls the plugin in the host's namespace, and returns what it answers.
func (r *rig) call(t *testing.T, in string, args ...string) (string, int) {
	t.Helper()
	var (
		out  bytes.Buffer
		code int
	)
	r.host.Do(t, func() { code = Run(args, strings.NewReader(in), &out, "v1") })
	return strings.TrimSpace(out.String()), code
}

// refused checks that a call is refused with a word of what is wrong.
func (r *rig) refused(t *testing.T, says, in string, args ...string) {
	t.Helper()
	out, code := r.call(t, in, args...)
	var answer struct{ Error string }
	if err := json.Unmarshal([]byte(out), &answer); err != nil || code == 0 || !strings.Contains(answer.Error, says) {
		t.Errorf("%q of %s answers %d %s; want it to say %s", args, in, code, out, says)
	}
}

// request is what podman asks for a container.
func request(options string, internal bool, n int) string {
	return fmt.Sprintf(`{"container_id": "id%d", "container_name": "c%[1]d", "port_mappings": null,
		"network": {"name": "net", "id": "n1", "driver": "xvlan", "network_interface": "eth0", "internal": %t, "dns_enabled": false,
			"options": %s, "subnets": [{"subnet": "10.81.0.0/24", "gateway": "10.81.0.1"}, {"subnet": "fd81::/64", "gateway": "fd81::1"}],
			"routes": [{"destination": "10.99.0.0/16", "gateway": "10.81.0.7", "metric": 5}]},
		"network_options": {"interface_name": "eth%[1]d", "static_ips": ["10.81.0.1%[1]d", "fd81::1%[1]d"], "static_mac": "02:81:00:00:00:1%[1]d"}}`,
		n, internal, options)
}

func (r *rig) links(t *testing.T) (links []loader.Link) {
	t.Helper()
	var err error
	r.host.Do(t, func() {
		var h *loader.Host
		if h, err = loader.Open(slog.New(slog.DiscardHandler)); err == nil {
			defer h.Close()
			links, err = h.Links()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return links
}

func ping(t *testing.T, n *lab.Netns, addr string) {
	t.Helper()
	n.Run(t, "ping", "-c1", "-w20", "-i0.2", "-q", addr)
}

// Containers on networks of each mode have what was chosen for them, reach the
// wire and each other, and go without trace, however often they are taken down.
func TestSetup(t *testing.T) {
	r := newRig(t)
	for _, options := range []string{
		`null`, `{"mode": "bridge", "mtu": "1400", "metric": "7", "bclim": "10"}`, `{"mode": "l2", "datapath": "tc", "host": "on", "guard": "on", "bcrate": "50"}`, `{"mode": "l3", "via-host": "10.96.0.0/12"}`,
		`{"trunk": "0,10"}`,
	} {
		t.Run(options, func(t *testing.T) {
			for i, c := range r.containers {
				in := request(options, false, i)
				out, code := r.call(t, in, "setup", c.Path())
				if code != 0 {
					t.Fatal(out)
				}
				want := fmt.Sprintf(`{"dns_search_domains":[],"dns_server_ips":[],"interfaces":{"eth%d":{"mac_address":"02:81:00:00:00:1%[1]d",`+
					`"subnets":[{"ipnet":"10.81.0.1%[1]d/24","gateway":"10.81.0.1"},{"ipnet":"fd81::1%[1]d/64","gateway":"fd81::1"}]}}}`, i)
				if out != want {
					t.Errorf("it answers\n%s\nwant\n%s", out, want)
				}
			}
			if strings.Contains(options, "l3") { // whose addresses nobody answers for
				for net, by := range map[string]string{"10.81.0.8/29": host4, "fd81::10/124": host6} {
					r.wire.Run(t, "ip", "route", "add", net, "via", by)
					defer r.wire.Run(t, "ip", "route", "del", net)
				}
			}
			ping(t, r.containers[0], wire4)
			ping(t, r.containers[0], wire6)
			ping(t, r.wire, "10.81.0.11")
			ping(t, r.containers[1], "10.81.0.10")
			ping(t, r.containers[1], "fd81::10")
			routes := r.containers[0].Run(t, "ip", "route")
			want := "default via 10.81.0.1 dev eth0 metric 99"
			switch {
			case strings.Contains(options, "metric"):
				want = "default via 10.81.0.1 dev eth0 metric 7"
			case strings.Contains(options, "l3"):
				want = "default dev eth0 scope link metric 99"
			}
			if !strings.Contains(routes, want) {
				t.Errorf("the routes are\n%swithout %s", routes, want)
			}
			for range 2 {
				for i, c := range r.containers {
					if out, code := r.call(t, request(options, false, i), "teardown", c.Path()); code != 0 || out != "" {
						t.Errorf("teardown answers %d %s", code, out)
					}
				}
			}
			if links := r.links(t); len(links) > 0 {
				t.Errorf("there are left %+v", links)
			}
		})
	}
}

// A container on an internal network has no way out, and one whose namespace is
// gone is taken down all the same.
func TestInternal(t *testing.T) {
	r := newRig(t)
	in := strings.Replace(request(`{"no_default_route": "false"}`, true, 0), `"routes": [`, `"others": [`, 1)
	if out, code := r.call(t, in, "setup", r.containers[0].Path()); code != 0 || strings.Contains(out, "gateway") {
		t.Fatalf("%d %s", code, out)
	}
	if routes := r.containers[0].Run(t, "ip", "route"); strings.Contains(routes, "default") {
		t.Errorf("the routes are\n%s", routes)
	}
	if out, code := r.call(t, in, "teardown", "/run/netns/gone"); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	if links := r.links(t); len(links) > 0 {
		t.Errorf("there are left %+v", links)
	}
}

// A network is completed as podman's own macvlan networks are, and what is not
// known here stays.
func TestCreate(t *testing.T) {
	r := newRig(t)
	const base = `{"name": "net", "id": "n1", "driver": "xvlan", "created": "then", "dns_enabled": true, `
	for in, want := range map[string]string{
		`"subnets": [{"subnet": "10.81.0.0/24", "lease_range": {"start_ip": "10.81.0.9"}}], "options": {"parent": "eth0", "mode": "l2"}}`: `{"created":"then","dns_enabled":false,"driver":"xvlan","id":"n1","ipam_options":{"driver":"host-local"},"name":"net","network_interface":"eth0",` +
			`"options":{"mode":"l2","parent":"eth0"},"subnets":[{"subnet":"10.81.0.0/24","gateway":"10.81.0.1","lease_range":{"start_ip":"10.81.0.9"}}]}`,
		`"internal": true, "subnets": [{"subnet": "10.81.0.0/24"}], "network_interface": "eth0"}`: `{"created":"then","dns_enabled":false,"driver":"xvlan","id":"n1","internal":true,"ipam_options":{"driver":"host-local"},"name":"net",` +
			`"network_interface":"eth0","subnets":[{"subnet":"10.81.0.0/24"}]}`,
		`"network_interface": "eth0"}`: `{"created":"then","dns_enabled":false,"driver":"xvlan","id":"n1","ipam_options":{"driver":"none"},"name":"net","network_interface":"eth0"}`,
	} {
		if out, code := r.call(t, base+in, "create"); code != 0 || out != want {
			t.Errorf("%s: %d\n%s\nwant\n%s", in, code, out, want)
		}
	}
	for in, says := range map[string]string{
		`"options": {"colour": "red"}}`:                                                "colour",
		`"options": {"mode": "blue"}}`:                                                 "blue",
		`"options": {"mode": "source"}}`:                                               "source",
		`"options": {"flag": "private"}}`:                                              "flag private",
		`"options": {"mode": "l2", "bclim": "3"}}`:                                     "bclim",
		`"options": {"mtu": "-3"}}`:                                                    "mtu",
		`"options": {"metric": "x"}}`:                                                  "metric",
		`"options": {"bclim": "x"}}`:                                                   "bclim",
		`"options": {"no_default_route": "maybe"}}`:                                    "no_default_route",
		`"options": {"datapath": "slow"}}`:                                             "slow",
		`"options": {"host": "yes"}}`:                                                  "yes",
		`"options": {"via-host": "10.96.0.0/33"}}`:                                     "10.96.0.0/33",
		`"options": {"guard": "maybe"}}`:                                               "maybe",
		`"options": {"vlan": "10,20"}}`:                                                "10,20",
		`"options": {"trunk": "1-"}}`:                                                  "1-",
		`"options": {"bcrate": "0"}}`:                                                  "bcrate",
		`"network_interface": "eth1", "options": {"parent": "eth0"}}`:                  "eth1",
		`"subnets": [{"subnet": "10.81.0.0/24", "gateway": "10.82.0.1"}]}`:             "10.82.0.1",
		`"subnets": [{"subnet": "10.81.0.0/33"}]}`:                                     "10.81.0.0/33",
		`"ipam_options": {"driver": "dhcp"}}`:                                          "dhcp",
		`"ipam_options": {"driver": "host-local"}}`:                                    "subnet",
		`"ipam_options": {"driver": "none"}, "subnets": [{"subnet": "10.81.0.0/24"}]}`: "none",
		`"options": 3}`:                                                                "options",
		`}`:                                                                            "read network",
	} {
		r.refused(t, says, base+in, "create")
	}
}

// What cannot be had is said, and leaves nothing; so is a call that makes no sense.
func TestRefused(t *testing.T) {
	r := newRig(t)
	c := r.containers[0]
	good := request("null", false, 0)
	for _, bad := range []struct{ says, from, to string }{
		{"10.85.0.1", `"10.81.0.10"`, `"10.85.0.1"`},
		{"02:81", `"02:81:00:00:00:10"`, `"02:81"`},
		{"nowhere0", `"network_interface": "eth0"`, `"network_interface": "nowhere0"`},
		{"no default route", `"network_interface": "eth0"`, `"network_interface": ""`},
		{"10.81.0.2", `"10.81.0.10"`, `"10.81.0.2"`}, // the host's
		{"lo", `"interface_name": "eth0"`, `"interface_name": "lo"`},
		{"10.99.0.0", `"gateway": "10.81.0.7"`, `"gateway": "10.99.9.9"`}, // after the device was made
		{"mode", `"options": null`, `"options": {"mode": "blue"}`},
	} {
		r.refused(t, bad.says, strings.Replace(good, bad.from, bad.to, 1), "setup", c.Path())
		if links := r.links(t); len(links) > 0 {
			t.Fatalf("there are left %+v", links)
		}
	}
	r.refused(t, "/run/netns/gone", good, "setup", "/run/netns/gone")
	r.refused(t, "read what", "{", "setup", c.Path())
	r.refused(t, "NETNS", "", "setup")
	r.refused(t, "NETNS", "", "remove")
	if out, code := r.call(t, "", "info"); code != 0 || out != `{"api_version":"1.0.0","version":"v1"}` {
		t.Errorf("info answers %d %s", code, out)
	}
}
