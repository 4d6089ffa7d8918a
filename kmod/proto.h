/* SPDX-License-Identifier: GPL-2.0-only */
/* The calls that an attached socket answers differently from plain TCP. */
#ifndef SHUNT_PROTO_H
#define SHUNT_PROTO_H

#include <net/sock.h>

int shunt_proto_init(void);

/* Nobody is inside the module, nor on the way in. All ends are detached. */
void shunt_proto_wait_for_calls(void);

/*
 * The copies that belong to a socket of this family. False: the socket is not
 * plain TCP now (or the family is off), so it must be left alone.
 */
bool shunt_proto_is_base(const struct sock *sk);
struct proto *shunt_proto_of(const struct sock *sk);
const struct proto_ops *shunt_ops_of(const struct sock *sk);
bool shunt_proto_is_ours(const struct proto *proto);

#endif
