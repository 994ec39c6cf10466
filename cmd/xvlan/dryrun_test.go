package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// A dryTrace is what `trace -j` prints.
type dryTrace struct {
	Frame    string
	Programs []struct {
		Program, Dev, Fate string
		Steps              []struct{ Step, Ifname, Verdict, Text string }
	}
}

// told is a trace's programs with their fates, and its verdicts.
func (d dryTrace) told() (fates, verdicts []string) {
	for _, p := range d.Programs {
		fates = append(fates, p.Program+" on "+p.Dev+": "+p.Fate)
		for _, s := range p.Steps {
			if s.Step == "verdict" {
				verdicts = append(verdicts, s.Ifname+" "+s.Verdict)
			}
		}
	}
	return fates, verdicts
}

// What becomes of frames on both rungs, and with either kind of legs, is told in
// full, and leaves no trace in counters and addresses.
func TestTrace(t *testing.T) {
	bpfRungs(t, func(t *testing.T, w *world) {
		inside := w.inside.Name()
		w.must(t, "link add link eth0 c1 leg "+w.leg+" netns "+inside+" address "+subMAC+" addr "+subAddr+"/24 up type macvlan mode bridge")
		w.must(t, "link add link eth0 i1 leg "+w.leg+" netns "+inside+" addr 10.77.0.11/24 up host on type ipvlan mode l2")
		w.must(t, "link add link eth0 down1 netns "+inside+" addr 10.77.0.12/24 type macvlan mode bridge")
		w.must(t, "link add link eth0 v1 leg "+w.leg+" netns "+inside+" addr 10.77.0.13/24 up via-host 10.96.0.0/12 type macvlan mode private")
		before := w.must(t, "-j -s link show") + w.must(t, "-j parent show")
		rx := func(fate string) []string {
			all := []string{"xvlan_rx on eth0: " + fate}
			if w.rung == "xdp" {
				all = append([]string{"xvlan_xdp on eth0: on to xvlan_rx"}, all...)
			}
			return all
		}
		dropped := []string{"xvlan_xdp on eth0: dropped"}
		if w.rung == "tc" {
			dropped = []string{"xvlan_rx on eth0: dropped"}
		}
		for _, c := range []struct {
			line            string
			fates, verdicts []string
		}{
			{"ip 10.77.0.254 " + subAddr, rx("to c1, straight into its namespace"), []string{"c1 rx"}},
			{"ip 10.77.0.254 10.77.0.11 proto tcp dport 80", rx("to i1, straight into its namespace"), []string{"i1 rx"}},
			{"arp 10.77.0.254 " + subAddr, rx("to c1, by its host leg"), []string{"c1 rx"}},
			{"ip 10.77.0.254 255.255.255.255", rx("on to the host's stack"), []string{"c1 rx", "i1 rx", "v1 rx", "eth0 pass"}},
			{"dst " + parentMAC + " ip 10.77.0.254 " + hostAddr, rx("on to the host's stack"), []string{"eth0 pass"}},
			{"dst 02:00:00:00:77:99 ip 10.77.0.254 10.77.0.99", dropped, []string{"eth0 drop_unknown"}},
			{"ip 10.77.0.254 10.77.0.12", dropped, []string{"eth0 drop_unknown"}},
			{"from c1 ip 10.77.0.10 10.77.0.11", []string{"xvlan_tx on xv2-1: to i1, straight into its namespace"}, []string{"c1 tx", "i1 rx"}},
			{"from i1 netns " + inside + " arp 10.77.0.77 10.77.0.254", []string{"xvlan_tx on xv2-2: out of eth0"}, []string{"i1 tx", "c1 rx"}},
			{"from i1 dst 02:00:00:00:77:fe len 2000 ip 10.77.0.11 10.77.0.254", []string{"xvlan_tx on xv2-2: dropped"}, []string{"i1 drop_mtu"}},
			{"from i1 dst " + parentMAC + " ip 10.77.0.11 " + hostAddr, []string{"xvlan_tx on xv2-2: to the host, as if come in by eth0"}, []string{"i1 tx"}},
			{"from v1 dst 02:00:00:00:77:fe ip 10.77.0.13 10.96.0.1", []string{"xvlan_tx on xv2-4: to the host, as if come in by eth0"}, []string{"v1 tx"}},
			{"from v1 dst 02:00:00:00:77:fe ip 10.77.0.13 10.112.0.1", []string{"xvlan_tx on xv2-4: out of eth0"}, []string{"v1 tx"}},
			{"from v1 arp 10.77.0.13 10.96.0.1", []string{"xvlan_tx on xv2-4: to v1, straight into its namespace"}, []string{"v1 tx", "v1 rx"}},
			{"from host ip " + hostAddr + " 10.77.0.11", []string{"xvlan_host on eth0: to i1, by its host leg"}, []string{"eth0 tx", "i1 rx"}},
			{"from host arp " + hostAddr + " 10.77.0.11", []string{"xvlan_host on eth0: to i1, by its host leg"}, []string{"eth0 tx", "i1 rx"}},
			{"from host ip " + hostAddr + " " + subAddr, []string{"xvlan_host on eth0: on its way out of eth0"}, []string{"eth0 tx"}},
		} {
			t.Run(c.line, func(t *testing.T) {
				var got dryTrace
				unmarshal(t, w.must(t, "-j trace eth0 "+c.line), &got)
				fates, verdicts := got.told()
				if !slices.Equal(fates, c.fates) || !slices.Equal(verdicts, c.verdicts) {
					raw, _ := json.MarshalIndent(got, "", " ")
					t.Errorf("fates %q, want %q; verdicts %q, want %q\n%s", fates, c.fates, verdicts, c.verdicts, raw)
				}
			})
		}
		if out := w.must(t, "trace eth0 ip 10.77.0.254 10.77.0.12"); !strings.Contains(out, "not taken: it is down") || !strings.Contains(out, "\n  => dropped\n") {
			t.Errorf("that it is down is not said in\n%s", out)
		}
		if out := w.must(t, "trace eth0 from i1 arp 10.77.0.77 10.77.0.254"); !strings.Contains(out, "would be learned") {
			t.Errorf("that an address would be learned is not said in\n%s", out)
		}
		if out := w.must(t, "trace eth0 from v1 dst 02:00:00:00:77:fe ip 10.77.0.13 10.96.0.1"); !strings.Contains(out, "it reaches that by way of the host") {
			t.Errorf("that it goes by way of the host is not said in\n%s", out)
		}
		if after := w.must(t, "-j -s link show") + w.must(t, "-j parent show"); after != before {
			t.Errorf("before\n%s\nafter\n%s", before, after)
		}
	})
}

// Of one with a guard each reason is told.
func TestTraceGuard(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add link eth0 c1 address "+subMAC+" addr "+subAddr+"/24 up guard on type macvlan mode bridge")
	for line, want := range map[string]string{
		"ip " + subAddr + " 10.77.0.254": "c1 tx", "ip 10.77.0.254 10.77.0.1": "c1 drop_source_ip", "arp 10.77.0.254 10.77.0.1": "c1 drop_arp",
		"vlan 5 ip " + subAddr + " 10.77.0.254": "c1 drop_tag", "ip " + subAddr + " 10.77.0.254 dport 68": "c1 drop_dhcp",
		"src 02:00:00:00:77:98 ip " + subAddr + " 10.77.0.254": "c1 drop_source_mac",
	} {
		var got dryTrace
		unmarshal(t, w.must(t, "-j trace eth0 from c1 dst 02:00:00:00:77:fe "+line), &got)
		if _, verdicts := got.told(); !slices.Equal(verdicts, []string{want}) {
			t.Errorf("%s: %q, want %s", line, verdicts, want)
		}
	}
	w.must(t, "link del c1")
}

// A frame is the same whether described, in hex, or in a file of either form.
func TestTraceFrames(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add link eth0 c1 address "+subMAC+" addr "+subAddr+"/24 up type macvlan mode bridge")
	var said, got dryTrace
	unmarshal(t, w.must(t, "-j trace eth0 ip 10.77.0.254 "+subAddr+" proto icmp"), &said)
	unmarshal(t, w.must(t, "-j trace eth0 hex "+said.Frame), &got)
	if got.Frame != said.Frame {
		t.Errorf("by hex it is %s, was %s", got.Frame, said.Frame)
	}
	frame, err := (&frameWords{hex: said.Frame}).build(nil, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	info := gopacket.CaptureInfo{Timestamp: time.Unix(0, 0), CaptureLength: len(frame), Length: len(frame)}
	other := append(slices.Clone(frame), 1, 2, 3)
	long := gopacket.CaptureInfo{Timestamp: info.Timestamp, CaptureLength: len(other), Length: len(other)}
	for name, write := range map[string]func(f *os.File) error{
		"a.pcap": func(f *os.File) error {
			pw := pcapgo.NewWriter(f)
			pw.WriteFileHeader(65535, layers.LinkTypeEthernet)
			pw.WritePacket(long, other)
			return pw.WritePacket(info, frame)
		},
		"a.pcapng": func(f *os.File) error {
			pw, err := pcapgo.NewNgWriter(f, layers.LinkTypeEthernet)
			if err != nil {
				return err
			}
			pw.WritePacket(long, other)
			pw.WritePacket(info, frame)
			return pw.Flush()
		},
	} {
		file := filepath.Join(dir, name)
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := write(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		unmarshal(t, w.must(t, "-j trace eth0 pcap "+file+" frame 2"), &got)
		if got.Frame != said.Frame {
			t.Errorf("%s: frame is %s, was %s", name, got.Frame, said.Frame)
		}
		r := w.xvlan(t, strings.Fields("trace eth0 pcap "+file+" frame 3")...)
		r.refused(t, exitUsage)
		r.says(t, "frame 3|has 2")
	}
	w.must(t, "link del c1")
}

func TestTraceRefused(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add link eth0 c1 type macvlan mode bridge")
	defer w.must(t, "link del c1")
	for line, want := range map[string]string{
		"trace":               "parent|say which",
		"trace eth0":          "frame|hex",
		"trace eth0 hex 0011": "frame|2 bytes",
		"trace eth0 hex 0x":   "frame|0 bytes",
		"trace eth0 hex zz":   "hex|invalid",
		"trace eth0 hex 00 arp 10.0.0.1 10.0.0.2":    "frame|given already",
		"trace eth0 hex 00 vlan 3":                   "frame|given already",
		"trace eth0 ip 10.0.0.1":                     "ip|value is missing",
		"trace eth0 ip 10.0.0.1 ::1":                 "IPv4 and IPv6",
		"trace eth0 arp ::1 ::2":                     "arp|nd",
		"trace eth0 nd 10.0.0.1 10.0.0.2":            "nd|arp",
		"trace eth0 arp 10.0.0.1 10.0.0.2 proto udp": "arp|proto",
		"trace eth0 ip 10.0.0.1 10.0.0.2 proto sctp": "proto|udp",
		"trace eth0 ip 10.0.0.1 10.0.0.2":            "dst|say the MAC",
		"trace eth0 ip 10.0.0.1 10.0.0.2 vlan 4095":  "vlan|4094",
		"trace eth0 pcap /nonexistent":               "pcap|no such file",
		"trace eth0 pcap /dev/null":                  "pcap /dev/null",
		"trace eth0 len 9000 arp 10.0.0.1 10.0.0.2":  "9000 bytes|longer than",
		"trace eth0 frame 2 arp 10.0.0.1 10.0.0.2":   "frame 2|pcap",
		"trace eth0 from host arp 10.0.0.1 10.0.0.2": "from host|host access",
		"trace eth0 from c2 arp 10.0.0.1 10.0.0.2":   "c2|not found",
		"trace lo arp 10.0.0.1 10.0.0.2":             "lo",
		"trace eth7 arp 10.0.0.1 10.0.0.2":           "eth7|not found",
		"trace eth0 bogus arp 10.0.0.1 10.0.0.2":     "bogus|not known",
	} {
		t.Run(line, func(t *testing.T) {
			r := w.xvlan(t, strings.Fields(line)...)
			if r.code == exitOK {
				t.Fatalf("succeeds:\n%s", r.out)
			}
			r.refused(t, r.code)
			r.says(t, want)
		})
	}
}

// Where the kernel's driver decides, nobody can be asked.
func TestTraceKernelRung(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add link eth0 c1 datapath kernel type macvlan mode bridge")
	for _, from := range []string{"", "from c1 "} {
		r := w.xvlan(t, strings.Fields("trace eth0 "+from+"arp 10.0.0.1 10.0.0.2")...)
		r.refused(t, exitFail)
		r.says(t, "eth0|rung kernel")
	}
	w.must(t, "link del c1")
}
