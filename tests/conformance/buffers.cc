// SPDX-License-Identifier: Apache-2.0
//
// Buffers: how much is taken with nobody reading, tiny ones, a closed window.
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"

namespace shunt::conformance {
namespace {

constexpr uint64_t kEndless = 256u << 20;

// Sends in messages of `chunk` until the socket stays full; the bytes taken.
uint64_t Fill(End& end, size_t chunk) {
  uint64_t taken = 0;
  const std::string data(chunk, 'x');
  while (taken < kEndless) {
    const ssize_t sent = send(end.fd(), data.data(), chunk, MSG_DONTWAIT | MSG_NOSIGNAL);
    taken += sent > 0 ? sent : 0;
    if (sent == static_cast<ssize_t>(chunk)) {
      continue;
    }
    struct pollfd entry = {end.fd(), POLLOUT, 0};
    if (end.Call("fill", [&] { return poll(&entry, 1, 500); }) == 0) {
      break;
    }
  }
  return taken;
}

void DrainAll(End& end, uint64_t total) {
  std::vector<char> buffer(65536);
  uint64_t done = 0;
  while (done < total && end.Await(POLLIN)) {
    const ssize_t got = recv(end.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got <= 0) {
      end.NoteResult("recv", got);
      break;
    }
    done += got;
  }
  end.Note(done == total ? "read all that was taken" : "read less than was taken");
}

// A class, since TCP's own figure moves with its auto-tuning: no more than twice
// the largest buffers that the two ends may have.
Case Unread(size_t chunk) {
  return {"buffers.unread_" + std::to_string(chunk),
          "how much is taken in messages of " + std::to_string(chunk) + " with nobody reading",
          [chunk](End& end) {
            const uint64_t taken = Fill(end, chunk);
            end.Note(taken >= kEndless     ? "no end: 256 MiB taken"
                     : taken > (24u << 20) ? "far more than TCP's buffers"
                     : taken < chunk       ? "nothing"
                                           : "bounded");
            end.scratch(0) = taken;
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            DrainAll(end, end.scratch(0));
            end.Meet();
          }};
}

Case Tiny() {
  return {"buffers.tiny",
          "SO_RCVBUF and SO_SNDBUF of 4 KiB from the start: 1 MiB goes through",
          [](End& end) {
            end.SendAll(end.Bytes(1 << 20));
            end.Meet();
          },
          [](End& end) {
            end.ReadExactly(1 << 20);
            end.Meet();
          },
          Start::kBoth,
          {IpMode::kV4, IpMode::kV6},
          Route::kDirect,
          [](int fd) {
            const int size = 4096;
            setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
          },
          [](int fd) {
            const int size = 4096;
            setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
          },
          milliseconds(15000),
          3,
          2};
}

Case TinyUnread() {
  return {"buffers.tiny_unread",
          "SO_RCVBUF of 4 KiB: how much a sender may be ahead of its reader",
          [](End& end) {
            const uint64_t taken = Fill(end, 1000);
            end.Note(taken > 512 * 1024 ? "more than small buffers hold" : "bounded");
            end.scratch(0) = taken;
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            DrainAll(end, end.scratch(0));
            end.Meet();
          },
          Start::kWarm,
          {IpMode::kV4, IpMode::kV6},
          Route::kDirect,
          [](int fd) {
            const int size = 4096;
            setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
          },
          [](int fd) {
            const int size = 4096;
            setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
          }};
}

Case ChangeLive() {
  return {"buffers.changed_live",
          "SO_RCVBUF and SO_SNDBUF change while data flows",
          [](End& end) {
            for (const int size : {4096, 1 << 20, 8192, 262144}) {
              setsockopt(end.fd(), SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
              end.SendAll(end.Bytes(100000));
            }
            end.Meet();
          },
          [](End& end) {
            for (const int size : {8192, 4096, 1 << 20, 65536}) {
              setsockopt(end.fd(), SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
              end.ReadExactly(100000);
            }
            end.GetOption("SO_RCVBUF", SOL_SOCKET, SO_RCVBUF);
            end.Meet();
          },
          Start::kWarm,
          {IpMode::kV4, IpMode::kV6},
          Route::kDirect,
          {},
          {},
          milliseconds(10000),
          3,
          2};
}

Case ZeroWindow() {
  return {"buffers.zero_window",
          "the window closes, stays closed for a second, opens: all arrives in time",
          [](End& end) {
            end.scratch(0) = Fill(end, 16384);
            end.Meet();
            end.Meet();
            const Watch watch;
            end.Await(POLLOUT);
            end.SendAll("and on");
            end.Note("goes on " + watch.Class(0, 1500));
          },
          [](End& end) {
            end.Meet();
            End::Sleep(700);
            end.Meet();
            DrainAll(end, end.scratch(0));
            end.ReadExactly(6);
          },
          Start::kWarm};
}

Case SlowReader() {
  return {"buffers.slow_reader",
          "a reader that takes 10 kB every few ms keeps a fast sender's order",
          [](End& end) {
            end.SendAll(end.Bytes(2 << 20));
            end.Shutdown(SHUT_WR);
            end.Meet();
          },
          [](End& end) {
            test::Hash hash;
            size_t total = 0;
            char buffer[10000];
            for (int i = 0;; i++) {
              const ssize_t got =
                  end.Call("recv", [&] { return recv(end.fd(), buffer, sizeof(buffer), 0); });
              if (got <= 0) {
                end.NoteResult("the stream ends", got);
                break;
              }
              hash.Add({buffer, static_cast<size_t>(got)});
              total += got;
              if (i % 4 == 0) {
                End::Sleep(1);
              }
            }
            end.Note(std::to_string(total) + " bytes with hash " + hash.Text());
            end.Meet();
          }};
}

}  // namespace

Cases BuffersCases() {
  return {Unread(100),  Unread(16384), Unread(1 << 20), Tiny(),
          TinyUnread(), ChangeLive(),  ZeroWindow(),    SlowReader()};
}

}  // namespace shunt::conformance
