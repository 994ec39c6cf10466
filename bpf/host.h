/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Host access: the host and a sub-interface with SUB_HOST reach each other past the
 * wire. What that one sends to the parent's MAC comes in by the parent, and so does
 * a copy of what it sends to a group. What the host sends is looked at by
 * xvlan_host on its way out of the parent. All that without a VLAN: what has one is
 * between the host's VLAN devices and the wire. One with SUB_VIA has half of it: what
 * the host sends, and to the host what says where it is. A part of xvlan.c, whose
 * stages it stands on.
 */
#ifndef XVLAN_HOST_H
#define XVLAN_HOST_H

/* On the host's copy of what was sent to a group: everybody else has had his. What
 * comes from the wire has no mark, and of what a container sends the kernel clears
 * it. */
#define MARK_COPY 0x78766c6f

static __always_inline bool has_host(const struct frame *f, const struct sub *sub)
{
	return sub->flags & SUB_HOST && !f->vlan && !is_foreign(f);
}

/* Whether what the host sends goes to it. */
static __always_inline bool hears_host(const struct frame *f, const struct sub *sub)
{
	return sub->flags & HEARS_HOST && !f->vlan && !is_foreign(f);
}

/* Whether what is for the parent's MAC, and for none of those who share it, goes to
 * the host. Of an IP-keyed sub-interface that is the sender's own MAC, which no switch
 * would bring back. One with SUB_VIA alone is to find the host and be found, no more. */
static __always_inline bool meets_host(struct frame *f, const struct sub *from)
{
	if (has_host(f, from))
		return true;
	if (!hears_host(f, from))
		return from->kind == KIND_IPVLAN && from->class != CLASS_VEPA && !f->vlan;
	reload(f); /* the verifier has lost track of it */
	return f->proto_be == bpf_htons(ETH_P_ARP) || nd_at(f);
}

/* Gives the host a copy of what a sub-interface sends to a group. It is counted where
 * it comes in. */
static __always_inline void copy_to_host(struct frame *f, struct size size)
{
	__u32 mark = f->skb->mark;
	long err;

	f->skb->mark = MARK_COPY;
	err = bpf_clone_redirect(f->skb, meta.ifindex, BPF_F_INGRESS);
	f->skb->mark = mark;
	if (err)
		count(f->skb, 0, VERDICT_DROP_FANOUT, size);
}

/* Whether what leaves by the parent is what xvlan_tx has sent to the wire, with a
 * verdict of its own. What a veth has sent still tells the host leg that it came in
 * by; what a netkit has, came in nowhere, but was redirected, which nothing of the
 * host's own is. What the modes l3 and l3s send goes by the host's routes and
 * neighbours, and counts as the host's. */
static __always_inline bool from_leg(struct __sk_buff *skb)
{
	struct sk_buff *kernels = (struct sk_buff *)skb;
	struct sub *from;
	__u32 id = 0;

	if (skb->ingress_ifindex) {
		from = sub_by_leg(skb->ingress_ifindex, &id);
		return from && !is_routed(from);
	}
	return bpf_core_field_exists(kernels->redirected) &&
	       BPF_CORE_READ_BITFIELD_PROBED(kernels, redirected);
}

/* The sub-interface in mode l3 that the host asks for, which has nothing to answer
 * with. */
static __always_inline struct sub *asked_routed(struct frame *f, __u32 *id)
{
	struct sub *sub = owner(question(f), id);

	return sub && is_routed(sub) && hears_host(f, sub) ? sub : NULL;
}

/* Answers a question of the host's, or lets it pass where it has none to answer to. */
static __always_inline int answer_host(struct frame *f)
{
	__u8 asker[ETH_ALEN];

	if (bpf_skb_load_bytes(f->skb, ETH_ALEN, asker, ETH_ALEN) || !answer(f, asker))
		return TC_ACT_UNSPEC;
	return bpf_redirect(meta.ifindex, BPF_F_INGRESS);
}

/* Broadcast and multicast from the host: a question for a given address to its owner,
 * all else to all that hear the host and on to the wire. */
static __always_inline int host_group(struct frame *f, struct size size)
{
	__u32 id = 0;
	struct sub *sub = asked(f, &id);

	if (sub && hears_host(f, sub))
		return deliver_group(f, sub, id, size);
	copy_to(f, CLASS_BRIDGE | CLASS_PRIVATE | ONLY_HOST, 0, size);
	return TC_ACT_UNSPEC;
}

__noinline int host_whole(struct __sk_buff *skb)
{
	struct frame f;
	struct size size;
	struct sub *sub;
	__u32 id = 0;
	bool unknown;

	if (!parse_skb(skb, &f))
		return TC_ACT_UNSPEC;
	size = size_of(&f);
	count(skb, 0, VERDICT_TX, size);
	if (is_foreign(&f) || is_pause(&f))
		return TC_ACT_UNSPEC;
	if (asked_routed(&f, &id))
		return answer_host(&f);
	if (is_group(&f))
		return host_group(&f, size);
	sub = lookup(&f, &id, &unknown);
	if (!sub || !hears_host(&f, sub))
		return TC_ACT_UNSPEC;
	return deliver(&f, sub, id, size, FROM_HOST);
}

#endif
