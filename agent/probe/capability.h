// SPDX-License-Identifier: Apache-2.0
//
// Capabilities of the calling thread, and what it could not do without one.
#ifndef SHUNT_AGENT_PROBE_CAPABILITY_H_
#define SHUNT_AGENT_PROBE_CAPABILITY_H_

#include <functional>
#include <string>
#include <vector>

namespace shunt {

// In this thread's effective set.
bool Holds(int capability);

// Those of the agent's three capabilities that this thread does not hold. For
// bpf(), CAP_SYS_ADMIN stands for all of them.
std::vector<std::string> MissingCapabilities();

// Runs `work` on a thread of its own that has given up these capabilities;
// false if they could not be given up. Throws std::system_error.
bool RunWithout(const std::vector<int>& capabilities, const std::function<void()>& work);

}  // namespace shunt

#endif  // SHUNT_AGENT_PROBE_CAPABILITY_H_
