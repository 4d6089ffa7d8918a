// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/pins.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "agent/base/status.h"

namespace shunt {
namespace {

namespace fs = std::filesystem;

constexpr char kVersionDirectory[] = "v1";
constexpr char kFreshPrefix[] = "v1-new";
constexpr const char* kKinds[] = {"maps", "progs", "links", "options"};

absl::Status MakeDirectory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) {
    return absl::OkStatus();
  }
  const int error = errno;
  if (error == EROFS) {
    return absl::FailedPreconditionError(
        absl::StrCat("making pin directory ", path,
                     ": the file system is read-only; mount the bpffs read-write into the agent"));
  }
  return ErrnoStatus(error, absl::StrCat("making pin directory ", path));
}

// bpffs holds pins and directories only, so a plain recursive delete is enough.
absl::Status RemoveTree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) {
    return ErrnoStatus(error.value(), absl::StrCat("removing pin directory ", path));
  }
  return absl::OkStatus();
}

absl::Status CheckIsBpffs(const std::string& root) {
  fs::path existing = root;
  std::error_code ignored;
  while (!fs::exists(existing, ignored) && existing.has_relative_path()) {
    existing = existing.parent_path();
  }
  struct statfs info;
  if (statfs(existing.c_str(), &info) != 0) {
    return ErrnoStatus(errno, absl::StrCat("checking pin directory ", root));
  }
  if (static_cast<unsigned long>(info.f_type) != BPF_FS_MAGIC) {
    return absl::FailedPreconditionError(absl::StrCat(
        "checking pin directory ", root, ": ", existing.string(),
        " is not on a bpffs; mount one (mount -t bpf bpf /sys/fs/bpf) or set bpffs: to a "
        "directory below one"));
  }
  return absl::OkStatus();
}

}  // namespace

Pins::Pins(std::string root, UniqueFd lock)
    : root_(std::move(root)),
      live_(absl::StrCat(root_, "/", kVersionDirectory)),
      fresh_(absl::StrCat(root_, "/", kFreshPrefix)),
      lock_(std::move(lock)) {}

absl::StatusOr<Pins> Pins::Open(const std::string& root) {
  SHUNT_RETURN_IF_ERROR(CheckIsBpffs(root), "");
  SHUNT_RETURN_IF_ERROR(MakeDirectory(root), "");
  UniqueFd lock(open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock.valid()) {
    return ErrnoStatus(errno, absl::StrCat("opening pin directory ", root));
  }
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      return absl::AlreadyExistsError(
          absl::StrCat("locking pin directory ", root,
                       ": another agent of this node holds it; stop that one, or give this one "
                       "another bpffs: directory"));
    }
    return ErrnoStatus(errno, absl::StrCat("locking pin directory ", root));
  }
  Pins pins(root, std::move(lock));
  SHUNT_RETURN_IF_ERROR(RemoveTree(pins.fresh_), "removing an unfinished load");
  return pins;
}

bool Pins::Exists() const {
  std::error_code ignored;
  return fs::exists(live_, ignored);
}

absl::Status Pins::BeginNew() {
  SHUNT_RETURN_IF_ERROR(MakeDirectory(fresh_), "");
  for (const char* kind : kKinds) {
    SHUNT_RETURN_IF_ERROR(MakeDirectory(absl::StrCat(fresh_, "/", kind)), "");
  }
  return absl::OkStatus();
}

absl::Status Pins::PinNew(int fd, std::string_view kind, std::string_view name) {
  const std::string path = absl::StrCat(fresh_, "/", std::string(kind), "/", std::string(name));
  if (bpf_obj_pin(fd, path.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("pinning ", path));
  }
  return absl::OkStatus();
}

absl::Status Pins::PublishNew() {
  if (rename(fresh_.c_str(), live_.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("renaming ", fresh_, " to ", live_));
  }
  return absl::OkStatus();
}

std::string Pins::Path(std::string_view kind, std::string_view name) const {
  return absl::StrCat(live_, "/", std::string(kind), "/", std::string(name));
}

absl::StatusOr<UniqueFd> Pins::Get(std::string_view kind, std::string_view name) const {
  const std::string path = Path(kind, name);
  UniqueFd fd(bpf_obj_get(path.c_str()));
  if (!fd.valid()) {
    return ErrnoStatus(errno, absl::StrCat("opening pin ", path));
  }
  return fd;
}

absl::Status Pins::Pin(int fd, std::string_view kind, std::string_view name) {
  const std::string path = Path(kind, name);
  if (bpf_obj_pin(fd, path.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("pinning ", path));
  }
  return absl::OkStatus();
}

absl::Status Pins::Replace(int fd, std::string_view kind, std::string_view name) {
  // A pod uid may be any name, so the temporary one lives beside the kinds.
  const std::string temporary = absl::StrCat(live_, "/replacement");
  unlink(temporary.c_str());
  if (bpf_obj_pin(fd, temporary.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("pinning ", temporary));
  }
  const std::string path = Path(kind, name);
  if (rename(temporary.c_str(), path.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("renaming ", temporary, " to ", path));
  }
  return absl::OkStatus();
}

absl::Status Pins::Unpin(std::string_view kind, std::string_view name) {
  const std::string path = Path(kind, name);
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("removing pin ", path));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> Pins::List(std::string_view kind) const {
  const std::string directory = absl::StrCat(live_, "/", std::string(kind));
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) {
    return ErrnoStatus(error.value(), absl::StrCat("listing pins in ", directory));
  }
  return names;
}

absl::Status Pins::RemoveAll() { return RemoveTree(live_); }

}  // namespace shunt
