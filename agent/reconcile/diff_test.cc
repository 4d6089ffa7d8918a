// SPDX-License-Identifier: Apache-2.0
#include "agent/reconcile/diff.h"

#include <map>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

PodTarget Pod(const std::string& uid, uint64_t cgroup_id = 1, uint16_t port = 80) {
  return {uid, "/cgroup/" + uid, cgroup_id, {{port, port}}};
}

TEST(Diff, EnrolsWhatIsNew) {
  EXPECT_THAT(Diff({}, {Pod("a"), Pod("b")}).enrol, ElementsAre(Pod("a"), Pod("b")));
}

TEST(Diff, RetiresWhatIsMissing) {
  const Plan plan = Diff({Pod("a"), Pod("b")}, {Pod("b")});
  EXPECT_THAT(plan.retire, ElementsAre("a"));
  EXPECT_THAT(plan.enrol, IsEmpty());
}

TEST(Diff, EqualSetsNeedNothing) { EXPECT_EQ(Diff({Pod("a")}, {Pod("a")}), Plan{}); }

TEST(Diff, ThePathAloneIsNoChange) {
  PodTarget adopted = Pod("a");
  adopted.cgroup.clear();
  EXPECT_EQ(Diff({adopted}, {Pod("a")}), Plan{});
}

TEST(Diff, AnotherPolicyOrSandboxIsEnrolledAgain) {
  EXPECT_THAT(Diff({Pod("a", 1, 80)}, {Pod("a", 1, 81)}).enrol, ElementsAre(Pod("a", 1, 81)));
  EXPECT_THAT(Diff({Pod("a", 1)}, {Pod("a", 2)}).enrol, ElementsAre(Pod("a", 2)));
}

TEST(Diff, ApplyingThePlanYieldsTheWantedSet) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    const auto some = [&random] {
      std::vector<PodTarget> pods;
      for (const char* uid : {"a", "b", "c", "d", "e"}) {
        if (random() % 2 == 0) {
          pods.push_back(Pod(uid, 1 + random() % 2, 80 + random() % 2));
        }
      }
      return pods;
    };
    const std::vector<PodTarget> attached = some();
    const std::vector<PodTarget> wanted = some();
    const Plan plan = Diff(attached, wanted);
    std::map<std::string, PodTarget> result;
    for (const PodTarget& pod : attached) {
      result[pod.uid] = pod;
    }
    for (const std::string& uid : plan.retire) {
      ASSERT_EQ(result.erase(uid), 1u) << ToString(plan);
    }
    for (const PodTarget& pod : plan.enrol) {
      result[pod.uid] = pod;
    }
    std::map<std::string, PodTarget> expected;
    for (const PodTarget& pod : wanted) {
      expected[pod.uid] = pod;
    }
    ASSERT_EQ(result, expected) << ToString(plan);
  }
}

}  // namespace
}  // namespace shunt
