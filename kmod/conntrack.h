/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SHUNT_CONNTRACK_H
#define SHUNT_CONNTRACK_H

#include <net/sock.h>

/*
 * Tells connection tracking that this connection's sequence numbers will jump:
 * most bytes cross without it. Else the next real packet is out of window,
 * INVALID, and not translated: behind REDIRECT the FIN would never arrive.
 * Does nothing if the connection is not tracked. Process context.
 */
void shunt_conntrack_be_liberal(const struct sock *client);

#endif
