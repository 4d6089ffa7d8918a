// SPDX-License-Identifier: Apache-2.0
//
// splice() from the socket, as HAProxy and Go's io.Copy do.
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"
#include "tests/support/transcript.h"

namespace shunt::conformance {
namespace {

struct Pipe {
  UniqueFd in, out;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) == 0) {
      in.Reset(ends[0]);
      out.Reset(ends[1]);
      fcntl(out.get(), F_SETPIPE_SZ, 1 << 20);
    }
  }
};

std::string Drain(int pipe, size_t size) {
  std::string data(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t got = read(pipe, data.data() + done, size - done);
    if (got <= 0) {
      break;
    }
    done += got;
  }
  data.resize(done);
  return data;
}

// Splices `size` bytes or until something else happens, and notes both.
void SpliceAll(End& end, const Pipe& pipe, size_t size, unsigned flags) {
  size_t done = 0;
  std::string all, why;
  while (done < size && why.empty()) {
    if ((flags & SPLICE_F_NONBLOCK) != 0) {
      struct pollfd entry = {end.fd(), POLLIN, 0};
      if (end.Call("poll before splice", [&] { return poll(&entry, 1, 1000); }) <= 0) {
        why = ", then nothing to splice";
        break;
      }
    }
    const ssize_t moved = end.Call("splice", [&] {
      return splice(end.fd(), nullptr, pipe.out.get(), nullptr, size - done, flags);
    });
    if (moved > 0) {
      done += moved;
      all += Drain(pipe.in.get(), moved);
    } else {
      why = moved == 0 ? ", then EOF" : ", then " + ErrnoText(errno);
    }
  }
  end.Note("splice " + std::to_string(size) + " -> " + test::BytesText(all) + why);
}

Case DataFirst() {
  return {"splice.data_first", "splice() to a pipe when the data is there already",
          [](End& end) {
            end.SendAll(end.Bytes(5000));
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            const Pipe pipe;
            SpliceAll(end, pipe, 5000, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
            end.Meet();
          }};
}

Case CallFirst() {
  return {"splice.call_first", "a splice() that sleeps is woken by data and by the end",
          [](End& end) {
            end.AwaitPeerBlocked();
            end.SendAll(end.Bytes(5000));
            end.Meet();
            end.AwaitPeerBlocked();
            end.Shutdown(SHUT_WR);
          },
          [](End& end) {
            const Pipe pipe;
            SpliceAll(end, pipe, 5000, SPLICE_F_MOVE);
            end.Meet();
            SpliceAll(end, pipe, 5000, SPLICE_F_MOVE);
          }};
}

Case Empty() {
  return {"splice.empty", "splice() of a socket that has nothing: EAGAIN; at its end: 0",
          [](End& end) {
            end.Meet();
            end.Shutdown(SHUT_WR);
            end.Meet();
          },
          [](End& end) {
            const Pipe pipe;
            fcntl(end.fd(), F_SETFL, O_NONBLOCK);
            end.NoteResult("splice", splice(end.fd(), nullptr, pipe.out.get(), nullptr, 100,
                                            SPLICE_F_NONBLOCK));
            end.Meet();
            end.Meet();
            end.Await(POLLRDHUP);
            end.NoteResult("splice", splice(end.fd(), nullptr, pipe.out.get(), nullptr, 100,
                                            SPLICE_F_NONBLOCK));
          }};
}

Case Echo() {
  return {"splice.echo", "a proxy: splice() in from the socket and out to it again, 2 MiB",
          [](End& end) {
            for (int i = 0; i < 32; i++) {
              end.SendAll(end.Bytes(65536));
              if (!end.ReadExactly(65536, false)) {
                return;
              }
            }
            end.Shutdown(SHUT_WR);
            end.ReadToEnd();
          },
          [](End& end) {
            const Pipe pipe;
            size_t total = 0;
            for (;;) {
              const ssize_t in = end.Call("splice in", [&] {
                return splice(end.fd(), nullptr, pipe.out.get(), nullptr, 1 << 20, SPLICE_F_MOVE);
              });
              if (in <= 0) {
                end.NoteResult("splice in", in);
                break;
              }
              for (ssize_t out = 0; out < in;) {
                const ssize_t moved = end.Call("splice out", [&] {
                  return splice(pipe.in.get(), nullptr, end.fd(), nullptr, in - out, 0);
                });
                if (moved <= 0) {
                  end.NoteResult("splice out", moved);
                  return;
                }
                out += moved;
              }
              total += in;
            }
            end.Note("spliced " + std::to_string(total));
            end.Shutdown(SHUT_WR);
          }};
}

Case MixedWithRecv() {
  return {"splice.mixed_with_recv", "recv() a header, splice() the body, recv() the trailer",
          [](End& end) {
            for (int i = 0; i < 3; i++) {
              end.SendAll(end.Bytes(10));
              end.SendAll(end.Bytes(3000));
              end.SendAll(end.Bytes(10));
              end.AwaitDelivered();
              end.Meet();
              end.Meet();
            }
          },
          [](End& end) {
            const Pipe pipe;
            for (int i = 0; i < 3; i++) {
              end.Meet();
              end.ReadExactly(10);
              SpliceAll(end, pipe, 3000, SPLICE_F_NONBLOCK);
              end.ReadExactly(10);
              end.Meet();
            }
          }};
}

Case Edge() {
  return {"splice.edge", "edge-triggered splice() until EAGAIN (HAProxy, Envoy's kernels)",
          [](End& end) {
            for (int i = 0; i < 20; i++) {
              end.SendAll(end.Bytes(20000));
              End::Sleep(2);
            }
            end.Shutdown(SHUT_WR);
            end.Meet();
          },
          [](End& end) {
            const Pipe pipe;
            const UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
            struct epoll_event event = {};
            event.events = EPOLLIN | EPOLLET | EPOLLRDHUP;
            epoll_ctl(epoll.get(), EPOLL_CTL_ADD, end.fd(), &event);
            fcntl(end.fd(), F_SETFL, O_NONBLOCK);
            size_t total = 0;
            bool over = false;
            while (!over && end.Call("epoll_wait", [&] {
              return epoll_wait(epoll.get(), &event, 1, 1500);
            }) > 0) {
              for (;;) {
                const ssize_t moved =
                    splice(end.fd(), nullptr, pipe.out.get(), nullptr, 1 << 20, SPLICE_F_NONBLOCK);
                if (moved > 0) {
                  total += Drain(pipe.in.get(), moved).size();
                  continue;
                }
                over = moved == 0 || errno != EAGAIN;
                break;
              }
            }
            end.Note("spliced " + std::to_string(total) + (over ? ", EOF" : ", then no edge"));
            end.Meet();
          }};
}

Case SendfileFrom() {
  return {"splice.sendfile_from", "sendfile() from the socket to a pipe",
          [](End& end) {
            end.SendAll(end.Bytes(100));
            end.Meet();
          },
          [](End& end) {
            end.Await(POLLIN);
            fcntl(end.fd(), F_SETFL, O_NONBLOCK);
            const Pipe pipe;
            end.NoteResult("sendfile", sendfile(pipe.out.get(), end.fd(), nullptr, 100));
            end.Recv(100);
            end.Meet();
          },
          Start::kWarm};
}

}  // namespace

Cases SpliceCases() {
  return {DataFirst(), CallFirst(), Empty(), Echo(), MixedWithRecv(), Edge(), SendfileFrom()};
}

}  // namespace shunt::conformance
