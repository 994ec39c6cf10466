/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Host access: the host and a sub-interface with SUB_HOST reach each other past the
 * wire. What that one sends to the parent's MAC comes in by the parent, and so does
 * a copy of what it sends to a group. What the host sends is looked at by
 * xvlan_host on its way out of the parent. All that without a VLAN: what has one is
 * between the host's VLAN devices and the wire. A part of xvlan.c, whose stages it
 * stands on.
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

/* Whether what is for the parent's MAC, and for none of those who share it, goes to
 * the host. Of an IP-keyed sub-interface that is the sender's own MAC, which no switch
 * would bring back. */
static __always_inline bool meets_host(const struct frame *f, const struct sub *from)
{
	return has_host(f, from) ||
	       (from->kind == KIND_IPVLAN && from->class != CLASS_VEPA && !f->vlan);
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

	return sub && is_routed(sub) && has_host(f, sub) ? sub : NULL;
}

/* Makes of a frame that the host sends the one that answers it from the parent's MAC. */
static __always_inline int answer(struct frame *f)
{
	__u8 macs[2 * ETH_ALEN];

	if (bpf_skb_load_bytes(f->skb, ETH_ALEN, macs, ETH_ALEN))
		return TC_ACT_SHOT;
	__builtin_memcpy(macs + ETH_ALEN, meta.mac, ETH_ALEN);
	bpf_skb_store_bytes(f->skb, 0, macs, sizeof(macs), 0);
	return bpf_redirect(meta.ifindex, BPF_F_INGRESS);
}

static __always_inline int answer_arp(struct frame *f)
{
	struct arp q, a;

	if (bpf_skb_load_bytes(f->skb, f->l3, &q, sizeof(q)))
		return TC_ACT_SHOT;
	a = q;
	a.op_be = bpf_htons(2);
	__builtin_memcpy(a.sha, meta.mac, ETH_ALEN);
	__builtin_memcpy(a.spa, q.tpa, sizeof(a.spa));
	__builtin_memcpy(a.tha, q.sha, ETH_ALEN);
	__builtin_memcpy(a.tpa, q.spa, sizeof(a.tpa));
	bpf_skb_store_bytes(f->skb, f->l3, &a, sizeof(a), 0);
	return answer(f);
}

/* What an answer changes of an ND question, as far as it is summed: the rest of the
 * addresses that the checksum covers changes places. */
struct nd_words {
	__u8 addr[16]; /* question: its destination; answer: its source, the target */
	__u8 type;
	__u8 code;
	__be16 csum_be;
	__u8 flags[4];
	struct nd_opt mac;
};

#define ND_SOLICITED_OVERRIDE 0x60

/* The answer is as long as the question, which has its sender's MAC for an option. */
static __always_inline int answer_nd(struct frame *f)
{
	__u32 l4 = f->l3 + sizeof(struct ipv6hdr), csum = l4 + offsetof(struct nd, csum_be);
	__u32 addrs = f->l3 + offsetof(struct ipv6hdr, saddr);
	struct nd_words q = {}, a;
	__u8 asker[16];
	__s64 diff;

	if (bpf_skb_load_bytes(f->skb, addrs, asker, sizeof(asker)) ||
	    bpf_skb_load_bytes(f->skb, addrs + sizeof(asker), q.addr, sizeof(q.addr)) ||
	    bpf_skb_load_bytes(f->skb, l4, &q.type, 8) ||
	    bpf_skb_load_bytes(f->skb, l4 + sizeof(struct nd), &q.mac, sizeof(q.mac)) ||
	    q.mac.type != ND_OPT_SOURCE_LLADDR || q.mac.units != 1)
		return TC_ACT_UNSPEC; /* duplicate address detection, say */
	a = q;
	if (bpf_skb_load_bytes(f->skb, l4 + offsetof(struct nd, target), a.addr, sizeof(a.addr)))
		return TC_ACT_SHOT;
	a.type = ND_NEIGHBOR_ADVERT;
	a.flags[0] = ND_SOLICITED_OVERRIDE;
	a.mac.type = ND_OPT_TARGET_LLADDR;
	__builtin_memcpy(a.mac.lladdr, meta.mac, ETH_ALEN);
	diff = bpf_csum_diff((void *)&q, sizeof(q), (void *)&a, sizeof(a), 0);
	bpf_skb_store_bytes(f->skb, addrs, a.addr, sizeof(a.addr), 0);
	bpf_skb_store_bytes(f->skb, addrs + sizeof(a.addr), asker, sizeof(asker), 0);
	bpf_skb_store_bytes(f->skb, l4, &a.type, 8, 0);
	bpf_skb_store_bytes(f->skb, l4 + sizeof(struct nd), &a.mac, sizeof(a.mac), 0);
	bpf_l4_csum_replace(f->skb, csum, 0, diff, 0);
	return answer(f);
}

/* Broadcast and multicast from the host: a question for a given address to its owner,
 * all else to all with host access and on to the wire. */
static __always_inline int host_group(struct frame *f, struct size size)
{
	__u32 id = 0;
	struct sub *sub = asked(f, &id);

	if (sub && has_host(f, sub))
		return deliver_group(f, sub, id, size);
	copy_to(f, CLASS_BRIDGE | CLASS_PRIVATE | ONLY_HOST, 0, size);
	return TC_ACT_UNSPEC;
}

static __noinline int host_whole(struct __sk_buff *skb)
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
		return f.proto_be == bpf_htons(ETH_P_ARP) ? answer_arp(&f) : answer_nd(&f);
	if (is_group(&f))
		return host_group(&f, size);
	sub = lookup(&f, &id, &unknown);
	if (!sub || !has_host(&f, sub))
		return TC_ACT_UNSPEC;
	return deliver(&f, sub, id, size, FROM_HOST);
}

#endif
