/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Included before all of bpf/shunt.bpf.c: the engine with its gate off, which
 * hands over every message as accelerators without a gate do. The suite must
 * tell it from TCP.
 */
#include "bpf/kernel.h"

#define shunt_gate shunt_gate_in_use
#include "bpf/gate.h"
#undef shunt_gate
#undef SHUNT_INLINE

static inline __attribute__((always_inline)) enum shunt_exit shunt_gate(
    const struct shunt_gate_view* view) {
  return view->peer_known ? SHUNT_EXIT_REDIRECTED : SHUNT_EXIT_MSG_NO_PEER;
}
