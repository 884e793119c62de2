#include "clients/cli/stop_signal.h"

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

}  // namespace

StopSignal::StopSignal() {
  const sigset_t set = StopSignals();
  GF_CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, nullptr), 0);
  signals_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  raised_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  GF_CHECK(signals_ >= 0 && raised_ >= 0);
}

StopSignal::~StopSignal() {
  close(signals_);
  close(raised_);
}

bool StopSignal::WaitFor(double seconds) {
  pollfd fds[2] = {{signals_, POLLIN, 0}, {raised_, POLLIN, 0}};
  if (poll(fds, 2, static_cast<int>(seconds * 1000)) <= 0) return false;
  // The next signal ends the process.
  signalfd_siginfo info;
  while (read(signals_, &info, sizeof(info)) > 0) continue;
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
