// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/live_sockets.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <set>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "agent/base/log.h"
#include "agent/base/status.h"
#include "agent/base/unique_fd.h"
#include "agent/datapath/policy.h"
#include "live.skel.h"

namespace shunt {
namespace {

namespace fs = std::filesystem;

// A process of another pid namespace is "0" in cgroup.procs.
absl::Status CheckProcessesAreSeen(const std::string& cgroup) {
  std::error_code error;
  std::vector<fs::path> directories = {cgroup};
  for (fs::recursive_directory_iterator it(cgroup, error), end; !error && it != end;
       it.increment(error)) {
    if (it->is_directory(error)) {
      directories.push_back(it->path());
    }
  }
  for (const fs::path& directory : directories) {
    std::ifstream processes(directory / "cgroup.procs");
    for (long pid; processes >> pid;) {
      if (pid == 0) {
        return absl::FailedPreconditionError(
            absl::StrCat("processes of ", directory.string(),
                         " are in a pid namespace that the agent does not see: run it with "
                         "hostPID to have their older connections counted"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

void LiveSockets::SkeletonDeleter::operator()(struct ::live* skeleton) const {
  live__destroy(skeleton);
}

LiveSockets::LiveSockets(int socket_state) : loaded_(Load(socket_state)) {
  if (!loaded_.ok()) {
    log::Warning("connections older than the agent are not counted",
                 {{"reason", "live_before"}, {"err", std::string(loaded_.message())}});
  }
}

LiveSockets::~LiveSockets() = default;

absl::Status LiveSockets::Load(int socket_state) {
  skeleton_.reset(live__open());
  if (skeleton_ == nullptr) {
    return ErrnoStatus(errno, "opening BPF object");
  }
  struct bpf_map* map;
  bpf_object__for_each_map(map, skeleton_->obj) {
    if (map == skeleton_->maps.socket_state) {
      if (const int error = bpf_map__reuse_fd(map, socket_state); error != 0) {
        return ErrnoStatus(error, "reusing map socket_state");
      }
    } else if (!bpf_map__is_internal(map)) {
      bpf_map__set_autocreate(map, false);
    }
  }
  if (const int error = live__load(skeleton_.get()); error != 0) {
    return ErrnoStatus(error, "loading the iterator over descriptors");
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> LiveSockets::Count(const PodTarget& pod) {
  SHUNT_RETURN_IF_ERROR(loaded_, "");
  SHUNT_RETURN_IF_ERROR(CheckProcessesAreSeen(pod.cgroup), "");
  skeleton_->bss->target_cgroup = pod.cgroup_id;
  skeleton_->bss->target_policy = PolicyOf(0, SHUNT_MODE_ENROL, pod.ports);
  struct bpf_link* link = bpf_program__attach_iter(skeleton_->progs.shunt_live_sockets, nullptr);
  if (link == nullptr) {
    return ErrnoStatus(errno, "attaching the iterator over descriptors");
  }
  const UniqueFd iterator(bpf_iter_create(bpf_link__fd(link)));
  const int error = errno;
  bpf_link__destroy(link);
  if (!iterator.valid()) {
    return ErrnoStatus(error, "making the iterator over descriptors");
  }
  std::string bytes;
  char chunk[4096];
  for (;;) {
    const ssize_t got = read(iterator.get(), chunk, sizeof(chunk));
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      continue;  // it ran its budget of objects without output
    }
    if (got < 0) {
      return ErrnoStatus(errno, "iterating over descriptors");
    }
    if (got == 0) {
      break;
    }
    bytes.append(chunk, static_cast<size_t>(got));
  }
  // Once per socket, however many descriptors it has.
  std::set<std::string_view> sockets;
  for (size_t at = 0; at + sizeof(uint64_t) <= bytes.size(); at += sizeof(uint64_t)) {
    sockets.insert(std::string_view(bytes).substr(at, sizeof(uint64_t)));
  }
  return sockets.size();
}

LiveBefore LiveSockets::Report(const PodTarget& pod) {
  const absl::StatusOr<uint64_t> count = Count(pod);
  if (!count.ok()) {
    log::Info("connections that were there before: unknown",
              {{"pod_uid", pod.uid},
               {"reason", "live_before"},
               {"detail", std::string(count.status().message())}});
    return {std::nullopt, std::string(count.status().message())};
  }
  log::Info("connections that were there before stay on TCP",
            {{"pod_uid", pod.uid}, {"reason", "live_before"}, {"connections", *count}});
  return {*count, ""};
}

}  // namespace shunt
