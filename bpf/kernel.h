/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The few kernel and wire types that the UAPI headers lack. Fields of kernel
 * structs are found by CO-RE, so only those that are read stand here.
 */
#ifndef XVLAN_KERNEL_H
#define XVLAN_KERNEL_H

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net;

typedef struct {
	struct net *net;
} possible_net_t;

struct vlan_group {
	void **vlan_devices_arrays[2][8]; /* by protocol and the VLAN's upper 3 bits */
};

struct vlan_info {
	struct vlan_group grp;
};

struct list_head {
	struct list_head *next;
};

struct netdev_hw_addr {
	struct list_head list;
	unsigned char addr[32];
};

struct netdev_hw_addr_list {
	struct list_head list;
};

struct net_device {
	const void *netdev_ops;
	unsigned int flags;
	possible_net_t nd_net;
	struct netdev_hw_addr_list mc; /* the groups that it receives */
	struct vlan_info *vlan_info;   /* NULL: no VLAN device was ever on it */
};

struct sk_buff {
	struct net_device *dev;
	__u8 redirected : 1; /* by a program, and not come in since */
};

struct xdp_rxq_info {
	struct net_device *dev;
};

struct xdp_buff {
	struct xdp_rxq_info *rxq;
};

#pragma clang attribute pop

/* netdev_priv() starts at the next multiple of this behind struct net_device;
 * later kernels align it wider, and then the struct's size to it as well. */
#define NETDEV_ALIGN 32

/* Weak: Linux 6.2 or later. bpf.Load drops it before. */
extern void *bpf_rdonly_cast(void *obj, __u32 btf_id) __ksym __weak;
extern void *bpf_cast_to_kern_ctx(void *obj) __ksym __weak;

#define IFF_UP 1 /* linux/if.h */

/* A VLAN tag behind its EtherType. */
struct tag {
	__be16 tci_be;
	__be16 proto_be; /* of what follows */
};

/* ARP for IPv4 on Ethernet, RFC 826. */
struct arp {
	__be16 htype_be;
	__be16 ptype_be;
	__u8 hlen;
	__u8 plen;
	__be16 op_be;
	__u8 sha[6];
	__u8 spa[4]; /* bytes: a __be32 would not be aligned */
	__u8 tha[6];
	__u8 tpa[4];
} __attribute__((packed));

/* The head of an ICMPv6 neighbour discovery message, RFC 4861; `target` is
 * there in solicitations, advertisements and redirects. */
struct nd {
	__u8 type;
	__u8 code;
	__be16 csum_be;
	__be32 reserved_be;
	__u8 target[16];
};

#define ND_ROUTER_SOLICIT   133
#define ND_ROUTER_ADVERT    134
#define ND_NEIGHBOR_SOLICIT 135
#define ND_NEIGHBOR_ADVERT  136
#define ND_REDIRECT	    137

/* Other ICMPv6, RFC 2710, 3810, 2894, 3122 and 4286, ICMP and IGMP, and what may stand
 * between an IPv6 header and the transport's. */
#define MLD_QUERY	   130
#define MLD_REPORT	   131
#define MLD_DONE	   132
#define MLD2_REPORT	   143
#define ROUTER_RENUMBERING 138
#define ND_INVERSE_SOLICIT 141
#define ND_INVERSE_ADVERT  142
#define MRD_ADVERT	   151
#define MRD_TERMINATION	   153

#define ICMP_REDIRECT	   5
#define ICMP_ROUTER_ADVERT 9
#define IGMP_QUERY	   0x11

#define IPPROTO_HIP   139
#define IPPROTO_SHIM6 140

#define ND_OPT_SOURCE_LLADDR 1
#define ND_OPT_TARGET_LLADDR 2

/* A link-layer address option for Ethernet fills just one unit of 8 bytes. */
struct nd_opt {
	__u8 type;
	__u8 units;
	__u8 lladdr[6];
};

#endif
