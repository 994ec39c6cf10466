package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// script sets the address that udhcpc or dhclient has got, and takes it off.
const script = `#!/bin/sh
export PATH=$PATH:/usr/sbin:/sbin
case "$1${reason:-}" in
bound|renew) ip addr replace "$ip/24" dev "$interface";;
deconfig) ip -4 addr flush dev "$interface";;
BOUND|RENEW|REBIND|REBOOT) ip addr replace "$new_ip_address/24" dev "$interface";;
RELEASE|EXPIRE) ip -4 addr flush dev "$interface";;
BOUND6|RENEW6|REBIND6) ip addr replace "$new_ip6_address/128" dev "$interface";;
RELEASE6) ip addr del "$old_ip6_address/128" dev "$interface";;
PREINIT*) ip link set "$interface" up;;
esac
`

// A dhcpClient is a program as it is packaged, in the foreground, with nothing
// said of itself: no client-id, no flag.
type dhcpClient struct {
	name  string
	tool  string // that has to be there
	args  func(dir, dev string) []string
	renew unix.Signal // 0: it heeds the time that the server says
	// release makes it give its lease back. It is called until that is heard of.
	release func(t *testing.T, e *end, dir string, cmd *exec.Cmd)
}

// bySignal releases by a signal.
func bySignal(s unix.Signal) func(*testing.T, *end, string, *exec.Cmd) {
	return func(t *testing.T, _ *end, _ string, cmd *exec.Cmd) {
		if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
	}
}

// byEnding releases by ending the client, which must not be interrupted.
func byEnding(t *testing.T, _ *end, _ string, cmd *exec.Cmd) {
	if cmd.ProcessState != nil {
		return
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the server tells how it went
}

// dhcpcd keeps its files where no test can choose.
func dhcpcd(args string) func(dir, dev string) []string {
	return func(dir, dev string) []string {
		return []string{"unshare", "-m", "sh", "-c", "mount --make-rprivate / && mkdir -p /var/lib/dhcpcd && mount -t tmpfs none /var/lib/dhcpcd && " +
			"mount -t tmpfs none /run && exec dhcpcd " + args + " -f /dev/null -B -d -A --script /bin/true " + dev}
	}
}

const networkdPath = "/lib/systemd/systemd-networkd"

// networkd is run as in a container, where /sys is not to be written to, so that it
// does not wait for udev.
func networkd(_, dev string) []string {
	return []string{"unshare", "-m", "sh", "-c", "mount --make-rprivate / && mount -t sysfs -o ro none /sys && " +
		"mkdir -p /run/systemd/netif /etc/systemd/network && mount -t tmpfs -o mode=755,uid=systemd-network,gid=systemd-network none /run/systemd/netif && " +
		"mount -t tmpfs none /etc/systemd/network && " +
		"printf '[Match]\\nName=" + dev + "\\n[Network]\\nDHCP=ipv4\\nIPv6AcceptRA=no\\n' > /etc/systemd/network/test.network && " +
		"exec " + networkdPath}
}

func dhclient(family string) (args func(dir, dev string) []string, release func(*testing.T, *end, string, *exec.Cmd)) {
	files := func(dir string) []string {
		return []string{family, "-v", "-cf", "/dev/null", "-sf", filepath.Join(dir, "script"), "-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid")}
	}
	args = func(dir, dev string) []string {
		return append(append([]string{"dhclient", "-d"}, files(dir)...), dev)
	}
	release = func(t *testing.T, e *end, dir string, _ *exec.Cmd) {
		e.ns.Run(t, "dhclient", append(append([]string{"-r"}, files(dir)...), e.dev)...)
	}
	return args, release
}

func dhcpClients() []dhcpClient {
	dhclientArgs, dhclientRelease := dhclient("-4")
	return []dhcpClient{
		{"udhcpc", "udhcpc", func(dir, dev string) []string {
			return []string{"udhcpc", "-f", "-R", "-i", dev, "-t", "20", "-T", "1", "-s", filepath.Join(dir, "script")}
		}, unix.SIGUSR1, byEnding},
		{"dhclient", "dhclient", dhclientArgs, 0, dhclientRelease},
		{"dhcpcd", "dhcpcd", dhcpcd("-4"), 0, bySignal(unix.SIGALRM)},
		{"networkd", networkdPath, networkd, 0, byEnding},
	}
}

// clientSpace is a namespace for one client. It may be several processes, dhcpcd is:
// what is left of them in the end goes with it.
func clientSpace(t *testing.T, name string) *lab.Netns {
	t.Helper()
	ns := lab.NewNetns(t, name)
	t.Cleanup(func() {
		for _, pid := range strings.Fields(ns.Run(t, "ip", "netns", "pids", ns.Name())) {
			if n, err := strconv.Atoi(pid); err == nil {
				_ = unix.Kill(n, unix.SIGKILL) // it may have ended by itself
			}
		}
	})
	return ns
}

// A dhcpServer is on the wire, and knows what its log calls what it has done.
type dhcpServer struct {
	cmd                    *exec.Cmd
	acknowledged, released string
	ignores                string // the client whose release it does not take
}

const leaseTime = 120 // seconds, the least that dnsmasq takes

func (s *site) dnsmasq(t *testing.T, args ...string) dhcpServer {
	t.Helper()
	lab.NeedTool(t, "dnsmasq")
	// systemd 252 does not say whom its release is for.
	d := dhcpServer{acknowledged: "DHCPACK(", released: "DHCPRELEASE(", ignores: "networkd"}
	d.cmd = s.wire.ns.Start(t, "dnsmasq", append([]string{"--keep-in-foreground", "--no-resolv", "--port=0", "--conf-file=/dev/null",
		"--interface=" + s.wire.dev, "--leasefile-ro", "--no-ping", "--user=root", "--pid-file=" + filepath.Join(t.TempDir(), "pid"), "--log-facility=-"}, args...)...)
	lab.Eventually(t, "the server is there", func() bool { return strings.Contains(lab.OutputOf(d.cmd), "IP range") })
	return d
}

// kea has its clients renew after 3 seconds, as our dnsmasq has.
func (s *site) kea(t *testing.T) dhcpServer {
	t.Helper()
	lab.NeedTool(t, "kea-dhcp4")
	dir := t.TempDir()
	conf := fmt.Sprintf(`{"Dhcp4": {"interfaces-config": {"interfaces": ["%s"]}, "lease-database": {"type": "memfile", "persist": false},
		"valid-lifetime": %d, "renew-timer": 3, "rebind-timer": 60,
		"loggers": [{"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stdout"}]}],
		"subnet4": [{"subnet": "10.77.0.0/24", "pools": [{"pool": "10.77.0.100-10.77.0.150"}]}]}}`, s.wire.dev, leaseTime)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	d := dhcpServer{acknowledged: "DHCP4_LEASE_ALLOC ", released: "DHCP4_RELEASE "}
	d.cmd = s.wire.ns.Start(t, "env", "KEA_PIDFILE_DIR="+dir, "KEA_LOCKFILE_DIR="+dir, "KEA_LOGGER_DESTINATION=stdout", "kea-dhcp4", "-c", filepath.Join(dir, "conf"))
	lab.Eventually(t, "the server is there", func() bool { return strings.Contains(lab.OutputOf(d.cmd), "DHCP4_STARTED") })
	return d
}

// said counts what the server has logged of a kind, with an address in it if there is
// one.
func (d dhcpServer) said(kind string, a netip.Addr) (n int) {
	for _, line := range strings.Split(lab.OutputOf(d.cmd), "\n") {
		if strings.Contains(line, kind) && (!a.IsValid() || slices.Contains(strings.Fields(line), a.String())) {
			n++
		}
	}
	return n
}

// lease waits until a sub-interface has a lease that its device has, too.
func (s *site) lease(t *testing.T, e *end) LinkAddr {
	t.Helper()
	var lease LinkAddr
	lab.Eventually(t, e.name+" has a lease", func() bool {
		for _, a := range s.link(t, e).Addrs {
			if a.Origin == maps.Leased && len(e.addrsIn(t, netip.PrefixFrom(a.Addr, 32))) == 1 {
				lease = a
				return true
			}
		}
		return false
	})
	return lease
}

// TestDHCP has stock clients, at once and on one parent, get a lease each from a
// stock server on the wire, renew it and give it back.
func TestDHCP(t *testing.T) {
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		s.leases(t, s.dnsmasq(t, fmt.Sprintf("--dhcp-range=10.77.0.100,10.77.0.150,%d", leaseTime), "--dhcp-option=option:T1,3", "--dhcp-option=option:T2,60"))
	})
	t.Run("Kea", func(t *testing.T) {
		s := newSite(t, onClsact, siteOption{noIPv6: true})
		s.leases(t, s.kea(t))
	})
}

func (s *site) leases(t *testing.T, server dhcpServer) {
	t.Helper()
	clients := dhcpClients()
	ends, cmds, dirs := make([]*end, len(clients)), make([]*exec.Cmd, len(clients)), make([]string, len(clients))
	for i, c := range clients {
		lab.NeedTool(t, c.tool)
		ends[i], dirs[i] = newEnd(c.name, clientSpace(t, c.name), fmt.Sprintf("c%d", i), maps.Ipvlan, 0), t.TempDir()
		if err := os.WriteFile(filepath.Join(dirs[i], "script"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		s.addAtOnce(t, ends[i])
	}
	for i, c := range clients {
		args := c.args(dirs[i], ends[i].dev)
		cmds[i] = ends[i].ns.Start(t, args[0], args[1:]...)
	}
	leases := map[netip.Addr]*end{}
	for i, e := range ends {
		lease := s.lease(t, e)
		leases[lease.Addr] = e
		e.ip4 = netip.PrefixFrom(lease.Addr, 24)
		now, err := maps.UptimeNow()
		if left := lease.Until - now; err != nil || left > leaseTime {
			t.Errorf("%s: the lease is for %d seconds, want at most %d: %v", clients[i].name, left, leaseTime, err)
		}
	}
	if len(leases) != len(ends) {
		t.Fatalf("these are the leases: %v", leases)
	}
	for _, e := range ends {
		e.ping(t, s.wire.ip4.Addr())
		s.wire.ping(t, e.ip4.Addr())
		e.ping(t, ends[0].ip4.Addr())
	}
	for i, c := range clients {
		e := ends[i]
		was := s.lease(t, e).Until
		if c.renew != 0 {
			lab.Eventually(t, "a second has passed", func() bool { now, err := maps.UptimeNow(); return err != nil || now > was-leaseTime })
			if err := cmds[i].Process.Signal(c.renew); err != nil {
				t.Fatal(err)
			}
		}
		lab.Eventually(t, c.name+"'s lease is renewed", func() bool { return s.lease(t, e).Until > was && server.said(server.acknowledged, e.ip4.Addr()) > 1 })
		lab.Eventually(t, c.name+"'s lease is given back", func() bool {
			if server.said(server.released, e.ip4.Addr()) == 0 && (c.name != server.ignores || cmds[i].ProcessState == nil) {
				c.release(t, e, dirs[i], cmds[i])
				return false
			}
			return s.origin(t, e, e.ip4.Addr()) == 0
		})
	}
	for _, e := range ends {
		s.del(t, e)
	}
}

// TestDHCPGuarded has one that may speak from nothing but what it is given: a lease is.
func TestDHCPGuarded(t *testing.T) {
	s := newSite(t, onClsact, siteOption{noIPv6: true})
	server := s.dnsmasq(t, fmt.Sprintf("--dhcp-range=10.77.0.100,10.77.0.150,%d", leaseTime))
	e, c, dir := s.sub(t, "ip1"), dhcpClients()[0], t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := s.spec(e)
	spec.Netns, spec.Up, spec.Guard = e.ns.Name(), true, GuardSpec{Guard: &maps.Guard{On: true, Given: true}}
	s.do(t, func(h *Host) error { return h.Add(spec) })
	args := c.args(dir, e.dev)
	cmd := e.ns.Start(t, args[0], args[1:]...)
	lease := s.lease(t, e).Addr
	e.ping(t, s.wire.ip4.Addr())
	c.release(t, e, dir, cmd)
	lab.Eventually(t, "its lease is given back", func() bool { return server.said(server.released, lease) == 1 && s.origin(t, e, lease) == 0 })
	e.ns.Addr(t, e.dev, lease.String()+"/24")
	e.pingFails(t, s.wire.ip4.Addr())
	if got := s.link(t, e).Stats[maps.DropSourceIP].Packets + s.link(t, e).Stats[maps.DropARP].Packets; got == 0 {
		t.Error("what it says afterwards is not dropped")
	}
}

// TestDHCPOff leaves clients to themselves, and refuses to help where that is for
// nothing.
func TestDHCPOff(t *testing.T) {
	s := newSite(t, onClsact, siteOption{})
	e, mac := s.sub(t, "ip1"), s.sub(t, "mac1")
	off, on := false, true
	spec := s.spec(e)
	spec.DHCP = &off
	s.do(t, func(h *Host) error { return h.Add(spec) })
	s.host.ns.Run(t, "ip", "link", "set", e.dev, "netns", e.ns.Name(), "up")
	if l := s.link(t, e); !l.NoDHCP {
		t.Error("it is on")
	}
	sel := Selector{Name: e.dev}
	s.do(t, func(h *Host) error { return h.SetMode(sel, ModeChange{DHCP: &on}) })
	if l := s.link(t, e); l.NoDHCP {
		t.Error("it is off")
	}
	for what, try := range map[string]func(h *Host) error{
		"mode l3": func(h *Host) error { return h.SetMode(sel, ModeChange{Mode: maps.L3, DHCP: &on}) },
		"macvlan": func(h *Host) error {
			spec := s.spec(mac)
			spec.DHCP = &on
			return h.Add(spec)
		},
		"kernel rung": func(h *Host) error {
			spec := s.spec(s.sub(t, "ip2"))
			spec.Name = "iv0"
			spec.DHCP, spec.Datapath, spec.Parent = &on, Kernel, "eth1"
			return h.Add(spec)
		},
	} {
		if what == "kernel rung" {
			lab.Veth(t, s.host.ns, "eth1", s.wire.ns, "wire1")
		}
		err := s.try(t, try)
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "dhcp") || what != "macvlan" && !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestDHCPv6 has stock clients get a lease each, and addresses by SLAAC besides: one of
// the inner MAC and a temporary one. Nothing helps them; all must be reached.
func TestDHCPv6(t *testing.T) {
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		args, release := dhclient("-6")
		clients := []dhcpClient{{"dhclient", "dhclient", args, 0, release}, {"dhcpcd", "dhcpcd", dhcpcd("-6"), 0, bySignal(unix.SIGALRM)}}
		prefix, pool := netip.MustParsePrefix("fd77::/64"), netip.MustParsePrefix("fd77::100/120")
		ends := make([]*end, len(clients))
		for i, c := range clients {
			lab.NeedTool(t, c.tool)
			ends[i] = newEnd(c.name, clientSpace(t, c.name), fmt.Sprintf("c%d", i), maps.Ipvlan, 0)
			for key, value := range map[string]string{"accept_ra": "2", "autoconf": "1", "use_tempaddr": "2"} {
				ends[i].ns.Sysctl(t, "net.ipv6.conf.default."+key, value)
			}
			s.addAtOnce(t, ends[i])
		}
		server := s.dnsmasq(t, "--enable-ra", fmt.Sprintf("--dhcp-range=fd77::100,fd77::1ff,slaac,64,%d", leaseTime))
		// lease is what the server has given out.
		lease := func(e *end) (leased netip.Addr) {
			for _, a := range e.addrsIn(t, pool) {
				leased, _ = netip.AddrFromSlice(a.IP)
			}
			return leased
		}
		for i, c := range clients {
			e, dir := ends[i], t.TempDir()
			lab.Eventually(t, c.name+" has its addresses by SLAAC", func() bool { return len(e.addrsIn(t, prefix)) >= 2 })
			if err := os.WriteFile(filepath.Join(dir, "script"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			words := c.args(dir, e.dev)
			cmd := e.ns.Start(t, words[0], words[1:]...)
			lab.Eventually(t, c.name+" has a lease", func() bool { return lease(e).IsValid() })
			e.settle(t)
			for _, a := range e.addrsIn(t, prefix) {
				ip, _ := netip.AddrFromSlice(a.IP)
				s.wire.ping(t, ip)
			}
			if i > 0 && lease(e) == lease(ends[0]) {
				t.Errorf("both have %s", lease(e))
			}
			lab.Eventually(t, c.name+"'s lease is given back", func() bool {
				if server.said(server.released, netip.Addr{}) > i {
					return true
				}
				c.release(t, e, dir, cmd)
				return false
			})
		}
	})
}
