/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Answers to ARP and ND questions in the place of who is asked for. The question
 * itself becomes the answer, which has the same length, from the parent's MAC. A part
 * of xvlan.c, whose stages it stands on.
 */
#ifndef XVLAN_ANSWER_H
#define XVLAN_ANSWER_H

static __always_inline bool answer_arp(struct frame *f, const __u8 *asker)
{
	struct arp q, a;

	if (bpf_skb_load_bytes(f->skb, f->l3, &q, sizeof(q)))
		return false;
	a = q;
	a.op_be = bpf_htons(2);
	__builtin_memcpy(a.sha, meta.mac, ETH_ALEN);
	__builtin_memcpy(a.spa, q.tpa, sizeof(a.spa));
	__builtin_memcpy(a.tha, asker, ETH_ALEN);
	__builtin_memcpy(a.tpa, q.spa, sizeof(a.tpa));
	return !bpf_skb_store_bytes(f->skb, f->l3, &a, sizeof(a), 0);
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
static __always_inline bool answer_nd(struct frame *f)
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
		return false; /* duplicate address detection, say */
	a = q;
	if (bpf_skb_load_bytes(f->skb, l4 + offsetof(struct nd, target), a.addr, sizeof(a.addr)))
		return false;
	a.type = ND_NEIGHBOR_ADVERT;
	a.flags[0] = ND_SOLICITED_OVERRIDE;
	a.mac.type = ND_OPT_TARGET_LLADDR;
	__builtin_memcpy(a.mac.lladdr, meta.mac, ETH_ALEN);
	diff = bpf_csum_diff((void *)&q, sizeof(q), (void *)&a, sizeof(a), 0);
	bpf_skb_store_bytes(f->skb, addrs, a.addr, sizeof(a.addr), 0);
	bpf_skb_store_bytes(f->skb, addrs + sizeof(a.addr), asker, sizeof(asker), 0);
	bpf_skb_store_bytes(f->skb, l4, &a.type, 8, 0);
	bpf_skb_store_bytes(f->skb, l4 + sizeof(struct nd), &a.mac, sizeof(a.mac), 0);
	return !bpf_l4_csum_replace(f->skb, csum, 0, diff, 0);
}

/* Makes of a question the answer to it, for the MAC of who has asked. False: it is one
 * that is not to be answered, and as it was. */
static __always_inline bool answer(struct frame *f, const __u8 *asker)
{
	__u8 macs[2 * ETH_ALEN];

	if (f->proto_be == bpf_htons(ETH_P_ARP) ? !answer_arp(f, asker) : !answer_nd(f))
		return false;
	__builtin_memcpy(macs, asker, ETH_ALEN);
	__builtin_memcpy(macs + ETH_ALEN, meta.mac, ETH_ALEN);
	return !bpf_skb_store_bytes(f->skb, 0, macs, sizeof(macs), 0);
}

#endif
