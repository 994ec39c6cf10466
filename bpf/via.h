/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * By way of the host: what a sub-interface with SUB_VIA sends to the networks that
 * `vias` has for it comes in by the parent for the host's stack, whatever MAC it is
 * sent to and whoever else has the address; its questions for such addresses are
 * answered with the parent's MAC. The way back is that of host access. A part of
 * xvlan.c, whose stages it stands on.
 */
#ifndef XVLAN_VIA_H
#define XVLAN_VIA_H

/* On what goes that way, and comes off in xvlan_rx. What comes from the wire has no
 * mark, and of what a container sends the kernel clears it. */
#define MARK_VIA 0x78766c70

/* Whether a sub-interface reaches an address that way. A global function, so that the
 * verifier looks at it once. */
__noinline int is_via(__u32 me, __u64 high, __u64 low)
{
	struct via *via = bpf_map_lookup_elem(&vias, &me);
	bool found = false;

	for (__u32 n = 0; via && n < VIA_NETS && n < via->number && !found; n++) {
		const struct via_net *net = &via->net[n];

		found = !((high & net->mask[0]) ^ net->addr[0]) &&
			!((low & net->mask[1]) ^ net->addr[1]);
	}
	note(STEP_VIA, me, found);
	return found;
}

static __always_inline bool is_via4(__u32 me, const void *addr)
{
	__u32 addr_be;

	__builtin_memcpy(&addr_be, addr, sizeof(addr_be));
	return is_via(me, 0, bpf_cpu_to_be64(0xffff00000000ULL | bpf_ntohl(addr_be)));
}

/* What a route does not tell the way to is never the host's to route. */
static __always_inline bool is_via6(__u32 me, const void *addr)
{
	__u64 word[2];

	__builtin_memcpy(word, addr, sizeof(word));
	return !is_link_local(addr) && is_via(me, word[0], word[1]);
}

/* Whether a frame asks for an address that the host is the way to. Who asks in nobody's
 * name, or for what he says he has, wants to hear of nobody. */
static __always_inline bool asks_via(struct frame *f, __u32 me)
{
	struct nd *nd;

	if (f->proto_be == bpf_htons(ETH_P_ARP)) {
		struct arp *arp = at(f, f->l3, sizeof(*arp));

		return arp && is_arp_ip4(arp) && arp->op_be == bpf_htons(1) &&
		       __builtin_memcmp(arp->spa, "\0\0\0\0", 4) &&
		       __builtin_memcmp(arp->spa, arp->tpa, 4) && is_via4(me, arp->tpa);
	}
	nd = nd_at(f);
	return nd && nd->type == ND_NEIGHBOR_SOLICIT && is_via6(me, nd->target);
}

/* Answers such a question. False: it is none, or not to be answered. A global function,
 * for the stack. */
__noinline int answer_via(struct __sk_buff *skb, __u32 me)
{
	struct frame f;

	return parse_skb(skb, &f) && !is_foreign(&f) && asks_via(&f, me) &&
	       answer(&f, sub_by_id(me)->mac);
}

/* Whether a packet is for such an address. */
static __always_inline bool goes_via(struct frame *f, __u32 me)
{
	if (is_group(f) || f->vlan || is_foreign(f))
		return false;
	if (f->proto_be == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = at(f, f->l3, sizeof(*ip));

		return ip && is_via4(me, &ip->daddr);
	}
	if (f->proto_be == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = at(f, f->l3, sizeof(*ip));

		return ip && is_via6(me, &ip->daddr);
	}
	return false;
}

/* Sends it to the host. Under the parent's own MAC xvlan_rx would take it for that of an
 * IP-keyed sibling that has the address, on its short way, which looks at no mark: so
 * until it is there the MAC is a group's. */
static __always_inline int tx_via(struct frame *f, __u32 me, struct size size)
{
	__u8 dst[ETH_ALEN];

	count(f->skb, me, VERDICT_TX, size);
	__builtin_memcpy(dst, meta.mac, ETH_ALEN);
	dst[0] |= 1;
	bpf_skb_store_bytes(f->skb, 0, dst, ETH_ALEN, 0);
	f->skb->mark = MARK_VIA;
	return bpf_redirect(meta.ifindex, BPF_F_INGRESS);
}

/* Such a frame as the host gets it. */
static __always_inline void came_via(struct __sk_buff *skb)
{
	bpf_skb_store_bytes(skb, 0, meta.mac, ETH_ALEN, 0);
	bpf_skb_change_type(skb, PACKET_HOST);
}

#endif
