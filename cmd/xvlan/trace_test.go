package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// seal makes a world and seals it.
func seal(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.seal(t)
	return w
}

// seal gives the world a mount namespace in which /run holds nothing of
// others, but the names of more namespaces: what a command does there depends on
// nothing but its words, and so repeats call by call.
func (w *world) seal(t *testing.T, more ...*lab.Netns) {
	t.Helper()
	w.sealed = make(chan func())
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := w.enterSealed(more)
		ready <- err
		for fn := range w.sealed {
			fn()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("make a mount namespace: %v", err)
	}
}

func (w *world) enterSealed(more []*lab.Netns) error {
	err := errors.Join(
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
		os.MkdirAll(pinDir, 0o700),
		os.MkdirAll(filepath.Dir(w.host.Path()), 0o755),
		unix.Mount("bpf", pinDir, "bpf", 0, "mode=0700"))
	for _, n := range append(more, w.host, w.wire, w.inside) {
		err = errors.Join(err, os.WriteFile(n.Path(), nil, 0o444),
			unix.Mount(fmt.Sprintf("/proc/self/fd/%d", n.Fd()), n.Path(), "", unix.MS_BIND, ""))
	}
	return errors.Join(err, unix.Setns(w.host.Fd(), unix.CLONE_NEWNET))
}

// traced are the system calls by which xvlan changes anything, and those by
// which it finds out what to change.
const traced = "bpf,sendto,sendmsg,mkdirat,renameat,renameat2,unlinkat,mount,flock,openat,setns"

// mark is the path that is opened where xvlan itself begins.
const mark = "/xvlan-begins-here"

// A call is one system call of a trace, the nth of its name.
type call struct {
	name string
	nth  int
	text string
}

// inject writes an injection at a call as strace's option takes it, which
// counts each name by itself.
func (c call) inject(what string) string { return fmt.Sprintf("%s:%s:when=%d", c.name, what, c.nth) }

// A trace is what became of a command under strace.
type trace struct {
	result
	calls  []call // from the mark on
	hit    bool   // the injection was come to
	killed bool
}

// trace runs a command under strace, with an injection if there is one.
func (w *world) trace(t *testing.T, line, inject string) trace {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trace")
	args := []string{"strace", "-f", "-qq", "-o", file, "-e", "trace=" + traced}
	if inject != "" {
		args = append(args, "-e", "inject="+inject)
	}
	cmd := wrapped(append(args, command(t, strings.Fields(line)...).Args...)...)
	cmd.Env = append(cmd.Env, asCommand+"="+mark, "GOMAXPROCS=1") // which loads one program after another
	tr := trace{result: w.process(t, cmd)}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	tr.killed = status.Signaled() && status.Signal() == syscall.SIGKILL
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tr.hit = strings.Contains(string(text), "(INJECTED)")
	tr.calls = parseTrace(t, string(text), inject == "")
	return tr
}

var traceLine = regexp.MustCompile(`^(\d+) +((\w+)\(.*)$`)

// parseTrace returns the calls behind the mark. Those of other threads than its
// would not be counted with them, so there must not be any; where a process is
// killed strace may confuse the threads.
func parseTrace(t *testing.T, text string, oneThread bool) []call {
	t.Helper()
	var (
		calls  []call
		nth    = map[string]int{}
		thread string
	)
	for line := range strings.Lines(text) {
		m := traceLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		nth[m[3]]++
		if strings.Contains(line, mark) {
			thread = m[1]
			continue
		}
		if oneThread && thread != "" && m[1] != thread {
			t.Errorf("a call on another thread than %s: %s", thread, line)
		}
		if thread != "" {
			calls = append(calls, call{m[3], nth[m[3]], m[2]})
		}
	}
	return calls
}

var (
	bpfChange   = regexp.MustCompile(`^bpf\(BPF_(MAP_UPDATE_ELEM|MAP_DELETE_ELEM|OBJ_PIN|LINK_CREATE|LINK_DETACH|0x)`)
	pathChange  = regexp.MustCompile(`^(mkdirat|renameat2?|unlinkat|mount)\(`)
	openChange  = regexp.MustCompile(`^openat\(.*O_(CREAT|WRONLY|RDWR)`)
	messageType = regexp.MustCompile(`nlmsg_type=(\w+)`)
)

// changes tells whether a call may have changed what others see.
func (c call) changes() bool {
	if strings.Contains(c.text, ") = -1 ") {
		return false
	}
	if m := messageType.FindStringSubmatch(c.text); m != nil {
		// strace does not know a socket of another namespace for what it is.
		if n, err := strconv.ParseUint(m[1], 0, 16); err == nil {
			return n%4 != 2 // RTM_GET..., in each family of messages
		}
		return !strings.HasPrefix(m[1], "RTM_GET")
	}
	return bpfChange.MatchString(c.text) || pathChange.MatchString(c.text) || openChange.MatchString(c.text)
}

// states picks one call for each state that the calls pass through: the first
// behind each change.
func states(calls []call) []call {
	var picked []call
	for i, c := range calls {
		if i == 0 || calls[i-1].changes() {
			picked = append(picked, c)
		}
	}
	return picked
}

// sample picks at most n, the first and the last among them.
func sample(calls []call, n int) []call {
	if len(calls) <= n {
		return calls
	}
	var picked []call
	for i := range n {
		picked = append(picked, calls[i*(len(calls)-1)/(n-1)])
	}
	return picked
}

var volatile = []*regexp.Regexp{
	regexp.MustCompile(`(index )\d+`), regexp.MustCompile(`(program )\d+`), regexp.MustCompile(`( xv\S+ .*address )\S+`),
	regexp.MustCompile(`( xv\d+-)\d+`), regexp.MustCompile(`(/leg-)\d+`), // ids are reused last
}

// look is a snapshot without what differs from one making to the next.
func (w *world) look(tb testing.TB) []string {
	tb.Helper()
	lines := w.snapshot(tb)
	for i, l := range lines {
		for _, v := range volatile {
			l = v.ReplaceAllString(l, "${1}*")
		}
		lines[i] = l
	}
	slices.Sort(lines)
	return lines
}
