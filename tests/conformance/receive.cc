// SPDX-License-Identifier: Apache-2.0
//
// Ways to receive. The client sends, the server reads in the way under test.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"
#include "tests/support/transcript.h"

namespace shunt::conformance {
namespace {

using test::BytesText;

// Sends; the server meets it when the data is there, and again when it is done
// with it.
Program SendsEach(std::vector<size_t> sizes) {
  return [sizes](End& end) {
    for (const size_t size : sizes) {
      end.SendAll(end.Bytes(size));
      end.AwaitDelivered();
      end.Meet();
      end.Meet();
    }
  };
}

// Sends once the server sleeps in its call.
Program SendsToSleeper(std::vector<size_t> sizes) {
  return [sizes](End& end) {
    for (const size_t size : sizes) {
      end.AwaitPeerBlocked();
      end.SendAll(end.Bytes(size));
    }
    end.Meet();
  };
}

Case Peek() {
  return {"receive.peek", "MSG_PEEK: twice, more than there is, again after more came, then read",
          SendsEach({100, 50}), [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.Recv(10, MSG_PEEK);
            end.Recv(10, MSG_PEEK);
            end.Recv(1000, MSG_PEEK);
            end.Meet();
            end.Meet();
            end.Recv(1000, MSG_PEEK | MSG_DONTWAIT);
            end.Recv(30);
            end.Recv(1000, MSG_PEEK | MSG_DONTWAIT);
            end.ReadExactly(120);
            end.Recv(1000, MSG_PEEK | MSG_DONTWAIT);
            end.Meet();
          }};
}

Case PeekBlocked() {
  return {"receive.peek_blocked", "a blocked MSG_PEEK is woken and leaves the data",
          SendsToSleeper({100}), [](End& end) {
            end.Recv(40, MSG_PEEK);
            end.ReadExactly(100);
            end.Meet();
          }};
}

Case PeekWaitall() {
  return {"receive.peek_waitall", "MSG_PEEK with MSG_WAITALL waits for all and leaves it",
          SendsToSleeper({100, 100}), [](End& end) {
            end.Recv(200, MSG_PEEK | MSG_WAITALL);
            end.ReadExactly(200);
            end.Meet();
          }};
}

Case Trunc() {
  return {"receive.trunc", "MSG_TRUNC throws bytes away unread", SendsEach({100}), [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.NoteResult("recv 30 TRUNC into nothing",
                           recv(end.fd(), nullptr, 30, MSG_TRUNC | MSG_DONTWAIT));
            end.ReadExactly(70);
            end.Recv(10, MSG_DONTWAIT);
            end.Meet();
          }};
}

Case PeekTrunc() {
  return {"receive.peek_trunc", "MSG_PEEK with MSG_TRUNC", SendsEach({100}), [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.NoteResult("recv 30 PEEK TRUNC into nothing",
                           recv(end.fd(), nullptr, 30, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT));
            end.ReadExactly(100);
            end.Meet();
          }};
}

Case Waitall() {
  return {"receive.waitall", "MSG_WAITALL: a part is there before the call, the rest comes later",
          [](End& end) {
            end.SendAll(end.Bytes(100));
            end.AwaitDelivered();
            end.Meet();
            for (int i = 0; i < 9; i++) {
              end.AwaitPeerBlocked();
              end.SendAll(end.Bytes(100));
            }
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.Recv(1000, MSG_WAITALL);
            end.Meet();
          }};
}

Case WaitallCallFirst() {
  return {"receive.waitall_call_first", "MSG_WAITALL: the call first, then the data in ten pieces",
          SendsToSleeper({100, 100, 100, 100, 100, 100, 100, 100, 100, 100}), [](End& end) {
            end.Recv(1000, MSG_WAITALL);
            end.Meet();
          }};
}

Case WaitallEnd() {
  return {"receive.waitall_eof", "MSG_WAITALL returns what there is at the end of the stream",
          [](End& end) {
            end.AwaitPeerBlocked();
            end.SendAll(end.Bytes(100));
            end.AwaitPeerBlocked();
            end.Shutdown(SHUT_WR);
            end.Meet();
          },
          [](End& end) {
            end.Recv(1000, MSG_WAITALL);
            end.Recv(1000, MSG_WAITALL);
            end.Meet();
          }};
}

Case WaitallTimeout() {
  return {"receive.waitall_timeout", "MSG_WAITALL with SO_RCVTIMEO returns a part in time",
          SendsEach({100}), [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            const struct timeval patience = {0, 300000};
            setsockopt(end.fd(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
            const Watch watch;
            end.Recv(1000, MSG_WAITALL);
            end.Note(watch.Class(300));
            end.Meet();
          }};
}

Case WaitallInterrupted() {
  return {"receive.waitall_interrupted", "a signal ends MSG_WAITALL with what there is",
          SendsEach({100}), [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            struct sigaction action = {};
            action.sa_handler = [](int) {};
            sigaction(SIGALRM, &action, nullptr);
            const struct itimerval soon = {{0, 0}, {0, 150000}};
            setitimer(ITIMER_REAL, &soon, nullptr);
            end.Recv(1000, MSG_WAITALL);
            end.Meet();
          }};
}

Case Empty() {
  return {"receive.empty", "an empty socket: EAGAIN, also with PEEK, TRUNC, WAITALL; 0 for 0 bytes",
          [](End& end) { end.Meet(); },
          [](End& end) {
            end.Recv(10, MSG_DONTWAIT);
            end.Recv(10, MSG_DONTWAIT | MSG_PEEK);
            end.Recv(10, MSG_DONTWAIT | MSG_WAITALL);
            end.Recv(10, MSG_DONTWAIT | MSG_OOB);
            end.Recv(10, MSG_ERRQUEUE);
            end.Recv(0, MSG_DONTWAIT);
            end.NoteResult("fcntl", fcntl(end.fd(), F_SETFL, O_NONBLOCK));
            end.Recv(10);
            end.PollNow();
            end.Meet();
          }};
}

Case PeekOffset() {
  return {"receive.peek_off", "SO_PEEK_OFF: peeks go on where the last one ended",
          SendsEach({100, 100}), [](End& end) {
            end.SetOption("SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF, 0);
            end.Meet();
            end.Await(POLLIN);
            end.Recv(30, MSG_PEEK | MSG_DONTWAIT);
            end.Recv(30, MSG_PEEK | MSG_DONTWAIT);
            end.Meet();
            end.Meet();
            end.Recv(100, MSG_PEEK | MSG_DONTWAIT);
            end.GetOption("SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF);
            end.Recv(50);
            end.GetOption("SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF);
            end.Recv(200, MSG_PEEK | MSG_DONTWAIT);
            end.ReadExactly(150);
            end.Meet();
          }};
}

Case LowWaterFirst() {
  return {"receive.rcvlowat_first", "SO_RCVLOWAT set before the data: poll and recv() wait for it",
          [](End& end) {
            end.Meet();
            end.SendAll(end.Bytes(100));
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
            end.SendAll(end.Bytes(500));
            end.AwaitDelivered();
            end.Meet();
            end.AwaitPeerBlocked();
            end.SendAll(end.Bytes(300));
            end.AwaitPeerBlocked();
            end.SendAll(end.Bytes(300));
            end.Meet();
          },
          [](End& end) {
            end.SetOption("SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 500);
            end.Meet();
            end.Meet();
            end.Poll(POLLIN, 100);
            end.Meet();
            end.Meet();
            end.Poll(POLLIN);
            end.ReadExactly(600);
            end.Recv(1000);
            end.ReadExactly(0);
            end.Meet();
          }};
}

Case LowWaterAfter() {
  return {"receive.rcvlowat_after", "SO_RCVLOWAT set while fewer bytes are unread",
          [](End& end) {
            end.SendAll(end.Bytes(100));
            end.AwaitDelivered();
            end.Meet();
            end.AwaitPeerBlocked();
            end.SendAll(end.Bytes(500));
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.SetOption("SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 500);
            end.Poll(POLLIN, 100);
            end.Recv(1000);
            end.Meet();
          }};
}

Case Timeout() {
  return {"receive.rcvtimeo", "SO_RCVTIMEO: a blocked recv() gives up in time, not early",
          [](End& end) { end.Meet(); },
          [](End& end) {
            const struct timeval patience = {0, 250000};
            setsockopt(end.fd(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
            for (int i = 0; i < 2; i++) {
              const Watch watch;
              end.Recv(100);
              end.Note(watch.Class(250));
            }
            end.Meet();
          }};
}

Case BusyPoll() {
  return {"receive.busy_poll", "SO_BUSY_POLL on, blocked recv() and poll()",
          SendsToSleeper({100, 100}), [](End& end) {
            end.SetOption("SO_BUSY_POLL", SOL_SOCKET, SO_BUSY_POLL, 50);
            end.Recv(100);
            end.Poll(POLLIN);
            end.Recv(100);
            end.Meet();
          }};
}

Case Vectors() {
  return {"receive.vectors", "read(), readv(), recvmsg() and recvmmsg()", SendsEach({1000}),
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            char a[100], b[1], c[200];
            ssize_t got = read(end.fd(), a, sizeof(a));
            end.Note("read -> " + BytesText({a, static_cast<size_t>(got > 0 ? got : 0)}));
            struct iovec pieces[] = {{a, sizeof(a)}, {b, 0}, {b, sizeof(b)}, {c, sizeof(c)}};
            got = readv(end.fd(), pieces, 4);
            end.NoteResult("readv", got);
            end.Note(BytesText({c, sizeof(c)}));
            struct msghdr message = {};
            struct sockaddr_storage name = {};
            message.msg_name = &name;
            message.msg_namelen = sizeof(name);
            message.msg_iov = pieces;
            message.msg_iovlen = 4;
            char control[200];
            message.msg_control = control;
            message.msg_controllen = sizeof(control);
            end.NoteResult("recvmsg", recvmsg(end.fd(), &message, MSG_DONTWAIT));
            end.Note("flags " + std::to_string(message.msg_flags) + ", name of " +
                     std::to_string(message.msg_namelen) + ", control of " +
                     std::to_string(message.msg_controllen));
            struct mmsghdr messages[3] = {};
            for (struct mmsghdr& one : messages) {
              one.msg_hdr.msg_iov = &pieces[3];
              one.msg_hdr.msg_iovlen = 1;
            }
            end.NoteResult("recvmmsg", recvmmsg(end.fd(), messages, 3, MSG_DONTWAIT, nullptr));
            for (const struct mmsghdr& one : messages) {
              end.Note("message of " + std::to_string(one.msg_len));
            }
            end.Meet();
          }};
}

Case Pieces() {
  return {"receive.small_pieces", "a message read byte by byte; a large one in odd pieces",
          SendsEach({100, 100000}), [](End& end) {
            end.Meet();
            std::string all;
            for (int i = 0; i < 100; i++) {
              char byte = 0;
              const ssize_t got = recv(end.fd(), &byte, 1, 0);
              if (got != 1) {
                end.NoteResult("recv 1", got);
                break;
              }
              all += byte;
            }
            end.Note(BytesText(all));
            end.Recv(1, MSG_DONTWAIT);
            end.Meet();
            end.Meet();
            test::Hash hash;
            size_t done = 0;
            char buffer[7919];
            while (done < 100000 && end.Await(POLLIN)) {
              const ssize_t got =
                  recv(end.fd(), buffer, std::min<size_t>(7919, 100000 - done), MSG_DONTWAIT);
              if (got <= 0) {
                end.NoteResult("recv", got);
                break;
              }
              hash.Add({buffer, static_cast<size_t>(got)});
              done += got;
            }
            end.Note(std::to_string(done) + " bytes with hash " + hash.Text());
            end.Recv(1, MSG_DONTWAIT);
            end.Meet();
          }};
}

Case Fionread() {
  return {"receive.fionread", "FIONREAD counts what is unread, also after a part was read",
          SendsEach({100, 1000, 5000}), [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.Ioctl("FIONREAD", FIONREAD);
            end.Recv(30);
            end.Ioctl("FIONREAD", FIONREAD);
            end.Meet();
            end.Meet();
            end.Ioctl("FIONREAD", FIONREAD);
            end.Meet();
            end.Meet();
            end.Ioctl("FIONREAD", FIONREAD);
            end.ReadExactly(6070);
            end.Ioctl("FIONREAD", FIONREAD);
            end.Meet();
          }};
}

Case FionreadMixed() {
  return {"receive.fionread_large",
          "FIONREAD while more is unread than the engine may hand over at once",
          [](End& end) {
            // More than any receive buffer takes by one way only.
            end.SetOption("SO_SNDBUF", SOL_SOCKET, SO_SNDBUF, 1 << 20);
            size_t sent = 0;
            for (int i = 0; i < 20; i++) {
              const std::string data = end.Bytes(16384);
              const ssize_t got = send(end.fd(), data.data(), data.size(), MSG_DONTWAIT);
              sent += got > 0 ? got : 0;
            }
            end.scratch(0) = sent;
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            // As nginx, Java and .NET do: read as much as FIONREAD says, until it says 0.
            size_t done = 0;
            std::vector<char> buffer(1 << 20);
            for (int rounds = 0; rounds < 10000; rounds++) {
              const int there = end.Ioctl("FIONREAD", FIONREAD, false);
              if (there <= 0) {
                break;
              }
              const ssize_t got = recv(end.fd(), buffer.data(),
                                       std::min<size_t>(there, buffer.size()), MSG_DONTWAIT);
              if (got <= 0) {
                end.NoteResult("recv of what FIONREAD counted", got);
                break;
              }
              done += got;
            }
            end.Note(done == end.scratch(0) ? "read all that was sent" : "bytes were not counted");
            end.Meet();
          }};
}

Case FionreadEdge() {
  return {"receive.fionread_edge",
          "edge-triggered reader that stops when FIONREAD says 0 (nginx): a large upload",
          [](End& end) {
            end.SendAll(end.Bytes(8 << 20));
            end.Meet();
          },
          [](End& end) {
            const UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
            struct epoll_event event = {};
            event.events = EPOLLIN | EPOLLET | EPOLLRDHUP;
            epoll_ctl(epoll.get(), EPOLL_CTL_ADD, end.fd(), &event);
            size_t done = 0;
            std::vector<char> buffer(65536);
            while (done < (8u << 20)) {
              if (end.Call("epoll_wait",
                           [&] { return epoll_wait(epoll.get(), &event, 1, 2000); }) <= 0) {
                end.Note("no further edge");
                break;
              }
              for (;;) {
                const ssize_t got = recv(end.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
                if (got <= 0) {
                  break;
                }
                done += got;
                // A slow consumer: the engine has to go by TCP in between.
                if (done % (1 << 18) < 65536) {
                  End::Sleep(1);
                }
                if (end.Ioctl("FIONREAD", FIONREAD, false) == 0) {
                  break;
                }
              }
            }
            end.Note(done == (8u << 20) ? "all of it" : "stalled before all was read");
            end.Meet();
          }};
}

Case TcpInq() {
  return {"receive.tcp_inq", "TCP_INQ: recvmsg() tells how much is left", SendsEach({100}),
          [](End& end) {
            end.SetOption("TCP_INQ", SOL_TCP, TCP_INQ, 1);
            end.Meet();
            end.Await(POLLIN);
            for (int i = 0; i < 2; i++) {
              char data[60];
              struct iovec piece = {data, sizeof(data)};
              alignas(struct cmsghdr) char space[100];
              struct msghdr message = {};
              message.msg_iov = &piece;
              message.msg_iovlen = 1;
              message.msg_control = space;
              message.msg_controllen = sizeof(space);
              end.NoteResult("recvmsg", recvmsg(end.fd(), &message, MSG_DONTWAIT));
              const struct cmsghdr* header = CMSG_FIRSTHDR(&message);
              int left = -1;
              if (header != nullptr && header->cmsg_type == TCP_CM_INQ) {
                memcpy(&left, CMSG_DATA(header), sizeof(left));
              }
              end.Note("left " + std::to_string(left));
            }
            end.Meet();
          }};
}

// As in <linux/tcp.h>, which cannot be included with <netinet/tcp.h>.
struct ZerocopyRequest {
  uint64_t address;
  uint32_t length;
  uint32_t recv_skip_hint;
  uint32_t inq;
  int32_t err;
  uint64_t copybuf_address;
  int32_t copybuf_len;
  uint32_t flags;
};

Case ZerocopyReceive() {
  return {"receive.zerocopy", "TCP_ZEROCOPY_RECEIVE: mapped or copied, all bytes come",
          SendsEach({20000}), [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            void* area = mmap(nullptr, 1 << 16, PROT_READ, MAP_SHARED, end.fd(), 0);
            end.Note(area != MAP_FAILED ? "mapped" : "mmap -> " + ErrnoText(errno));
            size_t done = 0;
            std::vector<char> copy(1 << 16);
            for (int i = 0; i < 10 && done < 20000; i++) {
              ZerocopyRequest ask = {};
              ask.address = reinterpret_cast<uint64_t>(area);
              ask.length = 1 << 16;
              ask.copybuf_address = reinterpret_cast<uint64_t>(copy.data());
              ask.copybuf_len = static_cast<int>(copy.size());
              socklen_t size = sizeof(ask);
              if (getsockopt(end.fd(), SOL_TCP, TCP_ZEROCOPY_RECEIVE, &ask, &size) != 0) {
                end.NoteResult("TCP_ZEROCOPY_RECEIVE", -1);
                break;
              }
              done += ask.length + (ask.copybuf_len > 0 ? ask.copybuf_len : 0);
              if (ask.length == 0 && ask.copybuf_len <= 0) {
                const ssize_t got = recv(end.fd(), copy.data(),
                                         ask.recv_skip_hint ? ask.recv_skip_hint : 1, MSG_DONTWAIT);
                done += got > 0 ? got : 0;
                if (ask.recv_skip_hint == 0) {
                  end.Note("told of nothing to read");
                  break;
                }
              }
            }
            end.Note(std::to_string(done) + " bytes");
            end.Meet();
          }};
}

Case BadBuffer() {
  return {"receive.bad_address", "recv() into memory that cannot be written: EFAULT, nothing lost",
          SendsEach({100}), [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            void* bad = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            end.NoteResult("recv into bad memory", recv(end.fd(), bad, 100, MSG_DONTWAIT));
            char good[10];
            struct iovec pieces[] = {{good, sizeof(good)}, {bad, 50}};
            end.NoteResult("readv into 10 good and 50 bad bytes", readv(end.fd(), pieces, 2));
            end.Recv(1000, MSG_DONTWAIT);
            end.Meet();
          }};
}

Case Blocked() {
  return {"receive.blocked",
          "a blocked recv() sleeps on and is woken by each message",
          SendsToSleeper({1, 100, 20000}),
          [](End& end) {
            end.Recv(100);
            end.Recv(1000);
            end.ReadExactly(20000);
            end.Meet();
          },
          Start::kBoth,
          {IpMode::kV4, IpMode::kV6, IpMode::kMapped, IpMode::kMixed}};
}

Case Interrupted() {
  return {"receive.interrupted",
          "a signal in a blocked recv(): EINTR, or a restart with SA_RESTART",
          [](End& end) {
            end.Meet();
            end.Sleep(600);
            end.SendAll(end.Bytes(10));
            end.Meet();
          },
          [](End& end) {
            struct sigaction action = {};
            action.sa_handler = [](int) {};
            sigaction(SIGALRM, &action, nullptr);
            const struct itimerval soon = {{0, 0}, {0, 100000}};
            end.Meet();
            setitimer(ITIMER_REAL, &soon, nullptr);
            end.Recv(100);
            action.sa_flags = SA_RESTART;
            sigaction(SIGALRM, &action, nullptr);
            setitimer(ITIMER_REAL, &soon, nullptr);
            end.Recv(100);
            end.Meet();
          }};
}

Case Steady() {
  return {"receive.no_spurious_wake",
          "a blocked recv() does not return while nothing is sent to it",
          [](End& end) {
            end.AwaitPeerBlocked();
            // What touches the connection without bringing data: acknowledgements, options.
            for (int i = 0; i < 20; i++) {
              end.SetOption("TCP_NODELAY", SOL_TCP, TCP_NODELAY, 1);
              end.Ioctl("FIONREAD", FIONREAD);
              end.PollNow();
              End::Sleep(10);
            }
            end.SendAll(end.Bytes(10));
            end.Meet();
          },
          [](End& end) {
            end.Recv(100);
            end.Meet();
          }};
}

}  // namespace

Cases ReceiveCases() {
  return {Peek(),
          PeekBlocked(),
          PeekWaitall(),
          Trunc(),
          PeekTrunc(),
          Waitall(),
          WaitallCallFirst(),
          WaitallEnd(),
          WaitallTimeout(),
          WaitallInterrupted(),
          Empty(),
          PeekOffset(),
          LowWaterFirst(),
          LowWaterAfter(),
          Timeout(),
          BusyPoll(),
          Vectors(),
          Pieces(),
          Fionread(),
          FionreadMixed(),
          FionreadEdge(),
          TcpInq(),
          ZerocopyReceive(),
          BadBuffer(),
          Blocked(),
          Interrupted(),
          Steady()};
}

}  // namespace shunt::conformance
