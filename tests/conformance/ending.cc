// SPDX-License-Identifier: Apache-2.0
//
// How connections end, call by call.
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"

namespace shunt::conformance {
namespace {

constexpr struct linger kResetOnClose = {1, 0};

void CloseWithReset(End& end) {
  setsockopt(end.fd(), SOL_SOCKET, SO_LINGER, &kResetOnClose, sizeof(kResetOnClose));
  end.Close();
}

// Everything a program may ask of a socket whose other end is gone.
void AskAll(End& end) {
  end.PollNow();
  end.Recv(100, MSG_DONTWAIT);
  end.Recv(100, MSG_DONTWAIT);
  end.SocketError();
  end.PollNow();
}

Case HalfClose(bool by_client) {
  const Program closes = [](End& end) {
    end.Send(7);
    end.Shutdown(SHUT_WR);
    end.Send(3);
    end.Meet();
    end.ReadExactly(50000);
    end.ReadToEnd();
    end.PollNow();
  };
  const Program answers = [](End& end) {
    end.ReadToEnd();
    end.Meet();
    for (int i = 0; i < 50; i++) {
      end.SendAll(end.Bytes(1000));
    }
    end.Send(11);
    end.Shutdown(SHUT_WR);
  };
  return {std::string("ending.half_close_by_") + (by_client ? "client" : "server"),
          "shutdown(SHUT_WR), then 50 kB the other way, then the other end too",
          by_client ? closes : answers, by_client ? answers : closes};
}

Case BothHalfClose() {
  const Program program = [](End& end) {
    end.Send(10);
    end.Shutdown(SHUT_WR);
    end.ReadToEnd();
    end.Shutdown(SHUT_WR);
    end.Shutdown(SHUT_RD);
    end.Meet();
    end.PollNow();
    end.SocketError();
  };
  return {"ending.both_half_close", "both ends send and shutdown(SHUT_WR) at once", program,
          program};
}

Case ShutdownRead() {
  return {"ending.shutdown_rd",
          "shutdown(SHUT_RD): what is unread, what comes later, the other way",
          [](End& end) {
            end.SetOption("TCP_NODELAY", SOL_TCP, TCP_NODELAY, 1);
            end.Send(10);
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
            end.Send(20);
            end.AwaitDelivered();
            end.Meet();
            end.ReadExactly(5);
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.Shutdown(SHUT_RD);
            end.PollNow();
            end.Recv(100, MSG_DONTWAIT);
            end.Recv(100, MSG_DONTWAIT);
            end.Meet();
            end.Meet();
            end.Recv(100, MSG_DONTWAIT);
            end.Recv(100, MSG_DONTWAIT);
            end.PollNow();
            end.Send(5);
            end.Meet();
          }};
}

Case ShutdownReadBlocked() {
  return {"ending.shutdown_rd_blocked",
          "shutdown(SHUT_RD) by another process wakes a blocked recv()",
          [](End& end) { end.Meet(); },
          [](End& end) {
            const pid_t child = fork();
            if (child == 0) {
              End::Sleep(200);
              shutdown(end.fd(), SHUT_RD);
              _exit(0);
            }
            end.Recv(100);
            end.PollNow();
            waitpid(child, nullptr, 0);
            end.Meet();
          }};
}

Case ShutdownBoth() {
  return {"ending.shutdown_rdwr", "shutdown(SHUT_RDWR) and what both ends see",
          [](End& end) {
            end.Send(10);
            end.Shutdown(SHUT_RDWR);
            end.PollNow();
            end.Send(1);
            end.Recv(10, MSG_DONTWAIT);
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.ReadToEnd();
            end.PollNow();
            end.Send(10);
            end.Close();
          }};
}

Case CloseAtOnce(size_t size) {
  return {"ending.write_close_" + std::to_string(size),
          "write, then close at once: the other end reads all, then EOF",
          [size](End& end) {
            end.SendAll(end.Bytes(size));
            end.Close();
          },
          [](End& end) {
            end.ReadToEnd();
            end.PollNow();
            end.SocketError();
          }};
}

Case CloseUnread() {
  return {"ending.close_unread", "close with unread data: the other end is reset",
          [](End& end) {
            end.Send(100);
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
            end.Await(POLLHUP | POLLERR);
            AskAll(end);
            end.Send(1);
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.Close();
            end.Meet();
          }};
}

Case CloseUnreadPartly() {
  return {"ending.close_partly_unread", "close with a part unread, and answers on their way",
          [](End& end) {
            end.Send(100);
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
            end.Await(POLLHUP | POLLERR);
            end.PollNow();
            end.Recv(100, MSG_DONTWAIT);
            end.Recv(100, MSG_DONTWAIT);
            end.Send(1);
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.Recv(50);
            end.Send(20);
            end.Close();
            end.Meet();
          }};
}

Case WriteAfterPeerClosed() {
  return {"ending.write_after_peer_closed",
          "the peer closed: the first write succeeds, the next fails",
          [](End& end) {
            end.Close();
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLRDHUP);
            end.PollNow();
            end.Send(10);
            end.Await(POLLHUP);
            end.PollNow();
            end.Send(10);
            AskAll(end);
          }};
}

Case Reset() {
  return {"ending.linger_0",
          "SO_LINGER 0: the other end is reset, unread data is gone or not as in TCP",
          [](End& end) {
            end.Send(100);
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
            CloseWithReset(end);
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.Meet();
            end.Meet();
            end.Await(POLLHUP);
            AskAll(end);
            end.Send(1);
          }};
}

Case ResetBlocked(bool reader) {
  return {std::string("ending.reset_blocked_") + (reader ? "recv" : "send"),
          std::string("the peer resets while ") + (reader ? "recv()" : "send()") + " sleeps",
          [](End& end) {
            end.AwaitPeerBlocked();
            CloseWithReset(end);
            end.Meet();
          },
          reader ? Program([](End& end) {
            end.Recv(100);
            end.Meet();
            AskAll(end);
          })
                 : Program([](End& end) {
                     const std::string data(16 << 20, 'x');
                     const ssize_t sent = end.Call("send", [&] {
                       return send(end.fd(), data.data(), data.size(), MSG_NOSIGNAL);
                     });
                     end.Note("send -> " + (sent < 0 ? ErrnoText(errno) : "a part"));
                     end.Meet();
                     AskAll(end);
                     end.Send(1);
                   })};
}

Case CloseBlockedReader() {
  return {"ending.close_blocked_recv", "the peer closes while recv() sleeps",
          [](End& end) {
            end.AwaitPeerBlocked();
            end.Close();
          },
          [](End& end) {
            end.Recv(100);
            end.PollNow();
            end.Recv(100);
          }};
}

Case HalfCloseBlockedReader() {
  return {"ending.shutdown_blocked_recv",
          "both sleep in recv() in turn: shutdown(SHUT_WR) then recv() of the answer",
          [](End& end) {
            end.AwaitPeerBlocked();
            end.Send(10);
            end.AwaitPeerBlocked();
            end.Shutdown(SHUT_WR);
            end.Recv(100);
            end.Recv(100);
          },
          [](End& end) {
            end.Recv(100);
            end.Recv(100);
            End::Sleep(100);
            end.Send(20);
            End::Sleep(100);
            end.Close();
          }};
}

Case Sigpipe() {
  return {"ending.sigpipe", "SIGPIPE for a write after the end, none with MSG_NOSIGNAL",
          [](End& end) {
            end.Shutdown(SHUT_WR);
            for (const int flags : {0, static_cast<int>(MSG_NOSIGNAL)}) {
              const pid_t child = fork();
              if (child == 0) {
                signal(SIGPIPE, SIG_DFL);
                _exit(send(end.fd(), "x", 1, flags) < 0 ? errno : 0);
              }
              int status = 0;
              waitpid(child, &status, 0);
              end.Note(WIFSIGNALED(status) ? "killed by signal " + std::to_string(WTERMSIG(status))
                                           : "errno " + ErrnoText(WEXITSTATUS(status)));
            }
            end.Meet();
          },
          [](End& end) {
            end.ReadToEnd();
            end.Meet();
          }};
}

Case PeerKilled(bool unread) {
  return {std::string("ending.peer_killed") + (unread ? "_unread" : ""),
          std::string("the peer's process is killed") + (unread ? " with unread data" : ""),
          [unread](End& end) {
            // The process to be killed holds the only descriptor.
            int ready[2];
            (void)!pipe2(ready, O_CLOEXEC);
            const pid_t child = fork();
            if (child == 0) {
              send(end.fd(), "last words", 10, MSG_NOSIGNAL);
              struct pollfd entry = {end.fd(), static_cast<short>(unread ? POLLIN : 0), 0};
              poll(&entry, 1, unread ? 2000 : 50);
              (void)!write(ready[1], "r", 1);
              pause();
            }
            end.socket().Reset();
            char byte;
            (void)!read(ready[0], &byte, 1);
            kill(child, SIGKILL);
            waitpid(child, nullptr, 0);
            end.Meet();
          },
          [unread](End& end) {
            if (unread) {
              end.Send(100);
            }
            end.Meet();
            end.Await(POLLHUP | POLLRDHUP | POLLERR);
            end.ReadToEnd();
            end.PollNow();
            end.Send(1);
          }};
}

Case LingerBlocks() {
  return {"ending.linger_waits",
          "close with SO_LINGER 1 s and nobody reading: how long it takes",
          [](End& end) {
            const struct linger second = {1, 1};
            setsockopt(end.fd(), SOL_SOCKET, SO_LINGER, &second, sizeof(second));
            const std::string data(65536, 'x');
            for (int i = 0; i < 1000; i++) {
              if (send(end.fd(), data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
                break;
              }
            }
            const Watch watch;
            end.Close();
            end.Note("close comes back " + watch.Class(1000, 600));
            end.Meet();
          },
          [](End& end) { end.Meet(); },
          Start::kWarm,
          {IpMode::kV4}};
}

Case LingerRead() {
  return {"ending.linger_read", "close with SO_LINGER and a peer that reads: at once, all arrives",
          [](End& end) {
            const struct linger patience = {1, 3};
            setsockopt(end.fd(), SOL_SOCKET, SO_LINGER, &patience, sizeof(patience));
            end.SendAll(end.Bytes(100000));
            end.Close();
          },
          [](End& end) {
            end.ReadToEnd();
            end.Close();
          }};
}

Case NotConnected() {
  return {"ending.after_the_end", "calls on a socket after both ends are shut",
          [](End& end) {
            end.Shutdown(SHUT_WR);
            end.Meet();
            end.ReadToEnd();
            end.Meet();
            end.Shutdown(SHUT_WR);
            end.Shutdown(SHUT_RDWR);
            end.Send(1);
            end.Recv(1, MSG_DONTWAIT);
            struct sockaddr_storage name;
            socklen_t size = sizeof(name);
            end.NoteResult("getpeername",
                           getpeername(end.fd(), reinterpret_cast<struct sockaddr*>(&name), &size));
            end.PollNow();
          },
          [](End& end) {
            end.Meet();
            end.ReadToEnd();
            end.Shutdown(SHUT_WR);
            end.Meet();
            end.PollNow();
          }};
}

Case ShutdownWhileSending() {
  return {"ending.shutdown_while_sending",
          "shutdown(SHUT_WR) in one process while another's send() sleeps",
          [](End& end) {
            const pid_t child = fork();
            if (child == 0) {
              std::vector<char> data(16 << 20, 'x');
              (void)!send(end.fd(), data.data(), data.size(), MSG_NOSIGNAL);
              _exit(0);
            }
            End::Sleep(200);
            end.Shutdown(SHUT_WR);
            end.Meet();
            int status = 0;
            end.NoteResult("the sender ends", end.Call("wait", [&] {
              return waitpid(child, &status, 0) == child ? WEXITSTATUS(status) : -1;
            }));
          },
          [](End& end) {
            end.Meet();
            // How much came before the FIN is not told.
            std::vector<char> buffer(65536);
            ssize_t got;
            do {
              if (!end.Await(POLLIN)) {
                return;
              }
              got = recv(end.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
            } while (got > 0);
            end.NoteResult("the stream ends", got);
          }};
}

}  // namespace

Cases EndingCases() {
  return {HalfClose(true),
          HalfClose(false),
          BothHalfClose(),
          ShutdownRead(),
          ShutdownReadBlocked(),
          ShutdownBoth(),
          CloseAtOnce(1),
          CloseAtOnce(1000),
          CloseAtOnce(1000000),
          CloseUnread(),
          CloseUnreadPartly(),
          WriteAfterPeerClosed(),
          Reset(),
          ResetBlocked(true),
          ResetBlocked(false),
          CloseBlockedReader(),
          HalfCloseBlockedReader(),
          Sigpipe(),
          PeerKilled(false),
          PeerKilled(true),
          LingerBlocks(),
          LingerRead(),
          NotConnected(),
          ShutdownWhileSending()};
}

}  // namespace shunt::conformance
