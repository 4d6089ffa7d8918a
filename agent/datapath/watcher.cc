// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/watcher.h"

#include <bpf/libbpf.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/base/log.h"
#include "agent/base/status.h"

namespace shunt {

void Watcher::LinkDeleter::operator()(struct ::bpf_link* link) const { bpf_link__destroy(link); }

Watcher::Watcher(std::vector<struct ::bpf_program*> programs) : programs_(std::move(programs)) {}

Watcher::~Watcher() = default;

absl::Status Watcher::Watch(Clock::time_point now) {
  until_ = now + kWatch;
  if (attached()) {
    return absl::OkStatus();
  }
  for (const struct ::bpf_program* program : programs_) {
    struct bpf_link* link = bpf_program__attach(program);
    if (link == nullptr) {
      const int error = errno;
      links_.clear();
      return ErrnoStatus(error, absl::StrCat("attaching ", bpf_program__name(program)));
    }
    links_.emplace_back(link);
  }
  if (attached()) {
    log::Info("watching what new workloads do", {{"reason", "workload_new"}});
  }
  return absl::OkStatus();
}

std::optional<Watcher::Clock::duration> Watcher::Step(Clock::time_point now) {
  if (!attached()) {
    return std::nullopt;
  }
  if (now < until_) {
    return until_ - now;
  }
  links_.clear();
  log::Info("watching ends", {{"reason", "workloads_known"}});
  return std::nullopt;
}

}  // namespace shunt
