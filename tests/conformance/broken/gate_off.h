/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Included before all of bpf/shunt.bpf.c: the engine with its gate off, which
 * hands over every message as accelerators without a gate do, watches nothing and
 * takes nothing back. The suite must tell it from TCP.
 */
#include "bpf/kernel.h"

#define shunt_gate shunt_gate_in_use
#define shunt_reason_to_leave shunt_reason_to_leave_in_use
#include "bpf/gate.h"
#undef shunt_gate
#undef shunt_reason_to_leave
#undef SHUNT_INLINE

static inline __attribute__((always_inline)) enum shunt_exit shunt_gate(
    const struct shunt_gate_view* view) {
  return view->peer_known ? SHUNT_EXIT_REDIRECTED : SHUNT_EXIT_MSG_NO_PEER;
}

static inline __attribute__((always_inline)) enum shunt_exit shunt_reason_to_leave(
    enum shunt_exit exit, int turned, int may_mix, __u32* score) {
  return SHUNT_EXIT_COUNT;
}

/* Every new workload is taken for clean, ... */
#define SHUNT_WORKLOAD_WATCHED SHUNT_WORKLOAD_CLEAN
/* ... and the agent does not know what is asked of it. */
#define SHUNT_EVENT_LEAVING 99
#define SHUNT_EVENT_WORKLOAD 98
