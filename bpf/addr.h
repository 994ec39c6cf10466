/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Whose an IP address is. The hash maps by_ip4 and by_ip6 know. Copies of what
 * they have said, without a VLAN, stand in front of them in buckets of one
 * cache line each. A part of xvlan.c.
 *
 * No record confirms such a copy, as it does what the slot of a MAC says. So
 * each bucket has a version, and each copy tells by which one it was made:
 *
 *   - Who makes a copy reads the version first, and then the hash map.
 *   - Who deletes or replaces an entry raises the version afterwards. The loader,
 *     which may be killed between, makes it odd before and even afterwards; of
 *     an odd version no copies are made. A new entry raises nothing, since there
 *     are no copies of there being none.
 *
 * A copy of the bucket's own version is therefore one of an entry that still
 * stands, or that a program has deleted in this moment and will have raised the
 * version for in the next: the frame counts as having come before. A copy that
 * is made late, from an entry that has been deleted meanwhile, even from one of
 * which the kernel uses the memory for another, is void from the beginning. The
 * generation stands in the copy and is compared with the record's, as ever.
 *
 *   - A copy is made only where one of an earlier version stands, which the maker
 *     takes for its own by a compare and exchange. The version is written last.
 *
 * So a copy of the bucket's version stays as it is, and who finds the version
 * after having read a copy to be the copy's has read one whole copy. A bucket
 * that is full of such is left alone, and the hash map asked for all others.
 */
#ifndef XVLAN_ADDR_H
#define XVLAN_ADDR_H

#define READ(x)	 (*(volatile typeof(x) *)&(x))
#define WRITE(x) READ(x)

/* The version of a copy that is being made: later than any. */
#define BEING_MADE 0xffffffff

/* Whose an address is: the id, and above it the generation. */
#define NOBODY	     0xffffffffffffffffULL
#define WHO(id, gen) ((__u64)(gen) << 32 | (id))

/* Which bucket a key falls into: bpf.AddrBucket in Go. Addresses differ mostly in
 * their last bytes, which are the highest of the key, so that one multiplication
 * would not do. */
#define SPREAD 0x9e3779b97f4a7c15ULL

static __always_inline __u64 spread(__u64 key)
{
	key *= SPREAD;
	key ^= key >> 32;
	return key * SPREAD >> addr_shift;
}

static __always_inline struct ip4_bucket *bucket4(__u32 addr)
{
	return ELEMENT(ip4_slots, spread(addr));
}

static __always_inline struct ip6_bucket *bucket6(__u64 high, __u64 low)
{
	return ELEMENT(ip6_slots, spread(high * SPREAD + low));
}

/* To be called when an entry of the bucket has been deleted. */
static __always_inline void raise(__u32 *version)
{
	if (READ(*version) < VERSION_MAX)
		__sync_fetch_and_add(version, 2);
}

/* What a copy is marked by: never 0, which an empty slot has. */
static __always_inline __u32 mark_of(__u32 version)
{
	return version + 1;
}

static __always_inline bool may_copy(__u32 version)
{
	return in_order && !(version & 1) && version < VERSION_MAX;
}

/* Takes a slot to make a copy in. */
static __always_inline bool take_slot(__u32 *mark, __u32 mine)
{
	__u32 was = READ(*mark);

	return was < mine && __sync_val_compare_and_swap(mark, was, BEING_MADE) == was;
}

static __always_inline void keep4(struct ip4_bucket *b, __u32 mark, __u32 addr, __u64 who)
{
	int n = -1;

	for (int i = IP4_SLOTS - 1; i >= 0; i--)
		if (READ(b->mark[i]) < mark)
			n = i;
	for (int i = IP4_SLOTS - 1; i >= 0; i--) /* the first of an address is the one found */
		if (READ(b->addr[i]) == addr)
			n = i;
	if (n < 0 || n >= IP4_SLOTS || !take_slot(&b->mark[n], mark))
		return;
	WRITE(b->addr[n]) = addr;
	WRITE(b->id[n]) = who;
	WRITE(b->gen[n]) = who >> 32;
	__sync_lock_test_and_set(&b->mark[n], mark);
}

static __always_inline void keep6(struct ip6_bucket *b, __u32 mark, __u64 high, __u64 low,
				  __u64 who)
{
	int n = -1;

	for (int i = IP6_SLOTS - 1; i >= 0; i--)
		if (READ(b->mark[i]) < mark)
			n = i;
	for (int i = IP6_SLOTS - 1; i >= 0; i--)
		if (READ(b->addr[i].low) == low && READ(b->addr[i].high) == high)
			n = i;
	if (n < 0 || n >= IP6_SLOTS || !take_slot(&b->mark[n], mark))
		return;
	WRITE(b->addr[n].high) = high;
	WRITE(b->addr[n].low) = low;
	WRITE(b->id[n]) = who;
	WRITE(b->gen[n]) = who >> 32;
	__sync_lock_test_and_set(&b->mark[n], mark);
}

/* Whose an address is by its slot; NOBODY where that does not say. The mark is
 * read before all else, the version after it. */
static __always_inline __u64 seen4(__u32 addr)
{
	struct ip4_bucket *b = bucket4(addr);

#pragma unroll
	for (int n = 0; n < IP4_SLOTS; n++) {
		__u32 mark;
		__u64 who;

		if (READ(b->addr[n]) != addr)
			continue;
		mark = READ(b->mark[n]);
		if (READ(b->addr[n]) != addr)
			return NOBODY;
		who = WHO(READ(b->id[n]), READ(b->gen[n]));
		return mark_of(READ(b->version)) == mark ? who : NOBODY;
	}
	return NOBODY;
}

static __always_inline __u64 seen6(__u64 high, __u64 low)
{
	struct ip6_bucket *b = bucket6(high, low);

#pragma unroll
	for (int n = 0; n < IP6_SLOTS; n++) {
		__u32 mark = READ(b->mark[n]);
		__u64 who;

		if (READ(b->addr[n].low) != low || READ(b->addr[n].high) != high)
			continue;
		who = WHO(READ(b->id[n]), READ(b->gen[n]));
		return mark_of(READ(b->version)) == mark ? who : NOBODY;
	}
	return NOBODY;
}

/* Whose an address is, without a VLAN. Global functions, so that the verifier
 * looks at them once. */
__noinline __u64 who4(__u32 addr)
{
	struct ip4_key key = {.addr_be = addr};
	struct ip4_bucket *b = bucket4(addr);
	__u64 who = seen4(addr);
	__u32 version;
	struct dest *d;

	if (who != NOBODY)
		return who;
	version = READ(b->version);
	d = bpf_map_lookup_elem(&by_ip4, &key);
	if (!d)
		return NOBODY;
	who = WHO(d->id, d->gen);
	if (may_copy(version) && !(d->flags & DEST_AWAITED))
		keep4(b, mark_of(version), addr, who);
	return who;
}

__noinline __u64 who6(__u64 high, __u64 low)
{
	struct ip6_bucket *b = bucket6(high, low);
	__u64 who = seen6(high, low);
	struct ip6_key key = {};
	__u32 version;
	struct dest *d;

	if (who != NOBODY)
		return who;
	__builtin_memcpy(key.addr, &high, sizeof(high));
	__builtin_memcpy(key.addr + sizeof(high), &low, sizeof(low));
	version = READ(b->version);
	d = bpf_map_lookup_elem(&by_ip6, &key);
	if (!d)
		return NOBODY;
	who = WHO(d->id, d->gen);
	if (may_copy(version))
		keep6(b, mark_of(version), high, low, who);
	return who;
}

#endif
