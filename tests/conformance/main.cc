// SPDX-License-Identifier: Apache-2.0
//
// shunt-conformance: can a program tell an accelerated connection from a plain
// one? Exit codes: 0 no difference but documented ones; 1 a new difference, or
// the suite itself failed; 2 wrong usage; 77 it cannot run here.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <iostream>
#include <map>
#include <new>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/conformance/arena.h"
#include "tests/conformance/compare.h"
#include "tests/conformance/report.h"
#include "tests/support/command.h"
#include "tests/support/environment.h"

namespace shunt::conformance {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kFailed = 1, kUsage = 2, kSkipped = 77;

enum class Output { kTable, kJson, kJunit, kMarkdown };

struct Options {
  std::vector<std::string> globs;
  uint64_t seed = 0;
  Engine engine = Engine::kSockhash;
  Output output = Output::kTable;
  int runs = 0;
  int jobs = 1;
  bool list = false;
};

struct Wanted {
  Case test;
  IpMode mode;
};

std::string FullName(const Case& test, IpMode mode) { return test.name + "/" + FamilyOf(mode); }

std::vector<Wanted> Choose(const std::vector<std::string>& globs) {
  std::vector<Wanted> chosen;
  for (const Case& test : AllCases()) {
    for (const IpMode mode : test.families) {
      bool wanted = globs.empty();
      for (const std::string& glob : globs) {
        wanted |= GlobMatches(glob, test.name) || GlobMatches(glob, FullName(test, mode));
      }
      if (wanted) {
        chosen.push_back({test, mode});
      }
    }
  }
  return chosen;
}

std::string Kernel() {
  struct utsname name = {};
  uname(&name);
  return name.release;
}

// ---- workers: each has pods and an agent of its own -------------------------

Json ToMessage(const Row& row) {
  return {{"name", row.name},
          {"family", row.family},
          {"result", static_cast<int>(row.result)},
          {"plain", row.plain},
          {"accelerated", row.accelerated},
          {"plainOutcomes", row.plain_outcomes},
          {"plainRuns", row.plain_runs},
          {"handedOver", row.handed_over},
          {"why", row.why},
          {"seconds", row.seconds}};
}

Row FromMessage(const Json& message, const Case& test, Engine engine) {
  Row row;
  row.name = message.at("name");
  row.family = message.at("family");
  row.what = test.what;
  row.result = static_cast<Result>(message.at("result").get<int>());
  row.plain = message.at("plain").get<std::vector<std::string>>();
  row.accelerated = message.at("accelerated").get<std::vector<std::string>>();
  row.plain_outcomes = message.at("plainOutcomes");
  row.plain_runs = message.at("plainRuns");
  row.handed_over = message.at("handedOver");
  row.why = message.at("why").get<std::vector<std::string>>();
  row.seconds = message.at("seconds");
  if (row.result == Result::kDiffers) {
    row.known = FindKnownDifference(row.FullName(), ToString(engine));
  }
  return row;
}

// Takes the next case that nobody has taken, until there is none; one line a row.
int Work(const Options& options, const std::vector<Wanted>& chosen, std::atomic<size_t>* next,
         int answers) {
  const auto say = [&](const Json& message) {
    const std::string line = message.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    for (size_t done = 0; done < line.size();) {
      const ssize_t written = write(answers, line.data() + done, line.size() - done);
      if (written <= 0) {
        _exit(kFailed);
      }
      done += written;
    }
  };
  const std::string why_not = test::EnterEnvironment();
  if (!why_not.empty()) {
    say({{"declined", why_not}});
    return 0;
  }
  int result = 0;
  try {
    Arena arena(options.engine);
    say({{"engine", arena.engine_says()}, {"declined", arena.declined()}});
    size_t index;
    while (arena.declined().empty() && (index = (*next)++) < chosen.size()) {
      Json message = ToMessage(
          Compare(arena, chosen[index].test, chosen[index].mode, options.seed, options.runs));
      message["index"] = index;
      say(message);
    }
  } catch (const test::Stopped&) {
    result = kFailed;  // the line that stopped it is on stderr
  }
  test::LeaveEnvironment();
  return result;
}

struct Worker {
  test::Child process;
  UniqueFd answers;
  std::string partial;
};

std::vector<Worker> StartWorkers(const Options& options, const std::vector<Wanted>& chosen,
                                 std::atomic<size_t>* next) {
  std::vector<Worker> workers;
  for (int i = 0; i < options.jobs; i++) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
      test::StopErrno(test::Where::Here(), "making a pipe", errno);
    }
    Worker worker;
    worker.answers.Reset(ends[0]);
    UniqueFd theirs(ends[1]);
    worker.process = test::Child::Fork([&] {
      dup2(2, 1);  // stdout is for the report
      return Work(options, chosen, next, theirs.get());
    });
    workers.push_back(std::move(worker));
  }
  return workers;
}

// Calls `take` with each line of each worker, until all are done.
void Collect(std::vector<Worker>& workers, const std::function<void(const Json&)>& take) {
  for (;;) {
    std::vector<struct pollfd> polls;
    for (const Worker& worker : workers) {
      polls.push_back({worker.answers.get(), POLLIN, 0});
    }
    if (std::all_of(polls.begin(), polls.end(), [](const auto& one) { return one.fd < 0; })) {
      return;
    }
    poll(polls.data(), polls.size(), -1);
    for (size_t i = 0; i < polls.size(); i++) {
      if (polls[i].revents == 0) {
        continue;
      }
      char buffer[65536];
      const ssize_t got = read(polls[i].fd, buffer, sizeof(buffer));
      if (got <= 0) {
        workers[i].answers.Reset();
        continue;
      }
      std::string& text = workers[i].partial;
      text.append(buffer, got);
      for (size_t end; (end = text.find('\n')) != std::string::npos; text.erase(0, end + 1)) {
        take(Json::parse(text.substr(0, end)));
      }
    }
  }
}

int Run(const Options& options, const std::vector<Wanted>& wanted) {
  Report report;
  report.engine = ToString(options.engine);
  report.kernel = Kernel();
  report.seed = options.seed;
  std::vector<Wanted> chosen;
  for (const Wanted& one : wanted) {
    const std::string missing = one.test.missing ? one.test.missing() : "";
    if (missing.empty()) {
      chosen.push_back(one);
      continue;
    }
    report.skipped.push_back({FullName(one.test, one.mode), missing});
    fprintf(stderr, "SKIPPED %s: %s\n", report.skipped.back().name.c_str(), missing.c_str());
  }

  void* shared = mmap(nullptr, sizeof(std::atomic<size_t>), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* next = new (shared) std::atomic<size_t>(0);
  std::vector<Worker> workers = StartWorkers(options, chosen, next);
  std::map<size_t, Row> rows;  // in the order of the cases
  std::string declined;
  Collect(workers, [&](const Json& message) {
    if (!message.contains("index")) {
      report.engine_says = message.value("engine", report.engine_says);
      declined = message.value("declined", declined);
      return;
    }
    const size_t index = message.at("index");
    rows[index] = FromMessage(message, chosen[index].test, options.engine);
    // Something to look at meanwhile, and all there is if the suite dies.
    fputs(RowText(rows[index]).c_str(), stderr);
  });
  bool failed = false;
  for (Worker& worker : workers) {
    failed |= worker.process.Wait() != 0;
  }
  if (!declined.empty()) {
    fprintf(stderr, "SKIPPED: engine %s cannot be tried here: %s\n", report.engine.c_str(),
            declined.c_str());
    return kSkipped;
  }
  for (auto& [index, row] : rows) {
    report.rows.push_back(std::move(row));
  }
  if (failed || report.rows.size() != chosen.size()) {
    fprintf(stderr, "the suite itself failed, as said above: %zu of %zu rows; seed %llu\n",
            report.rows.size(), chosen.size(), static_cast<unsigned long long>(options.seed));
    failed = true;
  }
  switch (options.output) {
    case Output::kTable:
      fputs(ToTable(report).c_str(), stdout);
      break;
    case Output::kJson:
      fputs(ToJson(report).c_str(), stdout);
      break;
    case Output::kJunit:
      fputs(ToJunit(report).c_str(), stdout);
      break;
    case Output::kMarkdown:
      fputs(ToMarkdown(report).c_str(), stdout);
      break;
  }
  if (options.output != Output::kTable) {
    fprintf(stderr, "%s\n", Summary(report).c_str());
  }
  return !failed && NewDifferences(report) == 0 ? 0 : kFailed;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Runs programs on plain TCP and on an engine and compares what they saw.");
  app.add_option("--case", options.globs,
                 "only cases that match: \"receive.*\", \"*.warm/v6\"; may be repeated");
  CLI::Option* seed = app.add_option("--seed", options.seed, "of all random bytes and sizes");
  const std::map<std::string, Engine> engines = {
      {"none", Engine::kNone}, {"sockhash", Engine::kSockhash}, {"kmod", Engine::kKmod}};
  std::string engine = "sockhash";
  app.add_option("--engine", engine, "none, sockhash or kmod")
      ->check(CLI::IsMember({"none", "sockhash", "kmod"}).description(""))
      ->capture_default_str();
  const std::map<std::string, Output> outputs = {{"table", Output::kTable},
                                                 {"json", Output::kJson},
                                                 {"junit", Output::kJunit},
                                                 {"markdown", Output::kMarkdown}};
  std::string output = "table";
  app.add_option("--output", output, "table, json, junit or markdown")
      ->check(CLI::IsMember({"table", "json", "junit", "markdown"}).description(""))
      ->capture_default_str();
  app.add_option("--runs", options.runs, "runs of each case on the engine; 0: as the case says")
      ->check(CLI::Range(0, 100000));
  app.add_option("--jobs", options.jobs,
                 "cases at once, each in pods of its own; most time is waiting")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_flag("--list", options.list, "print the names of the cases that would run");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::cerr << "shunt-conformance: " << error.what() << "; --help shows the flags\n";
    return kUsage;
  }
  options.engine = engines.at(engine);
  options.output = outputs.at(output);
  if (seed->count() == 0) {
    options.seed = std::random_device()();
  }
  const std::vector<Wanted> chosen = Choose(options.globs);
  if (chosen.empty()) {
    std::cerr << "shunt-conformance: no case matches --case; --list shows their names\n";
    return kUsage;
  }
  if (options.list) {
    for (const auto& [test, mode] : chosen) {
      printf("%-52s %s\n", FullName(test, mode).c_str(), test.what.c_str());
    }
    return 0;
  }
  return Run(options, chosen);
}

}  // namespace
}  // namespace shunt::conformance

int main(int argc, char** argv) { return shunt::conformance::Main(argc, argv); }
