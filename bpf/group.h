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

/* A group's MAC in a register, behind 2 bytes of zero. */
static __always_inline __u64 group_of(const __u8 *mac)
{
	__u64 group = 0;

	__builtin_memcpy((__u8 *)&group + 2, mac, ETH_ALEN);
	return group;
}

/* Whether a device is to get what is sent to a group. What is not known, or
 * cannot be read, is taken for joined. The list is the kernel's, whose entries
 * outlive their removal for as long as a program runs. A global function, so
 * that the verifier goes through the loop once, not for each path that comes
 * here: that is half of its work. */
__noinline int membership(__u64 device, __u64 group)
{
	struct net_device *dev = (void *)device;
	struct list_head *head, *next = NULL;
	struct netdev_hw_addr *joined;
	unsigned int flags = 0;
	__u8 addr[ETH_ALEN];

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
		joined = (void *)next - bpf_core_field_offset(struct netdev_hw_addr, list);
		if (bpf_core_read(addr, ETH_ALEN, &joined->addr) || group_of(addr) == group ||
		    bpf_core_read(&next, sizeof(next), &joined->list.next))
			return GROUP_JOINED;
	}
	return GROUP_MANY;
}

#endif
