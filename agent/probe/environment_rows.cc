// SPDX-License-Identifier: Apache-2.0
//
// Where the agent stands: its capabilities, the cgroup hierarchy, the bpffs,
// and other programs that meddle with the same sockets.
#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/base/unique_fd.h"
#include "agent/probe/capability.h"
#include "agent/probe/mounts.h"
#include "agent/probe/row.h"
#include "agent/probe/tiny_program.h"

namespace shunt {
namespace {

// ---- capabilities -----------------------------------------------------------

// 0, or the errno of what is tried.
using Attempt = int (*)();

int MakeSockhash() {
  const UniqueFd map(bpf_map_create(BPF_MAP_TYPE_SOCKHASH, "probe_tiny", sizeof(__u64),
                                    sizeof(__u64), 1, nullptr));
  return map.valid() ? 0 : errno;
}

int LoadSkMsg() {
  return LoadTiny({BPF_PROG_TYPE_SK_MSG, BPF_SK_MSG_VERDICT, 0, Return(SK_PASS)}).error;
}

int LoadKernelRead() {
  return LoadTiny({BPF_PROG_TYPE_SK_MSG, BPF_SK_MSG_VERDICT, 0,
                   Concat({StoreOnStack(-8, 0), StackAddress(BPF_REG_1, -8), Set(BPF_REG_2, 8),
                           Set(BPF_REG_3, 0), Call(BPF_FUNC_probe_read_kernel), Return(SK_PASS)})})
      .error;
}

// Whether it is held, and what the kernel refuses without it.
Probe Capability(int capability, const char* what, Attempt attempt) {
  return [=](const ProbeContext&) -> Finding {
    const bool held = Holds(capability);
    const bool stands_in = !held && Holds(CAP_SYS_ADMIN);
    int error = 0;
    const bool tried = RunWithout({capability, CAP_SYS_ADMIN}, [&] { error = attempt(); });
    std::string happened = held        ? "held"
                           : stands_in ? "not held, but CAP_SYS_ADMIN stands for it"
                                       : "not held";
    if (tried) {
      absl::StrAppend(&happened, "; without it ", what, " is ",
                      error == 0 ? "allowed" : absl::StrCat("refused (", Errno(error), ")"));
    }
    return {held || stands_in || (tried && error == 0) ? Found::kAsWanted : Found::kOtherwise,
            happened};
  };
}

// ---- mounts -------------------------------------------------------------------

Finding CgroupMode(const ProbeContext&) {
  const std::string unified = MountOf("cgroup2");
  const bool legacy = !MountOf("cgroup").empty();
  if (unified.empty()) {
    return {Found::kOtherwise, legacy ? "v1 only: no cgroup2 file system is mounted"
                                      : "no cgroup file system is mounted"};
  }
  return {Found::kAsWanted, absl::StrCat(legacy ? "hybrid: v1, and v2 at " : "v2 at ", unified)};
}

Finding BpfFileSystem(const ProbeContext&) {
  const std::string mount = MountOf("bpf");
  if (mount.empty()) {
    return {Found::kOtherwise, "no bpf file system is mounted"};
  }
  struct statvfs info = {};
  if (statvfs(mount.c_str(), &info) != 0) {
    return {Found::kOtherwise, absl::StrCat(mount, ": ", Errno(errno))};
  }
  return (info.f_flag & ST_RDONLY) != 0
             ? Finding{Found::kOtherwise, absl::StrCat(mount, " is mounted read-only")}
             : Finding{Found::kAsWanted, absl::StrCat("mounted at ", mount)};
}

// ---- other owners ---------------------------------------------------------------

// Shunt's programs, of any agent and any doctor.
bool IsOurs(const std::string& name) {
  return absl::StartsWith(name, "shunt_") || absl::StartsWith(name, "probe_");
}

// Nothing if it has gone meanwhile; otherwise an errno says why not.
struct ProgramInfo {
  int error = 0;
  enum bpf_prog_type type = BPF_PROG_TYPE_UNSPEC;
  std::string name;
};

std::optional<ProgramInfo> InfoOf(__u32 id) {
  ProgramInfo program;
  const UniqueFd fd(bpf_prog_get_fd_by_id(id));
  if (!fd.valid()) {
    program.error = errno;
    return errno == ENOENT ? std::nullopt : std::optional<ProgramInfo>(program);
  }
  struct bpf_prog_info info = {};
  __u32 size = sizeof(info);
  if (bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0) {
    program.error = errno;
    return program;
  }
  program.type = static_cast<enum bpf_prog_type>(info.type);
  program.name = info.name;
  return program;
}

std::string Named(__u32 id, const std::string& name) {
  return absl::StrCat(name.empty() ? "a program without a name" : name, " (id ", id, ")");
}

Finding OwnersOfSockOps(const ProbeContext& context) {
  std::vector<std::string> cgroups = context.options->cgroups;
  const size_t pods = cgroups.size();
  if (const std::string root = MountOf("cgroup2"); !root.empty()) {
    cgroups.push_back(root);  // its programs are those of every pod
  }
  std::set<std::string> others;
  size_t asked = 0;
  int refused = 0;
  for (const std::string& cgroup : cgroups) {
    const UniqueFd fd(open(cgroup.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    std::array<__u32, 64> ids = {};
    __u32 count = ids.size();
    __u32 flags = 0;
    if (!fd.valid() || bpf_prog_query(fd.get(), BPF_CGROUP_SOCK_OPS, BPF_F_QUERY_EFFECTIVE, &flags,
                                      ids.data(), &count) != 0) {
      refused = errno;
      continue;
    }
    ++asked;
    for (__u32 i = 0; i < count; ++i) {
      const std::optional<ProgramInfo> program = InfoOf(ids[i]);
      if (program && program->error != 0) {
        others.insert(absl::StrCat("a program of unknown name (id ", ids[i], ") on ", cgroup));
      } else if (program && !IsOurs(program->name)) {
        others.insert(absl::StrCat(Named(ids[i], program->name), " on ", cgroup));
      }
    }
  }
  if (asked == 0) {
    return {Found::kNotHere, refused == 0 ? "no cgroup v2 is mounted here"
                                          : absl::StrCat("asking a cgroup: ", Errno(refused))};
  }
  if (!others.empty()) {
    return {Found::kOtherwise, absl::StrJoin(others, "; ")};
  }
  return {Found::kAsWanted,
          absl::StrCat("none on ", pods, " pod cgroups and the root of the tree",
                       asked < cgroups.size() ? "; some could not be asked" : "")};
}

Finding OwnersOfSockmaps(const ProbeContext&) {
  constexpr int kMost = 10000;
  const auto kind = [](enum bpf_prog_type type) -> const char* {
    switch (type) {
      case BPF_PROG_TYPE_SK_MSG:
        return "sk_msg";
      case BPF_PROG_TYPE_SK_SKB:
        return "sk_skb";
      case BPF_PROG_TYPE_SOCK_OPS:
        return "sock_ops";
      default:
        return nullptr;
    }
  };
  std::vector<std::string> others;
  int seen = 0;
  for (__u32 id = 0; seen < kMost && bpf_prog_get_next_id(id, &id) == 0; ++seen) {
    const std::optional<ProgramInfo> program = InfoOf(id);
    if (!program) {
      continue;
    }
    if (program->error != 0) {
      return {Found::kNotHere, absl::StrCat("looking at other programs needs CAP_SYS_ADMIN: ",
                                            Errno(program->error))};
    }
    const char* type = kind(program->type);
    if (type != nullptr && !IsOurs(program->name)) {
      others.push_back(absl::StrCat(type, " ", Named(id, program->name)));
    }
  }
  if (seen == 0 && errno != ENOENT) {
    return {Found::kNotHere, absl::StrCat("listing programs needs CAP_SYS_ADMIN: ", Errno(errno))};
  }
  return others.empty()
             ? Finding{Found::kAsWanted, absl::StrCat("none among the node's ", seen, " programs")}
             : Finding{Found::kOtherwise, absl::StrJoin(others, "; ")};
}

}  // namespace

std::vector<Row> EnvironmentRows() {
  return {
      {"cap_bpf", "", ProbeScope::kEssential, kProbeFatal, "making a sockhash without CAP_BPF",
       "maps can be made", "maps cannot be made",
       "give the agent CAP_BPF (in a container: securityContext.capabilities.add)",
       Capability(CAP_BPF, "making a sockhash", MakeSockhash), false},
      {"cap_net_admin", "", ProbeScope::kEssential, kProbeFatal,
       "loading an sk_msg program without CAP_NET_ADMIN",
       "network programs can be loaded and attached",
       "network programs cannot be loaded, nor attached to cgroups",
       "give the agent CAP_NET_ADMIN (in a container: securityContext.capabilities.add)",
       Capability(CAP_NET_ADMIN, "loading an sk_msg program", LoadSkMsg), false},
      {"cap_perfmon", "", ProbeScope::kEssential, kProbeFatal,
       "loading a program that reads kernel memory without CAP_PERFMON",
       "the peer's state can be read, and tracepoints watched",
       "the peer's state cannot be read: the engine could not tell when redirecting is safe",
       "give the agent CAP_PERFMON (in a container: securityContext.capabilities.add)",
       Capability(CAP_PERFMON, "loading a program that reads kernel memory", LoadKernelRead),
       false},
      {"cgroup_mode", "", ProbeScope::kAll, kProbeDegraded,
       "looking for cgroup file systems in /proc/self/mountinfo", "pods can be attached",
       "no pod can be attached: nothing would be accelerated",
       "mount cgroup v2 and let the agent's container see it (mount -t cgroup2 none "
       "/sys/fs/cgroup/unified); where the node boots with v1 only, boot it with "
       "systemd.unified_cgroup_hierarchy=1",
       CgroupMode, false},
      {"bpffs", "", ProbeScope::kAll, kProbeDegraded,
       "looking for a bpf file system in /proc/self/mountinfo",
       "connections stay accelerated while the agent restarts",
       "there is no place for pins: the engine cannot be opened",
       "mount one (mount -t bpf bpf /sys/fs/bpf) and let the agent's container see it read-write",
       BpfFileSystem, false},
      {"sock_ops_owners", "", ProbeScope::kAll, kProbeDegraded,
       "asking the pods' cgroups and the root for their effective sock_ops programs",
       "nobody else handles these pods' connections",
       "another program handles the same connections: sockets that it enters into a sockmap of its "
       "own stay on TCP here (counted as other_owner)",
       "see whose it is (bpftool cgroup tree); let only one accelerator handle a pod",
       OwnersOfSockOps, false},
      {"sockmap_owners", "", ProbeScope::kAll, kProbeDegraded,
       "looking through the node's programs for sk_msg, sk_skb and sock_ops",
       "nobody else uses sockmaps on this node",
       "another program uses sockmaps on this node: a socket belongs to the first that takes it, "
       "and stays on TCP here if that is the other (counted as other_owner)",
       "see whose it is (bpftool prog show); let only one accelerator handle a pod",
       OwnersOfSockmaps, false},
  };
}

}  // namespace shunt
