package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// A taken is one frame of a file, with what the file says of it.
type taken struct {
	iface, verdict, way string
	frame               string
	length              int
}

// readPcap reads a whole file.
func readPcap(tb testing.TB, r io.Reader) (all []taken) {
	tb.Helper()
	ng, err := pcapgo.NewNgReader(r, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		tb.Fatalf("read pcapng: %v", err)
	}
	for {
		data, info, opts, err := ng.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			tb.Fatalf("read frame %d: %v", len(all)+1, err)
		}
		iface, err := ng.Interface(info.InterfaceIndex)
		if err != nil || len(opts.Comments) != 1 || opts.Flags == nil {
			tb.Fatalf("frame %d: %+v: %v", len(all)+1, opts, err)
		}
		verdict, _, _ := strings.Cut(opts.Comments[0], ": ")
		way := map[pcapgo.NgEpbFlag]string{1: "in", 2: "out"}[opts.Flags.Direction]
		all = append(all, taken{iface.Name, verdict, way, string(data), info.Length})
	}
}

func readPcapFile(tb testing.TB, name string) []taken {
	tb.Helper()
	f, err := os.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	return readPcap(tb, f)
}

// A sent is a kind of frame, and what is to be seen of each.
type sent struct {
	what  string
	frame []byte
	by    string // c1, or the wire
	seen  []taken
}

// sights fills the frame into what is to be seen of it.
func sights(frame []byte, seen ...taken) []taken {
	for i := range seen {
		seen[i].frame, seen[i].length = string(frame), len(frame)
	}
	return seen
}

// Each frame is there as often as it was decided on, whole, with its tag, at whom,
// which way and by which verdict: also those that XDP drops.
func TestCapture(t *testing.T) {
	bpfRungs(t, func(t *testing.T, w *world) {
		const each, other = 20, "02:00:00:00:77:11"
		in := w.inside.Name()
		w.must(t, "link add link eth0 c1 leg "+w.leg+" address "+subMAC+" netns "+in+" up type macvlan mode bridge")
		w.must(t, "link add link eth0 c2 address "+other+" netns "+in+" up type macvlan mode bridge")
		in1, in2 := taken{iface: "c1@eth0", verdict: "rx", way: "in"}, taken{iface: "c2@eth0", verdict: "rx", way: "in"}
		out1 := taken{iface: "c1@eth0", verdict: "tx", way: "out"}
		passed := taken{iface: "eth0", verdict: "pass", way: "in"}
		drop := taken{iface: "eth0", verdict: "drop_unknown", way: "in"}
		tagged := bytes.Join([][]byte{mac(t, subMAC), mac(t, wireMAC), {0x81, 0, 0x60, 5, 0x88, 0xb5}, make([]byte, 64)}, nil)
		kinds := []sent{
			{what: "to c1", by: "wire", frame: ethernet(t, subMAC, wireMAC, 60), seen: []taken{in1}},
			{what: "to c1, with a tag", by: "wire", frame: tagged, seen: []taken{in1}},
			{what: "long", by: "wire", frame: ethernet(t, subMAC, wireMAC, 1514), seen: []taken{in1}},
			{what: "to all", by: "wire", frame: ethernet(t, "ff:ff:ff:ff:ff:ff", wireMAC, 70), seen: []taken{in1, in2, passed}},
			{what: "to nobody", by: "wire", frame: ethernet(t, nobodyMAC, wireMAC, 80), seen: []taken{drop}},
			{what: "to c2", by: "c1", frame: ethernet(t, other, subMAC, 90), seen: []taken{out1, in2}},
			{what: "to the wire", by: "c1", frame: ethernet(t, wireMAC, subMAC, 100), seen: []taken{out1}},
			{what: "to all from c1", by: "c1", frame: ethernet(t, "ff:ff:ff:ff:ff:ff", subMAC, 110), seen: []taken{out1, in2}},
		}
		dir := t.TempDir()
		whole := w.watching(t, "capture eth0 -w "+filepath.Join(dir, "whole"))
		inward := w.watching(t, "capture in c1 -w "+filepath.Join(dir, "in"))
		cut := w.watching(t, "capture c1 out -s 33 -w -")
		lost := w.watching(t, fmt.Sprintf("capture eth0 --drops -c %d -w %s", each, filepath.Join(dir, "lost")))
		lines := w.watching(t, "capture dev c2 link eth0")
		for range each {
			for _, k := range kinds {
				if k.by == "wire" {
					w.wire.Send(t, "w0", k.frame)
				} else {
					w.inside.Send(t, "c1", k.frame)
				}
			}
		}
		w.counted(t, 1, maps.TX, 3*each)
		w.counted(t, 1, maps.RX, 4*each)
		w.counted(t, 2, maps.RX, 3*each)
		w.counted(t, 0, maps.DropUnknown, each)
		w.counted(t, 0, maps.Pass, each)

		want := map[taken]int{}
		for _, k := range kinds {
			for _, s := range sights(k.frame, k.seen...) {
				want[s] += each
			}
		}
		only := func(keep func(taken) bool) map[taken]int {
			some := map[taken]int{}
			for s, n := range want {
				if keep(s) {
					some[s] = n
				}
			}
			return some
		}
		total := func(seen map[taken]int) (sum int) {
			for _, n := range seen {
				sum += n
			}
			return sum
		}
		check := func(what string, r result, got []taken, want map[taken]int) {
			t.Helper()
			have := map[taken]int{}
			for _, s := range got {
				have[s]++
			}
			for s, n := range want {
				if have[s] != n {
					t.Errorf("%s: %d of %s %s at %s, %d bytes, want %d", what, have[s], s.verdict, s.way, s.iface, s.length, n)
				}
			}
			if len(got) != total(want) {
				t.Errorf("%s: %d frames, want %d", what, len(got), total(want))
			}
			if says := fmt.Sprintf("%d frames captured, 0 lost for want of room\n", total(want)); r.err != says {
				t.Errorf("%s: says %q, want %q", what, r.err, says)
			}
		}
		check("of the parent", interrupt(t, whole), readPcapFile(t, filepath.Join(dir, "whole")), want)
		check("for c1", interrupt(t, inward), readPcapFile(t, filepath.Join(dir, "in")), only(func(s taken) bool { return s.iface == "c1@eth0" && s.way == "in" }))
		check("dropped", wait(t, lost), readPcapFile(t, filepath.Join(dir, "lost")), only(func(s taken) bool { return s.verdict == "drop_unknown" }))
		r := interrupt(t, cut)
		shortened := map[taken]int{}
		for s, n := range only(func(s taken) bool { return s.way == "out" }) {
			s.frame = s.frame[:33]
			shortened[s] += n
		}
		check("from c1", r, readPcap(t, strings.NewReader(r.out)), shortened)
		r = interrupt(t, lines)
		if n := strings.Count(r.out, " c2@eth0 rx in "); n != 3*each || strings.Count(r.out, "\n") != n {
			t.Errorf("%d lines, want %d:\n%s", n, 3*each, r.out)
		}
		if bits := w.watchedBits(t); bits != 0 {
			t.Errorf("watched by %b, and nobody does", bits)
		}
	})
}

// A stream is there byte for byte, out of super-packets whose payload is in fragments.
func TestCaptureWhole(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add link eth0 c1 address "+subMAC+" addr "+subAddr+"/24 netns "+w.inside.Name()+" up type macvlan mode bridge")
	file := filepath.Join(t.TempDir(), "stream")
	cmd := w.watching(t, "capture c1 out -w "+file)
	payload := make([]byte, 3<<20)
	rand.New(rand.NewSource(1)).Read(payload)
	var (
		ln   net.Listener
		conn net.Conn
		err  error
	)
	w.wire.Do(t, func() { ln, err = net.Listen("tcp4", wireAddr+":7777") })
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan int64)
	go func() {
		n := int64(-1)
		if c, err := ln.Accept(); err == nil {
			n, _ = io.Copy(io.Discard, c)
			c.Close()
		}
		got <- n
	}()
	w.inside.Do(t, func() { conn, err = net.Dial("tcp4", wireAddr+":7777") })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(payload); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if n := <-got; n != int64(len(payload)) {
		t.Fatalf("%d bytes have come through", n)
	}
	r := interrupt(t, cmd)
	if !strings.HasSuffix(r.err, " 0 lost for want of room\n") {
		t.Fatal(r.err)
	}
	stream, first, supers := make([]byte, len(payload)), uint32(0), 0
	for _, s := range readPcapFile(t, file) {
		tcp, ok := gopacket.NewPacket([]byte(s.frame), layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeTCP).(*layers.TCP)
		if !ok {
			continue
		}
		if tcp.SYN {
			first = tcp.Seq + 1
		} else if len(tcp.Payload) > 0 { // again where it was repeated
			copy(stream[tcp.Seq-first:], tcp.Payload)
		}
		if s.length > 1514 {
			supers++
		}
		if s.length != len(s.frame) {
			t.Errorf("%d of %d bytes", len(s.frame), s.length)
		}
	}
	if !bytes.Equal(stream, payload) {
		t.Error("what was captured is not what was sent")
	}
	if supers == 0 {
		t.Error("there was no super-packet")
	}
	w.must(t, "link del c1")
}

// What is captured goes, and the capture ends and says so. An empty file is a file.
func TestCaptureGone(t *testing.T) {
	w := newWorld(t)
	w.must(t, "parent attach eth0")
	w.must(t, "link add link eth0 c1 type macvlan mode bridge")
	file := filepath.Join(t.TempDir(), "none")
	sub, parent := w.watching(t, "capture c1 -w "+file), w.watching(t, "capture eth0")
	w.must(t, "link del c1")
	if r := wait(t, sub); r.code != exitOK || r.err != "c1 is gone\n0 frames captured, 0 lost for want of room\n" {
		t.Errorf("exit status %d\n%s%s", r.code, r.out, r.err)
	}
	if frames := readPcapFile(t, file); len(frames) != 0 {
		t.Errorf("%d frames", len(frames))
	}
	w.must(t, "parent detach eth0")
	if r := wait(t, parent); r.code != exitOK || !strings.HasPrefix(r.err, "eth0 is gone\n") {
		t.Errorf("exit status %d\n%s%s", r.code, r.out, r.err)
	}
}

func TestCaptureRefused(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add --datapath kernel link eth0 c1 type macvlan mode bridge")
	w.refuses(t, map[string]refusal{
		"capture":                {exitUsage, "say which"},
		"capture c1":             {exitFail, "sub-interface c1|not supported|kernel rung|tcpdump -i c1"},
		"capture eth0 -w /tmp/x": {exitFail, "parent eth0|not supported|kernel rung"},
		"capture c2":             {exitFail, "c2|not found"},
		"capture c1 in out":      {exitUsage, "in out"},
		"capture c1 -c -1":       {exitUsage, "count"},
		"capture c1 -s -1":       {exitUsage, "snaplen"},
		"capture c1 -c x":        {exitUsage, "count"},
		"capture c1 everything":  {exitUsage, "everything"},
		"capture c1 --write":     {exitUsage, "write"},
	})
	w.must(t, "link del c1")
	w.must(t, "link add --datapath tc link eth0 c1 type macvlan mode bridge")
	r := w.xvlan(t, "capture", "c1", "-w", filepath.Join(t.TempDir(), "no", "such"))
	r.refused(t, exitFail)
	if bits := w.watchedBits(t); bits != 0 {
		t.Errorf("watched by %b, and nobody does", bits)
	}
	lab.Eventually(t, "nobody has the lock of a place", func() bool {
		locks, err := filepath.Glob(fmt.Sprintf("%s/watch-%d-*", lockDir, w.cookie))
		return err == nil && len(locks) == 0
	})
	w.must(t, "link del c1")
}
