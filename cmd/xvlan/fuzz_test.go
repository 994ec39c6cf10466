package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"go.yaml.in/yaml/v4"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

// sameSpec tells whether two specs ask for the same. Without a queue a macvlan
// has that of every other.
func sameSpec(a, b loader.LinkSpec) bool {
	usual := func(s *loader.LinkSpec) {
		if s.Queue.Len != nil && *s.Queue.Len == defaultQueueLen {
			s.Queue.Len = nil
		}
		if s.Queue.Limit != nil && *s.Queue.Limit == defaultQueueLimit {
			s.Queue.Limit = nil
		}
		if len(s.Source.MACs) == 0 {
			s.Source.MACs = nil
		}
	}
	usual(&a)
	usual(&b)
	return reflect.DeepEqual(a, b)
}

var atPlace = regexp.MustCompile(`^f:[1-9][0-9]*:[1-9][0-9]*: `)

// FuzzConfig looks for files that apply fails on otherwise than by telling what
// is wrong and where, and for those that config would write differently.
func FuzzConfig(f *testing.F) {
	text, err := os.ReadFile("testdata/all.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	for _, text := range []string{
		"parents: []", "parents: [{name: eth0, unknown: drop, links: [{name: c1, type: macvlan}]}]",
		"parents: [{name: a, links: [&x {name: c, type: ipvlan, mode: l3s, flag: vepa}, *x]}]", "--- a\n--- b", "parents:\n\t- x", "a: !!binary x",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		parents, err := readConfig("f", data)
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				if !atPlace.MatchString(line) {
					t.Errorf("no place in %q", line)
				}
			}
			return
		}
		var c configYAML
		for _, p := range parents {
			y := parentYAML{Name: p.name, Netns: p.netns, Datapath: string(p.spec.Datapath), Unknown: string(p.spec.Unknown), Capacity: p.spec.Capacity}
			for _, l := range p.links {
				y.Links = append(y.Links, configLink(&l.spec, loader.Link{}, 0))
			}
			c.Parents = append(c.Parents, y)
		}
		out, err := yaml.Dump(&c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := readConfig("f", out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if len(again) != len(parents) {
			t.Fatalf("%d parents, now %d", len(parents), len(again))
		}
		for i, p := range parents {
			q := again[i]
			if p.name != q.name || p.netns != q.netns || p.spec != q.spec || len(p.links) != len(q.links) {
				t.Fatalf("parent %+v, now %+v", p, q)
			}
			for j := range p.links {
				if a, b := p.links[j].spec, q.links[j].spec; !sameSpec(a, b) {
					t.Errorf("link %+v\nnow  %+v\n%s", a, b, out)
				}
			}
		}
	})
}

// FuzzWords looks for words that a parser fails on otherwise than by an error,
// and for what `link add` would be told differently by the words that apply
// prints.
func FuzzWords(f *testing.F) {
	for _, line := range wrongInput {
		f.Add(line.line)
	}
	for _, s := range scenes {
		f.Add(s.line)
	}
	for _, line := range []string{
		"link eth0 c1 mtu 1400 up delivery xdp datapath tc type macvlan mode source nodst macaddr set 02:00:00:00:00:01 02:00:00:00:00:02",
		"link eth0 c1 netns 1 addr 192.0.2.7/24 addr fd00::1 type ipvlan mode l3s vepa",
		"c1 link eth0 netns x delivery auto type macvlan bclim -1 bcqueuelen 0x10",
		"eth0 from c1 netns n src 02:00:00:00:00:01 vlan 7 len 100 ip 192.0.2.1 192.0.2.2 proto tcp sport 1 dport 2",
		"eth0 nd fe80::1 fe80::2", "eth0 hex 0102", "eth0 drops", "eth0 capacity 5 unknown drop",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		fields := strings.Fields(line)
		parse := func() *words { return &words{left: fields} }
		_, _, _ = parseAttach(parse())
		_, _ = parseMonitor(parse())
		_, _ = parseSelector(parse(), nil)
		_, _ = parseSelector(parse(), &target{})
		if req, err := parseTraceWords(parse()); err == nil && req.frame.file == "" {
			checkFrame(t, &req)
		}
		spec, err := parseAdd(parse())
		if err != nil {
			return
		}
		told := "name " + spec.Name + " " + addWords(&spec)
		again, err := parseAdd(&words{left: strings.Fields(told)})
		if err != nil || !sameSpec(spec, again) {
			t.Errorf("%+v\nis told as %s: %v\n%+v", spec, told, err, again)
		}
	})
}

// checkFrame builds a frame as it is described.
func checkFrame(t *testing.T, req *traceRequest) {
	t.Helper()
	frame, err := req.frame.build([]loader.Link{{
		Parent: req.parent, WireMAC: stranger, Addrs: []loader.LinkAddr{{Addr: req.frame.to, Origin: maps.Given}},
	}}, req.parent, req.from)
	if err != nil {
		return
	}
	if req.frame.packet != "" && len(frame) < max(60, req.frame.length) {
		t.Errorf("%+v has %d bytes", req.frame, len(frame))
	}
	if told := watch.Describe(frame); strings.Contains(told, "\n") {
		t.Errorf("described as %q", told)
	}
}

// FuzzCapture looks for capture files, and for frames in them, that trace and
// monitor fail on otherwise than by an error.
func FuzzCapture(f *testing.F) {
	for _, line := range []string{"ip 192.0.2.1 192.0.2.2", "arp 192.0.2.1 192.0.2.2", "nd fe80::1 fe80::2", "vlan 7 ip fe80::1 fe80::2 proto tcp"} {
		req, err := parseTraceWords(&words{left: strings.Fields("eth0 dst 02:00:00:00:00:02 " + line)})
		if err != nil {
			f.Fatal(err)
		}
		frame, err := req.frame.build(nil, "eth0", nil)
		if err != nil {
			f.Fatal(err)
		}
		var old, next bytes.Buffer
		plain := pcapgo.NewWriter(&old)
		err = errors.Join(plain.WriteFileHeader(9000, layers.LinkTypeEthernet),
			plain.WritePacket(gopacket.CaptureInfo{CaptureLength: len(frame), Length: len(frame)}, frame))
		s := loader.Sighting{ParentName: "eth0", Sighting: watch.Sighting{Frame: frame, Len: len(frame)}}
		p, err2 := newPcap(&next, 9000, s)
		if err := errors.Join(err, err2); err != nil {
			f.Fatal(err)
		}
		if err := errors.Join(p.put(&s), p.flush()); err != nil {
			f.Fatal(err)
		}
		f.Add(old.Bytes())
		f.Add(next.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "pcap")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		frame, err := readFrame(name, 1)
		if err != nil {
			return
		}
		if told := watch.Describe(frame); strings.Contains(told, "\n") {
			t.Errorf("described as %q", told)
		}
		watch.Teaches(frame)
	})
}
