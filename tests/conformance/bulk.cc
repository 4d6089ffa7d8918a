// SPDX-License-Identifier: Apache-2.0
//
// Much data, and random traffic: the bytes and their order, nothing else.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <thread>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"

namespace shunt::conformance {
namespace {

// A stream that each side can make and check by itself. A wrong byte is told
// with its place.
class Checked {
 public:
  Checked(End& end, uint64_t stream) : end_(end), pattern_(end.seed() * 31 + stream) {}

  bool Send(size_t size) {
    buffer_.resize(size);
    pattern_.Fill(offset_, buffer_.data(), size);
    offset_ += size;
    return end_.SendAll({buffer_.data(), size});
  }

  // Reads until `total` bytes are in or something is wrong, at most `most` a call.
  bool Receive(uint64_t total, size_t most) {
    buffer_.resize(most);
    while (offset_ < total) {
      // Not a blocking recv(): that one may say EAGAIN (docs/hazards.md, row 17),
      // and here it is the bytes that are looked at.
      struct pollfd entry = {end_.fd(), POLLIN, 0};
      end_.Call("poll", [&] { return poll(&entry, 1, -1); });
      const ssize_t got =
          recv(end_.fd(), buffer_.data(), std::min<uint64_t>(most, total - offset_), MSG_DONTWAIT);
      if (got < 0 && errno == EAGAIN) {
        continue;
      }
      if (got <= 0) {
        end_.NoteResult("recv after " + std::to_string(offset_), got);
        return false;
      }
      const auto wrong = pattern_.Difference(offset_, {buffer_.data(), static_cast<size_t>(got)});
      if (wrong) {
        end_.Note("WRONG BYTES: " + *wrong);
        return false;
      }
      offset_ += got;
    }
    return true;
  }

 private:
  End& end_;
  const test::Pattern pattern_;
  std::vector<char> buffer_;
  uint64_t offset_ = 0;
};

Case OneWay(uint64_t total, size_t chunk, const char* name) {
  return {name,
          "one way, in messages of " + std::to_string(chunk) + " bytes, every byte checked",
          [total, chunk](End& end) {
            Checked out(end, 1);
            for (uint64_t done = 0; done < total; done += chunk) {
              if (!out.Send(chunk)) {
                return;
              }
            }
            end.Note("sent all");
            end.Meet();
          },
          [total](End& end) {
            Checked in(end, 1);
            if (in.Receive(total, 1 << 18)) {
              end.Note("received all");
            }
            end.Meet();
          },
          Start::kWarm,
          {IpMode::kV4, IpMode::kV6},
          Route::kDirect,
          {},
          {},
          milliseconds(30000),
          1,
          1};
}

// Both ends send and receive at once, in sizes of all magnitudes, with pauses:
// the pattern that drives an engine back and forth between its two ways.
Case TwoWay(bool pauses) {
  const Program program = [pauses](End& end) {
    constexpr uint64_t kTotal = 4 << 20;
    test::Random random(end.seed() * 7 + end.client());
    std::thread sender([&end, random, pauses]() mutable {
      Checked out(end, end.client() ? 1 : 2);
      for (uint64_t done = 0; done < kTotal;) {
        const size_t size = std::min<uint64_t>(random.Size(300000), kTotal - done);
        if (!out.Send(size)) {
          return;
        }
        done += size;
        if (pauses && random.OneIn(20)) {
          End::Sleep(static_cast<int>(random.Between(1, 12)));
        }
      }
    });
    Checked in(end, end.client() ? 2 : 1);
    uint64_t done = 0;
    bool good = true;
    while (good && done < kTotal) {
      done = std::min<uint64_t>(done + random.Size(600000), kTotal);
      good = in.Receive(done, 512 + random.Size(200000));
      if (pauses && random.OneIn(20)) {
        End::Sleep(static_cast<int>(random.Between(1, 25)));
      }
    }
    sender.join();
    end.Note(good ? "all bytes, in order" : "not all");
    end.Meet();
  };
  return {std::string("bulk.random_two_way_4_MiB") + (pauses ? "_paused" : ""),
          std::string("random sizes both ways at once") + (pauses ? ", with random pauses" : ""),
          program,
          program,
          Start::kBoth,
          {IpMode::kV4, IpMode::kV6},
          Route::kDirect,
          {},
          {},
          milliseconds(30000),
          1,
          2};
}

Case PingPong() {
  return {"bulk.ping_pong_10000",
          "10,000 requests and answers of random sizes up to 4 KiB",
          [](End& end) {
            test::Random random(end.seed());
            Checked out(end, 1), in(end, 2);
            uint64_t total = 0;
            for (int i = 0; i < 10000; i++) {
              const size_t size = random.Size(4096);
              total += size;
              if (!out.Send(size) || !in.Receive(total, 4096)) {
                return;
              }
            }
            end.Note("10,000 answers");
            end.Meet();
          },
          [](End& end) {
            test::Random random(end.seed());
            Checked in(end, 1), out(end, 2);
            uint64_t total = 0;
            for (int i = 0; i < 10000; i++) {
              const size_t size = random.Size(4096);
              total += size;
              if (!in.Receive(total, 4096) || !out.Send(size)) {
                return;
              }
            }
            end.Meet();
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6},
          Route::kDirect,
          {},
          {},
          milliseconds(30000),
          1,
          1};
}

Case Pipelined() {
  return {"bulk.pipelined",
          "1,000 small requests before the first answer is read, and the answers",
          [](End& end) {
            Checked out(end, 1), in(end, 2);
            for (int i = 0; i < 1000; i++) {
              if (!out.Send(60)) {
                return;
              }
            }
            end.Note(in.Receive(1000 * 120, 65536) ? "all answers" : "not all");
            end.Meet();
          },
          [](End& end) {
            Checked in(end, 1), out(end, 2);
            for (uint64_t i = 1; i <= 1000; i++) {
              if (!in.Receive(i * 60, 60) || !out.Send(120)) {
                return;
              }
            }
            end.Meet();
          },
          Start::kCold,
          {IpMode::kV4, IpMode::kV6}};
}

}  // namespace

Cases BulkCases() {
  return {OneWay(64 << 20, 65536, "bulk.one_way_64_MiB_of_5_GiB"),
          OneWay(4 << 20, 64, "bulk.small_messages_4_MiB"),
          TwoWay(false),
          TwoWay(true),
          PingPong(),
          Pipelined()};
}

}  // namespace shunt::conformance
