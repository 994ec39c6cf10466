package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// unnamed makes a network namespace that nothing but a process leads to, and
// returns the process's number.
func unnamed(t *testing.T, from *lab.Netns) string {
	t.Helper()
	lab.NeedTool(t, "unshare")
	pid := from.Start(t, "unshare", "-n", "sleep", "1000").Process.Pid
	path := fmt.Sprintf("/proc/%d/ns/net", pid)
	lab.Eventually(t, "a process is in a namespace of its own", func() bool {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && string(comm) == "sleep\n"
	})
	if a, err := os.Readlink(path); err != nil {
		t.Fatal(err)
	} else if b, _ := os.Readlink(from.Path()); a == b {
		t.Fatalf("unshare has stayed in %s", a)
	}
	return strconv.Itoa(pid)
}

// TestUnnamed takes sub-interfaces to a namespace without a name and away from
// it again.
func TestUnnamed(t *testing.T) {
	onRungs(t, allRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		e := s.subs[0]
		pid := unnamed(t, s.host.ns)
		spec := s.spec(e)
		spec.Netns = pid
		s.do(t, func(h *Host) error { return h.Add(spec) })
		there := func() Link {
			t.Helper()
			var links []Link
			s.do(t, func(h *Host) (err error) { links, err = h.Links(); return err })
			if len(links) != 1 || links[0].Name != e.dev {
				t.Fatalf("listed are %+v, want %s", links, e.dev)
			}
			return links[0]
		}
		if got, want := there().Netns, "/proc/"+pid+"/ns/net"; got != want {
			t.Errorf("it is listed in netns %q, want %q", got, want)
		}
		s.do(t, func(h *Host) error { return h.Move(Selector{Name: e.dev}, e.ns.Name()) })
		e.ns.Addr(t, e.dev, e.ip4.String())
		e.ns.Up(t, e.dev)
		s.settle(t, e)
		e.ping(t, s.wire.ip4.Addr())
		s.do(t, func(h *Host) error { return h.Move(Selector{Name: e.dev}, pid) })
		there()
		s.do(t, func(h *Host) error { return h.Del(Selector{Name: e.dev}) })
		s.checkGone(t)
	})
}

// TestKernelShown looks at what is told of a macvlan on the kernel rung and of
// its parent.
func TestKernelShown(t *testing.T) {
	onRungs(t, []rungCase{onMacvlan}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{})
		for i, e := range s.subs {
			spec := s.spec(e)
			spec.Netns, spec.Mode, spec.Source.NoDst = e.ns.Name(), maps.Source, i == 0
			s.do(t, func(h *Host) error { return h.Add(spec) })
			if l := s.link(t, e); l.Mode != maps.Source || l.NoDst != (i == 0) {
				t.Errorf("%s is listed as %+v", e.name, l)
			}
		}
		var parents []ParentInfo
		s.do(t, func(h *Host) (err error) { parents, err = h.Parents(); return err })
		if len(parents) != 1 || parents[0].Name != parentDev || parents[0].Links != len(s.subs) ||
			parents[0].Rung != maps.RungKernel || parents[0].Reason != askedFor {
			t.Errorf("parents are %+v", parents)
		}
		for _, e := range s.subs {
			s.del(t, e)
		}
		s.do(t, func(h *Host) (err error) { parents, err = h.Parents(); return err })
		if len(parents) > 0 {
			t.Errorf("parents are %+v without any sub-interface", parents)
		}
	})
}

// TestLocksGo leaves no file of a lock behind, and removes one that has been.
func TestLocksGo(t *testing.T) {
	s := newSite(t, onClsact, siteOption{})
	left := func() []string {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(lockDir, fmt.Sprintf("%d-*", s.h.cookie)))
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	s.addAtOnce(t, s.subs[0])
	s.sweep(t)
	s.del(t, s.subs[0])
	if files := left(); len(files) > 0 {
		t.Errorf("locks are left: %v", files)
	}
	killed := filepath.Join(lockDir, folder{s.h.cookie, 4711}.String())
	if err := os.WriteFile(killed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.sweep(t)
	if files := left(); len(files) > 0 {
		t.Errorf("the lock that a killed command has left is still there: %v", files)
	}
}

// TestLockIsOnes has many take and give back one lock: there is never more
// than one who has it, whatever becomes of its file.
func TestLockIsOnes(t *testing.T) {
	lab.NeedRoot(t)
	if err := ensureLocks(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test-%d", os.Getpid())
	const takers, rounds = 8, 200
	var held atomic.Int32
	done := make(chan error, takers)
	for range takers {
		go func() {
			for range rounds {
				unlock, err := lockFile(name)
				if err != nil {
					done <- err
					return
				}
				if held.Add(1) != 1 {
					err = errors.New("two have it")
				}
				time.Sleep(10 * time.Microsecond) // for others to come meanwhile
				held.Add(-1)
				unlock()
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range takers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	unlock, err := lockFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := flock(name, unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("taken twice: %v", err)
		if err == nil {
			again()
		}
	}
	unlock()
	if names, _ := filepath.Glob(filepath.Join(lockDir, name)); slices.Contains(names, filepath.Join(lockDir, name)) {
		t.Error("its file is left")
	}
}

// TestEnterKeepsItsThread visits another network namespace in goroutines that may be
// moved to another thread whenever they wait.
func TestEnterKeepsItsThread(t *testing.T) {
	there, err := os.Open(lab.NewNetns(t, "there").Path())
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	const own = "/proc/thread-self/ns/net"
	home, err := os.Readlink(own)
	if err != nil {
		t.Fatal(err)
	}
	visit := func() error {
		var in string
		err := enter(there, func() (err error) {
			time.Sleep(time.Microsecond)
			in, err = os.Readlink(own)
			return err
		})
		if err != nil {
			return err
		}
		if in == home {
			return errors.New("it has not gone")
		}
		back, err := os.Readlink(own)
		if err == nil && back != home {
			err = errors.New("it has not come back")
		}
		return err
	}
	errs := make(chan error)
	for range 8 {
		go func() {
			var err error
			for range 500 {
				if err = visit(); err != nil {
					break
				}
			}
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
