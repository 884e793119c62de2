#include "clients/cli/serve/supervisor.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "clients/cli/machine/numa.h"
#include "clients/cli/terminal/terminal.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kPollSeconds = 0.05;
constexpr int kUsageCode = 2, kNoProgramCode = 127;
constexpr size_t kLineBytesMax = 16 << 10;  // longer ones are broken

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// What waitpid said: "exit code 1", "signal 9 (Killed)".
std::string Describe(int status) {
  if (WIFEXITED(status)) return absl::StrCat("exit code ", WEXITSTATUS(status));
  return absl::StrCat("signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)), ")");
}

// One child, and the pipe that its lines come by.
class Child {
 public:
  Child(const SupervisedChild& child, const SupervisorOptions& options)
      : child_(child), options_(options), pause_seconds_(options.restart_seconds) {}
  ~Child() {
    if (pid_ > 0) kill(pid_, SIGKILL);
    if (lines_ >= 0) close(lines_);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  bool runs() const { return pid_ > 0; }
  // Whether it runs or will be started again.
  bool lives() const { return pid_ > 0 || restart_at_.has_value(); }
  const std::string& name() const { return child_.name; }
  std::string last_end() const { return end_ ? Describe(*end_) : "never started"; }
  // As it was told to: with 0, or by SIGTERM itself if it came before the child was ready for it.
  bool ended_well() const { return end_ && (WIFEXITED(*end_) ? WEXITSTATUS(*end_) == 0 : WTERMSIG(*end_) == SIGTERM); }
  bool ended_by_usage() const { return end_ && WIFEXITED(*end_) && WEXITSTATUS(*end_) == kUsageCode; }

  absl::Status Start() {
    restart_at_.reset();
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
      return absl::InternalError(absl::StrCat("no pipe for ", name(), ": ", strerror(errno)));
    }
    // What the child needs is made before it exists: between fork and exec it may not allocate.
    std::vector<char*> arguments = {const_cast<char*>(child_.program.c_str())};
    for (const std::string& argument : child_.arguments) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    const pid_t parent = getpid();
    const RunsOn there(child_.cpus);
    const pid_t pid = fork();
    if (pid == 0) Become(arguments, ends[1], parent);
    const int error = errno;
    close(ends[1]);
    if (pid < 0) {
      close(ends[0]);
      return absl::InternalError(absl::StrCat("cannot start ", name(), ": ", strerror(error)));
    }
    pid_ = pid;
    lines_ = ends[0];
    started_ = Clock::now();
    return absl::OkStatus();
  }

  // Prints what it has said, and notices its end: then it is started again later, if `may_restart`.
  void Look(bool may_restart) {
    PrintLines();
    int status = 0;
    if (pid_ <= 0 || waitpid(pid_, &status, WNOHANG) != pid_) return;
    pid_ = 0;
    end_ = status;
    PrintLines();
    PrintLine();
    close(std::exchange(lines_, -1));
    if (ended_well()) return options_.log(absl::StrCat("worker ", name(), " has ended"));
    const std::string died = absl::StrCat("worker ", name(), " has died: ", Describe(status));
    if (!may_restart || ended_by_usage()) return options_.log(died);
    if (Clock::now() - started_ >= Seconds(options_.settled_seconds)) pause_seconds_ = options_.restart_seconds;
    options_.log(absl::StrCat(died, "; it starts again in ", pause_seconds_, " s"));
    restart_at_ = Clock::now() + Seconds(pause_seconds_);
    pause_seconds_ = std::min(2 * pause_seconds_, options_.restart_seconds_max);
  }

  void RestartIfDue() {
    if (!restart_at_ || Clock::now() < *restart_at_) return;
    if (const absl::Status status = Start(); !status.ok()) {
      options_.log(std::string(status.message()));
      restart_at_ = Clock::now() + Seconds(options_.restart_seconds_max);
    }
  }
  void GiveUpRestart() { restart_at_.reset(); }
  void Signal(int number) const {
    if (pid_ > 0) kill(pid_, number);
  }

 private:
  // In the child: only what is safe after a fork of a process with threads.
  [[noreturn]] static void Become(const std::vector<char*>& arguments, int lines, pid_t parent) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);  // it died before it was asked to tell
    dup2(lines, STDERR_FILENO);
    fcntl(STDERR_FILENO, F_SETFL, 0);  // only this process reads without waiting
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    execv(arguments[0], arguments.data());
    _exit(kNoProgramCode);
  }

  void PrintLines() {
    char buffer[4096];
    for (;;) {
      const ssize_t bytes = lines_ < 0 ? 0 : read(lines_, buffer, sizeof(buffer));
      if (bytes < 0 && errno == EINTR) continue;
      if (bytes <= 0) return;
      for (const char c : std::string_view(buffer, bytes)) {
        if (c != '\n') line_ += c;
        if (c == '\n' || line_.size() == kLineBytesMax) PrintLine();
      }
    }
  }
  void PrintLine() {
    if (line_.empty()) return;
    std::fprintf(stderr, "[%s] %s\n", name().c_str(), line_.c_str());
    line_.clear();
  }

  const SupervisedChild& child_;
  const SupervisorOptions& options_;
  double pause_seconds_;  // before it is started again the next time
  pid_t pid_ = 0;         // 0: it does not run
  int lines_ = -1;
  std::string line_;  // that has not ended yet
  Clock::time_point started_;
  std::optional<int> end_;  // how it last ended, as waitpid says it
  std::optional<Clock::time_point> restart_at_;
};

}  // namespace

absl::Status Supervise(const std::vector<SupervisedChild>& children, const SupervisorOptions& options,
                       StopSignal& stop) {
  std::vector<std::unique_ptr<Child>> all;
  for (const SupervisedChild& child : children) {
    all.push_back(std::make_unique<Child>(child, options));
    if (absl::Status status = all.back()->Start(); !status.ok()) return status;
  }
  const auto any = [&](bool (Child::*is)() const) {
    return std::any_of(all.begin(), all.end(), [&](const auto& child) { return (child.get()->*is)(); });
  };
  bool stopping = false;
  while (!stopping && any(&Child::lives)) {
    stopping = stop.WaitFor(kPollSeconds);
    for (const auto& child : all) {
      child->Look(/*may_restart=*/!stopping);
      if (!stopping) child->RestartIfDue();
    }
  }
  for (const auto& child : all) {
    child->GiveUpRestart();
    child->Signal(SIGTERM);
  }
  for (const auto deadline = Clock::now() + Seconds(options.shutdown_seconds); any(&Child::runs);) {
    if (Clock::now() >= deadline) {
      for (const auto& child : all) child->Signal(SIGKILL);
    }
    std::this_thread::sleep_for(Seconds(kPollSeconds));
    for (const auto& child : all) child->Look(/*may_restart=*/false);
  }
  std::vector<std::string> failed;
  for (const auto& child : all) {
    if (!child->ended_well()) failed.push_back(absl::StrCat(child->name(), " (", child->last_end(), ")"));
  }
  if (failed.empty()) return stop.status();
  const absl::Status error = absl::InternalError(absl::StrCat("died: worker ", absl::StrJoin(failed, ", worker ")));
  return any(&Child::ended_by_usage) ? AsUsageError(error) : error;
}

}  // namespace goldfinch
