// SPDX-License-Identifier: Apache-2.0
//
// The real shunt-agent, driven as its users drive it: by its YAML file, by
// signals and by shuntctl. The programs are those of the build; SHUNT_AGENT,
// SHUNT_AGENT_NEXT and SHUNT_CTL name others.
#ifndef SHUNT_TESTS_SUPPORT_AGENT_PROCESS_H_
#define SHUNT_TESTS_SUPPORT_AGENT_PROCESS_H_

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/support/command.h"
#include "tests/support/netns.h"
#include "tests/support/stop.h"

namespace shunt::test {

using Json = nlohmann::ordered_json;

// One entry of static.pods.
struct AgentPod {
  std::string uid;
  std::string cgroup;
  std::vector<std::string> ports;
  std::optional<uint32_t> proxy_uid;
};

// How the file is replaced on reload.
enum class Rewrite {
  kInPlace,  // truncate and write, as an editor or `tee` may
  kRename,   // a new file over the old, as most programs do
  kSymlink,  // another target for a link in the path, as kubelet does for ConfigMaps
};

// One agent with its files; runs in a network namespace of its own, as its
// DaemonSet does. At the end of its life the process is killed; what it pinned
// stays until its bpffs goes. Not thread-safe.
class AgentProcess {
 public:
  // `bpffs`: what the configuration says.
  explicit AgentProcess(std::string bpffs);

  // ---- configuration ----
  std::string Yaml(const std::vector<AgentPod>& pods) const;
  void WriteYaml(const std::string& text, Rewrite how = Rewrite::kRename);
  // Also lets an agent that starts know as clean the workloads of all pods written
  // so far, unless LearnWorkloads() was called: most tests are of what comes after.
  void WritePods(const std::vector<AgentPod>& pods, Rewrite how = Rewrite::kRename) {
    if (!learns_) {
      known_.insert(known_.end(), pods.begin(), pods.end());
      RememberAsClean(known_);
    }
    WriteYaml(Yaml(pods), how);
  }
  // The agent has to find out about each workload itself.
  void LearnWorkloads() { learns_ = true; }
  const std::string& config_path() const { return config_path_; }
  const std::string& socket_path() const { return socket_path_; }

  // ---- process ----
  // From the next start on: the agent whose kernel programs are another generation
  // (kNext), or the usual one.
  enum class Generation { kUsual, kNext };
  void SetGeneration(Generation generation) { generation_ = generation; }
  // A program that starts the agent: {"setpriv", "--bounding-set=-all"}.
  void SetLauncher(std::vector<std::string> launcher) { launcher_ = std::move(launcher); }
  void Start(const std::vector<std::string>& flags = {});
  // Start(), then until it answers and `pods` pods are being enrolled.
  void StartReady(size_t pods, const std::vector<std::string>& flags = {},
                  const Where& where = Where::Here());
  void WaitEnrolling(size_t pods, const Where& where = Where::Here());
  bool running() { return process_.has_value() && !process_->Poll().has_value(); }
  pid_t pid() const { return process_->pid(); }
  void KillHard() { process_->Kill(); }
  // SIGTERM; its exit code.
  int Terminate(const Where& where = Where::Here());
  // Starts it, for input it must refuse; its exit code.
  int RunToExit(const std::vector<std::string>& flags = {}, const Where& where = Where::Here());

  // ---- what it says ----
  // All of stderr and stdout since the object was made.
  std::string Output() const;
  // Log lines that are JSON objects with `key`: `value` ("msg", "level", "reason").
  std::vector<Json> LogLines(const std::string& key, const std::string& value) const;
  CommandResult Ctl(const std::vector<std::string>& arguments, milliseconds patience = kPatience,
                    const Where& where = Where::Here()) const;
  // shuntctl --output json VERB…, which must succeed.
  Json Ask(const std::vector<std::string>& verb, const Where& where = Where::Here()) const;
  Json Status(const Where& where = Where::Here()) const { return Ask({"status"}, where); }
  // The entry of `pods` with this uid; null if there is none.
  Json PodEntry(const std::string& uid, const Where& where = Where::Here()) const;

 private:
  void RememberAsClean(const std::vector<AgentPod>& pods);

  bool learns_ = false;
  std::vector<AgentPod> known_;
  std::string bpffs_;
  std::string directory_;
  std::string config_path_;
  std::string socket_path_;
  std::string output_path_;
  Generation generation_ = Generation::kUsual;
  std::vector<std::string> launcher_;
  int links_ = 0;
  NetnsToken netns_;
  std::optional<Child> process_;
};

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_AGENT_PROCESS_H_
