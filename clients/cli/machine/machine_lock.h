// Locks that the processes of this machine take by name.
#ifndef GOLDFINCH_CLIENTS_CLI_MACHINE_MACHINE_LOCK_H_
#define GOLDFINCH_CLIENTS_CLI_MACHINE_MACHINE_LOCK_H_

#include <optional>
#include <string>

namespace goldfinch {

// Held until it is destroyed or the process ends, however that is. A lock is a name of a Unix socket that no file
// stands for, so that nothing is left behind, and other users and services with a /tmp of their own see it. Containers
// with a network of their own do not.
class MachineLock {
 public:
  // Nothing if another process or another lock of this process has the name, which has at most 90 bytes.
  static std::optional<MachineLock> Try(const std::string& name);
  // The same after at most `seconds`.
  static std::optional<MachineLock> Await(const std::string& name, double seconds);

  MachineLock(MachineLock&& other) noexcept;
  MachineLock& operator=(MachineLock&& other) noexcept;
  ~MachineLock();

 private:
  explicit MachineLock(int fd) : fd_(fd) {}

  int fd_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_MACHINE_MACHINE_LOCK_H_
