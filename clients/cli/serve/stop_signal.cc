#include "clients/cli/serve/stop_signal.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>

#include "base/check.h"

namespace goldfinch {
namespace {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

sigset_t ReloadSignal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGHUP);
  return set;
}

// Blocks the signals, and returns a descriptor that they can be read from instead.
int Catch(const sigset_t& set) {
  GF_CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, nullptr), 0);
  const int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  GF_CHECK(fd >= 0);
  return fd;
}

// Returns whether there was a signal.
bool Drain(int fd) {
  signalfd_siginfo info;
  bool any = false;
  while (read(fd, &info, sizeof(info)) > 0) any = true;
  return any;
}

}  // namespace

StopSignal::StopSignal(bool second_ends)
    : second_ends_(second_ends), signals_(Catch(StopSignals())), reloads_(Catch(ReloadSignal())) {
  raised_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  GF_CHECK(raised_ >= 0);
}

StopSignal::~StopSignal() {
  close(signals_);
  close(reloads_);
  close(raised_);
}

bool StopSignal::WaitFor(double seconds) {
  pollfd fds[3] = {{signals_, POLLIN, 0}, {raised_, POLLIN, 0}, {reloads_, POLLIN, 0}};
  if (poll(fds, 3, static_cast<int>(seconds * 1000)) <= 0) return false;
  if (Drain(reloads_)) reload_ = true;
  if ((fds[0].revents | fds[1].revents) == 0) return false;
  Drain(signals_);
  if (!second_ends_) return true;
  // The next signal ends the process.
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  return true;
}

void StopSignal::Raise(const absl::Status& status) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (status_.ok()) status_ = status;
  }
  const uint64_t one = 1;
  GF_CHECK_EQ(write(raised_, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
}

absl::Status StopSignal::status() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

}  // namespace goldfinch
