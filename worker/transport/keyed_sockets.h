// TCP connections between the stages of a group, each of which has proved to the other that it belongs to the group.
//
// Each direction between two stages has a connection, which the sender of rows opens, and then:
//   sender -> receiver   who it is, whom it wants, a nonce
//   receiver -> sender   a nonce, and the proof that it has the group's key
//   sender -> receiver   the same proof in its own role
//   receiver -> sender   one byte: the connection counts
// Whoever connects and does not do this is a stranger: a port scan, a stage of another generation, someone who repeats
// what he has overheard. Strangers are dropped after a few bytes or seconds, and the stages wait past them. The key
// proves who is at the other end when the connection is made; what is sent later is neither encrypted nor signed.
#ifndef GOLDFINCH_WORKER_TRANSPORT_KEYED_SOCKETS_H_
#define GOLDFINCH_WORKER_TRANSPORT_KEYED_SOCKETS_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/shared_key.h"

namespace goldfinch {

// Owns a file descriptor.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(other.Release()) {}
  Socket& operator=(Socket&& other) noexcept;
  ~Socket();

  int fd() const { return fd_; }  // -1: none
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

// The connections of one stage in one generation.
class KeyedSockets {
 public:
  // Connections that have not proved themselves yet; when there are more, the oldest is dropped.
  static constexpr size_t kStrangersMax = 64;
  // How long they may take.
  static constexpr double kStrangerSeconds = 5;

  // `address` is an IP address of this machine. `receives_from` [stages] says which stages connect to this one. Listens
  // if there are any; UNAVAILABLE if that fails.
  static absl::StatusOr<std::unique_ptr<KeyedSockets>> Listen(const std::string& address, const std::string& key,
                                                              int stage, std::vector<bool> receives_from);
  ~KeyedSockets();
  KeyedSockets(const KeyedSockets&) = delete;
  KeyedSockets& operator=(const KeyedSockets&) = delete;

  // Where other stages connect to this one, as "10.0.0.7:41233"; empty if it does not listen.
  const std::string& address() const { return address_; }

  // The connections of one stage, [stages] each; without a descriptor where there is none.
  struct Sockets {
    std::vector<Socket> to;    // for what this stage sends
    std::vector<Socket> from;  // for what it receives
  };
  // `addresses` [stages] has where the stages listen that this one sends to, and is empty for the others. Blocks until
  // all connections are up. UNAVAILABLE: a peer is gone, another generation is at its address, time is up, or Abort was
  // called. To be called once.
  absl::StatusOr<Sockets> Connect(const std::vector<std::string>& addresses, double timeout_seconds);
  // Makes Connect fail, now or when it is called. For any thread.
  void Abort();

 private:
  class Meeting;

  KeyedSockets(const std::string& key, int stage, std::vector<bool> receives_from)
      : key_(key), stage_(stage), receives_from_(std::move(receives_from)) {}

  const SharedKey key_;
  const int stage_;
  const std::vector<bool> receives_from_;
  std::string address_;
  Socket listener_;
  Socket abort_;  // an eventfd
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_TRANSPORT_KEYED_SOCKETS_H_
