/* SPDX-License-Identifier: GPL-2.0-only */
/* One per-CPU counter for every exit of the module. */
#ifndef SHUNT_COUNTERS_H
#define SHUNT_COUNTERS_H

#include <linux/percpu.h>

#include "uapi/shunt.h"

struct shunt_counters {
	u64 value[SHUNT_KMOD_EXIT_COUNT];
};
DECLARE_PER_CPU(struct shunt_counters, shunt_counters);

#define shunt_count(name) this_cpu_inc(shunt_counters.value[SHUNT_KMOD_EXIT_##name])

/* Sum over all CPUs; exact only while nothing counts. */
u64 shunt_counters_read(enum shunt_kmod_exit exit);

#endif
