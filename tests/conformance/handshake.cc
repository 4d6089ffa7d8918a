// SPDX-License-Identifier: Apache-2.0
//
// How connections begin: who speaks first, before accept(), behind NAT, Fast Open.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <utility>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"

namespace shunt::conformance {
namespace {

// Requests and answers of growing size, then an orderly end.
void Talk(End& end) {
  for (const size_t size : {1, 100, 3000, 70000}) {
    if (end.client()) {
      end.SendAll(end.Bytes(size));
      end.ReadExactly(size);
    } else {
      end.ReadExactly(size);
      end.SendAll(end.Bytes(size));
    }
  }
  if (end.client()) {
    end.Shutdown(SHUT_WR);
  }
  end.ReadToEnd();
  if (!end.client()) {
    end.Close();
  }
}

Case Behind(Route route) {
  const bool tproxy = route == Route::kTproxy;
  return {tproxy ? "handshake.tproxy" : "handshake.redirect",
          std::string("the client dials what ") + (tproxy ? "TPROXY hands" : "REDIRECT sends") +
              " to the server; talk, half close, end",
          Talk,
          Talk,
          Start::kWarm,
          tproxy ? std::vector<IpMode>{IpMode::kV4} : std::vector<IpMode>{IpMode::kV4, IpMode::kV6},
          route};
}

Case OriginalDestination() {
  return {"handshake.original_dst",
          "SO_ORIGINAL_DST behind REDIRECT",
          [](End& end) {
            end.Send(10);
            end.Meet();
          },
          [](End& end) {
            struct sockaddr_in to = {};
            socklen_t size = sizeof(to);
            end.NoteResult("SO_ORIGINAL_DST", getsockopt(end.fd(), SOL_IP, 80, &to, &size));
            end.Note("port " + std::to_string(ntohs(to.sin_port)));
            end.ReadExactly(10);
            end.Meet();
          },
          Start::kWarm,
          {IpMode::kV4},
          Route::kRedirect};
}

Case DeferAccept() {
  return {"handshake.defer_accept",
          "TCP_DEFER_ACCEPT: accepted when the first data has come; order kept",
          [](End& end) {
            end.Send("AAAA");
            end.Send("BBBB");
            end.AwaitDelivered();
            end.Send("CCCC");
            end.Shutdown(SHUT_WR);
            end.ReadToEnd();
          },
          [](End& end) {
            end.Send("greeting");
            end.ReadToEnd();
            end.Close();
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6},
          Route::kOwn,
          [](int fd) {
            const int seconds = 5;
            setsockopt(fd, SOL_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof(seconds));
          }};
}

Case DeferAcceptFionread() {
  Case test = DeferAccept();
  test.name = "handshake.defer_accept_fionread";
  test.what = "TCP_DEFER_ACCEPT, then FIONREAD of what came before accept()";
  test.client = [](End& end) {
    end.Send(100);
    end.AwaitDelivered();
    end.Meet();
    end.ReadExactly(100);
  };
  test.server = [](End& end) {
    end.Meet();
    end.Await(POLLIN);
    end.Ioctl("FIONREAD", FIONREAD);
    end.ReadExactly(100);
    end.Send(100);
  };
  return test;
}

// The programs of a kOwn case around a connection that was made as usual.
Case Connected(Case test) {
  for (Program* program : {&test.client, &test.server}) {
    const Program body = *program;
    const bool client = program == &test.client;
    *program = [body, client](End& end) {
      if (client) {
        end.Meet();
        end.socket() = end.Dial();
        body(end);
      } else {
        const UniqueFd listener = end.Listen();
        end.Meet();
        end.socket() = end.Accept(listener.get());
        body(end);
      }
    };
  }
  return test;
}

Case BeforeAccept(bool closes) {
  return {std::string("handshake.data_before_accept") + (closes ? "_then_close" : ""),
          std::string("the client sends") + (closes ? " and closes" : "") +
              " before accept(); order kept",
          [closes](End& end) {
            end.Meet();
            end.socket() = end.Dial();
            end.Send("AAAA");
            end.AwaitDelivered();
            if (closes) {
              end.Close();
            }
            end.Meet();
            if (!closes) {
              end.Meet();
              end.Send("BBBB");
              end.Shutdown(SHUT_WR);
              end.ReadToEnd();
            }
          },
          [closes](End& end) {
            const UniqueFd listener = end.Listen();
            end.Meet();
            end.Meet();
            end.socket() = end.Accept(listener.get());
            end.PollNow();
            if (!closes) {
              end.Send("early answer");
              end.Meet();
            }
            end.ReadToEnd();
            end.Close();
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6},
          Route::kOwn};
}

Case ResetBeforeAccept() {
  return {"handshake.reset_before_accept",
          "the client sends and resets before accept()",
          [](End& end) {
            end.Meet();
            end.socket() = end.Dial();
            end.Send("AAAA");
            end.AwaitDelivered();
            const struct linger now = {1, 0};
            setsockopt(end.fd(), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
            end.Close();
            end.Meet();
          },
          [](End& end) {
            const UniqueFd listener = end.Listen();
            end.Meet();
            end.Meet();
            end.socket() = end.Accept(listener.get());
            end.PollNow();
            end.Recv(100, MSG_DONTWAIT);
            end.Recv(100, MSG_DONTWAIT);
            end.Send(1);
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6},
          Route::kOwn};
}

Case NeverAccepted() {
  return {"handshake.never_accepted",
          "the listener closes with the connection unaccepted",
          [](End& end) {
            end.Meet();
            end.socket() = end.Dial();
            end.Send("AAAA");
            end.Meet();
            end.Await(POLLHUP);
            end.PollNow();
            end.Recv(10, MSG_DONTWAIT);
            end.Recv(10, MSG_DONTWAIT);
            end.Send(1);
          },
          [](End& end) {
            UniqueFd listener = end.Listen();
            end.Meet();
            end.Meet();
            listener.Reset();
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6},
          Route::kOwn};
}

Case ServerFirst() {
  return {"handshake.server_first",
          "the server speaks first, at once after accept()",
          [](End& end) {
            end.ReadExactly(300);
            end.Send(100);
            end.ReadToEnd();
          },
          [](End& end) {
            end.SendAll(end.Bytes(100));
            end.SendAll(end.Bytes(200));
            end.ReadExactly(100);
            end.Close();
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6, IpMode::kMapped, IpMode::kMixed}};
}

Case FastOpen() {
  return {"handshake.fast_open",
          "TCP Fast Open: cookie, then data in the SYN; talk, end",
          [](End& end) {
            end.Meet();
            for (int i = 0; i < 3; i++) {
              const test::Endpoint to = end.DialAddress();
              end.socket().Reset(socket(to.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
              const std::string data = end.Bytes(100);
              end.NoteResult("sendto FASTOPEN", end.Call("sendto", [&] {
                return sendto(end.fd(), data.data(), data.size(), MSG_FASTOPEN | MSG_NOSIGNAL,
                              to.get(), to.size());
              }));
              end.ReadExactly(100);
              end.Send(100);
              end.Shutdown(SHUT_WR);
              end.ReadToEnd();
            }
          },
          [](End& end) {
            const UniqueFd listener = end.Listen();
            end.Meet();
            for (int i = 0; i < 3; i++) {
              end.socket() = end.Accept(listener.get());
              end.ReadExactly(100);
              end.Send(100);
              end.ReadToEnd();
              end.Close();
            }
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6},
          Route::kOwn,
          [](int fd) {
            const int queue = 16;
            setsockopt(fd, SOL_TCP, TCP_FASTOPEN, &queue, sizeof(queue));
          },
          {},
          milliseconds(8000)};
}

Case SelfConnect() {
  return {"handshake.self_connect",
          "a socket that is connected to itself (simultaneous open)",
          [](End& end) {
            const test::Endpoint self = end.DialAddress(8085);
            end.socket().Reset(socket(self.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
            const int one = 1;
            setsockopt(end.fd(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
            end.NoteResult("bind", bind(end.fd(), self.get(), self.size()));
            end.NoteResult("connect", connect(end.fd(), self.get(), self.size()));
            end.Send(10);
            end.ReadExactly(10);
            end.Shutdown(SHUT_WR);
            end.ReadToEnd();
            end.Close();
          },
          [](End& end) { (void)end; },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6},
          Route::kOwn,
          {},
          {},
          milliseconds(5000),
          4,
          3,
          /*must_enrol=*/false};
}

}  // namespace

Cases HandshakeCases() {
  Case fast_open = FastOpen();
  fast_open.must_enrol = false;  // data in the SYN: the engine leaves it to TCP
  return {Behind(Route::kRedirect),
          Behind(Route::kTproxy),
          OriginalDestination(),
          Connected(DeferAccept()),
          Connected(DeferAcceptFionread()),
          BeforeAccept(false),
          BeforeAccept(true),
          ResetBeforeAccept(),
          NeverAccepted(),
          ServerFirst(),
          fast_open,
          SelfConnect()};
}

}  // namespace shunt::conformance
