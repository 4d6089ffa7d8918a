// SPDX-License-Identifier: Apache-2.0
#include "agent/pair/exits.h"

namespace shunt {
namespace {

struct ExitName {
  std::string_view reason;
  std::string_view text;
};

constexpr ExitName kNames[] = {
#define SHUNT_EXIT_NAME(name, reason, text) {reason, text},
    SHUNT_EXITS(SHUNT_EXIT_NAME)
#undef SHUNT_EXIT_NAME
};
static_assert(std::size(kNames) == SHUNT_EXIT_COUNT);

}  // namespace

std::string_view ExitReason(uint32_t exit) {
  return exit < SHUNT_EXIT_COUNT ? kNames[exit].reason : "unknown";
}

std::string_view ExitText(uint32_t exit) {
  return exit < SHUNT_EXIT_COUNT ? kNames[exit].text : "unknown";
}

std::string HazardNames(uint32_t hazards) {
  std::string names;
  const auto append = [&names](std::string_view name) {
    names.append(names.empty() ? "" : ", ").append(name);
  };
#define SHUNT_HAZARD_NAME(name, bit, word, text) \
  if ((hazards & SHUNT_HAZARD_##name) != 0) {    \
    append(word);                                \
    hazards &= ~SHUNT_HAZARD_##name;             \
  }
  SHUNT_HAZARDS(SHUNT_HAZARD_NAME)
#undef SHUNT_HAZARD_NAME
  if (hazards != 0) {
    append("unknown");
  }
  return names;
}

ExitClass ClassOf(uint32_t exit) {
  switch (exit) {
    case SHUNT_EXIT_CLIENT_UNANNOUNCED:
    case SHUNT_EXIT_SERVER_UNLISTED:
    case SHUNT_EXIT_SERVER_ALONE:
      return ExitClass::kPlain;
    case SHUNT_EXIT_REFUSED_FAST_OPEN:
    case SHUNT_EXIT_REFUSED_STATE:
    case SHUNT_EXIT_REFUSED_MPTCP:
    case SHUNT_EXIT_REFUSED_MAP_FULL:
    case SHUNT_EXIT_REFUSED_OTHER_OWNER:
    case SHUNT_EXIT_REFUSED_DUPLICATE:
    case SHUNT_EXIT_REFUSED_HAZARD:
    case SHUNT_EXIT_REFUSED_OPTION:
    case SHUNT_EXIT_REFUSED_ERROR:
      return ExitClass::kRefused;
    case SHUNT_EXIT_MSG_NO_STATE:
    case SHUNT_EXIT_MSG_GATE_CLOSED:
    case SHUNT_EXIT_MSG_NO_PEER:
    case SHUNT_EXIT_MSG_WATCHED:
    case SHUNT_EXIT_MSG_ULP:
    case SHUNT_EXIT_MSG_SHUT_DOWN:
    case SHUNT_EXIT_MSG_PEER_CHANGED:
    case SHUNT_EXIT_MSG_PEER_CLOSED:
    case SHUNT_EXIT_MSG_LOW_WATER:
    case SHUNT_EXIT_MSG_TCP_UNREAD:
    case SHUNT_EXIT_MSG_BACK_PRESSURE:
    case SHUNT_EXIT_MSG_MEMORY_PRESSURE:
    case SHUNT_EXIT_MSG_REFRESH:
    case SHUNT_EXIT_MSG_REDIRECT_FAILED:
      return ExitClass::kFallback;
    case SHUNT_EXIT_LEAVING_STREAM:
    case SHUNT_EXIT_LEAVING_BACK_PRESSURE:
    case SHUNT_EXIT_LEAVING_MIXED:
    case SHUNT_EXIT_LEAVING_HAZARD:
      return ExitClass::kLeaving;
    case SHUNT_EXIT_ANNOUNCE_FAILED:
    case SHUNT_EXIT_EVENT_LOST:
    case SHUNT_EXIT_RESCUE_ARMED:
    case SHUNT_EXIT_RESCUE_WOKE:
    case SHUNT_EXIT_WORKLOAD_NEW:
    case SHUNT_EXIT_WORKLOAD_UNSEEN:
    case SHUNT_EXIT_WORKLOAD_CLEAN:
    case SHUNT_EXIT_WORKLOAD_HAZARD:
      return ExitClass::kAgent;
    default:
      return ExitClass::kProgress;
  }
}

}  // namespace shunt
