// SPDX-License-Identifier: Apache-2.0
// Bytes: what is sent is what arrives, in order, whatever the sizes.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "connection.h"
#include "harness.h"
#include "stream.h"

namespace guest {
namespace {

void TwoWay(Family family, int runs, uint64_t bytes, int disturbance) {
  Device device;
  uint64_t before = device.Counter(SHUNT_KMOD_EXIT_SENT);
  for (int run = 0; run < runs; ++run) {
    Connection c(family);
    device.MustPair(c.a, c.b);
    ExchangeBothWays(c.a, c.b, bytes, disturbance);
  }
  // No empty pass: the ring has carried bytes.
  CHECK(device.Counter(SHUNT_KMOD_EXIT_SENT) > before + runs);
}

TEST(traffic_random_v4, 120) { TwoWay(Family::kV4, 20, 1 << 20, kPlain); }
TEST(traffic_random_v6, 120) { TwoWay(Family::kV6, 10, 1 << 20, kPlain); }
TEST(traffic_random_v4_mapped, 120) { TwoWay(Family::kMapped, 10, 1 << 20, kPlain); }
// The receiver also peeks, waits for all, asks FIONREAD and TCP_INFO at random.
TEST(traffic_random_disturbed, 240) { TwoWay(Family::kV4, 20, 1 << 20, kDisturbed); }
// Many short connections: what a thousand random runs find (a stale window).
TEST(traffic_many_short, 240) { TwoWay(Family::kV4, 150, 1 << 16, kDisturbed); }

// Joined while both directions are in full flow and readers are blocked.
TEST(adopt_in_mid_stream, 120) {
  Device device;
  for (int run = 0; run < 20; ++run) {
    Connection c(run % 2 ? Family::kV4 : Family::kV6);
    Exchange exchange(c.a, c.b, 1 << 20, kPlain);
    usleep(Random() % 20000);
    int error = EAGAIN;
    for (int i = 0; i < 2000 && error == EAGAIN; ++i) {
      error = device.Pair(c.a, c.b);
      if (error == EAGAIN) usleep(Random() % 2000);
    }
    // Too late is no error of the module's: the exchange is over.
    if (error && error != EOPNOTSUPP && error != EAGAIN && error != ENOENT) {
      Fail("pair: errno %d", error);
    }
    exchange.Finish();
  }
  CHECK(device.Counter(SHUNT_KMOD_EXIT_PAIRED) > 0);
}

// A reader that slept in TCP's recv when the pair was joined wakes at once.
TEST(adopt_blocked_reader, 30) {
  Device device;
  for (int run = 0; run < 20; ++run) {
    Connection c;
    int done[2];
    CHECK(!pipe(done));
    pid_t child = fork();
    if (child == 0) {
      char buffer[16];
      ssize_t n = read(c.b, buffer, sizeof buffer);
      char ok = n == 5;
      if (write(done[1], &ok, 1) != 1) _exit(1);
      _exit(0);
    }
    usleep(10000);
    device.MustPair(c.a, c.b);
    double start = Now();
    WriteAll(c.a, "hello", 5);
    char ok = 0;
    CHECK(WaitReadable(done[0], 2000));
    CHECK_EQ(read(done[0], &ok, 1), 1);
    CHECK_EQ(ok, 1);
    CHECK(Now() - start < 0.15);  // not by the sweeper
    waitpid(child, nullptr, 0);
    close(done[0]);
    close(done[1]);
  }
}

// Back to TCP at any byte, and joined again.
TEST(unpair_at_any_byte, 240) {
  Device device;
  unsigned long splits = 0;
  for (int run = 0; run < 10; ++run) {
    Connection c(run % 2 ? Family::kV4 : Family::kV6);
    uint64_t id = 0;
    device.MustPair(c.a, c.b, &id);
    Exchange exchange(c.a, c.b, 2 << 20, run % 3 ? kPlain : kDisturbed);
    while (!exchange.Done()) {
      usleep(Random() % 3000);
      if (id && device.Unpair(id) == 0) ++splits;
      id = 0;
      if (device.Pair(c.a, c.b, &id)) id = 0;
    }
    exchange.Finish();
  }
  CHECK(splits > 10);
}

// The module goes and comes while bytes flow, and readers are blocked.
TEST(unload_under_load, 600) {
  constexpr int kConnections = 4;
  int unloads = 0;
  while (unloads < 100) {
    std::vector<Connection*> connections;
    std::vector<Exchange*> exchanges;
    for (int i = 0; i < kConnections; ++i) {
      connections.push_back(new Connection(i % 2 ? Family::kV6 : Family::kV4));
      exchanges.push_back(new Exchange(connections[i]->a, connections[i]->b, 8 << 20, kPlain));
    }
    // An idle one, whose reader sleeps for ever.
    Connection idle;
    pid_t reader = 0;
    for (bool done = false; !done;) {
      CHECK(LoadModule());
      {
        Device device;
        for (Connection* c : connections) {
          int error = device.Pair(c->a, c->b);
          if (error && error != EAGAIN && error != EOPNOTSUPP && error != EALREADY &&
              error != ENOENT) {
            Fail("pair: errno %d", error);
          }
        }
        device.SetPolicy(SHUNT_OWNER_KEEP);
        if (!reader) {
          device.MustPair(idle.a, idle.b);
          int closed[2];
          CHECK(!pipe(closed));
          reader = fork();
          if (reader == 0) {
            close(device.fd());  // an open file holds the module
            close(closed[1]);
            char buffer[8];
            _exit(read(idle.b, buffer, sizeof buffer) == 4 ? 0 : 1);
          }
          char none;
          close(closed[1]);
          CHECK_EQ(read(closed[0], &none, 1), 0);
          close(closed[0]);
        }
        usleep(Random() % 20000);
      }
      if (!UnloadModule()) Fail("the module does not unload: errno %d", errno);
      ++unloads;
      usleep(Random() % 3000);
      done = true;
      for (Exchange* e : exchanges) done &= e->Done();
    }
    for (Exchange* e : exchanges) {
      e->Finish();
      delete e;
    }
    for (Connection* c : connections) delete c;
    WriteAll(idle.a, "wake", 4);
    int status = 0;
    waitpid(reader, &status, 0);
    CHECK_EQ(status, 0);
    CHECK(LoadModule());
  }
}

// Unread bytes are bounded as TCP bounds them.
TEST(bounded_without_reader, 60) {
  auto accepted = [](Connection& c) {
    SetNonBlocking(c.a, true);
    std::vector<char> chunk(100000, 7);
    long long total = 0;
    for (int i = 0; i < 400; ++i) {
      ssize_t n = write(c.a, chunk.data(), chunk.size());
      if (n < 0) {
        CHECK_EQ(errno, EAGAIN);
        usleep(5000);
        n = write(c.a, chunk.data(), chunk.size());
        if (n < 0) break;
      }
      total += n;
    }
    return total;
  };
  Connection plain, paired;
  Device device;
  device.MustPair(paired.a, paired.b);
  long long by_tcp = accepted(plain), by_us = accepted(paired);
  printf("# unread bytes accepted: TCP %lld, shunt %lld\n", by_tcp, by_us);
  CHECK(by_us < by_tcp * 3 / 2 + 200000);
  CHECK(by_us > by_tcp / 2);
  // And every one of them arrives.
  std::vector<char> sink(1 << 20);
  SetNonBlocking(paired.b, true);
  long long got = 0;
  for (int i = 0; i < 5000 && got < by_us; ++i) {
    ssize_t n = read(paired.b, sink.data(), sink.size());
    if (n > 0)
      got += n;
    else
      usleep(1000);
  }
  CHECK_EQ(got, by_us);
}

// TCP speaks, and while its ACK is outstanding the ring carries more than a
// window; then TCP speaks again, both ways. The window counts from the oldest
// byte that is not acknowledged, or the ends reject each other's ACKs for ever.
TEST(ring_while_ack_is_outstanding, 60) {
  Device device;
  Connection c;
  device.MustPair(c.a, c.b);
  std::vector<char> chunk(1200, 'w'), sink(1 << 17);
  uint64_t before = device.Counter(SHUNT_KMOD_EXIT_SENT);
  for (int run = 0; run < 100; ++run) {
    // Without SO_ZEROCOPY the flag means nothing, but to us: a send of TCP's.
    // Nobody reads it, so once the first ACKs are over its ACK is delayed.
    CHECK_EQ(send(c.a, "1", 1, MSG_ZEROCOPY), 1);
    for (int i = 0; i < 40; ++i) WriteAll(c.a, chunk.data(), chunk.size());
    CHECK_EQ(send(c.a, "2", 1, MSG_ZEROCOPY), 1);
    CHECK_EQ(send(c.b, "3", 1, MSG_ZEROCOPY), 1);
    for (size_t left = 2 + 40 * chunk.size(); left;) {
      CHECK(WaitReadable(c.b, 3000));
      ssize_t n = read(c.b, sink.data(), sink.size());
      CHECK(n > 0);
      left -= n;
    }
    CHECK(WaitReadable(c.a, 3000));
    CHECK_EQ(read(c.a, sink.data(), sink.size()), 1);
  }
  CHECK(device.Counter(SHUNT_KMOD_EXIT_SENT) > before + 2000);
}

// A receive window smaller than the ring: the ring must not run ahead of it.
// (Far smaller buffers stall plain TCP over loopback too: its segments are 64 KiB.)
TEST(small_receive_buffer, 240) {
  Device device;
  for (int run = 0; run < 6; ++run) {
    Connection c;
    for (int fd : {c.a, c.b}) {
      int size = 32768;
      setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
      setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    }
    if (run % 2) device.MustPair(c.a, c.b);
    ExchangeBothWays(c.a, c.b, 1 << 17, kPlain);
  }
}

// 2.5 GiB by the ring, then TCP speaks: sequence numbers have passed half of
// their circle since it last did.
TEST(tcp_after_half_the_sequence_space, 900) {
  Device device;
  Connection c;
  device.MustPair(c.a, c.b);
  constexpr uint64_t kBytes = 5ull << 29;
  pid_t child = fork();
  std::vector<char> buffer(1 << 16, 1);
  if (child == 0) {
    close(c.a);
    uint64_t got = 0;
    while (got < kBytes) {
      ssize_t n = read(c.b, buffer.data(), buffer.size());
      if (n <= 0) _exit(1);
      got += n;
    }
    _exit(0);
  }
  for (uint64_t sent = 0; sent < kBytes; sent += buffer.size()) {
    WriteAll(c.a, buffer.data(), buffer.size());
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK_EQ(status, 0);
  auto records = device.List();
  CHECK_EQ(records.size(), 1);
  CHECK(records[0].client_sent_bytes > kBytes / 10 * 9);
  CHECK_EQ(device.Unpair(records[0].pair_id), 0);
  ExchangeBothWays(c.a, c.b, 4 << 20, kPlain);
  CHECK_EQ(recv(c.b, buffer.data(), 1, MSG_OOB | MSG_DONTWAIT), -1);
  CHECK_EQ(errno, EINVAL);  // no urgent data was ever sent
}

// Short keepalive, and a reader that does not read: TCP keeps the connection,
// so must we, whose bytes lie unsettled.
TEST(keepalive_with_unread_bytes, 60) {
  Device device;
  Connection c;
  EnableKeepAlive(c.a);
  EnableKeepAlive(c.b);
  device.MustPair(c.a, c.b);
  char buffer[16];
  for (int i = 0; i < 5; ++i) {
    WriteAll(c.a, "x", 1);
    CHECK_EQ(ReadAll(c.b, buffer, 1), 1);
  }
  WriteAll(c.a, "unread", 6);
  usleep(6000000);
  CHECK_EQ(ReadAll(c.b, buffer, 6), 6);
  WriteAll(c.b, "y", 1);
  CHECK_EQ(ReadAll(c.a, buffer, 1), 1);
}

}  // namespace
}  // namespace guest
