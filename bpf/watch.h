/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What `xvlan monitor` and `xvlan capture` see: each verdict, with the frame.
 * Whoever watches takes a place in `watchers` and gives a perf buffer of his
 * own, of which the helper is the one that copies any number of bytes out of
 * fragments, too. A part of xvlan.c.
 */
#ifndef XVLAN_WATCH_H
#define XVLAN_WATCH_H

/* So many in a window, by a count that all CPUs raise. */
static __always_inline bool within_rate(struct watcher *w, __u64 now)
{
	__u64 since = w->since_ns;

	if (!w->rate)
		return true;
	/* Signed: another CPU may have begun a window since now was read. */
	if ((__s64)(now - since) >= (__s64)w->window_ns &&
	    __sync_val_compare_and_swap(&w->since_ns, since, now) == since)
		w->count = 0;
	if (__sync_fetch_and_add(&w->count, 1) < w->rate)
		return true;
	__sync_fetch_and_add(&w->withheld, 1);
	return false;
}

struct show {
	void *ctx;
	__u32 left; /* bits of those who have not seen it yet */
	struct sighting s;
};

static long show_one(__u32 n __attribute__((unused)), struct show *show)
{
	struct sighting *s = &show->s;
	struct watcher *w;
	void *buffer;
	__u32 place;

	if (!show->left)
		return 1;
	place = __builtin_ctz(show->left) % WATCHERS;
	show->left &= show->left - 1;
	w = ELEMENT(watchers, place);
	if (!(w->verdicts >> (s->verdict & 31) & 1) || (w->only && w->only != s->id) ||
	    !within_rate(w, s->time_ns))
		return 0;
	buffer = bpf_map_lookup_elem(&sightings, &place);
	s->copied = s->len < w->snap ? s->len : w->snap;
	if (!buffer ||
	    bpf_perf_event_output(show->ctx, buffer, (__u64)s->copied << 32 | BPF_F_CURRENT_CPU, s,
				  sizeof(*s)))
		__sync_fetch_and_add(&w->lost, 1);
	return 0;
}

static __always_inline int show_all(struct show *show)
{
	show->left = meta.watched;
	show->s.time_ns = bpf_ktime_get_ns();
	show->s.parent = meta.ifindex;
	bpf_loop(WATCHERS, show_one, show, 0);
	return 0;
}

/* The verdict on a frame, or on a copy of one for the sub-interface id. Called
 * only while somebody watches; global functions, which the verifier looks at
 * once. */
__noinline int witness(struct __sk_buff *skb, __u32 id, __u32 v)
{
	struct show show = {.ctx = skb};

	show.s.id = id;
	show.s.verdict = v;
	show.s.len = skb->len;
	show.s.type = skb->pkt_type;
	if (skb->vlan_present) {
		show.s.tpid_be = skb->vlan_proto;
		show.s.tci = skb->vlan_tci;
	}
	return show_all(&show);
}

__noinline int witness_xdp(struct xdp_md *ctx, __u32 id, __u32 v)
{
	struct show show = {.ctx = ctx};

	show.s.id = id;
	show.s.verdict = v;
	show.s.len = bpf_xdp_get_buff_len(ctx);
	return show_all(&show);
}

#endif
