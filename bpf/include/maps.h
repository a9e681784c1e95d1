/* All maps. They are pinned under PIN_DIR and outlive the process that made them.
 * Memory: pods, by_address and stats are allocated for MAX_PODS (about 1 KB a pod in all), listeners
 * as used; original and real_source for MAX_FLOWS (about 150 bytes each); socket_address lives with
 * its socket. */

#define PINNED(kind, key, leaf, name, size) \
	BPF_TABLE_PINNED(kind, key, leaf, name, size, PIN_DIR "/" #name)

PINNED("hash", u64, struct pod, pods, MAX_PODS);                 /* netns cookie: outbound */
PINNED("hash", struct ip, struct pod, by_address, MAX_PODS * 2); /* inbound */
PINNED("hash", u64, struct pod_stats, stats, MAX_PODS);
PINNED("sockhash", struct ip, u64, listeners, MAX_PODS * 2);     /* pod address: 15006 socket */
PINNED("lru_hash", struct flow, struct endpoint, original, MAX_FLOWS);
PINNED("lru_hash", struct flow, struct endpoint, real_source, MAX_FLOWS);
PINNED("array", int, struct config, config, 1);
PINNED("percpu_array", int, u64, counters, COUNTERS);
PINNED("array", int, struct meta, meta, 1);

/* BPF_SK_STORAGE of bcc, pinned: a build that takes over must find what older sockets remember. */
struct socket_address_table_t {
	int key;
	struct endpoint leaf;
	void *(*sk_storage_get)(void *, void *, int);
	int (*sk_storage_delete)(void *);
	u32 flags;
};
__attribute__((section("maps/sk_storage:" PIN_DIR "/socket_address")))
struct socket_address_table_t socket_address = {.flags = BPF_F_NO_PREALLOC};
BPF_ANNOTATE_KV_PAIR(socket_address, int, struct endpoint);
