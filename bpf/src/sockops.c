/* sock_ops: what a socket knows at its connecting end moves to the accepting end of the same
 * connection. At TCP_CONNECT_CB the local port is chosen and the SYN not yet sent, so the entry is
 * always there before the other end looks for it. PASSIVE_ESTABLISHED runs under the new socket's
 * lock, which the getpeername and getsockopt hooks take too, so no accept() is early. What nobody
 * took is withdrawn at CLOSE: the next owner of the same ports would else be shown as that client. */

/* The *_ip4 fields of a true IPv6 socket are not mirror images at both ends (remote_ip4 is 0 at the
 * connecting one); of IPv4 and mapped ones they are. */
static __always_inline void flow_of(struct bpf_sock_ops *c, struct flow *f, int mirror)
{
	struct ip local, remote;
	u16 local_port = c->local_port, remote_port = bpf_ntohl(c->remote_port); /* be16, high half */

	remote.a[0] = WORD(c->remote_ip6[0]);
	remote.a[1] = WORD(c->remote_ip6[1]);
	remote.a[2] = WORD(c->remote_ip6[2]);
	remote.a[3] = WORD(c->remote_ip6[3]);
	if (c->family == AF_INET6 && !is_mapped(&remote)) {
		local.a[0] = WORD(c->local_ip6[0]);
		local.a[1] = WORD(c->local_ip6[1]);
		local.a[2] = WORD(c->local_ip6[2]);
		local.a[3] = WORD(c->local_ip6[3]);
		KEEP_APART("6");
	} else {
		local = mapped(c->local_ip4);
		remote = mapped(c->remote_ip4);
		KEEP_APART("4");
	}
	f->netns = bpf_get_netns_cookie(c);
	f->local = mirror ? remote : local;
	f->remote = mirror ? local : remote;
	f->local_port = mirror ? remote_port : local_port;
	f->remote_port = mirror ? local_port : remote_port;
}

static __always_inline void connecting(struct bpf_sock_ops *c, struct bpf_sock *sk)
{
	struct endpoint *e = socket_address.sk_storage_get(sk, 0, 0), v;
	struct flow f = {};
	if (!e)
		return;
	v = *e;
	if (v.kind != KIND_CLIENT && v.kind != KIND_RELAY)
		return;
	flow_of(c, &f, 0);
	if (v.kind == KIND_CLIENT)
		original.update(&f, &v);
	else
		real_source.update(&f, &v);
	bpf_sock_ops_cb_flags_set(c, c->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	count(FLOW_OFFERED);
}

static __always_inline void closed(struct bpf_sock_ops *c)
{
	struct flow f = {};
	if (c->args[1] != BPF_TCP_CLOSE)
		return;
	flow_of(c, &f, 0);
	if (!original.delete(&f) || !real_source.delete(&f))
		count(FLOW_WITHDRAWN);
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
	if (!s)
		return;
	*s = v;
	count(FLOW_TAKEN);
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
	else if (c->op == BPF_SOCK_OPS_STATE_CB)
		closed(c);
	return 1;
}
