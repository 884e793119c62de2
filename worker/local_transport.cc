// Channels between stages of one process. Each receiver owns the channel, named in its address; the sender finds it.
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "worker/transport.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;

absl::Status Lost(int stage) {
  return absl::UnavailableError(absl::StrCat("the channel with stage ", stage, " is closed"));
}

// Messages of one direction between two stages. Thread-safe.
class Channel {
 public:
  explicit Channel(int64_t message_bytes_max) : bytes_max_(message_bytes_max) {}

  int64_t bytes_max() const { return bytes_max_; }

  // False if another has attached, or the channel is closed.
  bool AttachSender() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (attached_ || closed_) return false;
    attached_ = true;
    changed_.notify_all();
    return true;
  }

  bool WaitForSender(Clock::time_point deadline) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_until(lock, deadline, [this] { return attached_ || closed_; });
    return attached_ && !closed_;
  }

  // False: closed.
  bool Push(ConstTensor rows) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || pushed_ - popped_ < Transport::kAheadSends; });
    if (closed_) return false;
    Message& message = messages_[pushed_ % Transport::kAheadSends];
    lock.unlock();  // the receiver does not look at it before it is counted
    // Not zeroed: memory is committed as far as messages reach.
    if (message.data == nullptr) message.data.reset(new char[bytes_max_]);
    std::memcpy(message.data.get(), rows.data, rows.bytes());
    message.bytes = rows.bytes();
    lock.lock();
    ++pushed_;
    changed_.notify_all();
    return !closed_;
  }

  // -1: closed. Otherwise the size of the message, which is copied if it is the tensor's.
  int64_t Pop(Tensor rows) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || pushed_ > popped_; });
    if (closed_) return -1;
    const Message& message = messages_[popped_ % Transport::kAheadSends];
    lock.unlock();
    const int64_t bytes = message.bytes;
    if (bytes == rows.bytes()) std::memcpy(rows.data, message.data.get(), bytes);
    lock.lock();
    ++popped_;
    changed_.notify_all();
    return bytes;
  }

  void Close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  struct Message {
    std::unique_ptr<char[]> data;
    int64_t bytes = 0;
  };

  const int64_t bytes_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool attached_ = false;
  bool closed_ = false;
  int64_t pushed_ = 0;
  int64_t popped_ = 0;
  std::array<Message, Transport::kAheadSends> messages_;
};

// Channels of this process by address.
class Registry {
 public:
  static Registry& Get() {
    static auto& registry = *new Registry;
    return registry;
  }

  std::string Add(const std::shared_ptr<Channel>& channel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string address = absl::StrCat("local:", ++number_);
    channels_[address] = channel;
    return address;
  }
  void Remove(const std::string& address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    channels_.erase(address);
  }
  std::shared_ptr<Channel> Find(const std::string& address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = channels_.find(address);
    return found == channels_.end() ? nullptr : found->second;
  }

 private:
  std::mutex mutex_;
  int64_t number_ = 0;
  std::map<std::string, std::shared_ptr<Channel>> channels_;
};

// The channels of one stage in one generation. Setup and transport share it.
struct Ends {
  ~Ends() {
    Close();
    for (const std::string& address : addresses) {
      if (!address.empty()) Registry::Get().Remove(address);
    }
  }
  void Close() {
    const std::lock_guard<std::mutex> lock(mutex);
    closed = true;
    for (const auto& channel : in) {
      if (channel != nullptr) channel->Close();
    }
    for (const auto& channel : out) {
      if (channel != nullptr) channel->Close();
    }
  }

  std::vector<std::string> addresses;        // of `in`
  std::vector<std::shared_ptr<Channel>> in;  // [stages], null where there is no peer

  std::mutex mutex;
  bool closed = false;
  std::vector<std::shared_ptr<Channel>> out;  // [stages], found by Connect
};

class LocalTransport : public Transport {
 public:
  explicit LocalTransport(std::shared_ptr<Ends> ends) : ends_(std::move(ends)) {}
  ~LocalTransport() override { ends_->Close(); }

  absl::Status Send(int stage, ConstTensor rows) override {
    Channel& channel = Peer(ends_->out, stage);
    GF_CHECK(rows.bytes() > 0 && rows.bytes() <= channel.bytes_max()) << rows.bytes() << " bytes";
    return channel.Push(rows) ? absl::OkStatus() : Fail(Lost(stage));
  }

  absl::Status Recv(int stage, Tensor rows) override {
    GF_CHECK_GT(rows.bytes(), 0);
    const int64_t bytes = Peer(ends_->in, stage).Pop(rows);
    if (bytes == rows.bytes()) return absl::OkStatus();
    if (bytes < 0) return Fail(Lost(stage));
    return Fail(absl::InternalError(
        absl::StrCat("stage ", stage, " sent a message of ", bytes, " bytes, expected ", rows.bytes())));
  }

  void Abort() override { ends_->Close(); }

 private:
  static Channel& Peer(const std::vector<std::shared_ptr<Channel>>& channels, int stage) {
    GF_CHECK(stage >= 0 && stage < static_cast<int>(channels.size()) && channels[stage] != nullptr)
        << "stage " << stage << " is no peer";
    return *channels[stage];
  }
  absl::Status Fail(absl::Status status) {
    ends_->Close();
    return status;
  }

  const std::shared_ptr<Ends> ends_;
};

class LocalSetup : public TransportSetup {
 public:
  LocalSetup(const std::vector<bool>& peers, int64_t message_bytes_max) : ends_(std::make_shared<Ends>()) {
    ends_->addresses.resize(peers.size());
    ends_->in.resize(peers.size());
    ends_->out.resize(peers.size());
    for (size_t peer = 0; peer < peers.size(); ++peer) {
      if (!peers[peer]) continue;
      ends_->in[peer] = std::make_shared<Channel>(message_bytes_max);
      ends_->addresses[peer] = Registry::Get().Add(ends_->in[peer]);
    }
  }
  ~LocalSetup() override {
    if (!connected_) ends_->Close();
  }

  const std::vector<std::string>& addresses() const override { return ends_->addresses; }

  absl::StatusOr<std::unique_ptr<Transport>> Connect(const std::vector<std::string>& addresses,
                                                     double timeout_seconds) override {
    GF_CHECK(!connected_);
    const auto deadline =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_seconds));
    if (absl::Status status = Attach(addresses, deadline); !status.ok()) {
      ends_->Close();
      return status;
    }
    connected_ = true;
    return std::make_unique<LocalTransport>(ends_);
  }

  void Abort() override { ends_->Close(); }

 private:
  absl::Status Attach(const std::vector<std::string>& addresses, Clock::time_point deadline) {
    if (addresses.size() != ends_->in.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(addresses.size(), " addresses for a group of ", ends_->in.size(), " stages"));
    }
    for (size_t peer = 0; peer < addresses.size(); ++peer) {
      if (ends_->in[peer] == nullptr) continue;
      std::shared_ptr<Channel> channel = Registry::Get().Find(addresses[peer]);
      if (channel == nullptr || !channel->AttachSender()) {
        return absl::UnavailableError(absl::StrCat("stage ", peer, " is not at its address \"", addresses[peer], "\""));
      }
      const std::lock_guard<std::mutex> lock(ends_->mutex);
      if (ends_->closed) channel->Close();
      ends_->out[peer] = std::move(channel);
    }
    for (size_t peer = 0; peer < addresses.size(); ++peer) {
      if (ends_->in[peer] == nullptr || ends_->in[peer]->WaitForSender(deadline)) continue;
      return absl::UnavailableError(absl::StrCat("stage ", peer, " has not connected"));
    }
    return absl::OkStatus();
  }

  const std::shared_ptr<Ends> ends_;
  bool connected_ = false;
};

class LocalTransportFactory : public TransportFactory {
 public:
  const char* kind() const override { return "local"; }
  absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(uint64_t /*generation*/, int stage,
                                                        const std::vector<bool>& peers,
                                                        int64_t message_bytes_max) override {
    GF_CHECK(stage >= 0 && stage < static_cast<int>(peers.size()) && !peers[stage]);
    return std::make_unique<LocalSetup>(peers, message_bytes_max);
  }
};

}  // namespace

std::unique_ptr<TransportFactory> MakeLocalTransportFactory() { return std::make_unique<LocalTransportFactory>(); }

}  // namespace goldfinch
