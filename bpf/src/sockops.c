/* sock_ops: what a socket knows at its connecting end moves to the accepting end of the same
 * connection. At TCP_CONNECT_CB the local port is chosen and the SYN not yet sent, so the entry is
 * always there before the other end looks for it. */

/* The *_ip4 fields of a true IPv6 socket are not mirror images at both ends: use its last word. */
static __always_inline void flow_of(struct bpf_sock_ops *c, struct flow *f, int mirror)
{
	u32 local = c->local_ip4, remote = c->remote_ip4;
	if (c->family == AF_INET6 &&
	    !(c->remote_ip6[0] == 0 && c->remote_ip6[1] == 0 && c->remote_ip6[2] == MAPPED)) {
		local = c->local_ip6[3];
		remote = c->remote_ip6[3];
	}
	f->netns = bpf_get_netns_cookie(c);
	if (mirror) {
		f->port = bpf_ntohl(c->remote_port); /* be16 in the high half */
		f->local = remote;
		f->remote = local;
	} else {
		f->port = c->local_port;
		f->local = local;
		f->remote = remote;
	}
}

static __always_inline void connecting(struct bpf_sock_ops *c, struct bpf_sock *sk)
{
	struct endpoint *e = socket_address.sk_storage_get(sk, 0, 0), v;
	struct flow f = {};
	if (!e)
		return;
	v = *e;
	flow_of(c, &f, 0);
	if (v.kind == KIND_CLIENT)
		original.update(&f, &v);
	else if (v.kind == KIND_RELAY)
		real_source.update(&f, &v);
}

static __always_inline void accepted(struct bpf_sock_ops *c, struct bpf_sock *sk)
{
	struct endpoint *e, v, *s;
	struct flow f = {};
	flow_of(c, &f, 1);
	e = original.lookup(&f);
	if (e) {
		v = *e;
		v.kind = KIND_ORIGINAL;
		original.delete(&f);
	} else {
		e = real_source.lookup(&f);
		if (!e)
			return;
		v = *e;
		v.kind = KIND_SERVER;
		real_source.delete(&f);
	}
	s = socket_address.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (s)
		*s = v;
}

int sockops(struct bpf_sock_ops *c)
{
	struct bpf_sock *sk = c->sk;
	if (!sk)
		return 1;
	if (c->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		connecting(c, sk);
	else if (c->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		accepted(c, sk);
	return 1;
}
