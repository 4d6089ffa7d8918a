// SPDX-License-Identifier: GPL-2.0-only
/*
 * shunt: the two ends of a connection within one network namespace hand their
 * bytes to each other, and stay honest TCP sockets at every instant a program
 * could look. docs/module.md is the design.
 */
#include <linux/module.h>

#include "ctl.h"
#include "debug.h"
#include "pair.h"
#include "proto.h"

static int __init shunt_init(void)
{
	int error;

	error = shunt_proto_init();
	if (error)
		goto err_proto;
	error = shunt_pair_init();
	if (error)
		goto err_pair;
	error = shunt_ctl_init();
	if (error)
		goto err_ctl;
	pr_info("loaded: ABI version %u%s\n", SHUNT_KMOD_ABI_VERSION,
		SHUNT_MUTATION ? ", a mutant for tests: do not use" : "");
	return 0;

err_ctl:
	shunt_pair_exit();
err_pair:
err_proto:
	return error;
}

/*
 * Connections do not hold the module, only open files of /dev/shunt do. First
 * nobody can join; then all ends go back to TCP; then the calls that had begun
 * come out.
 */
static void __exit shunt_exit(void)
{
	shunt_ctl_exit();
	shunt_pair_split_all(NULL);
	shunt_proto_wait_for_calls();
	shunt_pair_exit();
}

module_init(shunt_init);
module_exit(shunt_exit);
MODULE_LICENSE("GPL");
MODULE_AUTHOR("The Shunt authors");
MODULE_DESCRIPTION("Pod-local TCP without TCP's cost");
MODULE_VERSION("0.1.0");
