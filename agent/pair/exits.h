// SPDX-License-Identifier: Apache-2.0
//
// Names for the numbers that the kernel side counts (kmod/uapi/shunt.h). Pure.
#ifndef SHUNT_AGENT_PAIR_EXITS_H_
#define SHUNT_AGENT_PAIR_EXITS_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "kmod/uapi/shunt.h"

namespace shunt {

// One count per enum shunt_exit.
using ExitCounts = std::array<uint64_t, SHUNT_EXIT_COUNT>;

// What kind of thing an exit counts.
enum class ExitClass {
  kProgress,  // as wished: announced, joined, paired, redirected, left
  kPlain,     // a connection that was never to be accelerated
  kRefused,   // a connection that stays on TCP although its pod is listed
  kFallback,  // a message that went by TCP although its pair is enrolled
  kLeaving,   // a pair that went back to TCP because that is better for it
  kAgent,     // about Shunt itself
};

// "tcp_ulp, splice"; "unknown" for bits that this agent does not know.
std::string HazardNames(uint32_t hazards);

// "back_pressure"; "unknown" past the end.
std::string_view ExitReason(uint32_t exit);
// "peer holds a receive buffer's worth unread"
std::string_view ExitText(uint32_t exit);
ExitClass ClassOf(uint32_t exit);

}  // namespace shunt

#endif  // SHUNT_AGENT_PAIR_EXITS_H_
