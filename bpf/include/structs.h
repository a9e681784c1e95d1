/* Every struct that crosses from kernel to user space. C owns the layout; the loader reads it from
 * bcc's table types and stores it beside the maps (the `meta` map), so nothing mirrors it by hand.
 * Limits in #ifndef may be given anew: AMBIT_BPF_DEFINES="MAX_PODS=2048 ...".
 * Addresses are 128 bit in network order, IPv4 as ::ffff:a.b.c.d; ports are host order. */

#ifndef MAX_PODS
#define MAX_PODS 1024 /* per node; kubelet's own default limit is 110 */
#endif
#ifndef MAX_FLOWS
#define MAX_FLOWS 16384 /* connections between SYN and accept(), LRU: the oldest give way */
#endif
#ifndef MAX_PROBES
#define MAX_PROBES 16
#endif
#ifndef MAX_NODE_ADDRESSES
#define MAX_NODE_ADDRESSES 8 /* four of each family, as a rule */
#endif
#ifndef MAX_PROXIES
#define MAX_PROXIES 8 /* two during an upgrade; those before them give way, oldest first */
#endif
#define UID_SIZE 48
#define META_SIZE 16384

struct ip {
	u32 a[4];
};

struct pod {
	u64 cookie; /* network namespace */
	struct ip ip4; /* zero: none */
	struct ip ip6;
	struct ip node[MAX_NODE_ADDRESSES]; /* zero: unused */
	u16 probe[MAX_PROBES];              /* zero: unused */
	u8 uid[UID_SIZE];
};

struct pod_stats {
	u64 outbound; /* connects turned to the proxy */
	u64 inbound;  /* connections steered to the proxy */
};

/* What a socket is, and the address that goes with it. */
enum kind {
	KIND_CLIENT = 1, /* application's captured socket: the destination it asked for */
	KIND_ORIGINAL,   /* proxy's accepted socket: the same destination */
	KIND_RELAY,      /* proxy's socket toward an application: the real client */
	KIND_SERVER,     /* application's accepted socket: the real client */
};

struct endpoint {
	struct ip ip;
	u32 port;
	u32 kind;
	struct ip self; /* KIND_CLIENT: the pod's own address, for getsockname() */
};

/* A connection inside one network namespace, seen from its connecting end: the whole 4-tuple, as
 * one local port serves several connections to different ports. */
struct flow {
	u64 netns;
	struct ip local;
	struct ip remote;
	u16 local_port;
	u16 remote_port;
	u32 pad;
};

struct config {
	u64 proxy_cgroup[MAX_PROXIES]; /* bpf_get_current_cgroup_id() of relay workers; zero: unused */
};

struct meta {
	u8 text[META_SIZE]; /* JSON, see bpf/datapath.py */
};

/* Indexes of the `counters` map; the loader reads the names from here. */
enum counter {
	CONNECT4_CAPTURED,
	CONNECT6_CAPTURED,
	CONNECT_PROXY_EXEMPT,
	CONNECT_FAILED, /* no memory to remember the destination: refused */
	DEVICE_UNBOUND, /* SO_BINDTODEVICE taken off: loopback is not on that device */
	FLOW_OFFERED, /* by the connecting end */
	FLOW_TAKEN, /* by the accepting end */
	FLOW_WITHDRAWN, /* as the connection failed */
	LOOKUP_STEERED,
	LOOKUP_LOCAL,
	LOOKUP_HBONE,
	LOOKUP_PROBE,
	LOOKUP_STRANGER, /* to an address the pod was not captured with: refused */
	LOOKUP_NO_LISTENER,
	LOOKUP_ASSIGN_FAILED,
	REAL_SOURCE_SET,
	REAL_SOURCE_DENIED,
	COUNTERS,
};
