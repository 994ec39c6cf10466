package main

import (
	"math"
	"net"
	"slices"
	"strings"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// typeWords is what stands behind `type`, in the words of ip link.
type typeWords struct {
	kind      maps.Kind
	mode      maps.Mode  // 0: not said
	flag      maps.Class // of an ipvlan; 0: not said
	noPromisc bool
	noDst     bool
	queue     loader.Queue
	source    *loader.SourceEdit // nil: not said
	dhcp      *bool              // nil: not said
}

// ipModes lists the modes that each type has with ip, the default first.
var ipModes = map[maps.Kind][]struct {
	name string
	mode maps.Mode
}{
	maps.Macvlan: {{"vepa", maps.VEPA}, {"bridge", maps.Bridge}, {"private", maps.Private}, {"passthru", maps.Passthru}, {"source", maps.Source}},
	maps.Ipvlan:  {{"l3", maps.L3}, {"l2", maps.L2}, {"l3s", maps.L3S}},
}

var ipvlanFlags = map[string]maps.Class{"bridge": maps.ClassBridge, "private": maps.ClassPrivate, "vepa": maps.ClassVEPA}

// parseType reads the kind and all that follows it.
func (w *words) parseType(kind string) (typeWords, error) {
	var t typeWords
	if w.err != nil {
		return t, w.err
	}
	if t.kind = w.kindOf(kind); w.err != nil {
		return t, w.err
	}
	w.kind = kind
	for {
		word, ok := w.next()
		if !ok {
			return t, w.err
		}
		if !w.typeWord(word, &t) {
			w.fail(usagef("%s: not known behind type %s; see `xvlan link add --help`", word, kind))
			return t, w.err
		}
	}
}

func (w *words) kindOf(name string) maps.Kind {
	switch name {
	case "macvlan":
		return maps.Macvlan
	case "ipvlan":
		return maps.Ipvlan
	}
	w.fail(usagef("type %s: not known; macvlan and ipvlan are", name))
	return 0
}

// typeWord reads what a sub-interface of its type has, and tells whether the
// word is of that.
func (w *words) typeWord(word string, t *typeWords) bool {
	flag, isFlag := ipvlanFlags[word]
	switch {
	case word == "mode":
		w.mode(t)
	case t.kind == maps.Ipvlan && isFlag:
		t.flag = flag
	case t.kind == maps.Ipvlan && word == "dhcp":
		on := w.onOff(word)
		t.dhcp = &on
	case t.kind == maps.Macvlan && word == "macaddr":
		w.macaddr(t)
	case t.kind == maps.Macvlan && word == "flag":
		w.flag(w.value(word), t)
	case t.kind == maps.Macvlan && (word == "nopromisc" || word == "nodst"):
		w.flag(word, t)
	case t.kind == maps.Macvlan && word == "bcqueuelen":
		n := uint32(w.integer(word, 0, math.MaxUint32))
		t.queue.Len = &n
	case t.kind == maps.Macvlan && word == "bclim":
		n := int32(w.integer(word, math.MinInt32, math.MaxInt32))
		t.queue.Limit = &n
	default:
		return false
	}
	return true
}

func (w *words) mode(t *typeWords) {
	name := w.value("mode")
	var names []string
	for _, m := range ipModes[t.kind] {
		if m.name == name {
			t.mode = m.mode
			return
		}
		names = append(names, m.name)
	}
	w.fail(usagef("mode %s: no mode of %s; these are: %s", name, t.kind, strings.Join(names, ", ")))
}

func (w *words) flag(name string, t *typeWords) {
	switch name {
	case "null":
		t.noPromisc, t.noDst = false, false
	case "nopromisc":
		t.noPromisc = true
	case "nodst":
		t.noDst = true
	default:
		w.fail(usagef("flag %s: not known; null, nopromisc and nodst are", name))
	}
}

// macaddr reads {add|del} MAC, set [MAC...] or flush.
func (w *words) macaddr(t *typeWords) {
	t.source = &loader.SourceEdit{}
	switch verb := w.value("macaddr"); verb {
	case "add":
		t.source.Add = []net.HardwareAddr{w.mac("macaddr add")}
	case "del":
		t.source.Del = []net.HardwareAddr{w.mac("macaddr del")}
	case "flush":
		t.source.Flush = true
	case "set":
		t.source.Flush = true
		for len(w.left) > 0 && strings.Contains(w.left[0], ":") {
			t.source.Add = append(t.source.Add, w.mac("macaddr set"))
		}
	default:
		w.fail(usagef("macaddr %s: not known; add, del, set and flush are", verb))
	}
}

// forAdd makes what was said part of a new sub-interface's description; what
// was not is as with ip.
func (t *typeWords) forAdd(spec *loader.LinkSpec) error {
	spec.Kind, spec.Mode, spec.Flag, spec.NoPromisc, spec.Queue, spec.DHCP = t.kind, t.mode, t.flag, t.noPromisc, t.queue, t.dhcp
	if spec.Mode == 0 {
		spec.Mode = ipModes[t.kind][0].mode
	}
	if t.noPromisc && spec.Mode != maps.Passthru {
		return usagef("flag nopromisc: only mode passthru has it")
	}
	if t.noDst && spec.Mode != maps.Source {
		return usagef("flag nodst: only mode source has it")
	}
	if t.source != nil && spec.Mode != maps.Source {
		return usagef("macaddr: only mode source has a list")
	}
	spec.Source.NoDst = t.noDst
	if t.source != nil {
		spec.Source.MACs = slices.DeleteFunc(t.source.Add, func(mac net.HardwareAddr) bool { return mac == nil })
	}
	return nil
}

// forSet makes what was said a change.
func (t *typeWords) forSet() (*loader.ModeChange, error) {
	if t.noPromisc || t.noDst {
		return nil, usagef("flag: it is given when the device is made; delete it and make it anew")
	}
	return &loader.ModeChange{Mode: t.mode, Flag: t.flag, Source: t.source, Queue: t.queue, DHCP: t.dhcp}, nil
}
