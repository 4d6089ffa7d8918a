// SPDX-License-Identifier: Apache-2.0
//
// The agent's configuration file, as README.md shows it. Reading it changes
// nothing; a value of AgentConfig is complete and valid. Thread-safe: no state.
#ifndef SHUNT_AGENT_CONFIG_CONFIG_H_
#define SHUNT_AGENT_CONFIG_CONFIG_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/pair/engine.h"
#include "agent/pair/pod.h"

namespace shunt {

struct ControllerConfig {
  std::string address;  // host:port
  std::string ca;       // absolute paths of PEM files
  std::string cert;
  std::string key;
};

struct AgentConfig {
  EngineChoice engine = EngineChoice::kAuto;
  std::string bpffs = "/sys/fs/bpf/shunt";
  std::string admin_socket = "/run/shunt/agent.sock";
  std::string metrics_address = "127.0.0.1:9464";
  // Exactly one source: a controller, or the pods listed in the file.
  std::optional<ControllerConfig> controller;
  std::vector<PodSpec> pods;
};

// Larger files and longer lists are refused before they cost memory.
inline constexpr size_t kMaxConfigBytes = 1 << 20;
inline constexpr size_t kMaxPods = 4096;

// INVALID_ARGUMENT, for the first problem by position:
//   "agent.yaml:12:14: static.pods[0].ports[1]: found "70000"; allowed: a port
//    from 1 to 65535, or a range "first-last""
absl::StatusOr<AgentConfig> ParseConfig(std::string_view text, std::string_view file_name);

// The same for a file; NOT_FOUND and the like if it cannot be read.
absl::StatusOr<AgentConfig> LoadConfig(const std::string& path);

}  // namespace shunt

#endif  // SHUNT_AGENT_CONFIG_CONFIG_H_
