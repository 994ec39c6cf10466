package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// What a shell is told to go on with. A line of ip's words is read by the same
// functions as when it is run: they say which keyword has no value yet, and
// where a keyword is next it is one of these.
var keywords = map[string][]string{
	"add":    {"link", "name", "dev", "address", "addr", "mtu", "netns", "up", "host", "via-host", "delivery", "leg", "guard", "bcrate", "vlan", "qinq", "trunk", "type"},
	"set":    {"dev", "link", "netns", "host", "via-host", "delivery", "guard", "bcrate", "vlan", "qinq", "trunk", "type"},
	"del":    {"dev", "link", "netns"},
	"show":   {"dev", "link", "netns"},
	"attach": {"unknown", "capacity"},
	"trace":  {"from", "netns", "hex", "pcap", "frame", "src", "dst", "vlan", "qinq", "len", "ip", "arp", "nd", "proto", "sport", "dport"},

	"monitor": {"dev", "link", "netns", "drops", "learned", "links"},
	"capture": {"dev", "link", "netns", "in", "out"},

	"add macvlan": {"mode", "macaddr", "nopromisc", "nodst", "bcqueuelen", "bclim"},
	"add ipvlan":  {"mode", "bridge", "private", "vepa", "dhcp"},
	"set macvlan": {"mode", "macaddr", "bcqueuelen", "bclim"},
	"set ipvlan":  {"mode", "bridge", "private", "vepa", "dhcp"},
}

// fixedValues are those of keywords that take one of a few words.
var fixedValues = map[string][]string{
	"add macaddr": {"add", "set"},
	"set macaddr": {"add", "del", "set", "flush"},
	"datapath":    {"xdp", "tc", "kernel"},
	"delivery":    {"auto", "xdp"},
	"dhcp":        {"on", "off"},
	"host":        {"on", "off"},
	"leg":         {"veth", "netkit"},
	"guard":       {"off", "on", "on,router", "on,dhcp", "on,given"},
	"bcrate":      {"off"},
	"proto":       {"udp", "tcp", "icmp"},
	"type":        {"macvlan", "ipvlan"},
	"unknown":     {"pass", "drop"},
	"set vlan":    {"off"},
	"set trunk":   {"off"},
	"via-host":    {"off"},
}

// completeWords makes a command complete what it reads with words.
func (a *app) completeWords(cmd *cobra.Command, what string) {
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if strings.Contains(typed, "/") { // a namespace's path
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.nextWords(what, args), cobra.ShellCompDirectiveNoFileComp
	}
}

// nextWords lists what may stand behind args.
func (a *app) nextWords(what string, args []string) []cobra.Completion {
	w := &words{left: args}
	var named bool // the sub-interface, or parent, has been named
	switch what {
	case "add":
		spec, _ := parseAdd(w) // what is missing is what is asked for
		named = spec.Name != ""
	case "attach":
		name, _, _ := parseAttach(w)
		named = name != ""
	case "trace":
		req, _ := parseTraceWords(w)
		named = req.parent != ""
	case "monitor":
		spec, _ := parseMonitor(w)
		named = spec.Target.Name != ""
	case "capture":
		var spec captureSpec
		_ = spec.parse(w)
		named = spec.target.Name != ""
	default:
		var to *target
		if i := slices.Index(args, "type"); what == "set" && i > 0 {
			w.left = args[i+1:]
			_, _ = w.parseType(w.value("type"))
			break
		} else if what == "set" {
			to = &target{}
		}
		sel, _ := parseSelector(w, to)
		named = sel.Name != ""
	}
	switch {
	case w.asked != "":
		return a.valuesOf(what, w)
	case w.err != nil:
		return nil
	case w.kind != "":
		return unsaid(keywords[what+" "+w.kind], args)
	}
	next := unsaid(keywords[what], args)
	if named {
		next = slices.DeleteFunc(next, func(word string) bool { return word == "name" || word == "dev" })
	} else if what == "attach" {
		next = append(a.devices(), next...)
	} else if what == "trace" {
		return a.parents()
	} else if what != "add" {
		next = append(a.links(), next...)
		if what == "monitor" || what == "capture" {
			next = append(a.parents(), next...)
		}
	}
	return next
}

// unsaid are those that may be said, again if they may be often.
func unsaid(all, said []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(word string) bool { return word != "addr" && slices.Contains(said, word) })
}

func (a *app) valuesOf(what string, w *words) []cobra.Completion {
	switch w.asked {
	case "link":
		if what == "add" {
			return a.devices()
		}
		return a.parents()
	case "name", "dev":
		if what != "add" {
			return a.links()
		}
	case "from":
		return append(a.links(), "wire", "host")
	case "netns":
		return namespaces()
	case "mode":
		var modes []string
		kind := map[string]maps.Kind{"macvlan": maps.Macvlan, "ipvlan": maps.Ipvlan}[w.kind]
		for _, m := range ipModes[kind] {
			modes = append(modes, m.name)
		}
		return modes
	}
	if values, ok := fixedValues[what+" "+w.asked]; ok {
		return values
	}
	return fixedValues[w.asked]
}

// completeFirst makes a command complete its only argument.
func completeFirst(cmd *cobra.Command, values func() []cobra.Completion) {
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return values(), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlags makes all flags complete that take one of a few words.
func completeFlags(cmd *cobra.Command) {
	each := func(f *pflag.Flag) {
		values := func() []string { return fixedValues[f.Name] }
		if c, ok := f.Value.(choice); ok {
			values = func() []string { return c.of }
		} else if f.Name == "netns" {
			values = namespaces
		} else if fixedValues[f.Name] == nil {
			return
		}
		err := cmd.RegisterFlagCompletionFunc(f.Name, func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return values(), cobra.ShellCompDirectiveNoFileComp
		})
		if err != nil {
			panic(err) // a flag that has one already
		}
	}
	cmd.LocalNonPersistentFlags().VisitAll(each)
	cmd.PersistentFlags().VisitAll(each)
	for _, sub := range cmd.Commands() {
		completeFlags(sub)
	}
}

// names asks the host for what can be said. A shell has no place for errors, but
// in the file that BASH_COMP_DEBUG_FILE names.
func (a *app) names(ask func(*loader.Host) ([]cobra.Completion, error)) (found []cobra.Completion) {
	err := a.with(func(h *loader.Host) (err error) {
		found, err = ask(h)
		return err
	})
	if err != nil {
		cobra.CompDebugln(oneLine(err), false)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// offer adds a word and what a shell shows beside it; one that would do something
// to a terminal is not offered.
func offer(all []cobra.Completion, word, what string) []cobra.Completion {
	if printable(word) != word || strings.ContainsAny(word, " \t") {
		return all
	}
	if what != "" {
		word = cobra.CompletionWithDesc(word, what)
	}
	return append(all, word)
}

// links are the sub-interfaces of this namespace's parents.
func (a *app) links() []cobra.Completion {
	return a.names(func(h *loader.Host) (all []cobra.Completion, err error) {
		links, err := h.Links()
		for _, l := range links {
			all = offer(all, l.Name, fmt.Sprintf("%s %s on %s", l.Kind, l.Mode, l.Parent))
		}
		return all, err
	})
}

// parents are those that there are.
func (a *app) parents() []cobra.Completion {
	return a.names(func(h *loader.Host) (all []cobra.Completion, err error) {
		parents, err := h.Parents()
		for _, p := range parents {
			all = offer(all, p.Name, fmt.Sprintf("%s, sub-interfaces: %d", p.Rung, p.Links))
		}
		return all, err
	})
}

// devices are what can be a parent.
func (a *app) devices() []cobra.Completion {
	return a.names(func(h *loader.Host) (all []cobra.Completion, err error) {
		links, err := h.Candidates()
		for _, l := range links {
			all = offer(all, l.Attrs().Name, l.Type())
		}
		return all, err
	})
}

// namespaces are the named ones.
func namespaces() (all []cobra.Completion) {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		cobra.CompDebugln(err.Error(), false) // or there are none
	}
	for _, e := range entries {
		all = offer(all, e.Name(), "")
	}
	return all
}
