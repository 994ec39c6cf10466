package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// A manager is a systemd that is the first process of a PID namespace.
type manager struct {
	pid string // as seen from here
	log string // what the services have said
}

// startManager runs systemd, with the units as they are installed and no others but
// the targets that they hang on, in the namespace host. What it mounts is mounted
// here, too.
func startManager(t *testing.T, w *world) *manager {
	t.Helper()
	const bin, etc = "/usr/local/libexec/xvlan-test", "/etc/xvlan"
	dir := t.TempDir()
	m := &manager{log: filepath.Join(dir, "log")}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w.host.Run(t, "install", "-D", exe, bin+"/xvlan") // /tmp is private to the services
	w.host.Run(t, "mkdir", "-p", etc)
	units, err := filepath.Glob("../../systemd/*")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(unit)
		files[name] = strings.ReplaceAll(string(text), "@bindir@", bin)
		if filepath.Ext(name) == ".service" {
			files[name+".d/test.conf"] = fmt.Sprintf("[Service]\nEnvironment=%s=/dev/null\nStandardOutput=append:%s\nStandardError=append:%[2]s\n", asCommand, m.log)
		}
	}
	for _, target := range []string{"sysinit", "basic", "shutdown", "network-pre", "network-online", "multi-user"} {
		files[target+".target"] = "[Unit]\nDefaultDependencies=no\n"
	}
	files["multi-user.target"] += "Wants=xvlan-apply.service xvlan.service\n"
	for name, text := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const script = `mkdir -p /sys/fs/cgroup/xvlan-test && echo $$ > /sys/fs/cgroup/xvlan-test/cgroup.procs &&
		exec unshare --pid --fork --kill-child --mount --propagation unchanged --mount-proc --cgroup sh -c '
			mount --make-private /sys/fs/cgroup && umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
			exec env container=xvlan-test SYSTEMD_UNIT_PATH=$0 /lib/systemd/systemd --unit=multi-user.target' "$0"`
	cmd := exec.Command("sh", "-c", script, dir)
	cmd.Stdout, cmd.Stderr = &lab.Output{}, &lab.Output{}
	start(t, w.do, cmd)
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			said, _ := os.ReadFile(m.log)
			t.Logf("systemd: %s%s\nservices: %s", cmd.Stdout, cmd.Stderr, said)
		}
	})
	lab.Eventually(t, "systemd runs", func() bool {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		m.pid = strings.TrimSpace(string(children))
		comm, _ := os.ReadFile("/proc/" + m.pid + "/comm")
		return err == nil && string(comm) == "systemd\n"
	})
	return m
}

// systemctl runs it beside systemd.
func (m *manager) systemctl(args ...string) (string, error) {
	args = append([]string{"-t", m.pid, "-m", "-p", "-n", "systemctl"}, args...)
	out, err := exec.Command("nsenter", args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *manager) must(t *testing.T, args ...string) {
	t.Helper()
	if out, err := m.systemctl(args...); err != nil {
		t.Errorf("systemctl %v: %v\n%s", args, err, out)
	}
}

// await waits until properties of a unit are so.
func (m *manager) await(t *testing.T, unit string, want ...string) {
	t.Helper()
	var got string
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", unit, got)
		}
	})
	lab.Eventually(t, fmt.Sprintf("%s is %v", unit, want), func() bool {
		got, _ = m.systemctl("show", unit)
		return !slices.ContainsFunc(want, func(line string) bool { return !strings.Contains("\n"+got+"\n", "\n"+line+"\n") })
	})
}

// systemd starts the services as they are hardened: what the file says is made, and
// what is done to it is followed in other namespaces, until they are stopped, which
// leaves everything at work.
func TestSystemd(t *testing.T) {
	if os.Getenv("XVLAN_VM") == "" {
		t.Skip("not in a virtual machine of lab/vm, in whose root the command can be installed")
	}
	lab.NeedTool(t, "systemctl")
	lab.NeedTool(t, "nsenter")
	w := newWorld(t)
	in := w.inside.Name()
	file := func(mode string) {
		t.Helper()
		text := "parents:\n  - name: eth0\n    links:\n" +
			"      - {name: m1, type: macvlan, mode: " + mode + ", netns: " + in + ", addr: " + subAddr + "/24, up: true}\n" +
			"      - {name: i1, type: ipvlan, mode: l2, netns: " + in + ", up: true}\n" +
			"      - {name: s1, type: ipvlan, mode: l3s, netns: " + in + ", addr: 10.78.0.1/24, up: true}\n"
		if err := os.MkdirAll("/etc/xvlan", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("/etc/xvlan/xvlan.yaml", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file("bridge")
	m := startManager(t, w)
	lab.Eventually(t, "systemd answers", func() bool { _, err := m.systemctl("show"); return err == nil })
	m.must(t, "start", "xvlan-apply.service", "xvlan.service") // waits for them to have started
	serving := []string{"ActiveState=active", "SubState=running", "StatusText=following", "NRestarts=0"}
	m.await(t, "xvlan-apply.service", "ActiveState=active", "SubState=exited", "Result=success")
	m.await(t, "xvlan.service", serving...)
	if links := w.links(t); len(links) != 3 {
		t.Errorf("made are %+v", links)
	}
	ping(t, w.inside, "", wireAddr)

	w.inside.Run(t, "ip", "addr", "add", "10.77.0.99/24", "dev", "i1")
	scrape := func() string {
		var conn net.Conn
		var err error
		w.do(t, func() { conn, err = net.Dial("tcp", listenAddress) })
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /metrics HTTP/1.0\r\n\r\n")
		scraped, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(scraped)
	}
	learned := fmt.Sprintf(`xvlan_link_addresses{link="i1",netns="%s",origin="learned",parent="eth0"} 1`, in)
	lab.Eventually(t, "metrics have the new address", func() bool { return strings.Contains(scrape(), learned) })
	for i, restarted := range []bool{false, true} {
		if restarted {
			m.must(t, "restart", "xvlan.service")
			m.await(t, "xvlan.service", serving...)
		}
		mtu := strconv.Itoa(1400 - i)
		w.host.Run(t, "ip", "link", "set", "eth0", "mtu", mtu)
		for _, name := range []string{"m1", "s1"} {
			lab.Eventually(t, name+" has the parent's MTU", func() bool {
				return strings.Contains(w.inside.Run(t, "ip", "link", "show", name), " mtu "+mtu+" ")
			})
		}
	}
	file("private")
	m.must(t, "reload", "xvlan-apply.service")
	if mode := w.links(t)[0].Info.Data.Mode; mode != "private" {
		t.Errorf("after reload the mode is %s", mode)
	}
	m.must(t, "stop", "xvlan.service")
	m.await(t, "xvlan.service", "ActiveState=inactive", "SubState=dead", "Result=success")
	ping(t, w.inside, "", wireAddr)
	w.must(t, "parent detach eth0")
}
