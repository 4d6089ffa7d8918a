// SPDX-License-Identifier: Apache-2.0
#include "agent/probe/mounts.h"

#include "gtest/gtest.h"

namespace shunt {
namespace {

constexpr char kHybrid[] =
    "24 1 0:22 / /sys/fs/cgroup rw,relatime shared:5 - tmpfs tmpfs rw,mode=755\n"
    "25 24 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "26 24 0:24 / /sys/fs/cgroup/unified\\040here rw shared:7 master:1 - cgroup2 cgroup2 rw\n";

TEST(MountsTest, FindsAFileSystemByItsType) {
  EXPECT_EQ(MountIn(kHybrid, "cgroup"), "/sys/fs/cgroup/memory");
  EXPECT_EQ(MountIn(kHybrid, "cgroup2"), "/sys/fs/cgroup/unified here");
  EXPECT_EQ(MountIn(kHybrid, "bpf"), "");
}

TEST(MountsTest, LinesOfAnotherFormAreNothing) {
  EXPECT_EQ(MountIn("", "bpf"), "");
  EXPECT_EQ(MountIn("30 1 0:1 / /sys/fs/bpf rw", "bpf"), "");
  EXPECT_EQ(MountIn("30 1 0:1 / /sys/fs/bpf rw -", "bpf"), "");
}

TEST(MountsTest, TheRootOfThisMachineIsMounted) { EXPECT_EQ(MountOf("proc"), "/proc"); }

}  // namespace
}  // namespace shunt
