// SPDX-License-Identifier: Apache-2.0
//
// Databases: many small exchanges, pipelines, and bulk in both directions.
#include <algorithm>
#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "tests/programs/program_fixture.h"

namespace shunt::test {
namespace {

constexpr int kRows = 40000;  // of about 100 bytes
constexpr int kQueries = 500;

// Debian keeps a directory per version, out of PATH.
std::string PostgresDirectory() {
  std::error_code ignored;
  std::string newest;
  for (const auto& entry : std::filesystem::directory_iterator("/usr/lib/postgresql", ignored)) {
    newest = std::max(newest, entry.path().string());
  }
  return newest + "/bin/";
}

using PostgresTest = ProgramTest;

TEST_F(PostgresTest, QueriesAndCopy) {
  const std::string bin = PostgresDirectory();
  if (const std::string missing = MissingPrograms({bin + "initdb", bin + "postgres", bin + "psql"});
      !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  const std::string directory = MakeDirectory("postgres");
  StartListed({5432});
  RunInPod({bin + "initdb", "--pgdata", directory + "/data", "--auth=trust", "--username=postgres",
            "--no-sync", "--encoding=UTF8", "--locale=C"},
           kNobody);
  StartServer("postgres",
              {bin + "postgres", "-D", directory + "/data", "-c", "listen_addresses=127.0.0.1",
               "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=16MB"},
              5432, kNobody);

  std::string rows, queries, answers;
  for (int row = 0; row < kRows; row++) {
    rows += std::to_string(row) + "\t" + std::string(60 + row % 67, 'a' + row % 26) + "\n";
  }
  WriteText(directory + "/rows", rows);
  for (int query = 0; query < kQueries; query++) {
    const std::string text = "row " + std::to_string(query);
    queries += "select '" + text + "';\n";
    answers += text + "\n";
  }
  answers.pop_back();
  WriteText(directory + "/queries", queries);
  const auto psql = [&](const std::vector<std::string>& arguments) {
    std::vector<std::string> all = {bin + "psql",      "-X", "-q",        "-At", "-v",
                                    "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U",  "postgres"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return RunInPod(all);
  };

  EXPECT_EQ(psql({"-f", directory + "/queries"}), answers);
  psql({"-c", "create table t (id int, text text)", "-c", "\\copy t from '" + directory + "/rows'",
        "-c", "\\copy (select * from t order by id) to '" + directory + "/copy'"});
  EXPECT_EQ(Sha256(directory + "/copy"), Sha256(directory + "/rows"));
}

using RedisTest = ProgramTest;

TEST_F(RedisTest, Pipelines) {
  if (const std::string missing = MissingPrograms({"redis-server"}); !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  StartListed({6379});
  StartServer("redis", {"redis-server", "--bind", "127.0.0.1", "--port", "6379", "--save", ""},
              6379);
  for (const auto& [count, size] :
       {std::pair<const char*, const char*>{"20000", "16"}, {"2000", "4096"}, {"40", "400000"}}) {
    EXPECT_THAT(Peer({"redis", "6379", count, size}), testing::StartsWith("equal"))
        << count << " values of " << size << " bytes";
  }
}

}  // namespace
}  // namespace shunt::test
