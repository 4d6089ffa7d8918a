// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/socket_name.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "agent/base/status.h"
#include "agent/observe/unix_socket.h"

namespace shunt {
namespace {

constexpr char kBound[] = "s";  // the socket's name in the nursery

constexpr std::chrono::milliseconds kLockPatience{2000};
constexpr std::chrono::milliseconds kLockLook{20};

std::string NurseryName(const std::string& base) { return absl::StrCat(".", base, ".new"); }

absl::Status MakeDirectories(const std::filesystem::path& directory) {
  std::filesystem::path made;
  for (const std::filesystem::path& part : directory) {
    made /= part;
    if (mkdir(made.c_str(), 0755) != 0 && errno != EEXIST) {
      return ErrnoStatus(errno, absl::StrCat("making directory ", made.string()));
    }
  }
  return absl::OkStatus();
}

std::string PeerOf(const UniqueFd& fd) {
  ucred peer{};
  socklen_t length = sizeof(peer);
  if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 || peer.pid <= 0) {
    return "another agent";  // pid 0: it runs in a pid namespace we cannot see
  }
  return absl::StrCat("another agent (pid ", peer.pid, ")");
}

}  // namespace

absl::StatusOr<std::unique_ptr<SocketName>> SocketName::Claim(const std::string& path) {
  if (absl::Status status = CheckSocketPath(path); !status.ok()) {
    return status;
  }
  auto name = absl::WrapUnique(new SocketName);
  name->path_ = path;
  name->base_ = std::filesystem::path(path).filename();
  std::filesystem::path directory = std::filesystem::path(path).parent_path();
  if (directory.empty()) {
    directory = ".";
  }
  if (absl::Status status = MakeDirectories(directory); !status.ok()) {
    return status;
  }
  name->directory_.Reset(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!name->directory_.valid()) {
    return ErrnoStatus(errno, absl::StrCat("opening directory ", directory.string()));
  }
  if (absl::Status status = name->Lock(); !status.ok()) {
    return status;
  }
  if (absl::Status status = name->RefuseIfTaken(); !status.ok()) {
    return status;
  }
  if (absl::Status status = name->MakeNursery(); !status.ok()) {
    return status;
  }
  return name;
}

SocketName::~SocketName() {
  if (nursery_exists_) {
    unlinkat(nursery_.get(), kBound, 0);
    unlinkat(directory_.get(), NurseryName(base_).c_str(), AT_REMOVEDIR);
  }
  Withdraw();
}

void SocketName::Withdraw() {
  struct stat found {};
  if (inode_ != 0 && fstatat(directory_.get(), base_.c_str(), &found, AT_SYMLINK_NOFOLLOW) == 0 &&
      found.st_dev == device_ && found.st_ino == inode_) {
    unlinkat(directory_.get(), base_.c_str(), 0);
  }
  inode_ = 0;
}

// Two agents that start together could both find a dead socket and both replace
// it. The lock ends with its holder, also when that is killed.
absl::Status SocketName::Lock() {
  const auto give_up = std::chrono::steady_clock::now() + kLockPatience;
  while (flock(directory_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) {
      return ErrnoStatus(errno, absl::StrCat("locking the directory of ", path_));
    }
    if (std::chrono::steady_clock::now() >= give_up) {
      return absl::FailedPreconditionError(absl::StrCat(
          "locking the directory of ", path_, ": another process has held it for ",
          kLockPatience.count(), " ms: find it with lslocks, or choose another directory"));
    }
    std::this_thread::sleep_for(kLockLook);
  }
  return absl::OkStatus();
}

absl::Status SocketName::RefuseIfTaken() const {
  struct stat found {};
  if (fstatat(directory_.get(), base_.c_str(), &found, AT_SYMLINK_NOFOLLOW) != 0) {
    return errno == ENOENT ? absl::OkStatus()
                           : ErrnoStatus(errno, absl::StrCat("looking at ", path_));
  }
  if (!S_ISSOCK(found.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(
        path_, " exists and is not a socket: remove it, or set admin.socket to another path"));
  }
  const absl::StatusOr<UniqueFd> fd = ConnectSocket(path_);
  if (fd.ok()) {
    return absl::AlreadyExistsError(
        absl::StrCat(PeerOf(*fd), " answers on ", path_,
                     ": stop it first, or set admin.socket to another path"));
  }
  switch (fd.status().code()) {
    case absl::StatusCode::kUnavailable:  // its listener is gone
    case absl::StatusCode::kNotFound:     // was removed just now
      return absl::OkStatus();
    case absl::StatusCode::kResourceExhausted:
      return absl::AlreadyExistsError(
          absl::StrCat("another agent listens on ", path_,
                       ": stop it first, or set admin.socket to another path"));
    default:
      return Annotate(fd.status(), absl::StrCat("asking who listens on ", path_));
  }
}

absl::Status SocketName::MakeNursery() {
  const std::string nursery = NurseryName(base_);
  const std::string what = absl::StrCat("making directory ", nursery, " beside ", path_);
  if (mkdirat(directory_.get(), nursery.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, what);
  }
  nursery_.Reset(
      openat(directory_.get(), nursery.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat found {};
  if (!nursery_.valid() || fstat(nursery_.get(), &found) != 0) {
    return ErrnoStatus(errno, what);
  }
  if (found.st_uid != geteuid() || (found.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": it exists and others may enter it: remove it"));
  }
  nursery_exists_ = true;
  if (unlinkat(nursery_.get(), kBound, 0) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("emptying directory ", nursery, " beside ", path_));
  }
  return absl::OkStatus();
}

std::string SocketName::BindPath() const {
  return absl::StrCat("/proc/self/fd/", nursery_.get(), "/", kBound);
}

absl::Status SocketName::Publish() {
  struct stat bound {};
  if (fchmodat(nursery_.get(), kBound, 0600, 0) != 0 ||
      fstatat(nursery_.get(), kBound, &bound, AT_SYMLINK_NOFOLLOW) != 0 ||
      renameat(nursery_.get(), kBound, directory_.get(), base_.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("giving the socket its name ", path_));
  }
  device_ = bound.st_dev;
  inode_ = bound.st_ino;
  unlinkat(directory_.get(), NurseryName(base_).c_str(), AT_REMOVEDIR);
  nursery_exists_ = false;
  flock(directory_.get(), LOCK_UN);
  return absl::OkStatus();
}

}  // namespace shunt
