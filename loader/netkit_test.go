package loader

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/xvlan/xvlan/maps"
)

// What a netkit sends goes nowhere once nothing looks at it, and is counted as lost;
// what xvlan_tx has dropped, which its device counts, too, is not.
func TestNetkitUnattended(t *testing.T) {
	onRungs(t, []rungCase{onNetkit}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true}) // which sends by itself
		e := s.sub(t, "mac1")
		s.addAtOnce(t, e, e.ip4)
		e.ping(t, s.wire.ip4.Addr())
		know(t, s, s.wire, e) // so that nobody asks for them
		e.ns.Run(t, "ip", "link", "set", e.dev, "mtu", "2000")
		frame := slices.Concat(s.wire.mac(t), e.mac(t), make([]byte, 1800))
		const long = 5
		for range long {
			e.ns.Send(t, e.dev, frame)
		}
		if now := s.link(t, e).Stats; now[maps.DropRingTX].Packets != 0 || now[maps.DropMTU].Packets != long {
			t.Errorf("counted as over the MTU are %d, as lost %d", now[maps.DropMTU].Packets, now[maps.DropRingTX].Packets)
		}
		pins, err := filepath.Glob(filepath.Join(pinRoot, fmt.Sprintf("%d-*", s.h.cookie), pinLeg+"*"))
		if err != nil || len(pins) != 1 {
			t.Fatalf("pins of legs: %v, %v", pins, err)
		}
		if err := detachLink(pins[0]); err != nil {
			t.Fatal(err)
		}
		const n = 3
		for range n {
			e.ns.Send(t, e.dev, frame[:60])
		}
		if now := s.link(t, e).Stats; now[maps.DropRingTX].Packets != n || now.DroppedTX() != n+long {
			t.Errorf("counted as dropped are %d, as lost %d", now.DroppedTX(), now[maps.DropRingTX].Packets)
		}
		s.del(t, e)
		s.checkGone(t)
	})
}
