// SPDX-License-Identifier: Apache-2.0
//
// The name of a listening unix socket in the file system: claimed, published
// when the listener is complete, and removed again. Not thread-safe.
#ifndef SHUNT_AGENT_OBSERVE_SOCKET_NAME_H_
#define SHUNT_AGENT_OBSERVE_SOCKET_NAME_H_

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/base/unique_fd.h"

namespace shunt {

class SocketName {
 public:
  // Makes the directory of `path` (0755) if it is missing, and keeps other
  // claimants of that directory out until Publish() or destruction.
  // ALREADY_EXISTS: somebody listens on `path`; FAILED_PRECONDITION: what is
  // there is not a socket, or another claim does not end.
  static absl::StatusOr<std::unique_ptr<SocketName>> Claim(const std::string& path);

  ~SocketName();  // Withdraws.
  SocketName(const SocketName&) = delete;
  SocketName& operator=(const SocketName&) = delete;

  // Where to bind: in a directory that nobody else can enter. Short, whatever
  // the length of `path`. Valid as long as this object.
  std::string BindPath() const;

  // What was bound and listens gets mode 0600 and its name, in place of the
  // dead socket that may be there.
  absl::Status Publish();

  // Removes the name, if it still is the published socket's. Idempotent.
  void Withdraw();

 private:
  SocketName() = default;

  absl::Status Lock();
  absl::Status RefuseIfTaken() const;
  absl::Status MakeNursery();

  std::string path_;
  std::string base_;  // last part of path_
  UniqueFd directory_;
  // A directory beside the name, 0700. Stays open after its removal: gRPC unlinks
  // BindPath() at the end, and a reused number would name another directory.
  UniqueFd nursery_;
  bool nursery_exists_ = false;
  dev_t device_ = 0;  // of the published socket
  ino_t inode_ = 0;   // 0: not published
};

}  // namespace shunt

#endif  // SHUNT_AGENT_OBSERVE_SOCKET_NAME_H_
