package referee

import (
	"fmt"
	"slices"
	"strings"
)

// A difference is one between the kernel's drivers and xvlan that is known:
// the lines of a comparison that it stands for, and why. The expressions must
// match the whole of what they stand for.
type difference struct {
	pairs     string // as pair.String says it
	rungs     string
	scenarios string
	lines     string // of the comparison: - only the kernel's, + only xvlan's
	byChance  bool   // it need not come up
	where     string // and the rest in words; empty: it belongs to the one above
	what      string
	reason    string
}

const (
	bpfRungs = "tc|netkit|xdp"
	anyPair  = ".*"
	ipvlans  = "ipvlan_.*"
	macvlans = "macvlan_.*"
)

// deliberate differences are meant to stay.
var deliberate = []difference{
	{
		pairs: macvlans, rungs: bpfRungs, scenarios: "wire .*fragments? .*to 224.0.0.1", lines: ".* MULTICAST #.*",
		where:  "macvlan",
		what:   "IPv4 multicast fragments arrive as they are; the kernel puts them together in the parent's stack first",
		reason: "each receiver's stack does that for itself, and nobody's fragments wait in the host",
	},
	{
		pairs: anyPair, rungs: bpfRungs, scenarios: ".* a full frame to .*", lines: "[-+]B (HOST|BROADCAST|OTHERHOST)",
		where:  "a sub-interface with a smaller MTU than its parent's",
		what:   "frames that fill the parent's MTU arrive by unicast from anywhere, but not where they pass the host leg: group-addressed, or before the sub-interface has left the parent's namespace; the kernel's macvlan takes them from the wire, but not from a sibling",
		reason: "a veth pair takes nothing over the receiving end's MTU, and a peer redirect asks for none",
	},
	{
		pairs: anyPair, rungs: "netkit", scenarios: "[AB] .*", lines: "[+][AB] cannot send .*",
		where:  "a sub-interface that is a netkit",
		what:   "what is dropped when it is sent fails the sender's call",
		reason: "netkit runs the program in its transmit, and answers what that says",
	},
	{
		pairs: ipvlans, rungs: bpfRungs, scenarios: "[AB] .* from (foreign's|a group) MAC", lines: "[-+].*",
		where:  "ipvlan",
		what:   "what is sent from a foreign MAC leaves from the parent's",
		reason: "the wire sees no other MAC than the parent's, whatever a container does",
	},
	{
		pairs: ipvlans, rungs: bpfRungs,
		scenarios: "[AB] (ARP cut before its target|ARP of another hardware|ICMPv6 solicitation with an empty option)",
		lines:     "-.*",
		where:     "ipvlan",
		what:      "ARP and neighbour discovery that cannot be followed to its end is dropped when sent",
		reason:    "it could carry a MAC that the wire must not see",
	},
	{
		pairs: ipvlans, rungs: bpfRungs, scenarios: "wire (ARP claim|advertisement) of A's second address, then .*", lines: "[-+](A|host) HOST #1",
		where:  "ipvlan",
		what:   "an address that was learned and is then announced by somebody on the wire is the host's to receive until its owner speaks again",
		reason: "a claim by being heard must end when another is heard; give the address to keep it",
	},
	{
		pairs: ipvlans, rungs: bpfRungs, scenarios: "wire (ARP question for A|udp to a joined IPv4 group|udp to ff02::1) from (host|A|B|down)'s MAC",
		lines:  "-[AB] (BROADCAST|MULTICAST)",
		where:  "ipvlan",
		what:   "a group-addressed frame that comes in with the shared MAC and an address that nobody is known by is not spread; the kernel takes it for another's",
		reason: "it is an ipvlan's that a switch has returned before its address was learned, and siblings have had their copies",
	},
	{
		pairs: ipvlans, rungs: bpfRungs, scenarios: "wire udp4 to .'s IP at an unknown MAC", lines: "[-+](A|B|host) OTHERHOST",
		where:  "ipvlan",
		what:   "a frame for neither the parent's nor a sub-interface's MAC goes to the host as OTHERHOST, whatever its IP address; the kernel gives it to the address's owner, as OTHERHOST",
		reason: "it is for another machine, and no stack takes it",
	},
	{
		pairs: ipvlans, rungs: bpfRungs,
		scenarios: "(wire|A|B) IPv4 (with a header of 12 bytes|with a header longer than itself|that says it is longer|that says it is shorter than its header|of version 6)",
		lines:     "-host HOST|[+][AB] HOST",
		where:     "ipvlan",
		what:      "IPv4 with lengths that cannot be true goes to the address's owner; the kernel gives it to the host",
		reason:    "either stack drops and counts it, and it is no concern of the host's",
	},
	{
		pairs: anyPair, rungs: bpfRungs, scenarios: "[AB] udp4 to [AB] in the VLAN with a device",
		lines:  "-host's VLAN device (HOST|OTHERHOST)|[+][AB] (HOST|OTHERHOST)",
		where:  "a parent with VLAN devices",
		what:   "what one sub-interface sends to another in such a VLAN goes the way of what has no tag; the kernel gives it to the host's VLAN device",
		reason: "siblings share the wire, and with it its VLANs",
	},
	{
		pairs: "macvlan_.*private.*", rungs: bpfRungs, scenarios: "wire udp4 to [AB] from (A|B|down)'s MAC", lines: "-[AB] HOST",
		where:  "macvlan private",
		what:   "a private sub-interface receives nothing from its siblings, even where a switch reflects it; the kernel keeps only group-addressed frames away",
		reason: "it is what ip-link(8) says of the mode",
	},
	{
		pairs: "ipvlan_l2_private.*", rungs: bpfRungs, scenarios: "[AB] .*", lines: "-[AB] cannot send .*",
		where:  "ipvlan l2 private",
		what:   "what is for a sibling is dropped and counted; the kernel fails the sender's call as well",
		reason: "it is dropped behind the veth pair, where the sender's call has ended",
	},
	{
		pairs: "ipvlan_l2_(private|vepa).*", rungs: bpfRungs, scenarios: "[AB] .*", lines: "-[AB] (HOST|BROADCAST|MULTICAST).*",
		where:  "ipvlan l2 private and vepa",
		what:   "no frame goes from one sub-interface to another directly; the kernel spreads group-addressed ones all the same, and lets unicast with a priority tag through",
		reason: "it is what ip-link(8) says of the flags",
	},
	{
		pairs: "ipvlan_l2_vepa.*", rungs: bpfRungs, scenarios: "wire udp4 to broadcast with its IP from [AB]'s MAC", lines: "[+][AB] BROADCAST",
		where:  "ipvlan l2 vepa",
		what:   "group-addressed frames of a sub-interface reach its siblings when the switch returns them; the kernel spreads them before, and not then",
		reason: "with vepa the switch is to see all traffic, and may filter it",
	},
	{
		pairs: "ipvlan_l2.*", rungs: bpfRungs, scenarios: ".* (udp to another IPv[46] group|unknown type to another MAC group).*",
		lines: "-[AB] MULTICAST", byChance: true,
		where:  "ipvlan",
		what:   "a group that a sub-interface has not joined does not reach it; the kernel's filter is a hash of 256 values, with a number drawn at boot, and lets some through",
		reason: "the sub-interface's own list says what it has joined",
	},
	{
		pairs: "ipvlan_l2.*", rungs: bpfRungs, scenarios: ".* (udp to a joined IPv[46] group|unknown type to a joined MAC group).*",
		lines: "-A MULTICAST", byChance: true, // B has joined
	},
	{
		pairs: "ipvlan_l2.*", rungs: bpfRungs, scenarios: ".* (solicitation for|duplicate address detection of) [^A].*",
		lines: "-A MULTICAST", byChance: true,
	},
	{
		pairs: "ipvlan_l2.*", rungs: bpfRungs, scenarios: ".* (solicitation for|duplicate address detection of) [^B].*",
		lines: "-B MULTICAST", byChance: true,
	},
}

// defects are differences that are to go: each is to be taken out when it is
// mended, and the comparison demands it.
var defects = []difference{}

// markdown is both tables for people to read.
func markdown() string {
	var b strings.Builder
	b.WriteString("<!-- made by: go test ./referee -run TestDocs -write -->\n")
	b.WriteString("# Where xvlan differs from the kernel's macvlan and ipvlan\n\n")
	b.WriteString("All else that the referee tries comes out the same on the tc and xdp rungs: who receives a frame, how often,\nwith which bytes and as which packet type. On the kernel rung these do, too.\n\n")
	b.WriteString("| where | what xvlan does | why |\n|---|---|---|\n")
	writeRows(&b, slices.Concat(deliberate, deliberateRouted))
	if len(defects) > 0 {
		b.WriteString("\n## Defects\n\nThese are to go.\n\n| where | what | cause |\n|---|---|---|\n")
		writeRows(&b, defects)
	}
	return b.String()
}

func writeRows(b *strings.Builder, all []difference) {
	for _, d := range all {
		if d.where == "" {
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", d.where, d.what, d.reason)
	}
}
