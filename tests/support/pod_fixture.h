// SPDX-License-Identifier: Apache-2.0
//
// What the netns tests share: pods, a bpffs of their own, and one agent that
// accelerates some of the pods.
#ifndef SHUNT_TESTS_SUPPORT_POD_FIXTURE_H_
#define SHUNT_TESTS_SUPPORT_POD_FIXTURE_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/agent_process.h"
#include "tests/support/environment.h"
#include "tests/support/kernel_state.h"
#include "tests/support/pod.h"
#include "tests/support/sockets.h"
#include "tests/support/transcript.h"

namespace shunt::test {

// The port that the fixture's pods are accelerated on unless a test says other.
inline constexpr uint16_t kPort = 8080;

class PodTest : public testing::Test {
 protected:
  // Skips, with the reason, where such tests cannot run.
  void SetUp() override;
  // On failure prints what the agent said and what the kernel side counted.
  void TearDown() override;

  // Starts the agent with `accelerated` listed as pod "fast" on `ports`.
  void StartAgent(const std::vector<std::string>& ports = {std::to_string(kPort)},
                  const std::vector<std::string>& flags = {}, const Where& where = Where::Here());

  AgentPod FastEntry(const std::vector<std::string>& ports = {std::to_string(kPort)}) const {
    return {"fast", fast().cgroup(), ports, std::nullopt};
  }

  // A pod the agent is told of by StartAgent(), and one it never hears of.
  Pod& fast() const { return *fast_; }
  Pod& plain() const { return *plain_; }
  AgentProcess& agent() const { return *agent_; }
  PrivateBpffs& bpffs() const { return *bpffs_; }
  const KernelState& kernel() const { return *kernel_; }

  // An accelerated connection of `fast`, checked to be one.
  Connection MakeFastPair(IpMode mode = IpMode::kV4, uint16_t port = kPort,
                          const Where& where = Where::Here());

  // Sends one byte each way and says how many exits of a kind that took.
  void ExpectRedirects(const Connection& connection, const Where& where = Where::Here());
  void ExpectPlain(const Connection& connection, const Where& where = Where::Here());

  // Runs a program on a plain and on an accelerated connection, in every IP
  // mode, and expects it to see the same. Also expects that bytes were
  // redirected: a pass with none would prove nothing.
  using Program = std::function<void(Connection&, Transcript&)>;
  void ExpectSameAsTcp(const Program& program, const Where& where = Where::Here());

 private:
  std::unique_ptr<PrivateBpffs> bpffs_;
  std::unique_ptr<KernelState> kernel_;
  std::unique_ptr<Pod> fast_;
  std::unique_ptr<Pod> plain_;
  std::unique_ptr<AgentProcess> agent_;
};

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_POD_FIXTURE_H_
