/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The source guard: what a sub-interface with SUB_GUARDED sends is looked at
 * before anything else is done with it, learned of it or told to anybody. It
 * has to be IPv4, IPv6 or ARP without a tag, come from its MAC and from
 * addresses of its own, say of both nothing but the truth, and be neither a
 * router's nor a DHCP server's word, unless that is allowed. What tells this is
 * looked for behind options, extension headers and in first fragments, too; where
 * it is not to be found the frame is dropped, so that later fragments can pass.
 * Besides, there is a budget for what wakes others. A part of xvlan.c.
 */
#ifndef XVLAN_GUARD_H
#define XVLAN_GUARD_H

#define SECOND 1000000000ULL

/* Addresses learned one after the other, of both families, and the time in
 * which there may be one more: a ring alone would let each packet come from
 * another address. */
#define LEARN_BURST 16
#define LEARN_TIME  (10 * SECOND)

/* Extension headers of IPv6 that are followed. */
#define EXTENSIONS 8

enum dhcp6_port { DHCP6_CLIENT = 546, DHCP6_SERVER = 547 };

static __always_inline struct guard *guard_of(__u32 id)
{
	return ELEMENT(guards, id & id_mask);
}

/* Whether what costs so many ns may be had now, where as much as comes in
 * `saved` ns can be saved. *paid is when all that was had so far is paid for, on
 * a clock that is ahead by that: 0 is one who has saved all. */
static __always_inline bool afford(__u64 *paid, __u64 cost, __u64 saved)
{
	__u64 now = bpf_ktime_get_ns();

	for (int n = 0; n < 4; n++) { /* other CPUs pay as well */
		__u64 was = READ(*paid), from = was < now ? now : was;

		if (from + cost > now + saved)
			return false;
		if (DRY_RUN || __sync_val_compare_and_swap(paid, was, from + cost) == was)
			return true;
	}
	return false;
}

/* Whether an entry is a sub-interface's own, and whether it is somebody's. */
static __always_inline bool is_own(const struct dest *d, const struct sub *sub, __u32 me)
{
	return d && d->id == me && d->gen == sub->gen;
}

static __always_inline bool is_taken(const struct dest *d)
{
	__u32 id;

	return d && (d->flags & DEST_RESERVED || sender(d, &id));
}

/* Whether an address may be spoken from: it is the sub-interface's, or nobody's
 * and may be learned, and with TAKE is. Global functions, so that the verifier
 * looks at them once. */
enum claim { ASK, TAKE };

__noinline int has4(struct __sk_buff *skb, __u32 me, __u32 addr, __u32 claim)
{
	const struct sub *sub = sub_by_id(me);
	struct ip4_key key = {.addr_be = addr, .vlan = sub->vlan};
	struct guard *g = guard_of(me);
	struct dest *d;

	barrier_var(skb); /* unused in a dry run, and must be passed nevertheless */
	if (!DRY_RUN && !sub->vlan && who4(addr) == WHO(me, sub->gen))
		return true;
	d = noted(STEP_IP, bpf_map_lookup_elem(&by_ip4, &key));
	if (is_own(d, sub, me))
		return true;
	if (is_taken(d) || !(g->flags & GUARD_LEARN4) || !is_host_ip4(bpf_ntohl(addr)))
		return false;
	if (claim == ASK)
		return true;
	if (!afford(&g->addrs_ns, LEARN_TIME, LEARN_BURST * LEARN_TIME))
		return false;
	learn4(skb, me, addr);
	return DRY_RUN || is_own(bpf_map_lookup_elem(&by_ip4, &key), sub, me);
}

/* A link-local address may be learned even where others are given. */
__noinline int has6(struct __sk_buff *skb, __u32 me, __u64 high, __u64 low, __u32 claim)
{
	const struct sub *sub = sub_by_id(me);
	struct ip6_key key = {.vlan = sub->vlan};
	__u64 addr[2] = {high, low};
	struct guard *g = guard_of(me);
	struct dest *d;

	barrier_var(skb); /* unused in a dry run, and must be passed nevertheless */
	if (!DRY_RUN && !sub->vlan && who6(high, low) == WHO(me, sub->gen))
		return true;
	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	d = noted(STEP_IP, bpf_map_lookup_elem(&by_ip6, &key));
	if (is_own(d, sub, me))
		return true;
	if (is_taken(d) || !(g->flags & GUARD_LEARN6 || is_link_local(addr)) || !is_host_ip6(addr))
		return false;
	if (claim == ASK)
		return true;
	if (!afford(&g->addrs_ns, LEARN_TIME, LEARN_BURST * LEARN_TIME))
		return false;
	learn6(skb, me, high, low);
	return DRY_RUN || is_own(bpf_map_lookup_elem(&by_ip6, &key), sub, me);
}

static __always_inline bool has6_at(struct frame *f, __u32 me, __u32 off, enum claim claim)
{
	__u64 addr[2];

	return !bpf_skb_load_bytes(f->skb, off, addr, sizeof(addr)) &&
	       has6(f->skb, me, addr[0], addr[1], claim);
}

/* ARP: questions and answers in its own name. A probe, from no address, asks
 * whether somebody has what it wants to take. */
static __always_inline enum verdict guard_arp(struct frame *f, const struct sub *sub, __u32 me)
{
	struct arp *arp = at(f, f->l3, sizeof(*arp));
	__u32 spa, tpa;
	bool asks;

	if (!arp || !is_arp_ip4(arp) || !mac_eq(arp->sha, sub->mac))
		return VERDICT_DROP_ARP;
	asks = arp->op_be == bpf_htons(1);
	if (!asks && arp->op_be != bpf_htons(2))
		return VERDICT_DROP_ARP;
	__builtin_memcpy(&spa, arp->spa, sizeof(spa));
	__builtin_memcpy(&tpa, arp->tpa, sizeof(tpa));
	if (spa ? has4(f->skb, me, spa, TAKE) : asks && has4(f->skb, me, tpa, ASK))
		return VERDICT_PASS;
	return VERDICT_DROP_ARP;
}

/* The first bytes of a transport header. */
union transport {
	struct {
		__be16 source_be;
		__be16 dest_be;
	};
	struct {
		__u8 type;
		__u8 code;
	};
	__u8 bytes[8];
};

/* DHCP: nothing to a client, and to a server or relay agent only what a client
 * asks for itself. `body` is the offset behind the UDP header. */
static __always_inline bool is_dhcp4_foreign(struct frame *f, const struct sub *sub,
					     const union transport *t, __u32 body)
{
	__u8 head[4]; /* op, htype, hlen, hops */
	struct {
		__u16 pad; /* aligns chaddr for mac_eq */
		__u8 chaddr[ETH_ALEN];
	} __attribute__((aligned(8))) client;

	if (t->dest_be == bpf_htons(BOOTP_CLIENT))
		return true;
	if (t->dest_be != bpf_htons(BOOTP_SERVER))
		return false;
	return bpf_skb_load_bytes(f->skb, body, head, sizeof(head)) ||
	       bpf_skb_load_bytes(f->skb,
				  body + offsetof(struct bootp, chaddr) - sizeof(client.pad),
				  &client, sizeof(client)) ||
	       head[0] != BOOTP_REQUEST || head[1] != 1 || head[2] != ETH_ALEN ||
	       !mac_eq(client.chaddr, sub->mac);
}

static __always_inline bool is_dhcp6_foreign(struct frame *f, const union transport *t, __u32 body)
{
	__u8 type;

	if (t->dest_be == bpf_htons(DHCP6_CLIENT))
		return true;
	if (t->dest_be != bpf_htons(DHCP6_SERVER))
		return false;
	/* Advertise, reply, reconfigure and what a relay agent is told to hand on. */
	return bpf_skb_load_bytes(f->skb, body, &type, 1) || type == 2 || type == 7 || type == 10 ||
	       type == 13;
}

/* What an IPv4 packet says. *nameless tells what may come from 0.0.0.0. */
static __always_inline enum verdict guard_said4(struct frame *f, const struct sub *sub,
						__u32 allowed, __u32 l4, __u8 proto, bool *nameless)
{
	union transport t;

	*nameless = false;
	if (proto != IPPROTO_UDP && proto != IPPROTO_ICMP && proto != IPPROTO_IGMP)
		return VERDICT_PASS;
	if (bpf_skb_load_bytes(f->skb, l4, &t, sizeof(t)))
		return VERDICT_DROP_MALFORMED;
	if (proto == IPPROTO_UDP) {
		*nameless =
		    t.source_be == bpf_htons(BOOTP_CLIENT) && t.dest_be == bpf_htons(BOOTP_SERVER);
		if (!(allowed & GUARD_DHCP) && is_dhcp4_foreign(f, sub, &t, l4 + sizeof(t)))
			return VERDICT_DROP_DHCP;
		return VERDICT_PASS;
	}
	*nameless = proto == IPPROTO_IGMP;
	if (allowed & GUARD_ROUTER)
		return VERDICT_PASS;
	if (proto == IPPROTO_IGMP ? t.type == IGMP_QUERY
				  : t.type == ICMP_REDIRECT || t.type == ICMP_ROUTER_ADVERT)
		return VERDICT_DROP_ROUTER;
	return VERDICT_PASS;
}

static __always_inline enum verdict guard_ip4(struct frame *f, const struct sub *sub, __u32 me,
					      __u32 allowed)
{
	struct iphdr *ip = at(f, f->l3, sizeof(*ip));
	enum verdict lost = VERDICT_PASS;
	bool nameless = false;
	__u32 from, to;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return VERDICT_DROP_MALFORMED;
	from = ip->saddr;
	to = ip->daddr;
	if (!(ip->frag_off & bpf_htons(0x1fff)))
		lost = guard_said4(f, sub, allowed, f->l3 + ip->ihl * 4, ip->protocol, &nameless);
	if (lost)
		return lost;
	if (from ? has4(f->skb, me, from, TAKE) : nameless && bpf_ntohl(to) >> 29 == 7)
		return VERDICT_PASS;
	return VERDICT_DROP_SOURCE_IP;
}

/* Whether the options of an ND message, in [off, end), tell no MAC but the
 * sub-interface's, or none where it has no address yet. A global function as well. */
__noinline int is_nd_true(struct __sk_buff *skb, __u32 me, __u32 off, __u32 end, __u32 named)
{
	const struct sub *sub = sub_by_id(me);
	struct nd_opt opt;

	for (int n = 0; n < ND_OPTIONS && off + sizeof(opt) <= end; n++) {
		if (bpf_skb_load_bytes(skb, off, &opt, sizeof(opt)) || !opt.units)
			return false;
		if ((opt.type == ND_OPT_SOURCE_LLADDR || opt.type == ND_OPT_TARGET_LLADDR) &&
		    (!named || opt.units != 1 || !mac_eq(opt.lladdr, sub->mac)))
			return false;
		off += opt.units * sizeof(opt);
	}
	return off + sizeof(opt) > end;
}

/* A solicitation or advertisement of a neighbour, or what a host asks routers. */
static __always_inline bool is_nd_own(struct frame *f, __u32 me, __u32 l4, __u32 end, __u8 type,
				      bool named)
{
	__u32 target = l4 + offsetof(struct nd, target);

	if (type == ND_ROUTER_SOLICIT || type == ND_ROUTER_ADVERT)
		return is_nd_true(f->skb, me, l4 + (type == ND_ROUTER_SOLICIT ? 8 : 16), end,
				  named);
	if (!is_nd_true(f->skb, me, l4 + sizeof(struct nd), end, named))
		return false;
	if (type == ND_NEIGHBOR_ADVERT)
		return named && has6_at(f, me, target, TAKE);
	return named || has6_at(f, me, target, ASK); /* address detection */
}

/* What ICMPv6 says. *nameless tells what may come from ::, and named what does not.
 * Neighbour discovery comes without extension headers; RFC 6980 asks that of fragments,
 * and for others nobody has a use. */
static __always_inline enum verdict guard_icmp6(struct frame *f, __u32 me, __u32 allowed, __u32 l4,
						__u32 end, bool named, bool *nameless)
{
	bool extended = l4 != f->l3 + sizeof(struct ipv6hdr);
	union transport t;

	if (bpf_skb_load_bytes(f->skb, l4, &t, sizeof(t)))
		return VERDICT_DROP_MALFORMED;
	switch (t.type) {
	case ND_ROUTER_ADVERT:
	case ND_REDIRECT:
	case MLD_QUERY:
	case ROUTER_RENUMBERING:
	case MRD_ADVERT:
	case MRD_TERMINATION:
		if (!(allowed & GUARD_ROUTER))
			return VERDICT_DROP_ROUTER;
		if (t.type != ND_ROUTER_ADVERT)
			return VERDICT_PASS;
		break;
	case ND_INVERSE_SOLICIT:
	case ND_INVERSE_ADVERT:
		return VERDICT_DROP_ND;
	case ND_ROUTER_SOLICIT:
	case ND_NEIGHBOR_SOLICIT:
	case ND_NEIGHBOR_ADVERT:
		break;
	case MLD_REPORT:
	case MLD_DONE:
	case MLD2_REPORT:
		*nameless = true;
		return VERDICT_PASS;
	default:
		return VERDICT_PASS;
	}
	if (extended || !is_nd_own(f, me, l4, end, t.type, named))
		return VERDICT_DROP_ND;
	*nameless = t.type == ND_ROUTER_SOLICIT || t.type == ND_NEIGHBOR_SOLICIT;
	return VERDICT_PASS;
}

/* What is behind the extension headers of IPv6: its offset, and above that the number of
 * its protocol. LATER says that it is no first fragment, and that what is there tells nothing. 0
 * where they cannot be followed so far. A global function as well. */
#define BEHIND(off, proto) ((__u64)(proto) << 32 | (off))
#define LATER		   (1ULL << 40)

__noinline __u64 behind_extensions(struct __sk_buff *skb, __u32 off, __u32 proto)
{
	bool fragment = false;
	__u8 head[4];

	for (int n = 0; n < EXTENSIONS; n++) {
		switch (proto) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
		case IPPROTO_MH:
		case IPPROTO_HIP:
		case IPPROTO_SHIM6:
			break;
		default:
			return BEHIND(off, proto);
		}
		if (bpf_skb_load_bytes(skb, off, head, sizeof(head)))
			return 0;
		if (proto == IPPROTO_FRAGMENT) {
			if (fragment)
				return 0;
			if (head[2] || head[3] & 0xf8)
				return BEHIND(off, proto) | LATER;
			fragment = true;
			off += 8;
		} else {
			off += proto == IPPROTO_AH ? (head[1] + 2) * 4 : (head[1] + 1) * 8;
		}
		proto = head[0];
	}
	return 0;
}

static __always_inline enum verdict guard_ip6(struct frame *f, __u32 me, __u32 allowed)
{
	struct ipv6hdr *ip = at(f, f->l3, sizeof(*ip));
	enum verdict lost = VERDICT_PASS;
	bool named, nameless = false;
	__u32 l4 = f->l3 + sizeof(*ip), end;
	union transport t;
	__u64 from[2];
	__u64 behind;

	if (!ip || ip->version != 6)
		return VERDICT_DROP_MALFORMED;
	__builtin_memcpy(from, &ip->saddr, sizeof(from));
	named = from[0] || from[1];
	end = l4 + bpf_ntohs(ip->payload_len);
	behind = behind_extensions(f->skb, l4, ip->nexthdr);
	if (!behind)
		return VERDICT_DROP_MALFORMED;
	l4 = behind;
	if (behind >> 32 == IPPROTO_ICMPV6) {
		lost = guard_icmp6(f, me, allowed, l4, end, named, &nameless);
	} else if (behind >> 32 == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(f->skb, l4, &t, sizeof(t)))
			return VERDICT_DROP_MALFORMED;
		if (!(allowed & GUARD_DHCP) && is_dhcp6_foreign(f, &t, l4 + sizeof(t)))
			lost = VERDICT_DROP_DHCP;
	}
	if (lost)
		return lost;
	if (named ? has6(f->skb, me, from[0], from[1], TAKE) : nameless)
		return VERDICT_PASS;
	return VERDICT_DROP_SOURCE_IP;
}

/* Why a frame must not leave; VERDICT_PASS if it may. */
static __always_inline enum verdict guard_source(struct frame *f, __u32 me, __u32 allowed)
{
	struct ethhdr *eth = at(f, 0, sizeof(*eth));
	const struct sub *sub = sub_by_id(me);

	if (!eth || !mac_eq(eth->h_source, sub->mac))
		return VERDICT_DROP_SOURCE_MAC;
	if (f->tpid_be)
		return VERDICT_DROP_TAG;
	if (f->proto_be == bpf_htons(ETH_P_IP))
		return guard_ip4(f, sub, me, allowed);
	if (f->proto_be == bpf_htons(ETH_P_IPV6))
		return guard_ip6(f, me, allowed);
	if (f->proto_be == bpf_htons(ETH_P_ARP))
		return guard_arp(f, sub, me);
	return VERDICT_DROP_ETHERTYPE;
}

/* What others have to look at, whoever it is for: broadcasts, what is for all
 * nodes, ARP and neighbour discovery. */
static __always_inline bool is_calling(struct frame *f)
{
	struct ethhdr *eth = at(f, 0, sizeof(*eth));
	struct ipv6hdr *ip;
	__u8 type;

	if (!eth)
		return false;
	if (f->proto_be == bpf_htons(ETH_P_ARP) || is_broadcast(eth->h_dest) ||
	    mac_eq(eth->h_dest, "\x33\x33\0\0\0\1") || mac_eq(eth->h_dest, "\1\0\x5e\0\0\1"))
		return true;
	if (f->proto_be != bpf_htons(ETH_P_IPV6))
		return false;
	ip = at(f, f->l3, sizeof(*ip) + 1);
	if (!ip || ip->nexthdr != IPPROTO_ICMPV6)
		return false;
	type = *(__u8 *)(ip + 1);
	return type >= ND_ROUTER_SOLICIT && type <= ND_REDIRECT;
}

/* Whether what a sub-interface sends may leave; what may not is counted. A global
 * function, which the verifier looks at once. */
__noinline int may_leave(struct __sk_buff *skb, __u32 me)
{
	struct guard *g = guard_of(me);
	enum verdict lost = VERDICT_PASS;
	struct frame f;
	struct size size;

	note(STEP_GUARD, me, 0);
	if (!parse_skb(skb, &f))
		return false;
	if (g->flags & GUARD_SOURCE)
		lost = guard_source(&f, me, g->flags);
	reload(&f);
	size = size_of(&f);
	if (!lost && g->rate && is_calling(&f) &&
	    !afford(&g->frames_ns, size.packets * SECOND / g->rate, SECOND))
		lost = VERDICT_DROP_RATE;
	if (lost)
		drop(skb, me, lost, size);
	return !lost;
}

#endif
