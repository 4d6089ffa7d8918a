// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/leaver.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;

// Each pair stays a member for as many runs as it is given; the first closes gates.
class FakePairs : public LeavingPairs {
 public:
  std::map<uint32_t, int> runs_left;  // by client_next; absent: no such pair
  std::map<uint32_t, int> closes;     // runs that close a gate; absent: the first
  std::vector<std::string> calls;

  Run RunLeavePair(const shunt_end_key& key, bool grace_passed) override {
    calls.push_back(absl::StrCat("run ", key.client_next, grace_passed ? " after grace" : ""));
    const auto found = runs_left.find(key.client_next);
    if (found == runs_left.end() || found->second-- <= 0) {
      return {};
    }
    return {2, closes.try_emplace(key.client_next, 1).first->second-- > 0};
  }
  void InterruptCpus() override { calls.push_back("interrupt"); }
  Grace::Ticket AskGrace() override {
    calls.push_back("ask");
    return ++asked;
  }
  bool GracePassed(Grace::Ticket ticket) override { return ticket <= passed; }

  Grace::Ticket asked = 0;
  Grace::Ticket passed = 0;
};

shunt_end_key Key(uint32_t client_next, shunt_role role = SHUNT_CLIENT) {
  shunt_end_key key = {};
  key.client_next = client_next;
  key.role = role;
  return key;
}

class LeaverTest : public testing::Test {
 protected:
  FakePairs pairs_;
  Leaver leaver_{&pairs_};
  Leaver::Clock::time_point now_;
};

TEST_F(LeaverTest, HasNothingToDoAtFirst) {
  EXPECT_EQ(leaver_.Step(now_), std::nullopt);
  EXPECT_TRUE(pairs_.calls.empty());
}

TEST_F(LeaverTest, ClosesGatesThenInterruptsThenLooks) {
  pairs_.runs_left = {{1, 1}, {2, 1}};
  leaver_.Add(Key(1));
  leaver_.Add(Key(2));
  EXPECT_EQ(leaver_.Step(now_), std::nullopt);
  EXPECT_THAT(pairs_.calls,
              ElementsAre("interrupt", "run 1", "run 2", "interrupt", "run 1", "run 2"));
  EXPECT_EQ(leaver_.size(), 0u);
}

TEST_F(LeaverTest, TakesBothEndsOfAPairForOne) {
  pairs_.runs_left = {{1, 5}};
  leaver_.Add(Key(1, SHUNT_CLIENT));
  leaver_.Add(Key(1, SHUNT_SERVER));
  EXPECT_EQ(leaver_.size(), 1u);
}

// A program may have closed both gates just now.
TEST_F(LeaverTest, InterruptsBeforeTheFirstLookAtAPair) {
  leaver_.Add(Key(1));
  EXPECT_EQ(leaver_.Step(now_), std::nullopt);
  EXPECT_THAT(pairs_.calls, ElementsAre("interrupt", "run 1"));
}

// Its server joined after the first look.
TEST_F(LeaverTest, InterruptsAgainForAGateThatIsClosedLater) {
  pairs_.runs_left = {{1, 4}};
  pairs_.closes = {{1, 0}};
  leaver_.Add(Key(1));
  now_ += *leaver_.Step(now_);
  pairs_.closes = {{1, 1}};
  pairs_.calls.clear();
  EXPECT_EQ(leaver_.Step(now_), Leaver::kFirstLooks);
  EXPECT_THAT(pairs_.calls, ElementsAre("run 1", "interrupt", "run 1"));
}

TEST_F(LeaverTest, LooksAgainOnlyWhenDue) {
  pairs_.runs_left = {{1, 3}};
  leaver_.Add(Key(1));
  EXPECT_EQ(leaver_.Step(now_), Leaver::kFirstLooks);
  pairs_.calls.clear();
  EXPECT_EQ(leaver_.Step(now_ + Leaver::kFirstLooks / 2), Leaver::kFirstLooks / 2);
  EXPECT_TRUE(pairs_.calls.empty());
  EXPECT_EQ(leaver_.Step(now_ + Leaver::kFirstLooks), Leaver::kFirstLooks);
  EXPECT_EQ(leaver_.Step(now_ + 2 * Leaver::kFirstLooks), std::nullopt);
}

TEST_F(LeaverTest, AsksForOneGracePeriodForAPairThatStaysAndThenLooksMoreRarely) {
  pairs_.runs_left = {{1, 1'000'000}};
  leaver_.Add(Key(1));
  std::optional<Leaver::Microseconds> pause;
  for (unsigned look = 0; look < Leaver::kFirstLooksCount - 1; ++look) {
    pause = leaver_.Step(now_);
    ASSERT_EQ(pause, Leaver::kFirstLooks);
    now_ += *pause;
  }
  EXPECT_EQ(pairs_.asked, 0u);
  for (unsigned look = 0; look < 50; ++look) {
    now_ += *leaver_.Step(now_);
  }
  EXPECT_EQ(pairs_.asked, 1u);
  EXPECT_EQ(pairs_.calls.back(), "run 1");
  pairs_.passed = 1;
  EXPECT_EQ(leaver_.Step(now_), Leaver::kRarestLook);
  EXPECT_EQ(pairs_.calls.back(), "run 1 after grace");
}

}  // namespace
}  // namespace shunt
