package main

import (
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// Networks in VLANs of one trunk: their containers reach who is in theirs on the
// wire, and a router, which is on a trunk, both.
func TestVLANNetworks(t *testing.T) {
	if !lab.HasKind(t, "vlan") {
		t.Skip("the kernel has no VLAN devices")
	}
	d := newDock(t)
	for _, v := range []struct{ vlan, net, options string }{
		{"10", "10.79.10", "-o vlan=10"},
		{"20", "10.79.20", "-o vlan=20 -o mode=l2"},
	} {
		d.wire.Run(t, "ip", "link", "add", "link", "w0", "name", "w0."+v.vlan, "type", "vlan", "id", v.vlan)
		d.wire.Addr(t, "w0."+v.vlan, v.net+".1/24")
		d.docker(t, "network create -d "+d.driver+" -o parent=eth0 "+v.options+" --subnet "+v.net+".0/24 --gateway "+v.net+".1 net"+v.vlan)
		d.run(t, "in"+v.vlan, "--network net"+v.vlan+" --ip "+v.net+".11")
		d.reaches(t, "in"+v.vlan, v.net+".1")
		d.wire.Run(t, "ping", "-c1", "-w20", "-q", v.net+".11")
	}
	d.docker(t, "network create -d "+d.driver+" -o parent=eth0 -o trunk=10,20 --subnet 10.79.30.0/24 trunk")
	d.run(t, "router", "--privileged --network trunk")
	d.docker(t, "exec router ip link add link eth0 name v20 type vlan id 20")
	d.docker(t, "exec router ip addr add 10.79.20.30/24 dev v20")
	d.docker(t, "exec router ip link set v20 up")
	d.reaches(t, "router", "10.79.20.1")
	d.reaches(t, "in20", "10.79.20.30")
	d.docker(t, "rm -f in10 in20 router")
	d.docker(t, "network rm net10 net20 trunk")
	d.empty(t)
}

// A service that is nowhere but on the host is reached by containers whose network
// says so, and by no others.
func TestViaHost(t *testing.T) {
	d := newDock(t)
	d.host.Addr(t, "eth0", "10.79.0.200/24")
	d.host.Run(t, "ip", "addr", "add", "10.96.0.10/32", "dev", "lo")
	d.host.Start(t, "busybox", "nc", "-ll", "-p", "80", "-e", "echo", "hello")
	for _, options := range []string{"-o via-host=10.96.0.0/12,169.254.169.254", "-o mode=l2 -o via-host=10.96.0.0/12", ""} {
		d.docker(t, "network create -d "+d.driver+" -o parent=eth0 "+options+" --subnet 10.79.0.0/24 --gateway "+wireAddr+" net")
		d.run(t, "one", "--network net")
		d.reaches(t, "one", wireAddr)
		if options == "" { // what is asked of the wire nobody answers there
			if out, err := d.try(t, "exec", "one", "nc", "-w1", "10.96.0.10", "80"); err == nil {
				t.Errorf("the service said %q to who has no way to it", out)
			}
		} else if out := d.docker(t, "exec one nc -w20 10.96.0.10 80"); out != "hello" {
			t.Errorf("%s: the service said %q", options, out)
		}
		d.docker(t, "rm -f one")
		d.docker(t, "network rm net")
	}
	d.empty(t)
}
