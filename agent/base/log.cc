// SPDX-License-Identifier: Apache-2.0
#include "agent/base/log.h"

#include <memory>
#include <string>

#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace shunt::log {
namespace {

// A line is built as one JSON object; spdlog adds time and level around it,
// serialises writers and filters by level.
constexpr char kJsonPattern[] = R"({"ts":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l",%v})";
constexpr char kTextPattern[] = "%Y-%m-%dT%H:%M:%S.%fZ %l %v";

struct Logger {
  std::shared_ptr<spdlog::logger> logger;
  Format format = Format::kText;
};

Logger& Current() {
  static Logger* const current = [] {
    auto* made = new Logger;
    made->logger = std::make_shared<spdlog::logger>(
        "shunt", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->logger->set_pattern(kTextPattern, spdlog::pattern_time_type::utc);
    return made;
  }();
  return *current;
}

spdlog::level::level_enum ToSpdlog(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarning:
      return spdlog::level::warn;
    case Level::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

std::string Dump(const Fields& value) {
  // Bytes from outside (paths, errors) may be no UTF-8: replace, never throw.
  return value.dump(-1, ' ', false, Fields::error_handler_t::replace);
}

}  // namespace

void Init(Level level, Format format) {
  Logger& current = Current();
  current.format = format;
  current.logger->set_pattern(format == Format::kJson ? kJsonPattern : kTextPattern,
                              spdlog::pattern_time_type::utc);
  current.logger->set_level(ToSpdlog(level));
}

bool Enabled(Level level) { return Current().logger->should_log(ToSpdlog(level)); }

void Write(Level level, std::string_view message, const Fields& fields) {
  Logger& current = Current();
  std::string line;
  if (current.format == Format::kJson) {
    line = "\"msg\":" + Dump(Fields(std::string(message)));
    for (const auto& [key, value] : fields.items()) {
      line += "," + Dump(Fields(key)) + ":" + Dump(value);
    }
  } else {
    line = message;
    for (const auto& [key, value] : fields.items()) {
      line += " " + key + "=" + Dump(value);
    }
  }
  current.logger->log(ToSpdlog(level), "{}", line);
  current.logger->flush();
}

}  // namespace shunt::log
