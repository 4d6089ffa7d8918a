// SPDX-License-Identifier: GPL-2.0-only
#include <linux/capability.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <net/inet6_hashtables.h>
#include <net/inet_hashtables.h>
#include <net/net_namespace.h>
#include <net/tcp.h>

#include "ctl.h"
#include "debug.h"
#include "pair.h"

/* Records copied out at once; each call of LIST holds this much memory. */
#define MAX_LIST 1024u

static int refuse(enum shunt_kmod_exit why, int error)
{
	this_cpu_inc(shunt_counters.value[why]);
	return error;
}

/* A reference to the namespace with this cookie, or NULL. */
static struct net *net_by_cookie(u64 cookie)
{
	struct net *net, *found = NULL;

	rcu_read_lock();
	for_each_net_rcu(net) {
		if (net->net_cookie == cookie) {
			found = maybe_get_net(net);
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

/*
 * The socket of a v4 (or v4-mapped) tuple: a connection, else a listener on
 * its local address, so that a listener is refused as what it is.
 */
static struct sock *lookup_v4(struct net *net, const struct shunt_kmod_end *end, __be32 local,
			      __be32 remote)
{
	struct inet_hashinfo *hash = net->ipv4.tcp_death_row.hashinfo;
	struct sock *sk;

	rcu_read_lock();
	sk = __inet_lookup_established(net, hash, remote, htons(end->remote_port), local,
				       end->local_port, LOOPBACK_IFINDEX, 0);
	if (!sk) {
		sk = __inet_lookup_listener(net, hash, NULL, 0, remote, htons(end->remote_port),
					    local, end->local_port, LOOPBACK_IFINDEX, 0);
		if (sk && !refcount_inc_not_zero(&sk->sk_refcnt))
			sk = NULL;
	}
	rcu_read_unlock();
	return sk;
}

#if IS_ENABLED(CONFIG_IPV6)
static struct sock *lookup_v6(struct net *net, const struct shunt_kmod_end *end,
			      const struct in6_addr *local, const struct in6_addr *remote)
{
	struct inet_hashinfo *hash = net->ipv4.tcp_death_row.hashinfo;
	struct sock *sk;

	rcu_read_lock();
	sk = __inet6_lookup_established(net, hash, remote, htons(end->remote_port), local,
					end->local_port, LOOPBACK_IFINDEX, 0);
	if (!sk) {
		sk = inet6_lookup_listener(net, hash, NULL, 0, remote, htons(end->remote_port),
					   local, end->local_port, LOOPBACK_IFINDEX, 0);
		if (sk && !refcount_inc_not_zero(&sk->sk_refcnt))
			sk = NULL;
	}
	rcu_read_unlock();
	return sk;
}
#endif

/* A reference to the socket that an end names, or an error that is counted. */
static struct sock *find_end(struct net *net, const struct shunt_kmod_end *end)
{
	struct sock *sk;

	if (end->family == AF_INET) {
		sk = lookup_v4(net, end, *(const __be32 *)end->local_address,
			       *(const __be32 *)end->remote_address);
#if IS_ENABLED(CONFIG_IPV6)
	} else if (end->family == AF_INET6) {
		const struct in6_addr *local = (const void *)end->local_address;
		const struct in6_addr *remote = (const void *)end->remote_address;

		if (ipv6_addr_v4mapped(local) && ipv6_addr_v4mapped(remote))
			sk = lookup_v4(net, end, local->s6_addr32[3], remote->s6_addr32[3]);
		else
			sk = lookup_v6(net, end, local, remote);
#endif
	} else {
		return ERR_PTR(refuse(SHUNT_KMOD_EXIT_REFUSED_ARGUMENT, -EAFNOSUPPORT));
	}
	if (!sk)
		return ERR_PTR(refuse(SHUNT_KMOD_EXIT_REFUSED_NO_SOCKET, -ENOENT));
	/* TIME_WAIT and half-open entries are not sockets yet, or no more. */
	if (!sk_fullsock(sk)) {
		sock_gen_put(sk);
		return ERR_PTR(refuse(SHUNT_KMOD_EXIT_REFUSED_STATE, -EOPNOTSUPP));
	}
	if (atomic64_read(&sk->sk_cookie) != end->socket_cookie) {
		sock_put(sk);
		return ERR_PTR(refuse(SHUNT_KMOD_EXIT_REFUSED_COOKIE, -ESTALE));
	}
	return sk;
}

static int join(struct shunt_owner *owner, struct net *net, struct shunt_kmod_pair *request)
{
	struct sock *client, *server;
	int error;

	client = find_end(net, &request->client);
	if (IS_ERR(client))
		return PTR_ERR(client);
	server = find_end(net, &request->server);
	if (IS_ERR(server)) {
		error = PTR_ERR(server);
		goto out_client;
	}
	error = shunt_pair_join(owner, request->netns_cookie, client, server, &request->pair_id);
	sock_put(server);
out_client:
	sock_put(client);
	return error;
}

static long ioctl_pair(struct shunt_owner *owner, void __user *user)
{
	struct shunt_kmod_pair request;
	struct net *net;
	int error;

	if (copy_from_user(&request, user, sizeof(request)))
		return -EFAULT;
	if (request.abi_version != SHUNT_KMOD_ABI_VERSION)
		return refuse(SHUNT_KMOD_EXIT_REFUSED_VERSION, -EPROTONOSUPPORT);
	if (request.flags || request.client.zero || request.server.zero)
		return refuse(SHUNT_KMOD_EXIT_REFUSED_ARGUMENT, -EINVAL);
	net = net_by_cookie(request.netns_cookie);
	if (!net)
		return refuse(SHUNT_KMOD_EXIT_REFUSED_NETNS, -ENONET);
	error = join(owner, net, &request);
	put_net(net);
	if (error)
		return error;
	/* The pair stands whether or not its id can be delivered. */
	return copy_to_user(user, &request, sizeof(request)) ? -EFAULT : 0;
}

static long ioctl_unpair(void __user *user)
{
	u64 id;

	if (copy_from_user(&id, user, sizeof(id)))
		return -EFAULT;
	return shunt_pair_unpair(id);
}

static long ioctl_list(void __user *user)
{
	struct shunt_kmod_record *records;
	struct shunt_kmod_list list;
	long error = 0;

	if (copy_from_user(&list, user, sizeof(list)))
		return -EFAULT;
	if (list.zero || list.count > MAX_LIST)
		return -EINVAL;
	records = kvcalloc(list.count ?: 1, sizeof(*records), GFP_KERNEL);
	if (!records)
		return -ENOMEM;
	list.count = shunt_pair_list(&list.cursor, records, list.count);
	if (copy_to_user(u64_to_user_ptr(list.records), records, list.count * sizeof(*records)) ||
	    copy_to_user(user, &list, sizeof(list)))
		error = -EFAULT;
	kvfree(records);
	return error;
}

static long ioctl_counters(void __user *user)
{
	struct shunt_kmod_counters counters;
	u64 __user *values;
	u32 i;

	if (copy_from_user(&counters, user, sizeof(counters)))
		return -EFAULT;
	if (counters.zero)
		return -EINVAL;
	values = u64_to_user_ptr(counters.values);
	for (i = 0; i < min_t(u32, counters.count, SHUNT_KMOD_EXIT_COUNT); i++) {
		u64 value = shunt_counters_read(i);

		if (copy_to_user(values + i, &value, sizeof(value)))
			return -EFAULT;
	}
	counters.count = SHUNT_KMOD_EXIT_COUNT;
	return copy_to_user(user, &counters, sizeof(counters)) ? -EFAULT : 0;
}

static long ioctl_policy(struct shunt_owner *owner, void __user *user)
{
	u32 policy;

	if (copy_from_user(&policy, user, sizeof(policy)))
		return -EFAULT;
	if (policy != SHUNT_OWNER_RELEASE && policy != SHUNT_OWNER_KEEP)
		return -EINVAL;
	WRITE_ONCE(owner->policy, policy);
	return 0;
}

static long shunt_ctl_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	static const u32 version = SHUNT_KMOD_ABI_VERSION;
	struct shunt_owner *owner = file->private_data;
	void __user *user = (void __user *)argument;

	switch (command) {
	case SHUNT_IOC_VERSION:
		return copy_to_user(user, &version, sizeof(version)) ? -EFAULT : 0;
	case SHUNT_IOC_PAIR:
		return ioctl_pair(owner, user);
	case SHUNT_IOC_UNPAIR:
		return ioctl_unpair(user);
	case SHUNT_IOC_LIST:
		return ioctl_list(user);
	case SHUNT_IOC_COUNTERS:
		return ioctl_counters(user);
	case SHUNT_IOC_POLICY:
		return ioctl_policy(owner, user);
	default:
		return -ENOTTY;
	}
}

static int shunt_ctl_open(struct inode *inode, struct file *file)
{
	struct shunt_owner *owner;

	if (!capable(CAP_NET_ADMIN))
		return -EPERM;
	owner = kzalloc(sizeof(*owner), GFP_KERNEL_ACCOUNT);
	if (!owner)
		return -ENOMEM;
	refcount_set(&owner->references, 1);
	owner->policy = SHUNT_OWNER_RELEASE;
	file->private_data = owner;
	return 0;
}

/* The last user of the file is gone, by close() or by its death. */
static int shunt_ctl_release(struct inode *inode, struct file *file)
{
	struct shunt_owner *owner = file->private_data;

	WRITE_ONCE(owner->closed, true);
	if (SHUNT_MUTANT(5))
		return 0;
	if (owner->policy == SHUNT_OWNER_RELEASE)
		shunt_pair_split_all(owner);
	shunt_owner_put(owner);
	return 0;
}

static const struct file_operations shunt_ctl_operations = {
	.owner = THIS_MODULE,
	.open = shunt_ctl_open,
	.release = shunt_ctl_release,
	.unlocked_ioctl = shunt_ctl_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice shunt_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "shunt",
	.fops = &shunt_ctl_operations,
	.mode = 0600,
};

int __init shunt_ctl_init(void)
{
	return misc_register(&shunt_device);
}

void shunt_ctl_exit(void)
{
	misc_deregister(&shunt_device);
}
