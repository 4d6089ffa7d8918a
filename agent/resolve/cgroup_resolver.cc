// SPDX-License-Identifier: Apache-2.0
#include "agent/resolve/cgroup_resolver.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "agent/base/status.h"

namespace shunt {
namespace {

namespace fs = std::filesystem;

// kubelet's deepest form is /kubelet.slice/kubelet-kubepods.slice/<class>/<pod>.
constexpr int kMaxDepth = 6;

// Does the directory belong to this pod itself, not to a container in it? As
// the last word of a name: "kubepods-pod<uid>.slice", not "tripod<uid>".
bool NamesPod(absl::string_view directory, const std::string& marker) {
  absl::ConsumeSuffix(&directory, ".slice");
  if (!absl::ConsumeSuffix(&directory, marker)) {
    return false;
  }
  return directory.empty() || absl::EndsWith(directory, "-");
}

// Each directory is read by itself: others vanish under the search, and that
// must not end it.
std::string Search(const std::string& mount, const std::string& uid) {
  const std::string dashed = absl::StrCat("pod", uid);
  const std::string underscored = absl::StrCat("pod", absl::StrReplaceAll(uid, {{"-", "_"}}));
  std::vector<fs::path> level = {mount};
  for (int depth = 0; depth <= kMaxDepth; ++depth) {
    std::vector<fs::path> below;
    for (const fs::path& directory : level) {
      std::error_code error;
      fs::directory_iterator it(directory, error);
      for (; !error && it != fs::directory_iterator(); it.increment(error)) {
        std::error_code ignored;
        if (!it->is_directory(ignored) || it->is_symlink(ignored)) {
          continue;
        }
        const std::string name = it->path().filename().string();
        if (NamesPod(name, dashed) || NamesPod(name, underscored)) {
          return it->path().string();
        }
        below.push_back(it->path());
      }
    }
    level = std::move(below);
  }
  return "";
}

}  // namespace

absl::StatusOr<PodTarget> CgroupResolver::Resolve(const PodSpec& pod) const {
  PodTarget target;
  target.uid = pod.uid;
  target.ports = Normalized(pod.ports);
  target.cgroup = pod.cgroup.empty() ? Search(mount_, pod.uid) : pod.cgroup;
  if (target.cgroup.empty()) {
    return absl::NotFoundError(
        absl::StrCat("finding cgroup of pod ", pod.uid, ": no *pod", pod.uid, "* below ", mount_));
  }
  struct stat info;
  if (stat(target.cgroup.c_str(), &info) != 0) {
    return ErrnoStatus(errno, absl::StrCat("finding cgroup ", target.cgroup, " of pod ", pod.uid));
  }
  target.cgroup_id = info.st_ino;
  return target;
}

absl::Status CheckCgroup(const PodSpec& pod) {
  struct statfs info;
  if (pod.cgroup.empty() || statfs(pod.cgroup.c_str(), &info) != 0 ||
      static_cast<unsigned long>(info.f_type) == CGROUP2_SUPER_MAGIC) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("checking cgroup ", pod.cgroup, " of pod ", pod.uid,
                   ": not a cgroup v2 directory; name the one below the cgroup2 mount (often "
                   "/sys/fs/cgroup, or /sys/fs/cgroup/unified in hybrid mode)"));
}

absl::StatusOr<std::string> FindCgroup2Mount() {
  std::ifstream mounts("/proc/self/mountinfo");
  std::string line;
  while (std::getline(mounts, line)) {
    // 36 35 98:0 /root /mount/point options … - type source options
    const std::vector<std::string> halves = absl::StrSplit(line, " - ");
    if (halves.size() != 2 || !absl::StartsWith(halves[1], "cgroup2 ")) {
      continue;
    }
    const std::vector<std::string> fields = absl::StrSplit(halves[0], ' ');
    if (fields.size() > 4) {
      return fields[4];
    }
  }
  return absl::FailedPreconditionError(
      "finding cgroup v2: no cgroup2 mount in /proc/self/mountinfo; mount it into the agent "
      "(hostPath /sys/fs/cgroup)");
}

}  // namespace shunt
