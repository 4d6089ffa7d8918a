// SPDX-License-Identifier: Apache-2.0
// How pairs end: by either end, by options, by their owner, under races.
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "connection.h"
#include "harness.h"
#include "stream.h"

namespace guest {
namespace {

void Disconnect(int fd) {
  sockaddr none = {};
  none.sa_family = AF_UNSPEC;
  CHECK(!connect(fd, &none, sizeof none));
}

void ReconnectTo(int fd, int listener) {
  sockaddr_storage address;
  socklen_t length = sizeof address;
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), length))
    Fail("reconnect: errno %d", errno);
}

void WaitNoPairs(Device& device) {
  for (int i = 0; i < 2000 && !device.List().empty(); ++i) usleep(1000);
  CHECK_EQ(device.List().size(), 0);
}

// A is paired with B, disconnects, and the same socket connects to C: nothing
// of B's may reach C's connection, whatever B does.
TEST(disconnect_and_reconnect, 60) {
  for (Family family : kFamilies) {
    Device device;
    Connection c(family);
    device.MustPair(c.a, c.b);
    char buffer[64];
    for (int i = 0; i < 5; ++i) {
      WriteAll(c.b, "x", 1);
      CHECK_EQ(ReadAll(c.a, buffer, 1), 1);
    }
    Disconnect(c.a);
    int listener = Listen(family);
    ReconnectTo(c.a, listener);
    int other = Accept(listener);
    for (int i = 0; i < 3; ++i) {
      send(c.b, "MARKER", 6, MSG_NOSIGNAL | MSG_DONTWAIT);
      usleep(5000);
    }
    WriteAll(other, "from c", 6);
    CHECK_EQ(ReadAll(c.a, buffer, 6), 6);
    if (memcmp(buffer, "from c", 6)) Fail("read '%.6s' of another connection", buffer);
    WriteAll(c.a, "to c", 4);
    CHECK_EQ(ReadAll(other, buffer, 4), 4);
    CHECK_EQ(recv(c.a, buffer, sizeof buffer, MSG_DONTWAIT), -1);
    CHECK_EQ(errno, EAGAIN);
    // The reconnected socket is plain, so it can be paired anew.
    device.MustPair(c.a, other);
    ExchangeBothWays(c.a, other, 1 << 16, kPlain);
    close(other);
    close(listener);
    c.CloseA();
    c.CloseB();
    WaitNoPairs(device);
  }
}

TEST(owner_killed_releases, 30) {
  Device observer;
  Connection c;
  int ready[2];
  CHECK(!pipe(ready));
  for (uint32_t policy : {SHUNT_OWNER_RELEASE, SHUNT_OWNER_KEEP}) {
    pid_t owner = fork();
    if (owner == 0) {
      Device device;
      device.SetPolicy(policy);
      device.MustPair(c.a, c.b);
      if (write(ready[1], "x", 1) != 1) _exit(1);
      pause();
    }
    char x;
    CHECK_EQ(read(ready[0], &x, 1), 1);
    CHECK_EQ(observer.List().size(), 1);
    WriteAll(c.a, "in the ring", 11);
    kill(owner, SIGKILL);
    waitpid(owner, nullptr, 0);
    char buffer[32];
    if (policy == SHUNT_OWNER_RELEASE) {
      CHECK_EQ(observer.List().size(), 0);
    } else {
      auto records = observer.List();
      CHECK_EQ(records.size(), 1);
      CHECK_EQ(records[0].kept, 1);
    }
    CHECK_EQ(ReadAll(c.b, buffer, 11), 11);
    WriteAll(c.b, "back", 4);
    CHECK_EQ(ReadAll(c.a, buffer, 4), 4);
  }
  // Any owner may end a pair that was kept.
  CHECK_EQ(observer.Unpair(observer.List()[0].pair_id), 0);
  CHECK_EQ(observer.List().size(), 0);
  ExchangeBothWays(c.a, c.b, 1 << 16, kPlain);
}

// No reference is left once everything is closed: the module goes at once.
TEST(unload_after_owner_death, 30) {
  Connection c;
  pid_t owner = fork();
  if (owner == 0) {
    Device device;
    device.MustPair(c.a, c.b);
    kill(getpid(), SIGKILL);
  }
  waitpid(owner, nullptr, 0);
  if (!UnloadModule()) Fail("unload: errno %d", errno);
  ExchangeBothWays(c.a, c.b, 1 << 16, kPlain);
  CHECK(LoadModule());
}

// kTLS later, and then the module goes.
TEST(tls_then_unload, 30) {
  Connection c;
  {
    Device device;
    device.MustPair(c.a, c.b);
    WriteAll(c.a, "x", 1);
    char x;
    CHECK_EQ(ReadAll(c.b, &x, 1), 1);
    if (setsockopt(c.a, IPPROTO_TCP, TCP_ULP, "tls", 4)) {
      if (errno == ENOENT) Skip("no tls module in this kernel");
      Fail("TCP_ULP: errno %d", errno);
    }
    // One end has left; the other follows on its own.
    WaitNoPairs(device);
  }
  if (!UnloadModule()) Fail("unload: errno %d", errno);
  char buffer[8];
  WriteAll(c.a, "after", 5);
  CHECK_EQ(ReadAll(c.b, buffer, 5), 5);
  WriteAll(c.b, "back", 4);
  CHECK_EQ(ReadAll(c.a, buffer, 4), 4);
  c.CloseA();
  c.CloseB();
  CHECK(LoadModule());
}

int Nft(const char* rules) {
  pid_t child = fork();
  if (child == 0) {
    execl("/sbin/nft", "nft", rules, nullptr);
    _exit(127);
  }
  int status;
  waitpid(child, &status, 0);
  return status;
}

// Behind REDIRECT: the client connects to one port, the server sits on
// another; after many bytes without TCP a real packet, and at last the FIN,
// must still be translated. In a namespace of its own, so rules vanish with it.
TEST(redirect_fin_arrives, 60) {
  CHECK(!unshare(CLONE_NEWNET));
  CHECK_EQ(system("/bin/ip link set lo up"), 0);
  if (Nft("add table ip t") || Nft("add chain ip t out { type nat hook output priority -100 ; }") ||
      Nft("add rule ip t out tcp dport 7777 redirect to :9999")) {
    Fail("nft does not take the rules");
  }
  Device device;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(9999);
  CHECK(!bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address));
  CHECK(!listen(listener, 8));
  address.sin_port = htons(7777);
  address.sin_addr.s_addr = htonl(0x7f010101);
  Connection c;
  c.CloseA();
  c.CloseB();
  c.a = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(c.a, reinterpret_cast<sockaddr*>(&address), sizeof address)) {
    Fail("connect through REDIRECT: errno %d", errno);
  }
  c.b = Accept(listener);
  close(listener);
  device.MustPair(c.a, c.b);
  std::vector<char> chunk(65536, 'r');
  for (int i = 0; i < 200; ++i) {
    WriteAll(c.a, chunk.data(), chunk.size());
    CHECK_EQ(ReadAll(c.b, chunk.data(), chunk.size()), chunk.size());
  }
  CHECK(device.List()[0].client_sent_bytes > 12000000);
  CHECK_EQ(send(c.a, "X", 1, MSG_OOB), 1);
  usleep(100000);
  char x = 0;
  CHECK_EQ(recv(c.b, &x, 1, MSG_OOB), 1);
  WriteAll(c.b, "other way", 9);
  CHECK_EQ(ReadAll(c.a, chunk.data(), 9), 9);
  CHECK(!shutdown(c.a, SHUT_WR));
  CHECK(WaitReadable(c.b, 3000));
  ssize_t n;
  while ((n = recv(c.b, chunk.data(), chunk.size(), MSG_DONTWAIT)) > 0) {
  }
  if (n != 0) {
    CHECK(WaitReadable(c.b, 5000));
    n = recv(c.b, chunk.data(), chunk.size(), MSG_DONTWAIT);
  }
  CHECK_EQ(n, 0);  // EOF
  WriteAll(c.b, "answer", 6);
  CHECK_EQ(ReadAll(c.a, chunk.data(), 6), 6);
  c.CloseB();
  CHECK_EQ(ReadAll(c.a, chunk.data(), 1), 0);
}

// Pairing races with close, disconnect and reconnect of the same sockets: each
// request is served or refused, and nothing stays behind.
TEST(race_pair_and_close, 120) {
  Device device;
  int joined = 0, refused = 0;
  for (int run = 0; run < 1500; ++run) {
    Connection c(run % 2 ? Family::kV4 : Family::kV6);
    shunt_kmod_pair request = RequestFor(c.a, c.b);
    std::atomic<int> go{0};
    std::thread closer([&] {
      while (!go) {
      }
      for (int spin = Random() % 3000; spin; --spin) __asm__ volatile("");
      if (run % 3 == 0) {
        Disconnect(c.a);
      } else if (run % 3 == 1) {
        c.CloseA();
      } else {
        shutdown(c.b, SHUT_RDWR);
        c.CloseB();
      }
    });
    go = 1;
    int error = ioctl(device.fd(), SHUNT_IOC_PAIR, &request) ? errno : 0;
    closer.join();
    switch (error) {
      case 0:
        ++joined;
        break;
      case EAGAIN:
      case ENOENT:
      case EOPNOTSUPP:
      case EPROTO:
        ++refused;
        break;
      default:
        Fail("pair: errno %d", error);
    }
    // What was joined carries bytes or is over; it never carries them wrongly.
    if (c.a >= 0 && c.b >= 0) send(c.b, "z", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  printf("# %d joined, %d refused\n", joined, refused);
  CHECK(joined > 0 && refused > 0);
  WaitNoPairs(device);
}

// Closers, unpairs and lookups in few buckets at once.
TEST(race_close_unpair_list, 120) {
  Device device;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> newest{0};
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    while (!stop) device.List();
  });
  threads.emplace_back([&] {
    while (!stop) device.Unpair(newest - Random() % 4);
  });
  for (int worker = 0; worker < 2; ++worker) {
    threads.emplace_back([&] {
      for (int run = 0; run < 1500; ++run) {
        Connection c;
        uint64_t id = 0;
        int error = device.Pair(c.a, c.b, &id);
        if (error && error != EAGAIN) Fail("pair: errno %d", error);
        if (!error) newest = id;
        char buffer[4];
        WriteAll(c.a, "race", 4);
        CHECK_EQ(ReadAll(c.b, buffer, 4), 4);
        CHECK(!memcmp(buffer, "race", 4));
      }
    });
  }
  threads[2].join();
  threads[3].join();
  stop = true;
  threads[0].join();
  threads[1].join();
  WaitNoPairs(device);
}

// Thousands of pairs at once, and their owner goes.
TEST(many_pairs, 120) {
  std::vector<int> fds;
  int listener = Listen(Family::kV4, 128);
  {
    Device device;
    for (int i = 0; i < 400; ++i) {
      int a = ConnectTo(Family::kV4, listener), b = Accept(listener);
      device.MustPair(a, b);
      fds.push_back(a);
      fds.push_back(b);
    }
    CHECK_EQ(device.List().size(), 400);
  }
  Device device;
  CHECK_EQ(device.List().size(), 0);
  for (size_t i = 0; i < fds.size(); i += 2) {
    char x;
    WriteAll(fds[i], "x", 1);
    CHECK_EQ(ReadAll(fds[i + 1], &x, 1), 1);
    close(fds[i]);
    close(fds[i + 1]);
  }
  close(listener);
}

// Random ioctls with random arguments: an errno, and nothing else.
TEST(random_ioctls, 120) {
  Device device;
  Connection c;
  alignas(8) unsigned char argument[512];
  for (int i = 0; i < 40000; ++i) {
    shunt_kmod_pair good = RequestFor(c.a, c.b);
    unsigned char* bytes = argument;
    for (unsigned char* p = bytes; p < bytes + sizeof argument; ++p) *p = Random();
    unsigned long command = SHUNT_IOC_PAIR;
    switch (Random() % 8) {
      case 0:
        command = SHUNT_IOC_UNPAIR;
        break;
      case 1:
        command = SHUNT_IOC_LIST;
        break;
      case 2:
        command = SHUNT_IOC_COUNTERS;
        break;
      case 3:
        command = SHUNT_IOC_POLICY;
        break;
      case 4:
        command = _IOC(Random() % 4, 0xA7, Random() % 16, Random() % 512);
        break;
      default:
        memcpy(argument, &good, sizeof good);
        for (int flips = Random() % 4; flips; --flips) {
          argument[Random() % sizeof good] ^= 1 << Random() % 8;
        }
    }
    // LIST and COUNTERS write where they are told to: nowhere of ours.
    if (command == SHUNT_IOC_LIST) memset(argument + 8, 0, 8);
    if (command == SHUNT_IOC_COUNTERS) memset(argument, 0, 8);
    ioctl(device.fd(), command, Random() % 16 ? argument : nullptr);
    if (i % 64 == 0) {
      char x;
      WriteAll(c.a, "x", 1);
      CHECK_EQ(ReadAll(c.b, &x, 1), 1);
    }
  }
}

}  // namespace
}  // namespace guest
