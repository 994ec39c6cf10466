package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// asCommand, set, makes the test binary be xvlan, so that a test can have it as
// a process to kill. Its value is the path of a file, which need not be there,
// that is looked for first: in a trace it marks where xvlan itself begins.
const asCommand = "XVLAN_TEST_AS_COMMAND"

func init() {
	if os.Getenv(asCommand) != "" {
		runtime.LockOSThread() // to the first thread, for strace counts calls by thread
	}
}

func TestMain(m *testing.M) {
	if mark := os.Getenv(asCommand); mark != "" {
		if f, err := os.Open(mark); err == nil {
			f.Close()
		}
		main()
	}
	os.Exit(m.Run())
}

// Addresses of the world.
const (
	hostAddr    = "10.77.0.1"
	wireAddr    = "10.77.0.254" // also the host's gateway
	subAddr     = "10.77.0.10"
	parentMAC   = "02:00:00:00:77:01"
	wireMAC     = "02:00:00:00:77:fe"
	subMAC      = "02:00:00:00:77:10"
	pinDir      = "/run/xvlan/bpf"
	lockDir     = "/run/xvlan/lock"
	parentIndex = 2 // of eth0: the first device after lo
)

// A world is what a test acts on: a parent eth0 in the namespace host, whose
// other end is w0 in the namespace wire, and a place for containers.
type world struct {
	host, wire, inside *lab.Netns
	cookie             uint64      // of host
	sealed             chan func() // runs functions in a mount namespace, see seal
	rung, leg          string      // of what bpfRungs has made
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{host: lab.NewNetns(t, "host"), wire: lab.NewNetns(t, "wire"), inside: lab.NewNetns(t, "in")}
	for _, n := range []*lab.Netns{w.host, w.wire, w.inside} {
		// No frames that the test has not sent.
		n.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
		n.Sysctl(t, "net.ipv6.conf.default.disable_ipv6", "1")
	}
	lab.VethWith(t, w.host, "eth0", w.wire, "w0", lab.VethOptions{MACA: mac(t, parentMAC), MACB: mac(t, wireMAC)})
	w.host.Addr(t, "eth0", hostAddr+"/24")
	w.wire.Addr(t, "w0", wireAddr+"/24")
	w.host.Run(t, "ip", "route", "add", "default", "via", wireAddr)
	w.host.Do(t, func() { w.cookie = netnsCookie(t) })
	t.Cleanup(func() { w.cleanUp(t) })
	lab.Eventually(t, "the parent is up", func() bool { return w.host.Link(t, "eth0").Attrs().OperState.String() == "up" })
	return w
}

// do runs fn in the namespace host, where xvlan is run. fn must not end the test.
func (w *world) do(tb testing.TB, fn func()) {
	tb.Helper()
	if w.sealed == nil {
		w.host.Do(tb, fn)
		return
	}
	done := make(chan struct{})
	w.sealed <- func() { defer close(done); fn() }
	<-done
}

// cleanUp removes what xvlan would have had to, and says so.
func (w *world) cleanUp(t *testing.T) {
	t.Helper()
	if t.Failed() { // what a failed test leaves is no news
		w.xvlan(t, "parent", "detach", "eth0")
	}
	if pins := w.pins(t); len(pins) > 0 {
		t.Errorf("pins are left: %v", pins)
		w.do(t, func() {
			for _, pin := range slices.Backward(pins) {
				os.Remove(filepath.Join(pinDir, pin))
			}
		})
	}
	if w.sealed != nil {
		close(w.sealed)
		return
	}
	locks, _ := filepath.Glob(fmt.Sprintf("%s/%d-*", lockDir, w.cookie))
	for _, l := range locks { // nobody can ask for them any more
		os.Remove(l)
	}
}

func netnsCookie(tb testing.TB) uint64 {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		tb.Fatal(err)
	}
	return cookie
}

// A result is what became of a command.
type result struct {
	code     int
	out, err string
}

// xvlan runs the command in this process, in the namespace host.
func (w *world) xvlan(tb testing.TB, args ...string) result {
	tb.Helper()
	return xvlanBy(func(fn func()) { w.do(tb, fn) }, args)
}

func xvlanIn(tb testing.TB, n *lab.Netns, args ...string) result {
	tb.Helper()
	return xvlanBy(func(fn func()) { n.Do(tb, fn) }, args)
}

func xvlanBy(do func(func()), args []string) result {
	var (
		r        result
		out, err bytes.Buffer
	)
	do(func() { r.code = run(args, &out, &err) })
	r.out, r.err = out.String(), err.String()
	return r
}

// must runs a command given as one string, which has to succeed and to
// complain of nothing, and returns what it printed.
func (w *world) must(tb testing.TB, line string) string {
	tb.Helper()
	r := w.xvlan(tb, strings.Fields(line)...)
	if r.code != exitOK || r.err != "" {
		tb.Fatalf("xvlan %s: exit status %d\n%s%s", line, r.code, r.out, r.err)
	}
	return r.out
}

// refused checks the form of a failure: its status and one line of its own.
func (r result) refused(tb testing.TB, code int) {
	tb.Helper()
	if r.code != code {
		tb.Errorf("exit status %d, want %d", r.code, code)
	}
	if !strings.HasPrefix(r.err, "xvlan: ") || strings.Index(r.err, "\n") != len(r.err)-1 {
		tb.Errorf("standard error is not one line that begins with xvlan:\n%s", r.err)
	}
	if r.out != "" {
		tb.Errorf("standard output: %s", r.out)
	}
}

// command prepares xvlan as a process of its own, to be started in a namespace
// by start.
func command(tb testing.TB, args ...string) *exec.Cmd {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	return wrapped(append([]string{exe}, args...)...)
}

// wrapped prepares a command that has xvlan as a process somewhere below it.
func wrapped(args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	// Signals of the run-time's own would interrupt system calls, which are counted.
	cmd.Env = append(os.Environ(), asCommand+"=/dev/null", "GODEBUG=asyncpreemptoff=1")
	cmd.Stdout, cmd.Stderr = &lab.Output{}, &lab.Output{}
	return cmd
}

// start starts cmd on a thread that do provides.
func start(tb testing.TB, do func(testing.TB, func()), cmd *exec.Cmd) {
	tb.Helper()
	var err error
	do(tb, func() { err = cmd.Start() })
	if err != nil {
		tb.Fatalf("start %s: %v", cmd, err)
	}
}

// wait waits for a command of command or wrapped.
func wait(tb testing.TB, cmd *exec.Cmd) result {
	tb.Helper()
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		tb.Fatalf("wait for %s: %v", cmd, err)
	}
	return result{cmd.ProcessState.ExitCode(), cmd.Stdout.(*lab.Output).String(), cmd.Stderr.(*lab.Output).String()}
}

// process runs a command of command or wrapped in the namespace host.
func (w *world) process(tb testing.TB, cmd *exec.Cmd) result {
	tb.Helper()
	start(tb, w.do, cmd)
	return wait(tb, cmd)
}

// A link is what `link show` says of one sub-interface, as far as tests ask.
type link struct {
	Index  int    `json:"ifindex"`
	Name   string `json:"ifname"`
	Parent string `json:"link"`
	Netns  string `json:"netns"`
	MTU    int    `json:"mtu"`
	MAC    string `json:"address"`
	Wire   string `json:"wire_address"`
	ID     int    `json:"id"`
	Leg    string `json:"host_leg"`
	Flags  []string
	Info   struct {
		Kind string                `json:"info_kind"`
		Data struct{ Mode string } `json:"info_data"`
	} `json:"linkinfo"`
	Datapath struct{ Rung, Reason string }
	Addrs    []struct{ Local, Origin string }
	Verdicts map[string]struct{ Packets, Bytes uint64 }
}

// links asks for the sub-interfaces that there are.
func (w *world) links(tb testing.TB) []link {
	tb.Helper()
	var links []link
	unmarshal(tb, w.must(tb, "-j link show"), &links)
	return links
}

func unmarshal(tb testing.TB, s string, v any) {
	tb.Helper()
	if err := json.Unmarshal([]byte(s), v); err != nil {
		tb.Fatalf("parse JSON: %v\n%s", err, s)
	}
}

// ping checks that a namespace reaches an address, from a device if one is
// named. A packet may be lost where a machine is busy, so it goes on trying.
func ping(tb testing.TB, n *lab.Netns, dev, addr string) {
	tb.Helper()
	args := []string{"-c1", "-w20", "-i0.2", "-q", addr}
	if dev != "" {
		args = append(args, "-I", dev)
	}
	n.Run(tb, "ping", args...)
}
