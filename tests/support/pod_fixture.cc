// SPDX-License-Identifier: Apache-2.0
#include "tests/support/pod_fixture.h"

#include <cstdio>

namespace shunt::test {

void PodTest::SetUp() {
  if (!WhyNotHere().empty()) {
    GTEST_SKIP() << WhyNotHere();
  }
  bpffs_ = std::make_unique<PrivateBpffs>();
  kernel_ = std::make_unique<KernelState>(bpffs_->path());
  fast_ = std::make_unique<Pod>();
  plain_ = std::make_unique<Pod>();
  agent_ = std::make_unique<AgentProcess>(bpffs_->path());
}

void PodTest::TearDown() {
  if (HasFailure() && agent_ != nullptr) {
    printf("---- what the agent said ----\n%s----\n", agent_->Output().c_str());
    if (kernel_->Exists()) {
      printf("kernel side: %s\n", kernel_->CountsText().c_str());
    }
  }
}

void PodTest::StartAgent(const std::vector<std::string>& ports,
                         const std::vector<std::string>& flags, const Where& where) {
  agent().WritePods({FastEntry(ports)});
  agent().StartReady(1, flags, where);
}

Connection PodTest::MakeFastPair(IpMode mode, uint16_t port, const Where& where) {
  const uint64_t before = kernel().Count(SHUNT_EXIT_PAIR_MADE);
  Connection connection = MakePair(fast(), mode, port, where);
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_PAIR_MADE), before + 1)
      << "asked at " << where.file << ":" << where.line << ", " << kernel().CountsText();
  return connection;
}

void PodTest::ExpectRedirects(const Connection& connection, const Where& where) {
  const uint64_t before = kernel().RedirectedBytes();
  PingPong(connection, where);
  EXPECT_EQ(kernel().RedirectedBytes(), before + 2)
      << "asked at " << where.file << ":" << where.line << ", " << kernel().CountsText();
}

void PodTest::ExpectPlain(const Connection& connection, const Where& where) {
  const uint64_t before = kernel().RedirectedBytes();
  PingPong(connection, where);
  EXPECT_EQ(kernel().RedirectedBytes(), before)
      << "asked at " << where.file << ":" << where.line << ", " << kernel().CountsText();
}

void PodTest::ExpectSameAsTcp(const Program& program, const Where& where) {
  testing::ScopedTrace trace(where.file, where.line, "program run");
  for (const IpMode mode : kIpModes) {
    Transcript expected, actual;
    {
      Connection connection = MakePair(plain(), mode, kPort, where);
      program(connection, expected);
    }
    const uint64_t before = kernel().RedirectedBytes();
    {
      Connection connection = MakeFastPair(mode, kPort, where);
      program(connection, actual);
    }
    EXPECT_TRUE(Same(expected, actual)) << "IP mode " << mode;
    EXPECT_GT(kernel().RedirectedBytes(), before) << "IP mode " << mode;
  }
}

}  // namespace shunt::test
