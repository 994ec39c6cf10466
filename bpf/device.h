/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What the kernel knows of a device at this moment, read from its own structs,
 * so that nothing has to be followed and kept in step. A part of xvlan.c.
 */
#ifndef XVLAN_DEVICE_H
#define XVLAN_DEVICE_H

/* The device that a frame has come in by. A context is at run time the
 * kernel's own struct, which the verifier does not let a program read directly
 * before Linux 6.2. */
static __always_inline struct net_device *skb_device(struct __sk_buff *skb)
{
	struct net_device *dev = NULL;

	bpf_core_read(&dev, sizeof(dev), &((struct sk_buff *)skb)->dev);
	return dev;
}

static __always_inline struct net_device *xdp_device(struct xdp_md *ctx)
{
	struct net_device *dev = NULL;
	struct xdp_rxq_info *rxq = NULL;

	bpf_core_read(&rxq, sizeof(rxq), &((struct xdp_buff *)ctx)->rxq);
	bpf_core_read(&dev, sizeof(dev), &rxq->dev);
	return dev;
}

/* The kernel keeps the VLAN devices on a device by 512 VLANs together. */
#define VLANS_TOGETHER 512

/* Whether a device has a VLAN device for such a tag, wherever that has gone. A
 * failed read leaves zero. A global function, which the verifier looks at once. */
__noinline int has_vlan(__u64 device, __u32 tpid_be, __u32 vlan)
{
	struct net_device *dev = (void *)device;
	__u32 part = (tpid_be == bpf_htons(ETH_P_8021AD) ? 8 : 0) + vlan / VLANS_TOGETHER;
	struct vlan_info *info = NULL;
	void **devices = NULL, *found = NULL;

	if (!bpf_core_field_exists(dev->vlan_info) || !bpf_core_type_exists(struct vlan_info))
		return false; /* a kernel without VLAN devices */
	if (bpf_core_read(&info, sizeof(info), &dev->vlan_info) || !info)
		return false;
	bpf_probe_read_kernel(&devices, sizeof(devices),
			      (void *)&info->grp.vlan_devices_arrays + part * sizeof(void *));
	if (devices)
		bpf_probe_read_kernel(&found, sizeof(found), devices + vlan % VLANS_TOGETHER);
	return found != NULL;
}

/* The same of the device that a frame has come in by. Mostly that has none at all, which
 * from Linux 6.2 on is seen without a helper. */
static __always_inline bool skb_has_vlan(struct __sk_buff *skb, __u32 tpid_be, __u32 vlan)
{
	if (bpf_cast_to_kern_ctx && bpf_core_field_exists(struct net_device, vlan_info) &&
	    !((struct sk_buff *)bpf_cast_to_kern_ctx(skb))->dev->vlan_info)
		return false;
	return has_vlan((__u64)skb_device(skb), tpid_be, vlan);
}

/* The other end of a veth or a netkit, which keep it as the first member of their
 * private area; NULL where the device turns out to be neither. */
static __always_inline struct net_device *peer_of(struct net_device *leg)
{
	__u32 size = (bpf_core_type_size(struct net_device) + NETDEV_ALIGN - 1) & -NETDEV_ALIGN;
	const void *ops = NULL, *peer_ops = NULL;
	struct net_device *peer = NULL;

	if (bpf_probe_read_kernel(&peer, sizeof(peer), (void *)leg + size) || !peer)
		return NULL;
	/* Both ends have one driver; anything else was no peer. */
	if (bpf_core_read(&ops, sizeof(ops), &leg->netdev_ops) ||
	    bpf_core_read(&peer_ops, sizeof(peer_ops), &peer->netdev_ops) || ops != peer_ops)
		return NULL;
	return peer;
}

static __always_inline bool device_up(struct net_device *dev)
{
	unsigned int flags = 0;

	if (bpf_rdonly_cast) {
		dev = bpf_rdonly_cast(dev, bpf_core_type_id_kernel(struct net_device));
		return dev->flags & IFF_UP;
	}
	bpf_core_read(&flags, sizeof(flags), &dev->flags);
	return flags & IFF_UP;
}

/* Whether a sub-interface's device is up, or not known not to be. The device
 * lives as long as its host leg; of one that has gone and has not been swept
 * yet, what is read in its place says nothing, and it gets nothing either way. */
static __always_inline bool is_up(const struct sub *sub)
{
	return !sub->device || device_up((void *)sub->device);
}

#endif
