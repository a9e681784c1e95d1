/* sk_lookup, one link per captured pod's network namespace: what arrives from outside lands on the
 * pod's 15006 listener, whatever port it asked for. There is no netns cookie here: the pod is known
 * by its address. Also sees SYNs to ports where nothing listens. An outside packet with the pod's own
 * source is a martian (IPv4), or its SYN-ACK goes to the pod itself (IPv6): no handshake. */

static __always_inline int is_probe(struct pod *p, struct ip *from, u32 port)
{
	int node = 0, i;
#pragma unroll
	for (i = 0; i < MAX_NODE_ADDRESSES; i++)
		node |= same(from, &p->node[i]);
	if (!node)
		return 0;
#pragma unroll
	for (i = 0; i < MAX_PROBES; i++)
		if (p->probe[i] == port)
			return 1;
	return 0;
}

int sk_lookup(struct bpf_sk_lookup *ctx)
{
	struct ip to, from;
	struct bpf_sock *sk;
	struct pod_stats *s;
	struct pod *p;
	u64 cookie;
	long err;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	if (ctx->local_port == HBONE_PORT) {
		count(LOOKUP_HBONE);
		return SK_PASS;
	}
	if (ctx->family == AF_INET) {
		to = mapped(ctx->local_ip4);
		from = mapped(ctx->remote_ip4);
		KEEP_APART("4");
	} else {
		to.a[0] = ctx->local_ip6[0];
		to.a[1] = ctx->local_ip6[1];
		to.a[2] = ctx->local_ip6[2];
		to.a[3] = ctx->local_ip6[3];
		from.a[0] = ctx->remote_ip6[0];
		from.a[1] = ctx->remote_ip6[1];
		from.a[2] = ctx->remote_ip6[2];
		from.a[3] = ctx->remote_ip6[3];
		KEEP_APART("6");
	}
	/* The pod to itself. ingress_ifindex does not tell: for the pod's own address it is eth0's. */
	if (is_loopback(&to) || is_loopback(&from) || same(&to, &from)) {
		count(LOOKUP_LOCAL);
		return SK_PASS;
	}
	p = by_address.lookup(&to);
	if (!p) {
		count(LOOKUP_STRANGER);
		return SK_DROP; /* an address nobody told us must not be a way around the proxy */
	}
	if (same(&from, &p->ip4) || same(&from, &p->ip6)) {
		count(LOOKUP_LOCAL);
		return SK_PASS;
	}
	if (is_probe(p, &from, ctx->local_port)) {
		count(LOOKUP_PROBE);
		return SK_PASS;
	}
	cookie = p->cookie;
	sk = (struct bpf_sock *)listeners.lookup(&to);
	if (!sk) {
		count(LOOKUP_NO_LISTENER);
		return SK_DROP; /* a reset: refused, never let through */
	}
	err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	if (err) {
		count(LOOKUP_ASSIGN_FAILED);
		return SK_DROP;
	}
	count(LOOKUP_STEERED);
	s = stats.lookup(&cookie);
	if (s)
		__sync_fetch_and_add(&s->inbound, 1);
	return SK_PASS;
}
