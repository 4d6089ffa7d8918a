// SPDX-License-Identifier: Apache-2.0
//
// Ways to send. The server side reads and says what arrived.
#include <fcntl.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"

namespace shunt::conformance {
namespace {

UniqueFd FileOf(const std::string& data) {
  UniqueFd file(memfd_create("data", MFD_CLOEXEC));
  (void)!write(file.get(), data.data(), data.size());
  lseek(file.get(), 0, SEEK_SET);
  return file;
}

// Reads what a client program of this file sent, then lets it go on.
Program Reads(size_t size) {
  return [size](End& end) {
    end.ReadExactly(size);
    end.Meet();
  };
}

Program ReadsAll() {
  return [](End& end) { end.ReadToEnd(); };
}

struct iovec Vector(std::string& data) { return {data.data(), data.size()}; }

// An address that no program may read or write.
void* BadAddress() {
  static void* const bad = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return bad;
}

Case Sizes() {
  return {"send.sizes",
          "send() of 1 byte to 1 MiB, each read to its last byte",
          [](End& end) {
            for (const size_t size : {1, 100, 1448, 4096, 16384, 65535, 65536, 65537, 1 << 20}) {
              end.SendAll(end.Bytes(size));
              end.Meet();
            }
          },
          [](End& end) {
            for (const size_t size : {1, 100, 1448, 4096, 16384, 65535, 65536, 65537, 1 << 20}) {
              end.ReadExactly(size);
              end.Meet();
            }
          },
          Start::kBoth,
          {IpMode::kV4, IpMode::kV6, IpMode::kMapped, IpMode::kMixed}};
}

Case Write() {
  return {"send.write", "write() instead of send()",
          [](End& end) {
            const std::string data = end.Bytes(3000);
            end.NoteResult("write", end.Call("write", [&] {
              return write(end.fd(), data.data(), data.size());
            }));
            end.Meet();
          },
          Reads(3000)};
}

Case Writev() {
  return {"send.writev", "writev() of five pieces, one of them empty",
          [](End& end) {
            std::string a = end.Bytes(10), b = end.Bytes(5000), c, d = end.Bytes(1),
                        e = end.Bytes(70000);
            struct iovec pieces[] = {Vector(a), Vector(b), Vector(c), Vector(d), Vector(e)};
            end.NoteResult("writev",
                           end.Call("writev", [&] { return writev(end.fd(), pieces, 5); }));
            end.Meet();
          },
          Reads(75011)};
}

Case Sendmsg() {
  return {"send.sendmsg", "sendmsg() with 64 pieces and a control message",
          [](End& end) {
            std::vector<std::string> data;
            std::vector<struct iovec> pieces;
            for (int i = 0; i < 64; i++) {
              data.push_back(end.Bytes(i + 1));
            }
            for (std::string& piece : data) {
              pieces.push_back(Vector(piece));
            }
            alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(uint32_t))] = {};
            struct msghdr message = {};
            message.msg_iov = pieces.data();
            message.msg_iovlen = pieces.size();
            message.msg_control = space;
            message.msg_controllen = sizeof(space);
            struct cmsghdr* header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SO_TIMESTAMPING;
            header->cmsg_len = CMSG_LEN(sizeof(uint32_t));
            end.NoteResult("sendmsg",
                           end.Call("sendmsg", [&] { return sendmsg(end.fd(), &message, 0); }));
            end.Meet();
          },
          Reads(64 * 65 / 2)};
}

Case SendmsgBadControl() {
  return {"send.control_refused", "sendmsg() with a control message that TCP refuses",
          [](End& end) {
            std::string data = end.Bytes(10);
            struct iovec piece = Vector(data);
            alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
            struct msghdr message = {};
            message.msg_iov = &piece;
            message.msg_iovlen = 1;
            message.msg_control = space;
            message.msg_controllen = sizeof(space);
            struct cmsghdr* header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = 9999;
            header->cmsg_len = CMSG_LEN(sizeof(int));
            end.NoteResult("sendmsg", sendmsg(end.fd(), &message, MSG_NOSIGNAL));
            end.Send("after");
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.Recv(100, MSG_DONTWAIT);
          }};
}

Case Sendmmsg() {
  return {"send.sendmmsg", "sendmmsg() of four messages",
          [](End& end) {
            std::string data[4] = {end.Bytes(10), end.Bytes(2000), end.Bytes(1), end.Bytes(9000)};
            struct iovec pieces[4];
            struct mmsghdr messages[4] = {};
            for (int i = 0; i < 4; i++) {
              pieces[i] = Vector(data[i]);
              messages[i].msg_hdr.msg_iov = &pieces[i];
              messages[i].msg_hdr.msg_iovlen = 1;
            }
            end.NoteResult("sendmmsg", end.Call("sendmmsg", [&] {
              return sendmmsg(end.fd(), messages, 4, 0);
            }));
            for (const struct mmsghdr& message : messages) {
              end.Note("message of " + std::to_string(message.msg_len));
            }
            end.Meet();
          },
          Reads(11011)};
}

Case SendtoAddress() {
  return {"send.sendto", "sendto() with an address on a connected socket",
          [](End& end) {
            const test::Endpoint elsewhere = end.DialAddress(1);
            const std::string data = end.Bytes(100);
            end.NoteResult("sendto", sendto(end.fd(), data.data(), data.size(), MSG_NOSIGNAL,
                                            elsewhere.get(), elsewhere.size()));
            end.Meet();
          },
          Reads(100)};
}

Case Nothing() {
  return {"send.zero_bytes", "send() of no bytes is no message; data follows",
          [](End& end) {
            end.Send("");
            end.Send("", MSG_MORE);
            end.NoteResult("write", write(end.fd(), "", 0));
            end.Meet();
            end.Meet();
            end.Send("data");
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.PollNow();
            end.Recv(10, MSG_DONTWAIT);
            end.Meet();
            end.ReadExactly(4);
            end.Meet();
          }};
}

Case Sendfile() {
  return {"send.sendfile", "sendfile() of 300,000 bytes from the middle of a file",
          [](End& end) {
            const UniqueFd file = FileOf(end.Bytes(400000));
            off_t offset = 1000;
            size_t done = 0;
            while (done < 300000) {
              const ssize_t sent = end.Call("sendfile", [&] {
                return sendfile(end.fd(), file.get(), &offset, 300000 - done);
              });
              if (sent <= 0) {
                end.NoteResult("sendfile", sent);
                break;
              }
              done += sent;
            }
            end.Note("sendfile " + std::to_string(done) + ", offset " + std::to_string(offset));
            end.Send("after");
            end.Meet();
          },
          Reads(300005)};
}

Case SpliceFromPipe() {
  return {"send.splice_from_pipe", "splice() from a pipe to the socket",
          [](End& end) {
            int ends[2];
            (void)!pipe2(ends, O_CLOEXEC);
            const UniqueFd in(ends[0]), out(ends[1]);
            for (int i = 0; i < 5; i++) {
              const std::string data = end.Bytes(30000);
              (void)!write(out.get(), data.data(), data.size());
              size_t done = 0;
              while (done < data.size()) {
                const ssize_t moved = end.Call("splice", [&] {
                  return splice(in.get(), nullptr, end.fd(), nullptr, data.size() - done,
                                i % 2 ? SPLICE_F_MORE : SPLICE_F_MOVE);
                });
                if (moved <= 0) {
                  end.NoteResult("splice", moved);
                  break;
                }
                done += moved;
              }
            }
            end.Send("after");
            end.Meet();
          },
          Reads(150005)};
}

Case Vmsplice() {
  return {"send.vmsplice", "vmsplice() into a pipe, splice() to the socket",
          [](End& end) {
            int ends[2];
            (void)!pipe2(ends, O_CLOEXEC);
            const UniqueFd in(ends[0]), out(ends[1]);
            std::string data = end.Bytes(20000);
            struct iovec piece = Vector(data);
            end.NoteResult("vmsplice", vmsplice(out.get(), &piece, 1, 0));
            size_t done = 0;
            while (done < data.size()) {
              const ssize_t moved = end.Call("splice", [&] {
                return splice(in.get(), nullptr, end.fd(), nullptr, data.size() - done, 0);
              });
              if (moved <= 0) {
                end.NoteResult("splice", moved);
                break;
              }
              done += moved;
            }
            end.Meet();
          },
          Reads(20000)};
}

Case More() {
  return {"send.more", "MSG_MORE holds back at most a while; the bytes and their order",
          [](End& end) {
            end.Send(10, MSG_MORE);
            end.Send(20, MSG_MORE);
            end.Send(30);
            end.Meet();
            end.Send(40, MSG_MORE);  // and nothing after it
            end.Meet();
          },
          [](End& end) {
            end.ReadExactly(60);
            end.Meet();
            end.ReadExactly(40);
            end.Meet();
          }};
}

Case Cork() {
  return {"send.cork", "TCP_CORK on, writes, off; and closed while corked",
          [](End& end) {
            end.SetOption("TCP_CORK", SOL_TCP, TCP_CORK, 1);
            end.Send(10);
            end.Send(5000);
            end.SetOption("TCP_CORK", SOL_TCP, TCP_CORK, 0);
            end.Meet();
            end.SetOption("TCP_CORK", SOL_TCP, TCP_CORK, 1);
            end.Send(77);
            end.Close();
          },
          [](End& end) {
            end.ReadExactly(5010);
            end.Meet();
            end.ReadToEnd();
          }};
}

Case Eor() {
  return {"send.eor", "MSG_EOR between messages leaves the stream as it is",
          [](End& end) {
            end.Send(10, MSG_EOR);
            end.Send(10, MSG_EOR);
            end.Send(10);
            end.Meet();
          },
          Reads(30)};
}

Case Zerocopy() {
  return {"send.zerocopy", "MSG_ZEROCOPY: the completions arrive in the error queue",
          [](End& end) {
            end.SetOption("SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 1);
            const std::string data = end.Bytes(50000);
            end.Send(data, MSG_ZEROCOPY);
            end.Send(std::string_view(data).substr(0, 20000), MSG_ZEROCOPY);
            end.Meet();
            // Completions of neighbours may come in one: count what is completed.
            uint32_t completed = 0;
            for (int i = 0; i < 20 && completed < 2; i++) {
              struct pollfd entry = {end.fd(), 0, 0};
              end.Call("poll for completions", [&] { return poll(&entry, 1, 100); });
              char space[200];
              struct msghdr message = {};
              message.msg_control = space;
              message.msg_controllen = sizeof(space);
              if (recvmsg(end.fd(), &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
                continue;
              }
              for (struct cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
                   header = CMSG_NXTHDR(&message, header)) {
                struct sock_extended_err error;
                memcpy(&error, CMSG_DATA(header), sizeof(error));
                if (error.ee_origin == SO_EE_ORIGIN_ZEROCOPY) {
                  completed += error.ee_data - error.ee_info + 1;
                }
              }
            }
            end.Note("completed " + std::to_string(completed) + " of 2");
          },
          Reads(70000)};
}

Case Oob() {
  return {"send.oob", "MSG_OOB: POLLPRI, the byte out of band, SIOCATMARK, the rest in order",
          [](End& end) {
            end.Send("ab");
            end.Send("cd!", MSG_OOB);
            end.Send("ef");
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN | POLLPRI);
            end.PollNow();
            end.Recv(10, MSG_OOB | MSG_DONTWAIT);
            end.Ioctl("SIOCATMARK", SIOCATMARK);
            end.Recv(10, MSG_DONTWAIT);
            end.Ioctl("SIOCATMARK", SIOCATMARK);
            end.Recv(10, MSG_DONTWAIT);
            end.Recv(10, MSG_OOB | MSG_DONTWAIT);
            end.Meet();
          }};
}

Case OobInline() {
  return {"send.oob_inline", "SO_OOBINLINE: the byte stays in the stream, with a mark",
          [](End& end) {
            end.Meet();
            end.Send("ab");
            end.Send("!", MSG_OOB);
            end.Send("cd");
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            end.SetOption("SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, 1);
            end.Meet();
            end.Meet();
            end.Await(POLLIN);
            end.PollNow();
            end.Recv(10, MSG_DONTWAIT);
            end.Ioctl("SIOCATMARK", SIOCATMARK);
            end.Recv(10, MSG_DONTWAIT);
            end.Meet();
          }};
}

Case SigUrg() {
  return {"send.sigurg", "MSG_OOB raises SIGURG in the owner of the other socket",
          [](End& end) {
            end.Meet();
            end.Send("!", MSG_OOB);
            end.Meet();
          },
          [](End& end) {
            sigset_t urgent;
            sigemptyset(&urgent);
            sigaddset(&urgent, SIGURG);
            sigprocmask(SIG_BLOCK, &urgent, nullptr);
            fcntl(end.fd(), F_SETOWN, getpid());
            end.Meet();
            const struct timespec patience = {1, 0};
            const int got = static_cast<int>(end.Call(
                "sigtimedwait", [&] { return sigtimedwait(&urgent, nullptr, &patience); }));
            end.Note(got == SIGURG ? "SIGURG" : "no SIGURG");
            end.Meet();
          }};
}

Case BadAddressCase() {
  return {"send.bad_address", "send() from memory that cannot be read, then good data",
          [](End& end) {
            end.NoteResult("send", send(end.fd(), BadAddress(), 100, MSG_NOSIGNAL));
            std::string good = end.Bytes(1000);
            struct iovec pieces[] = {Vector(good), {BadAddress(), 1000}};
            const ssize_t sent = writev(end.fd(), pieces, 2);
            end.NoteResult("writev of 1000 good and 1000 bad bytes", sent);
            end.Send("after");
            end.Close();
          },
          ReadsAll()};
}

Case Huge() {
  return {"send.huge", "one send() of 16 MiB while the other end reads",
          [](End& end) {
            const std::string data = end.Bytes(16 << 20);
            end.NoteResult("send", end.Call("send", [&] {
              return send(end.fd(), data.data(), data.size(), MSG_NOSIGNAL);
            }));
            end.Meet();
          },
          Reads(16 << 20)};
}

// Fills both buffers by calls that do not block; the bytes taken.
size_t Fill(End& end, size_t chunk) {
  size_t total = 0;
  for (;;) {
    const std::string data = end.Bytes(chunk);
    const ssize_t sent = send(end.fd(), data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) {
      total += sent;
    }
    if (sent < static_cast<ssize_t>(data.size())) {
      struct pollfd entry = {end.fd(), POLLOUT, 0};
      if (end.Call("fill", [&] { return poll(&entry, 1, 600); }) == 0) {
        return total;
      }
    }
    if (total > (64u << 20)) {
      end.Note("64 MiB taken with nobody reading");
      return total;
    }
  }
}

// A send() that cannot be finished. How much of it fits is not told.
void NoteSendInto(End& end) {
  const std::string data(8 << 20, 'x');
  const ssize_t sent = end.Call("send into a full buffer", [&] {
    return send(end.fd(), data.data(), data.size(), MSG_NOSIGNAL);
  });
  end.Note("send into a full buffer -> " + (sent < 0 ? ErrnoText(errno)
                                            : sent == static_cast<ssize_t>(data.size())
                                                ? "all of it"
                                                : "a part"));
}

Case Interrupted() {
  return {"send.interrupted",
          "a signal in a blocked send(): EINTR if nothing was taken",
          [](End& end) {
            Fill(end, 65536);
            struct sigaction action = {};
            action.sa_handler = [](int) {};
            sigaction(SIGALRM, &action, nullptr);
            const struct itimerval soon = {{0, 0}, {0, 150000}};
            setitimer(ITIMER_REAL, &soon, nullptr);
            NoteSendInto(end);
            end.PollNow();
          },
          [](End& end) { (void)end; },
          Start::kBoth,
          {IpMode::kV4, IpMode::kV6}};
}

Case Timeout() {
  return {"send.timeout",
          "SO_SNDTIMEO: a blocked send() gives up in time",
          [](End& end) {
            Fill(end, 65536);
            const struct timeval patience = {0, 200000};
            setsockopt(end.fd(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
            const Watch watch;
            NoteSendInto(end);
            end.Note(watch.Class(200));
          },
          [](End& end) { (void)end; },
          Start::kWarm,
          {IpMode::kV4, IpMode::kV6}};
}

Case Full() {
  return {"send.until_full", "what is accepted until EAGAIN is read back to the last byte",
          [](End& end) {
            end.scratch(0) = Fill(end, 10000);
            end.PollNow();
            end.NoteResult("send", send(end.fd(), "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL));
            end.Meet();
            end.Meet();
            end.Poll(POLLOUT);
          },
          [](End& end) {
            end.Meet();
            std::vector<char> buffer(65536);
            test::Hash hash, expected;
            const size_t total = end.scratch(0);
            size_t done = 0;
            std::string wrong;
            test::Pattern pattern(end.seed() * 2 + 1);
            while (done < total && end.Await(POLLIN)) {
              const ssize_t got = recv(end.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
              if (got <= 0) {
                end.NoteResult("recv", got);
                break;
              }
              hash.Add({buffer.data(), static_cast<size_t>(got)});
              std::string right = pattern.At(done, got);
              for (char& byte : right) {
                byte = static_cast<char>('a' + static_cast<unsigned char>(byte) % 26);
              }
              expected.Add(right);
              done += got;
            }
            end.Note(done == total && hash.Text() == expected.Text() ? "all of it, in order"
                                                                     : "not what was sent");
            end.Meet();
          }};
}

Case TwoSendsOneRead() {
  return {"send.coalesced", "two sends are one read: no message borders in a stream",
          [](End& end) {
            end.SetOption("TCP_NODELAY", SOL_TCP, TCP_NODELAY, 1);
            end.Send(10);
            end.Send(20);
            end.Send(30);
            end.AwaitDelivered();
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            end.Recv(15);
            end.Recv(100);
            end.Recv(100, MSG_DONTWAIT);
          }};
}

Case BothWays() {
  return {"send.both_ways_at_once", "both ends send 200,000 bytes, then both read",
          [](End& end) {
            end.SendAll(end.Bytes(200000));
            end.ReadExactly(200000);
            end.Meet();
          },
          [](End& end) {
            end.SendAll(end.Bytes(200000));
            end.ReadExactly(200000);
            end.Meet();
          }};
}

}  // namespace

Cases SendCases() {
  return {Sizes(),
          Write(),
          Writev(),
          Sendmsg(),
          SendmsgBadControl(),
          Sendmmsg(),
          SendtoAddress(),
          Nothing(),
          Sendfile(),
          SpliceFromPipe(),
          Vmsplice(),
          More(),
          Cork(),
          Eor(),
          Zerocopy(),
          Oob(),
          OobInline(),
          SigUrg(),
          BadAddressCase(),
          Huge(),
          Interrupted(),
          Timeout(),
          Full(),
          TwoSendsOneRead(),
          BothWays()};
}

}  // namespace shunt::conformance
