package main

import (
	"strings"
	"testing"

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
