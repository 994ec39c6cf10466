/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The maps of one parent. Sizes of 1 are placeholders: the loader sets what
 * depends on the capacity. ARCHITECTURE.md tells who writes which.
 */
#ifndef XVLAN_MAPS_H
#define XVLAN_MAPS_H

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct parent);
} meta SEC(".maps");

/* Mappable only to begin on a page: else the kernel's header before it puts
 * every record across two cache lines. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sub);
} subs SEC(".maps");

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

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dest);
} by_leg SEC(".maps");

/* The usual way from a MAC or a leg to a record, without hashing a key: a slot
 * has the id of the one sub-interface that falls into it, 0 where none does, or
 * SLOT_SHARED. The record then confirms or denies, so that a slot need not be
 * exact at every moment, only never 0 where something falls into it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} mac_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} leg_slots SEC(".maps");

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
