// SPDX-License-Identifier: Apache-2.0
#include "tests/support/traffic.h"

#include <cstring>
#include <string>

#include "tests/support/patterned.h"

namespace shunt::test {
namespace {

// Ahead of each request and each answer; a request of no bytes ends the answerer.
struct Header {
  uint32_t size;
};

constexpr size_t kLargest = 20000;

void SendMessage(int fd, const std::string& body) {
  const Header header = {static_cast<uint32_t>(body.size())};
  SendAll(fd, std::string(reinterpret_cast<const char*>(&header), sizeof(header)) + body);
}

std::string ReadMessage(int fd) {
  const std::string head = ReadExactly(fd, sizeof(Header));
  Header header;
  memcpy(&header, head.data(), sizeof(header));
  if (header.size > kLargest) {
    Stop(Where::Here(), "what came is not a message");
  }
  return ReadExactly(fd, header.size);
}

void Check(const Pattern& pattern, uint64_t* offset, const std::string& body) {
  if (const auto difference = pattern.Difference(*offset, body)) {
    Stop(Where::Here(), *difference);
  }
  *offset += body.size();
}

}  // namespace

Traffic::Traffic(const std::vector<Connection>& connections) {
  RunSeed();  // printed before the threads print anything
  for (size_t i = 0; i < connections.size(); i++) {
    each_.push_back(std::make_unique<std::atomic<uint64_t>>(0));
  }
  for (size_t i = 0; i < connections.size(); i++) {
    workers_.emplace_back([this, fd = connections[i].client.get(), i] { Ask(fd, i); });
    workers_.emplace_back([this, fd = connections[i].server.get(), i] { Answer(fd, i); });
  }
}

void Traffic::Stop() {
  stop_ = true;
  workers_.clear();
}

void Traffic::WaitForProgress(const Where& where) {
  std::vector<uint64_t> start;
  for (const auto& count : each_) {
    start.push_back(*count);
  }
  WaitUntil(
      "every connection makes progress",
      [&] {
        for (size_t i = 0; i < each_.size(); i++) {
          if (*each_[i] < start[i] + 20) {
            return false;
          }
        }
        return true;
      },
      kPatience, where);
}

void Traffic::Ask(int fd, size_t index) {
  Random random(RunSeed() + index);
  const Pattern up(RunSeed() + 2 * index), down(RunSeed() + 2 * index + 1);
  uint64_t sent = 0, received = 0;
  while (!stop_) {
    const std::string request = up.At(sent, random.Size(kLargest));
    SendMessage(fd, request);
    sent += request.size();
    Check(down, &received, ReadMessage(fd));
    ++*each_[index];
    ++rounds_;
  }
  SendMessage(fd, "");
}

void Traffic::Answer(int fd, size_t index) {
  Random random(RunSeed() + index + 500);
  const Pattern up(RunSeed() + 2 * index), down(RunSeed() + 2 * index + 1);
  uint64_t sent = 0, received = 0;
  for (;;) {
    const std::string request = ReadMessage(fd);
    if (request.empty()) {
      return;
    }
    Check(up, &received, request);
    const std::string answer = down.At(sent, random.Size(kLargest));
    SendMessage(fd, answer);
    sent += answer.size();
  }
}

}  // namespace shunt::test
