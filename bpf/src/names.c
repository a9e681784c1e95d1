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
	if (e && is_mapped(&e->ip)) {
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

/* The captured socket's own address, as the application should see it. */
static __always_inline struct ip *self_of(struct bpf_sock *sk)
{
	struct endpoint *e;
	if (!sk)
		return 0;
	e = socket_address.sk_storage_get(sk, 0, 0);
	if (!e || e->kind != KIND_CLIENT)
		return 0;
	return &e->self;
}

int getsockname4(struct bpf_sock_addr *ctx)
{
	struct ip *self;
	if (ctx->user_ip4 != LOOPBACK4)
		return 1;
	self = self_of(ctx->sk);
	if (self && is_mapped(self))
		ctx->user_ip4 = self->a[3];
	return 1;
}

int getsockname6(struct bpf_sock_addr *ctx)
{
	struct ip now, *self;
	now.a[0] = ctx->user_ip6[0];
	now.a[1] = ctx->user_ip6[1];
	now.a[2] = ctx->user_ip6[2];
	now.a[3] = ctx->user_ip6[3];
	if (!is_loopback(&now))
		return 1;
	self = self_of(ctx->sk);
	if (!self || (!self->a[0] && !is_mapped(self)))
		return 1;
	ctx->user_ip6[0] = self->a[0];
	ctx->user_ip6[1] = self->a[1];
	ctx->user_ip6[2] = self->a[2];
	ctx->user_ip6[3] = self->a[3];
	return 1;
}
