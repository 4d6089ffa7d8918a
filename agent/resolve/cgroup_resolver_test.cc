// SPDX-License-Identifier: Apache-2.0
#include "agent/resolve/cgroup_resolver.h"

#include <stdlib.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kUid[] = "8e2c5a3e-0f5b-4a55-9d5d-0a4a3c1b2d3e";
constexpr char kUnderscored[] = "8e2c5a3e_0f5b_4a55_9d5d_0a4a3c1b2d3e";
constexpr char kOtherUid[] = "11111111-2222-4333-8444-555555555555";
constexpr char kContainer[] = "3f2e1d0c9b8a79685746352413021f0e";

// Plain directories in the place of the cgroup tree.
class CgroupResolverTest : public ::testing::Test {
 protected:
  CgroupResolverTest() {
    std::string name = testing::TempDir() + "cgroup_resolver_test.XXXXXX";
    mount_ = mkdtemp(name.data());
  }
  ~CgroupResolverTest() override { fs::remove_all(mount_); }

  std::string Make(const std::string& below) {
    fs::create_directories(mount_ + "/" + below);
    return mount_ + "/" + below;
  }

  absl::StatusOr<PodTarget> Resolve(const std::string& uid, const std::string& cgroup = "") {
    return CgroupResolver(mount_).Resolve({uid, cgroup, {{80, 80}}, std::nullopt});
  }

  // The directory, or the error.
  std::string Find(const std::string& uid) {
    const absl::StatusOr<PodTarget> target = Resolve(uid);
    return target.ok() ? target->cgroup : target.status().ToString();
  }

  std::string mount_;
};

TEST_F(CgroupResolverTest, TakesTheDirectoryThatThePodNames) {
  Make(absl::StrCat("kubepods/pod", kUid));
  const std::string named = Make("elsewhere/demo");
  const absl::StatusOr<PodTarget> target = Resolve(kUid, named);
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ(target->cgroup, named);
}

TEST_F(CgroupResolverTest, TheIdIsTheInode) {
  const std::string directory = Make(absl::StrCat("kubepods/pod", kUid));
  struct stat info;
  ASSERT_EQ(stat(directory.c_str(), &info), 0);
  const absl::StatusOr<PodTarget> found = Resolve(kUid);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->cgroup_id, info.st_ino);
  const absl::StatusOr<PodTarget> named = Resolve("any", directory);
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ(named->cgroup_id, info.st_ino);
}

TEST_F(CgroupResolverTest, CarriesUidAndNormalizedPorts) {
  const std::string directory = Make("demo");
  const absl::StatusOr<PodTarget> target = CgroupResolver(mount_).Resolve(
      {"demo", directory, {{90, 90}, {80, 85}, {84, 89}}, std::nullopt});
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ(target->uid, "demo");
  EXPECT_THAT(target->ports, ElementsAre(PortRange{80, 90}));
}

TEST_F(CgroupResolverTest, FindsTheNamesOfTheCgroupfsDriver) {
  Make(absl::StrCat("kubepods/burstable/pod", kOtherUid));
  const std::string burstable = Make(absl::StrCat("kubepods/burstable/pod", kUid));
  EXPECT_EQ(Find(kUid), burstable);
  fs::remove(burstable);
  const std::string guaranteed = Make(absl::StrCat("kubepods/pod", kUid));
  EXPECT_EQ(Find(kUid), guaranteed);
}

TEST_F(CgroupResolverTest, FindsTheNamesOfTheSystemdDriver) {
  const std::string pod = Make(absl::StrCat(
      "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod", kUnderscored, ".slice"));
  EXPECT_EQ(Find(kUid), pod);
}

TEST_F(CgroupResolverTest, FindsTheNamesInAKindNode) {
  const std::string systemd =
      Make(absl::StrCat("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/",
                        "kubelet-kubepods-besteffort-pod", kUnderscored, ".slice"));
  EXPECT_EQ(Find(kUid), systemd);
  const std::string cgroupfs = Make(absl::StrCat("kubelet/kubepods/besteffort/pod", kOtherUid));
  EXPECT_EQ(Find(kOtherUid), cgroupfs);
}

TEST_F(CgroupResolverTest, ChoosesThePodAndNoContainerInIt) {
  const std::string systemd = absl::StrCat("kubepods.slice/kubepods-pod", kUnderscored, ".slice");
  Make(absl::StrCat(systemd, "/cri-containerd-", kContainer, ".scope"));
  Make(absl::StrCat(systemd, "/crio-pod", kUnderscored, ".scope"));
  EXPECT_EQ(Find(kUid), mount_ + "/" + systemd);
  Make(absl::StrCat("other/pod", kOtherUid, ".scope"));
  Make(absl::StrCat("other/pod", kOtherUid, "-", kContainer));
  EXPECT_THAT(Find(kOtherUid), HasSubstr("NOT_FOUND"));
}

TEST_F(CgroupResolverTest, AUidMayBePartOfAnothers) {
  Make("kubepods/pod12345");
  Make("kubepods.slice/kubepods-pod12345.slice");
  Make("kubepods/pod0123");
  EXPECT_THAT(Find("123"), HasSubstr("NOT_FOUND"));
  const std::string pod = Make("kubepods/pod123");
  EXPECT_EQ(Find("123"), pod);
}

TEST_F(CgroupResolverTest, PodMustBeginAWord) {
  Make("kubepods/burstable");
  Make("kubepods.slice");
  Make("system.slice/tripod7");
  EXPECT_THAT(Find("s"), HasSubstr("NOT_FOUND"));
  EXPECT_THAT(Find("7"), HasSubstr("NOT_FOUND"));
  const std::string pod = Make("kubepods.slice/kubepods-pods.slice");
  EXPECT_EQ(Find("s"), pod);
}

TEST_F(CgroupResolverTest, FilesAndLinksAreNoCgroups) {
  std::ofstream(absl::StrCat(mount_, "/pod", kUid)) << "";
  fs::create_directory_symlink(Make("real"), absl::StrCat(mount_, "/pod", kOtherUid));
  EXPECT_THAT(Find(kUid), HasSubstr("NOT_FOUND"));
  EXPECT_THAT(Find(kOtherUid), HasSubstr("NOT_FOUND"));
}

TEST_F(CgroupResolverTest, NotFoundSaysWhereItWasSoughtAndForWhom) {
  Make("kubepods/burstable");
  const absl::Status sought = Resolve(kUid).status();
  EXPECT_EQ(sought.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(sought.message(),
            absl::StrCat("finding cgroup of pod ", kUid, ": no *pod", kUid, "* below ", mount_));
  const absl::Status named = Resolve(kUid, mount_ + "/gone").status();
  EXPECT_EQ(named.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(named.message(), absl::StrCat("finding cgroup ", mount_, "/gone of pod ", kUid,
                                          ": No such file or directory"));
  EXPECT_EQ(CgroupResolver(mount_ + "/none").Resolve({kUid, "", {}, {}}).status().code(),
            absl::StatusCode::kNotFound);
}

// Containers come and go in the tree while a pod is sought in it.
TEST_F(CgroupResolverTest, FindsAPodWhileOthersVanish) {
  const std::string pod = Make(absl::StrCat("z/pod", kUid));
  std::atomic<bool> done{false};
  std::thread churn([&] {
    while (!done) {
      for (int i = 0; i < 16; ++i) {
        Make(absl::StrCat("busy", i, "/a/b"));
      }
      for (int i = 0; i < 16; ++i) {
        fs::remove_all(absl::StrCat(mount_, "/busy", i));
      }
    }
  });
  for (int round = 0; round < 2000 && !HasFailure(); ++round) {
    EXPECT_EQ(Find(kUid), pod);
  }
  done = true;
  churn.join();
}

TEST(FindCgroup2Mount, NamesACgroup2MountOrSaysThatThereIsNone) {
  const absl::StatusOr<std::string> mount = FindCgroup2Mount();
  if (mount.ok()) {
    EXPECT_TRUE(fs::exists(*mount + "/cgroup.controllers")) << *mount;
  } else {
    EXPECT_EQ(mount.status().code(), absl::StatusCode::kFailedPrecondition);
  }
}

}  // namespace
}  // namespace shunt
