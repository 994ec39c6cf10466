package loader

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
	"github.com/xvlan/xvlan/maps"
)

// A Trace is what the programs would do with a frame, one after the other.
type Trace struct {
	Parent string
	Runs   []TraceRun
}

// A TraceRun is what one of them would do.
type TraceRun struct {
	Program string
	Dev     string // the device that it stands on
	Steps   []TraceStep
	Missing int    // steps that there was no room for
	Fate    string // what becomes of the frame itself
	Frame   []byte // as the program would leave it
}

// A TraceStep is one look-up, decision or effect.
type TraceStep struct {
	Kind    string
	Sub     string       // what it is about: a sub-interface, the parent, or "" for neither
	Verdict maps.Verdict // where Kind is "verdict"
	Text    string
}

// Trace asks what would become of a frame that comes in from the wire by a
// parent or, where from says so, from a sub-interface. The programs that are
// asked are a dry run of those that are attached, on the same maps: nothing is
// sent, counted or learned. A tag of the frame stands in it as on the wire. It
// takes the privilege that attaching does. On the kernel rung it returns
// ErrUnsupported.
func (h *Host) Trace(parent string, from *Selector, frame []byte) (Trace, error) {
	if len(frame) < minFrame {
		return Trace{}, fmt.Errorf("frame: %w: %d bytes; an Ethernet header alone has %d", ErrInvalid, len(frame), minFrame)
	}
	var sender Link
	if from != nil {
		var err error
		if sender, err = h.Find(*from); err != nil {
			return Trace{}, err
		}
		parent = sender.Parent
		if sender.Rung.Rung == maps.RungKernel {
			return Trace{}, undecided(parent)
		}
	}
	return h.trace(parent, func(t *tracer, set *maps.Set) error { return t.decide(set, sender.ID, frame) })
}

// TraceHost is Trace for a frame that the host sends out of a parent, which is looked
// at while a sub-interface has host access; else it returns ErrNotFound.
func (h *Host) TraceHost(parent string, frame []byte) (Trace, error) {
	return h.trace(parent, func(t *tracer, set *maps.Set) error {
		if t.rec.Hosts == 0 {
			return fmt.Errorf("from host: %w: no sub-interface on %s has host access or reaches networks by way of the host, so no program looks at what the host sends", ErrNotFound, parent)
		}
		return t.dry(set, func(dry *bpf.DryRun) error { return t.run(dry, pinHostProg, t.rec.Index, frame) })
	})
}

// trace finds a parent, for decide to let its programs decide.
func (h *Host) trace(parent string, decide func(t *tracer, set *maps.Set) error) (Trace, error) {
	l, err := h.parentLink(parent)
	if err != nil {
		return Trace{}, err
	}
	t := &tracer{h: h}
	found := false
	f, _, err := h.folderOf(l.Attrs().Index)
	if err != nil {
		return Trace{}, err
	}
	t.key = f.key
	err = h.readParent(f, func(set *maps.Set, rec maps.Parent) error {
		found, t.rec = true, rec
		return decide(t, set)
	})
	if err == nil && !found {
		err = fmt.Errorf("parent %s: %w; it is attached with its first sub-interface", parent, ErrNotFound)
		if kernel, kerr := h.findKernel(l.Attrs().Index, ""); kerr == nil && len(kernel) > 0 {
			err = undecided(parent)
		}
	}
	return Trace{parent, t.runs}, err
}

func undecided(parent string) error {
	return fmt.Errorf("parent %s: %w: on rung kernel the kernel's own driver decides, which cannot be asked", parent, ErrUnsupported)
}

// minFrame is an Ethernet header.
const minFrame = 14

// A tracer runs the programs of a parent dry and puts their steps into words.
type tracer struct {
	h      *Host
	key    int // of the parent's folder
	rec    maps.Parent
	subs   []maps.Sub
	legs   map[uint64]maps.ID // by ifindex
	inners map[maps.ID]netlink.Link
	runs   []TraceRun
}

// decide lets the programs decide: xvlan_tx of a sender, or those of the parent.
func (t *tracer) decide(set *maps.Set, sender maps.ID, frame []byte) error {
	return t.dry(set, func(dry *bpf.DryRun) error {
		if sender != 0 {
			return t.run(dry, pinTX, t.subs[sender].Leg, frame)
		}
		if t.rec.Rung == maps.RungXDP {
			if err := t.run(dry, pinXDPProg, t.rec.Index, frame); err != nil || t.last().Fate != fateOn {
				return err
			}
		}
		return t.run(dry, pinRXProg, t.rec.Index, frame)
	})
}

// dry loads the programs for a dry run.
func (t *tracer) dry(set *maps.Set, fn func(dry *bpf.DryRun) error) error {
	if err := t.know(set); err != nil {
		return err
	}
	dry, err := bpf.LoadDryRun(t.rec.Capacity, set.Maps())
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("trace: %w: run xvlan as root: %w", ErrPrivilege, err)
	}
	if err != nil {
		return err
	}
	defer dry.Close()
	return fn(dry)
}

func (t *tracer) last() *TraceRun { return &t.runs[len(t.runs)-1] }

// know reads what the steps are put into words by.
func (t *tracer) know(set *maps.Set) (err error) {
	if t.subs, err = set.Subs(); err != nil {
		return err
	}
	t.legs, t.inners = map[uint64]maps.ID{}, map[maps.ID]netlink.Link{}
	for i, s := range t.subs {
		if s.State != maps.Free {
			t.legs[uint64(s.Leg)] = maps.ID(i)
		}
	}
	return nil
}

// inner returns a sub-interface's device, nil if it cannot be read.
func (t *tracer) inner(id maps.ID) netlink.Link {
	if _, known := t.inners[id]; !known {
		_, dev, err := t.h.inner(t.sub(id).Leg, legName(t.key, id))
		if err != nil {
			dev = nil // gone meanwhile: its record has a name, too
		}
		t.inners[id] = dev
	}
	return t.inners[id]
}

// name is what a sub-interface is called now; "" is nobody's.
func (t *tracer) name(id maps.ID) string {
	if id == 0 || t.sub(id).State == maps.Free {
		return ""
	}
	if dev := t.inner(id); dev != nil {
		return dev.Attrs().Name
	}
	return t.sub(id).Name
}

func (t *tracer) run(dry *bpf.DryRun, prog string, index int, frame []byte) error {
	d, err := dry.Run(prog, index, frame)
	if err != nil {
		return err
	}
	run := TraceRun{Program: prog, Dev: t.h.nameOf(index), Missing: d.Missing, Frame: d.Frame}
	for _, s := range d.Steps {
		if t.redirect(s) == "" { // that is the frame's fate
			run.Steps = append(run.Steps, t.explain(s))
		}
	}
	run.Fate = t.fate(prog, d)
	t.runs = append(t.runs, run)
	return nil
}

// What programs return: include/uapi/linux/bpf.h and pkt_cls.h.
const (
	xdpDrop     = 1
	xdpRedirect = 4
	actOK       = 0 // of xvlan_tx on a netkit: xvlan_turn makes the redirect
	actShot     = 2
	actRedirect = 7
)

// fateOn is said of what XDP passes to the next program.
const fateOn = "on to xvlan_rx"

// fate says what becomes of the frame, by what a program returned.
func (t *tracer) fate(prog string, d bpf.Decision) string {
	xdp := prog == pinXDPProg
	switch {
	case xdp && d.Return == xdpDrop, !xdp && d.Return == actShot:
		return "dropped"
	case xdp && d.Return != xdpRedirect:
		return fateOn
	case xdp || d.Return == actRedirect || d.Return == actOK:
		for _, s := range d.Steps {
			if fate := t.redirect(s); fate != "" {
				return fate
			}
		}
		return "redirected"
	case prog == pinHostProg:
		return "on its way out of " + t.rec.Name
	case prog == pinTX:
		return "up into the host's stack, to be routed"
	}
	for _, s := range d.Steps {
		if s.Kind == bpf.TraceStepKindSTEP_VERDICT && maps.Verdict(s.Value) == maps.RX && t.sub(maps.ID(s.Id)).Place == maps.Stack {
			return "up into the host's stack, which routes it to " + t.name(maps.ID(s.Id))
		}
	}
	return "on to the host's stack"
}

// redirect says where a step redirects the frame to, "" if it does not.
func (t *tracer) redirect(s bpf.TraceStep) string {
	switch s.Kind {
	case bpf.TraceStepKindSTEP_REDIRECT:
		if id := t.legs[s.Value]; id != 0 {
			return fmt.Sprintf("to %s, by its host leg", t.name(id))
		}
		return "out of " + t.h.nameOf(int(s.Value))
	case bpf.TraceStepKindSTEP_NEIGH:
		return fmt.Sprintf("out of %s, to the next hop of its route", t.h.nameOf(int(s.Value)))
	case bpf.TraceStepKindSTEP_INGRESS:
		return fmt.Sprintf("to the host, as if come in by %s", t.h.nameOf(int(s.Value)))
	case bpf.TraceStepKindSTEP_PEER:
		return fmt.Sprintf("to %s, straight into its namespace", t.name(t.legs[s.Value]))
	case bpf.TraceStepKindSTEP_PORT:
		return fmt.Sprintf("to %s, by XDP into its driver", t.name(maps.ID(s.Id)))
	}
	return ""
}

func (t *tracer) sub(id maps.ID) maps.Sub {
	if int(id) < len(t.subs) {
		return t.subs[id]
	}
	return maps.Sub{}
}

// explain puts a step into words.
func (t *tracer) explain(s bpf.TraceStep) TraceStep {
	id := maps.ID(s.Id)
	step := TraceStep{Kind: stepNames[s.Kind], Sub: t.name(id)}
	switch s.Kind {
	case bpf.TraceStepKindSTEP_DESTINATION:
		step.Text = "whom is it for?"
	case bpf.TraceStepKindSTEP_SOURCE:
		step.Text = "has a sub-interface sent it?"
	case bpf.TraceStepKindSTEP_QUESTION:
		step.Text = "whom does it ask for?"
	case bpf.TraceStepKindSTEP_GUARD:
		step.Text = "may it send this?"
	case bpf.TraceStepKindSTEP_MAC_SLOT, bpf.TraceStepKindSTEP_LEG:
		step.Text = t.slot(s)
	case bpf.TraceStepKindSTEP_MAC, bpf.TraceStepKindSTEP_IP:
		step.Text = t.entry(s)
	case bpf.TraceStepKindSTEP_TAKEN:
		step.Text = "active and up"
		if s.Value == 0 {
			step.Text = t.refused(id)
		}
	case bpf.TraceStepKindSTEP_LISTED:
		step.Text = "the sender is not on its list"
		if s.Value != 0 {
			step.Text = "the sender is on its list"
		}
	case bpf.TraceStepKindSTEP_GROUP:
		step.Text = memberships[s.Value]
	case bpf.TraceStepKindSTEP_VLAN:
		step.Text = fmt.Sprintf("%s has a device for VLAN %d", t.rec.Name, s.Value)
	case bpf.TraceStepKindSTEP_CLAIMED:
		step.Text = fmt.Sprintf("in %s, which is claimed", vlanWord(s.Value))
	case bpf.TraceStepKindSTEP_FIT:
		step.Text = fmt.Sprintf("gets the tags of %s", vlanWord(s.Value))
		if s.Value == 0 {
			step.Text = "loses its tags"
		}
	case bpf.TraceStepKindSTEP_LEARN:
		step.Text = "its address would be learned"
	case bpf.TraceStepKindSTEP_YIELD:
		step.Text = "a learned address would be forgotten: the wire claims it"
	case bpf.TraceStepKindSTEP_VERDICT:
		step.Verdict = maps.Verdict(s.Value)
		step.Text = step.Verdict.String()
		if s.Id == 0 {
			step.Sub = t.rec.Name
		}
	case bpf.TraceStepKindSTEP_ASKER:
		step.Text = "a DHCP server's reply, to a client that is none of these"
		if id != 0 {
			step.Text = "a DHCP server's reply to its client"
		}
	case bpf.TraceStepKindSTEP_VIA:
		step.Text = "none of what it reaches by way of the host"
		if s.Value != 0 {
			step.Text = "it reaches that by way of the host"
		}
	case bpf.TraceStepKindSTEP_COPY:
		step.Sub = t.name(t.legs[s.Value])
		step.Text = "a copy"
		if s.Value == uint64(t.rec.Index) {
			step.Text = "a copy to the host"
		}
	case bpf.TraceStepKindSTEP_ROUTE:
		step.Text = "there is a route"
		if s.Value >= fibBlackhole && s.Value <= fibNotForwarded {
			step.Text = fmt.Sprintf("no route for it in the namespace of %s", t.rec.Name)
		}
	}
	return step
}

// vlanWord is a VLAN of a key in words.
func vlanWord(key uint64) string {
	id, outer := maps.VLAN(key).IDs()
	return VLAN{ID: id, Outer: outer}.String()
}

// Of bpf_fib_lookup, include/uapi/linux/bpf.h: what route.h takes for no route.
const (
	fibBlackhole    = 1
	fibNotForwarded = 4
)

// memberships is by enum membership of group.h.
var memberships = map[uint64]string{
	0: "has joined the group",
	1: "has not joined the group",
	2: "is in too many groups to look",
}

func (t *tracer) slot(s bpf.TraceStep) string {
	switch {
	case s.Value == 0:
		return "nobody's slot"
	case s.Value == bpf.SlotShared:
		return "a slot that several share: the map is asked"
	}
	return "its slot"
}

// entryFound is ENTRY_FOUND in trace.h.
const entryFound = 0x10000

func (t *tracer) entry(s bpf.TraceStep) string {
	flags := bpf.XvlanDestFlag(s.Value)
	switch {
	case s.Value&entryFound == 0:
		return "no entry"
	case flags&bpf.XvlanDestFlagDEST_GATEWAY != 0:
		return "entry: a gateway's"
	case flags&bpf.XvlanDestFlagDEST_RESERVED != 0:
		return "entry: the host's"
	case uint32(s.Value>>32) != t.sub(maps.ID(s.Id)).Gen:
		return "entry of a former owner"
	case flags&bpf.XvlanDestFlagDEST_LEARNED != 0:
		return "entry, learned"
	}
	return "entry, given"
}

// refused says why a record that a key led to was not taken.
func (t *tracer) refused(id maps.ID) string {
	s := t.sub(id)
	switch {
	case s.State == maps.Free:
		return "not taken: there is none of this id"
	case s.State == maps.Pending:
		return "not taken: it is being made or removed"
	}
	if dev := t.inner(id); dev != nil && dev.Attrs().RawFlags&unix.IFF_UP == 0 {
		return "not taken: it is down"
	}
	return "not taken: it has another key"
}

// stepNames are the kinds' names.
var stepNames = map[bpf.TraceStepKind]string{
	bpf.TraceStepKindSTEP_DESTINATION: "destination",
	bpf.TraceStepKindSTEP_SOURCE:      "source",
	bpf.TraceStepKindSTEP_QUESTION:    "question",
	bpf.TraceStepKindSTEP_MAC_SLOT:    "mac_slot",
	bpf.TraceStepKindSTEP_MAC:         "by_mac",
	bpf.TraceStepKindSTEP_IP:          "by_ip",
	bpf.TraceStepKindSTEP_LEG:         "leg_slot",
	bpf.TraceStepKindSTEP_TAKEN:       "record",
	bpf.TraceStepKindSTEP_LISTED:      "listed",
	bpf.TraceStepKindSTEP_GROUP:       "group",
	bpf.TraceStepKindSTEP_VLAN:        "vlan",
	bpf.TraceStepKindSTEP_LEARN:       "learn",
	bpf.TraceStepKindSTEP_YIELD:       "yield",
	bpf.TraceStepKindSTEP_VERDICT:     "verdict",
	bpf.TraceStepKindSTEP_COPY:        "copy",
	bpf.TraceStepKindSTEP_ROUTE:       "route",
	bpf.TraceStepKindSTEP_ASKER:       "dhcp",
	bpf.TraceStepKindSTEP_GUARD:       "guard",
	bpf.TraceStepKindSTEP_CLAIMED:     "claimed",
	bpf.TraceStepKindSTEP_FIT:         "tags",
	bpf.TraceStepKindSTEP_VIA:         "via_host",
}
