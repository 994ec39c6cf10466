package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

var soakCycles = flag.Int("cycles", 60, "how often TestCycles adds and deletes, unless it is short")

// A holding is what somebody has of what must not become more and more.
type holding struct {
	files int
	kib   int // of memory that is in use
}

// holdingOf looks at a process.
func holdingOf(t *testing.T, pid int) (h holding) {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	files, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rss, _ := strings.Cut(string(status), "\nVmRSS:")
	if _, err := fmt.Sscan(rss, &h.kib); err != nil {
		t.Fatal(err)
	}
	h.files = len(files)
	return h
}

// kernelMemory says what the kernel has for itself, and leaves to others.
func kernelMemory(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(text)) {
		for _, key := range []string{"MemAvailable:", "Slab:", "Percpu:", "VmallocUsed:"} {
			if strings.HasPrefix(line, key) {
				all = append(all, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	return strings.Join(all, ", ")
}

// However often sub-interfaces are made and deleted, neither commands nor the
// daemon nor the kernel come to hold more and more.
func TestCycles(t *testing.T) {
	s := newSoak(t)
	daemon := command(t, "serve", "--listen", "")
	start(t, s.do, daemon)
	defer daemon.Process.Kill() // it ends before, if all is well
	kinds := []string{"macvlan mode bridge", "ipvlan mode l2", "ipvlan mode l3", "macvlan mode private", "ipvlan mode l3s", "macvlan mode source macaddr add " + wireMAC}
	const attach = 20 // so many cycles on a parent that is attached once
	cycle := func(i int) {
		if i%attach == 0 {
			s.must(t, "parent attach eth0")
		}
		s.must(t, fmt.Sprintf("link add link eth0 c%d netns %s addr %s/24 up type %s", i, s.inside.Name(), subAddr, kinds[i%len(kinds)]))
		if i%12 < 2 { // it can reach the wire by itself
			ping(t, s.inside, "", wireAddr)
		}
		if i%5 == 0 {
			s.inside.Run(t, "ip", "link", "del", fmt.Sprint("c", i))
			s.must(t, "link show")
		} else {
			s.must(t, fmt.Sprint("link del c", i))
		}
		if i%attach == attach-1 {
			s.must(t, "parent detach eth0")
		}
	}
	n := max(1, *soakCycles/attach) * attach
	if testing.Short() {
		n = attach
	}
	for i := range attach { // what is made once is made
		cycle(i)
	}
	look := func() (own, served holding) {
		runtime.GC()
		return holdingOf(t, os.Getpid()), holdingOf(t, daemon.Process.Pid)
	}
	own, served := look()
	t.Logf("at first: %+v, serve %+v, %s", own, served, kernelMemory(t))
	began := time.Now()
	for i := range n {
		cycle(i)
		if i > 0 && i%1000 == 0 {
			a, b := look()
			t.Logf("after %d: %+v, serve %+v, %s", i, a, b, kernelMemory(t))
		}
	}
	var now, servedNow holding
	// What the run-time takes and gives back as it likes. Of this process itself it
	// says nothing: cobra keeps what the words of each command have registered.
	const more = 32 << 10 // KiB
	lab.Eventually(t, "nothing more is held", func() bool {
		now, servedNow = look()
		return now.files <= own.files && servedNow.files <= served.files && servedNow.kib <= served.kib+more
	})
	t.Logf("after %d cycles in %v: %+v, serve %+v, %s", n, time.Since(began).Round(time.Second), now, servedNow, kernelMemory(t))
	if err := daemon.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := wait(t, daemon); r.code != exitOK || strings.Contains(r.err, "level=ERROR") {
		t.Errorf("serve: exit status %d\n%s", r.code, r.err)
	}
	s.same(t, s.look0)
	s.nothingLeft(t)
}
