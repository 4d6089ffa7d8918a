// SPDX-License-Identifier: Apache-2.0
//
// One end, several descriptors, threads or processes.
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"

namespace shunt::conformance {
namespace {

Program Echo(size_t size, int times) {
  return [size, times](End& end) {
    for (int i = 0; i < times; i++) {
      end.ReadExactly(size);
      end.Send(size);
    }
    end.ReadToEnd();
  };
}

int WaitFor(End& end, pid_t child) {
  int status = 0;
  end.Call("waitpid", [&] { return waitpid(child, &status, 0); });
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool SendRecv(int fd, size_t size) {
  std::string data(size, 'c');
  if (send(fd, data.data(), size, MSG_NOSIGNAL) != static_cast<ssize_t>(size)) {
    return false;
  }
  for (size_t done = 0; done < size;) {
    const ssize_t got = recv(fd, data.data(), size - done, 0);
    if (got <= 0) {
      return false;
    }
    done += got;
  }
  return true;
}

Case Fork() {
  return {"sharing.fork",
          "parent and child use the end in turn; the parent's close does not end it",
          [](End& end) {
            end.Send(100);
            end.ReadExactly(100);
            const pid_t first = fork();
            if (first == 0) {
              _exit(SendRecv(end.fd(), 100) ? 0 : 1);
            }
            end.NoteResult("child", WaitFor(end, first));
            int go[2];
            (void)!pipe2(go, O_CLOEXEC);
            const pid_t second = fork();
            if (second == 0) {
              char byte;
              (void)!read(go[0], &byte, 1);
              _exit(SendRecv(end.fd(), 100) ? 0 : 1);
            }
            end.socket().Reset();
            (void)!write(go[1], "g", 1);
            end.NoteResult("child of a parent that closed", WaitFor(end, second));
          },
          Echo(100, 3)};
}

Case Dup() {
  return {"sharing.dup", "dup(): O_NONBLOCK is shared, close of one leaves the other",
          [](End& end) {
            UniqueFd other(dup(end.fd()));
            end.NoteResult("fcntl", fcntl(other.get(), F_SETFL, O_NONBLOCK));
            end.Recv(10);
            end.NoteResult("fcntl", fcntl(end.fd(), F_SETFL, 0));
            end.socket() = std::move(other);
            end.Send(100);
            end.ReadExactly(100);
            end.Close();
          },
          Echo(100, 1)};
}

Case PassDescriptor() {
  return {"sharing.scm_rights",
          "the end travels over a Unix socket to a process that goes on with it",
          [](End& end) {
            int unix_ends[2];
            (void)!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, unix_ends);
            const UniqueFd mine(unix_ends[0]), theirs(unix_ends[1]);
            const int raw = end.fd();
            const pid_t child = fork();
            if (child == 0) {
              close(raw);  // it must come by the message
              char byte;
              struct iovec piece = {&byte, 1};
              alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
              struct msghdr message = {};
              message.msg_iov = &piece;
              message.msg_iovlen = 1;
              message.msg_control = space;
              message.msg_controllen = sizeof(space);
              if (recvmsg(theirs.get(), &message, 0) != 1) {
                _exit(2);
              }
              int fd;
              memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
              // A part of the answer to the parent's question is unread.
              char rest[50];
              size_t done = 0;
              while (done < sizeof(rest)) {
                const ssize_t got = recv(fd, rest, sizeof(rest) - done, 0);
                if (got <= 0) {
                  _exit(3);
                }
                done += got;
              }
              _exit(SendRecv(fd, 100) && SendRecv(fd, 100) ? 0 : 1);
            }
            end.Send(100);
            end.ReadExactly(50);
            char byte = 'd';
            struct iovec piece = {&byte, 1};
            alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
            struct msghdr message = {};
            message.msg_iov = &piece;
            message.msg_iovlen = 1;
            message.msg_control = space;
            message.msg_controllen = sizeof(space);
            struct cmsghdr* header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(header), &raw, sizeof(raw));
            (void)!sendmsg(mine.get(), &message, 0);
            end.socket().Reset();
            end.NoteResult("the new owner", WaitFor(end, child));
          },
          Echo(100, 3)};
}

Case TwoReaders() {
  return {"sharing.two_readers", "two blocked readers: every byte goes to one of them, both end",
          [](End& end) {
            for (int i = 0; i < 200; i++) {
              end.SendAll(std::string(50, 'x'));
              if (i % 20 == 0) {
                End::Sleep(1);
              }
            }
            end.Shutdown(SHUT_WR);
            end.Meet();
          },
          [](End& end) {
            std::atomic<size_t> total = 0;
            std::string ends[2];
            std::vector<std::thread> readers;
            for (int i = 0; i < 2; i++) {
              readers.emplace_back([&, i] {
                char buffer[64];
                ssize_t got;
                while ((got = recv(end.fd(), buffer, sizeof(buffer), 0)) > 0) {
                  total += got;
                }
                ends[i] = got == 0 ? "EOF" : ErrnoText(errno);
              });
            }
            end.Call("two readers", [&] {
              for (std::thread& reader : readers) {
                reader.join();
              }
              return 0;
            });
            end.Note("read " + std::to_string(total) + ", " + ends[0] + " and " + ends[1]);
            end.Meet();
          }};
}

Case WriterAndReader() {
  return {"sharing.full_duplex", "one thread sends while another is blocked in recv(), both ways",
          [](End& end) {
            std::thread writer([&] {
              const std::string data(1000, 'a');
              for (int i = 0; i < 500; i++) {
                (void)!send(end.fd(), data.data(), data.size(), MSG_NOSIGNAL);
              }
              shutdown(end.fd(), SHUT_WR);
            });
            end.ReadToEnd();
            writer.join();
            end.Meet();
          },
          [](End& end) {
            std::thread writer([&] {
              const std::string data(777, 'b');
              for (int i = 0; i < 500; i++) {
                (void)!send(end.fd(), data.data(), data.size(), MSG_NOSIGNAL);
              }
              shutdown(end.fd(), SHUT_WR);
            });
            end.ReadToEnd();
            writer.join();
            end.Meet();
          }};
}

// Records of one writer: its letter, `size` times. Returns what is mixed up.
struct Records {
  size_t size;
  std::map<char, int> whole;
  int broken = 0;
  void Add(const std::string& stream) {
    for (size_t at = 0; at < stream.size(); at += size) {
      const std::string record = stream.substr(at, size);
      if (record.find_first_not_of(record[0]) == std::string::npos) {
        whole[record[0]]++;
      } else {
        broken++;
      }
    }
  }
};

Case TwoWriters(size_t size, int count, const char* name) {
  return {name,
          "two threads write records of " + std::to_string(size) +
              " bytes, the reader keeps up: are they whole?",
          [size, count](End& end) {
            std::vector<std::thread> writers;
            std::atomic<int> failures = 0;
            for (const char letter : {'a', 'b'}) {
              writers.emplace_back([&, letter] {
                const std::string data(size, letter);
                for (int i = 0; i < count; i++) {
                  failures +=
                      send(end.fd(), data.data(), size, MSG_NOSIGNAL) != static_cast<ssize_t>(size);
                }
              });
            }
            end.Call("two writers", [&] {
              for (std::thread& writer : writers) {
                writer.join();
              }
              return 0;
            });
            end.Note("failed sends " + std::to_string(failures));
            end.Shutdown(SHUT_WR);
            end.Meet();
          },
          [size, count](End& end) {
            std::string all;
            std::vector<char> buffer(1 << 20);
            for (;;) {
              const ssize_t got =
                  end.Call("recv", [&] { return recv(end.fd(), buffer.data(), buffer.size(), 0); });
              if (got <= 0) {
                break;
              }
              all.append(buffer.data(), got);
            }
            Records records{size, {}, 0};
            records.Add(all);
            end.Note("bytes " + std::to_string(all.size()));
            // TCP itself mixes records when a writer has to wait for memory: that is
            // an outcome, and the set of plain runs says whether it is one here.
            end.Note(records.broken == 0 && records.whole['a'] == count ? "all whole" : "mixed");
            end.Meet();
          },
          Start::kBoth,
          {IpMode::kV4, IpMode::kV6},
          Route::kDirect,
          {},
          {},
          milliseconds(5000),
          8,
          5};
}

Case CloseInOtherThread() {
  return {"sharing.close_while_reading",
          "close() in one thread leaves another's recv() asleep until data",
          [](End& end) {
            end.AwaitPeerBlocked();
            End::Sleep(300);
            end.SendAll("wake");
            end.Meet();
          },
          [](End& end) {
            const int raw = end.fd();
            std::thread closer([raw] {
              End::Sleep(100);
              close(raw);
            });
            end.Recv(100);
            closer.join();
            end.Recv(100);  // EBADF
            end.Meet();
          }};
}

Case SignalStorm() {
  return {"sharing.signals", "a timer signal every 5 ms (a profiler) while requests are answered",
          [](End& end) {
            for (int i = 0; i < 50; i++) {
              end.SendAll(std::string(100, 'q'));
              if (!end.ReadExactly(100, false)) {
                return;
              }
              End::Sleep(5);
            }
            end.Note("50 answers");
            end.Meet();
          },
          [](End& end) {
            struct sigaction action = {};
            action.sa_handler = [](int) {};
            action.sa_flags = SA_RESTART;
            sigaction(SIGALRM, &action, nullptr);
            const struct itimerval often = {{0, 5000}, {0, 5000}};
            setitimer(ITIMER_REAL, &often, nullptr);
            int bad = 0;
            for (int i = 0; i < 50 && bad == 0; i++) {
              char buffer[100];
              for (size_t done = 0; done < sizeof(buffer);) {
                const ssize_t got = end.Call("recv", [&] {
                  return recv(end.fd(), buffer + done, sizeof(buffer) - done, 0);
                });
                if (got <= 0) {
                  end.NoteResult("blocked recv with SA_RESTART", got);
                  bad++;
                  break;
                }
                done += got;
              }
              (void)!send(end.fd(), buffer, sizeof(buffer), MSG_NOSIGNAL);
            }
            const struct itimerval never = {};
            setitimer(ITIMER_REAL, &never, nullptr);
            if (bad == 0) {
              end.Note("50 requests");
            }
            end.Meet();
          }};
}

}  // namespace

Cases SharingCases() {
  return {Fork(),
          Dup(),
          PassDescriptor(),
          TwoReaders(),
          WriterAndReader(),
          TwoWriters(100, 2000, "sharing.two_writers_small"),
          TwoWriters(16384, 200, "sharing.two_writers_16k"),
          TwoWriters(300000, 20, "sharing.two_writers_large"),
          CloseInOtherThread(),
          SignalStorm()};
}

}  // namespace shunt::conformance
