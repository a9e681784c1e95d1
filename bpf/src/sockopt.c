/* cgroup/getsockopt: SO_ORIGINAL_DST of a proxy's accepted socket, as conntrack would answer it.
 * cgroup/setsockopt: SO_REAL_SOURCE, how a relay says whose connection it carries. */

int getsockopt_hook(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct endpoint *e;
	if (!sk || ctx->optname != SO_ORIGINAL_DST || (ctx->level != SOL_IP && ctx->level != SOL_IPV6))
		return 1;
	e = socket_address.sk_storage_get(sk, 0, 0);
	if (!e || e->kind != KIND_ORIGINAL)
		return 1;
	if (is_mapped(&e->ip)) {
		struct sin4 *s = ctx->optval;
		if ((void *)(s + 1) > ctx->optval_end)
			return 1;
		s->family = AF_INET;
		s->port = bpf_htons(e->port);
		s->addr = e->ip.a[3];
		s->zero = 0;
		ctx->optlen = sizeof(*s);
	} else {
		struct sin6 *s = ctx->optval;
		if ((void *)(s + 1) > ctx->optval_end)
			return 1;
		s->family = AF_INET6;
		s->port = bpf_htons(e->port);
		s->flow = 0;
		s->addr[0] = e->ip.a[0];
		s->addr[1] = e->ip.a[1];
		s->addr[2] = e->ip.a[2];
		s->addr[3] = e->ip.a[3];
		s->scope = 0;
		ctx->optlen = sizeof(*s);
	}
	asm volatile("" ::: "memory"); /* keep the two stores apart: a merged one is no valid access */
	ctx->retval = 0;
	return 1;
}

int setsockopt_hook(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct endpoint e = {}, *s;
	struct sin4 *a4 = ctx->optval;
	struct sin6 *a6 = ctx->optval;
	if (!sk || ctx->level != SOL_IP || ctx->optname != SO_REAL_SOURCE)
		return 1;
	if (!in_proxy()) {
		count(REAL_SOURCE_DENIED);
		return 0; /* EPERM: nobody else may say who a client is */
	}
	if ((void *)(a4 + 1) > ctx->optval_end)
		return 0;
	e.kind = KIND_RELAY;
	if (a4->family == AF_INET) {
		e.ip = mapped(a4->addr);
		e.port = bpf_ntohs(a4->port);
	} else {
		if ((void *)(a6 + 1) > ctx->optval_end || a6->family != AF_INET6)
			return 0;
		e.ip.a[0] = a6->addr[0];
		e.ip.a[1] = a6->addr[1];
		e.ip.a[2] = a6->addr[2];
		e.ip.a[3] = a6->addr[3];
		e.port = bpf_ntohs(a6->port);
	}
	s = socket_address.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return 0;
	*s = e;
	count(REAL_SOURCE_SET);
	ctx->optlen = -1; /* ours alone: the kernel has no such option */
	return 1;
}
