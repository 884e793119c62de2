#include "clients/cli/machine/machine_lock.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace goldfinch {

std::optional<MachineLock> MachineLock::Try(const std::string& name) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const std::string path = absl::StrCat("goldfinch ", name);
  GF_CHECK_LT(path.size(), sizeof(address.sun_path)) << path;
  std::memcpy(address.sun_path + 1, path.data(), path.size());  // a name of its own begins with a zero
  MachineLock lock(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + path.size());
  if (lock.fd_ < 0 || bind(lock.fd_, reinterpret_cast<const sockaddr*>(&address), size) != 0) return std::nullopt;
  return lock;
}

std::optional<MachineLock> MachineLock::Await(const std::string& name, double seconds) {
  constexpr auto kPause = std::chrono::milliseconds(10);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (;;) {
    std::optional<MachineLock> lock = Try(name);
    if (lock || std::chrono::steady_clock::now() >= end) return lock;
    std::this_thread::sleep_for(kPause);
  }
}

MachineLock::MachineLock(MachineLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

MachineLock& MachineLock::operator=(MachineLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

MachineLock::~MachineLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace goldfinch
