// SPDX-License-Identifier: Apache-2.0
// What a guest test is made of. Each test runs in its own process, with a time
// limit, and fails if the kernel reports anything meanwhile.
#ifndef SHUNT_TESTS_VM_GUEST_HARNESS_H_
#define SHUNT_TESTS_VM_GUEST_HARNESS_H_

#include <cstdarg>
#include <string>

namespace guest {

struct Test {
  const char* name;
  void (*run)();
  int seconds;  // time limit
};

// Registers a test at start-up: TEST(name, seconds) { … }
struct Registrar {
  explicit Registrar(const Test& test);
};

#define TEST(name, seconds)                                                \
  static void test_##name();                                               \
  static guest::Registrar registrar_##name({#name, test_##name, seconds}); \
  static void test_##name()

// Ends the test's process: FAILED, or SKIPPED (which is no pass).
[[noreturn]] __attribute__((format(printf, 1, 2))) void Fail(const char* format, ...);
[[noreturn]] __attribute__((format(printf, 1, 2))) void Skip(const char* format, ...);

#define CHECK(condition)                                                               \
  do {                                                                                 \
    if (!(condition))                                                                  \
      guest::Fail("%s:%d: %s (errno %d)", __FILE_NAME__, __LINE__, #condition, errno); \
  } while (0)

#define CHECK_EQ(a, b)                                                                            \
  do {                                                                                            \
    long long a_ = (a), b_ = (b);                                                                 \
    if (a_ != b_)                                                                                 \
      guest::Fail("%s:%d: %s is %lld, not %s = %lld (errno %d)", __FILE_NAME__, __LINE__, #a, a_, \
                  #b, b_, errno);                                                                 \
  } while (0)

// What a program saw, line by line; two of them are compared.
class Transcript {
 public:
  __attribute__((format(printf, 2, 3))) void Add(const char* format, ...);
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// Seconds since start, for time limits only.
double Now();

// A repeatable random sequence; the seed is printed by main().
extern unsigned long long seed;
unsigned Random();

}  // namespace guest

#endif
