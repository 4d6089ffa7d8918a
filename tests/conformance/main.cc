// SPDX-License-Identifier: Apache-2.0
//
// shunt-conformance: can a program tell an accelerated connection from a plain
// one? Exit codes: 0 no difference but documented ones; 1 a new difference, or
// the suite itself failed; 2 wrong usage; 77 it cannot run here.
#include <sys/utsname.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/conformance/arena.h"
#include "tests/conformance/compare.h"
#include "tests/conformance/report.h"
#include "tests/support/environment.h"

namespace shunt::conformance {
namespace {

constexpr int kFailed = 1, kUsage = 2, kSkipped = 77;

enum class Output { kTable, kJson, kJunit, kMarkdown };

struct Options {
  std::vector<std::string> globs;
  uint64_t seed = 0;
  Engine engine = Engine::kSockhash;
  Output output = Output::kTable;
  int runs = 0;
  bool list = false;
};

struct Wanted {
  Case test;
  IpMode mode;
};

std::string FullName(const Case& test, IpMode mode) {
  return test.name + "/" + FamilyOf(mode);
}

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

int Run(const Options& options, const std::vector<Wanted>& chosen) {
  Arena arena(options.engine);
  if (!arena.declined().empty()) {
    fprintf(stderr, "SKIPPED: engine %s cannot be tried here: %s\n",
            ToString(options.engine).c_str(), arena.declined().c_str());
    return kSkipped;
  }
  Report report;
  report.engine = ToString(options.engine);
  report.engine_says = arena.engine_says();
  report.kernel = Kernel();
  report.seed = options.seed;
  for (const auto& [test, mode] : chosen) {
    const std::string missing = test.missing ? test.missing() : "";
    if (!missing.empty()) {
      report.skipped.push_back({FullName(test, mode), missing});
      fprintf(stderr, "SKIPPED %s: %s\n", FullName(test, mode).c_str(), missing.c_str());
      continue;
    }
    report.rows.push_back(Compare(arena, test, mode, options.seed, options.runs));
    // Something to look at meanwhile, and all there is if the suite dies.
    fputs(RowText(report.rows.back()).c_str(), stderr);
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
  return NewDifferences(report) == 0 ? 0 : kFailed;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Runs programs on plain TCP and on an engine and compares what they saw.");
  app.add_option("--case", options.globs,
                 "only cases that match: \"receive.*\", \"*.warm/v6\"; may be repeated");
  CLI::Option* seed = app.add_option("--seed", options.seed, "of all random bytes and sizes");
  const std::map<std::string, Engine> engines = {
      {"none", Engine::kNone}, {"sockhash", Engine::kSockhash}, {"kmod", Engine::kKmod}};
  app.add_option("--engine", options.engine, "none, sockhash or kmod")
      ->transform(CLI::CheckedTransformer(engines).description(""))
      ->default_str("sockhash");
  const std::map<std::string, Output> outputs = {{"table", Output::kTable},
                                                 {"json", Output::kJson},
                                                 {"junit", Output::kJunit},
                                                 {"markdown", Output::kMarkdown}};
  app.add_option("--output", options.output, "table, json, junit or markdown")
      ->transform(CLI::CheckedTransformer(outputs).description(""))
      ->default_str("table");
  app.add_option("--runs", options.runs, "runs of each case on the engine; 0: as the case says")
      ->check(CLI::Range(0, 100000));
  app.add_flag("--list", options.list, "print the names of the cases that would run");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::cerr << "shunt-conformance: " << error.what() << "; --help shows the flags\n";
    return kUsage;
  }
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
  const std::string why_not = test::EnterEnvironment();
  if (!why_not.empty()) {
    fprintf(stderr, "SKIPPED: %s\n", why_not.c_str());
    return kSkipped;
  }
  int result = kFailed;
  try {
    result = Run(options, chosen);
  } catch (const test::Stopped&) {
    fprintf(stderr, "the suite itself failed, as said above; seed %llu\n",
            static_cast<unsigned long long>(options.seed));
  }
  test::LeaveEnvironment();
  return result;
}

}  // namespace
}  // namespace shunt::conformance

int main(int argc, char** argv) { return shunt::conformance::Main(argc, argv); }
