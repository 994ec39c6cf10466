package loader

import (
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/xvlan/xvlan/lab"
)

// Programs that somebody has detached, or whose qdisc is gone, are attached
// again by the next command that looks, and counters and addresses stay.
func TestRehook(t *testing.T) {
	lab.NeedTool(t, "bpftool")
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		for _, e := range s.subs {
			s.addAtOnce(t, e, e.ip4)
		}
		s.setHost(t, s.sub(t, "mac1"), true)
		before := s.running(t)
		s.detachAll(t)
		s.sub(t, "mac1").pingFails(t, s.wire.ip4.Addr())
		// A command elsewhere does not take the host for gone.
		s.wire.ns.Do(t, func() {
			h, err := Open(slog.New(slog.DiscardHandler))
			if err != nil {
				t.Error(err)
				return
			}
			defer h.Close()
			if err := h.Sweep(); err != nil {
				t.Errorf("sweep elsewhere: %v", err)
			}
		})
		s.sweep(t)
		if after := s.running(t); !slices.Equal(after, before) {
			t.Errorf("after the look there run\n%q\nbefore\n%q", after, before)
		}
		for _, e := range s.subs {
			e.ping(t, s.wire.ip4.Addr())
			s.wire.ping(t, e.ip4.Addr())
		}
		s.host.ping(t, s.sub(t, "mac1").ip4.Addr())
		for _, e := range s.subs {
			s.del(t, e)
		}
		s.checkGone(t)
	})
}

// Serve does so by itself where the kernel tells of it.
func TestRehookServed(t *testing.T) {
	onRungs(t, []rungCase{onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		e := s.sub(t, "ip1")
		s.addAtOnce(t, e, e.ip4)
		before := s.running(t)
		stop := s.serve(t)
		defer stop()
		for _, dev := range []string{s.link(t, e).Leg, parentDev} {
			s.host.ns.Run(t, "tc", "qdisc", "del", "dev", dev, "clsact")
			lab.Eventually(t, "it is attached to "+dev+" again", func() bool { return slices.Equal(s.running(t), before) })
			s.wire.ping(t, e.ip4.Addr())
		}
	})
}

// What no message tells of it finds when it looks by itself.
func TestRehookServedLater(t *testing.T) {
	lab.NeedTool(t, "bpftool")
	onRungs(t, []rungCase{onXDP, onTCX}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		e := s.sub(t, "ip1")
		s.addAtOnce(t, e, e.ip4)
		before := s.running(t)
		s.repair = 10 * time.Millisecond
		s.serve(t)
		s.detachAll(t)
		lab.Eventually(t, "all is attached again", func() bool { return slices.Equal(s.running(t), before) })
		e.ping(t, s.wire.ip4.Addr())
	})
}

// detachAll does what an administrator in error might.
func (s *site) detachAll(t *testing.T) {
	t.Helper()
	if s.legacyTC {
		for _, e := range s.subs {
			s.host.ns.Run(t, "tc", "qdisc", "del", "dev", s.link(t, e).Leg, "clsact")
		}
		s.host.ns.Run(t, "tc", "qdisc", "del", "dev", parentDev, "clsact")
	}
	s.withParent(t, func(p *parent) {
		pins, err := filepath.Glob(filepath.Join(p.dir, "*"))
		if err != nil {
			t.Error(err)
		}
		for _, pin := range pins {
			if l, err := link.LoadPinnedLink(pin, nil); err == nil {
				if err := l.Detach(); err != nil {
					t.Errorf("detach %s: %v", pin, err)
				}
				l.Close()
			}
		}
	})
}
