/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * VLANs that sub-interfaces are in. A VLAN is claimed by the first sub-interface in it
 * or trunk that lists it, and from then on a world of its own: only its members get, are
 * found by and meet what is tagged with it. A tag that nobody has claimed means nothing,
 * but that the frame is neither the host's nor a trunk's.
 *
 * A frame in a VLAN has two forms. The wire, and trunks for all but their untagged
 * frames' VLAN, have it with its tags, others without: fit() gives it the form that it
 * has where it goes, and is called for each. Tags stand beside the skb for as long as the
 * kernel can keep them there, so super-packets stay whole. A part of xvlan.c.
 */
#ifndef XVLAN_VLAN_H
#define XVLAN_VLAN_H

#define VLAN_ID	  0xfff
#define VLAN_PRIO 0xf000 /* priority, and whether it may rather be dropped */

/* Whether a frame has a tag of a VLAN that nobody is in. */
static __always_inline bool is_foreign(const struct frame *f)
{
	return !f->vlan && f->tci & VLAN_ID;
}

/* Whether a frame in a VLAN has its tags. */
static __always_inline bool is_tagged(const struct frame *f)
{
	return f->tci & VLAN_ID;
}

/* The VLAN that tags tell, if it is one that is claimed, else 0. With a service tag it
 * is told by the 802.1Q tag behind that, too, which stands above then by 32 bits. A global
 * function, as those below: so the verifier looks at them once, and frames without a tag
 * have the registers. */
__noinline __u64 claimed(struct __sk_buff *skb, __u32 l3, __u32 tpid_be, __u32 tci, __u32 proto_be)
{
	__u32 vlan = tci & VLAN_ID;
	struct tag tag = {};

	if (!vlan)
		return 0;
	if (tpid_be == bpf_htons(ETH_P_8021AD)) {
		if (proto_be != bpf_htons(ETH_P_8021Q) ||
		    bpf_skb_load_bytes(skb, l3, &tag, sizeof(tag)))
			return 0;
		vlan = vlan << QINQ_SHIFT | (bpf_ntohs(tag.tci_be) & VLAN_ID);
	}
	if (!bpf_map_lookup_elem(&vlans, &vlan))
		return 0;
	note(STEP_CLAIMED, 0, vlan);
	return vlan | (__u64)bpf_ntohs(tag.tci_be) << 32 | (__u64)tag.proto_be << 48;
}

/* Finds out which VLAN a frame with a tag is in. */
static __always_inline void claim(struct frame *f)
{
	__u64 found;

	if (!f->tpid_be || !meta.vlans)
		return;
	found = claimed(f->skb, f->l3, f->tpid_be, f->tci, f->proto_be);
	f->vlan = found;
	if (f->vlan <= VLAN_ID)
		return;
	f->tci = f->tci << 16 | (found >> 32 & 0xffff);
	f->proto_be = found >> 48;
	f->l3 += sizeof(struct tag);
}

/* Whether a VLAN is on the list of a trunk. */
__noinline int is_listed(__u32 id, __u32 vlan)
{
	__u32 word = vlan / 64;
	struct trunk *trunk;

	if (vlan > VLAN_ID)
		return false;
	trunk = bpf_map_lookup_elem(&trunks, &id);
	barrier_var(word); /* the verifier has to see its bound */
	return trunk && trunk->vlans[word % 64] >> vlan % 64 & 1;
}

/* Whether a sub-interface gets and sends a VLAN with its tag. */
static __always_inline bool has_tag(const struct sub *sub, __u32 id, __u32 vlan)
{
	return sub->flags & SUB_TRUNK && is_listed(id, vlan);
}

/* Whether a sub-interface has part in the VLAN that a frame is in. */
static __always_inline bool is_in(const struct frame *f, const struct sub *sub, __u32 id)
{
	if (sub->vlan == f->vlan)
		return !(sub->flags & SUB_TRUNK) || !is_foreign(f);
	return has_tag(sub, id, f->vlan);
}

/* Whether a sub-interface without a VLAN has sent a tag of one that others are in: then
 * it meets nobody here. */
static __always_inline bool is_strange(const struct frame *f, const struct sub *from)
{
	return f->vlan && !from->vlan && !(from->flags & SUB_TRUNK);
}

static __always_inline __u32 tags_of(__u32 vlan)
{
	return !vlan ? 0 : vlan > VLAN_ID ? 2 : 1;
}

/* Finds out which VLAN a sub-interface sends into. False: one that it has no part in, or
 * none where it has no part without a tag. A priority tag says no VLAN, but which priority
 * the VLAN's tags shall have; another behind it could become the outer one. Its size is what
 * the wire carries. */
static __always_inline bool enter(struct frame *f, const struct sub *from, __u32 me,
				  struct size *size)
{
	__u32 more;

	claim(f);
	if (!from->vlan && !(from->flags & SUB_TRUNK))
		return true;
	if (f->tci & VLAN_ID)
		return has_tag(from, me, f->vlan);
	if (from->vlan == VLAN_NONE || is_vlan(f->proto_be))
		return false;
	f->vlan = from->vlan;
	f->tci |= f->tci << 16;
	more = tags_of(f->vlan) - (f->vlan && f->tpid_be);
	size->bytes += size->packets * sizeof(struct tag) * more;
	return true;
}

/* Takes so many tags off a frame, and if `vlan` is not 0 puts that VLAN's on, with the
 * priority of these TCIs, of which the upper half is the service tag's. The priority of
 * what is taken off for good is the skb's, where a bridge or tc finds it. Not 0: there was
 * no memory. A global function, which the verifier looks at once. */
__noinline int retag(struct __sk_buff *skb, __u32 off, __u32 vlan, __u32 tcis)
{
	note(STEP_FIT, 0, vlan);
	if ((off && bpf_skb_vlan_pop(skb)) || (off == 2 && bpf_skb_vlan_pop(skb)))
		return -1;
	if (!vlan) {
		skb->priority = (__u16)tcis >> 13;
		return 0;
	}
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), (tcis & VLAN_PRIO) | (vlan & VLAN_ID)))
		return -1;
	if (vlan <= VLAN_ID)
		return 0;
	return bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021AD),
				 (tcis >> 16 & VLAN_PRIO) | vlan >> QINQ_SHIFT);
}

/* Gives a frame in a VLAN the form with its tags or that without. A priority tag makes
 * room for the tags that have its priority. Afterwards what is known of where headers are
 * is void. False: the frame can go nowhere. */
static __always_inline bool fit(struct frame *f, bool tagged)
{
	__u32 tags = tags_of(f->vlan);

	if (!f->vlan || tagged == is_tagged(f))
		return true;
	if (retag(f->skb, tagged ? !!f->tpid_be : tags, tagged ? f->vlan : 0, f->tci))
		return false;
	f->tci = (f->tci & ~VLAN_ID) | (tagged ? f->vlan & VLAN_ID : 0);
	f->tpid_be = 0;
	reload(f);
	return true;
}

/* Gives it the form that it has for a sub-interface in its VLAN. */
static __always_inline bool fit_to(struct frame *f, const struct sub *sub)
{
	return fit(f, sub->vlan != f->vlan);
}

#endif
