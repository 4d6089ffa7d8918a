// SPDX-License-Identifier: Apache-2.0
//
// Ways to wait. The server waits, the client does something that it must see.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"

namespace shunt::conformance {
namespace {

std::string EpollText(uint32_t events) {
  // The bits are poll()'s.
  return test::PollText(static_cast<short>(events & 0x3fff));
}

class Epoll {
 public:
  Epoll() : fd_(epoll_create1(EPOLL_CLOEXEC)) {}

  void Add(End& end, uint32_t events, int operation = EPOLL_CTL_ADD) {
    struct epoll_event event = {};
    event.events = events;
    if (epoll_ctl(fd_.get(), operation, end.fd(), &event) != 0) {
      end.NoteResult("epoll_ctl", -1);
    }
  }

  void Wait(End& end, int timeout_ms = 2000) {
    struct epoll_event event = {};
    const ssize_t ready =
        end.Call("epoll_wait", [&] { return epoll_wait(fd_.get(), &event, 1, timeout_ms); });
    if (ready < 0) {
      end.NoteResult("epoll_wait", ready);
    } else {
      end.Note("epoll -> " + (ready == 0 ? "nothing" : EpollText(event.events)));
    }
  }

 private:
  UniqueFd fd_;
};

Case States() {
  return {"poll.states", "poll() in every state of a connection, at both ends",
          [](End& end) {
            end.PollNow();
            end.Meet();
            end.Send(100);
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
            end.Shutdown(SHUT_WR);
            end.PollNow();
            end.Meet();
            end.Meet();
            end.Await(POLLRDHUP);
            end.PollNow();
          },
          [](End& end) {
            end.PollNow();
            end.Meet();
            end.Meet();
            end.Await(POLLIN);
            end.PollNow();
            end.ReadExactly(100);
            end.PollNow();
            end.Meet();
            end.Meet();
            end.Await(POLLRDHUP);
            end.PollNow();
            end.Shutdown(SHUT_WR);
            end.PollNow();
            end.Meet();
          }};
}

Case AfterReset() {
  return {"poll.after_reset", "poll(), SO_ERROR, recv() and send() after the other end reset",
          [](End& end) {
            const struct linger now = {1, 0};
            setsockopt(end.fd(), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
            end.Close();
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLHUP);
            end.PollNow();
            end.SocketError();
            end.PollNow();
            end.Recv(10, MSG_DONTWAIT);
            end.Send(10);
          }};
}

Case Blocked() {
  return {"poll.blocked", "a sleeping poll() is woken by data, by more data, by the end",
          [](End& end) {
            for (int i = 0; i < 3; i++) {
              end.AwaitPeerBlocked();
              end.SendAll(end.Bytes(10));
              end.Meet();
            }
            end.AwaitPeerBlocked();
            end.Shutdown(SHUT_WR);
          },
          [](End& end) {
            for (int i = 0; i < 3; i++) {
              end.Poll(POLLIN | POLLPRI | POLLRDHUP);
              end.ReadExactly(10);
              end.Meet();
            }
            end.Poll(POLLIN | POLLPRI | POLLRDHUP);
            end.Recv(10, MSG_DONTWAIT);
          }};
}

Case Select() {
  return {"poll.select", "select() and pselect(): readable, writable, exceptional",
          [](End& end) {
            end.AwaitPeerBlocked();
            end.SendAll(end.Bytes(10));
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            const auto look = [&](const char* when, int ms, bool writing) {
              fd_set in, out, bad;
              FD_ZERO(&in);
              FD_ZERO(&out);
              FD_ZERO(&bad);
              FD_SET(end.fd(), &in);
              FD_SET(end.fd(), &bad);
              if (writing) {
                FD_SET(end.fd(), &out);
              }
              const struct timespec patience = {ms / 1000, ms % 1000 * 1000000};
              const ssize_t ready = end.Call("pselect", [&] {
                return pselect(end.fd() + 1, &in, &out, &bad, &patience, nullptr);
              });
              end.Note(std::string(when) + ": " + std::to_string(ready) + " in " +
                       std::to_string(FD_ISSET(end.fd(), &in) != 0) + " out " +
                       std::to_string(FD_ISSET(end.fd(), &out) != 0) + " bad " +
                       std::to_string(FD_ISSET(end.fd(), &bad) != 0));
            };
            look("at first", 0, true);
            look("blocked", 2000, false);
            look("again", 0, true);
            end.ReadExactly(10);
            look("read", 20, false);
            end.Meet();
            end.Meet();
          }};
}

Case Level() {
  return {"poll.epoll_level", "level-triggered epoll: as long as something is unread",
          [](End& end) {
            end.AwaitPeerBlocked();
            end.SendAll(end.Bytes(100));
            end.Meet();
          },
          [](End& end) {
            Epoll epoll;
            epoll.Add(end, EPOLLIN | EPOLLRDHUP);
            epoll.Wait(end);
            epoll.Wait(end);
            end.ReadExactly(50);
            epoll.Wait(end);
            end.ReadExactly(50);
            epoll.Wait(end, 50);
            end.Meet();
          }};
}

Case Edge() {
  return {"poll.epoll_edge", "edge-triggered epoll: once for each arrival, not for what is left",
          [](End& end) {
            end.Meet();
            end.SendAll(end.Bytes(100));
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
            end.SendAll(end.Bytes(10));
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
            end.AwaitPeerBlocked();
            end.SendAll(end.Bytes(10));
            end.Meet();
            end.Shutdown(SHUT_WR);
            end.Meet();
          },
          [](End& end) {
            Epoll epoll;
            epoll.Add(end, EPOLLIN | EPOLLRDHUP | EPOLLET);
            epoll.Wait(end, 30);
            end.Meet();
            end.Meet();
            epoll.Wait(end);
            epoll.Wait(end, 50);
            end.ReadExactly(50);
            epoll.Wait(end, 50);
            end.Meet();
            end.Meet();
            epoll.Wait(end);
            epoll.Wait(end, 50);
            end.ReadExactly(60);
            end.Meet();
            epoll.Wait(end);
            end.ReadExactly(10);
            end.Meet();
            end.Meet();
            end.Await(POLLRDHUP);
            epoll.Wait(end);
            epoll.Wait(end, 50);
            end.Recv(10, MSG_DONTWAIT);
          }};
}

Case EdgeAfterAdd() {
  return {"poll.epoll_edge_added_late", "edge-triggered epoll added when data is there already",
          [](End& end) {
            end.SendAll(end.Bytes(100));
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            Epoll epoll;
            epoll.Add(end, EPOLLIN | EPOLLRDHUP | EPOLLET);
            epoll.Wait(end);
            epoll.Wait(end, 50);
            epoll.Add(end, EPOLLIN | EPOLLOUT | EPOLLET, EPOLL_CTL_MOD);
            epoll.Wait(end);
            epoll.Wait(end, 50);
            end.ReadExactly(100);
            end.Meet();
          }};
}

Case OneShot() {
  return {"poll.epoll_oneshot", "EPOLLONESHOT: once until armed again",
          [](End& end) {
            end.AwaitPeerBlocked();
            end.SendAll(end.Bytes(10));
            end.AwaitDelivered();
            end.Meet();
            end.SendAll(end.Bytes(10));
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            Epoll epoll;
            epoll.Add(end, EPOLLIN | EPOLLONESHOT);
            epoll.Wait(end);
            end.Meet();
            end.Meet();
            epoll.Wait(end, 50);
            end.ReadExactly(20);
            epoll.Add(end, EPOLLIN | EPOLLONESHOT, EPOLL_CTL_MOD);
            epoll.Wait(end, 50);
            end.Meet();
          }};
}

Case Exclusive() {
  return {"poll.epoll_exclusive", "EPOLLEXCLUSIVE: two sleeping waiters, at least one is woken",
          [](End& end) {
            end.Meet();
            End::Sleep(100);
            end.SendAll(end.Bytes(10));
            end.Meet();
          },
          [](End& end) {
            UniqueFd sets[2];
            int woken[2] = {0, 0};
            std::vector<std::thread> threads;
            for (int i = 0; i < 2; i++) {
              sets[i].Reset(epoll_create1(EPOLL_CLOEXEC));
              struct epoll_event event = {};
              event.events = EPOLLIN | EPOLLEXCLUSIVE;
              epoll_ctl(sets[i].get(), EPOLL_CTL_ADD, end.fd(), &event);
              threads.emplace_back([&, i] {
                struct epoll_event got;
                woken[i] = epoll_wait(sets[i].get(), &got, 1, 700);
              });
            }
            end.Meet();
            for (std::thread& thread : threads) {
              thread.join();
            }
            end.Note(woken[0] + woken[1] >= 1 ? "woken" : "nobody was woken");
            end.ReadExactly(10);
            end.Meet();
          }};
}

Case WriteEdge() {
  return {
      "poll.epoll_edge_out", "EPOLLOUT as an edge after a full buffer was read",
      [](End& end) {
        Epoll epoll;
        epoll.Add(end, EPOLLOUT | EPOLLET);
        epoll.Wait(end);
        const std::string data(65536, 'x');
        uint64_t sent = 0;
        for (;;) {
          const ssize_t got = send(end.fd(), data.data(), data.size(), MSG_DONTWAIT);
          if (got > 0) {
            sent += got;
            continue;
          }
          struct pollfd entry = {end.fd(), POLLOUT, 0};
          if (sent > (64u << 20) || end.Call("fill", [&] { return poll(&entry, 1, 500); }) == 0) {
            break;
          }
        }
        struct epoll_event event;
        (void)event;
        epoll.Wait(end, 0);  // an edge of the filling
        epoll.Wait(end, 50);
        end.scratch(0) = sent;
        end.Meet();
        epoll.Wait(end);
      },
      [](End& end) {
        end.Meet();
        std::vector<char> buffer(65536);
        for (uint64_t done = 0; done < end.scratch(0);) {
          if (!end.Await(POLLIN)) {
            break;
          }
          const ssize_t got = recv(end.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
          if (got <= 0) {
            end.NoteResult("recv", got);
            break;
          }
          done += got;
        }
      }};
}

Case Rdhup() {
  return {"poll.epoll_rdhup", "EPOLLRDHUP alone, while data is unread, before and after it is read",
          [](End& end) {
            end.SendAll(end.Bytes(10));
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
            end.Shutdown(SHUT_WR);
            end.Meet();
          },
          [](End& end) {
            Epoll epoll;
            epoll.Add(end, EPOLLRDHUP);
            end.Meet();
            epoll.Wait(end, 50);
            end.Meet();
            epoll.Wait(end);
            end.Meet();
            end.ReadExactly(10);
            epoll.Wait(end);
            end.Recv(10, MSG_DONTWAIT);
          }};
}

Case Sigio() {
  return {"poll.sigio", "O_ASYNC: SIGIO when data comes",
          [](End& end) {
            end.Meet();
            end.SendAll(end.Bytes(10));
            end.Meet();
          },
          [](End& end) {
            sigset_t io;
            sigemptyset(&io);
            sigaddset(&io, SIGIO);
            sigprocmask(SIG_BLOCK, &io, nullptr);
            fcntl(end.fd(), F_SETOWN, getpid());
            fcntl(end.fd(), F_SETFL, O_ASYNC | O_NONBLOCK);
            end.Meet();
            const struct timespec patience = {1, 0};
            const ssize_t got =
                end.Call("sigtimedwait", [&] { return sigtimedwait(&io, nullptr, &patience); });
            end.Note(got == SIGIO ? "SIGIO" : "no SIGIO");
            end.Await(POLLIN);
            end.Recv(100);
            end.Meet();
          }};
}

Case WriteWithoutReader() {
  return {
      "poll.out_comes_back", "POLLOUT goes away when full and comes back when read",
      [](End& end) {
        const std::string data(65536, 'x');
        uint64_t sent = 0;
        for (;;) {
          const ssize_t got = send(end.fd(), data.data(), data.size(), MSG_DONTWAIT);
          sent += got > 0 ? got : 0;
          struct pollfd entry = {end.fd(), POLLOUT, 0};
          if (sent > (64u << 20) || end.Call("fill", [&] { return poll(&entry, 1, 500); }) == 0) {
            break;
          }
        }
        end.PollNow();
        end.scratch(0) = sent;
        end.Meet();
        end.Poll(POLLOUT);
        end.Meet();
      },
      [](End& end) {
        end.Meet();
        end.AwaitPeerBlocked();
        std::vector<char> buffer(65536);
        uint64_t done = 0;
        while (done < end.scratch(0) && end.Await(POLLIN)) {
          const ssize_t got = recv(end.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
          if (got <= 0) {
            end.NoteResult("recv", got);
            break;
          }
          done += got;
        }
        end.Note(done == end.scratch(0) ? "read all" : "lost some");
        end.Meet();
      }};
}

}  // namespace

Cases PollCases() {
  return {States(), AfterReset(),   Blocked(),           Select(),    Level(),
          Edge(),   EdgeAfterAdd(), OneShot(),           Exclusive(), WriteEdge(),
          Rdhup(),  Sigio(),        WriteWithoutReader()};
}

}  // namespace shunt::conformance
