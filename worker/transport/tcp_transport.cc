// The transport over TCP, on the connections that keyed_sockets.h makes: one for each direction between two stages.
//
// A message goes over its connection as a header and the rows; the receiver answers each with one byte when it has all
// of it. Send copies the rows to a slot of staging memory and writes what the connection takes at once; a thread writes
// the rest, and counts the answers, which free the slots. Recv reads on the calling thread, into place where the back
// end's memory is the host's. Errors end all connections, so that calls under way and the peers notice.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/resolve.h"
#include "base/status.h"
#include "base/transports.h"
#include "worker/transport/keyed_sockets.h"
#include "worker/transport/transport.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int64_t kAhead = Transport::kAheadSends;
// Buffers for messages from one peer: the next message is received while the one before is copied to the device.
constexpr int64_t kReceives = 2;
// A route is the same for all ports.
constexpr int kAnyPort = 1;

milliseconds ToMilliseconds(double seconds) {
  return milliseconds(std::max<int64_t>(1, static_cast<int64_t>(seconds * 1000)));
}

// Both ends are of one program and one kind of machine, so numbers go as they lie in memory.
struct Header {
  int64_t number;
  int64_t bytes;
};

// A message of which some is still to be written.
struct Outgoing {
  Header header;
  const char* rows;
  int64_t written = 0;  // header included

  int64_t left() const { return static_cast<int64_t>(sizeof(header)) + header.bytes - written; }
};

// Staging memory for the messages to and from one peer.
struct Staging {
  std::array<std::shared_ptr<void>, kAhead> sends;
  std::array<std::shared_ptr<void>, kReceives> receives;  // null where the back end reads host memory
};

// What this stage exchanges with another one.
struct Channel {
  StageTraffic traffic;
  Staging staging;
  Socket to, from;

  // What is sent. Guarded by TcpTransport::mutex_.
  int64_t sent = 0;
  int64_t answered = 0;
  std::deque<Outgoing> outgoing;

  // What is received; only the thread that receives uses it.
  int64_t received = 0;
  std::array<std::shared_ptr<const Mark>, kReceives> read;  // where the device has read the buffer
};

class TcpTransport : public Transport {
 public:
  TcpTransport(std::vector<Channel> channels, Socket wake, Backend& backend, milliseconds timeout)
      : backend_(backend),
        queue_(backend.queue()),
        timeout_(timeout),
        wake_(std::move(wake)),
        channels_(std::move(channels)) {
    for (const Channel& channel : channels_) {
      for (const Socket* socket : {&channel.to, &channel.from}) {
        const int on = 1;
        if (socket->fd() >= 0) setsockopt(socket->fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      }
    }
    thread_ = std::thread([this] { Run(); });
  }

  // Waits until the device no longer reads the staging memory.
  ~TcpTransport() override {
    Abort();
    thread_.join();
    for (const Channel& channel : channels_) {
      for (const auto& mark : channel.read) {
        if (mark != nullptr) mark->Wait();
      }
    }
  }

  absl::Status Send(int stage, ConstTensor rows) override {
    const int64_t bytes = rows.bytes();
    Channel& channel = Peer(stage);
    GF_CHECK(bytes > 0 && bytes <= channel.traffic.send_bytes_max)
        << bytes << " bytes, the limit is " << channel.traffic.send_bytes_max;
    int64_t number = 0;
    GF_RETURN_IF_ERROR(AwaitSlot(stage, &number));
    auto* const slot = static_cast<char*>(channel.staging.sends[number % kAhead].get());
    queue_.Copy(rows.data, slot, bytes);
    queue_.Record()->Wait();
    if (const absl::Status status = backend_.status(); !status.ok()) return Fail(status);
    bool rest = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      channel.outgoing.push_back({{number, bytes}, slot});
      Write(stage);
      rest = !channel.outgoing.empty();
    }
    if (rest) Wake();
    return status();
  }

  absl::Status Recv(int stage, Tensor rows) override {
    const int64_t bytes = rows.bytes();
    Channel& channel = Peer(stage);
    GF_CHECK(bytes > 0 && bytes <= channel.traffic.receive_bytes_max)
        << bytes << " bytes, the limit is " << channel.traffic.receive_bytes_max;
    const int64_t slot = channel.received % kReceives;
    void* place = rows.data;
    if (!backend_.host_accessible()) {
      if (channel.read[slot] != nullptr) channel.read[slot]->Wait();
      place = channel.staging.receives[slot].get();
    }
    if (const absl::Status status = Receive(stage, static_cast<char*>(place), bytes); !status.ok()) return Fail(status);
    if (place != rows.data) {
      queue_.Copy(place, rows.data, bytes);
      channel.read[slot] = queue_.Record();
    }
    return absl::OkStatus();
  }

  absl::Status status() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return status_;
  }

  void Abort() override { Fail(absl::UnavailableError("the group has ended")).IgnoreError(); }

 private:
  Channel& Peer(int stage) {
    GF_CHECK(stage >= 0 && stage < static_cast<int>(channels_.size()) && channels_[stage].traffic)
        << "stage " << stage << " is no peer";
    return channels_[stage];
  }

  // Keeps the first error as the final one, and ends all connections: calls under way, the thread and the peers notice
  // it. The descriptors stay open, as others may be using them. Returns the final error.
  absl::Status Fail(absl::Status error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    FailLocked(std::move(error));
    return status_;
  }
  void FailLocked(absl::Status error) {
    if (!status_.ok()) return;
    status_ = std::move(error);
    for (const Channel& channel : channels_) {
      for (const Socket* socket : {&channel.to, &channel.from}) {
        if (socket->fd() >= 0) shutdown(socket->fd(), SHUT_RDWR);
      }
    }
    changed_.notify_all();
    Wake();
  }

  void Wake() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_.fd(), &one, sizeof(one));
  }

  absl::Status NoProgress(const char* what, int stage) const {
    return absl::UnavailableError(absl::StrCat(what, " stage ", stage, " has made no progress for ",
                                               static_cast<double>(timeout_.count()) / 1000, " s"));
  }
  static absl::Status Lost(int stage, const char* why) {
    return absl::UnavailableError(absl::StrCat("the connection with stage ", stage, " has ended: ", why));
  }

  // ---- Sending ----

  // Waits until there is a slot for the next message, and numbers it.
  absl::Status AwaitSlot(int stage, int64_t* number) {
    std::unique_lock<std::mutex> lock(mutex_);
    Channel& channel = channels_[stage];
    const bool in_time =
        changed_.wait_for(lock, timeout_, [&] { return !status_.ok() || channel.sent - channel.answered < kAhead; });
    if (!in_time) FailLocked(NoProgress("a send to", stage));
    if (!status_.ok()) return status_;
    *number = channel.sent++;
    return absl::OkStatus();
  }

  // Writes as much as the connection takes. mutex_ is held.
  void Write(int stage) {
    Channel& channel = channels_[stage];
    while (status_.ok() && !channel.outgoing.empty()) {
      Outgoing& message = channel.outgoing.front();
      constexpr auto kHeaderBytes = static_cast<int64_t>(sizeof(Header));
      iovec parts[2];
      int count = 0;
      if (message.written < kHeaderBytes) {
        parts[count++] = {reinterpret_cast<char*>(&message.header) + message.written,
                          static_cast<size_t>(kHeaderBytes - message.written)};
      }
      const int64_t begin = std::max<int64_t>(0, message.written - kHeaderBytes);
      parts[count++] = {const_cast<char*>(message.rows) + begin, static_cast<size_t>(message.header.bytes - begin)};
      msghdr header = {};
      header.msg_iov = parts;
      header.msg_iovlen = count;
      const ssize_t written = sendmsg(channel.to.fd(), &header, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
      if (written < 0) return FailLocked(Lost(stage, std::strerror(errno)));
      message.written += written;
      if (message.left() == 0) channel.outgoing.pop_front();
    }
  }

  // Counts the receiver's answers. mutex_ is held.
  void ReadAnswers(int stage) {
    Channel& channel = channels_[stage];
    char answers[kAhead];
    const ssize_t got = recv(channel.to.fd(), answers, sizeof(answers), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
    if (got <= 0) return FailLocked(Lost(stage, got == 0 ? "closed by the peer" : std::strerror(errno)));
    if (got > channel.sent - channel.answered) return FailLocked(Lost(stage, "it answers what was not sent"));
    channel.answered += got;
    changed_.notify_all();
  }

  // The thread, until an error ends it.
  void Run() {
    std::vector<pollfd> polls;
    std::vector<int> stages;
    for (;;) {
      polls.assign(1, {wake_.fd(), POLLIN, 0});
      stages.assign(1, -1);
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!status_.ok()) return;
        for (int stage = 0; stage < static_cast<int>(channels_.size()); ++stage) {
          const Channel& channel = channels_[stage];
          if (channel.to.fd() < 0) continue;
          polls.push_back(
              {channel.to.fd(), static_cast<int16_t>(POLLIN | (channel.outgoing.empty() ? 0 : POLLOUT)), 0});
          stages.push_back(stage);
        }
      }
      if (poll(polls.data(), polls.size(), -1) < 0 && errno != EINTR) {
        Fail(absl::UnavailableError(absl::StrCat("poll: ", std::strerror(errno)))).IgnoreError();
      }
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t got = read(wake_.fd(), &count, sizeof(count));
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = 1; i < polls.size() && status_.ok(); ++i) {
        if ((polls[i].revents & POLLOUT) != 0) Write(stages[i]);
        if ((polls[i].revents & ~POLLOUT) != 0) ReadAnswers(stages[i]);
      }
    }
  }

  // ---- Receiving ----

  absl::Status Receive(int stage, char* place, int64_t bytes) {
    Channel& channel = channels_[stage];
    Header header;
    GF_RETURN_IF_ERROR(Read(stage, reinterpret_cast<char*>(&header), sizeof(header)));
    if (header.bytes != bytes || header.number != channel.received) {
      return absl::InternalError(absl::StrCat("stage ", stage, " sent message ", header.number, " of ", header.bytes,
                                              " bytes, expected ", bytes, " bytes and message ", channel.received));
    }
    GF_RETURN_IF_ERROR(Read(stage, place, bytes));
    ++channel.received;
    const char answer = '+';
    // At most kAheadSends answers are on their way, for which there is always room.
    if (send(channel.from.fd(), &answer, 1, MSG_NOSIGNAL) != 1) return Lost(stage, std::strerror(errno));
    return absl::OkStatus();
  }

  absl::Status Read(int stage, char* place, int64_t bytes) {
    const int fd = channels_[stage].from.fd();
    while (bytes > 0) {
      const ssize_t got = recv(fd, place, bytes, MSG_DONTWAIT);
      if (got > 0) {
        place += got;
        bytes -= got;
        continue;
      }
      if (got == 0) return Lost(stage, "closed by the peer");
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) return Lost(stage, std::strerror(errno));
      pollfd wait = {fd, POLLIN, 0};
      const int ready = poll(&wait, 1, static_cast<int>(std::min<int64_t>(timeout_.count(), 1 << 30)));
      if (ready == 0) return NoProgress("a receive from", stage);
      if (ready < 0 && errno != EINTR) return Lost(stage, std::strerror(errno));
    }
    return absl::OkStatus();
  }

  Backend& backend_;
  Queue& queue_;
  const milliseconds timeout_;
  const Socket wake_;              // an eventfd: there is something new to write, or an error
  std::vector<Channel> channels_;  // [stages]

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // answers have come, or an error
  absl::Status status_;              // guarded by mutex_

  std::thread thread_;
};

class TcpSetup : public TransportSetup {
 public:
  TcpSetup(std::unique_ptr<KeyedSockets> sockets, const std::vector<StageTraffic>& traffic, Backend& backend,
           milliseconds timeout)
      : sockets_(std::move(sockets)), backend_(backend), timeout_(timeout), channels_(traffic.size()) {
    for (size_t peer = 0; peer < traffic.size(); ++peer) {
      channels_[peer].traffic = traffic[peer];
      addresses_.push_back(traffic[peer].receive_bytes_max > 0 ? sockets_->address() : "");
    }
  }

  absl::Status AllocateStaging() {
    for (Channel& channel : channels_) {
      const StageTraffic& traffic = channel.traffic;
      if (traffic.send_bytes_max > 0) GF_RETURN_IF_ERROR(Allocate(traffic.send_bytes_max, channel.staging.sends));
      if (traffic.receive_bytes_max > 0 && !backend_.host_accessible()) {
        GF_RETURN_IF_ERROR(Allocate(traffic.receive_bytes_max, channel.staging.receives));
      }
    }
    return absl::OkStatus();
  }

  const std::vector<std::string>& addresses() const override { return addresses_; }

  absl::StatusOr<std::unique_ptr<Transport>> Connect(const std::vector<std::string>& addresses,
                                                     double timeout_seconds) override {
    if (addresses.size() != channels_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(addresses.size(), " addresses for a group of ", channels_.size(), " stages"));
    }
    std::vector<std::string> receivers(addresses.size());
    for (size_t peer = 0; peer < addresses.size(); ++peer) {
      if (channels_[peer].traffic.send_bytes_max == 0) continue;
      if (addresses[peer].empty()) return absl::UnavailableError(absl::StrCat("stage ", peer, " has no address"));
      receivers[peer] = addresses[peer];
    }
    GF_ASSIGN_OR_RETURN(KeyedSockets::Sockets sockets, sockets_->Connect(receivers, timeout_seconds));
    for (size_t peer = 0; peer < channels_.size(); ++peer) {
      channels_[peer].to = std::move(sockets.to[peer]);
      channels_[peer].from = std::move(sockets.from[peer]);
    }
    Socket wake(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (wake.fd() < 0) return absl::UnavailableError(absl::StrCat("eventfd: ", std::strerror(errno)));
    return std::make_unique<TcpTransport>(std::move(channels_), std::move(wake), backend_, timeout_);
  }

  void Abort() override { sockets_->Abort(); }

 private:
  template <size_t n>
  absl::Status Allocate(int64_t bytes, std::array<std::shared_ptr<void>, n>& memory) {
    for (std::shared_ptr<void>& one : memory) {
      GF_ASSIGN_OR_RETURN(one, backend_.AllocateStaging(bytes, "rows to and from other stages"));
    }
    return absl::OkStatus();
  }

  const std::unique_ptr<KeyedSockets> sockets_;
  Backend& backend_;
  const milliseconds timeout_;
  std::vector<Channel> channels_;  // [stages]
  std::vector<std::string> addresses_;
};

class TcpTransportFactory : public TransportFactory {
 public:
  TcpTransportFactory(std::string address, milliseconds timeout)
      : own_address_(std::move(address)), address_(own_address_), timeout_(timeout) {}

  const char* kind() const override { return kTcpTransport; }

  absl::Status Reach(const std::string& host) override {
    address_ = own_address_;
    if (host.empty()) return absl::OkStatus();
    GF_ASSIGN_OR_RETURN(address_, OwnAddressTowards(host, kAnyPort, AI_NUMERICHOST));
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(const std::string& key, int stage,
                                                        const std::vector<StageTraffic>& traffic,
                                                        Backend& backend) override {
    GF_CHECK(stage >= 0 && stage < static_cast<int>(traffic.size()) && !traffic[stage]);
    std::vector<bool> receives_from;
    for (const StageTraffic& one : traffic) receives_from.push_back(one.receive_bytes_max > 0);
    GF_ASSIGN_OR_RETURN(std::unique_ptr<KeyedSockets> sockets,
                        KeyedSockets::Listen(address_, key, stage, std::move(receives_from)));
    auto setup = std::make_unique<TcpSetup>(std::move(sockets), traffic, backend, timeout_);
    GF_RETURN_IF_ERROR(setup->AllocateStaging());
    return setup;
  }

 private:
  const std::string own_address_;  // a number
  std::string address_;            // the same, or another one that Reach has found
  const milliseconds timeout_;
};

// Whether the address stands for all interfaces: sockets can have it, but nobody can connect to it.
bool IsWildcard(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    return reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr == htonl(INADDR_ANY);
  }
  return address.sa_family == AF_INET6 &&
         IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
}

// Returns the first IP address of the name that belongs to this machine.
absl::StatusOr<std::string> ResolveOwnAddress(const std::string& name) {
  const absl::StatusOr<AddressList> found = ResolveHost(name, /*port=*/0);
  if (!found.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("address \"", name, "\": ", found.status().message()));
  }
  for (const addrinfo* entry = found->get(); entry != nullptr; entry = entry->ai_next) {
    const int fd = socket(entry->ai_family, entry->ai_socktype | SOCK_CLOEXEC, entry->ai_protocol);
    if (fd < 0) continue;
    const bool own = !IsWildcard(*entry->ai_addr) && bind(fd, entry->ai_addr, entry->ai_addrlen) == 0;
    close(fd);
    if (own) return NumericHost(*entry->ai_addr);
  }
  return absl::InvalidArgumentError(absl::StrCat("address \"", name, "\" is not one of this machine"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TransportFactory>> MakeTcpTransportFactory(const std::string& address,
                                                                          double timeout_seconds) {
  GF_ASSIGN_OR_RETURN(std::string number, ResolveOwnAddress(address));
  return std::make_unique<TcpTransportFactory>(std::move(number), ToMilliseconds(timeout_seconds));
}

}  // namespace goldfinch
