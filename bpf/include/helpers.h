/* Small things every hook uses. */

#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOL_IP 0
#define SOL_SOCKET 1
#define SOL_IPV6 41
#define SO_BINDTODEVICE 25
#define SO_ORIGINAL_DST 80
#define SO_REAL_SOURCE 0x5a17 /* ours, at SOL_IP; mesh/ports.py */
#define OUTBOUND_PORT 15001
#define HBONE_PORT 15008
#define MAPPED bpf_htonl(0xffff) /* third word of ::ffff:0:0/96 */
#define LOOPBACK4 bpf_htonl(0x7f000001)

/* Ends a branch differently from its sibling. The compiler would else load from a computed context
 * pointer behind both, which the verifier refuses. */
#define KEEP_APART(what) asm volatile("# " what ::: "memory")

/* One word of a context: two loads merged into one of 8 bytes are refused by the verifier. */
#define WORD(x) (*(volatile u32 *)&(x))

struct sin4 {
	u16 family;
	u16 port;
	u32 addr;
	u64 zero;
};
struct sin6 {
	u16 family;
	u16 port;
	u32 flow;
	u32 addr[4];
	u32 scope;
};

static __always_inline void count(int i)
{
	u64 *v = counters.lookup(&i);
	if (v)
		*v += 1;
}

static __always_inline struct ip mapped(u32 v4)
{
	struct ip r = {};
	r.a[2] = MAPPED;
	r.a[3] = v4;
	return r;
}

static __always_inline int same(const struct ip *x, const struct ip *y)
{
	return x->a[0] == y->a[0] && x->a[1] == y->a[1] && x->a[2] == y->a[2] && x->a[3] == y->a[3];
}

static __always_inline int is_mapped(const struct ip *x)
{
	return !x->a[0] && !x->a[1] && x->a[2] == MAPPED;
}

/* 127.0.0.0/8 (mapped) or ::1, and the unspecified address, which connect() takes for loopback */
static __always_inline int is_loopback(const struct ip *x)
{
	if (is_mapped(x))
		return (x->a[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || !x->a[3];
	return !x->a[0] && !x->a[1] && !x->a[2] && (!x->a[3] || x->a[3] == bpf_htonl(1));
}

static __always_inline int in_proxy(void)
{
	int zero = 0, found = 0, i;
	struct config *c = config.lookup(&zero);
	u64 id = bpf_get_current_cgroup_id();
	if (!c || !id)
		return 0;
#pragma unroll
	for (i = 0; i < MAX_PROXIES; i++)
		found |= c->proxy_cgroup[i] == id;
	return found;
}
