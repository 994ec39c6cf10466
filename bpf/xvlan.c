//go:build ignore

/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The packet path. Each program is a few lines over the same stages, which
 * stand below in this order:
 *
 *   parse    Ethernet header and outer VLAN tag
 *   vlan     which VLAN that is, if anybody is in it; tags taken off and put on
 *   key      what the frame is looked up by: a MAC, or an IP behind the parent's MAC
 *   look up  key -> id -> sub-interface, if its record is active and of that generation
 *   count    exactly one verdict a frame, and one more for each copy delivered
 *   deliver  to a sibling's leg, to all legs, to the wire, or on to the host
 *   police   source guard, MTU, malformed ARP and ND, who may learn what
 *   route    what is sent in the modes l3 and l3s, by destination IP alone
 *   host     what the host and sub-interfaces with host access send each other, and
 *            what goes by way of the host
 *
 *   xvlan_xdp  parent, XDP          drops early what `unknown drop` forbids, and serves
 *                                   the XDP programs of sub-interfaces
 *   xvlan_rx   parent, tc ingress   wire -> sub-interfaces, the rest -> host
 *   xvlan_tx   host leg, tc ingress sub-interface -> siblings, the rest -> wire; of a
 *                                   netkit pair, on the inner leg's egress
 *   xvlan_turn host leg, tc ingress of a netkit pair: what is for a sibling's peer
 *   xvlan_host parent, tc egress   host -> sub-interfaces with host access, the rest -> wire
 *   xvlan_meet by the loader       writes down what is at a host leg's other end
 *   xvlan_carry by the loader      adds to counters while frames are counted
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "kernel.h"
#include "xvlan.h"
#include "maps.h"
#include "trace.h" /* note, which is nothing but in a dry run */
#include "device.h"

char _license[] SEC("license") = "Dual MIT/GPL";

/* Keeps these in the BTF that the Go names are made from. */
const enum verdict *emit_verdict __attribute__((unused));
const struct sighting *emit_sighting __attribute__((unused));
const struct carried *emit_carried __attribute__((unused));

/* Set by the loader: the slot tables have 1 << (32 - slot_shift) entries, those
 * of addresses 1 << (64 - addr_shift), and subs has id_mask + 1. */
const volatile __u32 slot_shift = 32;
const volatile __u32 addr_shift = 63;
const volatile __u32 id_mask = 0;

/* Set by the loader: this machine keeps the order of its reads, as amd64 does. */
const volatile bool in_order = false;

#define NSEC_PER_SEC 1000000000

/* ---- parse ---- */

struct frame {
	struct __sk_buff *skb; /* NULL under XDP */
	void *data;
	void *end;
	__u32 vlan;	/* that it is in: see vlan.h */
	__u32 tci;	/* of the outer tag, 0 for none; in a VLAN: of the 802.1Q tag, and above
			   it by 16 bits of the service tag */
	__u16 l3;	/* offset of the network header */
	__u16 tpid_be;	/* EtherType of the outer tag, 0 for none */
	__u16 proto_be; /* EtherType behind the outer tag */
};

/* What a frame counts for: what the wire carries of it. */
struct size {
	__u64 packets;
	__u64 bytes;
};

static __always_inline void reload(struct frame *f)
{
	f->data = (void *)(long)f->skb->data;
	f->end = (void *)(long)f->skb->data_end;
}

/* The bytes [off, off+len) of the frame, or NULL where it is shorter. Moves
 * f->data when they first have to be pulled out of a fragment: pointers from
 * earlier calls are then void. */
static __always_inline void *at(struct frame *f, __u32 off, __u32 len)
{
	if (f->data + off + len <= f->end)
		return f->data + off;
	if (!f->skb || f->skb->len < off + len)
		return NULL;
	bpf_skb_pull_data(f->skb, off + len);
	reload(f); /* a failed pull voids the old pointers, too */
	return f->data + off + len <= f->end ? f->data + off : NULL;
}

static __always_inline bool is_vlan(__u16 proto_be)
{
	return proto_be == bpf_htons(ETH_P_8021Q) || proto_be == bpf_htons(ETH_P_8021AD);
}

/* Fills l3, tag and proto from the frame itself. */
static __always_inline bool parse(struct frame *f)
{
	struct ethhdr *eth = at(f, 0, sizeof(*eth));
	struct tag *tag;

	if (!eth)
		return false;
	f->l3 = sizeof(*eth);
	f->vlan = f->tci = f->tpid_be = 0;
	f->proto_be = eth->h_proto;
	if (!is_vlan(f->proto_be))
		return true;
	tag = at(f, sizeof(*eth), sizeof(*tag));
	if (!tag)
		return true;
	f->tpid_be = f->proto_be;
	f->tci = bpf_ntohs(tag->tci_be);
	f->proto_be = tag->proto_be;
	f->l3 += sizeof(*tag);
	return true;
}

/* tc ingress: the kernel has moved the outer tag into the skb. */
static __always_inline bool parse_skb(struct __sk_buff *skb, struct frame *f)
{
	struct ethhdr *eth;

	f->skb = skb;
	reload(f);
	if (!skb->vlan_present)
		return parse(f);
	eth = at(f, 0, sizeof(*eth));
	if (!eth)
		return false;
	f->l3 = sizeof(*eth);
	f->vlan = 0;
	f->tci = skb->vlan_tci;
	f->tpid_be = skb->vlan_proto;
	f->proto_be = eth->h_proto;
	return true;
}

static __always_inline bool is_group(const struct frame *f)
{
	const __u8 *dst = f->data;

	return f->data + ETH_ALEN <= f->end && dst[0] & 1;
}

/* Halves as mac_slot takes them. */
static __always_inline bool mac_eq(const void *a, const void *b)
{
	return *(__u32 *)(a + 2) == *(__u32 *)(b + 2) && *(__u16 *)a == *(__u16 *)b;
}

/* ---- key and look up ---- */

/* The record of an id. What is no id leads to one that is free: SLOT_SHARED to
 * that of id 0. */
static __always_inline struct sub *sub_by_id(__u32 id)
{
	return ELEMENT(subs, id & id_mask);
}

#include "vlan.h" /* claim, enter, is_in, fit */

/* A leg's sub-interface. One that is being made may send already. */
static __always_inline struct sub *sender(const struct dest *d, __u32 *id)
{
	struct sub *sub;

	if (!d)
		return NULL;
	*id = d->id;
	sub = sub_by_id(*id);
	return sub->gen == d->gen && sub->state != SUB_FREE ? sub : NULL;
}

/* Whether a record is valid and its device up: one that is down is nobody, and
 * what is for it goes to the host or the wire, as with the kernel's drivers. */
static __always_inline bool is_there(const struct sub *sub)
{
	return sub && sub->state == SUB_ACTIVE && is_up(sub);
}

/* An entry's sub-interface, or NULL where the entry is nobody's yet or any more. */
static __always_inline struct sub *owner(const struct dest *d, __u32 *id)
{
	struct sub *sub = sender(d, id);
	bool there = is_there(sub);

	if (d && d->id)
		note(STEP_TAKEN, d->id, there);
	return there ? sub : NULL;
}

static __always_inline struct sub *sub_by_leg(__u32 leg, __u32 *id)
{
	__u32 found = *ELEMENT(leg_slots, leg & (0xffffffffU >> slot_shift));
	struct sub *sub;

	note(STEP_LEG, found & ~SLOT_SHARED, found);
	if (!found)
		return NULL;
	if (found == SLOT_SHARED)
		return sender(bpf_map_lookup_elem(&by_leg, &leg), id);
	*id = found;
	sub = sub_by_id(*id);
	return sub->leg == leg && sub->state != SUB_FREE ? sub : NULL;
}

/* In a VLAN it may be a trunk's, which knows whether it is. */
static __always_inline struct dest *dest_by_mac(__u32 vlan, const void *mac)
{
	struct mac_key key = {.vlan = vlan};
	struct dest *d;

	__builtin_memcpy(key.mac, mac, ETH_ALEN);
	d = bpf_map_lookup_elem(&by_mac, &key);
	if (!d && vlan && meta.trunks) {
		key.vlan = VLAN_NONE;
		d = bpf_map_lookup_elem(&by_mac, &key);
	}
	return noted(STEP_MAC, d);
}

/* What a MAC's slot says: a multiplicative hash, bpf.MACSlot in Go. */
static __always_inline __u32 mac_slot(const void *mac)
{
	__u32 hash = (*(__u32 *)(mac + 2) ^ *(__u16 *)mac) * 0x9e3779b1;

	return *ELEMENT(mac_slots, hash >> slot_shift);
}

static __always_inline struct sub *sub_by_mac(const struct frame *f, const void *mac, __u32 *id)
{
	__u32 found = mac_slot(mac);
	struct sub *sub;
	bool there;

	note(STEP_MAC_SLOT, found & ~SLOT_SHARED, found);
	if (!found)
		return NULL;
	if (found == SLOT_SHARED) {
		sub = owner(dest_by_mac(f->vlan, mac), id);
		return sub && is_in(f, sub, *id) ? sub : NULL;
	}
	*id = found;
	sub = sub_by_id(*id);
	there = sub->kind == KIND_MACVLAN && mac_eq(sub->mac, mac) && is_in(f, sub, *id) &&
		is_there(sub);
	note(STEP_TAKEN, *id, there);
	return there ? sub : NULL;
}

#include "addr.h" /* who4, who6, seen4, seen6, raise */

static __always_inline struct dest *dest_by_ip4(__u32 vlan, const void *addr)
{
	struct ip4_key key = {.vlan = vlan};

	__builtin_memcpy(&key.addr_be, addr, sizeof(key.addr_be));
	return noted(STEP_IP, bpf_map_lookup_elem(&by_ip4, &key));
}

static __always_inline struct dest *dest_by_ip6(__u32 vlan, const void *addr)
{
	struct ip6_key key = {.vlan = vlan};

	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	return noted(STEP_IP, bpf_map_lookup_elem(&by_ip6, &key));
}

static __always_inline bool is_arp_ip4(const struct arp *arp)
{
	return arp->htype_be == bpf_htons(1) && arp->ptype_be == bpf_htons(ETH_P_IP) &&
	       arp->hlen == ETH_ALEN && arp->plen == 4;
}

enum end { DESTINATION, SENDER };

/* The entry of the address at one end of a frame, by IP or by what ARP says. */
static __always_inline struct dest *dest_by_ip(struct frame *f, enum end end)
{
	if (f->proto_be == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = at(f, f->l3, sizeof(*ip));

		return ip ? dest_by_ip4(f->vlan, end == SENDER ? &ip->saddr : &ip->daddr) : NULL;
	}
	if (f->proto_be == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = at(f, f->l3, sizeof(*ip));

		return ip ? dest_by_ip6(f->vlan, end == SENDER ? &ip->saddr : &ip->daddr) : NULL;
	}
	if (f->proto_be == bpf_htons(ETH_P_ARP)) {
		struct arp *arp = at(f, f->l3, sizeof(*arp));

		if (arp && is_arp_ip4(arp))
			return dest_by_ip4(f->vlan, end == SENDER ? arp->spa : arp->tpa);
	}
	return NULL;
}

/* Whose that address is: NOBODY's, or what an entry says. A dry run leaves the
 * slots as they are, and tells of entries. */
static __always_inline __u64 who_by_ip(struct frame *f, enum end end)
{
	struct dest *d;

	if (f->proto_be == bpf_htons(ETH_P_IP) && !f->vlan && !DRY_RUN) {
		struct iphdr *ip = at(f, f->l3, sizeof(*ip));

		return ip ? who4(end == SENDER ? ip->saddr : ip->daddr) : NOBODY;
	}
	if (f->proto_be == bpf_htons(ETH_P_IPV6) && !f->vlan && !DRY_RUN) {
		struct ipv6hdr *ip = at(f, f->l3, sizeof(*ip));
		__u64 *addr;

		if (!ip)
			return NOBODY;
		addr = (__u64 *)(end == SENDER ? &ip->saddr : &ip->daddr);
		return who6(addr[0], addr[1]);
	}
	d = dest_by_ip(f, end);
	return d ? WHO(d->id, d->gen) : NOBODY;
}

/* The IP-keyed sub-interface that this leads to, where the MAC is the parent's
 * and so tells nothing. */
static __always_inline struct sub *ip_keyed(__u64 who, __u32 *id)
{
	struct sub *sub = sub_by_id(who);
	bool there = who != NOBODY && sub->gen == who >> 32 && is_there(sub);

	if (who != NOBODY && (__u32)who)
		note(STEP_TAKEN, who, there);
	if (!there || sub->kind != KIND_IPVLAN)
		return NULL;
	*id = who;
	return sub;
}

/* Whom a unicast frame is for; NULL is the host, the wire or nobody, and
 * *unknown tells a MAC that is neither a sub-interface's nor the parent's. */
static __always_inline struct sub *lookup(struct frame *f, __u32 *id, bool *unknown)
{
	struct ethhdr *eth = at(f, 0, sizeof(*eth));
	struct sub *sub;

	*unknown = false;
	if (!eth)
		return NULL;
	note(STEP_DESTINATION, 0, 0);
	if (mac_eq(eth->h_dest, meta.mac))
		return meta.ip_keyed ? ip_keyed(who_by_ip(f, DESTINATION), id) : NULL;
	sub = sub_by_mac(f, eth->h_dest, id);
	*unknown = !sub;
	return sub;
}

/* The sub-interface that sent what comes in by the parent: a switch has
 * returned it, or somebody uses its address. NULL for all others. A passthru
 * one has the parent's MAC. */
static __always_inline struct sub *returned(struct frame *f, __u32 *id)
{
	struct ethhdr *eth = at(f, 0, sizeof(*eth));
	struct sub *sub;

	if (!eth)
		return NULL;
	note(STEP_SOURCE, 0, 0);
	if (!mac_eq(eth->h_source, meta.mac))
		return sub_by_mac(f, eth->h_source, id);
	if (meta.passthru && !f->vlan) {
		*id = meta.passthru;
		sub = sub_by_id(*id);
		return is_there(sub) ? sub : NULL;
	}
	return meta.ip_keyed ? ip_keyed(who_by_ip(f, SENDER), id) : NULL;
}

/* The head of an ND message that directly follows the IPv6 header, or NULL. */
static __always_inline struct nd *nd_at(struct frame *f)
{
	struct ipv6hdr *ip;
	__u8 *type;

	if (f->proto_be != bpf_htons(ETH_P_IPV6))
		return NULL;
	ip = at(f, f->l3, sizeof(*ip) + 1);
	if (!ip || ip->nexthdr != IPPROTO_ICMPV6)
		return NULL;
	type = (void *)(ip + 1);
	if (*type != ND_NEIGHBOR_SOLICIT && *type != ND_NEIGHBOR_ADVERT)
		return NULL;
	return at(f, f->l3 + sizeof(*ip), sizeof(struct nd));
}

/* The modes that know no link: they send and receive by IP address alone. */
static __always_inline bool is_routed(const struct sub *sub)
{
	return sub->mode >= MODE_L3;
}

/* Whether an entry stands whoever else claims the address. */
static __always_inline bool is_sure(const struct dest *d)
{
	return d->flags & DEST_GIVEN ||
	       (d->flags & DEST_LEASED && d->until > bpf_ktime_get_boot_ns() / NSEC_PER_SEC);
}

/* The entry of the address that an ARP or ND question is for, NULL where the frame
 * is none. Gratuitous ARP is an announcement. */
static __always_inline struct dest *question(struct frame *f)
{
	struct nd *nd;

	if (is_foreign(f))
		return NULL;
	note(STEP_QUESTION, 0, 0);
	if (f->proto_be == bpf_htons(ETH_P_ARP)) {
		struct arp *arp = at(f, f->l3, sizeof(*arp));

		if (arp && is_arp_ip4(arp) && arp->op_be == bpf_htons(1) &&
		    __builtin_memcmp(arp->spa, arp->tpa, 4))
			return dest_by_ip4(f->vlan, arp->tpa);
		return NULL;
	}
	nd = nd_at(f);
	return nd && nd->type == ND_NEIGHBOR_SOLICIT ? dest_by_ip6(f->vlan, nd->target) : NULL;
}

/* The one sub-interface that a group-addressed ARP or ND question is for, so
 * that the others need not be woken. Only given and leased addresses: were learned
 * ones taken, whoever claimed the gateway's would capture everybody's questions.
 * Announcements are for all. A routed one would not answer; the host may be set up
 * to do so for it. */
static __always_inline struct sub *asked(struct frame *f, __u32 *id)
{
	struct dest *d = question(f);
	struct sub *sub;

	sub = d && is_sure(d) ? owner(d, id) : NULL;
	return sub && !is_routed(sub) ? sub : NULL;
}

/* ---- count ---- */

/* Length of the headers that every segment of a GSO packet repeats; of a
 * tunnel only the outer ones. A global function, so that other frames' registers
 * are not spent on it. */
__noinline __u32 gso_headers(struct __sk_buff *skb, __u32 l3, __u32 proto_be)
{
	struct tag tag;
	__u8 ip[10], proto, offset;
	__u32 l4 = l3;

	if (is_vlan(proto_be)) {
		if (bpf_skb_load_bytes(skb, l4, &tag, sizeof(tag)))
			return l4;
		proto_be = tag.proto_be;
		l4 += sizeof(tag);
	}
	if (proto_be != bpf_htons(ETH_P_IP) && proto_be != bpf_htons(ETH_P_IPV6))
		return l4;
	if (bpf_skb_load_bytes(skb, l4, ip, sizeof(ip)))
		return l4;
	if (proto_be == bpf_htons(ETH_P_IP)) {
		proto = ip[offsetof(struct iphdr, protocol)];
		l4 += (ip[0] & 0xf) * 4;
	} else {
		proto = ip[offsetof(struct ipv6hdr, nexthdr)];
		l4 += sizeof(struct ipv6hdr);
	}
	if (proto != IPPROTO_TCP)
		return proto == IPPROTO_UDP ? l4 + 8 : l4;
	if (bpf_skb_load_bytes(skb, l4 + 12, &offset, 1))
		return l4;
	return l4 + (offset >> 4) * 4;
}

static __always_inline struct size size_of(struct frame *f)
{
	struct size size = {.packets = 1, .bytes = f->skb->len};
	__u32 gso = f->skb->gso_size;

	if (f->skb->vlan_present)
		size.bytes += 4;
	if (gso) {
		__u32 headers = gso_headers(f->skb, f->l3, f->proto_be);

		if (f->skb->len > headers + gso) {
			size.packets = (f->skb->len - headers + gso - 1) / gso;
			size.bytes += (size.packets - 1) * (size.bytes - f->skb->len + headers);
		}
	}
	return size;
}

#include "watch.h" /* witness, witness_xdp */

static __always_inline void add(__u32 id, enum verdict v, struct size size)
{
	struct sub_stats *s = bpf_map_lookup_elem(&stats, &id);

	note(STEP_VERDICT, id, v);
	if (!s || DRY_RUN)
		return;
	s->verdict[v].packets += size.packets;
	s->verdict[v].bytes += size.bytes;
}

static __always_inline void count(struct __sk_buff *skb, __u32 id, enum verdict v, struct size size)
{
	add(id, v, size);
	if (meta.watched && !DRY_RUN)
		witness(skb, id, v);
}

static __always_inline void count_xdp(struct xdp_md *ctx, __u32 id, enum verdict v,
				      struct size size)
{
	add(id, v, size);
	if (meta.watched && !DRY_RUN)
		witness_xdp(ctx, id, v);
}

static __always_inline int drop(struct __sk_buff *skb, __u32 id, enum verdict v, struct size size)
{
	count(skb, id, v, size);
	return TC_ACT_SHOT;
}

/* ---- deliver ---- */

/* Notes whether the inner leg has left the parent's netns, which `ip link set
 * netns` tells nobody. A peer redirect to a leg that has not loses the frame,
 * so without this knowledge, before the leg has sent anything, delivery goes by
 * the host leg, which always works. */
static __always_inline void see_place(struct __sk_buff *skb, struct sub *sub)
{
	struct net_device *leg = skb_device(skb), *peer = (void *)sub->device;
	struct net *here = NULL, *there = NULL;
	__u32 place;

	if (sub->place > PLACE_AWAY)
		return;
	if (!peer)
		peer = peer_of(leg);
	if (!peer || bpf_core_read(&here, sizeof(here), &leg->nd_net.net) ||
	    bpf_core_read(&there, sizeof(there), &peer->nd_net.net))
		return;
	place = here == there ? PLACE_LOCAL : PLACE_AWAY;
	if (sub->place != place && !DRY_RUN)
		sub->place = place;
}

/* The same, gone through once by the verifier, for where a call more is of no account. */
__noinline int see_place_of(struct __sk_buff *skb, __u32 id)
{
	see_place(skb, sub_by_id(id));
	return 0;
}

enum way { FROM_WIRE, FROM_SIBLING, FROM_NETKIT, FROM_HOST };

static __always_inline enum way way_of(const struct sub *from)
{
	return from->flags & SUB_NETKIT ? FROM_NETKIT : FROM_SIBLING;
}

/* On what comes in by a host leg: it is for that one's own inner leg. Of what
 * the inner leg sends from another netns, the kernel clears the mark. */
#define MARK_INWARD 0x78766c6e

/* To an inner leg in another netns. The kernel does that at tc ingress alone: what
 * a netkit sends goes on to its host leg's, marked with the leg that it is for. */
static __always_inline int to_peer(struct __sk_buff *skb, const struct sub *sub, enum way way)
{
	if (way != FROM_NETKIT)
		return bpf_redirect_peer(sub->leg, 0);
	note(STEP_PEER, 0, sub->leg);
	skb->mark = sub->leg;
	return TC_ACT_OK;
}

/* Unicast to one sub-interface. The peer redirect makes the frame PACKET_HOST
 * whatever its MAC, and passes the inner leg's driver and its XDP program by; by
 * the leg, the inner device compares, which is all that egress has. What comes from the wire for
 * one in mode l3s goes up: the host's stack forwards it to the leg. */
static __always_inline int deliver(struct frame *f, const struct sub *sub, __u32 id,
				   struct size size, enum way way)
{
	struct __sk_buff *skb = f->skb;
	bool fits = fit_to(f, sub);

	count(skb, id, VERDICT_RX, size);
	if (!fits)
		return TC_ACT_SHOT;
	if (sub->place == PLACE_AWAY && way != FROM_HOST)
		return to_peer(skb, sub, way);
	if (sub->kind == KIND_IPVLAN) {
		if (way == FROM_WIRE && sub->place == PLACE_HOST)
			return TC_ACT_UNSPEC;
		bpf_skb_store_bytes(skb, 0, sub->mac, ETH_ALEN, 0);
	}
	return bpf_redirect(sub->leg, 0);
}

/* A group-addressed frame to one sub-interface: by the leg, since a peer
 * redirect would make it PACKET_HOST. */
static __always_inline int deliver_group(struct frame *f, const struct sub *sub, __u32 id,
					 struct size size)
{
	bool fits = fit_to(f, sub);

	count(f->skb, id, VERDICT_RX, size);
	return fits ? bpf_redirect(sub->leg, 0) : TC_ACT_SHOT;
}

/* Out of the parent, in a VLAN with its tags. */
static __always_inline int to_wire(struct frame *f)
{
	return fit(f, true) ? bpf_redirect(meta.ifindex, 0) : TC_ACT_SHOT;
}

#include "group.h" /* membership */

struct flood {
	struct __sk_buff *skb;
	struct size size;
	__u64 left;   /* bits of the members' word in hand */
	__u32 first;  /* id of that word's lowest bit */
	__u32 except; /* the sender's id, 0 for the wire */
	__u32 vlan;
	__u32 classes; /* of enum sub_class: who gets a copy; and what stands below */
	__u16 pad;     /* aligns dst for mac_eq */
	__u8 dst[6];
	__u8 sender[6]; /* MAC, for CLASS_SOURCE */
	bool joined;	/* it is for those only who have joined the group dst */
	bool own;	/* dst is the parent's MAC */
	bool nodst;	/* out: one got it that leaves nothing for others */
};

/* Beside classes: who gets what the host sends, or does not, is left out. */
#define NOT_HOST   0x100
#define ONLY_HOST  0x200
#define HEARS_HOST (SUB_HOST | SUB_VIA)

/* The same: the frame has its VLAN's tags, so trunks alone get it; or one of nobody's
 * VLANs, which no trunk gets. */
#define TAGGED	0x400
#define FOREIGN 0x800

/* Whether a member is left out. Counts one whose groups are too many to look. */
static __always_inline bool not_joined(const struct flood *f, const struct sub *sub, __u32 id)
{
	enum membership m = membership(sub->device, group_of(f->dst));

	note(STEP_GROUP, id, m);
	if (m == GROUP_MANY)
		count(f->skb, id, VERDICT_GROUP_MANY, (struct size){.packets = 1});
	return m == GROUP_NOT;
}

/* A copy of a frame to the parent's MAC, which the inner leg is to take for its
 * own, though the MAC is not. Only a peer redirect says so, and a clone cannot
 * be sent by one: so it comes in by the host leg, where xvlan_tx sends it. A leg
 * that is here can only be reached under its own MAC. */
static __always_inline long copy_as_own(struct __sk_buff *skb, const struct sub *sub)
{
	__u8 dst[ETH_ALEN];
	__u32 mark = skb->mark;
	long err;

	if (sub->place == PLACE_AWAY) {
		skb->mark = MARK_INWARD;
		err = bpf_clone_redirect(skb, sub->leg, BPF_F_INGRESS);
		skb->mark = mark;
		return err;
	}
	if (bpf_skb_load_bytes(skb, 0, dst, ETH_ALEN) ||
	    bpf_skb_store_bytes(skb, 0, sub->mac, ETH_ALEN, 0))
		return -1;
	err = bpf_clone_redirect(skb, sub->leg, 0);
	bpf_skb_store_bytes(skb, 0, dst, ETH_ALEN, 0);
	return err;
}

/* Whether a sub-interface in source mode has the sender on its list. */
static __always_inline bool listed(__u32 id, const __u8 *mac)
{
	struct src_key key = {.id = id};

	bool found;

	__builtin_memcpy(key.mac, mac, ETH_ALEN);
	found = bpf_map_lookup_elem(&by_src, &key);
	note(STEP_LISTED, id, found);
	return found;
}

/* Whether a sub-interface is in a frame's VLAN and gets the form that it has now. */
static __always_inline bool is_fit(const struct sub *sub, __u32 id, __u32 vlan, __u32 classes)
{
	if (classes & TAGGED)
		return has_tag(sub, id, vlan);
	return sub->vlan == vlan && !(classes & FOREIGN && sub->flags & SUB_TRUNK);
}

static long flood_one(__u32 n __attribute__((unused)), struct flood *f)
{
	struct sub *sub;
	__u32 id;
	long err;

	if (!f->left)
		return 1;
	id = f->first + __builtin_ctzll(f->left);
	f->left &= f->left - 1;
	sub = sub_by_id(id);
	if (!is_there(sub) || id == f->except || !(sub->class & f->classes) ||
	    f->classes & (sub->flags & HEARS_HOST ? NOT_HOST : ONLY_HOST) ||
	    !is_fit(sub, id, f->vlan, f->classes))
		return 0;
	if (sub->class == CLASS_SOURCE) {
		if (!listed(id, f->sender))
			return 0;
		if (sub->flags & SUB_NODST)
			f->nodst = true;
	} else if (f->joined && not_joined(f, sub, id)) {
		return 0;
	}
	err = f->own ? copy_as_own(f->skb, sub) : bpf_clone_redirect(f->skb, sub->leg, 0);
	count(f->skb, id, err ? VERDICT_DROP_FANOUT : VERDICT_RX, f->size);
	return 0;
}

static long flood_word(__u32 word, struct flood *f)
{
	__u64 *bits = bpf_map_lookup_elem(&members, &word);

	if (!bits)
		return 1;
	f->left = *bits;
	f->first = word * 64;
	bpf_loop(64, flood_one, f, 0);
	return 0;
}

static __always_inline bool is_broadcast(const __u8 *mac)
{
	return *(__u32 *)(mac + 2) == 0xffffffff && *(__u16 *)mac == 0xffff;
}

/* Sends a copy to every sub-interface of some classes but one, of multicast to
 * those only who have joined the group; the frame itself stays. Above `except` by 32 bits is
 * the VLAN. For CLASS_SOURCE, non-zero says that one wants nobody else to have it. A global
 * function, which the verifier looks at once. */
__noinline int flood(struct __sk_buff *skb, __u32 classes, __u64 except, __u64 packets, __u64 bytes)
{
	struct flood f = {.skb = skb,
			  .size = {packets, bytes},
			  .except = except,
			  .vlan = except >> 32,
			  .classes = classes};

	if (bpf_skb_load_bytes(skb, 0, f.dst, ETH_ALEN) ||
	    bpf_skb_load_bytes(skb, ETH_ALEN, f.sender, ETH_ALEN))
		return 0;
	f.joined = f.dst[0] & 1 && !is_broadcast(f.dst);
	f.own = mac_eq(f.dst, meta.mac);
	bpf_loop(meta.capacity / 64 + 1, flood_word, &f, 0);
	return f.nodst;
}

/* The copies for those in a frame's VLAN who get it in one form. */
static __always_inline void copy_form(struct frame *f, bool tagged, __u32 classes, __u32 except,
				      struct size size)
{
	if ((tagged && !meta.trunks) || !fit(f, tagged))
		return;
	flood(f->skb, classes | (tagged ? TAGGED : 0), (__u64)f->vlan << 32 | except, size.packets,
	      size.bytes);
}

/* The same as flood for a frame that is looked at further. In a VLAN it may have its
 * other form then. */
static __always_inline bool copy_to(struct frame *f, __u32 classes, __u32 except, struct size size)
{
	bool tagged = is_tagged(f), nodst = false;

	if (f->vlan) {
		copy_form(f, tagged, classes, except, size);
		copy_form(f, !tagged, classes, except, size);
	} else {
		nodst = flood(f->skb, classes | (is_foreign(f) ? FOREIGN : 0), except, size.packets,
			      size.bytes);
	}
	reload(f);
	return nodst;
}

/* ---- police: what a sub-interface may send and say of itself ---- */

#include "neigh.h" /* learn4, learn6, yield_to_wire, arp_out, nd_out */
#include "dhcp.h"  /* is_bootp, dhcp_ask, asker */
#include "guard.h" /* may_leave */

/* The wire sees only the parent's MAC of an IP-keyed sub-interface. */
static __always_inline bool ip_keyed_out(struct frame *f, const struct sub *sub, __u32 id)
{
	if (bpf_skb_store_bytes(f->skb, ETH_ALEN, meta.mac, ETH_ALEN, 0))
		return false;
	reload(f);
	if (!(sub->flags & SUB_NO_DHCP) && !is_routed(sub) &&
	    is_bootp(f, BOOTP_CLIENT, BOOTP_SERVER)) {
		dhcp_ask(f->skb, id, f->l3);
		reload(f);
	}
	if (f->proto_be == bpf_htons(ETH_P_ARP) && !arp_out(f->skb, id, f->l3))
		return false;
	if (is_icmp6(f) && !nd_out(f->skb, id, f->l3))
		return false;
	reload(f);
	return true;
}

/* A container may raise its leg's MTU, and a redirect checks none. The cached
 * MTU spares the usual frame a helper; the helper sees the parent's real one,
 * and the segments of GSO packets. While the parent is gone the MTU is 0. */
static __always_inline bool over_mtu(struct frame *f)
{
	__u32 max = f->l3 + meta.mtu + (is_vlan(f->proto_be) ? 4 : 0);
	__u32 len = 0;

	if (!f->skb->gso_size && f->skb->len <= max)
		return false;
	return !meta.ifindex ||
	       bpf_check_mtu(f->skb, meta.ifindex, &len, 0,
			     f->skb->gso_size ? BPF_MTU_CHK_SEGS : 0) != BPF_MTU_CHK_RET_SUCCESS;
}

/* What everything that is sent goes through first; VLANs are looked at only where there may
 * be any. False: it is lost, and has been counted if it is a frame at all. */
static __always_inline bool may_send(struct __sk_buff *skb, struct frame *f, const struct sub *from,
				     __u32 me, struct size *size, bool vlans)
{
	enum verdict lost;

	if (!parse_skb(skb, f))
		return false;
	*size = size_of(f);
	if (!from)
		lost = VERDICT_DROP_INACTIVE;
	else if (over_mtu(f))
		lost = meta.ifindex ? VERDICT_DROP_MTU : VERDICT_DROP_INACTIVE;
	else if (vlans && !enter(f, from, me, size))
		lost = VERDICT_DROP_TAG;
	else if (from->kind == KIND_IPVLAN && !ip_keyed_out(f, from, me))
		lost = VERDICT_DROP_MALFORMED;
	else
		return true;
	drop(skb, from ? me : 0, lost, *size);
	return false;
}

/* ---- host ---- */

#include "answer.h" /* answer */
#include "via.h"    /* tx_via, came_via */

/* Pause frames are for the device at the other end of the cable. */
static __always_inline bool is_pause(const struct frame *f)
{
	return f->proto_be == bpf_htons(ETH_P_PAUSE);
}

#include "host.h" /* meets_host, copy_to_host, from_leg, host_whole */

/* ---- route ---- */

#include "route.h" /* tx_routed */

/* ---- the short way ---- */

/* Whose the destination address of an untagged frame is, as far as slots say. */
static __always_inline __u64 seen_in(void *data, void *end)
{
	struct ethhdr *eth = data;
	struct ipv6hdr *ip6 = data + sizeof(*eth);
	struct iphdr *ip4 = data + sizeof(*eth);
	__u64 *addr = (__u64 *)&ip6->daddr;

	if (eth->h_proto == bpf_htons(ETH_P_IP) && (void *)(ip4 + 1) <= end)
		return seen4(ip4->daddr);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6) && (void *)(ip6 + 1) <= end)
		return seen6(addr[0], addr[1]);
	return NOBODY;
}

/* Whether a frame may be to the parent's MAC: plain_by_ip looks at the rest. */
static __always_inline bool maybe_parents(const void *data)
{
	return *(__u32 *)(data + 2) == *(__u32 *)(meta.mac + 2);
}

/* The plain sub-interface that a frame to the parent's MAC is for by the first
 * look, or the record of id 0 if the address is reserved; else NULL. */
static __always_inline struct sub *plain_by_ip(void *data, void *end, __u32 *id)
{
	__u64 who = NOBODY;
	struct sub *sub;

	if (meta.ip_keyed && *(__u16 *)data == *(__u16 *)meta.mac)
		who = seen_in(data, end);
	*id = who;
	sub = sub_by_id(*id);
	return !who || (sub->flags & SUB_PLAIN_IP && sub->gen == who >> 32) ? sub : NULL;
}

/* The same by another MAC. */
static __always_inline struct sub *plain_by_mac(const void *data, __u32 *id)
{
	struct sub *sub;

	*id = mac_slot(data);
	sub = sub_by_id(*id);
	return sub->flags & SUB_PLAIN && mac_eq(sub->mac, data) ? sub : NULL;
}

/* ---- programs ---- */

/* Hands a frame to the driver of an inner leg. What the modes say of it, the
 * simple ones aside, xvlan_rx knows, which brings it there as well. */
static __always_inline int redirect_xdp(struct xdp_md *ctx, struct frame *f, const struct sub *sub,
					__u32 id, struct size size)
{
	int action;

	if (!(sub->class & (CLASS_BRIDGE | CLASS_VEPA)) || (meta.vlans && is_foreign(f)) ||
	    f->data + ETH_ALEN > f->end)
		return XDP_PASS;
	if (sub->kind == KIND_IPVLAN && is_bootp(f, BOOTP_SERVER, BOOTP_CLIENT))
		return XDP_PASS; /* xvlan_rx looks at what it says */
	action = bpf_redirect_map(&ports, id, XDP_PASS);
	if (action != XDP_REDIRECT)
		return action;
	note(STEP_PORT, id, sub->leg);
	if (sub->kind == KIND_IPVLAN)
		__builtin_memcpy(f->data, sub->mac, ETH_ALEN);
	count_xdp(ctx, id, VERDICT_RX, size);
	return action;
}

/* Whether the frame's MAC may be somebody's in a VLAN. Those are not looked for here:
 * a card may have taken a tag off, of which XDP is not told. */
static __always_inline bool may_be_in_vlan(const struct frame *f)
{
	return meta.vlans && f->data + ETH_ALEN <= f->end && mac_slot(f->data);
}

SEC("xdp.frags")
int xvlan_xdp(struct xdp_md *ctx)
{
	struct frame f = {.data = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};
	struct size size = {.packets = 1, .bytes = bpf_xdp_get_buff_len(ctx)};
	bool drops = meta.policy & POLICY_UNKNOWN_DROP, unknown;
	struct ethhdr *eth;
	struct sub *sub;
	__u32 id = 0;

	if (!(drops || meta.ports) || meta.passthru || meta.sources || !parse(&f))
		return XDP_PASS;
	if (f.tpid_be && has_vlan((__u64)xdp_device(ctx), f.tpid_be, f.tci & VLAN_ID)) {
		note(STEP_VLAN, 0, f.tci & VLAN_ID);
		return XDP_PASS;
	}
	eth = at(&f, 0, sizeof(*eth));
	if (!eth || is_group(&f) || (!meta.ports && mac_eq(eth->h_dest, meta.mac)))
		return XDP_PASS;
	sub = lookup(&f, &id, &unknown);
	if (sub) /* mostly, xvlan_rx delivers and counts it */
		return sub->place == PLACE_XDP ? redirect_xdp(ctx, &f, sub, id, size) : XDP_PASS;
	if (!unknown || !drops || may_be_in_vlan(&f))
		return XDP_PASS;
	count_xdp(ctx, 0, VERDICT_DROP_UNKNOWN, size);
	return XDP_DROP;
}

#define CLASS_MEMBERS (CLASS_BRIDGE | CLASS_VEPA | CLASS_PRIVATE)

/* Whether a frame with the parent's MAC for its source may be an IP-keyed
 * sub-interface's that has not been learned to have the address it comes from:
 * the host's are known. */
static __always_inline bool unnamed(struct frame *f)
{
	if (!meta.ip_keyed)
		return false;
	return (f->proto_be == bpf_htons(ETH_P_IP) || f->proto_be == bpf_htons(ETH_P_IPV6) ||
		f->proto_be == bpf_htons(ETH_P_ARP)) &&
	       !dest_by_ip(f, SENDER);
}

/* Which classes get a group-addressed frame from the wire. Of what was sent
 * here and has come back, from a hairpin port, siblings that meet directly have
 * had their copies on the way out, and of the host's those with host access.
 * *others tells what was not sent here. */
static __always_inline __u32 receivers(struct frame *f, const struct sub *from, bool *others)
{
	struct ethhdr *eth = at(f, 0, sizeof(*eth));

	*others = false;
	if (from)
		return from->class == CLASS_VEPA ? CLASS_VEPA | CLASS_BRIDGE : CLASS_VEPA;
	if (eth && mac_eq(eth->h_source, meta.mac))
		return unnamed(f) ? CLASS_VEPA : CLASS_MEMBERS | NOT_HOST;
	*others = true;
	return CLASS_MEMBERS;
}

static __always_inline int pass(struct __sk_buff *skb, struct size size)
{
	count(skb, 0, VERDICT_PASS, size);
	return TC_ACT_UNSPEC;
}

/* The host gets a group-addressed frame, unless it has had a copy when a
 * sub-interface with host access sent it. */
static __always_inline int pass_group(struct frame *f, const struct sub *from, struct size size)
{
	if (from && has_host(f, from))
		return drop(f->skb, 0, VERDICT_DROP_RETURNED, size);
	return pass(f->skb, size);
}

/* Broadcast and multicast from the wire: to all, and the host keeps its own. A
 * private sender's own frame that comes back is for nobody else, or if it is
 * IP-keyed for the host alone, whose MAC it has. */
static __always_inline int rx_group(struct frame *f, struct size size)
{
	__u32 from_id = 0, id = 0, classes;
	struct sub *from = returned(f, &from_id), *sub;
	bool others;

	if (from && !(from->class & (CLASS_BRIDGE | CLASS_VEPA)) && !is_routed(from))
		return from->kind == KIND_IPVLAN ? pass_group(f, from, size)
						 : deliver_group(f, from, from_id, size);
	if (is_pause(f))
		return pass(f->skb, size);
	classes = receivers(f, from, &others);
	if (others) {
		yield_to_wire(f);
		sub = asker(f, 0, &id);
		if (sub)
			return deliver_group(f, sub, id, size);
	}
	sub = asked(f, &id);
	if (sub && sub->class & classes && id != from_id)
		return deliver_group(f, sub, id, size);
	copy_to(f, classes, from ? from_id : 0, size);
	if (!fit(f, true))
		return drop(f->skb, 0, VERDICT_DROP_FANOUT, size);
	return pass_group(f, from, size);
}

/* What the modes say of unicast for a sub-interface that is neither bridge nor
 * vepa: a private one gets nothing from a sibling, as ip-link(8) promises (the
 * kernel's driver lets such unicast through), one in source mode nothing by
 * its own address. */
static __always_inline bool accepts(struct frame *f, const struct sub *sub, __u32 me)
{
	__u32 id = 0;

	return sub->class == CLASS_PRIVATE && (!returned(f, &id) || id == me);
}

__noinline int rx_whole(struct __sk_buff *skb)
{
	__u32 id = 0, client_id = 0;
	struct frame f;
	struct size size;
	struct sub *sub, *client;
	bool unknown;

	if (!parse_skb(skb, &f))
		return TC_ACT_UNSPEC;
	size = size_of(&f);
	if (skb->mark == MARK_COPY || skb->mark == MARK_VIA) {
		if (skb->mark == MARK_VIA)
			came_via(skb);
		skb->mark = 0;
		return pass(skb, size);
	}
	if (f.tpid_be && skb_has_vlan(skb, f.tpid_be, f.tci & VLAN_ID)) {
		note(STEP_VLAN, 0, f.tci & VLAN_ID);
		return pass(skb, size); /* it is the VLAN device's */
	}
	claim(&f);
	/* Before anything else is looked up, as the kernel's driver has it. */
	if (meta.sources && !f.vlan && copy_to(&f, CLASS_SOURCE, 0, size))
		return TC_ACT_SHOT;
	if (is_group(&f))
		return rx_group(&f, size);
	sub = lookup(&f, &id, &unknown);
	client = unknown ? NULL : asker(&f, sub ? id : 0, &client_id);
	if (client)
		return deliver(&f, client, client_id, size, FROM_WIRE);
	if (sub && !(sub->class & (CLASS_BRIDGE | CLASS_VEPA)) && !accepts(&f, sub, id)) {
		if (sub->class == CLASS_PRIVATE)
			return drop(skb, id, VERDICT_DROP_RETURNED, size);
		sub = NULL;
	}
	if (!sub && meta.passthru && !f.vlan) {
		id = meta.passthru;
		sub = sub_by_id(id);
		if (sub->state != SUB_ACTIVE)
			sub = NULL;
	}
	if (sub)
		return deliver(&f, sub, id, size, FROM_WIRE);
	if (unknown && meta.policy & POLICY_UNKNOWN_DROP)
		return drop(skb, 0, VERDICT_DROP_UNKNOWN, size);
	return pass(skb, size);
}

/* The short way, as in xvlan_rx, of unicast for an access sub-interface. */
static __noinline int rx_tagged(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 vlan = skb->vlan_tci & VLAN_ID, id;
	struct sub *sub;

	if (data + ETH_HLEN > end || !meta.vlans || skb->vlan_proto != bpf_htons(ETH_P_8021Q))
		return rx_whole(skb);
	id = mac_slot(data);
	sub = sub_by_id(id);
	if (!(sub->flags & SUB_PLAIN_VLAN) || sub->vlan != vlan || !mac_eq(sub->mac, data) ||
	    sub->place != PLACE_AWAY || !device_up((void *)sub->device) ||
	    skb_has_vlan(skb, bpf_htons(ETH_P_8021Q), vlan))
		return rx_whole(skb);
	add(id, VERDICT_RX, (struct size){.packets = 1, .bytes = skb->len + sizeof(struct tag)});
	return retag(skb, 1, 0, skb->vlan_tci) ? TC_ACT_SHOT : bpf_redirect_peer(sub->leg, 0);
}

/* The short way of the frames that there are most of: untagged unicast for a
 * plain sub-interface that is up in another netns. It is no second truth: all that it
 * does not know by its first look goes the whole way, which knows these
 * frames, too. */
SEC("tc")
int xvlan_rx(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct sub_stats *s;
	struct sub *sub;
	__u32 id;

	if (data + ETH_HLEN > end)
		return TC_ACT_UNSPEC;
	/* Those that are watched have to be shown. */
	if (meta.sources || meta.watched || skb->gso_size || DRY_RUN)
		return rx_whole(skb);
	if (skb->vlan_present)
		return rx_tagged(skb);
	if (maybe_parents(data)) {
		sub = plain_by_ip(data, end, &id);
		if (sub && !id && !meta.passthru)
			return pass(skb, (struct size){.packets = 1, .bytes = skb->len});
	} else {
		sub = plain_by_mac(data, &id);
	}
	if (!sub || sub->place != PLACE_AWAY || !device_up((void *)sub->device))
		return rx_whole(skb);
	s = bpf_map_lookup_elem(&stats, &id);
	if (s) {
		s->verdict[VERDICT_RX].packets++;
		s->verdict[VERDICT_RX].bytes += skb->len;
	}
	return bpf_redirect_peer(sub->leg, 0);
}

/* Broadcast and multicast from a sub-interface: to those siblings that it
 * meets directly, the host if it has access to that, and the wire. */
static __always_inline int tx_group(struct frame *f, const struct sub *from, __u32 me,
				    struct size size)
{
	struct sub *sub;
	__u32 id = 0;

	if (is_pause(f) && from->kind == KIND_IPVLAN)
		return drop(f->skb, me, VERDICT_DROP_MODE, size);
	count(f->skb, me, VERDICT_TX, size);
	if (from->class == CLASS_BRIDGE && !is_pause(f)) {
		sub = asked(f, &id);
		if (sub && id != me && sub->class == CLASS_BRIDGE)
			return deliver_group(f, sub, id, size);
		copy_to(f, CLASS_BRIDGE, me, size);
	}
	if (has_host(f, from) && !is_pause(f))
		copy_to_host(f, size);
	return to_wire(f);
}

/* What copy_as_own has put in by a host leg. With netkit it comes in by xvlan_turn. */
static __always_inline bool is_inward(struct __sk_buff *skb, const struct sub *from)
{
	return from->class == CLASS_SOURCE && !(from->flags & SUB_NETKIT) &&
	       skb->mark == MARK_INWARD;
}

/* Unicast from a sub-interface, to itself among others. Between private
 * IP-keyed siblings, which have one MAC on the wire, it goes nowhere, as with
 * the kernel's driver: a switch could only return it. */
static __always_inline int tx_unicast(struct frame *f, const struct sub *from, __u32 me,
				      struct size size)
{
	struct sub *to;
	__u32 id = 0;
	bool unknown;

	to = lookup(f, &id, &unknown);
	if (to && from->class & to->class & CLASS_BRIDGE) {
		count(f->skb, me, VERDICT_TX, size);
		return deliver(f, to, id, size, way_of(from));
	}
	if (to && from->class == CLASS_PRIVATE && from->kind == KIND_IPVLAN &&
	    to->kind == KIND_IPVLAN)
		return drop(f->skb, me, VERDICT_DROP_MODE, size);
	if (!to && !unknown && is_inward(f->skb, from))
		return bpf_redirect_peer(from->leg, 0); /* copy_as_own has counted it */
	count(f->skb, me, VERDICT_TX, size);
	if (!to && !unknown && meets_host(f, from))
		return bpf_redirect(meta.ifindex, BPF_F_INGRESS);
	return to_wire(f);
}

static __always_inline int tx_any(struct __sk_buff *skb, struct sub *from, __u32 me, bool vlans)
{
	struct frame f;
	struct size size;

	if (!may_send(skb, &f, from, me, &size, vlans))
		return TC_ACT_SHOT;
	if (from->place == PLACE_LOCAL || is_group(&f))
		see_place_of(skb, me);
	if (is_strange(&f, from)) {
		count(skb, me, VERDICT_TX, size);
		return bpf_redirect(meta.ifindex, 0);
	}
	if (from->flags & SUB_VIA) {
		if (answer_via(skb, me)) {
			count(skb, me, VERDICT_TX, size);
			return deliver(&f, from, me, size, way_of(from));
		}
		reload(&f);
		if (goes_via(&f, me))
			return tx_via(&f, me, size);
	}
	if (is_group(&f))
		return tx_group(&f, from, me, size);
	return tx_unicast(&f, from, me, size);
}

/* Twice, since what it takes to know a VLAN is a register or two in each step. */
static __noinline int tx_whole(struct __sk_buff *skb, struct sub *from, __u32 me)
{
	return tx_any(skb, from, me, false);
}

/* me is 0 where nobody has the leg. */
__noinline int tx_vlans(struct __sk_buff *skb, __u32 me)
{
	return tx_any(skb, me ? sub_by_id(me) : NULL, me, true);
}

/* The short way, as in xvlan_tx, of unicast from an access sub-interface, with its tag to
 * the wire or without to one in its VLAN. */
static __noinline int tx_tagged(struct __sk_buff *skb, struct sub *from, __u32 me)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct size size = {.packets = 1, .bytes = skb->len + sizeof(struct tag)};
	struct ethhdr *eth = data;
	struct sub *to;
	__u32 id;

	if (data + ETH_HLEN > end || eth->h_dest[0] & 1 || maybe_parents(data) ||
	    is_vlan(eth->h_proto))
		return tx_vlans(skb, me);
	id = mac_slot(data);
	if (!id) {
		add(me, VERDICT_TX, size);
		return retag(skb, 0, from->vlan, 0) ? TC_ACT_SHOT : bpf_redirect(meta.ifindex, 0);
	}
	to = sub_by_id(id);
	if (!(to->flags & SUB_PLAIN_VLAN) || to->vlan != from->vlan ||
	    !(from->class & to->class & CLASS_BRIDGE) || to->place != PLACE_AWAY ||
	    !mac_eq(to->mac, data) || !device_up((void *)to->device))
		return tx_vlans(skb, me);
	add(me, VERDICT_TX, size);
	add(id, VERDICT_RX, size);
	return to_peer(skb, to, way_of(from));
}

/* Whether tx_tagged may look at a frame. */
static __always_inline bool is_access(const struct __sk_buff *skb, const struct sub *from)
{
	return (from->flags & (SUB_PLAIN_VLAN | SUB_VIA)) == SUB_PLAIN_VLAN &&
	       from->place != PLACE_LOCAL && skb->len <= ETH_HLEN + meta.mtu && !skb->gso_size &&
	       !skb->vlan_present && !meta.watched && !DRY_RUN;
}

/* The whole way. Several functions, for the stack: before 6.12 a chain of calls has
 * 512 bytes of it, and what fans out is a long one. rx_whole and tx_vlans are global ones,
 * which the verifier goes through once, not again for each place that calls them; tx_whole,
 * which would have to look its sender up again, is not. */
static __always_inline int tx_slow(struct __sk_buff *skb)
{
	__u32 me = 0;
	struct sub *from = sub_by_leg(skb->ifindex, &me);

	if (from && from->flags & SUB_GUARDED && !is_inward(skb, from) && !may_leave(skb, me))
		return TC_ACT_SHOT;
	if (from && is_routed(from))
		return tx_routed(skb, from, me);
	if (!meta.vlans && !(from && from->vlan))
		return tx_whole(skb, from, me);
	if (!from)
		return tx_vlans(skb, 0);
	return is_access(skb, from) ? tx_tagged(skb, from, me) : tx_vlans(skb, me);
}

/* Counts a frame that is no super-packet and has no tag beside it. */
static __always_inline void count_plain(struct __sk_buff *skb, __u32 id, enum verdict v)
{
	add(id, v, (struct size){.packets = 1, .bytes = skb->len});
}

/* The short way, as xvlan_rx has one: unicast of a plain sub-interface that is not
 * known to be here, and not over the MTU, to a MAC that is certainly nobody's here,
 * so for the wire, or to a plain sibling that is up in another netns. */
SEC("tc")
int xvlan_tx(struct __sk_buff *skb)
{
	__u32 leg = skb->ifindex, me, id;
	void *dst = (void *)(long)skb->data;
	struct sub *from, *to;

	me = *ELEMENT(leg_slots, leg & (0xffffffffU >> slot_shift));
	from = sub_by_id(me);
	if ((from->flags & (SUB_PLAIN | SUB_GUARDED | SUB_VIA)) != SUB_PLAIN || from->leg != leg ||
	    from->place == PLACE_LOCAL || dst + ETH_HLEN > (void *)(long)skb->data_end ||
	    *(__u8 *)dst & 1 || skb->len > ETH_HLEN + meta.mtu || skb->gso_size ||
	    skb->vlan_present || meta.watched || *(__u32 *)(dst + 2) == *(__u32 *)(meta.mac + 2) ||
	    DRY_RUN)
		return tx_slow(skb);
	id = mac_slot(dst);
	if (!id) {
		count_plain(skb, me, VERDICT_TX);
		return bpf_redirect(meta.ifindex, 0);
	}
	to = sub_by_id(id);
	if (!(to->flags & SUB_PLAIN) || !(from->class & to->class & CLASS_BRIDGE) ||
	    to->place != PLACE_AWAY || !mac_eq(to->mac, dst) || !device_up((void *)to->device))
		return tx_slow(skb);
	count_plain(skb, me, VERDICT_TX);
	count_plain(skb, id, VERDICT_RX);
	return to_peer(skb, to, way_of(from));
}

/* What xvlan_tx, on the egress of a netkit, or copy_as_own has marked with whose
 * inner leg it is for. Without a mark it is the host's, from one in mode l3s. */
SEC("tc")
int xvlan_turn(struct __sk_buff *skb)
{
	__u32 leg = skb->mark;

	if (!leg)
		return TC_ACT_UNSPEC;
	skb->mark = 0;
	return bpf_redirect_peer(leg == MARK_INWARD ? skb->ifindex : leg, 0);
}

/* There while a sub-interface has host access, or reaches networks by way of the host. */
SEC("tc")
int xvlan_host(struct __sk_buff *skb)
{
	return from_leg(skb) ? TC_ACT_UNSPEC : host_whole(skb);
}

/* Run by the loader as if by a frame on a new host leg. */
SEC("tc")
int xvlan_meet(struct __sk_buff *skb)
{
	__u32 id = 0;
	struct sub *sub = sub_by_leg(skb->ifindex, &id);
	struct net_device *peer = peer_of(skb_device(skb));

	if (!sub || !peer)
		return TC_ACT_SHOT;
	sub->device = (__u64)peer;
	return TC_ACT_OK;
}

/* Run by the loader on a struct carried in the place of a frame: adds counters to
 * those of this CPU, where no program on it can be between reading and writing. */
SEC("tc")
int xvlan_carry(struct __sk_buff *skb)
{
	struct carried more;
	struct sub_stats *s;

	if (bpf_skb_load_bytes(skb, 0, &more, sizeof(more)))
		return TC_ACT_SHOT;
	s = bpf_map_lookup_elem(&stats, &more.id);
	if (!s)
		return TC_ACT_SHOT;
	for (int v = 0; v < VERDICT_MAX; v++) {
		__sync_fetch_and_add(&s->verdict[v].packets, more.stats.verdict[v].packets);
		__sync_fetch_and_add(&s->verdict[v].bytes, more.stats.verdict[v].bytes);
	}
	return TC_ACT_OK;
}
