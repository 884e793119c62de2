// The transport over TCP, by Gloo. Each pair of stages has one connection; each message has an unbound buffer and a tag
// of its own. Rows pass through staging memory, except that the CPU receives them in place.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "gloo/common/error.h"
#include "gloo/transport/address.h"
#include "gloo/transport/context.h"
#include "gloo/transport/device.h"
#include "gloo/transport/pair.h"
#include "gloo/transport/tcp/device.h"
#include "gloo/transport/unbound_buffer.h"
#include "worker/transport/transport.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

milliseconds ToMilliseconds(double seconds) {
  return milliseconds(std::max<int64_t>(1, static_cast<int64_t>(seconds * 1000)));
}

// Gloo reports all errors by exceptions.
template <class Call>
absl::Status Catch(const std::string& what, Call call) {
  try {
    return call();
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat(what, ": ", error.what()));
  }
}

// Ends all pairs, those that are still connecting included, and all waits for them. The peers notice it.
//
// Trap: Pair::close() would reset the connection, and Gloo ends the process of a peer whose connection is reset before
// the peer has accepted it. A wait that times out ends all pairs without a reset, so that is what is done here. One
// race remains: a listener may end in the microseconds in which a peer examines its new connection.
void EndPairs(gloo::transport::Context& context) {
  char nothing = 0;
  const auto buffer = context.createUnboundBuffer(&nothing, sizeof(nothing));
  Catch("end", [&] {
    buffer->waitRecv(milliseconds(1));
    return absl::OkStatus();
  }).IgnoreError();
}

// Buffers for messages from one peer: the next message is received while the one before is copied to the device.
constexpr int kReceives = 2;

// Staging memory for the messages to and from one peer.
struct Staging {
  std::array<std::shared_ptr<void>, Transport::kAheadSends> sends;
  std::array<std::shared_ptr<void>, kReceives> receives;  // null where the back end reads host memory
};

class GlooTransport : public Transport {
 public:
  GlooTransport(std::shared_ptr<gloo::transport::Context> context, const std::vector<StageTraffic>& traffic,
                std::vector<Staging> staging, Backend& backend, milliseconds timeout)
      : context_(std::move(context)),
        backend_(backend),
        queue_(backend.queue()),
        timeout_(timeout),
        channels_(traffic.size()) {
    for (size_t peer = 0; peer < traffic.size(); ++peer) {
      Channel& channel = channels_[peer];
      channel.traffic = traffic[peer];
      channel.staging = std::move(staging[peer]);
      for (size_t i = 0; i < channel.sends.size() && channel.traffic.send_bytes_max > 0; ++i) {
        channel.sends[i] =
            context_->createUnboundBuffer(channel.staging.sends[i].get(), channel.traffic.send_bytes_max);
      }
    }
  }

  // Waits until the device no longer reads the staging memory.
  ~GlooTransport() override {
    EndPairs(*context_);
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
    if (absl::Status ended = status(); !ended.ok()) return Finish(std::move(ended));
    return Finish(Catch(absl::StrCat("send to stage ", stage), [&]() -> absl::Status {
      const int64_t slot = channel.sent % kAheadSends;
      gloo::transport::UnboundBuffer& buffer = *channel.sends[slot];
      if (channel.sent >= kAheadSends && !buffer.waitSend(timeout_)) return Aborted();
      if (aborted()) return Aborted();
      queue_.Copy(rows.data, channel.staging.sends[slot].get(), bytes);
      queue_.Record()->Wait();
      GF_RETURN_IF_ERROR(backend_.status());
      buffer.send(stage, Tag(channel.sent, bytes), 0, bytes);
      ++channel.sent;
      return absl::OkStatus();
    }));
  }

  absl::Status Recv(int stage, Tensor rows) override {
    const int64_t bytes = rows.bytes();
    Channel& channel = Peer(stage);
    GF_CHECK(bytes > 0 && bytes <= channel.traffic.receive_bytes_max)
        << bytes << " bytes, the limit is " << channel.traffic.receive_bytes_max;
    if (absl::Status ended = status(); !ended.ok()) return Finish(std::move(ended));
    const int64_t slot = channel.received % kReceives;
    void* place = rows.data;
    if (!backend_.host_accessible()) {
      if (channel.read[slot] != nullptr) channel.read[slot]->Wait();
      place = channel.staging.receives[slot].get();
    }
    // Gloo does not touch the memory any more once this is destroyed.
    const std::unique_ptr<gloo::transport::UnboundBuffer> buffer = context_->createUnboundBuffer(place, bytes);
    if (!SetReceiving(buffer.get())) return Finish(Aborted());
    absl::Status status = Catch(absl::StrCat("receive from stage ", stage), [&] {
      buffer->recv(stage, Tag(channel.received, bytes), 0, bytes);
      if (!buffer->waitRecv(timeout_)) return Aborted();
      ++channel.received;
      return absl::OkStatus();
    });
    SetReceiving(nullptr);
    if (status.ok() && place != rows.data) {
      queue_.Copy(place, rows.data, bytes);
      channel.read[slot] = queue_.Record();
    }
    return Finish(std::move(status));
  }

  absl::Status status() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return aborted_ && status_.ok() ? Aborted() : status_;
  }

  void Abort() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    aborted_ = true;
    if (receiving_ != nullptr) receiving_->abortWaitRecv();
    for (Channel& channel : channels_) {
      for (const auto& buffer : channel.sends) {
        if (buffer != nullptr) buffer->abortWaitSend();
      }
    }
  }

 private:
  struct Channel {
    StageTraffic traffic;
    Staging staging;
    int64_t sent = 0;
    int64_t received = 0;
    std::array<std::unique_ptr<gloo::transport::UnboundBuffer>, kAheadSends> sends;
    std::array<std::shared_ptr<const Mark>, kReceives> read;  // where the device has read it
  };

  // The tag holds the size, so that a message never arrives in a buffer of another size, which Gloo would fill partly.
  static uint64_t Tag(int64_t number, int64_t bytes) {
    return static_cast<uint64_t>(number) << 40 | static_cast<uint64_t>(bytes);
  }

  Channel& Peer(int stage) {
    GF_CHECK(stage >= 0 && stage < static_cast<int>(channels_.size()) && channels_[stage].traffic)
        << "stage " << stage << " is no peer";
    return channels_[stage];
  }

  static absl::Status Aborted() { return absl::UnavailableError("the group has ended"); }
  bool aborted() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return aborted_;
  }
  // Sets the buffer whose wait Abort ends. Returns false, and sets none, if Abort has been called already.
  bool SetReceiving(gloo::transport::UnboundBuffer* buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    receiving_ = aborted_ ? nullptr : buffer;
    return !aborted_;
  }
  // Keeps the first error as the final one, and lets the peers fail too.
  absl::Status Finish(absl::Status status) {
    if (status.ok()) return status;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!status_.ok()) return status;
      status_ = status;
    }
    EndPairs(*context_);
    return status;
  }

  const std::shared_ptr<gloo::transport::Context> context_;
  Backend& backend_;
  Queue& queue_;
  const milliseconds timeout_;
  std::vector<Channel> channels_;  // [stages]

  mutable std::mutex mutex_;
  absl::Status status_;
  bool aborted_ = false;
  gloo::transport::UnboundBuffer* receiving_ = nullptr;
};

class GlooSetup : public TransportSetup {
 public:
  GlooSetup(std::shared_ptr<gloo::transport::Context> context, uint64_t generation, std::vector<StageTraffic> traffic,
            Backend& backend, milliseconds timeout)
      : context_(std::move(context)),
        generation_(generation),
        traffic_(std::move(traffic)),
        backend_(backend),
        timeout_(timeout),
        staging_(traffic_.size()) {}

  absl::Status AllocateStaging() {
    for (size_t peer = 0; peer < traffic_.size(); ++peer) {
      const StageTraffic& traffic = traffic_[peer];
      if (traffic.send_bytes_max > 0) GF_RETURN_IF_ERROR(Allocate(traffic.send_bytes_max, staging_[peer].sends));
      if (traffic.receive_bytes_max > 0 && !backend_.host_accessible()) {
        GF_RETURN_IF_ERROR(Allocate(traffic.receive_bytes_max, staging_[peer].receives));
      }
    }
    return absl::OkStatus();
  }

  // Listens for every peer. Throws Gloo's exceptions.
  void Listen() {
    addresses_.resize(traffic_.size());
    // Gloo would wait five times as long as its timeout to connect, so Watch keeps the time.
    context_->setTimeout(gloo::kNoTimeout);
    for (size_t peer = 0; peer < traffic_.size(); ++peer) {
      if (!traffic_[peer]) continue;
      const std::vector<char> bytes = context_->createPair(static_cast<int>(peer))->address().bytes();
      addresses_[peer].assign(bytes.begin(), bytes.end());
    }
  }

  const std::vector<std::string>& addresses() const override { return addresses_; }

  absl::StatusOr<std::unique_ptr<Transport>> Connect(const std::vector<std::string>& addresses,
                                                     double timeout_seconds) override {
    if (addresses.size() != traffic_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(addresses.size(), " addresses for a group of ", traffic_.size(), " stages"));
    }
    std::thread watch([this, timeout_seconds] { Watch(ToMilliseconds(timeout_seconds)); });
    absl::Status status = ConnectPairs(addresses);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
      if (late_) status = absl::UnavailableError(absl::StrCat("not connected within ", timeout_seconds, " s"));
      if (aborted_) status = absl::UnavailableError("the group has ended");
      changed_.notify_all();
    }
    watch.join();
    GF_RETURN_IF_ERROR(status);
    return std::make_unique<GlooTransport>(context_, traffic_, std::move(staging_), backend_, timeout_);
  }

  void Abort() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    aborted_ = true;
    changed_.notify_all();
  }

 private:
  using Buffer = gloo::transport::UnboundBuffer;

  template <size_t n>
  absl::Status Allocate(int64_t bytes, std::array<std::shared_ptr<void>, n>& memory) {
    for (std::shared_ptr<void>& one : memory) {
      GF_ASSIGN_OR_RETURN(one, backend_.AllocateStaging(bytes, "rows to and from other stages"));
    }
    return absl::OkStatus();
  }

  struct Greeting {
    uint64_t generation;
    uint64_t stage;
  };
  static constexpr uint64_t kGreetingTag = ~uint64_t{0};
  // Longer than any wait: waits end by success or by abort, and Watch keeps the time.
  static constexpr milliseconds kLong = std::chrono::hours(24);

  // All stages connect to their peers in the same order, so that no two wait for each other.
  absl::Status ConnectPairs(const std::vector<std::string>& addresses) {
    for (int peer = 0; peer < static_cast<int>(traffic_.size()); ++peer) {
      if (!traffic_[peer]) continue;
      GF_RETURN_IF_ERROR(Catch(absl::StrCat("connect to stage ", peer), [&] {
        const std::vector<char> bytes(addresses[peer].begin(), addresses[peer].end());
        context_->getPair(peer)->connect(bytes);
        return Greet(peer);
      }));
    }
    return absl::OkStatus();
  }

  // Makes sure that the other end is that stage of this generation, and that it has accepted the connection.
  absl::Status Greet(int peer) {
    Greeting own = {generation_, static_cast<uint64_t>(context_->rank)}, theirs = {};
    const std::unique_ptr<Buffer> send = context_->createUnboundBuffer(&own, sizeof(own));
    const std::unique_ptr<Buffer> receive = context_->createUnboundBuffer(&theirs, sizeof(theirs));
    const bool begun = SetWaiting(send.get(), receive.get());
    absl::Status status =
        begun ? Catch("greet", [&] { return Exchange(peer, *send, *receive); }) : absl::UnavailableError("too late");
    SetWaiting(nullptr, nullptr);
    GF_RETURN_IF_ERROR(status);
    if (theirs.generation == generation_ && theirs.stage == static_cast<uint64_t>(peer)) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat("it is stage ", theirs.stage, " of generation ", theirs.generation, ", not of ", generation_));
  }

  static absl::Status Exchange(int peer, Buffer& send, Buffer& receive) {
    receive.recv(peer, kGreetingTag);
    send.send(peer, kGreetingTag);
    if (receive.waitRecv(kLong) && send.waitSend(kLong)) return absl::OkStatus();
    return absl::UnavailableError("too late");
  }

  // Sets the buffers whose waits Watch ends. Returns false, and sets none, if Watch has ended them already.
  bool SetWaiting(Buffer* sending, Buffer* receiving) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool over = aborted_ || late_;
    sending_ = over ? nullptr : sending;
    receiving_ = over ? nullptr : receiving;
    return !over;
  }

  // Ends the waits of Connect on Abort or after the timeout.
  void Watch(milliseconds timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    late_ = !changed_.wait_for(lock, timeout, [this] { return done_ || aborted_; });
    if (done_) return;
    if (sending_ != nullptr) sending_->abortWaitSend();
    if (receiving_ != nullptr) receiving_->abortWaitRecv();
    EndPairs(*context_);
  }

  const std::shared_ptr<gloo::transport::Context> context_;
  const uint64_t generation_;
  const std::vector<StageTraffic> traffic_;
  Backend& backend_;
  const milliseconds timeout_;
  std::vector<Staging> staging_;  // [stages]
  std::vector<std::string> addresses_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool aborted_ = false;
  bool late_ = false;
  bool done_ = false;
  Buffer* sending_ = nullptr;
  Buffer* receiving_ = nullptr;
};

class GlooTransportFactory : public TransportFactory {
 public:
  GlooTransportFactory(std::shared_ptr<gloo::transport::Device> device, milliseconds timeout)
      : device_(std::move(device)), timeout_(timeout) {}

  const char* kind() const override { return "gloo"; }

  absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(uint64_t generation, int stage,
                                                        const std::vector<StageTraffic>& traffic,
                                                        Backend& backend) override {
    GF_CHECK(stage >= 0 && stage < static_cast<int>(traffic.size()) && !traffic[stage]);
    std::unique_ptr<GlooSetup> setup;
    GF_RETURN_IF_ERROR(Catch("listen", [&]() -> absl::Status {
      setup = std::make_unique<GlooSetup>(device_->createContext(stage, static_cast<int>(traffic.size())), generation,
                                          traffic, backend, timeout_);
      GF_RETURN_IF_ERROR(setup->AllocateStaging());
      setup->Listen();
      return absl::OkStatus();
    }));
    return setup;
  }

 private:
  const std::shared_ptr<gloo::transport::Device> device_;  // has a thread of its own
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

// Returns the first IP address of the name that belongs to this machine. Gloo takes names too, but ends the process if
// it cannot resolve one.
absl::StatusOr<std::string> ResolveOwnAddress(const std::string& name) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(name.c_str(), nullptr, &hints, &found); error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("address \"", name, "\": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    const int fd = socket(entry->ai_family, entry->ai_socktype | SOCK_CLOEXEC, entry->ai_protocol);
    if (fd < 0) continue;
    const bool own = !IsWildcard(*entry->ai_addr) && bind(fd, entry->ai_addr, entry->ai_addrlen) == 0;
    close(fd);
    char number[NI_MAXHOST];
    if (own &&
        getnameinfo(entry->ai_addr, entry->ai_addrlen, number, sizeof(number), nullptr, 0, NI_NUMERICHOST) == 0) {
      return std::string(number);
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("address \"", name, "\" is not one of this machine"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TransportFactory>> MakeGlooTransportFactory(const std::string& address,
                                                                           double timeout_seconds) {
  GF_ASSIGN_OR_RETURN(const std::string number, ResolveOwnAddress(address));
  // Gloo may write to a socket whose peer is gone, which must be an error and not a signal.
  std::signal(SIGPIPE, SIG_IGN);  // NOLINT(cert-err33-c)
  std::shared_ptr<gloo::transport::Device> device;
  const absl::Status status = Catch("device", [&] {
    device = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr(number.c_str()));
    return absl::OkStatus();
  });
  if (!status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("address \"", address, "\" cannot be used: ", std::string(status.message())));
  }
  return std::make_unique<GlooTransportFactory>(std::move(device), ToMilliseconds(timeout_seconds));
}

}  // namespace goldfinch
