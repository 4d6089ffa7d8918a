// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "connection.h"
#include "harness.h"

namespace guest {
namespace {

constexpr int kStallMs = 10000;

size_t RandomSize() { return Random() % 4 ? Random() % 3000 + 1 : Random() % 200000 + 1; }

// One end, non-blocking, driven by poll.
void Run(int fd, uint64_t mine, uint64_t theirs, uint64_t bytes, int disturbance) {
  static unsigned char out[200001], in[200001];
  uint64_t sent = 0, got = 0;
  bool shut = false, eof = false;
  SetNonBlocking(fd, true);
  while (!shut || !eof) {
    if (sent == bytes && !shut) {
      CHECK(!shutdown(fd, SHUT_WR));
      shut = true;
    }
    if (shut && eof) break;
    int low_water = 1;
    if (disturbance == kDisturbed) {
      if (Random() % 16 == 0) {
        low_water = std::min<uint64_t>(Random() % 5000 + 1, std::max<uint64_t>(1, bytes - got));
        setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water);
      }
      if (Random() % 8 == 0) Unread(fd);
      if (Random() % 8 == 0) {
        tcp_info info;
        socklen_t length = sizeof info;
        getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
      }
    }
    pollfd p = {fd, static_cast<short>((eof ? 0 : POLLIN) | (sent < bytes ? POLLOUT : 0)), 0};
    int ready = poll(&p, 1, kStallMs);
    if (ready <= 0) {
      Fail("stalled: sent %llu, got %llu of %llu, unread %d", (unsigned long long)sent,
           (unsigned long long)got, (unsigned long long)bytes, Unread(fd));
    }
    if (low_water > 1) {
      low_water = 1;
      setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water);
    }
    if (p.revents & POLLOUT) {
      size_t n = std::min<uint64_t>(RandomSize(), bytes - sent);
      for (size_t i = 0; i < n; ++i) out[i] = Pattern(mine, sent + i);
      int flags = disturbance == kDisturbed && Random() % 8 == 0 ? MSG_MORE : 0;
      ssize_t done = send(fd, out, n, flags);
      if (done < 0 && errno != EAGAIN)
        Fail("send: errno %d at byte %llu", errno, (unsigned long long)sent);
      if (done > 0) sent += done;
    }
    if (p.revents & (POLLIN | POLLHUP | POLLERR)) {
      int flags = 0;
      if (disturbance == kDisturbed && Random() % 8 == 0) {
        ssize_t peeked = recv(fd, in, RandomSize(), MSG_PEEK);
        for (ssize_t i = 0; i < peeked; ++i) {
          if (in[i] != Pattern(theirs, got + i))
            Fail("peeked byte %llu is wrong", (unsigned long long)(got + i));
        }
      }
      if (disturbance == kDisturbed && Random() % 8 == 0) flags = MSG_WAITALL;
      ssize_t n = recv(fd, in, RandomSize(), flags);
      if (n < 0 && errno != EAGAIN)
        Fail("recv: errno %d at byte %llu", errno, (unsigned long long)got);
      if (n == 0) {
        if (got != bytes)
          Fail("EOF after %llu of %llu bytes", (unsigned long long)got, (unsigned long long)bytes);
        eof = true;
      }
      for (ssize_t i = 0; i < n; ++i) {
        if (in[i] != Pattern(theirs, got + i))
          Fail("byte %llu is wrong", (unsigned long long)(got + i));
      }
      if (n > 0) got += n;
      if (got > bytes) Fail("more bytes than were sent");
    }
  }
}

}  // namespace

Exchange::Exchange(int a, int b, uint64_t bytes, int disturbance) {
  for (int side = 0; side < 2; ++side) {
    unsigned skip = Random();
    ends_[side] = fork();
    if (ends_[side] == 0) {
      for (unsigned i = 0; i < skip % 64 + side; ++i) Random();
      close(side ? a : b);
      Run(side ? b : a, side, !side, bytes, disturbance);
      _exit(0);
    }
  }
}

bool Exchange::Done() {
  bool done = true;
  for (int side = 0; side < 2; ++side) {
    if (status_[side] == -1 && waitpid(ends_[side], &status_[side], WNOHANG) != ends_[side]) {
      status_[side] = -1;
      done = false;
    }
  }
  return done;
}

void Exchange::Finish() {
  for (int side = 0; side < 2; ++side) {
    if (status_[side] == -1) waitpid(ends_[side], &status_[side], 0);
    // The end has written why into the verdict.
    if (status_[side]) _exit(1);
  }
}

void ExchangeBothWays(int a, int b, uint64_t bytes, int disturbance) {
  Exchange(a, b, bytes, disturbance).Finish();
}

void EnableKeepAlive(int fd) {
  int on = 1, one = 1, probes = 3;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

}  // namespace guest
