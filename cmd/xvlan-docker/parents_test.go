package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/network"
	"github.com/vishvananda/netlink"

	"github.com/xvlan/xvlan/lab"
)

// newDriver is a dock without Docker.
func newDriver(t *testing.T) *dock {
	t.Helper()
	d := &dock{host: lab.NewNetns(t, "host"), wire: lab.NewNetns(t, "wire"), dir: t.TempDir()}
	d.driver = "xvlan" + d.host.Name()
	lab.Veth(t, d.host, "eth0", d.wire, "w0")
	t.Setenv(asDriver, "yes")
	d.startDriver(t)
	t.Cleanup(func() { stop(t, d.plugin) }) // and its socket goes
	return d
}

// ask asks the driver as Docker does, and returns what went wrong.
func (d *dock) ask(t *testing.T, what string, req, res any) string {
	t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.socket())
	}}}
	answer, err := client.Post("http://driver/NetworkDriver."+what, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatalf("ask for %s: %v", what, err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK {
		var failed network.ErrorResponse
		if err := json.Unmarshal(raw, &failed); err != nil || failed.Err == "" {
			t.Fatalf("%s: %s\n%s", what, answer.Status, raw)
		}
		return failed.Err
	}
	if res != nil {
		if err := json.Unmarshal(raw, res); err != nil {
			t.Fatalf("%s answers %s: %v", what, raw, err)
		}
	}
	return ""
}

// done asks for what has to succeed.
func (d *dock) done(t *testing.T, what string, req, res any) {
	t.Helper()
	if wrong := d.ask(t, what, req, res); wrong != "" {
		t.Fatalf("%s: %s", what, wrong)
	}
}

func (d *dock) create(t *testing.T, id string, options map[string]any) {
	t.Helper()
	d.done(t, "CreateNetwork", network.CreateNetworkRequest{
		NetworkID: id, Options: map[string]any{"com.docker.network.generic": options},
		IPv4Data: []*network.IPAMData{{Pool: "10.79.0.0/24", Gateway: wireAddr + "/24"}},
	}, nil)
}

func (d *dock) remove(t *testing.T, id string) {
	t.Helper()
	d.done(t, "DeleteNetwork", network.DeleteNetworkRequest{NetworkID: id}, nil)
}

// device is a device of the host's, nil if there is none.
func (d *dock) device(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := d.host.Handle().LinkByName(name)
	if err != nil {
		return nil
	}
	return l
}

// endpoint makes and removes one on a network, and tells how it is to be joined.
func (d *dock) endpoint(t *testing.T, id string) (join network.JoinResponse) {
	t.Helper()
	const name = "0123456789abcdef"
	d.done(t, "CreateEndpoint", network.CreateEndpointRequest{
		NetworkID: id, EndpointID: name, Interface: &network.EndpointInterface{Address: "10.79.0.5/24"},
	}, nil)
	d.done(t, "Join", network.JoinRequest{NetworkID: id, EndpointID: name, SandboxKey: d.wire.Path()}, &join)
	if d.device(t, join.InterfaceName.SrcName) == nil {
		t.Errorf("there is no %s to be joined", join.InterfaceName.SrcName)
	}
	d.done(t, "Leave", network.LeaveRequest{NetworkID: id, EndpointID: name}, nil)
	d.done(t, "DeleteEndpoint", network.DeleteEndpointRequest{NetworkID: id, EndpointID: name}, nil)
	if links := d.links(t); len(links) > 0 {
		t.Errorf("there are %+v", links)
	}
	return join
}

// A VLAN device that is a network's parent comes with the first and goes with the
// last that has it, and comes again after a reboot; one that was there stays.
func TestVLANParent(t *testing.T) {
	if !lab.HasKind(t, "vlan") {
		t.Skip("the kernel has no VLAN devices")
	}
	d := newDriver(t)
	vlan := map[string]any{"parent": "eth0.10"}
	d.create(t, "one", vlan)
	made, ok := d.device(t, "eth0.10").(*netlink.Vlan)
	if !ok || made.VlanId != 10 || made.Attrs().RawFlags&1 == 0 {
		t.Fatalf("the parent is %+v", made)
	}
	if join := d.endpoint(t, "one"); join.Gateway != wireAddr {
		t.Errorf("one joins by %+v", join)
	}
	d.create(t, "two", vlan)
	d.remove(t, "one")
	if d.device(t, "eth0.10") == nil {
		t.Fatal("the parent has gone before its last network")
	}
	d.host.Run(t, "ip", "link", "del", "eth0.10") // as by a reboot
	d.endpoint(t, "two")
	d.remove(t, "two")
	if d.device(t, "eth0.10") != nil {
		t.Error("the parent is still there")
	}
	d.host.Run(t, "ip", "link", "add", "link", "eth0", "name", "eth0.11", "type", "vlan", "id", "11")
	d.create(t, "three", map[string]any{"parent": "eth0.11"})
	d.remove(t, "three")
	if d.device(t, "eth0.11") == nil {
		t.Error("a parent that was there before has gone")
	}
	d.empty(t)
}

// A network without a parent has one of its own, and no way out.
func TestNoParent(t *testing.T) {
	if !lab.HasKind(t, "dummy") {
		t.Skip("the kernel has no dummy devices")
	}
	d := newDriver(t)
	d.create(t, "0123456789abcdefgh", nil)
	if d.device(t, "dm-0123456789ab") == nil {
		t.Fatal("there is no dm-0123456789ab")
	}
	if join := d.endpoint(t, "0123456789abcdefgh"); join.Gateway != "" || !join.DisableGatewayService {
		t.Errorf("it is joined by %+v", join)
	}
	d.remove(t, "0123456789abcdefgh")
	if d.device(t, "dm-0123456789ab") != nil {
		t.Error("the parent is still there")
	}
	d.empty(t)
}

// What has been lost or never was is said, and removing it again is no error.
func TestStrangers(t *testing.T) {
	d := newDriver(t)
	if wrong := d.ask(t, "CreateEndpoint", network.CreateEndpointRequest{NetworkID: "x", EndpointID: "y"}, nil); !strings.Contains(wrong, "network x") {
		t.Errorf("an endpoint on no network: %q", wrong)
	}
	if wrong := d.ask(t, "Join", network.JoinRequest{NetworkID: "x", EndpointID: "y"}, nil); !strings.Contains(wrong, "network x") {
		t.Errorf("no network joined: %q", wrong)
	}
	if wrong := d.ask(t, "CreateNetwork", network.CreateNetworkRequest{NetworkID: "../x"}, nil); !strings.Contains(wrong, "../x") {
		t.Errorf("a network outside its folder: %q", wrong)
	}
	for range 2 {
		d.remove(t, "x")
		d.done(t, "DeleteEndpoint", network.DeleteEndpointRequest{NetworkID: "x", EndpointID: "y"}, nil)
	}
	d.create(t, "net", map[string]any{"parent": "eth0"})
	req := network.CreateEndpointRequest{NetworkID: "net", EndpointID: "y", Interface: &network.EndpointInterface{Address: "10.79.0.300/24"}}
	if wrong := d.ask(t, "CreateEndpoint", req, nil); !strings.Contains(wrong, "10.79.0.300") {
		t.Errorf("an address that is none: %q", wrong)
	}
	d.remove(t, "net")
	d.empty(t)
}
