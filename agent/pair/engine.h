// SPDX-License-Identifier: Apache-2.0
//
// Which engine is asked for: `engine:` of the configuration, or --engine.
// Plain values; thread-safe: no state.
#ifndef SHUNT_AGENT_PAIR_ENGINE_H_
#define SHUNT_AGENT_PAIR_ENGINE_H_

#include <optional>
#include <string_view>

namespace shunt {

enum class EngineChoice {
  kAuto,      // kmod if it answers, else sockhash if the probes allow it, else none
  kSockhash,  // the portable engine, or refuse to start
  kKmod,      // the kernel module, or refuse to start
  kNone,      // observe only
};

// "auto", "sockhash", "kmod", "none".
constexpr std::string_view ToString(EngineChoice choice) {
  switch (choice) {
    case EngineChoice::kAuto:
      return "auto";
    case EngineChoice::kSockhash:
      return "sockhash";
    case EngineChoice::kKmod:
      return "kmod";
    case EngineChoice::kNone:
      return "none";
  }
  return "unknown";
}

// The inverse of ToString(); nothing for any other text.
constexpr std::optional<EngineChoice> EngineChoiceFromString(std::string_view text) {
  for (const EngineChoice choice :
       {EngineChoice::kAuto, EngineChoice::kSockhash, EngineChoice::kKmod, EngineChoice::kNone}) {
    if (ToString(choice) == text) {
      return choice;
    }
  }
  return std::nullopt;
}

}  // namespace shunt

#endif  // SHUNT_AGENT_PAIR_ENGINE_H_
