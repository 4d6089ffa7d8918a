// SPDX-License-Identifier: Apache-2.0
//
// Reproducible randomness: a generator that says its seed, and byte streams in
// which every position has one right value, so that a byte that is lost, doubled
// or out of place is found where it happened.
#ifndef SHUNT_TESTS_SUPPORT_PATTERNED_H_
#define SHUNT_TESTS_SUPPORT_PATTERNED_H_

#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <string_view>

namespace shunt::test {

// The seed of this run: SHUNT_TEST_SEED, or a new one. Printed at first use.
uint64_t RunSeed();

// Not thread-safe; give each thread its own, from RunSeed() and its number.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  // Inclusive at both ends.
  uint64_t Between(uint64_t least, uint64_t most) {
    return std::uniform_int_distribution<uint64_t>(least, most)(engine_);
  }
  bool OneIn(uint64_t n) { return Between(1, n) == 1; }
  // Sizes of all magnitudes are about equally likely.
  size_t Size(size_t most);

 private:
  std::mt19937_64 engine_;
};

// An endless stream of bytes. Thread-safe: no state but the seed.
class Pattern {
 public:
  explicit Pattern(uint64_t seed) : seed_(seed) {}

  void Fill(uint64_t offset, char* data, size_t size) const;
  std::string At(uint64_t offset, size_t size) const;

  // What is wrong with `data` as the bytes from `offset` on; empty if nothing.
  std::optional<std::string> Difference(uint64_t offset, std::string_view data) const;

 private:
  char ByteAt(uint64_t offset) const;

  uint64_t seed_;
};

// FNV-1a, to compare streams in a line of text.
class Hash {
 public:
  void Add(std::string_view data);
  std::string Text() const;

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};
std::string HashOf(std::string_view data);

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_PATTERNED_H_
