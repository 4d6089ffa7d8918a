/* SPDX-License-Identifier: GPL-2.0-only */
/* Assertions of the invariants in docs/module.md, and the mutants that break them. */
#ifndef SHUNT_DEBUG_H
#define SHUNT_DEBUG_H

#include <linux/bug.h>

/* A broken invariant is a report in the log, which fails the VM tier. */
#ifdef SHUNT_DEBUG
#define SHUNT_ASSERT(condition) WARN_ON_ONCE(!(condition))
#else
#define SHUNT_ASSERT(condition) ((void)sizeof(!(condition)))
#endif

/* docs/module.md lists the mutants; 0 is the module itself. */
#ifndef SHUNT_MUTATION
#define SHUNT_MUTATION 0
#endif
#define SHUNT_MUTANT(n) (SHUNT_MUTATION == (n))

#endif
