// SPDX-License-Identifier: Apache-2.0
#include "tests/support/environment.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/support/stop.h"

namespace shunt::test {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "shunt-test-";

std::string g_why_not;
std::string g_directory;
int g_counter = 0;

// Directories "shunt-test-<pid>-…" whose process is gone.
void RemoveLeftovers(const fs::path& parent) {
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(parent, ignored)) {
    const std::string name = entry.path().filename();
    if (name.rfind(kPrefix, 0) != 0) {
      continue;
    }
    const int pid = atoi(name.c_str() + strlen(kPrefix));
    if (pid <= 0 || kill(pid, 0) == 0 || errno != ESRCH) {
      continue;
    }
    for (const fs::directory_entry& child : fs::directory_iterator(entry.path(), ignored)) {
      rmdir(child.path().c_str());
    }
    rmdir(entry.path().c_str());
  }
}

std::string Prepare() {
  if (geteuid() != 0) {
    return "this test makes network namespaces, cgroups and BPF programs: run it as root";
  }
  const std::string root = CgroupRoot();
  if (root.empty()) {
    return "no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 none "
           "/sys/fs/cgroup/unified";
  }
  RemoveLeftovers(root);
  RemoveLeftovers("/run");
  std::string directory = std::string("/run/") + kPrefix + std::to_string(getpid());
  if (mkdir(directory.c_str(), 0755) != 0 && errno != EEXIST) {
    return "making " + directory + ": " + strerror(errno);
  }
  if (unshare(CLONE_NEWNS) != 0 || mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      mount("tmpfs", directory.c_str(), "tmpfs", 0, "mode=755") != 0) {
    return std::string("making a mount namespace with a tmpfs in it: ") + strerror(errno) +
           "; the test needs CAP_SYS_ADMIN";
  }
  g_directory = directory;
  return "";
}

void RaiseFileLimit() {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace

const std::string& WhyNotHere() { return g_why_not; }

std::string MakeTempDir(const std::string& name) {
  const std::string path = g_directory + "/" + name + "-" + std::to_string(++g_counter);
  if (mkdir(path.c_str(), 0755) != 0) {
    StopErrno(Where::Here(), "making " + path, errno);
  }
  return path;
}

PrivateBpffs::PrivateBpffs() : path_(MakeTempDir("bpffs")) {
  if (mount("bpf", path_.c_str(), "bpf", 0, nullptr) != 0) {
    StopErrno(Where::Here(), "mounting a bpffs on " + path_, errno);
  }
}

PrivateBpffs::~PrivateBpffs() { umount2(path_.c_str(), MNT_DETACH); }

void PrivateBpffs::Remount(bool read_only) {
  if (mount("bpf", path_.c_str(), "bpf", MS_REMOUNT | (read_only ? MS_RDONLY : 0), nullptr) != 0) {
    StopErrno(Where::Here(), "remounting " + path_, errno);
  }
}

std::string CgroupRoot() {
  // "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    const size_t separator = line.find(" - cgroup2 ");
    if (separator == std::string::npos) {
      continue;
    }
    std::istringstream fields(line);
    std::string skipped, path;
    fields >> skipped >> skipped >> skipped >> skipped >> path;
    return path;
  }
  return "";
}

std::string EnterEnvironment() {
  g_why_not = Prepare();
  RaiseFileLimit();
  return g_why_not;
}

void LeaveEnvironment() {
  if (!g_directory.empty()) {
    umount2(g_directory.c_str(), MNT_DETACH);
    rmdir(g_directory.c_str());
    g_directory.clear();
  }
}

}  // namespace shunt::test
