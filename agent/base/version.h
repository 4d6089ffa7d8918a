// SPDX-License-Identifier: Apache-2.0
#ifndef SHUNT_AGENT_BASE_VERSION_H_
#define SHUNT_AGENT_BASE_VERSION_H_

namespace shunt {

// The release, from project(VERSION) in CMakeLists.txt.
inline constexpr char kVersion[] = SHUNT_VERSION;

}  // namespace shunt

#endif  // SHUNT_AGENT_BASE_VERSION_H_
