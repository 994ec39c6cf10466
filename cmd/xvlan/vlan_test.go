package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// vlanJSON is what `link show -j` says of VLANs.
type vlanJSON struct {
	Name  string      `json:"ifname"`
	VLAN  uint16      `json:"vlan"`
	Outer uint16      `json:"qinq"`
	Trunk []rangeJSON `json:"vlans"`
}

// The words for VLANs are said, shown and changed, and printed as a file that changes
// nothing and brings back all that there was.
func TestVLANWords(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot(t)
	w.must(t, "link add link eth0 a1 vlan 10 address "+subMAC+" type macvlan mode bridge")
	w.must(t, "link add link eth0 a2 qinq 20 vlan 10 address "+subMAC+" guard on type macvlan mode bridge")
	w.must(t, "link add link eth0 a3 vlan 4094 addr "+subAddr+"/24 type ipvlan mode l2")
	w.must(t, "link add link eth0 t1 trunk 0,20-29,11 type macvlan mode vepa")
	w.must(t, "link add link eth0 t2 vlan 5 trunk 30 bcrate 50 type macvlan mode private")
	shown := w.must(t, "link show -d")
	for _, line := range []string{"vlan 10", "vlan 10 qinq 20", "vlan 4094", "trunk 0,11,20-29", "vlan 5 trunk 30"} {
		if !strings.Contains(shown, "\n    "+line+"\n") {
			t.Errorf("no %q in\n%s", line, shown)
		}
	}
	var links []vlanJSON
	if err := json.Unmarshal([]byte(w.must(t, "-j link show")), &links); err != nil {
		t.Fatal(err)
	}
	want := "[{a1 10 0 []} {a2 10 20 []} {a3 4094 0 []} {t1 0 0 [{0 0} {11 0} {20 29}]} {t2 5 0 [{30 0}]}]"
	if got := fmt.Sprint(links); got != want {
		t.Errorf("JSON says %s\nwant %s", got, want)
	}

	config := w.must(t, "config")
	file := w.fileOf(t, config)
	if out := w.must(t, "apply -f "+file); !strings.Contains(out, "as it should be") && strings.Contains(out, "vlan") {
		t.Errorf("what config prints changes:\n%s", out)
	}
	w.must(t, "link set a1 vlan 11 qinq 12")
	w.must(t, "link set a2 guard off vlan off trunk 40")
	w.must(t, "link set t1 vlan 6 trunk 1-4")
	w.must(t, "link set t2 trunk off")
	shown = w.must(t, "link show -d")
	for _, line := range []string{"vlan 11 qinq 12", "trunk 40", "vlan 6 trunk 1-4", "vlan 5"} {
		if !strings.Contains(shown, "\n    "+line+"\n") {
			t.Errorf("no %q in\n%s", line, shown)
		}
	}
	for range 2 {
		w.must(t, "apply -f "+file)
		if got := w.must(t, "config"); got != config {
			t.Errorf("apply made of it\n%s\nwant\n%s", got, config)
		}
		w.must(t, "parent detach eth0") // and then from nothing
	}
	w.same(t, before)
}

// A trace says whom a frame with a tag is for, and what becomes of the tag.
func TestVLANTrace(t *testing.T) {
	w := newWorld(t)
	for i, words := range []string{"vlan 10", "vlan 10 qinq 20", "vlan 30"} {
		w.must(t, fmt.Sprintf("link add link eth0 a%d netns %s addr %s/24 up %s type macvlan mode bridge", i, w.inside.Name(), subAddr, words))
	}
	for line, want := range map[string]string{
		"trace eth0 vlan 10 ip " + wireAddr + " " + subAddr:                            "in vlan 10, which is claimed|loses its tags|to a0,",
		"trace eth0 vlan 10 qinq 20 ip " + wireAddr + " " + subAddr:                    "in vlan 10 qinq 20, which is claimed|to a1,",
		"trace eth0 from a2 dst " + wireMAC + " ip " + subAddr + " " + wireAddr:        "gets the tags of vlan 30|out of eth0",
		"trace eth0 from a1 vlan 5 dst " + wireMAC + " ip " + subAddr + " " + wireAddr: "drop_tag",
	} {
		out := w.must(t, line)
		for piece := range strings.SplitSeq(want, "|") {
			if !strings.Contains(out, piece) {
				t.Errorf("%s does not say %q:\n%s", line, piece, out)
			}
		}
	}
	w.must(t, "parent detach eth0")
}

// What does not go with VLANs is refused by name, and changes nothing.
func TestVLANRefused(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add link eth0 c1 vlan 10 address "+subMAC+" addr "+subAddr+"/24 type macvlan mode bridge")
	w.must(t, "link add link eth0 c2 host on type macvlan mode bridge")
	w.host.Run(t, "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1p")
	if lab.HasKind(t, "vlan") {
		w.host.Run(t, "ip", "link", "add", "link", "eth0", "name", "eth0.7", "type", "vlan", "id", "7")
		w.host.Run(t, "ip", "link", "set", "eth0.7", "netns", w.inside.Name())
		w.host.Run(t, "ip", "link", "add", "link", "eth0", "name", "eth0.8", "type", "vlan", "proto", "802.1ad", "id", "8")
	}
	all := map[string]refusal{
		"link add link eth0 c3 vlan 0 type macvlan":                                        {exitFail, `vlan "0"|1 to 4094`},
		"link add link eth0 c3 vlan 4095 type macvlan":                                     {exitFail, `vlan "4095"|1 to 4094`},
		"link add link eth0 c3 vlan type macvlan":                                          {exitFail, `vlan "type"`},
		"link add link eth0 c3 qinq 20 type macvlan":                                       {exitFail, "qinq 20|vlan ID"},
		"link add link eth0 c3 trunk 1,2-,3 type macvlan":                                  {exitFail, `trunk "1,2-,3"|"2-"`},
		"link add link eth0 c3 trunk 9-8 type macvlan":                                     {exitFail, `"9-8"`},
		"link add link eth0 c3 trunk 4095 type macvlan":                                    {exitFail, `"4095"`},
		"link add link eth0 c3 trunk 1,,2 type macvlan":                                    {exitFail, `""`},
		"link add link eth0 c3 vlan 5 trunk 0,1 type macvlan":                              {exitFail, "trunk 0-1|VLAN 5"},
		"link add link eth0 c3 vlan 5 trunk 4-6 type macvlan":                              {exitFail, "trunk 4-6|VLAN 5"},
		"link add link eth0 c3 vlan 5 qinq 6 trunk 4 type macvlan":                         {exitFail, "qinq 6|trunk"},
		"link add link eth0 c3 trunk 4 addr 10.0.0.1 type macvlan":                         {exitFail, "addr 10.0.0.1|untagged"},
		"link add link eth0 c3 trunk 4 guard on type macvlan":                              {exitFail, "trunk|guard"},
		"link add link eth0 c3 trunk 4 type ipvlan mode l2":                                {exitFail, "trunk|ipvlan"},
		"link add link eth0 c3 trunk 4 delivery xdp type macvlan":                          {exitFail, "delivery xdp|trunk"},
		"link add link eth0 c3 vlan 4 host on type ipvlan mode l2":                         {exitFail, "vlan|host off"},
		"link add link eth0 c3 vlan 4 type ipvlan mode l3":                                 {exitFail, "vlan|mode l3"},
		"link add link eth0 c3 vlan 4 type ipvlan mode l3s":                                {exitFail, "vlan|mode l3s"},
		"link add link eth0 c3 vlan 4 type macvlan mode passthru":                          {exitFail, "vlan|mode passthru"},
		"link add link eth0 c3 trunk 4 type macvlan mode source":                           {exitFail, "trunk|mode source"},
		"link add link eth1 c3 vlan 4 type macvlan --datapath kernel":                      {exitFail, "vlan|kernel"},
		"link add link eth0 c3 vlan 10 address " + subMAC + " type macvlan mode bridge":    {exitFail, "address " + subMAC},
		"link add link eth0 c3 trunk 9-20 address " + subMAC + " type macvlan mode bridge": {exitFail, "address " + subMAC},
		"link add link eth0 c3 vlan 10 addr " + subAddr + "/24 type ipvlan mode l2":        {exitFail, "addr " + subAddr + "|c1"},
		"link set c1 host on":                  {exitFail, "vlan|host off"},
		"link set c1 type macvlan mode source": {exitFail, "vlan|mode source"},
		"link set c2 vlan 10":                  {exitFail, "vlan|host off"},
		"link set c1 qinq 10 vlan off":         {exitFail, "qinq 10|vlan ID"},
		"link set c1 trunk 10":                 {exitFail, "trunk 10|VLAN 10"},
		"link set c1 vlan off trunk 11":        {exitFail, "addr " + subAddr},
	}
	if lab.HasKind(t, "vlan") {
		maps.Copy(all, map[string]refusal{
			"link add link eth0 c3 vlan 7 type macvlan mode bridge":        {exitFail, "vlan 7|VLAN device"},
			"link add link eth0 c3 trunk 1-9 type macvlan mode bridge":     {exitFail, "vlan 7|VLAN device"},
			"link add link eth0 c3 vlan 1 qinq 8 type macvlan mode bridge": {exitFail, "vlan 8|VLAN device"},
			"link set c1 vlan 7": {exitFail, "vlan 7|VLAN device"},
		})
	}
	w.refuses(t, all)
	w.must(t, "link add link eth0 c3 vlan 8 type macvlan mode bridge")
	w.must(t, "link add link eth0 c4 vlan 7 qinq 9 type macvlan mode bridge")
	w.must(t, "parent detach eth0")
}
