/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What a sub-interface in mode l3 or l3s sends. It has no ARP and no link: a
 * packet goes by its destination IP to a sibling or to a route of the parent's
 * namespace, whatever MAC it carries. A part of xvlan.c, whose stages it
 * stands on.
 */
#ifndef XVLAN_ROUTE_H
#define XVLAN_ROUTE_H

#ifndef AF_INET
#define AF_INET	 2
#define AF_INET6 10
#endif

/* A destination that is no one machine's, whatever MAC it comes with. */
static __always_inline bool to_group(const struct bpf_fib_lookup *to)
{
	__u32 host = bpf_ntohl(to->ipv4_dst);

	if (to->family == AF_INET6)
		return *(const __u8 *)to->ipv6_dst == 0xff;
	return host >> 28 == 14 || host == 0xffffffff;
}

/* Learns the source address, as nothing else tells it, and fills in what a
 * route is looked up by. False: it is no packet that can be sent. */
static __always_inline bool packet_out(struct frame *f, const struct sub *sub, __u32 id,
				       struct bpf_fib_lookup *to)
{
	if (f->proto_be == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = at(f, f->l3, sizeof(*ip));

		if (!ip || ip->version != 4 || ip->ihl < 5)
			return false;
		to->family = AF_INET;
		to->tos = ip->tos;
		to->ipv4_src = ip->saddr;
		to->ipv4_dst = ip->daddr;
		if (DRY_RUN || sub->vlan || who4(to->ipv4_src) != WHO(id, sub->gen))
			learn4(f->skb, id, to->ipv4_src);
	} else {
		struct ipv6hdr *ip = at(f, f->l3, sizeof(*ip));
		__u64 src[2];

		if (!ip || ip->version != 6)
			return false;
		to->family = AF_INET6;
		__builtin_memcpy(to->ipv6_src, &ip->saddr, sizeof(to->ipv6_src));
		__builtin_memcpy(to->ipv6_dst, &ip->daddr, sizeof(to->ipv6_dst));
		__builtin_memcpy(src, to->ipv6_src, sizeof(src));
		if (DRY_RUN || sub->vlan || who6(src[0], src[1]) != WHO(id, sub->gen))
			learn6(f->skb, id, src[0], src[1]);
	}
	return true;
}

/* Whether the parent's namespace has no way for a packet. bpf_redirect_neigh
 * looks up by itself, but tells nobody when it finds none. This look-up is for a
 * packet from the leg to anywhere, that one for one of the host's out of the
 * parent: where this finds nothing, that does not either, but for link-local
 * addresses. */
static __always_inline bool no_route(struct frame *f, const struct sub *sub,
				     struct bpf_fib_lookup *to)
{
	long found;

	if (to->family == AF_INET6 && (is_link_local(to->ipv6_src) || is_link_local(to->ipv6_dst)))
		return false;
	to->ifindex = sub->leg;
	found = bpf_fib_lookup(f->skb, to, sizeof(*to), 0);
	note(STEP_ROUTE, 0, found);
	return found >= BPF_FIB_LKUP_RET_BLACKHOLE && found <= BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* Whether a reserved address is the host's own. */
static __always_inline bool is_host(const struct dest *d)
{
	return d && (d->flags & (DEST_RESERVED | DEST_GATEWAY)) == DEST_RESERVED;
}

/* Out of the parent by a route of its namespace, without a word of ARP from the
 * sender. The host itself is no route: it receives by the parent, but from one with
 * SUB_VIA alone nothing that is not in its networks. */
static __always_inline int tx_by_route(struct frame *f, const struct sub *from, __u32 me, __u64 who,
				       struct bpf_fib_lookup *to, struct size size)
{
	if (!(__u32)who && is_host(dest_by_ip(f, DESTINATION))) {
		if ((from->flags & HEARS_HOST) == SUB_VIA)
			return drop(f->skb, me, VERDICT_DROP_ROUTE, size);
		count(f->skb, me, VERDICT_TX, size);
		bpf_skb_store_bytes(f->skb, 0, meta.mac, ETH_ALEN, 0);
		return bpf_redirect(meta.ifindex, BPF_F_INGRESS);
	}
	if (no_route(f, from, to))
		return drop(f->skb, me, VERDICT_DROP_ROUTE, size);
	count(f->skb, me, VERDICT_TX, size);
	return bpf_redirect_neigh(meta.ifindex, NULL, 0, 0);
}

/* All that is sent in these modes. Unlike in l2 no ARP tells that the inner leg
 * has moved, so its place is noted with every packet. */
static __noinline int tx_routed(struct __sk_buff *skb, struct sub *from, __u32 me)
{
	struct bpf_fib_lookup to = {};
	struct size size;
	struct sub *sub;
	struct frame f;
	__u32 id = 0;
	__u64 who;

	if (!may_send(skb, &f, from, me, &size, false))
		return TC_ACT_SHOT;
	see_place(skb, from);
	if (f.l3 != ETH_HLEN || skb->vlan_present ||
	    (f.proto_be != bpf_htons(ETH_P_IP) && f.proto_be != bpf_htons(ETH_P_IPV6)))
		return drop(skb, me, VERDICT_DROP_MODE, size);
	if (!packet_out(&f, from, me, &to))
		return drop(skb, me, VERDICT_DROP_MALFORMED, size);
	if (is_group(&f) || to_group(&to))
		return drop(skb, me, VERDICT_DROP_MODE, size);
	if (from->flags & SUB_VIA && goes_via(&f, me))
		return tx_via(&f, me, size);
	who = who_by_ip(&f, DESTINATION);
	sub = from->class == CLASS_VEPA ? NULL : ip_keyed(who, &id);
	if (sub && from->class == CLASS_PRIVATE)
		return drop(skb, me, VERDICT_DROP_MODE, size);
	if (sub && sub->class == CLASS_BRIDGE) {
		count(skb, me, VERDICT_TX, size);
		return deliver(&f, sub, id, size, way_of(from));
	}
	if (from->mode == MODE_L3)
		return tx_by_route(&f, from, me, who, &to, size);
	/* l3s: the stack takes what is for the host, and routes what is not. */
	count(skb, me, VERDICT_TX, size);
	bpf_skb_change_type(skb, PACKET_HOST);
	if (from->flags & SUB_NETKIT)
		skb->mark = 0; /* see xvlan_turn */
	return TC_ACT_UNSPEC;
}

#endif
