// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/workload_memory.h"

#include <unistd.h>

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class WorkloadMemoryTest : public testing::Test {
 protected:
  ~WorkloadMemoryTest() override { unlink(path_.c_str()); }

  void WriteFile(const std::string& text) { std::ofstream(path_) << text; }

  const std::string path_ = absl::StrCat(testing::TempDir(), "/workloads-", getpid(), ".json");
  const KnownWorkload clean_{"a", 80, 0, "wrk", "nginx"};
  const KnownWorkload hazard_{"b", 443, SHUNT_HAZARD_SPLICE | SHUNT_HAZARD_ULP, "wrk", "haproxy"};
};

TEST_F(WorkloadMemoryTest, KeepsWhatItIsTold) {
  WorkloadMemory(path_).Remember(clean_);
  WorkloadMemory(path_).Remember(hazard_);
  const WorkloadMemory memory(path_);
  EXPECT_THAT(memory.OfPod("a"), ElementsAre(clean_));
  EXPECT_THAT(memory.OfPod("b"), ElementsAre(hazard_));
  EXPECT_THAT(memory.OfPod("c"), IsEmpty());
}

TEST_F(WorkloadMemoryTest, TheLastWordOnAPortCounts) {
  WorkloadMemory memory(path_);
  memory.Remember(clean_);
  KnownWorkload now = clean_;
  now.hazards = SHUNT_HAZARD_OOB;
  memory.Remember(now);
  EXPECT_THAT(memory.OfPod("a"), ElementsAre(now));
}

TEST_F(WorkloadMemoryTest, KnowsAWorkloadByItsPrograms) {
  WorkloadMemory memory(path_);
  memory.Remember(hazard_);
  EXPECT_EQ(memory.HazardsOf(443, "wrk", "haproxy"), hazard_.hazards);
  EXPECT_EQ(memory.HazardsOf(443, "wrk", "nginx"), 0u);
  EXPECT_EQ(memory.HazardsOf(80, "wrk", "haproxy"), 0u);
}

TEST_F(WorkloadMemoryTest, ForgetsTheOldest) {
  WorkloadMemory memory("");
  for (unsigned i = 0; i <= WorkloadMemory::kRemembered; ++i) {
    KnownWorkload workload = clean_;
    workload.pod_uid = absl::StrCat(i);
    memory.Remember(workload);
  }
  EXPECT_THAT(memory.OfPod("0"), IsEmpty());
  EXPECT_THAT(memory.OfPod("1"), testing::SizeIs(1));
}

TEST_F(WorkloadMemoryTest, AFileThatCannotBeReadIsNoMemory) {
  for (
      const char* text :
      {"", "{", "[]", R"({"version":1})", R"({"version":1,"workloads":[{"pod":1}]})",
       R"({"version":1,"workloads":[{"pod":"a","port":"x","hazards":[],"client":"","server":""}]})",
       R"({"version":2,"workloads":[]})"}) {
    WriteFile(text);
    WorkloadMemory memory(path_);
    EXPECT_THAT(memory.OfPod("a"), IsEmpty()) << text;
    memory.Remember(clean_);
    EXPECT_THAT(WorkloadMemory(path_).OfPod("a"), ElementsAre(clean_)) << text;
  }
}

}  // namespace
}  // namespace shunt
