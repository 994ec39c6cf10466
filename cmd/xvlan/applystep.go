package main

import (
	"fmt"
	"strings"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// A step is one change on the way to what a file wants.
type step struct {
	Action  string   `json:"action"` // add, change or remove
	Object  string   `json:"object"` // parent or link
	Name    string   `json:"ifname"`
	Parent  string   `json:"link,omitempty"`
	Netns   string   `json:"parent_netns,omitempty"` // where the parent is, if not where the command acts
	Changes []change `json:"changes,omitempty"`
	Done    bool     `json:"done"`

	words string // behind the name, for people
	at    position
	do    func(h *loader.Host) error
}

// A change is what a key was and is to be.
type change struct {
	Key  string `json:"key"`
	From string `json:"from"`
	To   string `json:"to"`
}

func (c change) String() string { return fmt.Sprintf("%s %s -> %s", c.Key, c.From, c.To) }

func joinChanges(changes []change) string {
	var all []string
	for _, c := range changes {
		all = append(all, c.String())
	}
	return strings.Join(all, ", ")
}

var signs = map[string]string{"add": "+", "change": "~", "remove": "-"}

func (s *step) String() string {
	var b strings.Builder
	b.WriteString(signs[s.Action])
	if s.Netns != "" {
		fmt.Fprintf(&b, " -n %s", s.Netns)
	}
	fmt.Fprintf(&b, " %s %s", s.Object, s.Name)
	if s.words != "" && s.words[0] != ':' {
		b.WriteByte(' ')
	}
	b.WriteString(s.words)
	return printable(b.String())
}

// addWords are those that `link add` takes behind the name.
func addWords(spec *loader.LinkSpec) string {
	words := []string{"link", spec.Parent}
	say := func(w ...string) { words = append(words, w...) }
	if spec.Netns != "" {
		say("netns", spec.Netns)
	}
	if spec.MAC != nil {
		say("address", spec.MAC.String())
	}
	for _, a := range spec.Addrs {
		say("addr", a.String())
	}
	if spec.MTU != 0 {
		say("mtu", fmt.Sprint(spec.MTU))
	}
	if spec.Up {
		say("up")
	}
	if spec.Port {
		say("delivery", "xdp")
	}
	if spec.Host {
		say("host", onOff(true))
	}
	if len(spec.Via) > 0 {
		say("via-host", strings.Join(stringsOf(spec.Via), ","))
	}
	if spec.Netkit {
		say("leg", "netkit")
	}
	if spec.Guard.Guard != nil {
		say("guard", spec.Guard.Guard.String())
	}
	if spec.Guard.Rate != nil {
		say("bcrate", rateWord(*spec.Guard.Rate))
	}
	if v := spec.VLAN.Of(loader.VLAN{}); v != (loader.VLAN{}) {
		say(v.String())
	}
	if spec.Datapath != "" {
		say("datapath", string(spec.Datapath))
	}
	say("type", spec.Kind.String(), "mode", spec.Mode.String())
	if flag := flagOf(spec); flag != "" {
		say(flag)
	}
	if spec.DHCP != nil {
		say("dhcp", onOff(*spec.DHCP))
	}
	if macs := spec.Source.MACs; len(macs) > 0 {
		say("macaddr set", listWord(macs))
	}
	if spec.Queue.Len != nil {
		say("bcqueuelen", fmt.Sprint(*spec.Queue.Len))
	}
	if spec.Queue.Limit != nil {
		say("bclim", fmt.Sprint(*spec.Queue.Limit))
	}
	return strings.Join(words, " ")
}

// flagOf names the flag of a sub-interface, "" for none.
func flagOf(spec *loader.LinkSpec) string {
	switch {
	case spec.Flag != 0:
		return spec.Flag.String()
	case spec.NoPromisc:
		return "nopromisc"
	case spec.Source.NoDst && spec.Mode == maps.Source:
		return "nodst"
	}
	return ""
}

func portWord(port bool) string {
	if port {
		return "xdp"
	}
	return "auto"
}

func rateWord(rate uint32) string {
	if rate == 0 {
		return "off"
	}
	return fmt.Sprint(rate)
}

func netnsWord(netns string) string {
	if netns == "" {
		return "the parent's"
	}
	return netns
}

func listWord[T fmt.Stringer](all []T) string { return orNone(strings.Join(stringsOf(all), " ")) }

func stringsOf[T fmt.Stringer](all []T) (words []string) {
	for _, x := range all {
		words = append(words, x.String())
	}
	return words
}
