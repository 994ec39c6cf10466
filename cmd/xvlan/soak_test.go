package main

import (
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	ebpflink "github.com/cilium/ebpf/link"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

// What `make soak` says.
var (
	soakTime = flag.Duration("soak", 4*time.Second, "how long TestSoak lets everything happen")
	soakSeed = flag.Uint64("seed", rand.Uint64(), "what TestSoak draws from")
)

// A soak is a world in which everything happens at once.
type soak struct {
	*world
	t     *testing.T
	macs  []net.HardwareAddr // of the parent, by turns
	stays []*stay
	look0 []string // the snapshot of it without a parent
	dir   string   // of the parent's pins
	until time.Time
	wait  sync.WaitGroup

	commands, killed, refused atomic.Int64
	mu                        sync.Mutex
	said                      map[string]int // by refused commands, numbers aside
}

// act lets an actor do one thing after the other, each drawn.
func (s *soak) act(name string, fn func(r *rand.Rand)) {
	h := fnv.New64()
	h.Write([]byte(name))
	r := rand.New(rand.NewPCG(*soakSeed, h.Sum64()))
	s.wait.Go(func() {
		for time.Now().Before(s.until) && !s.t.Failed() {
			fn(r)
		}
	})
}

func pause(r *rand.Rand, most time.Duration) { time.Sleep(time.Duration(r.Int64N(int64(most)))) }

func draw[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// command runs xvlan, and kills one of four anywhere, those that do not end by
// themselves always.
func (s *soak) command(r *rand.Rand, line string, endless bool) {
	cmd := command(s.t, strings.Fields(line)...)
	start(s.t, s.do, cmd)
	if endless || r.IntN(4) == 0 {
		kill := time.AfterFunc(time.Duration(r.IntN(100))*time.Millisecond, func() { cmd.Process.Kill() })
		defer kill.Stop()
	}
	s.judge(line, wait(s.t, cmd), cmd.ProcessState.Sys().(syscall.WaitStatus))
}

// judge takes whatever is said in the form of an error.
func (s *soak) judge(line string, res result, status syscall.WaitStatus) {
	s.commands.Add(1)
	lines := strings.Split(strings.TrimSuffix(res.err, "\n"), "\n")
	last := lines[len(lines)-1]
	switch {
	case status.Signaled() && (status.Signal() == syscall.SIGKILL || status.Signal() == syscall.SIGTERM): // before it listens to that
		s.killed.Add(1)
	case res.code == exitOK:
	case res.code == exitFail && strings.HasPrefix(last, "xvlan: ") && !strings.Contains(res.err, "goroutine"):
		s.refused.Add(1)
		s.mu.Lock()
		defer s.mu.Unlock()
		words := strings.FieldsFunc(last, func(c rune) bool { return strings.ContainsRune(" :0123456789", c) })
		s.said[strings.Join(words, " ")]++
	default:
		s.t.Errorf("%s: exit status %d\n%s", line, res.code, res.err)
	}
}

// ip runs ip in the namespace host, which may fail.
func (s *soak) ip(line string) {
	cmd := wrapped(append([]string{"ip"}, strings.Fields(line)...)...)
	start(s.t, s.do, cmd)
	wait(s.t, cmd)
}

// churn makes, changes and removes sub-interfaces under names of the actor's own.
func (s *soak) churn(actor int) func(r *rand.Rand) {
	return func(r *rand.Rand) {
		name := fmt.Sprintf("x%d%d", actor, r.IntN(3))
		netns := draw(r, s.inside.Name(), s.host.Name(), "brief", s.wire.Name())
		what := draw(r, "macvlan mode bridge", "macvlan mode vepa", "macvlan mode private", "ipvlan mode l2", "ipvlan mode l3",
			"ipvlan mode l3s", "ipvlan mode l2 private", "macvlan mode source macaddr add "+wireMAC, "macvlan mode passthru")
		switch r.IntN(8) {
		case 0, 1, 2:
			s.command(r, fmt.Sprintf("link add link eth0 %s netns %s addr 10.77.%d.%d/16 up type %s", name, netns, 100+actor, r.IntN(100), what), false)
		case 3:
			s.command(r, "link set "+name+" type "+what, false)
		case 4:
			s.command(r, "link set "+name+" netns "+netns, false)
		case 5:
			s.ip(fmt.Sprintf("-n %s link set %s address 02:00:00:00:99:%02x", s.inside.Name(), name, r.IntN(4)))
		case 6:
			s.ip("-n " + s.inside.Name() + " link del " + name)
		default:
			s.command(r, "link del "+name, false)
		}
	}
}

// change changes sub-interfaces that stay.
func (s *soak) change(r *rand.Rand) {
	pause(r, 300*time.Millisecond)
	line := draw(r, "m2 type macvlan mode bridge", "m2 type macvlan mode vepa", "m2 type macvlan mode private",
		"i2 type ipvlan bridge", "i2 type ipvlan private", "i2 type ipvlan vepa")
	s.command(r, "link set "+line, false)
}

// flap does to the parent what happens to parents.
func (s *soak) flap(r *rand.Rand) {
	pause(r, 400*time.Millisecond)
	switch r.IntN(5) {
	case 0:
		s.ip("link del eth0")
		pause(r, 300*time.Millisecond)
		s.cable()
	case 1:
		s.ip("link set eth0 down")
		pause(r, 100*time.Millisecond)
		s.ip("link set eth0 up")
	case 2:
		s.ip("-n " + s.wire.Name() + " link set w0 down")
		pause(r, 100*time.Millisecond)
		s.ip("-n " + s.wire.Name() + " link set w0 up")
	case 3:
		s.ip("link set eth0 mtu " + draw(r, "1500", "1400"))
	default:
		s.ip("link set eth0 address " + draw(r, s.macs...).String())
	}
}

// cable makes the parent again.
func (s *soak) cable() {
	wire := s.wire.Name()
	s.ip(fmt.Sprintf("link add eth0 address %s type veth peer name w0 address %s netns %s", s.macs[0], wireMAC, wire))
	s.ip("-n " + wire + " addr add " + wireAddr + "/24 dev w0")
	s.ip("-n " + wire + " link set w0 up")
	s.ip("addr add " + hostAddr + "/24 dev eth0")
	s.ip("link set eth0 up")
	s.ip("route add default via " + wireAddr)
}

// spaces makes a namespace that is deleted with what is in it.
func (s *soak) spaces(r *rand.Rand) {
	s.ip("netns add brief")
	pause(r, 500*time.Millisecond)
	s.ip("netns del brief")
}

// serve starts the daemon, and kills it or tells it to end.
func (s *soak) serve(r *rand.Rand) {
	cmd := command(s.t, "serve", "--listen", "127.0.0.1:0")
	start(s.t, s.do, cmd)
	pause(r, 2*time.Second)
	signal := draw(r, syscall.SIGKILL, syscall.SIGKILL, syscall.SIGTERM)
	if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("end serve: %v", err)
	}
	s.judge("serve", wait(s.t, cmd), cmd.ProcessState.Sys().(syscall.WaitStatus))
}

// look looks on.
func (s *soak) look(r *rand.Rand) {
	if r.IntN(2) == 0 {
		s.command(r, draw(r, "monitor", "monitor m1 drops", "capture eth0 -w -", "capture i1", "top -b -d 0.1"), true)
		return
	}
	s.command(r, draw(r, "link show", "-s -d -j link show", "parent show", "config", "top -b -n 2 -d 0.1",
		"trace eth0 dst 02:00:00:00:77:01 ip 10.77.0.254 10.77.0.13", "trace eth0 from m1 arp 10.77.0.11 10.77.0.12"), false)
}

// detach detaches a program of the parent, or of a host leg of one that does not
// stay, or puts the parent's of another version in place, for an upgrade.
func (s *soak) detach(r *rand.Rand) {
	pause(r, 700*time.Millisecond)
	pins := []string{"rx"}
	s.do(s.t, func() {
		entries, _ := os.ReadDir(s.dir) // what is gone is not detached
		for _, e := range entries {
			id, leg := strings.CutPrefix(e.Name(), "leg-")
			if leg && !slices.ContainsFunc(s.stays, func(e *stay) bool { return strconv.Itoa(e.id) == id }) {
				pins = append(pins, e.Name())
			}
		}
		l, err := ebpflink.LoadPinnedLink(filepath.Join(s.dir, draw(r, pins...)), nil)
		if err != nil {
			return
		}
		defer l.Close()
		if err := l.Detach(); err != nil && !errors.Is(err, syscall.ENOLINK) && !errors.Is(err, ebpf.ErrNotSupported) {
			s.t.Errorf("detach: %v", err)
		}
	})
	if r.IntN(2) == 0 {
		s.do(s.t, func() {
			if err := s.age(); err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.t.Errorf("pin an older program: %v", err)
			}
		})
		s.command(r, "parent upgrade", false)
	}
	s.command(r, "link show", false)
}

// age pins a program with an instruction more in the place of the parent's, as an
// older version would have left it.
func (s *soak) age() error {
	set, err := maps.Open(s.dir)
	if err != nil {
		return err
	}
	defer set.Close()
	places, err := watch.Open(s.dir)
	if err != nil {
		return err
	}
	defer places.Close()
	all := set.Maps()
	for name, m := range places.Maps() {
		all[name] = m
	}
	spec, err := bpf.LoadXvlan()
	if err != nil {
		return err
	}
	rx := spec.Programs[bpf.XvlanProgXvlanRx]
	first := asm.Mov.Imm(asm.R0, 0)
	first.Metadata, rx.Instructions[0].Metadata = rx.Instructions[0].Metadata, asm.Metadata{}
	rx.Instructions = append(asm.Instructions{first}, rx.Instructions...)
	rec, err := set.Parent()
	if err != nil {
		return err
	}
	coll, err := bpf.LoadOn(func() (*ebpf.CollectionSpec, error) { return spec, nil }, rec.Capacity, all)
	if err != nil {
		return err
	}
	defer coll.Close()
	pin := filepath.Join(s.dir, rx.Name)
	if err := coll.Programs[rx.Name].Pin(pin + "-old"); err != nil {
		return err
	}
	return os.Rename(pin+"-old", pin)
}

// Whatever happens, and whatever is killed meanwhile: sub-interfaces that stay
// work in the end, what they were sent and what they have sent adds up frame by
// frame, and of all else nothing is left.
func TestSoak(t *testing.T) {
	t.Logf("-seed %d", *soakSeed)
	s := newSoak(t)
	s.must(t, "parent attach eth0")
	for _, e := range s.stays {
		s.must(t, fmt.Sprintf("link add link eth0 %s netns %s addr %s/16 up type %s", e.name, e.ns.Name(), e.addr, e.words))
	}
	for i, l := range s.links(t) {
		s.stays[i].id = l.ID
	}
	streams := s.startStreams(t)
	s.until = time.Now().Add(*soakTime)
	for i := range 3 {
		s.act(fmt.Sprint("churn", i), s.churn(i))
	}
	for name, fn := range map[string]func(*rand.Rand){
		"change": s.change, "flap": s.flap, "spaces": s.spaces, "serve": s.serve, "look": s.look, "detach": s.detach,
	} {
		s.act(name, fn)
	}
	s.wait.Wait()
	t.Logf("%d commands, %d of them killed, %d refused", s.commands.Load(), s.killed.Load(), s.refused.Load())
	for what, n := range s.said {
		t.Logf("%d times: %s", n, what)
	}
	s.tellWhy(t)
	s.calm(t)
	for _, f := range streams {
		f.end(t)
	}
	s.balance(t)
	for _, e := range s.stays {
		ping(t, e.ns, e.name, wireAddr)
		s.must(t, "link del "+e.name)
	}
	s.must(t, "parent detach eth0")
	s.must(t, "link show")
	// The parent may have been made again.
	index := regexp.MustCompile(`((eth0|w0) index) \d+`)
	masked := func(lines []string) []string {
		return strings.Split(index.ReplaceAllString(strings.Join(lines, "\n"), "$1"), "\n")
	}
	if d := difference(masked(s.look0), masked(s.snapshot(t))); d != "" {
		t.Errorf("not as it was before:\n%s", d)
	}
	s.nothingLeft(t)
}

// tellWhy shows how things are if the test fails, which nobody can repeat.
func (s *soak) tellWhy(t *testing.T) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		spaces := []*lab.Netns{s.wire, s.host}
		for _, e := range s.stays {
			spaces = append(spaces, e.ns)
		}
		for _, n := range spaces {
			t.Log(n.Name(), n.Run(t, "ip", "-s", "-d", "addr"), n.Run(t, "ip", "neigh"), n.Run(t, "ip", "route"))
		}
		for _, line := range []string{"-d -s link show", "-d parent show"} {
			t.Log(s.xvlan(t, strings.Fields(line)...).out)
		}
	})
}

// calm puts the parent as it was, and removes what does not stay.
func (s *soak) calm(t *testing.T) {
	t.Helper()
	s.host.Run(t, "ip", "link", "set", "eth0", "mtu", "1500", "address", s.macs[0].String(), "up")
	s.wire.Run(t, "ip", "link", "set", "w0", "up")
	// It says what it puts right, and what is busy it leaves to the next look. Of some
	// that do not stay it says again and again that they have a sibling's MAC.
	quiet, said := 0, ""
	defer func() {
		if quiet < 3 {
			t.Logf("link show says %s", said)
		}
	}()
	ok := func(line string) result {
		r := s.xvlan(t, strings.Fields(line)...)
		if r.code != exitOK {
			t.Errorf("xvlan %s: exit status %d\n%s", line, r.code, r.err)
		}
		return r
	}
	lab.Eventually(t, "all is put right", func() bool {
		r := ok("-j link show")
		said = r.err
		if quiet++; r.err != "" {
			quiet = 0
		}
		var links []link
		unmarshal(t, r.out, &links)
		for _, l := range links {
			if !strings.HasPrefix(l.Name, "x") {
				continue
			}
			line := "link del " + l.Name
			if l.Netns != "" {
				line += " netns " + l.Netns
			}
			s.xvlan(t, strings.Fields(line)...) // it may be going by itself, with its namespace
			quiet = 0
		}
		return quiet == 3
	})
	s.must(t, "parent upgrade")
	for _, l := range s.links(t) {
		if strings.HasPrefix(l.Name, "x") {
			t.Errorf("%s is left", l.Name)
		}
	}
}
