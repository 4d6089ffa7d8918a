// SPDX-License-Identifier: Apache-2.0
#include "agent/reconcile/reconciler.h"

#include <cstdlib>
#include <filesystem>

#include "agent/datapath/fake_datapath.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Plain directories stand in for cgroups: the resolver only looks them up.
class ReconcilerTest : public ::testing::Test {
 protected:
  ReconcilerTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "reconcilerXXXXXX").string();
    root_ = mkdtemp(pattern.data());
  }
  ~ReconcilerTest() override { std::filesystem::remove_all(root_); }

  PodSpec Pod(const std::string& uid, uint16_t port = 80) {
    return {uid, root_ + "/" + uid, {{port, port}}, std::nullopt};
  }
  void MakeCgroup(const std::string& uid) { std::filesystem::create_directory(root_ + "/" + uid); }
  PodStanding StandingOf(const Reconciler& reconciler, const std::string& uid) {
    for (const PodStanding& standing : reconciler.Standings()) {
      if (standing.spec.uid == uid) {
        return standing;
      }
    }
    ADD_FAILURE() << "no standing of " << uid;
    return {};
  }

  std::string root_;
  FakeDatapath datapath_;
  CgroupResolver resolver_{root_};
};

TEST_F(ReconcilerTest, NothingIsTouchedBeforeDesiredStateIsKnown) {
  datapath_.pods["old"].target = {"old", "", 7, {{80, 80}}};
  Reconciler reconciler(&datapath_, &resolver_);
  reconciler.Step();
  EXPECT_THAT(datapath_.calls, IsEmpty());
  EXPECT_FALSE(reconciler.Applied());
}

TEST_F(ReconcilerTest, EnrolsAndThenRests) {
  MakeCgroup("a");
  Reconciler reconciler(&datapath_, &resolver_);
  reconciler.SetDesired({Pod("a")});
  EXPECT_EQ(reconciler.Step(), Reconciler::kIdleLook);
  reconciler.Step();
  EXPECT_THAT(datapath_.calls, ElementsAre("enrol a"));
  EXPECT_EQ(StandingOf(reconciler, "a").state, PodState::kEnrolling);
}

TEST_F(ReconcilerTest, WaitsForACgroupAndEnrolsWhenItComes) {
  Reconciler reconciler(&datapath_, &resolver_);
  reconciler.SetDesired({Pod("a")});
  reconciler.Step();
  EXPECT_EQ(StandingOf(reconciler, "a").reason, "cgroup_not_found");
  MakeCgroup("a");
  reconciler.Step();
  EXPECT_EQ(StandingOf(reconciler, "a").reason, "enrolled");
}

TEST_F(ReconcilerTest, RetiresAndWaitsUntilDrained) {
  MakeCgroup("a");
  Reconciler reconciler(&datapath_, &resolver_);
  reconciler.SetDesired({Pod("a")});
  reconciler.Step();
  datapath_.pods["a"].waiting = {2, 5000, {}, false};
  reconciler.SetDesired({});
  EXPECT_LT(reconciler.Step(), Reconciler::kIdleLook);
  EXPECT_EQ(StandingOf(reconciler, "a").state, PodState::kLeaving);
  EXPECT_THAT(StandingOf(reconciler, "a").detail, HasSubstr("5000 bytes unread"));
  EXPECT_EQ(reconciler.StillWaiting().ends, 2u);
  EXPECT_EQ(reconciler.AttachedCount(), 1u);
  datapath_.pods["a"].waiting = {};
  reconciler.Step();
  EXPECT_THAT(datapath_.calls, ElementsAre("enrol a", "retire a", "detach a"));
  EXPECT_THAT(reconciler.Standings(), IsEmpty());
  EXPECT_EQ(reconciler.AttachedCount(), 0u);
}

TEST_F(ReconcilerTest, APodWantedAgainWhileLeavingIsEnrolledAgain) {
  MakeCgroup("a");
  Reconciler reconciler(&datapath_, &resolver_);
  reconciler.SetDesired({Pod("a")});
  reconciler.Step();
  datapath_.pods["a"].waiting = {1, 1, {}, false};
  reconciler.SetDesired({});
  reconciler.Step();
  reconciler.SetDesired({Pod("a")});
  reconciler.Step();
  EXPECT_THAT(datapath_.calls, ElementsAre("enrol a", "retire a", "enrol a"));
  EXPECT_EQ(StandingOf(reconciler, "a").state, PodState::kEnrolling);
}

TEST_F(ReconcilerTest, ANewSandboxReplacesTheOld) {
  MakeCgroup("a");
  Reconciler reconciler(&datapath_, &resolver_);
  reconciler.SetDesired({Pod("a")});
  reconciler.Step();
  MakeCgroup("keeps the old inode from being reused");
  std::filesystem::rename(root_ + "/a", root_ + "/gone");
  MakeCgroup("a");
  reconciler.Step();
  EXPECT_THAT(datapath_.calls, ElementsAre("enrol a", "enrol a"));
}

TEST_F(ReconcilerTest, ARemovedCgroupIsRetiredAndWaitedFor) {
  MakeCgroup("a");
  Reconciler reconciler(&datapath_, &resolver_);
  reconciler.SetDesired({Pod("a")});
  reconciler.Step();
  std::filesystem::remove(root_ + "/a");
  reconciler.Step();
  EXPECT_THAT(datapath_.calls, Contains("detach a"));
  EXPECT_EQ(StandingOf(reconciler, "a").state, PodState::kWaiting);
}

TEST_F(ReconcilerTest, AFailureIsOfOnePodAndTriedAgain) {
  MakeCgroup("a");
  MakeCgroup("b");
  datapath_.fail_enrol["a"] = absl::ResourceExhaustedError("no room");
  Reconciler reconciler(&datapath_, &resolver_);
  reconciler.SetDesired({Pod("a"), Pod("b")});
  reconciler.Step();
  EXPECT_EQ(StandingOf(reconciler, "a").state, PodState::kFailed);
  EXPECT_THAT(StandingOf(reconciler, "a").detail, HasSubstr("no room"));
  EXPECT_EQ(StandingOf(reconciler, "b").state, PodState::kEnrolling);
  datapath_.fail_enrol.clear();
  reconciler.Step();
  EXPECT_EQ(StandingOf(reconciler, "a").state, PodState::kEnrolling);
}

TEST_F(ReconcilerTest, AFailedRetireKeepsThePodAttachedAndIsTriedAgain) {
  MakeCgroup("a");
  Reconciler reconciler(&datapath_, &resolver_);
  reconciler.SetDesired({Pod("a")});
  reconciler.Step();
  datapath_.fail_retire["a"] = absl::InternalError("busy");
  reconciler.SetDesired({});
  reconciler.Step();
  EXPECT_EQ(reconciler.AttachedCount(), 1u);
  datapath_.fail_retire.clear();
  reconciler.Step();
  EXPECT_EQ(reconciler.AttachedCount(), 0u);
}

TEST_F(ReconcilerTest, AdoptedPodsThatAreWantedStayUntouched) {
  MakeCgroup("a");
  const PodTarget target = resolver_.Resolve(Pod("a")).value();
  datapath_.pods["a"].target = target;
  Reconciler reconciler(&datapath_, &resolver_);
  reconciler.SetDesired({Pod("a")});
  reconciler.Step();
  EXPECT_THAT(datapath_.calls, IsEmpty());
  EXPECT_EQ(StandingOf(reconciler, "a").state, PodState::kEnrolling);
}

}  // namespace
}  // namespace shunt
