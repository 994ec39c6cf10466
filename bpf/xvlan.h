/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What the packet path and the loader share: map keys and values, verdicts and
 * flags. bpf2go mirrors every struct and enum named here into Go. Integers are
 * in host byte order unless their name ends in _be; addresses are in network
 * order. Every key has its padding spelled out and zeroed, since a hash map
 * compares all of its bytes.
 */
#ifndef XVLAN_H
#define XVLAN_H

/* Raised whenever a key, a value or the meaning of a flag changes, so that a
 * loader never writes into maps that another version's programs read. What older
 * maps hold is carried over by the names of types and fields, see convert() in
 * package maps: so what changes its meaning takes another name, and what is an
 * index or a bit (verdicts, flags) stays at its place. 10 is 9 with VLANs that are
 * taken for keys: mac_key and what a `vlan` holds are wider, see VLAN_NONE; and with
 * networks that are reached by way of the host: struct via. */
#define XVLAN_SCHEMA 10

/* Addresses a sub-interface may hold by learning; the oldest makes room. */
#define LEARN_SLOTS 8

/* Networks that a sub-interface may reach by way of the host. */
#define VIA_NETS 16

/* Copies of address entries that a bucket has room for: addr.h. Of this
 * version and later ones none are made, so that none comes again. */
#define IP4_SLOTS   4
#define IP6_SLOTS   2
#define VERSION_MAX 0xf0000000

/* How many can watch a parent at once: bits of parent.watched. */
#define WATCHERS 8

/* A `vlan` is the ID of an 802.1Q tag, and above it by QINQ_SHIFT bits that of the
 * service tag in front of it (802.1ad), if there is one. 0: no tag, or one that nobody
 * has claimed. No frame is in VLAN_NONE. */
#define QINQ_SHIFT 12
#define VLAN_NONE  0xffffffff

/* A slot that several fall into: the hash map behind it has to be asked. */
#define SLOT_SHARED 0x80000000

#define IFNAME_LEN 16
#define REASON_LEN 160

/*
 * What became of a frame. Every frame that enters a program leaves it with
 * exactly one verdict of its own, counted once in stats[id]; a copy handed to
 * a receiver is counted at that receiver besides. The enum's names are the
 * labels of metrics and of `link show -s`.
 */
enum verdict {
	VERDICT_PASS,		/* parent: for the host, or for what else hangs on the parent */
	VERDICT_RX,		/* sub-interface: handed to it, from the wire or a sibling */
	VERDICT_TX,		/* sub-interface: sent by it, to the wire, to siblings or the host;
				   parent: sent by the host while any has host access */
	VERDICT_DROP_UNKNOWN,	/* parent: for no sub-interface, and `unknown drop` is set */
	VERDICT_DROP_FANOUT,	/* sub-interface, or parent for the host: its copy of a
				   group-addressed frame was refused */
	VERDICT_DROP_MALFORMED, /* sub-interface sent headers that cannot be followed */
	VERDICT_DROP_MTU,	/* sub-interface sent more than the parent's MTU */
	VERDICT_DROP_RETURNED,	/* sub-interface is private, a sibling's frame came back to it;
				   parent: came back, and the host has had its copy */
	VERDICT_DROP_MODE,	/* sub-interface sent what its mode does not carry, or keeps from
				   siblings */
	VERDICT_DROP_ROUTE,	/* sub-interface: the parent's namespace has no route for it */
	VERDICT_DROP_INACTIVE,	/* sub-interface: sent while the parent is gone; parent: by a leg
				   that has no sub-interface any more */
	VERDICT_LEARN_DUP,	/* no fate: an address not learned, somebody else has it */
	VERDICT_GROUP_MANY,	/* no fate: it is in so many groups that it gets all */
	/* sub-interface with a guard: see guard.h */
	VERDICT_DROP_SOURCE_MAC, /* sent from a MAC that is not its own */
	VERDICT_DROP_SOURCE_IP,	 /* sent from an IP address that is not its own */
	VERDICT_DROP_ARP,	 /* sent ARP that is not in its own name */
	VERDICT_DROP_ND,	 /* the same of neighbour discovery */
	VERDICT_DROP_ROUTER,	 /* sent what only a router says */
	VERDICT_DROP_DHCP,	 /* sent what only a DHCP server says, or asks for others */
	VERDICT_DROP_TAG,	 /* sent a frame with a tag, or with one that it has no part in */
	VERDICT_DROP_ETHERTYPE,	 /* sent neither IPv4 nor IPv6 nor ARP */
	VERDICT_DROP_RATE,	 /* sent more broadcasts, ARP and ND than its budget allows */
	VERDICT_MAX,
	EVENT_LEARNED = 31, /* not counted, for who watches: an address was learned */
};

enum sub_state {
	SUB_FREE,
	SUB_PENDING, /* being made or removed: found so under the lock, it is removed */
	SUB_ACTIVE,
};

/* One byte, so that a record fits into a cache line. */
#define PACKED __attribute__((packed))

enum sub_kind {
	KIND_MACVLAN = 1, /* reached by destination MAC */
	KIND_IPVLAN = 2,  /* reached by destination IP behind the parent's MAC */
} PACKED;

/* As the kernel drivers name them. */
enum sub_mode {
	MODE_BRIDGE = 1, /* macvlan */
	MODE_L2 = 2,	 /* ipvlan */
	MODE_PRIVATE = 3,
	MODE_VEPA = 4,
	MODE_PASSTHRU = 5,
	MODE_SOURCE = 6,
	MODE_L3 = 7,  /* ipvlan, routed in the parent's namespace: see route.h, as is */
	MODE_L3S = 8, /* ipvlan, up into the host's stack */
} PACKED;

/* What mode and flags come down to for who meets whom. A set of classes is a
 * mask. */
enum sub_class {
	CLASS_BRIDGE = 1,  /* its siblings of this class directly, the rest by the wire */
	CLASS_VEPA = 2,	   /* everybody by the wire, siblings if the switch returns frames */
	CLASS_PRIVATE = 4, /* the wire, but no sibling, even if the switch returns frames */
	CLASS_SOURCE = 8,  /* sends to the wire, gets what its list of source MACs sends */
} PACKED;

enum sub_place {
	PLACE_LOCAL, /* inner leg in the parent's netns, or not known to have left it */
	PLACE_AWAY,  /* inner leg in another netns: bpf_redirect_peer reaches it */
	PLACE_HOST,  /* wherever it is: the host's stack has a route to the leg */
	PLACE_XDP,   /* wherever it is: unicast is to pass an XDP program on the inner leg */
};

enum sub_flag {
	SUB_UC_FILTER = 1, /* this sub-interface's MAC was added to the parent's unicast filter */
	SUB_NODST = 2,	   /* source mode: what the list matches is looked up no further */
	SUB_PROMISC = 4,   /* passthru: the parent was made promiscuous */
	SUB_PLAIN = 8,	   /* active, bridge or vepa, and gets by its MAC all that has no tag */
	SUB_PLAIN_IP = 16, /* the same by its addresses */
	SUB_NETKIT = 32,   /* its legs are a netkit pair: xvlan_tx runs on the inner one's egress */
	SUB_NO_DHCP = 64,  /* IP-keyed: its DHCP is none of ours */
	SUB_GUARDED = 128, /* what it sends is looked at first, as its struct guard says */
	SUB_HOST = 256,	   /* it and the host reach each other: see host.h */
	SUB_TRUNK = 512,   /* MAC-keyed: it has part in the VLANs that `trunks` says, by tags */
	SUB_VIA = 1024,	   /* what it sends to the networks in `vias` goes to the host: see via.h */
	SUB_PLAIN_VLAN = 2048, /* as SUB_PLAIN, of what has the one tag of its VLAN */
};

enum guard_flag {
	GUARD_SOURCE = 1, /* what it sends has to be its own: see guard.h */
	GUARD_LEARN4 = 2, /* it may take IPv4 addresses that nobody has by sending from them */
	GUARD_LEARN6 = 4, /* the same of IPv6; link-local ones it may take without */
	GUARD_ROUTER = 8, /* it may say what a router says */
	GUARD_DHCP = 16,  /* it may say what a DHCP server or relay agent says */
	GUARD_GIVEN = 32, /* loader: given addresses alone, also of a family without any */
};

enum dest_flag {
	DEST_GIVEN = 1,	   /* set by the host's administrator */
	DEST_LEARNED = 2,  /* taught by the sub-interface's own ARP or ND, or l3's packets */
	DEST_RESERVED = 4, /* the host's or a gateway's: never anybody's, id is 0 */
	DEST_GATEWAY = 8,  /* with DEST_RESERVED: a gateway's, so not here but behind the parent */
	DEST_LEASED = 16,  /* acknowledged by a DHCP server on the wire: until then as given, from
			      then on as learned */
	DEST_AWAITED = 32, /* with DEST_LEASED: renewal was asked for, so no copies: see dhcp.h */
};

enum policy {
	POLICY_UNKNOWN_DROP =
	    1,		 /* drop unicast that is neither the parent's nor a sub-interface's */
	POLICY_KEEP = 2, /* stay attached when the last sub-interface goes */
};

enum found {
	FOUND_SET_ALLMULTI = 1, /* allmulti was off: put it back off */
	FOUND_ADD_CLSACT = 2,	/* there was no clsact qdisc: remove it */
	FOUND_SET_FORWARD4 = 4, /* net.ipv4.conf.PARENT.forwarding was 0: put it back, as below */
	FOUND_SET_FORWARD6 = 8, /* net.ipv6.conf.PARENT.force_forwarding */
	FOUND_SET_MAC = 16, /* a passthru sub-interface's became the parent's: put found_mac back */
	FOUND_CTAG_FILTER = 32,	 /* its filter of VLANs was on: turn it on again */
	FOUND_STAG_FILTER = 64,	 /* the same of service VLANs */
	FOUND_SET_PROMISC = 128, /* it was made promiscuous, as these had no switch */
};

enum rung {
	RUNG_KERNEL,
	RUNG_TC,
	RUNG_XDP,
};

struct mac_key {
	__u32 vlan; /* VLAN_NONE: of a trunk, which knows in which VLANs */
	__u8 mac[6];
	__u16 pad;
};

struct ip4_key {
	__be32 addr_be;
	__u32 vlan;
};

struct ip6_key {
	__u8 addr[16];
	__u32 vlan;
};

/* The VLANs of a trunk, a bit each, but for that of its untagged frames: bit 0 is not
 * set. */
struct trunk {
	__u64 vlans[64];
};

/* What is reached by way of the host: the addresses that, under a mask, are addr, both
 * as they stand. IPv4 is in ::ffff:0:0/96. */
struct via_net {
	__u64 addr[2];
	__u64 mask[2];
};

struct via {
	__u32 number;
	__u32 pad;
	struct via_net net[VIA_NETS];
};

struct src_key {
	__u32 id; /* of the sub-interface in source mode */
	__u8 mac[6];
	__u16 pad;
};

/* Who a MAC, an address or a leg belongs to. The generation must be that of
 * subs[id], else the entry is a former owner's and counts as absent. */
struct dest {
	__u32 id;
	__u32 gen;
	enum dest_flag flags;
	__u32 until; /* of DEST_LEASED: in seconds since boot, all ones for ever */
};

/* Copies of entries of by_ip4, in one cache line; see addr.h. */
struct ip4_bucket {
	__u32 version;
	__u32 mark[IP4_SLOTS];
	__u32 addr[IP4_SLOTS]; /* the bytes of the address as they stand */
	__u32 gen[IP4_SLOTS];
	__u16 id[IP4_SLOTS];
	__u32 pad;
};

/* The same of by_ip6. */
struct ip6_bucket {
	__u32 version;
	__u32 mark[IP6_SLOTS];
	__u32 gen[IP6_SLOTS];
	__u16 id[IP6_SLOTS];
	struct {
		__u64 high;
		__u64 low;
	} addr[IP6_SLOTS];
	__u64 pad;
};

_Static_assert(sizeof(struct ip4_bucket) == 64, "a bucket is a cache line");
_Static_assert(sizeof(struct ip6_bucket) == 64, "a bucket is a cache line");

/* One sub-interface; subs[0] is never used, id 0 means the parent itself. */
struct sub {
	enum sub_state state;
	__u32 gen;	      /* raised each time the id is taken */
	__u32 leg;	      /* ifindex of the host leg */
	enum sub_place place; /* the only field the programs write */
	enum sub_kind kind;
	enum sub_mode mode;
	enum sub_class class;
	__u8 pad;
	enum sub_flag flags;
	__u8 mac[6]; /* of the inner leg */
	__u16 pad2;
	__u32 vlan;	       /* of its untagged frames; VLAN_NONE: it has none */
	__u8 name[IFNAME_LEN]; /* the inner leg's name when it was made */
	__u32 pad3;
	__u64 device; /* address of the inner leg's net_device, 0 if not known */
};

_Static_assert(sizeof(struct sub) == 64, "a record is a cache line");

/* What is asked of what one with SUB_GUARDED sends. */
struct guard {
	enum guard_flag flags;
	__u32 rate; /* broadcasts, ARP and ND a second; 0 for any number */
	/* The programs' own: see afford() */
	__u64 frames_ns;
	__u64 addrs_ns;
};

/* The parent: one entry, read by every program. */
struct parent {
	__u32 schema;
	__u32 capacity; /* highest id */
	__u32 ifindex;	/* 0 while it is gone */
	__u32 mtu;	/* the parent's, without the Ethernet header; 0 likewise */
	enum policy policy;
	__u32 passthru;	  /* id of the sub-interface that gets all unicast, 0 for none */
	__u32 sources;	  /* number of sub-interfaces in source mode */
	__u32 watched;	  /* a bit for each element of `watchers` that somebody watches with */
	__u32 ip_keyed;	  /* number of active IP-keyed sub-interfaces */
	__u32 ports;	  /* number of sub-interfaces with PLACE_XDP */
	__u32 hosts;	  /* number of sub-interfaces with SUB_HOST or SUB_VIA */
	__u32 vlans;	  /* number of sub-interfaces in a VLAN, SUB_TRUNK among them */
	__u32 trunks;	  /* number of sub-interfaces with SUB_TRUNK */
	__u32 last_id;	  /* the id taken last: the search for a free one goes on behind it */
	enum found found; /* what detach must put back */
	enum rung rung;
	__u8 mac[6];
	__u8 found_mac[6];
	__u8 name[IFNAME_LEN];
	__u8 reason[REASON_LEN]; /* why the parent stands on this rung */
};

struct counter {
	__u64 packets; /* as the wire carries them: a GSO packet counts its segments */
	__u64 bytes;   /* likewise, with the Ethernet header, without FCS */
};

struct sub_stats {
	struct counter verdict[VERDICT_MAX];
};

/* What another set of maps has counted for an id. */
struct carried {
	__u32 id;
	__u32 pad;
	struct sub_stats stats;
};

/* Addresses learned for one sub-interface, a ring a family, and its DHCP client. */
struct ring {
	__u32 next4;
	__u32 next6;
	__be32 xid_be;	  /* of what the client has last asked */
	__be32 leased_be; /* the one address that it has by lease, 0 for none */
	__be32 ip4_be[LEARN_SLOTS];
	__u8 ip6[LEARN_SLOTS][16];
};

/* One who watches, and what he wants to see. */
struct watcher {
	__u32 verdicts; /* mask, of events too */
	__u32 only;	/* id of the only sub-interface, 0 for all and the parent */
	__u32 snap;	/* bytes of a frame at most */
	__u32 rate;	/* sightings in a window at most, 0 for any number */
	__u64 window_ns;
	/* The programs' own: */
	__u64 since_ns; /* when the window began */
	__u64 count;	/* of sightings since */
	__u64 withheld; /* over the rate */
	__u64 lost;	/* no room in the buffer */
};

/* What he sees: one verdict on one frame, of which `copied` bytes follow. */
struct sighting {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 parent;  /* ifindex */
	__u32 id;      /* of the sub-interface, 0 for the parent itself */
	__u32 verdict; /* or event */
	__u32 len;     /* of the frame, without the tag below */
	__u32 copied;
	__u32 type;	/* PACKET_HOST ...; under XDP always that */
	__be16 tpid_be; /* EtherType of the tag that the kernel has taken out, 0 for none */
	__u16 tci;
	__u32 pad;
};

#endif
