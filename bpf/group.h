/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Who has joined which group: the inner leg's own filter tells, which the
 * container's stack keeps and the kernel's drivers go by. It holds a group from
 * the moment that it is joined until it is left: those of IGMP and MLD, of
 * neighbour discovery before an address is first asked for, and those that are
 * no IP groups. A part of xvlan.c.
 */
#ifndef XVLAN_GROUP_H
#define XVLAN_GROUP_H

/* How many groups of a device are looked through. One that has joined more, an
 * end of many, gets all. */
#define GROUPS_MAX 128

/* The device takes all multicast: a bridge's port, or somebody who listens. */
#define IFF_PROMISC  0x100
#define IFF_ALLMULTI 0x200

enum membership { GROUP_JOINED, GROUP_NOT, GROUP_MANY };

/* Whether a sub-interface is to get what is sent to a group's MAC. What is not
 * known, or cannot be read, is taken for joined. The list is the kernel's, whose
 * entries outlive their removal for as long as a program runs. */
static __always_inline enum membership membership(const struct sub *sub, const __u8 *mac)
{
	struct net_device *dev = (void *)sub->device;
	struct list_head *head, *next = NULL;
	struct netdev_hw_addr *group;
	unsigned int flags = 0;
	__u8 addr[8] __attribute__((aligned(8))) = {}; /* the MAC behind 2 bytes, for mac_eq */

	if (!dev)
		return GROUP_JOINED;
	bpf_core_read(&flags, sizeof(flags), &dev->flags);
	if (flags & (IFF_PROMISC | IFF_ALLMULTI))
		return GROUP_JOINED;
	head = __builtin_preserve_access_index(&dev->mc.list);
	bpf_core_read(&next, sizeof(next), &head->next);
	for (int n = 0; n < GROUPS_MAX; n++) {
		if (next == head)
			return GROUP_NOT;
		group = (void *)next - bpf_core_field_offset(struct netdev_hw_addr, list);
		if (bpf_core_read(addr + 2, ETH_ALEN, &group->addr) || mac_eq(addr + 2, mac) ||
		    bpf_core_read(&next, sizeof(next), &group->list.next))
			return GROUP_JOINED;
	}
	return GROUP_MANY;
}

#endif
