/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The maps of one parent. Sizes of 1 are placeholders: the loader sets what
 * depends on the capacity. ARCHITECTURE.md tells who writes which.
 */
#ifndef XVLAN_MAPS_H
#define XVLAN_MAPS_H

/* What every frame needs stands in sections: array maps of one entry, whose
 * address the programs know, so that there is no look-up and no key. bpf.Load
 * names the maps without the dots, which no pin may have, and gives those that
 * depend on the capacity their length. */

struct parent meta SEC(".data.meta") __hidden;

/* By id: see sub_by_id. */
struct sub subs[1] SEC(".data.subs") __hidden;

/* By id, of those with SUB_GUARDED: see guard.h. */
struct guard guards[1] SEC(".data.guards") __hidden;

/* The usual way from a MAC or a leg to a record, without hashing a key: a slot
 * has the id of the one sub-interface that falls into it, 0 where none does, or
 * SLOT_SHARED. The record then confirms or denies, so that a slot need not be
 * exact at every moment, only never 0 where something falls into it. */
__u32 mac_slots[1] SEC(".data.mac_slots") __hidden;
__u32 leg_slots[1] SEC(".data.leg_slots") __hidden;

/* What by_ip4 and by_ip6 have said lately: see addr.h. */
struct ip4_bucket ip4_slots[1] SEC(".data.ip4_slots") __hidden;
struct ip6_bucket ip6_slots[1] SEC(".data.ip6_slots") __hidden;

/* An element of such a section; the compiler must not know that it declares
 * but one. The verifier has to know a bound of the index. */
#define ELEMENT(section, index)                                                                    \
	({                                                                                         \
		typeof(&(section)[0]) first = (section);                                           \
		barrier_var(first);                                                                \
		first + (index);                                                                   \
	})

/* By the bits of meta.watched: see watch.h. */
struct watcher watchers[1] SEC(".data.watchers") __hidden;

/* The same: their perf buffers, which last as long as they do. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, WATCHERS);
	__type(key, __u32);
	__array(
	    values, struct {
		    __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
		    __uint(max_entries, 1);
		    __type(key, __u32);
		    __type(value, __u32);
	    });
} sightings SEC(".maps");

/* Bit i%64 of word i/64: sub-interface i gets group-addressed frames. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct mac_key);
	__type(value, struct dest);
} by_mac SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct ip4_key);
	__type(value, struct dest);
} by_ip4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct ip6_key);
	__type(value, struct dest);
} by_ip6 SEC(".maps");

/* Which senders' frames a sub-interface in source mode gets. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct src_key);
	__type(value, __u32);
} by_src SEC(".maps");

/* The VLANs that are claimed: those that a sub-interface is in or has on its trunk. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} vlans SEC(".maps");

/* By id, of those with SUB_TRUNK. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trunk);
} trunks SEC(".maps");

/* By id, of those with SUB_VIA. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct via);
} vias SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dest);
} by_leg SEC(".maps");

/* By id: the host legs that xvlan_xdp redirects to. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ring);
} learned SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sub_stats);
} stats SEC(".maps");

#endif
