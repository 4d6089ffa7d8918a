// SPDX-License-Identifier: Apache-2.0
//
// Structured log: one JSON object per line on stderr (or human text), with
// stable keys, so that `kubectl logs` can be read by people and machines:
//   {"ts":"2026-01-01T00:00:00.000000Z","level":"info","msg":"pod accelerated",
//    "pod_uid":"…","reason":"enrolled"}
//
// Levels: error = a promise is broken, someone must act; warning = degraded,
// plain TCP is used where acceleration was asked for; info = a decision, once;
// debug = every pair. Thread-safe after Init(). Before Init() text goes to
// stderr at info level.
#ifndef SHUNT_AGENT_BASE_LOG_H_
#define SHUNT_AGENT_BASE_LOG_H_

#include <initializer_list>
#include <string_view>
#include <utility>

#include "nlohmann/json.hpp"

namespace shunt::log {

enum class Level { kDebug, kInfo, kWarning, kError };
enum class Format { kJson, kText };

using Fields = nlohmann::ordered_json;  // an object: {{"pod_uid", uid}, {"reason", r}}

void Init(Level level, Format format);
bool Enabled(Level level);

void Write(Level level, std::string_view message, const Fields& fields);

inline void Debug(std::string_view message, const Fields& fields = Fields::object()) {
  if (Enabled(Level::kDebug)) {
    Write(Level::kDebug, message, fields);
  }
}
inline void Info(std::string_view message, const Fields& fields = Fields::object()) {
  Write(Level::kInfo, message, fields);
}
inline void Warning(std::string_view message, const Fields& fields = Fields::object()) {
  Write(Level::kWarning, message, fields);
}
inline void Error(std::string_view message, const Fields& fields = Fields::object()) {
  Write(Level::kError, message, fields);
}

}  // namespace shunt::log

#endif  // SHUNT_AGENT_BASE_LOG_H_
