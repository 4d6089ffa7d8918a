// SPDX-License-Identifier: GPL-2.0-only
#include "counters.h"

DEFINE_PER_CPU(struct shunt_counters, shunt_counters);

u64 shunt_counters_read(enum shunt_kmod_exit exit)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += per_cpu(shunt_counters.value[exit], cpu);
	return sum;
}
