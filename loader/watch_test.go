package loader

import (
	"testing"
	"time"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// Who watches goes on seeing when the programs are replaced, on every rung.
func TestWatchUpgrade(t *testing.T) {
	lab.NeedTool(t, "ping")
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		s.populateQuiet(t)
		var w *Watcher
		s.do(t, func(h *Host) (err error) {
			w, err = h.Watch(WatchSpec{Target: Selector{Name: parentDev}, Verdicts: []maps.Verdict{maps.RX, maps.TX}, Snap: 64})
			return err
		})
		defer s.do(t, func(*Host) error { return w.Close() })
		first, drops := s.subs[0], backlogDrops(t)
		for _, replace := range []func(){
			func() {},
			func() { s.toOthers(t) },
			func() { s.do(t, func(h *Host) error { _, err := h.Upgrade(parentDev); return err }) },
		} {
			replace()
			const pings = 5
			s.wire.ping(t, first.ip4.Addr(), "-c", "5", "-i", "0.002", "-q")
			lossless(t, drops) // what was lost was repeated
			seen := map[maps.Verdict]int{}
			for range 2 { // the last millisecond is held back
				all, err := w.Read(time.Now().Add(10 * time.Millisecond))
				if err != nil {
					t.Fatal(err)
				}
				for _, one := range all {
					if one.Name != first.dev || one.ParentName != parentDev {
						t.Errorf("%s is seen on %s", one.Name, one.ParentName)
					}
					seen[one.Verdict]++
				}
			}
			if seen[maps.RX] != pings || seen[maps.TX] != pings {
				t.Errorf("seen %v, want %d of each", seen, pings)
			}
		}
	})
}
