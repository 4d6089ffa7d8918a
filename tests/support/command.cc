// SPDX-License-Identifier: Apache-2.0
#include "tests/support/command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

namespace shunt::test {
namespace {

int ExitCodeOf(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// fork() whose child is killed when the test's main thread ends.
pid_t ForkTied() {
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
      _exit(127);
    }
  }
  return pid;
}

[[noreturn]] void Execute(const std::vector<std::string>& arguments, const NetnsToken* netns) {
  if (netns != nullptr && !netns->Enter()) {
    _exit(126);
  }
  std::vector<char*> argv;
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  _exit(127);
}

struct Pipe {
  UniqueFd read, write;

  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
      StopErrno(Where::Here(), "making a pipe", errno);
    }
    read.Reset(ends[0]);
    write.Reset(ends[1]);
  }
};

std::string Joined(const std::vector<std::string>& arguments) {
  std::string text;
  for (const std::string& argument : arguments) {
    text += (text.empty() ? "" : " ") + argument;
  }
  return text;
}

}  // namespace

CommandResult RunCommand(const std::vector<std::string>& arguments, const NetnsToken* netns,
                         const std::string& input, milliseconds patience, const Where& where) {
  Pipe in, out, err;
  const pid_t pid = ForkTied();
  if (pid < 0) {
    StopErrno(where, "forking for " + Joined(arguments), errno);
  }
  if (pid == 0) {
    dup2(in.read.get(), 0);
    dup2(out.write.get(), 1);
    dup2(err.write.get(), 2);
    Execute(arguments, netns);
  }
  in.read.Reset();
  out.write.Reset();
  err.write.Reset();
  // Inputs here are a screenful: they fit into the pipe.
  const ssize_t written = write(in.write.get(), input.data(), input.size());
  in.write.Reset();
  CommandResult result;
  const Clock::time_point end = Clock::now() + patience;
  bool timed_out = written != static_cast<ssize_t>(input.size());
  struct pollfd polls[2] = {{out.read.get(), POLLIN, 0}, {err.read.get(), POLLIN, 0}};
  std::string* texts[2] = {&result.out, &result.err};
  while (!timed_out && (polls[0].fd >= 0 || polls[1].fd >= 0)) {
    const auto left = std::chrono::duration_cast<milliseconds>(end - Clock::now()).count();
    timed_out = left <= 0 || poll(polls, 2, static_cast<int>(left)) == 0;
    for (int i = 0; !timed_out && i < 2; i++) {
      char buffer[16384];
      if (polls[i].fd < 0 || polls[i].revents == 0) {
        continue;
      }
      const ssize_t got = read(polls[i].fd, buffer, sizeof(buffer));
      if (got <= 0) {
        polls[i].fd = -1;
      } else {
        texts[i]->append(buffer, got);
      }
    }
  }
  if (timed_out) {
    kill(pid, SIGKILL);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  if (timed_out) {
    Stop(where, "killed after " + std::to_string(patience.count()) + " ms: " + Joined(arguments) +
                    "\n" + result.out + result.err);
  }
  result.exit_code = ExitCodeOf(status);
  return result;
}

std::string MustRun(const std::vector<std::string>& arguments, const NetnsToken* netns,
                    const std::string& input, const Where& where) {
  CommandResult result = RunCommand(arguments, netns, input, kPatience, where);
  if (result.exit_code != 0) {
    Stop(where, Joined(arguments) + " exited with " + std::to_string(result.exit_code) + "\n" +
                    result.out + result.err);
  }
  return result.out;
}

Child Child::Fork(const std::function<int()>& body) {
  const pid_t pid = ForkTied();
  if (pid < 0) {
    StopErrno(Where::Here(), "forking", errno);
  }
  if (pid == 0) {
    _exit(body());
  }
  return Child(pid);
}

Child Child::Spawn(const std::vector<std::string>& arguments, const NetnsToken* netns,
                   const std::string& out_path, const std::string& err_path) {
  UniqueFd in(open("/dev/null", O_RDONLY | O_CLOEXEC));
  UniqueFd out(open(out_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  UniqueFd err(open(err_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!in.valid() || !out.valid() || !err.valid()) {
    StopErrno(Where::Here(), "opening " + err_path, errno);
  }
  const pid_t pid = ForkTied();
  if (pid < 0) {
    StopErrno(Where::Here(), "forking for " + Joined(arguments), errno);
  }
  if (pid == 0) {
    dup2(in.get(), 0);
    dup2(out.get(), 1);
    dup2(err.get(), 2);
    Execute(arguments, netns);
  }
  return Child(pid);
}

Child::Child(Child&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), exit_code_(other.exit_code_) {}

Child& Child::operator=(Child&& other) noexcept {
  if (this != &other) {
    Kill();
    pid_ = std::exchange(other.pid_, -1);
    exit_code_ = other.exit_code_;
  }
  return *this;
}

void Child::Signal(int signal) const {
  if (pid_ > 0 && !exit_code_) {
    kill(pid_, signal);
  }
}

void Child::Kill() {
  if (pid_ > 0 && !exit_code_) {
    kill(pid_, SIGKILL);
    int status = 0;
    waitpid(pid_, &status, 0);
    exit_code_ = ExitCodeOf(status);
  }
}

std::optional<int> Child::Poll() {
  int status = 0;
  if (pid_ > 0 && !exit_code_ && waitpid(pid_, &status, WNOHANG) == pid_) {
    exit_code_ = ExitCodeOf(status);
  }
  return exit_code_;
}

int Child::Wait(milliseconds patience, const Where& where) {
  WaitUntil(
      "process " + std::to_string(pid_) + " ends", [this] { return Poll().has_value(); }, patience,
      where);
  return *exit_code_;
}

}  // namespace shunt::test
