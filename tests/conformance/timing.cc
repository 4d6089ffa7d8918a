// SPDX-License-Identifier: Apache-2.0
//
// What is bounded by time. Classes only: faster is no difference.
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"

namespace shunt::conformance {
namespace {

Case Idle() {
  return {"timing.keepalive_idle",
          "keepalive with answers keeps an idle connection",
          [](End& end) {
            end.SetOption("SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1);
            end.SetOption("TCP_KEEPIDLE", SOL_TCP, TCP_KEEPIDLE, 1);
            end.SetOption("TCP_KEEPINTVL", SOL_TCP, TCP_KEEPINTVL, 1);
            end.SetOption("TCP_KEEPCNT", SOL_TCP, TCP_KEEPCNT, 1);
            End::Sleep(2600);
            end.PollNow();
            end.SocketError();
            end.Send(10);
            end.Meet();
          },
          [](End& end) {
            end.ReadExactly(0);
            end.Meet();
            end.ReadExactly(10);
          },
          Start::kWarm,
          {IpMode::kV4},
          Route::kDirect,
          {},
          {},
          milliseconds(8000),
          1,
          1};
}

Case UserTimeout() {
  return {"timing.user_timeout",
          "TCP_USER_TIMEOUT with a reader that never reads: the error and when",
          [](End& end) {
            end.SetOption("TCP_USER_TIMEOUT", SOL_TCP, TCP_USER_TIMEOUT, 500);
            const std::string data(65536, 'x');
            for (int i = 0; i < 1000; i++) {
              if (send(end.fd(), data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
                break;
              }
            }
            const Watch watch;
            struct pollfd entry = {end.fd(), 0, 0};
            end.Call("poll for an error", [&] { return poll(&entry, 1, 4000); });
            end.Note("poll -> " + test::PollText(entry.revents) + " " + watch.Class(500, 2500));
            end.SocketError();
            end.Send(10);
            end.Meet();
          },
          [](End& end) { end.Meet(); },
          Start::kWarm,
          {IpMode::kV4},
          Route::kDirect,
          {},
          {},
          milliseconds(8000),
          3,
          1};
}

Case Wake(size_t size) {
  return {"timing.wake_" + std::to_string(size),
          "100 messages of " + std::to_string(size) + " bytes to a sleeping reader: none is late",
          [size](End& end) {
            for (int i = 0; i < 100; i++) {
              end.SendAll(end.Bytes(size));
              if (!end.ReadExactly(1, false)) {
                return;
              }
              if (i % 10 == 0) {
                End::Sleep(15);
              }
            }
            end.Note("100 rounds");
            end.Meet();
          },
          [size](End& end) {
            int64_t worst = 0;
            for (int i = 0; i < 100; i++) {
              const Watch watch;
              if (!end.ReadExactly(size, false)) {
                return;
              }
              worst = std::max(worst, watch.Elapsed());
              end.SendAll("!");
            }
            end.Note(worst < 1000 ? "none late" : "one came after a second");
            end.Meet();
          },
          Start::kWarm,
          {IpMode::kV4, IpMode::kV6}};
}

Case BlockedWriter() {
  return {"timing.blocked_writer",
          "a blocked send() goes on within a second once the reader reads",
          [](End& end) {
            const std::string data(16 << 20, 'x');
            const ssize_t sent = end.Call(
                "send", [&] { return send(end.fd(), data.data(), data.size(), MSG_NOSIGNAL); });
            end.NoteResult("send", sent);
            end.Meet();
          },
          [](End& end) {
            end.AwaitPeerBlocked();
            std::vector<char> buffer(262144);
            uint64_t done = 0;
            int64_t worst = 0;
            while (done < (16u << 20)) {
              const Watch watch;
              const ssize_t got =
                  end.Call("recv", [&] { return recv(end.fd(), buffer.data(), buffer.size(), 0); });
              if (got <= 0) {
                end.NoteResult("recv", got);
                return;
              }
              done += got;
              worst = std::max(worst, watch.Elapsed());
            }
            end.Note(worst < 1500 ? "never stood still" : "stood still for more than 1.5 s");
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

Case Deadlock() {
  return {"timing.both_blocked", "both ends blocked in send(), then both read: nobody hangs",
          [](End& end) {
            end.scratch(0) = 0;
            std::string data(200000, 'x');
            for (int i = 0; i < 10; i++) {
              (void)!send(end.fd(), data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
            }
            end.Meet();
            end.Await(POLLIN);
            while (recv(end.fd(), data.data(), data.size(), MSG_DONTWAIT) > 0) {
            }
            end.Meet();
            end.Await(POLLOUT);
            end.Note("writable again");
            end.Meet();
          },
          [](End& end) {
            std::string data(200000, 'y');
            for (int i = 0; i < 10; i++) {
              (void)!send(end.fd(), data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
            }
            end.Meet();
            end.Await(POLLIN);
            while (recv(end.fd(), data.data(), data.size(), MSG_DONTWAIT) > 0) {
            }
            end.Meet();
            end.Await(POLLOUT);
            end.Note("writable again");
            end.Meet();
          },
          Start::kWarm};
}

}  // namespace

Cases TimingCases() {
  return {Idle(), UserTimeout(), Wake(1), Wake(20000), BlockedWriter(), Deadlock()};
}

}  // namespace shunt::conformance
