// SPDX-License-Identifier: Apache-2.0
//
// shunt-agent: the command line.
#include <bpf/libbpf.h>
#include <signal.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "agent/agent.h"
#include "agent/base/log.h"
#include "agent/base/status.h"
#include "agent/base/version.h"

namespace {

const std::map<std::string, shunt::EngineChoice> kEngines = {
    {"auto", shunt::EngineChoice::kAuto},
    {"sockhash", shunt::EngineChoice::kSockhash},
    {"kmod", shunt::EngineChoice::kKmod},
    {"none", shunt::EngineChoice::kNone},
};
const std::map<std::string, shunt::log::Level> kLevels = {
    {"debug", shunt::log::Level::kDebug},
    {"info", shunt::log::Level::kInfo},
    {"warning", shunt::log::Level::kWarning},
    {"error", shunt::log::Level::kError},
};
const std::map<std::string, shunt::log::Format> kFormats = {
    {"json", shunt::log::Format::kJson},
    {"text", shunt::log::Format::kText},
};

// What the kernel refuses is an error of ours, told in our words: libbpf's own
// are for who debugs.
int LogLibbpf(enum libbpf_print_level level, const char* format, va_list args) {
  if (level == LIBBPF_DEBUG) {
    return 0;
  }
  char line[1024];
  vsnprintf(line, sizeof(line), format, args);
  std::string text(line);
  text.erase(text.find_last_not_of('\n') + 1);
  shunt::log::Debug("libbpf", {{"detail", text}});
  return 0;
}

// Every thread inherits the mask, so only the loop's signalfd sees these.
void BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Accelerates pod-local TCP connections of this node."};
  shunt::AgentOptions options;
  std::string engine;
  std::string level = "info";
  std::string format = isatty(STDERR_FILENO) ? "text" : "json";
  app.add_option("--config", options.config_path, "configuration file (YAML)")->required();
  app.add_option("--engine", engine, "auto, sockhash, kmod or none; overrides the file")
      ->check(CLI::IsMember(kEngines));
  app.add_flag("--dry-run", options.dry_run,
               "observe: count what would be accelerated, change nothing");
  app.add_option("--max-pairs", options.max_pairs, "connections accelerated at once")
      ->check(CLI::Range(1u, 1u << 20));
  app.add_option("--log-level", level, "debug, info, warning or error")
      ->check(CLI::IsMember(kLevels));
  app.add_option("--log-format", format, "json or text; text on a terminal")
      ->check(CLI::IsMember(kFormats));
  app.set_version_flag("--version", shunt::kVersion);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (!engine.empty()) {
    options.engine = kEngines.at(engine);
  }
  shunt::log::Init(kLevels.at(level), kFormats.at(format));
  libbpf_set_print(LogLibbpf);
  BlockSignals();

  absl::StatusOr<std::unique_ptr<shunt::Agent>> agent = shunt::Agent::Create(options);
  absl::Status status = agent.status();
  if (agent.ok()) {
    shunt::log::Info("agent runs", {{"version", shunt::kVersion}, {"reason", "started"}});
    status = (*agent)->Run();
  }
  if (!status.ok()) {
    shunt::log::Error("agent stops", {{"reason", "fatal"}, {"err", std::string(status.message())}});
  }
  return shunt::ExitCode(status);
}
