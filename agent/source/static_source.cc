// SPDX-License-Identifier: Apache-2.0
#include "agent/source/static_source.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/base/status.h"

namespace shunt {
namespace {

namespace fs = std::filesystem;

// An editor's or kubelet's replacement is several events within milliseconds.
constexpr std::chrono::milliseconds kSettle{50};
// A file that never rests is loaded all the same.
constexpr std::chrono::milliseconds kLongestSettle{1000};

// Not IN_MODIFY: a file that is still being written may parse, with pods missing
// at its end that would then be let go. Its writer's close tells when it is whole.
constexpr uint32_t kInterest = IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_CREATE |
                               IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;

// By directory: the names in it on the way from `path` to the file, its own and
// that of every symlink followed. Other names may change as they like: the
// agent's own log may be among them.
std::map<std::string, std::set<std::string>> NamesOf(const std::string& path) {
  std::map<std::string, std::set<std::string>> names;
  std::error_code error;
  fs::path at = fs::absolute(path, error);
  constexpr int kMaxLinks = 40;  // the kernel's own bound
  for (int links = 0; links < kMaxLinks; ++links) {
    // "..data" is a link in the middle of the path, and may lead to another.
    // What is missing, the file or a directory, is to be seen when it comes.
    fs::path up;
    auto part = at.begin();
    for (; part != at.end(); ++part) {
      up /= *part;
      if (fs::is_symlink(up, error) || !fs::exists(up, error)) {
        break;
      }
    }
    names[up.parent_path().string()].insert(up.filename().string());
    if (!fs::is_symlink(up, error)) {
      break;
    }
    fs::path next = up.parent_path() / fs::read_symlink(up, error);
    for (++part; part != at.end(); ++part) {
      next /= *part;
    }
    at = next;
  }
  return names;
}

}  // namespace

StaticSource::StaticSource(std::string path, Load load, Report report)
    : path_(std::move(path)), load_(std::move(load)), report_(std::move(report)) {}

StaticSource::~StaticSource() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    (void)!write(stop_.get(), &one, sizeof(one));
    thread_.join();
  }
}

absl::Status StaticSource::Start(Receive receive) {
  receive_ = std::move(receive);
  stop_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop_.valid()) {
    return ErrnoStatus(errno, "making an eventfd");
  }
  // Watch first: a change between load and watch would go unseen.
  SHUNT_RETURN_IF_ERROR(Watch(), "");
  SHUNT_ASSIGN_OR_RETURN(std::vector<PodSpec> pods, load_(), "");
  receive_(std::move(pods));
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

absl::Status StaticSource::Watch() {
  inotify_.Reset(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!inotify_.valid()) {
    return ErrnoStatus(errno, "making an inotify instance");
  }
  bool any = false;
  int error = ENOENT;
  names_.clear();
  for (const auto& [directory, names] : NamesOf(path_)) {
    const int watch = inotify_add_watch(inotify_.get(), directory.c_str(), kInterest);
    if (watch >= 0) {
      any = true;
      names_[watch].insert(names.begin(), names.end());
    } else {
      error = errno;
    }
  }
  return any ? absl::OkStatus() : ErrnoStatus(error, absl::StrCat("watching ", path_));
}

bool StaticSource::ReadEvents() {
  bool concerned = false;
  alignas(inotify_event) std::array<char, 8192> buffer;
  for (;;) {
    const ssize_t got = read(inotify_.get(), buffer.data(), buffer.size());
    if (got <= 0) {
      return concerned;
    }
    for (ssize_t at = 0; at < got;) {
      const auto* event = reinterpret_cast<const inotify_event*>(buffer.data() + at);
      at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
      // Without a name: a directory of the path itself, or lost events.
      concerned = concerned || event->len == 0 || names_[event->wd].count(event->name) != 0;
    }
  }
}

void StaticSource::Run() {
  using Clock = std::chrono::steady_clock;
  // When the file will have rested long enough to be loaded. Events of other
  // names do not move it: a busy neighbour would hold the load back for ever.
  std::optional<Clock::time_point> due;
  Clock::time_point latest;
  for (;;) {
    struct pollfd waits[] = {{stop_.get(), POLLIN, 0}, {inotify_.get(), POLLIN, 0}};
    int timeout_ms = -1;
    if (due.has_value()) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*due - Clock::now());
      timeout_ms = std::max(0, static_cast<int>(left.count()));
    }
    poll(waits, 2, timeout_ms);
    if (waits[0].revents != 0) {
      return;
    }
    if (waits[1].revents != 0 && ReadEvents()) {
      const Clock::time_point now = Clock::now();
      latest = due.has_value() ? latest : now + kLongestSettle;
      due = std::min(now + kSettle, latest);
    }
    if (!due.has_value() || Clock::now() < *due) {
      continue;
    }
    due.reset();
    // The links may lead elsewhere now.
    if (absl::Status status = Watch(); !status.ok()) {
      report_(status);
    }
    absl::StatusOr<std::vector<PodSpec>> pods = load_();
    report_(pods.status());
    if (pods.ok()) {
      receive_(*std::move(pods));
    }
  }
}

}  // namespace shunt
