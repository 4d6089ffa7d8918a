// SPDX-License-Identifier: Apache-2.0
//
// What is mounted in this mount namespace.
#ifndef SHUNT_AGENT_PROBE_MOUNTS_H_
#define SHUNT_AGENT_PROBE_MOUNTS_H_

#include <string>

namespace shunt {

// Where the first file system of this type is mounted, by /proc/self/mountinfo;
// empty if there is none.
std::string MountOf(const std::string& type);

// The same of a text like /proc/self/mountinfo. Pure.
std::string MountIn(const std::string& mountinfo, const std::string& type);

}  // namespace shunt

#endif  // SHUNT_AGENT_PROBE_MOUNTS_H_
