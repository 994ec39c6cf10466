package measure

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// What is sent arrives, with every kind on every rung that is compared.
func TestForward(t *testing.T) {
	lab.NeedRoot(t)
	before := openFiles(t)
	costs, err := Forward(t.Context(), noTime())
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, what := range []struct{ kind, rung string }{
		{"macvlan", "kernel"}, {"macvlan", "tc"}, {"macvlan", "xdp"}, {"ipvlan", "kernel"}, {"ipvlan", "tc"},
	} {
		if what.rung == "kernel" && !lab.HasKind(t, what.kind) {
			continue
		}
		for _, f := range forwards {
			if what.rung != "xdp" || f.xdp {
				want = append(want, what.kind+" "+what.rung+": "+f.what)
			}
		}
	}
	var got []string
	for _, c := range costs {
		got = append(got, c.Kind+" "+c.Rung+": "+c.What)
		if c.Cost.Least <= 0 || c.Cost.Median < c.Cost.Least || c.Cost.Most < c.Cost.Median {
			t.Errorf("%+v", c)
		}
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("compared\n%q\nwant\n%q", got, want)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are left open", after-before)
	}
}

// What a side has pinned goes with it.
func TestSide(t *testing.T) {
	lab.NeedRoot(t)
	s, err := newSide(maps.Macvlan, loader.TC)
	if err != nil {
		t.Fatal(err)
	}
	var pins, locks string
	err = s.host.do(func() error {
		cookie, err := unix.GetsockoptUint64(s.subSink, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		host, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if host == cookie {
			t.Error("the sub-interface is in the host's namespace")
		}
		pins, locks = fmt.Sprintf("/run/xvlan/bpf/%d-*", host), fmt.Sprintf("/run/xvlan/lock/%d-*", host)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if found, err := filepath.Glob(pins); len(found) != 1 || err != nil {
		t.Errorf("pinned: %v, %v", found, err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	for _, what := range []string{pins, locks} {
		if found, err := filepath.Glob(what); len(found) != 0 || err != nil {
			t.Errorf("left: %v, %v", found, err)
		}
	}
}

// Frames that do not arrive are no cheap ones.
func TestLost(t *testing.T) {
	lab.NeedRoot(t)
	s, err := newSide(maps.Macvlan, loader.TC)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	on, err := lastCPU()
	if err != nil {
		t.Fatal(err)
	}
	s.mac[5]++ // nobody's
	if ns, err := s.in(on)(time.Millisecond); err == nil {
		t.Errorf("a frame for nobody takes %f ns to arrive", ns)
	}
	if err := unix.Connect(s.answers, &unix.SockaddrInet4{Port: sinkPort, Addr: wirePrefix.Addr().As4()}); err != nil { // hears nobody else
		t.Fatal(err)
	}
	if us, err := s.roundTrip(on)(time.Millisecond); err == nil {
		t.Errorf("nobody answers within %f µs", us)
	}
}

func TestForwardInterrupted(t *testing.T) {
	lab.NeedRoot(t)
	before := openFiles(t)
	ctx, cancel := context.WithCancel(t.Context())
	budget := Budget{Time: time.Minute, Progress: func(float64) { cancel() }}
	if _, err := Forward(ctx, budget); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are left open", after-before)
	}
}
