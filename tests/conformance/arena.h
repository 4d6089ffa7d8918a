// SPDX-License-Identifier: Apache-2.0
//
// Where cases run: two pods that differ in nothing but that the agent is told to
// accelerate one of them.
#ifndef SHUNT_TESTS_CONFORMANCE_ARENA_H_
#define SHUNT_TESTS_CONFORMANCE_ARENA_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/support/agent_process.h"
#include "tests/support/environment.h"
#include "tests/support/pod.h"

namespace shunt::conformance {

enum class Engine { kNone, kSockhash, kKmod };
std::string ToString(Engine engine);

// What one run of a case was seen to do.
struct Outcome {
  std::vector<std::string> lines;  // the client's, then the server's
  // Of the engine's side only:
  bool enrolled = false;         // the agent listed the connection as a pair
  bool left = false;             // the engine took it back to TCP before the end
  uint64_t handed_over = 0;      // bytes that did not go by TCP
  std::vector<std::string> why;  // exits of the kernel programs that were taken
};

// Not thread-safe. Leaves nothing behind: processes, cgroups, namespaces, mounts.
class Arena {
 public:
  explicit Arena(Engine engine);
  ~Arena();

  // Empty if the engine runs; else why the agent declined it.
  const std::string& declined() const { return declined_; }
  Engine engine() const { return engine_; }
  // What the agent runs: "sockhash: all probes passed".
  const std::string& engine_says() const { return engine_says_; }

  Outcome RunPlain(const Case& test, IpMode mode, uint64_t seed);
  Outcome RunOnEngine(const Case& test, IpMode mode, uint64_t seed);

 private:
  struct Counts;

  void StartAgent();
  // Another pod in place of the fast one, for an agent that has learned from an
  // earlier case to leave the pod's connections on TCP.
  void RenewFastPod();
  Counts Look() const;
  bool IsListed(int client_port) const;
  Outcome Run(test::Pod& pod, bool on_engine, const Case& test, IpMode mode, uint64_t seed);

  Engine engine_;
  std::string declined_;
  std::string engine_says_;
  test::PrivateBpffs bpffs_;
  test::Pod plain_;
  std::unique_ptr<test::Pod> fast_;
  int fast_pods_ = 0;
  std::unique_ptr<test::AgentProcess> agent_;
  int runs_ = 0;
};

}  // namespace shunt::conformance

#endif  // SHUNT_TESTS_CONFORMANCE_ARENA_H_
