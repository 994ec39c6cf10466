package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// The daemon follows while it runs, is alone in its namespace, and ends when it
// is told to, leaving everything at work.
func TestServe(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		w.must(t, "link add link eth0 c1 addr "+subAddr+"/24 netns "+w.inside.Name()+" up type macvlan mode bridge")
		cmd := command(t, "serve", "--listen", "")
		start(t, w.do, cmd)
		defer cmd.Process.Kill() // it ends before, if all is well
		for _, mtu := range []string{"1400", "1300"} {
			w.host.Run(t, "ip", "link", "set", "eth0", "mtu", mtu)
			lab.Eventually(t, "c1 has the parent's MTU", func() bool {
				return strings.Contains(w.inside.Run(t, "ip", "link", "show", "c1"), " mtu "+mtu+" ")
			})
		}
		second := w.xvlan(t, "serve", "--listen", "")
		second.refused(t, exitFail)
		if !strings.Contains(second.err, "another xvlan serves") {
			t.Errorf("a second one: %s", second.err)
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if r := wait(t, cmd); r.code != exitOK || r.out+r.err != "" {
			t.Errorf("ended by %v: exit status %d\n%s%s", signal, r.code, r.out, r.err)
		}
		w.host.Run(t, "ip", "link", "set", "eth0", "mtu", "1500")
		ping(t, w.inside, "", wireAddr)
		w.must(t, "link del c1")
		w.same(t, before)
	}
	w.xvlan(t, "serve", "eth0").refused(t, exitUsage)
}

// A service manager hears that the daemon is ready, which it is when it has
// followed what there was, that it is alive, and that it ends.
func TestNotify(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add link eth0 c1 type macvlan mode bridge")
	w.host.Run(t, "ip", "link", "set", "eth0", "mtu", "1400")
	socket := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	cmd := command(t, "serve", "--listen", "")
	hear := func(want string) {
		t.Helper()
		if err := manager.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		for {
			n, err := manager.Read(buf)
			if err != nil {
				t.Fatalf("not told %s: %v\n%s%s", want, err, cmd.Stdout, cmd.Stderr)
			}
			got := string(buf[:n])
			if got == want {
				return
			}
			if got != "WATCHDOG=1" {
				t.Fatalf("told %q, want %q", got, want)
			}
		}
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=100000")
	start(t, w.do, cmd)
	defer cmd.Process.Kill() // it ends before, if all is well
	hear("READY=1\nSTATUS=following")
	if mtu := w.host.Link(t, "c1").Attrs().MTU; mtu != 1400 {
		t.Errorf("ready, and c1 has mtu %d", mtu)
	}
	hear("WATCHDOG=1")
	hear("WATCHDOG=1")
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hear("STOPPING=1")
	if r := wait(t, cmd); r.code != exitOK || r.out+r.err != "" {
		t.Errorf("exit status %d\n%s%s", r.code, r.out, r.err)
	}
	w.must(t, "link del c1")
}
