/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The dry run that `xvlan trace` asks what would become of a frame. This source
 * is compiled a second time, with TRACE set: then what the programs look up and
 * decide is noted as steps, and what they would change or send is noted instead
 * of done. Without TRACE all of this is nothing. A part of xvlan.c.
 */
#ifndef XVLAN_TRACE_H
#define XVLAN_TRACE_H

/* What a step was. `id` is a sub-interface's, 0 for the parent or for none. */
enum step_kind {
	STEP_DESTINATION = 1, /* what follows finds the destination */
	STEP_SOURCE,	      /* what follows finds who sent it, or in whose name it was */
	STEP_QUESTION,	      /* what follows finds whom an ARP or ND question is for */
	STEP_MAC_SLOT,	      /* value: what the MAC's slot says */
	STEP_MAC,	      /* by_mac; value: see ENTRY_FOUND */
	STEP_IP,	      /* by_ip4 or by_ip6; likewise */
	STEP_LEG,	      /* what a leg's slot says, or its entry */
	STEP_TAKEN,	      /* the record of id; value: 1 if it is valid and up, else 0 */
	STEP_LISTED,	      /* id is in source mode; value: 1 if the sender is on its list */
	STEP_GROUP,	      /* id's membership of the group; value: of enum membership */
	STEP_VLAN,     /* the parent has a VLAN device for the tag, which is given in value */
	STEP_LEARN,    /* an address would be learned for id */
	STEP_YIELD,    /* an address learned for id would be forgotten: the wire claims it */
	STEP_VERDICT,  /* value: of enum verdict */
	STEP_COPY,     /* a copy; value: ifindex */
	STEP_REDIRECT, /* out of the device value */
	STEP_INGRESS,  /* into the stack as if come in by the device value */
	STEP_PEER,     /* into the stack behind the other end of the device value */
	STEP_NEIGH,    /* out of the device value, to the next hop of a route */
	STEP_PORT,     /* by XDP to the driver at the other end of id's leg */
	STEP_ROUTE,    /* a route was looked up; value: what bpf_fib_lookup returned */
	STEP_ASKER,    /* whose DHCP client a reply is for by chaddr; value: type of message */
	STEP_GUARD,    /* what follows looks whether id may send it */
	STEP_CLAIMED,  /* the frame is in the VLAN value, which somebody has claimed */
	STEP_FIT,      /* the tags of the VLAN value are put on; 0: they are taken off */
	STEP_VIA,      /* whether it is among what id reaches by way of the host; value: 1 if so */
	STEP_MAX,
};

/* In the value of STEP_MAC and STEP_IP: there is an entry. The lower bits are
 * its flags, the bits from 32 on its generation. */
#define ENTRY_FOUND 0x10000

struct step {
	enum step_kind kind;
	__u32 id;
	__u64 value;
};

#define STEPS_MAX 512

/* The steps of a run; the loader sets the number to 0 before. */
struct steps {
	__u32 number; /* there were so many; those past STEPS_MAX are not here */
	__u32 pad;
	struct step step[STEPS_MAX];
};

#ifdef TRACE

struct steps trail SEC(".data.trail");

static __always_inline void note(enum step_kind kind, __u32 id, __u64 value)
{
	__u32 n = trail.number++;

	if (n < STEPS_MAX)
		trail.step[n] = (struct step){kind, id, value};
}

#define DRY_RUN					true
#define bpf_clone_redirect(skb, ifindex, flags) (note(STEP_COPY, 0, ifindex), 0)
#define bpf_redirect(ifindex, flags)                                                               \
	(note((flags) & BPF_F_INGRESS ? STEP_INGRESS : STEP_REDIRECT, 0, ifindex),                 \
	 bpf_redirect(ifindex, flags))
#define bpf_redirect_peer(ifindex, flags)                                                          \
	(note(STEP_PEER, 0, ifindex), bpf_redirect_peer(ifindex, flags))
#define bpf_redirect_neigh(ifindex, params, len, flags)                                            \
	(note(STEP_NEIGH, 0, ifindex), bpf_redirect_neigh(ifindex, params, len, flags))

#else

#define note(kind, id, value) ((void)(kind))
#define DRY_RUN		      false

#endif

/* Notes what a look-up has found. */
static __always_inline struct dest *noted(enum step_kind kind, struct dest *d)
{
	note(kind, d ? d->id : 0, d ? (__u64)d->gen << 32 | ENTRY_FOUND | d->flags : 0);
	return d;
}

#endif
