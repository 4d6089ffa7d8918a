// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/unix_socket.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "agent/base/status.h"

namespace shunt {

absl::Status CheckSocketPath(const std::string& path) {
  constexpr size_t kLongest = sizeof(sockaddr_un::sun_path) - 1;
  if (path.empty()) {
    return absl::InvalidArgumentError("the path of the socket is empty: give a path");
  }
  if (path.size() > kLongest) {
    return absl::InvalidArgumentError(absl::StrCat("socket path \"", path, "\" is ", path.size(),
                                                   " bytes long, the kernel allows ", kLongest,
                                                   ": choose a shorter one"));
  }
  if (path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("the path of the socket contains a zero byte: remove it");
  }
  if (path.back() == '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("socket path \"", path, "\" names a directory: add a file name"));
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> ConnectSocket(const std::string& path) {
  if (absl::Status status = CheckSocketPath(path); !status.ok()) {
    return status;
  }
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) {
    return ErrnoStatus(errno, "making a unix socket");
  }
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    switch (errno) {
      case ENOENT:
        return absl::NotFoundError("it does not exist");
      case ECONNREFUSED:
        return absl::UnavailableError("nobody listens on it");
      case EAGAIN:
        return absl::ResourceExhaustedError("too many wait for its listener already");
      default:
        return ErrnoStatus(errno, "connecting to it");
    }
  }
  return fd;
}

}  // namespace shunt
