/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What an IP-keyed sub-interface says of itself in ARP and neighbour discovery:
 * the addresses it is learned to have, and its MAC, in whose place the parent's
 * is put. A part of xvlan.c, whose stages it stands on.
 */
#ifndef XVLAN_NEIGH_H
#define XVLAN_NEIGH_H

#define ONE_EVENT ((struct size){.packets = 1})

static __always_inline __u32 *version4(const struct ip4_key *key)
{
	return &bucket4(key->addr_be)->version;
}

static __always_inline __u32 *version6(const struct ip6_key *key)
{
	__u64 word[2];

	__builtin_memcpy(word, key->addr, sizeof(word));
	return &bucket6(word[0], word[1])->version;
}

/* As addr.h asks of those who delete. */
static __always_inline void delete_entry(void *map, const void *key, __u32 *version)
{
	bpf_map_delete_elem(map, key);
	raise(version);
}

/* Drops a learned entry, if it is still this sub-interface's. */
static __always_inline void forget(void *map, const void *key, __u32 *version, __u32 id)
{
	struct dest *d = bpf_map_lookup_elem(map, key);

	if (d && d->id == id && d->flags & DEST_LEARNED)
		delete_entry(map, key, version);
}

/* Enters an address for a sub-interface; true if it is newly its own. First
 * come, first served: BPF_NOEXIST decides between two at once. */
static __always_inline bool take(struct __sk_buff *skb, void *map, const void *key, __u32 *version,
				 const struct sub *sub, __u32 me)
{
	struct dest mine = {.id = me, .gen = sub->gen, .flags = DEST_LEARNED};
	struct dest *d = bpf_map_lookup_elem(map, key);
	__u32 id;

	if (d && !(d->flags & DEST_RESERVED)) {
		if (d->id == me && d->gen == sub->gen)
			return false;
		if (!sender(d, &id)) { /* a former owner's, not yet swept */
			if (!DRY_RUN)
				delete_entry(map, key, version);
			d = NULL;
		}
	}
	if (DRY_RUN ? !d : !bpf_map_update_elem(map, key, &mine, BPF_NOEXIST)) {
		note(STEP_LEARN, me, 0);
		if (meta.watched && !DRY_RUN)
			witness(skb, me, EVENT_LEARNED);
		return !DRY_RUN;
	}
	count(skb, me, VERDICT_LEARN_DUP, ONE_EVENT);
	return false;
}

/* Whether an address may be somebody's: not this network, loopback, a group or
 * reserved, RFC 6890. */
static __always_inline bool is_host_ip4(__u32 host)
{
	return host >> 24 && host >> 24 != 127 && host >> 28 < 14;
}

/* The same of IPv6: not a group, nor :: or ::1. */
static __always_inline bool is_host_ip6(const void *addr)
{
	__u64 word[2];

	__builtin_memcpy(word, addr, sizeof(word));
	return *(const __u8 *)addr != 0xff && (word[0] || bpf_be64_to_cpu(word[1]) > 1);
}

/* An address of which the route depends on the device, and which therefore is
 * never forwarded. */
static __always_inline bool is_link_local(const void *addr)
{
	const __u8 *a = addr;

	return a[0] == 0xfe && (a[1] & 0xc0) == 0x80;
}

/* Each learned address takes the ring's next slot and the one found there is
 * forgotten, unless it was learned twice and has a later slot: no sub-interface
 * holds more than LEARN_SLOTS of each family, and one that goes through many
 * addresses takes only from itself. Global functions, as those that call them: the verifier
 * looks at them once, and each has a stack of its own. */
__noinline int learn4(struct __sk_buff *skb, __u32 id, __u32 addr)
{
	const struct sub *sub = sub_by_id(id);
	struct ip4_key key = {.addr_be = addr, .vlan = sub->vlan}, old = key;
	struct ring *ring = bpf_map_lookup_elem(&learned, &id);
	__u32 slot;

	barrier_var(skb); /* unused in a dry run, and must be passed nevertheless */
	if (!ring || !is_host_ip4(bpf_ntohl(key.addr_be)))
		return 0;
	if (!take(skb, &by_ip4, &key, version4(&key), sub, id))
		return 0;
	slot = __sync_fetch_and_add(&ring->next4, 1) % LEARN_SLOTS;
	old.addr_be = ring->ip4_be[slot];
	ring->ip4_be[slot] = key.addr_be;
	for (int n = 0; n < LEARN_SLOTS; n++)
		if (ring->ip4_be[n] == old.addr_be)
			return 0;
	forget(&by_ip4, &old, version4(&old), id);
	return 0;
}

__noinline int learn6(struct __sk_buff *skb, __u32 id, __u64 high, __u64 low)
{
	const struct sub *sub = sub_by_id(id);
	struct ip6_key key = {.vlan = sub->vlan};
	struct ring *ring = bpf_map_lookup_elem(&learned, &id);
	__u64 old[2];
	__u32 slot;

	barrier_var(skb); /* unused in a dry run, and must be passed nevertheless */
	__builtin_memcpy(key.addr, &high, sizeof(high));
	__builtin_memcpy(key.addr + sizeof(high), &low, sizeof(low));
	if (!ring || !is_host_ip6(key.addr))
		return 0;
	if (!take(skb, &by_ip6, &key, version6(&key), sub, id))
		return 0;
	slot = __sync_fetch_and_add(&ring->next6, 1) % LEARN_SLOTS;
	__builtin_memcpy(old, ring->ip6[slot], sizeof(old));
	__builtin_memcpy(ring->ip6[slot], key.addr, sizeof(key.addr));
	__builtin_memcpy(key.addr, old, sizeof(old));
	for (int n = 0; n < LEARN_SLOTS; n++)
		if (!__builtin_memcmp(ring->ip6[n], old, sizeof(old)))
			return 0;
	forget(&by_ip6, &key, version6(&key), id);
	return 0;
}

static __always_inline void learn6_at(struct __sk_buff *skb, __u32 id, const void *addr)
{
	__u64 word[2];

	__builtin_memcpy(word, addr, sizeof(word));
	learn6(skb, id, word[0], word[1]);
}

static __always_inline void yield(void *map, const void *key, __u32 *version)
{
	struct dest *d = bpf_map_lookup_elem(map, key);

	if (!d || !(d->flags & (DEST_LEARNED | DEST_LEASED)) || is_sure(d))
		return;
	note(STEP_YIELD, d->id, 0);
	if (!DRY_RUN)
		delete_entry(map, key, version);
}

/* Somebody else on the wire announces an address that a sub-interface was
 * only learned to have: the claim ends, and the next ARP or ND decides anew. */
static __always_inline void yield_to_wire(struct frame *f)
{
	if (is_foreign(f))
		return;
	if (f->proto_be == bpf_htons(ETH_P_ARP)) {
		struct ip4_key key = {.vlan = f->vlan};
		struct arp *arp = at(f, f->l3, sizeof(*arp));

		if (!arp || !is_arp_ip4(arp))
			return;
		__builtin_memcpy(&key.addr_be, arp->spa, sizeof(key.addr_be));
		yield(&by_ip4, &key, version4(&key));
	} else {
		struct ip6_key key = {.vlan = f->vlan};
		struct nd *nd = nd_at(f);

		if (!nd || nd->type != ND_NEIGHBOR_ADVERT)
			return;
		__builtin_memcpy(key.addr, nd->target, sizeof(key.addr));
		yield(&by_ip6, &key, version6(&key));
	}
}

/* Learns the sender's address and puts the parent's MAC in the inner one's
 * place. False: the header cannot be followed. */
__noinline int arp_out(struct __sk_buff *skb, __u32 id, __u32 l3)
{
	struct arp arp;
	__u32 spa;

	if (bpf_skb_load_bytes(skb, l3, &arp, sizeof(arp)) || !is_arp_ip4(&arp))
		return false;
	__builtin_memcpy(&spa, arp.spa, sizeof(spa));
	learn4(skb, id, spa);
	return !bpf_skb_store_bytes(skb, l3 + offsetof(struct arp, sha), meta.mac, ETH_ALEN, 0);
}

/* How many options of an ND message are looked through for a MAC; a message
 * with more does not go out, since the next may tell the inner one. */
#define ND_OPTIONS 16

/* Puts the parent's MAC into the link-layer address options in [off, end). */
__noinline int nd_options_out(struct __sk_buff *skb, __u32 l3, __u32 off, __u32 end)
{
	__u32 csum = l3 + sizeof(struct ipv6hdr) + offsetof(struct nd, csum_be);
	struct nd_opt old, new;

	for (int n = 0; n < ND_OPTIONS && off + sizeof(old) <= end; n++) {
		__s64 diff;

		if (bpf_skb_load_bytes(skb, off, &old, sizeof(old)) || !old.units)
			return false;
		if (old.units == 1 &&
		    (old.type == ND_OPT_SOURCE_LLADDR || old.type == ND_OPT_TARGET_LLADDR)) {
			new = old;
			__builtin_memcpy(new.lladdr, meta.mac, ETH_ALEN);
			diff =
			    bpf_csum_diff((void *)&old, sizeof(old), (void *)&new, sizeof(new), 0);
			if (diff < 0 || bpf_skb_store_bytes(skb, off, &new, sizeof(new), 0) ||
			    bpf_l4_csum_replace(skb, csum, 0, diff, 0))
				return false;
		}
		off += old.units * sizeof(old);
	}
	return off + sizeof(old) > end;
}

/* The same as arp_out for ICMPv6; what is no neighbour discovery is as it is. */
__noinline int nd_out(struct __sk_buff *skb, __u32 id, __u32 l3)
{
	__u32 l4 = l3 + sizeof(struct ipv6hdr), end;
	__u8 addr[16], type;
	__be16 len_be;

	if (bpf_skb_load_bytes(skb, l4, &type, 1) ||
	    bpf_skb_load_bytes(skb, l3 + offsetof(struct ipv6hdr, payload_len), &len_be,
			       sizeof(len_be)))
		return true;
	end = l4 + bpf_ntohs(len_be);
	if (end > skb->len)
		end = skb->len;
	if (type == ND_ROUTER_SOLICIT)
		return nd_options_out(skb, l3, l4 + 8, end);
	if (type == ND_ROUTER_ADVERT)
		return nd_options_out(skb, l3, l4 + 16, end);
	if (type != ND_NEIGHBOR_SOLICIT && type != ND_NEIGHBOR_ADVERT)
		return true;
	if (skb->len < l4 + sizeof(struct nd) ||
	    bpf_skb_load_bytes(skb,
			       type == ND_NEIGHBOR_ADVERT ? l4 + offsetof(struct nd, target)
							  : l3 + offsetof(struct ipv6hdr, saddr),
			       addr, sizeof(addr)))
		return false;
	learn6_at(skb, id, addr);
	return nd_options_out(skb, l3, l4 + sizeof(struct nd), end);
}

static __always_inline bool is_icmp6(struct frame *f)
{
	struct ipv6hdr *ip;

	if (f->proto_be != bpf_htons(ETH_P_IPV6))
		return false;
	ip = at(f, f->l3, sizeof(*ip));
	return ip && ip->nexthdr == IPPROTO_ICMPV6;
}

#endif
