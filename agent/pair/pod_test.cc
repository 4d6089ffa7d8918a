// SPDX-License-Identifier: Apache-2.0
#include "agent/pair/pod.h"

#include <bitset>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(Normalized, OfNothingIsNothing) { EXPECT_THAT(Normalized({}), IsEmpty()); }

TEST(Normalized, SortsByFirstPort) {
  EXPECT_THAT(Normalized({{90, 95}, {10, 10}, {50, 60}}),
              ElementsAre(PortRange{10, 10}, PortRange{50, 60}, PortRange{90, 95}));
}

TEST(Normalized, JoinsEqualOverlappingNestedAndAdjacent) {
  EXPECT_THAT(Normalized({{80, 80}, {80, 80}}), ElementsAre(PortRange{80, 80}));
  EXPECT_THAT(Normalized({{15, 30}, {10, 20}}), ElementsAre(PortRange{10, 30}));
  EXPECT_THAT(Normalized({{10, 90}, {20, 30}, {40, 50}}), ElementsAre(PortRange{10, 90}));
  EXPECT_THAT(Normalized({{81, 81}, {80, 80}, {82, 90}}), ElementsAre(PortRange{80, 90}));
}

TEST(Normalized, KeepsAGapOfOnePort) {
  EXPECT_THAT(Normalized({{80, 80}, {82, 82}}), ElementsAre(PortRange{80, 80}, PortRange{82, 82}));
}

TEST(Normalized, DoesNotWrapAtTheLastPort) {
  EXPECT_THAT(Normalized({{65535, 65535}, {1, 1}}),
              ElementsAre(PortRange{1, 1}, PortRange{65535, 65535}));
  EXPECT_THAT(Normalized({{1, 65535}, {65535, 65535}, {2, 3}}), ElementsAre(PortRange{1, 65535}));
}

TEST(Normalized, HoldsTheSamePortsInTheFewestRanges) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  using Ports = std::bitset<65536>;
  const auto ports_of = [](const std::vector<PortRange>& ranges) {
    Ports ports;
    for (const PortRange& range : ranges) {
      for (unsigned port = range.first; port <= range.last; ++port) {
        ports.set(port);
      }
    }
    return ports;
  };
  for (int round = 0; round < 1000; ++round) {
    // Few ports, at both ends, so that ranges often meet.
    const uint16_t base = random() % 2 == 0 ? 1 : 65535 - 63;
    std::vector<PortRange> ranges(random() % 12);
    for (PortRange& range : ranges) {
      range.first = static_cast<uint16_t>(base + random() % 64);
      range.last = static_cast<uint16_t>(
          std::min<unsigned>(65535, range.first + static_cast<unsigned>(random() % 6)));
    }
    const std::vector<PortRange> normalized = Normalized(ranges);
    ASSERT_EQ(ports_of(normalized), ports_of(ranges));
    for (size_t i = 1; i < normalized.size(); ++i) {
      ASSERT_GT(normalized[i].first, normalized[i - 1].last + 1);
    }
    ASSERT_EQ(Normalized(normalized), normalized);
  }
}

TEST(ToString, OfARange) {
  EXPECT_EQ(ToString(PortRange{8080, 8080}), "8080");
  EXPECT_EQ(ToString(PortRange{30000, 60000}), "30000-60000");
}

TEST(ToString, OfAPod) {
  EXPECT_EQ(ToString(PodSpec{"demo", "/sys/fs/cgroup/demo", {{8080, 8080}, {1, 9}}, 1337}),
            "uid=demo cgroup=/sys/fs/cgroup/demo ports=8080,1-9 proxyUid=1337");
  EXPECT_EQ(ToString(PodSpec{"demo", "", {{80, 80}}, std::nullopt}), "uid=demo cgroup= ports=80");
  EXPECT_EQ(ToString(PodSpec{"demo", "/c", {}, 0}), "uid=demo cgroup=/c ports= proxyUid=0");
}

}  // namespace
}  // namespace shunt
