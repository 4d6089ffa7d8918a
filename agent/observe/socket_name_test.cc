// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/socket_name.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "agent/observe/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class SocketNameTest : public ::testing::Test {
 protected:
  SocketNameTest() {
    std::string path = fs::temp_directory_path() / "shunt-socket-XXXXXX";
    directory_ = mkdtemp(path.data());
  }
  ~SocketNameTest() override { fs::remove_all(directory_); }

  static UniqueFd Listen(const std::string& path) {
    UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0)
        << path << ": " << std::strerror(errno);
    EXPECT_EQ(listen(fd.get(), 1), 0);
    return fd;
  }

  fs::path directory_;
};

TEST_F(SocketNameTest, PublishedIsCompleteAndForItsUserAlone) {
  const std::string path = directory_ / "new" / "deep" / "agent.sock";
  const mode_t old = umask(0);
  auto name = SocketName::Claim(path);
  ASSERT_TRUE(name.ok()) << name.status();
  const UniqueFd listener = Listen((*name)->BindPath());
  EXPECT_FALSE(fs::exists(path));
  ASSERT_TRUE((*name)->Publish().ok());
  umask(old);

  struct stat found {};
  ASSERT_EQ(stat(path.c_str(), &found), 0);
  EXPECT_TRUE(S_ISSOCK(found.st_mode));
  EXPECT_EQ(found.st_mode & 07777, 0600u);
  ASSERT_EQ(stat((directory_ / "new").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 07777, 0755u);
  EXPECT_TRUE(ConnectSocket(path).ok());

  name->reset();
  EXPECT_TRUE(fs::is_empty(directory_ / "new" / "deep"));
}

TEST_F(SocketNameTest, PathOfTheGreatestLengthWorks) {
  const size_t room = sizeof(sockaddr_un::sun_path) - 1 - directory_.string().size() - 1;
  const std::string path = directory_ / std::string(room, 'x');
  auto name = SocketName::Claim(path);
  ASSERT_TRUE(name.ok()) << name.status();
  const UniqueFd listener = Listen((*name)->BindPath());
  ASSERT_TRUE((*name)->Publish().ok());
  EXPECT_TRUE(ConnectSocket(path).ok());

  const auto longer = SocketName::Claim(path + "x");
  EXPECT_EQ(longer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(longer.status().message()),
              HasSubstr("is 108 bytes long, the kernel allows 107"));
}

TEST_F(SocketNameTest, RefusesWhereSomebodyListens) {
  const std::string path = directory_ / "agent.sock";
  const UniqueFd listener = Listen(path);
  const auto name = SocketName::Claim(path);
  EXPECT_EQ(name.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(std::string(name.status().message()),
            absl::StrCat("another agent (pid ", getpid(), ") answers on ", path,
                         ": stop it first, or set admin.socket to another path"));
  EXPECT_TRUE(ConnectSocket(path).ok()) << "a refused claim must leave the other's socket alone";
}

TEST_F(SocketNameTest, RefusesWhereAListenerIsTooBusyToAccept) {
  const std::string path = directory_ / "agent.sock";
  const UniqueFd listener = Listen(path);
  std::vector<UniqueFd> waiting;
  for (auto fd = ConnectSocket(path); fd.ok(); fd = ConnectSocket(path)) {
    waiting.push_back(std::move(*fd));
  }
  EXPECT_EQ(SocketName::Claim(path).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(SocketNameTest, ReplacesASocketWhoseListenerIsGone) {
  const std::string path = directory_ / "agent.sock";
  Listen(path).Reset();
  auto name = SocketName::Claim(path);
  ASSERT_TRUE(name.ok()) << name.status();
  const UniqueFd listener = Listen((*name)->BindPath());
  ASSERT_TRUE((*name)->Publish().ok());
  EXPECT_TRUE(ConnectSocket(path).ok());
}

TEST_F(SocketNameTest, LeavesWhatIsNoSocket) {
  const fs::path path = directory_ / "agent.sock";
  std::ofstream(path) << "precious";
  EXPECT_EQ(SocketName::Claim(path).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(fs::file_size(path), 8u);
  fs::remove(path);

  // Following it would replace what somebody else chose to point at.
  fs::create_symlink(directory_ / "elsewhere", path);
  EXPECT_EQ(SocketName::Claim(path).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(fs::is_symlink(path));
}

TEST_F(SocketNameTest, AgentKilledWhileStartingIsNoObstacle) {
  const std::string path = directory_ / "agent.sock";
  fs::create_directory(directory_ / ".agent.sock.new");
  fs::permissions(directory_ / ".agent.sock.new", fs::perms::owner_all);
  Listen(directory_ / ".agent.sock.new" / "s").Reset();
  auto name = SocketName::Claim(path);
  ASSERT_TRUE(name.ok()) << name.status();
  const UniqueFd listener = Listen((*name)->BindPath());
  EXPECT_TRUE((*name)->Publish().ok());
}

TEST_F(SocketNameTest, DoesNotBindWhereOthersMayEnter) {
  fs::create_directory(directory_ / ".agent.sock.new");
  fs::permissions(directory_ / ".agent.sock.new", fs::perms::all);
  EXPECT_EQ(SocketName::Claim(directory_ / "agent.sock").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(SocketNameTest, OneClaimAtATime) {
  const std::string path = directory_ / "agent.sock";
  const auto first = SocketName::Claim(path);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(SocketName::Claim(path).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(SocketNameTest, RemovesOnlyItsOwn) {
  const std::string path = directory_ / "agent.sock";
  auto name = SocketName::Claim(path);
  ASSERT_TRUE(name.ok()) << name.status();
  const UniqueFd listener = Listen((*name)->BindPath());
  ASSERT_TRUE((*name)->Publish().ok());
  fs::remove(path);
  const UniqueFd successor = Listen(path);
  name->reset();
  EXPECT_TRUE(ConnectSocket(path).ok());
}

}  // namespace
}  // namespace shunt
