package cni

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/xvlan/xvlan/lab"
)

var (
	many      = flag.Int("cni.many", 40, "how many containers come and go at once")
	reference = flag.Bool("cni.reference", false, "have the reference plugin macvlan do the same, and compare the times")
)

// TestMany attaches many containers at once, and detaches them at once, which
// leaves nothing.
func TestMany(t *testing.T) {
	w := newWorld(t)
	w.plugin(t, "macvlan", filepath.Join(debianPlugins, "macvlan"))
	spaces := make([]*lab.Netns, *many)
	for i := range spaces {
		spaces[i] = lab.NewNetns(t, fmt.Sprint("c", i))
	}
	c := w.net("net")
	added, deleted := w.comeAndGo(t, c, spaces, func(addrs []string) {
		w.wire.Run(t, "ping", "-c1", "-w20", "-i0.2", "-q", addrs[0])
		for _, datapath := range []int{0, len(spaces) - 1} {
			ping(t, spaces[datapath], wireAddr)
		}
		if links := w.links(t); len(links) != len(spaces) {
			t.Errorf("there are %d sub-interfaces", len(links))
		}
	})
	t.Logf("%d at once: ADD %v, DEL %v", len(spaces), added, deleted)
	if *reference {
		theirs := w.net("reference", "type", "macvlan")
		refAdded, refDeleted := w.comeAndGo(t, theirs, spaces, func([]string) {})
		t.Logf("reference: ADD %v, DEL %v, so it is %.2f and %.2f times that", refAdded, refDeleted,
			added.Seconds()/refAdded.Seconds(), deleted.Seconds()/refDeleted.Seconds())
	}
}

// comeAndGo attaches all at once, has between look at them, and detaches all at
// once.
func (w *world) comeAndGo(t *testing.T, c object, spaces []*lab.Netns, between func(addrs []string)) (added, deleted time.Duration) {
	t.Helper()
	addrs, errs := make([]string, len(spaces)), make([]error, len(spaces))
	atOnce := func(fn func(i int)) time.Duration {
		var all sync.WaitGroup
		began := time.Now()
		for i := range spaces {
			all.Go(func() { fn(i) })
		}
		all.Wait()
		return time.Since(began)
	}
	added = atOnce(func(i int) {
		result, err := w.add(t, c.list(t), container(spaces[i]))
		if err == nil {
			addrs[i] = result.IPs[0].Address.IP.String()
		}
		errs[i] = err
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	distinct := slices.Clone(addrs)
	slices.Sort(distinct)
	if len(slices.Compact(distinct)) != len(spaces) {
		t.Errorf("addresses were given twice: %v", addrs)
	}
	between(addrs)
	deleted = atOnce(func(i int) {
		w.host.Do(t, func() { errs[i] = w.cni.DelNetworkList(t.Context(), c.list(t), container(spaces[i])) })
	})
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	w.clean(t)
	return added, deleted
}
