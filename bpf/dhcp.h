/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * DHCP for IPv4, RFC 2131, of IP-keyed sub-interfaces. A server tells their clients
 * apart by chaddr, which is the MAC that each has inside, and would send its reply to
 * that MAC, which the wire does not know. So on the way out a client's message gets the
 * flag that asks for a broadcast reply, and on the way in a reply goes to the one whose
 * MAC it names. An address that the wire's server has acknowledged is the client's as
 * if it were given, until the lease ends. A part of xvlan.c, whose stages it stands on.
 */
#ifndef XVLAN_DHCP_H
#define XVLAN_DHCP_H

struct bootp {
	__u8 op;
	__u8 htype;
	__u8 hlen;
	__u8 hops;
	__be32 xid_be;
	__be16 secs_be;
	__be16 flags_be;
	__be32 ciaddr_be; /* the client's, if it has one */
	__be32 yiaddr_be; /* what it is offered, or acknowledged */
	__be32 siaddr_be;
	__be32 giaddr_be;
	__u16 chaddr[8];
};

#define BOOTP_OFF     (sizeof(struct iphdr) + 8) /* behind the start of the IP header */
#define BOOTP_COOKIE  236
#define BOOTP_OPTIONS 240
#define BOOTP_BCAST   0x8000
#define DHCP_COOKIE   0x63825363

enum bootp_op { BOOTP_REQUEST = 1, BOOTP_REPLY = 2 };
enum bootp_port { BOOTP_SERVER = 67, BOOTP_CLIENT = 68 };

#define DHCP_DECLINE 4
#define DHCP_ACK     5
#define DHCP_NAK     6
#define DHCP_RELEASE 7

#define DHCP_OPT_LEASE 51
#define DHCP_OPT_TYPE  53
#define DHCP_OPT_END   255

/* How many options of a message are looked through; one that has neither of ours
 * among them is as if it had none. */
#define DHCP_OPTIONS 64

#define FOREVER 0xffffffff

struct dhcp {
	struct bootp head;
	__u32 lease; /* seconds, 0 where it is not said */
	__u8 type;
};

/* Whether a frame is a datagram between these ports, with an IP header as DHCP
 * sends it. */
static __always_inline bool is_bootp(struct frame *f, __u16 from, __u16 to)
{
	struct iphdr *ip;
	__be16 *port;

	if (f->proto_be != bpf_htons(ETH_P_IP))
		return false;
	ip = at(f, f->l3, BOOTP_OFF);
	if (!ip || ip->protocol != IPPROTO_UDP || ip->ihl != 5)
		return false;
	port = (void *)(ip + 1);
	return port[0] == bpf_htons(from) && port[1] == bpf_htons(to);
}

static __always_inline void dhcp_options(struct __sk_buff *skb, __u32 off, struct dhcp *d)
{
	__u8 code, len;
	__be32 lease;

	for (int n = 0; n < DHCP_OPTIONS; n++) {
		if (bpf_skb_load_bytes(skb, off++, &code, 1) || code == DHCP_OPT_END)
			return;
		if (!code)
			continue;
		if (bpf_skb_load_bytes(skb, off++, &len, 1))
			return;
		if (code == DHCP_OPT_TYPE && len == 1)
			bpf_skb_load_bytes(skb, off, &d->type, 1);
		if (code == DHCP_OPT_LEASE && len == sizeof(lease) &&
		    !bpf_skb_load_bytes(skb, off, &lease, sizeof(lease)))
			d->lease = bpf_ntohl(lease);
		off += len;
	}
}

/* Reads a message for Ethernet. False: it is a fragment, cut off or not DHCP. */
static __always_inline bool dhcp_read(struct __sk_buff *skb, __u32 l3, enum bootp_op op,
				      struct dhcp *d)
{
	__be32 cookie;
	__be16 frag;

	if (bpf_skb_load_bytes(skb, l3 + offsetof(struct iphdr, frag_off), &frag, sizeof(frag)) ||
	    frag & bpf_htons(0x3fff) ||
	    bpf_skb_load_bytes(skb, l3 + BOOTP_OFF, &d->head, sizeof(d->head)) ||
	    bpf_skb_load_bytes(skb, l3 + BOOTP_OFF + BOOTP_COOKIE, &cookie, sizeof(cookie)))
		return false;
	if (d->head.op != op || d->head.htype != 1 || d->head.hlen != ETH_ALEN ||
	    cookie != bpf_htonl(DHCP_COOKIE))
		return false;
	dhcp_options(skb, l3 + BOOTP_OFF + BOOTP_OPTIONS, d);
	return true;
}

static __always_inline bool is_chaddr(const struct dhcp *d, const __u8 *mac)
{
	const __u16 *half = (const __u16 *)mac;

	return d->head.chaddr[0] == half[0] && d->head.chaddr[1] == half[1] &&
	       d->head.chaddr[2] == half[2];
}

/* Ends a sub-interface's lease of an address, if it is one. */
static __always_inline void end_lease(const struct sub *sub, __u32 id, __be32 addr_be)
{
	struct ip4_key key = {.addr_be = addr_be, .vlan = sub->vlan};
	struct dest *d = bpf_map_lookup_elem(&by_ip4, &key);

	if (d && d->id == id && d->flags & DEST_LEASED)
		delete_entry(&by_ip4, &key, version4(&key));
}

/* The answer may be unicast to the address, which the short way would deliver
 * unseen: while it is awaited, no copies of the entry are made. */
static __always_inline void await_answer(const struct sub *sub, __u32 id, __be32 addr_be)
{
	struct ip4_key key = {.addr_be = addr_be, .vlan = sub->vlan};
	struct dest *d = bpf_map_lookup_elem(&by_ip4, &key);

	if (!d || d->id != id || !(d->flags & DEST_LEASED))
		return;
	d->flags |= DEST_AWAITED;
	raise(version4(&key));
}

static __always_inline void ask_broadcast(struct __sk_buff *skb, __u32 l3, const struct dhcp *d)
{
	__u32 off = l3 + BOOTP_OFF + offsetof(struct bootp, flags_be);
	__u32 csum = l3 + sizeof(struct iphdr) + 6;
	__be16 flags_be = d->head.flags_be | bpf_htons(BOOTP_BCAST);

	if (flags_be == d->head.flags_be ||
	    bpf_skb_store_bytes(skb, off, &flags_be, sizeof(flags_be), 0))
		return;
	/* One that is not there stays so; one that the device is to fill in, too. */
	bpf_l4_csum_replace(skb, csum, d->head.flags_be, flags_be,
			    BPF_F_MARK_MANGLED_0 | sizeof(flags_be));
}

/* A client's message to its server. A global function, as the next one: neither is
 * needed often, and each has a stack of its own. */
__noinline int dhcp_ask(struct __sk_buff *skb, __u32 id, __u32 l3)
{
	struct ring *ring = bpf_map_lookup_elem(&learned, &id);
	struct sub *sub = sub_by_id(id);
	struct dhcp d = {};

	if (!ring || !dhcp_read(skb, l3, BOOTP_REQUEST, &d))
		return 0;
	ask_broadcast(skb, l3, &d);
	if (DRY_RUN || !is_chaddr(&d, sub->mac))
		return 0;
	ring->xid_be = d.head.xid_be;
	if (!ring->leased_be)
		return 0;
	if (d.type == DHCP_DECLINE ||
	    (d.type == DHCP_RELEASE && d.head.ciaddr_be == ring->leased_be)) {
		end_lease(sub, id, ring->leased_be);
		ring->leased_be = 0;
	} else if (d.head.ciaddr_be == ring->leased_be) {
		await_answer(sub, id, ring->leased_be);
	}
	return 0;
}

/* Makes an acknowledged address a sub-interface's own. What it is learned to have
 * anyhow, or a sibling is, gives way; what is the host's, a gateway's, given to a
 * sibling or leased by one does not. */
static __always_inline bool take_lease(const struct sub *sub, __u32 id, __be32 addr_be, __u32 until)
{
	struct dest mine = {.id = id, .gen = sub->gen, .flags = DEST_LEASED, .until = until};
	struct ip4_key key = {.addr_be = addr_be, .vlan = sub->vlan};
	struct dest *d = bpf_map_lookup_elem(&by_ip4, &key);
	__u32 holder;

	if (d && d->id == id && d->gen == sub->gen) {
		if (d->flags & DEST_GIVEN || DRY_RUN)
			return true;
		d->until = until;
		d->flags = DEST_LEASED;
		return true;
	}
	if (d && (d->flags & DEST_RESERVED || (is_sure(d) && sender(d, &holder))))
		return false;
	if (DRY_RUN)
		return true;
	if (d)
		delete_entry(&by_ip4, &key, version4(&key));
	return !bpf_map_update_elem(&by_ip4, &key, &mine, BPF_NOEXIST);
}

/* A server's last word on what a client has asked for: no other message gives or
 * takes anything. */
static __always_inline void settle(struct __sk_buff *skb, struct sub *sub, __u32 id,
				   const struct dhcp *d)
{
	struct ring *ring = bpf_map_lookup_elem(&learned, &id);
	__be32 addr_be = d->type == DHCP_ACK ? d->head.yiaddr_be : 0;
	__u32 host = bpf_ntohl(addr_be), now = bpf_ktime_get_boot_ns() / NSEC_PER_SEC;
	bool more = d->lease < FOREVER - now;

	if (!ring || !ring->xid_be || ring->xid_be != d->head.xid_be)
		return;
	if (d->type == DHCP_ACK) { /* to an inform it is without a lease */
		if (!d->lease || !is_host_ip4(host))
			return;
		if (!take_lease(sub, id, addr_be, more ? now + d->lease : FOREVER)) {
			count(skb, id, VERDICT_LEARN_DUP, ONE_EVENT);
			return;
		}
	}
	if (DRY_RUN)
		return;
	if (ring->leased_be && ring->leased_be != addr_be)
		end_lease(sub, id, ring->leased_be);
	ring->leased_be = addr_be;
}

struct asker {
	__u16 mac[3];
	__u32 vlan;
	__u32 id; /* out: 0 where it is none, or several */
};

static long match_asker(__u32 n, struct asker *a)
{
	struct sub *sub = sub_by_id(n + 1);
	const __u16 *half = (const __u16 *)sub->mac;

	if (half[2] != a->mac[2] || half[1] != a->mac[1] || half[0] != a->mac[0] ||
	    sub->kind != KIND_IPVLAN || is_routed(sub) || sub->flags & SUB_NO_DHCP ||
	    sub->vlan != a->vlan || !is_there(sub))
		return 0;
	if (a->id) {
		a->id = 0;
		return 1;
	}
	a->id = n + 1;
	return 0;
}

/* Whether a frame's source is of this host: what was sent here and has come back gives
 * nobody an address. */
static __always_inline bool sent_here(const struct frame *f)
{
	struct {
		__u16 pad; /* aligns mac for mac_eq */
		__u8 mac[6];
	} src;
	__u32 id;

	return bpf_skb_load_bytes(f->skb, ETH_ALEN, src.mac, ETH_ALEN) ||
	       mac_eq(src.mac, meta.mac) || sub_by_mac(f, src.mac, &id);
}

/* The id of the sub-interface that an IPv4 packet is for as a server's reply from the
 * wire; 0 if it is none, for none of those that are helped, or for another than its
 * destination address's owner, if that has one: the short way knows no other. */
__noinline int dhcp_reply(struct __sk_buff *skb, __u32 l3, __u32 vlan, __u32 owner_id)
{
	/* The verifier has to know a bound of l3, which is behind two tags at most. */
	struct frame f = {.skb = skb, .l3 = l3 & 31, .vlan = vlan, .proto_be = bpf_htons(ETH_P_IP)};
	struct asker a = {.vlan = vlan};
	struct dhcp d = {};
	struct sub *sub;

	reload(&f);
	if (!is_bootp(&f, BOOTP_SERVER, BOOTP_CLIENT) || sent_here(&f))
		return 0;
	if (!dhcp_read(skb, l3, BOOTP_REPLY, &d))
		return 0;
	__builtin_memcpy(a.mac, d.head.chaddr, sizeof(a.mac));
	bpf_loop(meta.capacity, match_asker, &a, 0);
	note(STEP_ASKER, a.id, d.type);
	if (!a.id || (owner_id && owner_id != a.id))
		return 0;
	sub = sub_by_id(a.id);
	if (d.type == DHCP_ACK || d.type == DHCP_NAK)
		settle(skb, sub, a.id, &d);
	return a.id;
}

/* Whom a server's reply is for; NULL if that is nobody here. */
static __always_inline struct sub *asker(struct frame *f, __u32 owner_id, __u32 *id)
{
	if (!meta.ip_keyed || f->proto_be != bpf_htons(ETH_P_IP))
		return NULL;
	*id = dhcp_reply(f->skb, f->l3, f->vlan, owner_id);
	reload(f);
	return *id ? sub_by_id(*id) : NULL;
}

#endif
