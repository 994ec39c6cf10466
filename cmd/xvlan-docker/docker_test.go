package main

import (
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
)

// asDriver, set, makes the test binary be xvlan-docker.
const asDriver = "XVLAN_TEST_AS_DRIVER"

func TestMain(m *testing.M) {
	if os.Getenv(asDriver) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A dock is a host with Docker and its driver, and a wire behind its eth0.
type dock struct {
	host, wire *lab.Netns
	dir        string
	driver     string // the name by which Docker knows it
	plugin     *exec.Cmd
	daemon     *exec.Cmd
}

const (
	image    = "bb"
	wireAddr = "10.79.0.1"
	wire6    = "fd79::1"
)

func newDock(t *testing.T) *dock {
	t.Helper()
	for _, tool := range []string{"dockerd", "docker", "busybox", "tar"} {
		lab.NeedTool(t, tool)
	}
	d := &dock{host: lab.NewNetns(t, "host"), wire: lab.NewNetns(t, "wire"), dir: t.TempDir()}
	d.driver = "xvlan" + filepath.Base(d.host.Name())
	lab.Veth(t, d.host, "eth0", d.wire, "w0")
	d.wire.Addr(t, "w0", wireAddr+"/24", wire6+"/64")
	t.Setenv(asDriver, "yes")
	t.Cleanup(func() { os.Remove(d.socket()) })
	d.startDriver(t)
	d.startDaemon(t)
	t.Cleanup(func() { d.end(t) })
	d.importImage(t)
	return d
}

func (d *dock) socket() string { return "/run/docker/plugins/" + d.driver + ".sock" }

func (d *dock) startDriver(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d.plugin = d.host.Start(t, self, "--socket", d.socket(), "--state", filepath.Join(d.dir, "state"))
	lab.Eventually(t, "the driver listens", func() bool { return strings.Contains(lab.OutputOf(d.plugin), "ready") })
}

func (d *dock) startDaemon(t *testing.T) {
	t.Helper()
	at := func(name string) string { return filepath.Join(d.dir, name) }
	d.daemon = d.host.Start(t, "dockerd", "--data-root", at("data"), "--exec-root", at("exec"), "-H", "unix://"+at("sock"),
		"--pidfile", at("pid"), "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs", "--live-restore", "--log-level=warn")
	lab.Eventually(t, "dockerd answers", func() bool {
		_, err := d.host.Try(t, client(), "-H", "unix://"+at("sock"), "version")
		return err == nil
	})
}

// stop ends a process that was started, by a signal that it obeys.
func stop(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, lab.OutputOf(cmd))
	}
}

// end removes what a failed test has left, before the daemon is killed.
func (d *dock) end(t *testing.T) {
	ids, _ := d.try(t, "ps", "-aq")
	for _, id := range strings.Fields(ids) {
		d.try(t, "rm", "-f", id)
	}
	if d.daemon.ProcessState == nil {
		stop(t, d.daemon)
	}
	// Who keeps containers alive over its end leaves mounts at its end, too.
	data := filepath.Join(d.dir, "data")
	for {
		if err := unix.Unmount(data, unix.MNT_DETACH); err != nil {
			break // it is none any more
		}
	}
}

// client is Docker's, of the daemon's version where there are several.
func client() string {
	const debian = "/usr/bin/docker"
	if _, err := os.Stat(debian); err == nil {
		return debian
	}
	return "docker"
}

func (d *dock) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return d.host.Try(t, client(), append([]string{"-H", "unix://" + filepath.Join(d.dir, "sock")}, args...)...)
}

// docker runs a command that has to succeed.
func (d *dock) docker(t *testing.T, line string) string {
	t.Helper()
	out, err := d.try(t, strings.Fields(line)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// importImage makes an image of busybox alone.
func (d *dock) importImage(t *testing.T) {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(d.dir, "root", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "ping", "ip", "sleep", "nc", "cat", "echo"} {
		if err := os.Symlink("busybox", filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(d.dir, "image.tar")
	if out, err := exec.Command("tar", "-C", filepath.Join(d.dir, "root"), "-cf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("pack image: %v\n%s", err, out)
	}
	d.docker(t, "import "+archive+" "+image)
}

// run starts a container that sleeps.
func (d *dock) run(t *testing.T, name, options string) {
	t.Helper()
	d.docker(t, "run -d --name "+name+" "+options+" "+image+" sleep 3600")
}

// reaches checks that a container reaches an address.
func (d *dock) reaches(t *testing.T, name, addr string) {
	t.Helper()
	d.docker(t, "exec "+name+" ping -c1 -w20 -q "+addr)
}

// links are the sub-interfaces that there are.
func (d *dock) links(t *testing.T) (links []loader.Link) {
	t.Helper()
	var err error
	d.host.Do(t, func() {
		var h *loader.Host
		if h, err = loader.Open(slog.New(slog.DiscardHandler)); err == nil {
			defer h.Close()
			if err = h.Sweep(); err == nil {
				links, err = h.Links()
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return links
}

// empty checks that nothing is left.
func (d *dock) empty(t *testing.T) {
	t.Helper()
	if links := d.links(t); len(links) > 0 {
		t.Errorf("sub-interfaces are left: %+v", links)
	}
	left, err := filepath.Glob(filepath.Join(d.dir, "state", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("networks are left: %q, %v", left, err)
	}
}

// Containers on networks of each mode reach the wire, each other as far as the
// mode lets them, and go without trace.
func TestModes(t *testing.T) {
	d := newDock(t)
	const hostAddr, host6 = "10.79.0.200", "fd79::200"
	d.host.Addr(t, "eth0", hostAddr+"/24", host6+"/64") // l3 goes by the host's routes
	for _, c := range []struct {
		options  string
		siblings bool
	}{
		{"", true},
		{"-o macvlan_mode=bridge -o guard=on,given -o bcrate=50", true},
		{"-o macvlan_mode=private", false},
		{"-o macvlan_mode=vepa", false}, // the wire reflects nothing
		{"-o mode=l2", true},
		{"-o ipvlan_mode=l2 -o ipvlan_flag=private", false},
		{"-o ipvlan_mode=l3 -o datapath=tc -o host=on", true},
	} {
		t.Run(c.options, func(t *testing.T) {
			if strings.Contains(c.options, "mode=l3") { // whose addresses nobody answers for, as with the kernel's
				for net, by := range map[string]string{"10.79.0.0/25": hostAddr, "fd79::/120": host6} {
					d.wire.Run(t, "ip", "route", "add", net, "via", by)
					defer d.wire.Run(t, "ip", "route", "del", net)
				}
			}
			d.docker(t, "network create -d "+d.driver+" -o parent=eth0 "+c.options+
				" --subnet 10.79.0.0/24 --gateway "+wireAddr+" --ipv6 --subnet fd79::/64 --gateway "+wire6+" net")
			defer d.docker(t, "network rm net")
			d.run(t, "one", "--network net --ip 10.79.0.11 --ip6 fd79::11")
			d.run(t, "two", "--network net")
			defer d.docker(t, "rm -f one two")
			d.reaches(t, "one", wireAddr)
			d.reaches(t, "two", wireAddr)
			d.reaches(t, "one", wire6)
			d.wire.Run(t, "ping", "-c1", "-w20", "-q", "10.79.0.11")
			if c.siblings {
				d.reaches(t, "two", "10.79.0.11")
				d.reaches(t, "two", "fd79::11")
				return
			}
			if out, err := d.try(t, "exec", "two", "ping", "-c1", "-W1", "-q", "10.79.0.11"); err == nil {
				t.Errorf("siblings reach each other:\n%s", out)
			}
		})
		d.empty(t)
	}
}

// What is said of a container is as it was said, and its port is reached from the
// wire.
func TestEndpoint(t *testing.T) {
	d := newDock(t)
	const mac = "02:79:00:00:00:21"
	d.docker(t, "network create -d "+d.driver+" -o parent=eth0 -o mtu=1400 --subnet 10.79.0.0/24 --ip-range 10.79.0.128/30 "+
		"--gateway "+wireAddr+" --aux-address router=10.79.0.128 net")
	d.run(t, "one", "--network net --ip 10.79.0.21 --mac-address "+mac)
	d.run(t, "two", "--network net")
	var seen []struct {
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress, MacAddress, Gateway string }
		}
	}
	if err := json.Unmarshal([]byte(d.docker(t, "inspect one two")), &seen); err != nil {
		t.Fatal(err)
	}
	a, b := seen[0].NetworkSettings.Networks["net"], seen[1].NetworkSettings.Networks["net"]
	if a.IPAddress != "10.79.0.21" || a.MacAddress != mac || a.Gateway != wireAddr {
		t.Errorf("a is %+v", a)
	}
	if !strings.HasPrefix(b.IPAddress, "10.79.0.1") || b.IPAddress == "10.79.0.128" {
		t.Errorf("b has %s", b.IPAddress)
	}
	for _, l := range d.links(t) {
		if l.MAC.String() != a.MacAddress && l.MAC.String() != b.MacAddress {
			t.Errorf("%s has the MAC %s", l.Name, l.MAC)
		}
		if l.MTU != 1400 || len(l.Addrs) == 0 || l.Addrs[0].Origin.String() != "given" {
			t.Errorf("%s has an MTU of %d and the addresses %v", l.Name, l.MTU, l.Addrs)
		}
	}
	if out := d.docker(t, "exec one ip route"); !strings.Contains(out, "default via "+wireAddr) {
		t.Errorf("routes are\n%s", out)
	}
	// TCP, from the wire to the container.
	if out, err := d.try(t, "exec", "-d", "one", "nc", "-l", "-p", "80", "-e", "echo", "hello"); err != nil {
		t.Fatalf("listen: %v\n%s", err, out)
	}
	lab.Eventually(t, "the container answers", func() bool {
		out, err := d.wire.Try(t, "busybox", "nc", "10.79.0.21", "80")
		return err == nil && strings.TrimSpace(out) == "hello"
	})
	d.docker(t, "rm -f one two")
	d.docker(t, "network rm net")
	d.empty(t)
}

// The driver and Docker may end and come back at any time: what runs goes on, and
// what comes after is as before.
func TestRestart(t *testing.T) {
	d := newDock(t)
	d.docker(t, "network create -d "+d.driver+" -o parent=eth0 --subnet 10.79.0.0/24 --gateway "+wireAddr+" net")
	d.run(t, "one", "--network net")
	for _, how := range []string{"driver ended", "driver killed", "docker"} {
		switch how {
		case "driver ended":
			stop(t, d.plugin)
		case "driver killed":
			if err := d.plugin.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = d.plugin.Wait() // "killed" is no news
		case "docker":
			stop(t, d.daemon)
		}
		addr := strings.TrimSpace(d.addrOf(t))
		d.wire.Run(t, "ping", "-c1", "-w20", "-q", addr)
		if how == "docker" {
			d.startDaemon(t)
		} else {
			d.startDriver(t)
		}
		d.reaches(t, "one", wireAddr)
		d.run(t, "two", "--network net")
		d.reaches(t, "two", wireAddr)
		d.reaches(t, "two", addr)
		d.docker(t, "rm -f two")
	}
	d.docker(t, "rm -f one")
	d.docker(t, "network rm net")
	d.empty(t)
}

// addrOf is the address of the only sub-interface.
func (d *dock) addrOf(t *testing.T) string {
	t.Helper()
	links := d.links(t)
	if len(links) != 1 || len(links[0].Addrs) != 1 {
		t.Fatalf("there are %+v", links)
	}
	return links[0].Addrs[0].Addr.String()
}

// What makes no sense is refused with a word of what it is, and leaves nothing.
func TestRefused(t *testing.T) {
	d := newDock(t)
	create := func(options string) string {
		return "network create -d " + d.driver + " --subnet 10.79.0.0/24 " + options
	}
	for _, c := range []struct{ line, says string }{
		{create("-o parent=eth9 x"), "eth9"},
		{create("-o parent=eth0.5000 x"), "5000"},
		{create("-o parent=eth9.5 x"), "eth9"},
		{create("-o parent=lo x"), "lo"},
		{create("-o parent=eth0 -o colour=red x"), "colour"},
		{create("-o parent=eth0 -o macvlan_mode=l2 x"), "macvlan_mode"},
		{create("-o parent=eth0 -o ipvlan_mode=bridge x"), "ipvlan_mode"},
		{create("-o parent=eth0 -o mode=bridge -o ipvlan_mode=l2 x"), "say one"},
		{create("-o parent=eth0 -o ipvlan_flag=private x"), "flag private"},
		{create("-o parent=eth0 -o ipvlan_mode=l2 -o ipvlan_flag=blue x"), "blue"},
		{create("-o parent=eth0 -o mtu=big x"), "mtu"},
		{create("-o parent=eth0 -o datapath=slow x"), "datapath"},
		{create("-o parent=eth0 -o host=yes x"), "host"},
		{create("-o parent=eth0 -o via-host=10.96.0.0/33 x"), "via-host"},
		{create("-o parent=eth0 -o guard=maybe x"), "guard"},
		{create("-o parent=eth0 -o vlan=4095 x"), "vlan"},
		{create("-o parent=eth0 -o trunk=10, x"), "trunk"},
		{create("-o parent=eth0 -o bcrate=few x"), "bcrate"},
	} {
		t.Run(c.says, func(t *testing.T) {
			out, err := d.try(t, strings.Fields(c.line)...)
			if err == nil {
				d.docker(t, "network rm x")
			}
			if err == nil || !strings.Contains(out, c.says) {
				t.Errorf("it says %v\n%s", err, out)
			}
		})
	}
	d.docker(t, create("-o parent=eth0 -o mode=passthru one"))
	if out, err := d.try(t, strings.Fields(strings.Replace(create("-o parent=eth0 two"), "10.79.0", "10.80.0", 1))...); err == nil || !strings.Contains(out, "passthru") {
		t.Errorf("beside passthru it says %v\n%s", err, out)
	}
	d.docker(t, "network rm one")

	// An address that is the host's: the container does not start, and leaves nothing.
	d.host.Addr(t, "eth0", "10.79.0.31/24")
	d.docker(t, create("-o parent=eth0 net"))
	if out, err := d.try(t, strings.Fields("run --rm --network net --ip 10.79.0.31 "+image+" sleep 1")...); err == nil || !strings.Contains(out, "10.79.0.31") {
		t.Errorf("with the host's address it says %v\n%s", err, out)
	}
	if ids := d.docker(t, "ps -aq"); ids != "" {
		d.docker(t, "rm -f "+ids)
	}
	d.docker(t, "network rm net")
	d.empty(t)
}

// Bad words are refused before anything is listened on.
func TestFlags(t *testing.T) {
	for _, c := range []struct{ args, says string }{
		{"--log-format xml", "xml"}, {"more", "more"}, {"--colour", "colour"},
	} {
		cmd := command()
		cmd.SetArgs(strings.Fields(c.args))
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
}
