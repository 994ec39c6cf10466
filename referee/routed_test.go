package referee

// Differences of the modes l3 and l3s, which are in the same tables as the
// others'.

const (
	l3  = "ipvlan_l3_.*"
	l3s = "ipvlan_l3s_.*"
	l3x = "ipvlan_l3s?_.*"
)

var deliberateRouted = []difference{
	{
		pairs: l3, rungs: bpfRungs, scenarios: "wire .*(ARP|duplicate address detection|at broadcast).*",
		lines:  "-[AB] (BROADCAST|MULTICAST)( #0)?|[+]host (BROADCAST|MULTICAST|OTHERHOST)( #0)?",
		where:  "ipvlan l3",
		what:   "group-addressed frames that ask for a sub-interface's address, or have it as their destination, go to the host; the kernel gives them to the sub-interface, which answers no ARP",
		reason: "so the host can be set up to answer for it (proxy ARP)",
	},
	{
		pairs: l3x, rungs: bpfRungs, scenarios: "[AB] .*(ARP|duplicate address detection|at broadcast).*", lines: "-[AB] (HOST|BROADCAST|MULTICAST)",
		where:  "ipvlan l3, l3s",
		what:   "between siblings, too, only IP goes, and nothing group-addressed; the kernel lets ARP and duplicate address detection through to the address asked for, where nothing answers",
		reason: "these modes resolve nothing",
	},
	{
		pairs: l3x, rungs: bpfRungs, scenarios: "[AB] .*", lines: "-[AB] cannot send .*",
		where:  "ipvlan l3, l3s",
		what:   "what the mode does not carry is dropped and counted; the kernel fails the sender's call as well",
		reason: "it is dropped behind the veth pair, where the sender's call has ended",
	},
	{
		pairs: l3, rungs: bpfRungs, scenarios: "[AB] .*", lines: "-a device nobody made HOST.*|[+]host HOST.*",
		where:  "ipvlan l3",
		what:   "what is for the host's own address comes to it by the parent; the kernel's comes by lo",
		reason: "it is what the host has in l2 as well",
	},
	{
		pairs: l3x, rungs: bpfRungs, scenarios: "[AB] .*at an unknown MAC", lines: "-[AB] OTHERHOST|[+][AB] HOST.*",
		where:  "ipvlan l3, l3s",
		what:   "a packet for a sibling is the sibling's, whatever MAC it was sent to; the kernel's arrives as OTHERHOST",
		reason: "these modes know no MAC addresses",
	},
	{
		pairs: l3s, rungs: bpfRungs, scenarios: "wire .*", lines: "[+][AB] HOST( #[01])?(, from host's MAC)?, a hop further",
		where:  "ipvlan l3s",
		what:   "what the host has for a sub-interface arrives on its device a hop further, having crossed FORWARD; the kernel's crosses INPUT and is handed up behind packet sockets",
		reason: "the host's stack forwards it, as it does for any device; no BPF program can be where the kernel's driver has its hook",
	},
	{
		pairs: l3s, rungs: bpfRungs, scenarios: "wire .*", lines: "[+]wire OTHERHOST.*, a hop further",
		where:  "ipvlan l3s",
		what:   "the host forwards what else comes by the parent, too",
		reason: "forwarding is a setting of the device that packets come by",
	},
	{
		pairs: l3s, rungs: bpfRungs, scenarios: "[AB] .*",
		lines:  "-(wire|a device nobody made) (HOST|OTHERHOST).*|[+]wire (HOST|OTHERHOST).*, a hop further|[+]a device nobody made HOST.*",
		where:  "ipvlan l3s",
		what:   "what is for no sibling comes to the host by the host leg and leaves a hop further, having crossed PREROUTING and FORWARD; the kernel's crosses OUTPUT",
		reason: "it is how the host's stack sees both directions",
	},
	{
		pairs: l3s, rungs: bpfRungs, scenarios: "wire .* to down", lines: "-wire OTHERHOST.*, a hop further",
		where:  "ipvlan l3s",
		what:   "what comes from the wire for a sub-interface that is down ends at its host leg; where the host forwards, the kernel's goes back to the wire",
		reason: "the host's route to the leg stays, and keeps the packet from turning in circles",
	},
	{
		pairs: "ipvlan_l3s_vepa.*", rungs: bpfRungs, scenarios: "[AB] .*", lines: "[+][AB] HOST( #[01])?, a hop further",
		where:  "ipvlan l3s vepa",
		what:   "siblings meet by the host's stack, which has a route to each and may refuse; the kernel's packets for each other leave for the wire",
		reason: "no sibling is sent anything directly, as the flag demands, and the host's routes say where it is",
	},
	{
		pairs: l3x, rungs: bpfRungs, scenarios: "[AB] IPv[46] (with|that says|of version) .*", lines: "-wire OTHERHOST, with .*|[+]wire OTHERHOST",
		where:  "ipvlan l3, l3s",
		what:   "IPv4 and IPv6 with headers that cannot be true are dropped or go on as they are; the kernel's host writes lengths and checksum anew, and no sibling gets them",
		reason: "a header is its sender's to write, and a receiver's stack to judge",
	},
}
