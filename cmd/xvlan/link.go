package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xvlan/xvlan/loader"
)

func (a *app) linkCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "link",
		Aliases: []string{"l"},
		Short:   "Make, change, remove and show sub-interfaces",
		RunE:    func(_ *cobra.Command, args []string) error { return a.show(args) },
		Args:    cobra.ArbitraryArgs,
	}
	var datapath string
	add := &cobra.Command{
		Use: `add link PARENT [name|dev] NAME [address MAC] [addr CIDR]... [mtu BYTES]
             [netns NAME|PID|PATH] [up] [host {on|off}] [delivery {auto|xdp}] [leg {veth|netkit}]
             [via-host NET[,NET...]] [guard {off|on[,router][,dhcp][,given]}] [bcrate {FRAMES|off}]
             [vlan ID [qinq OUTER]] [trunk LIST]
             type {macvlan MACVLAN | ipvlan IPVLAN}
  MACVLAN := [mode {vepa|bridge|private|passthru [nopromisc]|source [nodst]}]
             [macaddr {add MAC | set [MAC...]}] [bcqueuelen FRAMES] [bclim DEVICES]
  IPVLAN  := [mode {l3|l2|l3s}] [bridge|private|vepa] [dhcp {on|off}]`,
		Short:   "Make a sub-interface",
		Aliases: []string{"a"},
		Long: `Makes a sub-interface on a parent with the words of ip link, and those few besides
that ip has other commands for. A macvlan is in mode vepa and an ipvlan in mode
l3 with the flag bridge where nothing else is said, as with ip.

  address     its MAC, a random one otherwise; of an ipvlan that which it has inside
  addr        an address that is set on it and given to it, so that nobody else
              has it; may be said again
  mtu         its MTU, up to the parent's
  netns       where it belongs: a name, a process ID or a path
  up          set it up
  host        on: it and the host reach each other
  via-host    networks, separated by commas, that it reaches by way of the host's
              stack: what it sends there is routed and translated as the host has it
  delivery    xdp: XDP programs and AF_XDP sockets on it get its unicast
  leg         netkit: its device is one of a netkit pair instead of veth (Linux 6.8)
  guard       on: what it sends has to be its own: its MAC, its addresses, what it
              says in ARP and neighbour discovery, without tags; nothing that only
              routers and DHCP servers say, unless router and dhcp allow it; from
              no addresses but given ones, where there are any or given is said
  bcrate      broadcasts, ARP and neighbour discovery that it may send a second;
              100 with a guard, off without, where nothing is said
  vlan        the VLAN that it is in, from 1 to 4094: it sends and gets without a tag
              what has that tag on the wire; with trunk that of its untagged frames
  qinq        the service tag (802.1ad) in front of the VLAN's
  trunk       the VLANs that a macvlan has part in with their tags, as in 0,10,20-29;
              0 says that it has untagged frames, too
  macaddr     whose frames a macvlan in mode source receives
  nodst       and nobody else receives them
  nopromisc   leave the parent's promiscuity alone, in mode passthru
  bcqueuelen, bclim   the kernel driver's queue of broadcasts, on the kernel rung
  dhcp        off: leave the DHCP of an ipvlan in mode l2 as it is`,
		Example: `  xvlan link add link eth0 name c1 type macvlan mode bridge
  xvlan link add link eth0 name c2 netns ns2 addr 192.0.2.7/24 up type ipvlan mode l2`,
		RunE: func(_ *cobra.Command, args []string) error {
			spec, err := parseAdd(&words{left: args})
			if err != nil {
				return err
			}
			if datapath != "" {
				if spec.Datapath, err = parseDatapath(datapath); err != nil {
					return err
				}
			}
			return a.with(func(h *loader.Host) error { return h.Add(spec) })
		},
	}
	add.Flags().StringVar(&datapath, "datapath", "", "rung to stand on: xdp, tc or kernel (default: the highest that costs nothing)")
	cmd.AddCommand(add,
		&cobra.Command{
			Use:     "del [dev] NAME [link PARENT] [netns NAME]",
			Short:   "Remove a sub-interface",
			Aliases: []string{"delete", "d"},
			RunE: func(_ *cobra.Command, args []string) error {
				sel, err := parseSelector(&words{left: args}, nil)
				if err != nil {
					return err
				}
				return a.with(func(h *loader.Host) error { return h.Del(sel) })
			},
		},
		&cobra.Command{
			Use: `set [dev] NAME [link PARENT] {netns NAME|PID|PATH | host {on|off} | via-host {NET[,NET...]|off} |
      delivery {auto|xdp} | guard {off|on[,router][,dhcp][,given]} | bcrate {FRAMES|off} |
      vlan {ID [qinq OUTER]|off} | trunk {LIST|off}}
  xvlan link set [dev] NAME [link PARENT] type {macvlan [mode MODE] [macaddr {{add|del} MAC | set [MAC...] | flush}]
      [bcqueuelen FRAMES] [bclim DEVICES] |
             ipvlan [mode MODE] [bridge|private|vepa] [dhcp {on|off}]}`,
			Short: "Move a sub-interface, or change its host access, ways by the host, delivery, guard, VLAN, mode, flag or list of sources",
			RunE:  func(_ *cobra.Command, args []string) error { return a.set(args) },
		},
		&cobra.Command{
			Use:     "show [[dev] NAME] [link PARENT] [netns NAME]",
			Short:   "Show sub-interfaces",
			Aliases: []string{"list", "ls", "s"},
			RunE:    func(_ *cobra.Command, args []string) error { return a.show(args) },
		},
	)
	for _, sub := range cmd.Commands() {
		a.completeWords(sub, sub.Name())
	}
	return cmd
}

// set is `link set`: everything up to `type` selects, or says where to move to.
func (a *app) set(args []string) error {
	var kind []string
	if i := slices.Index(args, "type"); i >= 0 {
		args, kind = args[:i], args[i+1:]
	}
	var to target
	sel, err := parseSelector(&words{left: args}, &to)
	if err != nil {
		return err
	}
	if kind == nil && to == (target{}) {
		return usagef("set %s: say what: netns NAME, host on, via-host NET, delivery xdp, guard on, or type ...; other changes are made with `ip link set`", sel.Name)
	}
	var change *loader.ModeChange
	if kind != nil {
		w := words{left: kind}
		t, err := w.parseType(w.value("type"))
		if err != nil {
			return err
		}
		if change, err = t.forSet(); err != nil {
			return err
		}
	}
	return a.with(func(h *loader.Host) error {
		if to.host != nil && !*to.host { // before a mode that has none
			if err := h.SetHost(sel, false); err != nil {
				return err
			}
		}
		if to.via != nil && len(*to.via) == 0 {
			if err := h.SetVia(sel, nil); err != nil {
				return err
			}
		}
		vlan := func(now bool) error {
			if !now || to.vlan == (loader.VLANSpec{}) {
				return nil
			}
			return h.SetVLAN(sel, to.vlan)
		}
		off := to.vlan.Of(loader.VLAN{}) == loader.VLAN{}
		if err := vlan(off); err != nil { // likewise
			return err
		}
		if change != nil {
			if err := h.SetMode(sel, *change); err != nil {
				return err
			}
		}
		if to.host != nil && *to.host {
			if err := h.SetHost(sel, true); err != nil {
				return err
			}
		}
		if to.via != nil && len(*to.via) > 0 {
			if err := h.SetVia(sel, *to.via); err != nil {
				return err
			}
		}
		if to.port != nil {
			if err := h.SetPort(sel, *to.port); err != nil {
				return err
			}
		}
		if to.guard != (loader.GuardSpec{}) {
			if err := h.SetGuard(sel, to.guard); err != nil {
				return err
			}
		}
		if err := vlan(!off); err != nil {
			return err
		}
		if to.netns == "" { // last, when all that may be refused is through
			return nil
		}
		return h.Move(sel, to.netns)
	})
}

// target is what `link set` makes of a sub-interface, type and mode aside.
type target struct {
	netns string          // "": stays
	port  *bool           // nil: stays
	host  *bool           // nil: stays
	via   *[]netip.Prefix // nil: stays
	guard loader.GuardSpec
	vlan  loader.VLANSpec
}

func parseDatapath(s string) (loader.Datapath, error) {
	d := loader.Datapath(s)
	if !slices.Contains([]loader.Datapath{loader.Auto, loader.XDP, loader.TC, loader.Kernel}, d) {
		return "", usagef("datapath %q: not known; xdp, tc and kernel are", s)
	}
	return d, nil
}

// words reads a command line of ip's kind: keywords with their values.
type words struct {
	left []string
	err  error

	asked string // the keyword whose value there are no more words for
	kind  string // behind `type`, if that has been read
}

func (w *words) next() (string, bool) {
	if w.err != nil || len(w.left) == 0 {
		return "", false
	}
	word := w.left[0]
	w.left = w.left[1:]
	return word, true
}

// value returns what stands behind a keyword.
func (w *words) value(keyword string) string {
	v, ok := w.next()
	if !ok && w.err == nil {
		w.asked = keyword
		w.err = usagef("%s: its value is missing", keyword)
	}
	return v
}

// space returns the namespace behind `netns`, as show prints it: two words where it
// has no name.
func (w *words) space() string {
	v := w.value("netns")
	if v == "nsid" {
		v += " " + w.value("netns nsid")
	}
	return v
}

func (w *words) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// parseAdd reads the words of `link add`, those of `ip link add`.
func parseAdd(w *words) (loader.LinkSpec, error) {
	var (
		spec loader.LinkSpec
		kind string
	)
	for kind == "" {
		word, ok := w.next()
		if !ok {
			break
		}
		switch word {
		case "link":
			spec.Parent = w.value(word)
		case "name", "dev":
			spec.Name = w.value(word)
		case "up":
			spec.Up = true
		case "datapath":
			spec.Datapath = w.datapath()
		case "type":
			kind = w.value(word)
		default:
			if w.linkWord(word, &spec) {
				continue
			}
			if spec.Name != "" {
				hint := "see `xvlan link add --help`"
				if spec.Parent == "" {
					hint = "the parent is said with: link PARENT"
				}
				w.fail(usagef("%s: not known here; %s", word, hint))
				return spec, w.err
			}
			spec.Name = word
		}
	}
	var t typeWords
	if kind != "" {
		t, _ = w.parseType(kind) // w has its error
	}
	switch {
	case w.err != nil:
		return spec, w.err
	case spec.Parent == "":
		return spec, usagef("link: say which parent: link PARENT")
	case spec.Name == "":
		return spec, usagef("name: say what to call it: name NAME")
	case kind == "":
		return spec, usagef("type: say which: type macvlan mode bridge, or type ipvlan mode l2")
	}
	return spec, t.forAdd(&spec)
}

// linkWord reads what a sub-interface of whatever type has, and tells whether
// the word is of that.
func (w *words) linkWord(word string, spec *loader.LinkSpec) bool {
	switch word {
	case "address":
		spec.MAC = w.mac(word)
	case "addr":
		spec.Addrs = append(spec.Addrs, w.prefix(word))
	case "mtu":
		spec.MTU = w.number(word)
	case "netns":
		spec.Netns = w.value(word)
	case "delivery":
		spec.Port = w.delivery()
	case "leg":
		spec.Netkit = w.leg()
	case "host":
		spec.Host = w.onOff(word)
	case "via-host":
		spec.Via = append(spec.Via, w.via()...)
	case "guard", "bcrate":
		w.guard(word, &spec.Guard)
	case "vlan", "qinq", "trunk":
		w.vlan(word, &spec.VLAN)
	default:
		return false
	}
	return true
}

func (w *words) datapath() loader.Datapath {
	d, err := parseDatapath(w.value("datapath"))
	if err != nil {
		w.fail(err)
	}
	return d
}

// delivery reads whether unicast is to pass an XDP program.
func (w *words) delivery() (port bool) {
	v := w.value("delivery")
	if v != "auto" && v != "xdp" {
		w.fail(usagef("delivery %q: not known; auto and xdp are", v))
	}
	return v == "xdp"
}

// leg reads which pair of devices a sub-interface is to be.
func (w *words) leg() (netkit bool) {
	v := w.value("leg")
	if v != "veth" && v != "netkit" {
		w.fail(usagef("leg %q: not known; veth and netkit are", v))
	}
	return v == "netkit"
}

// onOff reads a switch.
func (w *words) onOff(keyword string) bool {
	v := w.value(keyword)
	if v != "on" && v != "off" {
		w.fail(usagef("%s %q: not known; on and off are", keyword, v))
	}
	return v == "on"
}

// via reads networks that are reached by way of the host, off for none.
func (w *words) via() []netip.Prefix {
	value := w.value("via-host")
	if w.err != nil {
		return nil
	}
	if value == "" {
		w.fail(usagef("via-host: its value is missing"))
		return nil
	}
	nets, err := loader.ParseVia(value)
	if err != nil {
		w.fail(err)
	}
	return nets
}

// guard reads a guard or a budget.
func (w *words) guard(keyword string, spec *loader.GuardSpec) {
	value := map[string]string{keyword: w.value(keyword)}
	if w.err != nil {
		return
	}
	if value[keyword] == "" {
		w.fail(usagef("%s: its value is missing", keyword))
	} else if err := spec.Parse(value["guard"], value["bcrate"]); err != nil {
		w.fail(err)
	}
}

// vlan reads a VLAN, its service tag or a trunk.
func (w *words) vlan(keyword string, spec *loader.VLANSpec) {
	value := map[string]string{keyword: w.value(keyword)}
	if w.err != nil {
		return
	}
	if value[keyword] == "" {
		w.fail(usagef("%s: its value is missing", keyword))
	} else if err := spec.Parse(value["vlan"], value["qinq"], value["trunk"]); err != nil {
		w.fail(err)
	}
}

func (w *words) mac(keyword string) net.HardwareAddr {
	v := w.value(keyword)
	mac, err := net.ParseMAC(v)
	if err != nil {
		w.fail(usagef("%s %q: no MAC address; write six bytes in hex, as 02:00:5e:10:00:01", keyword, v))
	}
	return mac
}

func (w *words) prefix(keyword string) netip.Prefix {
	v := w.value(keyword)
	p, err := netip.ParsePrefix(v)
	if err != nil {
		if a, err2 := netip.ParseAddr(v); err2 == nil && a.Zone() == "" {
			return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()) // as with `ip addr add`
		}
		w.fail(usagef("%s %q: no address; write it as 192.0.2.7/24 or 2001:db8::7/64", keyword, v))
		return p
	}
	if p.Addr().Is4In6() {
		w.fail(usagef("%s %q: an IPv4 address in IPv6 form; write it as %s", keyword, v, p.Addr().Unmap()))
	}
	return p
}

func (w *words) number(keyword string) int {
	v := w.value(keyword)
	n, err := strconv.Atoi(v)
	if err != nil || n <= 0 {
		w.fail(usagef("%s %q: no positive number", keyword, v))
	}
	return n
}

func (w *words) integer(keyword string, least, most int64) int64 {
	v := strings.TrimSpace(w.value(keyword)) // see guardNegative
	n, err := strconv.ParseInt(v, 0, 64)
	if err != nil || n < least || n > most {
		w.fail(usagef("%s %q: no number from %d to %d", keyword, v, least, most))
	}
	return n
}

// parseSelector reads `[dev] NAME [link PARENT] [netns NETNS]`. With a target,
// which it fills in, netns tells where to move to, not where to look.
func parseSelector(w *words, to *target) (sel loader.Selector, err error) {
	for {
		word, ok := w.next()
		if !ok {
			break
		}
		switch {
		case word == "dev" || word == "name":
			sel.Name = w.value(word)
		case word == "link":
			sel.Parent = w.value(word)
		case word == "netns" && to != nil:
			to.netns = w.value(word)
		case word == "delivery" && to != nil:
			port := w.delivery()
			to.port = &port
		case word == "host" && to != nil:
			host := w.onOff(word)
			to.host = &host
		case word == "via-host" && to != nil:
			nets := w.via()
			to.via = &nets
		case (word == "guard" || word == "bcrate") && to != nil:
			w.guard(word, &to.guard)
		case (word == "vlan" || word == "qinq" || word == "trunk") && to != nil:
			w.vlan(word, &to.vlan)
		case word == "netns":
			sel.Netns = w.space()
		case word == "leg" && to != nil:
			w.fail(usagef("leg: it is given when the device is made; delete it and make it anew"))
		case word == "up" || word == "down" || word == "type" && sel.Name != "":
			w.fail(usagef("%s: not known here; `ip link` does that", word))
		case sel.Name == "":
			sel.Name = word
		default:
			w.fail(usagef("%s: not known here; other changes are made with `ip link set`", word))
		}
	}
	if w.err == nil && sel.Name == "" {
		return sel, usagef("dev: say which sub-interface")
	}
	return sel, w.err
}

// show prints what args select, all without any.
func (a *app) show(args []string) error {
	var sel loader.Selector
	if len(args) > 0 {
		var err error
		if len(args) == 2 && args[0] == "link" {
			sel.Parent = args[1]
		} else if sel, err = parseSelector(&words{left: args}, nil); err != nil {
			return err
		}
	}
	return a.with(func(h *loader.Host) error {
		// What others have deleted goes away now. It may also be looked
		// at without the privilege to do so.
		if err := h.Sweep(); err != nil && !errors.Is(err, loader.ErrPrivilege) {
			return err
		}
		links, err := h.Links()
		if err != nil {
			return err
		}
		links = slices.DeleteFunc(links, func(l loader.Link) bool {
			return sel.Name != "" && l.Name != sel.Name || sel.Parent != "" && l.Parent != sel.Parent ||
				sel.Netns != "" && l.Netns != sel.Netns
		})
		if sel.Name != "" && len(links) == 0 {
			return fmt.Errorf("sub-interface %s: %w; `xvlan link show` lists them", sel.Name, loader.ErrNotFound)
		}
		if a.json {
			return a.printJSON(linksJSON(links))
		}
		for _, l := range links {
			a.printLink(l)
		}
		return nil
	})
}
