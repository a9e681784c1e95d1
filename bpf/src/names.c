/* cgroup/getpeername4,6 and getsockname4,6: applications see the addresses they expect.
 * accept() fills its address through the getpeername hook too. */

static __always_inline struct endpoint *peer_of(struct bpf_sock *sk)
{
	struct endpoint *e;
	if (!sk)
		return 0;
	e = socket_address.sk_storage_get(sk, 0, 0);
	if (!e || (e->kind != KIND_CLIENT && e->kind != KIND_SERVER))
		return 0;
	return e;
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	struct endpoint *e = peer_of(ctx->sk);
	if (e && e->family == AF_INET) {
		ctx->user_ip4 = e->ip.a[3];
		ctx->user_port = bpf_htons(e->port);
	}
	return 1;
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	struct endpoint *e = peer_of(ctx->sk);
	if (e) {
		ctx->user_ip6[0] = e->ip.a[0];
		ctx->user_ip6[1] = e->ip.a[1];
		ctx->user_ip6[2] = e->ip.a[2];
		ctx->user_ip6[3] = e->ip.a[3];
		ctx->user_port = bpf_htons(e->port);
	}
	return 1;
}

static __always_inline struct pod *client_pod(struct bpf_sock_addr *ctx)
{
	struct endpoint *e;
	u64 cookie;
	if (!ctx->sk)
		return 0;
	e = socket_address.sk_storage_get(ctx->sk, 0, 0);
	if (!e || e->kind != KIND_CLIENT)
		return 0;
	cookie = bpf_get_netns_cookie(ctx);
	return pods.lookup(&cookie);
}

int getsockname4(struct bpf_sock_addr *ctx)
{
	struct pod *p;
	if (ctx->user_ip4 != LOOPBACK4)
		return 1;
	p = client_pod(ctx);
	if (p && p->ip4.a[3])
		ctx->user_ip4 = p->ip4.a[3];
	return 1;
}

int getsockname6(struct bpf_sock_addr *ctx)
{
	struct ip now;
	struct pod *p;
	now.a[0] = ctx->user_ip6[0];
	now.a[1] = ctx->user_ip6[1];
	now.a[2] = ctx->user_ip6[2];
	now.a[3] = ctx->user_ip6[3];
	if (!is_loopback(&now))
		return 1;
	p = client_pod(ctx);
	if (!p)
		return 1;
	if (is_mapped(&now)) {
		if (p->ip4.a[3])
			ctx->user_ip6[3] = p->ip4.a[3];
	} else if (p->ip6.a[0]) {
		ctx->user_ip6[0] = p->ip6.a[0];
		ctx->user_ip6[1] = p->ip6.a[1];
		ctx->user_ip6[2] = p->ip6.a[2];
		ctx->user_ip6[3] = p->ip6.a[3];
	}
	return 1;
}
