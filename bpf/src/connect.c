/* cgroup/connect4, connect6: an application's connect() in a captured pod goes to the pod's own
 * outbound listener; what it asked for stays with its socket. */

static __always_inline int remember(struct bpf_sock *sk, struct endpoint *e)
{
	struct endpoint *s;
	if (!sk)
		return 0;
	s = socket_address.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return 0;
	*s = *e;
	return 1;
}

/* A socket bound to eth0 cannot reach loopback: take the binding off it. */
static __always_inline void unbind_device(struct bpf_sock_addr *ctx)
{
	char none[4] = {};
	if (!ctx->sk || !ctx->sk->bound_dev_if)
		return;
	count(DEVICE_UNBOUND);
	bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, none, 1);
}

/* A socket that is left alone loses what an earlier connect() of it left behind. */
static __always_inline int left_alone(struct bpf_sock_addr *ctx)
{
	if (ctx->sk)
		socket_address.sk_storage_delete(ctx->sk);
	return 0;
}

static __always_inline int captured(struct bpf_sock_addr *ctx, struct ip *to)
{
	u64 cookie;
	struct pod *p;
	struct pod_stats *s;
	struct endpoint e = {};

	if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP)
		return 0;
	cookie = bpf_get_netns_cookie(ctx);
	p = pods.lookup(&cookie);
	if (!p)
		return left_alone(ctx);
	if (in_proxy()) { /* what its socket knows is whom it speaks for */
		count(CONNECT_PROXY_EXEMPT);
		return 0;
	}
	if (is_loopback(to) || same(to, &p->ip4) || same(to, &p->ip6))
		return left_alone(ctx);
	e.ip = *to;
	e.port = bpf_ntohs(ctx->user_port);
	e.self = is_mapped(to) ? p->ip4 : p->ip6;
	e.kind = KIND_CLIENT;
	if (!remember(ctx->sk, &e)) {
		count(CONNECT_FAILED);
		return -1; /* without the original destination the proxy could only guess: refuse */
	}
	unbind_device(ctx);
	s = stats.lookup(&cookie);
	if (s)
		__sync_fetch_and_add(&s->outbound, 1);
	return 1;
}

int connect4(struct bpf_sock_addr *ctx)
{
	struct ip to = mapped(ctx->user_ip4);
	int r = captured(ctx, &to);
	if (r < 0)
		return 0; /* EPERM */
	if (r) {
		ctx->user_ip4 = LOOPBACK4;
		ctx->user_port = bpf_htons(OUTBOUND_PORT);
		count(CONNECT4_CAPTURED);
	}
	return 1;
}

int connect6(struct bpf_sock_addr *ctx)
{
	struct ip to;
	int r;
	to.a[0] = ctx->user_ip6[0];
	to.a[1] = ctx->user_ip6[1];
	to.a[2] = ctx->user_ip6[2];
	to.a[3] = ctx->user_ip6[3];
	r = captured(ctx, &to);
	if (r < 0)
		return 0;
	if (r) {
		if (is_mapped(&to)) {
			ctx->user_ip6[3] = LOOPBACK4; /* lands on the IPv4 listener */
		} else {
			ctx->user_ip6[0] = 0;
			ctx->user_ip6[1] = 0;
			ctx->user_ip6[2] = 0;
			ctx->user_ip6[3] = bpf_htonl(1);
		}
		ctx->user_port = bpf_htons(OUTBOUND_PORT);
		count(CONNECT6_CAPTURED);
	}
	return 1;
}
