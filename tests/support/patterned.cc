// SPDX-License-Identifier: Apache-2.0
#include "tests/support/patterned.h"

#include <cstdio>
#include <cstdlib>

namespace shunt::test {
namespace {

// splitmix64: neighbours have nothing in common.
uint64_t Mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

}  // namespace

uint64_t RunSeed() {
  static const uint64_t seed = [] {
    const char* given = getenv("SHUNT_TEST_SEED");
    const uint64_t value =
        given != nullptr
            ? strtoull(given, nullptr, 0)
            : (static_cast<uint64_t>(std::random_device()()) << 32 | std::random_device()());
    printf("seed: to repeat this run, set SHUNT_TEST_SEED=%#llx\n",
           static_cast<unsigned long long>(value));
    fflush(stdout);
    return value;
  }();
  return seed;
}

size_t Random::Size(size_t most) {
  int bits = 0;
  while (bits < 63 && (size_t{1} << bits) < most) {
    bits++;
  }
  const size_t size = Between(1, size_t{1} << Between(0, bits));
  return size < most ? size : most;
}

char Pattern::ByteAt(uint64_t offset) const {
  return static_cast<char>(Mix(seed_ ^ Mix(offset / 8)) >> (offset % 8 * 8));
}

void Pattern::Fill(uint64_t offset, char* data, size_t size) const {
  size_t i = 0;
  while (i < size) {
    uint64_t word = Mix(seed_ ^ Mix((offset + i) / 8)) >> ((offset + i) % 8 * 8);
    do {
      data[i++] = static_cast<char>(word);
      word >>= 8;
    } while (i < size && (offset + i) % 8 != 0);
  }
}

std::string Pattern::At(uint64_t offset, size_t size) const {
  std::string data(size, '\0');
  Fill(offset, data.data(), size);
  return data;
}

std::optional<std::string> Pattern::Difference(uint64_t offset, std::string_view data) const {
  const std::string expected = At(offset, data.size());
  if (data == expected) {
    return std::nullopt;
  }
  size_t first = 0;
  while (data[first] == expected[first]) {
    first++;
  }
  std::string text = "byte " + std::to_string(offset + first) + " of the stream is wrong";
  // Looks whether it is a later or earlier piece of the same stream.
  constexpr uint64_t kReach = 8 << 20;
  constexpr size_t kProbe = 8;
  if (data.size() - first < kProbe) {
    return text;
  }
  const uint64_t here = offset + first;
  for (uint64_t step = 1; step < kReach; step++) {
    for (const bool later : {true, false}) {
      if (!later && step > here) {
        continue;
      }
      const uint64_t candidate = later ? here + step : here - step;
      bool same = true;
      for (size_t i = 0; same && i < kProbe; i++) {
        same = data[first + i] == ByteAt(candidate + i);
      }
      if (same) {
        return text + ": what came is the stream " + std::to_string(step) + " bytes " +
               (later ? "later (lost or overtaken)" : "earlier (doubled or late)");
      }
    }
  }
  return text + ": what came is not of this stream";
}

void Hash::Add(std::string_view data) {
  for (const char byte : data) {
    value_ = (value_ ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  }
}

std::string Hash::Text() const {
  char text[17];
  snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value_));
  return text;
}

std::string HashOf(std::string_view data) {
  Hash hash;
  hash.Add(data);
  return hash.Text();
}

}  // namespace shunt::test
