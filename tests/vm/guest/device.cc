// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "harness.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace guest {
namespace {

shunt_kmod_end EndFor(int fd) {
  shunt_kmod_end end = {};
  sockaddr_storage local = {}, remote = {};
  socklen_t length = sizeof local;
  getsockname(fd, reinterpret_cast<sockaddr*>(&local), &length);
  length = sizeof remote;
  getpeername(fd, reinterpret_cast<sockaddr*>(&remote), &length);
  end.family = local.ss_family;
  if (end.family == AF_INET) {
    auto* l = reinterpret_cast<sockaddr_in*>(&local);
    auto* r = reinterpret_cast<sockaddr_in*>(&remote);
    memcpy(end.local_address, &l->sin_addr, 4);
    memcpy(end.remote_address, &r->sin_addr, 4);
    end.local_port = ntohs(l->sin_port);
    end.remote_port = ntohs(r->sin_port);
  } else {
    auto* l = reinterpret_cast<sockaddr_in6*>(&local);
    auto* r = reinterpret_cast<sockaddr_in6*>(&remote);
    memcpy(end.local_address, &l->sin6_addr, 16);
    memcpy(end.remote_address, &r->sin6_addr, 16);
    end.local_port = ntohs(l->sin6_port);
    end.remote_port = ntohs(r->sin6_port);
  }
  length = sizeof end.socket_cookie;
  __u64 cookie = 0;
  getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length);
  end.socket_cookie = cookie;
  return end;
}

}  // namespace

bool LoadModule() {
  int fd = open("/shunt.ko", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  bool loaded = syscall(SYS_finit_module, fd, "", 0) == 0 || errno == EEXIST;
  int error = errno;
  close(fd);
  errno = error;
  return loaded;
}

bool UnloadModule() { return syscall(SYS_delete_module, "shunt", O_NONBLOCK) == 0; }

shunt_kmod_pair RequestFor(int client, int server) {
  shunt_kmod_pair request = {};
  request.abi_version = SHUNT_KMOD_ABI_VERSION;
  __u64 cookie = 0;
  socklen_t length = sizeof cookie;
  getsockopt(client, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length);
  request.netns_cookie = cookie;
  request.client = EndFor(client);
  request.server = EndFor(server);
  return request;
}

Device::Device() : fd_(open("/dev/shunt", O_RDWR | O_CLOEXEC)) {
  if (fd_ < 0) Fail("/dev/shunt: errno %d", errno);
}

Device::~Device() { close(fd_); }

int Device::Pair(int client, int server, uint64_t* id) {
  shunt_kmod_pair request = RequestFor(client, server);
  if (ioctl(fd_, SHUNT_IOC_PAIR, &request)) return errno;
  if (id) *id = request.pair_id;
  return 0;
}

void Device::MustPair(int client, int server, uint64_t* id) {
  int error = EAGAIN;
  for (int i = 0; i < 200 && error == EAGAIN; ++i) {
    error = Pair(client, server, id);
    if (error == EAGAIN) usleep(1000);
  }
  if (error) Fail("pair: errno %d", error);
}

int Device::Unpair(uint64_t id) {
  __u64 value = id;
  return ioctl(fd_, SHUNT_IOC_UNPAIR, &value) ? errno : 0;
}

void Device::SetPolicy(uint32_t policy) {
  __u32 value = policy;
  if (ioctl(fd_, SHUNT_IOC_POLICY, &value)) Fail("policy: errno %d", errno);
}

std::vector<shunt_kmod_record> Device::List() {
  std::vector<shunt_kmod_record> all;
  shunt_kmod_list list = {};
  for (;;) {
    shunt_kmod_record records[256];
    list.records = reinterpret_cast<uint64_t>(records);
    list.count = 256;
    if (ioctl(fd_, SHUNT_IOC_LIST, &list)) Fail("list: errno %d", errno);
    if (!list.count) return all;
    all.insert(all.end(), records, records + list.count);
  }
}

uint64_t Device::Counter(shunt_kmod_exit exit) {
  __u64 values[SHUNT_KMOD_EXIT_COUNT] = {};
  shunt_kmod_counters counters = {};
  counters.values = reinterpret_cast<uint64_t>(values);
  counters.count = SHUNT_KMOD_EXIT_COUNT;
  if (ioctl(fd_, SHUNT_IOC_COUNTERS, &counters)) Fail("counters: errno %d", errno);
  return values[exit];
}

}  // namespace guest
