package cni

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/loader"
)

var (
	many      = flag.Int("cni.many", 40, "how many containers come and go at once")
	reference = flag.Bool("cni.reference", false, "have the reference plugin macvlan do the same, and compare the times")
	existing  = flag.Int("cni.existing", 0, "with how many others there")
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

// TestSpeed compares ADD and DEL with the reference plugin's, by turns.
func TestSpeed(t *testing.T) {
	if !*reference {
		t.Skip("it is a measurement, for -cni.reference")
	}
	w := newWorld(t)
	w.plugin(t, "macvlan", filepath.Join(debianPlugins, "macvlan"))
	a := lab.NewNetns(t, "a")
	lab.Veth(t, w.host, "lan1", w.wire, "w1")
	for i := range *existing {
		for _, c := range []object{w.net("many", "ipam", object{}), w.net("manyref", "type", "macvlan", "master", "lan1", "ipam", object{})} {
			rt := container(a)
			rt.IfName = fmt.Sprintf("%s%d", strings.TrimPrefix(c["name"].(string), "man"), i)
			if _, err := w.add(t, c.list(t), rt); err != nil {
				t.Fatal(err)
			}
		}
	}
	if *existing == 0 { // else the first would attach the parent each time
		w.attach(t, w.net("stay", "ipam", object{}), lab.NewNetns(t, "b"))
	}
	const rounds = 15
	times := map[string][]float64{}
	for range rounds {
		for _, c := range []object{w.net("ours"), w.net("reference", "type", "macvlan", "master", "lan1")} {
			name := c["name"].(string)
			began := time.Now()
			if _, err := w.add(t, c.list(t), container(a)); err != nil {
				t.Fatal(err)
			}
			times[name+" ADD"] = append(times[name+" ADD"], time.Since(began).Seconds()*1000)
			began = time.Now()
			var err error
			w.host.Do(t, func() { err = w.cni.DelNetworkList(t.Context(), c.list(t), container(a)) })
			if err != nil {
				t.Fatal(err)
			}
			times[name+" DEL"] = append(times[name+" DEL"], time.Since(began).Seconds()*1000)
		}
	}
	for _, ms := range times {
		slices.Sort(ms)
	}
	for _, verb := range []string{"ADD", "DEL"} {
		ours, theirs := times["ours "+verb], times["reference "+verb]
		t.Logf("%s: %.1f ms (%.1f..%.1f), reference %.1f ms (%.1f..%.1f), ratio %.2f", verb, ours[rounds/2], ours[0], ours[rounds-1],
			theirs[rounds/2], theirs[0], theirs[rounds-1], ours[rounds/2]/theirs[rounds/2])
	}
	_ = w.loader(t, func(h *loader.Host) error { return h.Detach("lan0") })
}
