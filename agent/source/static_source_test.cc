// SPDX-License-Identifier: Apache-2.0
#include "agent/source/static_source.h"

#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;

// Far beyond what a reload takes; only a failing test waits so long.
constexpr std::chrono::seconds kDeadline{10};

void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

// A file that holds one pod's uid, and a source that reads it. "bad" is refused.
class StaticSourceTest : public ::testing::Test {
 protected:
  StaticSourceTest() {
    std::string name = testing::TempDir() + "static_source_test.XXXXXX";
    directory_ = mkdtemp(name.data());
    file_ = directory_ + "/agent.yaml";
  }
  ~StaticSourceTest() override {
    End();
    fs::remove_all(directory_);
  }

  void StartWith(const std::string& uid) {
    Write(file_, uid);
    Start();
    ASSERT_EQ(Uid(), uid);
  }

  void Start() {
    Make(file_);
    const absl::Status status =
        source_->Start([this](std::vector<PodSpec> pods) { Receive(std::move(pods)); });
    ASSERT_TRUE(status.ok()) << status;
  }

  void Make(const std::string& path) {
    ended_ = false;
    source_ = std::make_unique<StaticSource>(
        path, [this] { return Load(); }, [this](const absl::Status& status) { Report(status); });
  }

  // From now on a callback is a failure.
  void End() {
    source_.reset();
    ended_ = true;
  }

  // True as soon as the last pushed set is this one pod.
  bool Becomes(const std::string& uid) {
    return Eventually([&] { return uid_ == uid; });
  }
  bool Fails() {
    return Eventually([this] { return !reports_.empty() && !reports_.back().ok(); });
  }
  bool Eventually(const std::function<bool()>& condition) { return Within(kDeadline, condition); }
  bool Within(std::chrono::milliseconds bound, const std::function<bool()>& condition) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, bound, condition);
  }

  std::string Uid() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return uid_;
  }
  int Loads() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return loads_;
  }
  // Whether each report was OK, equal neighbours once: a replacement in several
  // steps may be loaded several times.
  std::vector<bool> Outcomes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<bool> outcomes;
    for (const absl::Status& status : reports_) {
      if (outcomes.empty() || outcomes.back() != status.ok()) {
        outcomes.push_back(status.ok());
      }
    }
    return outcomes;
  }

  absl::StatusOr<std::vector<PodSpec>> Load() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++loads_;
      changed_.notify_all();
      EXPECT_FALSE(ended_);
    }
    std::ifstream in(file_);
    std::stringstream text;
    if (!in.is_open()) {
      return absl::NotFoundError("no file");
    }
    text << in.rdbuf();
    if (text.str() == "bad") {
      return absl::InvalidArgumentError("bad file");
    }
    return std::vector<PodSpec>{{text.str(), "", {{80, 80}}, std::nullopt}};
  }

  void Receive(std::vector<PodSpec> pods) {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_FALSE(ended_);
    ASSERT_EQ(pods.size(), 1u);
    uid_ = pods[0].uid;
    changed_.notify_all();
  }

  void Report(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_FALSE(ended_);
    reports_.push_back(status);
    changed_.notify_all();
  }

  std::string directory_;
  std::string file_;
  std::atomic<bool> ended_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string uid_;  // guarded by mutex_, as is all below
  std::vector<absl::Status> reports_;
  int loads_ = 0;
  std::unique_ptr<StaticSource> source_;
};

TEST_F(StaticSourceTest, PushesTheFirstSetBeforeStartReturns) {
  StartWith("a");
  EXPECT_EQ(Loads(), 1);
  EXPECT_THAT(Outcomes(), ElementsAre());
}

TEST_F(StaticSourceTest, StartFailsOnABadFileAndWithoutOne) {
  int received = 0;
  const auto receive = [&received](const std::vector<PodSpec>&) { ++received; };
  Write(file_, "bad");
  Make(file_);
  EXPECT_EQ(source_->Start(receive).code(), absl::StatusCode::kInvalidArgument);
  fs::remove(file_);
  Make(file_);
  EXPECT_EQ(source_->Start(receive).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(received, 0);
}

TEST_F(StaticSourceTest, AFileWrittenInPlace) {
  StartWith("a");
  Write(file_, "b");
  EXPECT_TRUE(Becomes("b"));
  Write(file_, "c");
  EXPECT_TRUE(Becomes("c"));
}

TEST_F(StaticSourceTest, AFileRenamedOver) {
  StartWith("a");
  for (const char* uid : {"b", "c"}) {
    Write(directory_ + "/.agent.yaml.swp", uid);
    fs::rename(directory_ + "/.agent.yaml.swp", file_);
    EXPECT_TRUE(Becomes(uid));
  }
}

TEST_F(StaticSourceTest, AFileRemovedAndMadeAgain) {
  StartWith("a");
  fs::remove(file_);
  ASSERT_TRUE(Fails());
  EXPECT_EQ(Uid(), "a");
  Write(file_, "b");
  EXPECT_TRUE(Becomes("b"));
}

TEST_F(StaticSourceTest, ADirectoryRemovedAndMadeAgain) {
  const std::string outer = directory_ + "/outer";
  fs::create_directories(outer + "/inner");
  file_ = outer + "/inner/agent.yaml";
  StartWith("a");
  fs::remove_all(outer);
  ASSERT_TRUE(Fails());
  fs::create_directories(outer + "/inner");
  Write(file_, "b");
  EXPECT_TRUE(Becomes("b"));
}

TEST_F(StaticSourceTest, ASymlinkTurnedAndItsTargetWritten) {
  fs::create_directory(directory_ + "/one");
  fs::create_directory(directory_ + "/two");
  Write(directory_ + "/one/x.yaml", "a");
  Write(directory_ + "/two/y.yaml", "b");
  fs::create_symlink("one/x.yaml", file_);
  Start();
  ASSERT_EQ(Uid(), "a");
  fs::create_symlink(directory_ + "/two/y.yaml", directory_ + "/new");
  fs::rename(directory_ + "/new", file_);
  ASSERT_TRUE(Becomes("b"));
  Write(directory_ + "/two/y.yaml", "c");
  EXPECT_TRUE(Becomes("c"));
}

// A ConfigMap's volume, as kubelet's AtomicWriter replaces it: agent.yaml ->
// ..data/agent.yaml, ..data -> ..<time>, and ..data is renamed over.
class ConfigMapTest : public StaticSourceTest {
 protected:
  ConfigMapTest() { fs::create_symlink("..data/agent.yaml", file_); }

  // A new version's directory, and ..data_tmp that leads to it.
  void Prepare(const std::string& version, const std::string& uid) {
    fs::create_directory(directory_ + "/.." + version);
    Write(directory_ + "/.." + version + "/agent.yaml", uid);
    fs::create_directory_symlink(".." + version, directory_ + "/..data_tmp");
  }
  void Swap() { fs::rename(directory_ + "/..data_tmp", directory_ + "/..data"); }
};

TEST_F(ConfigMapTest, EachSwapIsSeen) {
  Prepare("v1", "a");
  Swap();
  Start();
  ASSERT_EQ(Uid(), "a");
  Prepare("v2", "b");
  Swap();
  fs::remove_all(directory_ + "/..v1");
  ASSERT_TRUE(Becomes("b"));
  Prepare("v3", "c");
  Swap();
  fs::remove_all(directory_ + "/..v2");
  EXPECT_TRUE(Becomes("c"));
}

TEST_F(ConfigMapTest, AGapBetweenTwoVersionsIsBridged) {
  Prepare("v1", "a");
  Swap();
  Start();
  fs::remove(directory_ + "/..data");
  ASSERT_TRUE(Fails());
  Prepare("v2", "b");
  Swap();
  EXPECT_TRUE(Becomes("b"));
}

TEST_F(StaticSourceTest, ABadFileKeepsTheLastSet) {
  StartWith("a");
  Write(directory_ + "/new", "bad");
  fs::rename(directory_ + "/new", file_);
  ASSERT_TRUE(Fails());
  EXPECT_EQ(Uid(), "a");
  Write(directory_ + "/new", "b");
  fs::rename(directory_ + "/new", file_);
  ASSERT_TRUE(Becomes("b"));
  EXPECT_THAT(Outcomes(), ElementsAre(false, true));
}

TEST_F(StaticSourceTest, OtherNamesInTheDirectoryCauseNoLoad) {
  StartWith("a");
  for (int i = 0; i < 100; ++i) {
    Write(absl::StrCat(directory_, "/agent.log", i % 3), "line");
    fs::create_directory(directory_ + "/agent.yaml.d");
    fs::remove(directory_ + "/agent.yaml.d");
  }
  // Long enough for a load to be seen if one of these had caused it.
  EXPECT_FALSE(Within(std::chrono::milliseconds(300), [this] { return loads_ > 1; }));
  Write(directory_ + "/new", "b");
  fs::rename(directory_ + "/new", file_);
  ASSERT_TRUE(Becomes("b"));
  EXPECT_EQ(Loads(), 2);
}

TEST_F(StaticSourceTest, ABusyNeighbourDoesNotHoldALoadBack) {
  StartWith("a");
  std::atomic<bool> done{false};
  std::thread neighbour([&] {
    std::ofstream log(directory_ + "/agent.log");
    while (!done) {
      log << "line" << std::endl;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  Write(directory_ + "/new", "b");
  fs::rename(directory_ + "/new", file_);
  EXPECT_TRUE(Becomes("b"));
  done = true;
  neighbour.join();
}

TEST_F(StaticSourceTest, EndsWhileChangesGoOn) {
  std::atomic<bool> done{false};
  Write(file_, "a");
  std::thread writer([&] {
    for (int i = 1; !done; ++i) {
      Write(directory_ + "/new", "a");
      fs::rename(directory_ + "/new", file_);
      if (i % 10 == 0) {  // a rest that is long enough for a load
        std::this_thread::sleep_for(std::chrono::milliseconds(60));
      }
    }
  });
  for (int round = 0; round < 20; ++round) {
    Start();
    if (round % 2 == 0) {
      const int loads = Loads();
      EXPECT_TRUE(Eventually([&] { return loads_ > loads; }));
    }
    End();
  }
  done = true;
  writer.join();
}

TEST_F(StaticSourceTest, EndsWithoutHavingBeenStarted) {
  Make(file_);
  End();
  EXPECT_EQ(Loads(), 0);
}

}  // namespace
}  // namespace shunt
