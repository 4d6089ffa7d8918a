// SPDX-License-Identifier: Apache-2.0
#include "tests/support/pod.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "tests/support/environment.h"

namespace shunt::test {
namespace {

int g_pods = 0;

bool EnterCgroup(const std::string& cgroup) {
  UniqueFd file(open((cgroup + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
  return file.valid() && write(file.get(), "0", 1) == 1;
}

// One answer: four bytes (0 or an errno), and on success a descriptor.
bool SendSocket(int control, int error, int fd) {
  struct iovec data = {&error, sizeof(error)};
  alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
  struct msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (error == 0) {
    message.msg_control = space;
    message.msg_controllen = sizeof(space);
    struct cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  return sendmsg(control, &message, MSG_NOSIGNAL) >= 0;
}

int ServeSockets(int control, const NetnsToken& netns, const std::string& cgroup) {
  const int entered = netns.Enter() && EnterCgroup(cgroup) ? 0 : errno;
  // What the test holds open by now is not this process's to keep open.
  dup2(control, 3);
  control = 3;
  close_range(4, ~0U, 0);
  if (!SendSocket(control, entered, control) || entered != 0) {
    return 1;
  }
  int family = 0;
  while (recv(control, &family, sizeof(family), 0) == sizeof(family)) {
    UniqueFd made(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!SendSocket(control, made.valid() ? 0 : errno, made.get())) {
      return 1;
    }
  }
  return 0;
}

UniqueFd ReceiveSocket(int control, const Where& where) {
  int error = 0;
  struct iovec data = {&error, sizeof(error)};
  alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
  struct msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = space;
  message.msg_controllen = sizeof(space);
  const ssize_t got = recvmsg(control, &message, MSG_CMSG_CLOEXEC);
  if (got != sizeof(error)) {
    StopErrno(where, "container process does not answer", got < 0 ? errno : ECHILD);
  }
  if (error != 0) {
    StopErrno(where, "container process failed", error);
  }
  int fd = -1;
  if (const struct cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr) {
    memcpy(&fd, CMSG_DATA(header), sizeof(fd));
  }
  if (fd < 0) {
    Stop(where, "container process passed no socket: too many open files?");
  }
  return UniqueFd(fd);
}

}  // namespace

Container::Container(const NetnsToken& netns, const std::string& cgroup) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    StopErrno(Where::Here(), "making a socketpair", errno);
  }
  control_.Reset(ends[0]);
  UniqueFd theirs(ends[1]);
  const struct timeval patience = {kPatience.count() / 1000, 0};
  setsockopt(control_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  process_ = Child::Fork([&] { return ServeSockets(theirs.get(), netns, cgroup); });
  theirs.Reset();
  ReceiveSocket(control_.get(), Where::Here());  // it is in place
}

UniqueFd Container::Socket(int family, const Where& where) {
  if (send(control_.get(), &family, sizeof(family), MSG_NOSIGNAL) != sizeof(family)) {
    StopErrno(where, "asking a container process for a socket", errno);
  }
  return ReceiveSocket(control_.get(), where);
}

Pod::Pod(std::shared_ptr<NetnsToken> netns)
    : netns_(netns != nullptr ? std::move(netns) : std::make_shared<NetnsToken>()),
      cgroup_(CgroupRoot() + "/shunt-test-" + std::to_string(getpid()) + "-" +
              std::to_string(++g_pods)) {
  RecreateCgroup();
}

Pod::~Pod() {
  container_.reset();
  try {
    RemoveCgroup();
  } catch (const Stopped&) {
    // The failure is recorded; the next run of any test removes the directory.
  }
}

std::unique_ptr<Container> Pod::AddContainer(const std::string& name) {
  const std::string cgroup = cgroup_ + "/" + name;
  if (mkdir(cgroup.c_str(), 0755) != 0) {
    StopErrno(Where::Here(), "making cgroup " + cgroup, errno);
  }
  return std::make_unique<Container>(*netns_, cgroup);
}

void Pod::RemoveCgroup() {
  container_.reset();
  if (access(cgroup_.c_str(), F_OK) != 0) {
    return;
  }
  if (UniqueFd file(open((cgroup_ + "/cgroup.kill").c_str(), O_WRONLY | O_CLOEXEC));
      file.valid() && write(file.get(), "1", 1) != 1) {
    StopErrno(Where::Here(), "killing the processes of cgroup " + cgroup_, errno);
  }
  WaitUntil("cgroup " + cgroup_ + " can be removed", [this] {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(cgroup_, ignored)) {
      if (entry.is_directory(ignored)) {
        rmdir(entry.path().c_str());
      }
    }
    return rmdir(cgroup_.c_str()) == 0 || errno == ENOENT;
  });
}

void Pod::RecreateCgroup() {
  if (mkdir(cgroup_.c_str(), 0755) != 0) {
    StopErrno(Where::Here(), "making cgroup " + cgroup_, errno);
  }
  container_ = std::make_unique<Container>(*netns_, cgroup_);
}

}  // namespace shunt::test
