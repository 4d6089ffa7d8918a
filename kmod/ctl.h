/* SPDX-License-Identifier: GPL-2.0-only */
/* /dev/shunt; its ABI is in uapi/shunt.h. */
#ifndef SHUNT_CTL_H
#define SHUNT_CTL_H

int shunt_ctl_init(void);
void shunt_ctl_exit(void);

#endif
