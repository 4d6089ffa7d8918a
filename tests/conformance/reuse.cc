// SPDX-License-Identifier: Apache-2.0
//
// One socket, several lives.
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"

namespace shunt::conformance {
namespace {

ssize_t Disconnect(int fd) {
  struct sockaddr none = {};
  none.sa_family = AF_UNSPEC;
  return connect(fd, &none, sizeof(none));
}

Case DisconnectOnly() {
  return {"reuse.disconnect", "connect(AF_UNSPEC): what both ends see",
          [](End& end) {
            end.NoteResult("connect(AF_UNSPEC)", Disconnect(end.fd()));
            end.PollNow();
            end.Send(1);
            end.Recv(1, MSG_DONTWAIT);
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLHUP | POLLRDHUP | POLLERR);
            end.ReadToEnd();
            end.Send(1);
            end.PollNow();
          }};
}

Case DisconnectUnread() {
  return {"reuse.disconnect_unread", "connect(AF_UNSPEC) with unread data throws it away",
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.NoteResult("connect(AF_UNSPEC)", Disconnect(end.fd()));
            end.Recv(100, MSG_DONTWAIT);
            end.PollNow();
            end.Meet();
          },
          [](End& end) {
            end.Send(100);
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
            end.Await(POLLHUP | POLLRDHUP | POLLERR);
            end.ReadToEnd();
          }};
}

Case Reconnect(bool unread) {
  return {std::string("reuse.reconnect") + (unread ? "_unread" : ""),
          std::string("connect(AF_UNSPEC)") + (unread ? " with unread data" : "") +
              ", connect() again: a new stream",
          [unread](End& end) {
            for (int life = 0; life < 3; life++) {
              end.Meet();
              if (life == 0) {
                end.socket() = end.Dial();
              } else {
                const test::Endpoint to = end.DialAddress();
                end.NoteResult("connect", connect(end.fd(), to.get(), to.size()));
              }
              end.Send("life " + std::to_string(life));
              end.ReadExactly(6);
              if (unread) {
                end.Meet();
                end.Await(POLLIN);
              }
              end.NoteResult("connect(AF_UNSPEC)", Disconnect(end.fd()));
              end.Recv(100, MSG_DONTWAIT);
              end.Meet();
            }
          },
          [unread](End& end) {
            const UniqueFd listener = end.Listen();
            for (int life = 0; life < 3; life++) {
              end.Meet();
              end.socket() = end.Accept(listener.get());
              end.ReadExactly(6);
              end.Send("answer");
              if (unread) {
                end.Send(100);
                end.AwaitDelivered();
                end.Meet();
              }
              end.Meet();
              end.Await(POLLHUP | POLLRDHUP | POLLERR);
              end.ReadToEnd();
            }
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6, IpMode::kMapped},
          Route::kOwn};
}

Case ConnectTwice() {
  return {"reuse.connect_again", "connect() and listen() on a connected socket are refused",
          [](End& end) {
            const test::Endpoint to = end.DialAddress();
            end.NoteResult("connect", connect(end.fd(), to.get(), to.size()));
            end.NoteResult("listen", listen(end.fd(), 1));
            end.NoteResult("bind", bind(end.fd(), to.get(), to.size()));
            end.Send(10);
            end.Meet();
          },
          [](End& end) {
            end.ReadExactly(10);
            end.NoteResult("accept", accept(end.fd(), nullptr, nullptr));
            end.Meet();
          },
          Start::kWarm};
}

Case ListenAfterUse() {
  return {"reuse.listen_on_used_socket",
          "a disconnected client socket listens and accepts",
          [](End& end) {
            end.Meet();
            end.socket() = end.Dial();
            end.Send("hello");
            end.ReadExactly(5);
            end.NoteResult("connect(AF_UNSPEC)", Disconnect(end.fd()));
            const int one = 1;
            setsockopt(end.fd(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
            const test::Endpoint here = end.ListenAddress(8081);
            end.NoteResult("bind", bind(end.fd(), here.get(), here.size()));
            end.NoteResult("listen", listen(end.fd(), 1));
            end.Meet();
            const UniqueFd listener = std::move(end.socket());
            end.socket() = end.Accept(listener.get());
            end.ReadExactly(5);
            end.Send("there");
            end.ReadToEnd();
          },
          [](End& end) {
            UniqueFd listener = end.Listen();
            end.Meet();
            end.socket() = end.Accept(listener.get());
            end.ReadExactly(5);
            end.Send("world");
            end.Meet();
            end.socket() = end.Dial(8081);
            end.Send("again");
            end.ReadExactly(5);
            end.Close();
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6},
          Route::kOwn};
}

Case ManyShort() {
  return {"reuse.many_short",
          "200 connections in a row, a few bytes each, closed by turns",
          [](End& end) {
            end.Meet();
            int good = 0;
            for (int i = 0; i < 200; i++) {
              end.socket() = end.Dial();
              char answer[4] = {};
              good += send(end.fd(), "ask!", 4, MSG_NOSIGNAL) == 4 &&
                      end.Call("recv", [&] { return recv(end.fd(), answer, 4, 0); }) == 4;
              if (i % 2 != 0) {
                good += end.Call("recv", [&] { return recv(end.fd(), answer, 4, 0); }) == 0;
              }
              end.socket().Reset();
            }
            end.Note("good " + std::to_string(good));
          },
          [](End& end) {
            const UniqueFd listener = end.Listen();
            end.Meet();
            int good = 0;
            for (int i = 0; i < 200; i++) {
              end.socket() = end.Accept(listener.get());
              char question[4] = {};
              good += end.Call("recv", [&] { return recv(end.fd(), question, 4, 0); }) == 4 &&
                      send(end.fd(), "yes!", 4, MSG_NOSIGNAL) == 4;
              if (i % 2 == 0) {
                good += end.Call("recv", [&] { return recv(end.fd(), question, 4, 0); }) == 0;
              }
              end.socket().Reset();
            }
            end.Note("good " + std::to_string(good));
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6},
          Route::kOwn};
}

}  // namespace

Cases ReuseCases() {
  return {DisconnectOnly(), DisconnectUnread(), Reconnect(false), Reconnect(true),
          ConnectTwice(),   ListenAfterUse(),   ManyShort()};
}

}  // namespace shunt::conformance
