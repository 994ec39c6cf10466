// Package metrics shows parents and sub-interfaces to Prometheus.
package metrics

import (
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// A Snapshot is all that is shown, as it was at one moment.
type Snapshot struct {
	Parents []loader.ParentInfo
	Links   []loader.Link
	Usage   []loader.Usage
}

// Collector asks for a Snapshot each time it is scraped, and keeps nothing of
// it. Every sub-interface has the same few series; one for a reason that
// nothing was dropped for yet is left out, so that ten thousand of them stay
// tens of thousands of series.
type Collector struct {
	read   func() (*Snapshot, error)
	log    *slog.Logger
	build  prometheus.Metric
	errors prometheus.Counter
}

// New makes a Collector. Errors of read are logged and counted.
func New(read func() (*Snapshot, error), version string, log *slog.Logger) *Collector {
	return &Collector{
		read: read,
		log:  log,
		build: prometheus.MustNewConstMetric(buildInfo, prometheus.GaugeValue, 1,
			version, strconv.Itoa(bpf.Schema)),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "xvlan_scrape_errors_total", Help: "Scrapes that could not read the state of xvlan.",
		}),
	}
}

var (
	ofParent  = []string{"parent"}
	ofLink    = []string{"parent", "link", "netns"}
	buildInfo = prometheus.NewDesc("xvlan_build_info", "The version of xvlan, and of its maps' layout.", []string{"version", "schema"}, nil)

	parentInfo     = desc("parent_info", "A parent, the rung its datapath stands on, and why.", ofParent, "rung", "reason")
	parentPresent  = desc("parent_present", "Whether the parent's device is there; a device of its name takes the place of one that is gone.", ofParent)
	parentLinks    = desc("parent_links", "Sub-interfaces on a parent.", ofParent)
	passedPackets  = desc("parent_passed_packets_total", "Packets left to the host, or to what else hangs on the parent.", ofParent)
	passedBytes    = desc("parent_passed_bytes_total", "Bytes of these packets.", ofParent)
	parentDrops    = desc("parent_dropped_packets_total", "Packets dropped that were no sub-interface's.", ofParent, "reason")
	hostPackets    = desc("parent_host_transmit_packets_total", "Packets sent by the host while a sub-interface had host access, to the wire or to those.", ofParent)
	hostBytes      = desc("parent_host_transmit_bytes_total", "Bytes of these packets.", ofParent)
	mapEntries     = desc("map_entries", "Entries in a map.", ofParent, "map")
	mapMax         = desc("map_max_entries", "Entries that a map has room for.", ofParent, "map")
	programRuns    = desc("program_runs_total", "Runs of a BPF program, while kernel.bpf_stats_enabled is set.", ofParent, "program")
	programSeconds = desc("program_run_seconds_total", "Time spent in these runs.", ofParent, "program")

	linkInfo  = desc("link_info", "A sub-interface.", ofLink, "type", "mode", "class", "host", "via_host", "vlan", "qinq", "trunk")
	linkUp    = desc("link_up", "Whether a sub-interface is up and has its carrier.", ofLink)
	rxPackets = desc("link_receive_packets_total", "Packets handed to a sub-interface.", ofLink)
	rxBytes   = desc("link_receive_bytes_total", "Bytes of these packets.", ofLink)
	txPackets = desc("link_transmit_packets_total", "Packets sent by a sub-interface, to the wire or to siblings.", ofLink)
	txBytes   = desc("link_transmit_bytes_total", "Bytes of these packets.", ofLink)
	linkDrops = desc("link_dropped_packets_total", "Packets for a sub-interface, or sent by it, that went nowhere.", ofLink, "reason")
	linkAddrs = desc("link_addresses", "Addresses that lead to a sub-interface.", ofLink, "origin")
	linkDups  = desc("link_address_conflicts_total", "Times that a sub-interface spoke from an address that somebody else has.", ofLink)
	linkMany  = desc("link_unfiltered_multicast_packets_total", "Multicast packets that a sub-interface got unasked, being in too many groups.", ofLink)
)

// number is a label that is not there for 0.
func number(n uint16) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(int(n))
}

var onOff = map[bool]string{false: "off", true: "on"}

func desc(name, help string, labels []string, more ...string) *prometheus.Desc {
	return prometheus.NewDesc("xvlan_"+name, help, append(labels[:len(labels):len(labels)], more...), nil)
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		buildInfo, parentInfo, parentPresent, parentLinks, passedPackets, passedBytes, parentDrops, hostPackets, hostBytes, mapEntries, mapMax, programRuns, programSeconds,
		linkInfo, linkUp, rxPackets, rxBytes, txPackets, txBytes, linkDrops, linkAddrs, linkDups, linkMany,
	} {
		ch <- d
	}
	c.errors.Describe(ch)
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	s, err := c.read()
	if err != nil {
		c.log.Error("cannot be scraped", "err", err)
		c.errors.Inc()
	}
	ch <- c.build
	c.errors.Collect(ch)
	if err != nil {
		return
	}
	e := emitter(ch)
	shown := map[string]bool{} // of two of one name one is gone, and comes behind
	for i, p := range s.Parents {
		if !shown[p.Name] {
			e.parent(&s.Parents[i])
		}
		shown[p.Name] = true
	}
	for _, u := range s.Usage {
		e.usage(u)
	}
	for i := range s.Links {
		e.link(&s.Links[i])
	}
}

type emitter chan<- prometheus.Metric

func (e emitter) gauge(d *prometheus.Desc, v float64, labels ...string) {
	e.emit(d, prometheus.GaugeValue, v, labels)
}

func (e emitter) counter(d *prometheus.Desc, v uint64, labels ...string) {
	e.emit(d, prometheus.CounterValue, float64(v), labels)
}

// emit writes labels in UTF-8, which Prometheus insists on: a container may call its
// device what it likes. What is quoted for that cannot be another's name, since names
// with quotes are, too.
func (e emitter) emit(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels []string) {
	labels = slices.Clone(labels)
	for i, s := range labels {
		if !utf8.ValidString(s) || strings.ContainsAny(s, `"\`) {
			labels[i] = strconv.Quote(s)
		}
	}
	e <- prometheus.MustNewConstMetric(d, kind, v, labels...)
}

// drops emits the verdicts that something was dropped by.
func (e emitter) drops(d *prometheus.Desc, stats *maps.Stats, labels ...string) {
	for v, c := range stats {
		if v := maps.Verdict(v); v.IsDrop() && c.Packets > 0 {
			e.counter(d, c.Packets, append(labels[:len(labels):len(labels)], v.String())...)
		}
	}
}

func (e emitter) parent(p *loader.ParentInfo) {
	e.gauge(parentInfo, 1, p.Name, p.Rung.String(), p.Reason)
	present := 1.0
	if p.Gone() {
		present = 0
	}
	e.gauge(parentPresent, present, p.Name)
	e.gauge(parentLinks, float64(p.Links), p.Name)
	if p.Rung == maps.RungKernel {
		return // where nothing is counted of the parent
	}
	e.counter(passedPackets, p.Stats[maps.Pass].Packets, p.Name)
	e.counter(passedBytes, p.Stats[maps.Pass].Bytes, p.Name)
	e.counter(hostPackets, p.Stats[maps.TX].Packets, p.Name)
	e.counter(hostBytes, p.Stats[maps.TX].Bytes, p.Name)
	e.drops(parentDrops, &p.Stats, p.Name)
}

func (e emitter) usage(u loader.Usage) {
	for _, m := range u.Maps {
		e.gauge(mapEntries, float64(m.Entries), u.Parent, m.Map)
		e.gauge(mapMax, float64(m.Capacity), u.Parent, m.Map)
	}
	for _, p := range u.Programs {
		e.counter(programRuns, p.Runs, u.Parent, p.Name)
		e.emit(programSeconds, prometheus.CounterValue, p.Time.Seconds(), []string{u.Parent, p.Name})
	}
}

func (e emitter) link(l *loader.Link) {
	labels := []string{l.Parent, l.Name, l.Netns}
	with := func(more ...string) []string { return append(labels[:len(labels):len(labels)], more...) }
	up := 0.0
	if l.OperState == "UP" {
		up = 1
	}
	e.gauge(linkInfo, 1, with(l.Kind.String(), l.Mode.String(), l.Class.String(), onOff[l.Host], onOff[len(l.Via) > 0], number(l.VLAN.ID), number(l.VLAN.Outer), l.VLAN.Trunk.String())...)
	e.gauge(linkUp, up, labels...)
	e.counter(rxPackets, l.Stats[maps.RX].Packets, labels...)
	e.counter(rxBytes, l.Stats[maps.RX].Bytes, labels...)
	e.counter(txPackets, l.Stats[maps.TX].Packets, labels...)
	e.counter(txBytes, l.Stats[maps.TX].Bytes, labels...)
	e.drops(linkDrops, &l.Stats, labels...)
	if n := l.Stats[maps.LearnDup].Packets; n > 0 {
		e.counter(linkDups, n, labels...)
	}
	if n := l.Stats[maps.GroupMany].Packets; n > 0 {
		e.counter(linkMany, n, labels...)
	}
	if l.Rung.Rung == maps.RungKernel {
		return // has no maps
	}
	addrs := map[maps.Origin]int{maps.Given: 0, maps.Learned: 0, maps.Leased: 0}
	for _, a := range l.Addrs {
		addrs[a.Origin]++
	}
	for origin, n := range addrs {
		e.gauge(linkAddrs, float64(n), with(origin.String())...)
	}
}
