// SPDX-License-Identifier: Apache-2.0
#include "tests/support/netns.h"

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tests/support/stop.h"

namespace shunt::test {
namespace {

void RaiseLoopback() {
  UniqueFd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  struct ifreq request = {};
  strcpy(request.ifr_name, "lo");
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  if (ioctl(control.get(), SIOCSIFFLAGS, &request) != 0) {
    StopErrno(Where::Here(), "raising lo", errno);
  }
}

}  // namespace

NetnsToken::NetnsToken() {
  Worker maker([this] {
    if (unshare(CLONE_NEWNET) != 0) {
      StopErrno(Where::Here(), "making a network namespace", errno);
    }
    RaiseLoopback();
    fd_.Reset(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  });
  maker.Join();
  if (!fd_.valid()) {
    Stop(Where::Here(), "no network namespace was made");
  }
}

void NetnsToken::Run(const std::function<void()>& body) const {
  Worker worker([this, &body] {
    if (!Enter()) {
      StopErrno(Where::Here(), "entering a network namespace", errno);
    }
    body();
  });
}

bool NetnsToken::Enter() const { return setns(fd_.get(), CLONE_NEWNET) == 0; }

void NetnsToken::SetSysctl(const std::string& name, const std::string& value) const {
  std::string path = "/proc/sys/" + name;
  std::replace(path.begin() + strlen("/proc/sys/"), path.end(), '.', '/');
  Run([&] {
    UniqueFd file(open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file.valid() ||
        write(file.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size())) {
      StopErrno(Where::Here(), "setting " + name + " to " + value, errno);
    }
  });
}

}  // namespace shunt::test
