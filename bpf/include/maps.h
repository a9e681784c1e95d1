/* All maps. They are pinned under PIN_DIR and outlive the process that made them.
 * Memory: pods, by_address, listeners and stats grow with pods (about 1 KB a pod in all); original
 * and real_source are bounded by MAX_FLOWS (96 bytes each); socket_address lives with its socket. */

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
BPF_SK_STORAGE(socket_address, struct endpoint);
