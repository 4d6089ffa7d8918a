// SPDX-License-Identifier: Apache-2.0
// Runs the tests named on the command line, or all. One line each on standard
// output: "ok NAME", "FAILED NAME: why" or "SKIPPED NAME: why".
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "device.h"
#include "harness.h"

namespace guest {
namespace {

constexpr int kFailed = 1, kSkipped = 77;

std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

int verdict_fd = -1;

void Verdict(const char* format, va_list args) {
  char text[1024];
  vsnprintf(text, sizeof text, format, args);
  if (write(verdict_fd, text, strlen(text)) < 0) _exit(3);
}

// The kernel's complaints since the last call; empty if there are none.
std::string KernelReports(int kmsg) {
  char record[8192];
  std::string reports;
  int context = 0;
  for (;;) {
    ssize_t n = read(kmsg, record, sizeof record - 1);
    if (n < 0 && errno == EPIPE) continue;  // records were overwritten
    if (n <= 0) return reports;
    record[n] = 0;
    const char* text = strchr(record, ';');
    text = text ? text + 1 : record;
    for (const char* word : {"WARNING:", "BUG:", "Oops", "general protection", "possible recursive",
                             "circular locking", "refcount_t", "blocked for more than", "KASAN",
                             "list_del corruption", "list_add corruption"}) {
      if (strstr(text, word)) context = 30;
    }
    if (context > 0) {
      --context;
      reports += std::string(text, strcspn(text, "\n")) + "\n";
    }
  }
}

// Kills what a test left behind, so that no test inherits another's processes.
void KillGroup(pid_t group) {
  kill(-group, SIGKILL);
  while (waitpid(-group, nullptr, 0) > 0) {
  }
}

// How much longer than on a stock kernel a test may take.
int TimeFactor() {
  const char* given = getenv("TIME_FACTOR");
  return given ? atoi(given) : 1;
}

// What the kernel's leak detector holds against this module; empty where there
// is none. It looks at pages as they are, so it is asked twice.
std::string Leaks() {
  constexpr char kPath[] = "/sys/kernel/debug/kmemleak";
  std::string report;
  for (int i = 0; i < 2; ++i) {
    int fd = open(kPath, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "scan", 4) != 4) return "";
    close(fd);
    sleep(6);  // younger objects are not reported
  }
  int fd = open(kPath, O_RDONLY | O_CLOEXEC);
  char text[4096];
  ssize_t n;
  while ((n = read(fd, text, sizeof text)) > 0) report.append(text, n);
  close(fd);
  return report.find("shunt") == std::string::npos ? "" : report;
}

int RunOne(const Test& test, int kmsg) {
  int verdict[2];
  if (pipe2(verdict, O_CLOEXEC)) return kFailed;
  KernelReports(kmsg);
  double start = Now();
  pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    verdict_fd = verdict[1];
    signal(SIGPIPE, SIG_IGN);
    test.run();
    _exit(0);
  }
  setpgid(child, child);
  close(verdict[1]);

  int status = -1;
  bool timed_out = false;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (Now() - start > test.seconds * TimeFactor()) {
      timed_out = true;
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      break;
    }
    usleep(2000);
  }
  KillGroup(child);
  char why[1024] = "";
  fcntl(verdict[0], F_SETFL, O_NONBLOCK);
  ssize_t n = read(verdict[0], why, sizeof why - 1);
  if (n > 0) why[n] = 0;
  close(verdict[0]);

  std::string reports = KernelReports(kmsg);
  int result = 0;
  if (timed_out) {
    printf("FAILED %s: not done after %d s\n", test.name, test.seconds);
    result = kFailed;
  } else if (WIFEXITED(status) && WEXITSTATUS(status) == kSkipped) {
    printf("SKIPPED %s: %s\n", test.name, why);
    result = kSkipped;
  } else if (!WIFEXITED(status) || WEXITSTATUS(status)) {
    printf("FAILED %s: %s (status 0x%x, seed %llu)\n", test.name, why, status, seed);
    result = kFailed;
  } else if (!reports.empty()) {
    printf("FAILED %s: the kernel reports:\n", test.name);
    result = kFailed;
  } else {
    printf("ok %s %.1f s\n", test.name, Now() - start);
  }
  if (!reports.empty()) printf("%s", reports.c_str());
  fflush(stdout);
  return result;
}

}  // namespace

unsigned long long seed = 1;

Registrar::Registrar(const Test& test) { Tests().push_back(test); }

void Fail(const char* format, ...) {
  va_list args;
  va_start(args, format);
  Verdict(format, args);
  va_end(args);
  _exit(kFailed);
}

void Skip(const char* format, ...) {
  va_list args;
  va_start(args, format);
  Verdict(format, args);
  va_end(args);
  _exit(kSkipped);
}

void Transcript::Add(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  text_ += text;
  text_ += "\n";
}

double Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

unsigned Random() {
  static unsigned long long state = 0;
  if (!state) state = seed * 0x9E3779B97F4A7C15ull | 1;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return static_cast<unsigned>(state >> 16);
}

}  // namespace guest

int main(int argc, char** argv) {
  const char* given = getenv("SEED");
  guest::seed =
      given ? strtoull(given, nullptr, 10) : static_cast<unsigned long long>(time(nullptr));
  int kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  int passed = 0, failed = 0, skipped = 0;
  bool known = argc < 2;
  printf("seed %llu\n", guest::seed);
  if (!guest::LoadModule()) {
    printf("FAILED load: the module does not load (errno %d)\n", errno);
    printf("0 passed, 1 failed, 0 skipped\n");
    return 1;
  }
  for (const guest::Test& test : guest::Tests()) {
    bool chosen = argc < 2;
    for (int i = 1; i < argc; ++i) chosen |= strstr(test.name, argv[i]) != nullptr;
    if (!chosen) continue;
    known = true;
    int result = guest::RunOne(test, kmsg);
    ++(result == 0 ? passed : result == 77 ? skipped : failed);
  }
  std::string leaks = guest::Leaks();
  if (!leaks.empty()) {
    printf("FAILED no_leaks: kmemleak names this module:\n%s", leaks.c_str());
    ++failed;
  }
  if (!known) printf("FAILED: no test has such a name\n");
  printf("%d passed, %d failed, %d skipped\n", passed, failed + !known, skipped);
  return failed || !known;
}
