// The transport between stages in one process. The receiver makes a channel and gives its number as an address, by
// which the sender finds the channel.
//
// The sender copies rows into a slot of its ring, in the order of its ops. On one device the receiver's ops copy them
// from there. To another device they are pushed as soon as they have been written: a queue of the channel's own copies
// the slot into a ring of the receiver, so that the rows of the next step arrive while both devices compute, and the
// receiver's ops copy within their own device.
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "base/transports.h"
#include "worker/transport/transport.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;

absl::Status Lost(int stage) {
  return absl::UnavailableError(absl::StrCat("the channel with stage ", stage, " is closed"));
}

// Slots begin at page boundaries, so that the system commits no more memory on the CPU than messages fill.
int64_t SlotBytes(int64_t bytes_max) {
  constexpr int64_t kPage = 4096;
  return (bytes_max + kPage - 1) / kPage * kPage;
}

// kAheadSends slots for messages of at most `bytes_max`.
absl::StatusOr<std::shared_ptr<void>> AllocateRing(Backend& backend, int64_t bytes_max) {
  return backend.Allocate(Transport::kAheadSends * SlotBytes(bytes_max), "rows to and from other stages");
}
char* Slot(const std::shared_ptr<void>& ring, int64_t bytes_max, int slot) {
  return static_cast<char*>(ring.get()) + slot * SlotBytes(bytes_max);
}

// Rows on their way, in a slot of the sender's ring or of the receiver's.
struct Message {
  const void* data = nullptr;
  int64_t bytes = 0;
  std::shared_ptr<const Mark> written;  // the place in the queue of the last copy, where they are there
};

// One direction between two stages. It passes on where messages are and the marks to wait for; the devices copy the
// rows. Thread-safe, except where a method says otherwise.
class Channel {
 public:
  explicit Channel(int64_t message_bytes_max) : bytes_max_(message_bytes_max) {}
  // Whichever end is the last to let go waits for the copies between the rings. Freeing memory waits for the work of
  // its own device only, and the receiver's ring is written by the sender's.
  ~Channel() {
    if (last_pushed_ != nullptr) last_pushed_->Wait();
  }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  int64_t bytes_max() const { return bytes_max_; }

  // To be called before any sender can find the channel. Memory of the host needs no ring, as every back end that uses
  // it can read all of it.
  absl::Status AllocateLanding(Backend& receiver) {
    receiver_ = receiver.Uuid();
    if (receiver.host_accessible()) return absl::OkStatus();
    GF_ASSIGN_OR_RETURN(landing_, AllocateRing(receiver, bytes_max_));
    // Allocate zeroes the ring on the receiver's queue, maybe behind much else: no slot is free before.
    left_.fill(receiver.queue().Record());
    return absl::OkStatus();
  }
  // Whether rows from this device go through the receiver's ring. A device without a name may be any.
  bool IsBetweenDevices(const Backend& sender) const {
    return landing_ != nullptr && (receiver_.empty() || receiver_ != sender.Uuid());
  }
  char* landing(int slot) const { return Slot(landing_, bytes_max_, slot); }
  // Where the last copy into the receiver's ring ends. For the sender's thread alone.
  void set_last_pushed(std::shared_ptr<const Mark> mark) { last_pushed_ = std::move(mark); }

  // Keeps the sender's ring alive for the receiver. False if a sender has attached before, or if the channel is closed.
  bool AttachSender(std::shared_ptr<void> ring) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (attached_ || closed_) return false;
    attached_ = true;
    ring_ = std::move(ring);
    changed_.notify_all();
    return true;
  }

  bool WaitForSender(Clock::time_point deadline) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_until(lock, deadline, [this] { return attached_ || closed_; });
    return attached_ && !closed_;
  }

  // Waits until a slot of the ring is free. Returns false if the channel is closed. `left` is the place in the
  // receiver's queue after which the slot may be written; null: at once.
  bool TakeSlot(int* slot, std::shared_ptr<const Mark>* left) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || pushed_ - popped_ < Transport::kAheadSends; });
    if (closed_) return false;
    *slot = static_cast<int>(pushed_ % Transport::kAheadSends);
    *left = std::move(left_[*slot]);
    return true;
  }
  // Passes on the message in the slot that TakeSlot returned. Returns false if the channel is closed.
  bool Push(Message message) {
    const std::lock_guard<std::mutex> lock(mutex_);
    messages_[pushed_++ % Transport::kAheadSends] = std::move(message);
    changed_.notify_all();
    return !closed_;
  }

  // Waits for the next message. Returns false if the channel is closed. The slot belongs to the receiver until Pop, to
  // which the receiver says where in its queue the message has been read.
  bool Front(Message* message) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || pushed_ > popped_; });
    if (closed_) return false;
    *message = messages_[popped_ % Transport::kAheadSends];
    return true;
  }
  void Pop(std::shared_ptr<const Mark> left) {
    const std::lock_guard<std::mutex> lock(mutex_);
    left_[popped_++ % Transport::kAheadSends] = std::move(left);
    changed_.notify_all();
  }

  void Close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  const int64_t bytes_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool attached_ = false;
  bool closed_ = false;
  std::shared_ptr<void> ring_;  // the sender's, kept here, as it may be read after the sender is gone
  int64_t pushed_ = 0;
  int64_t popped_ = 0;
  std::array<Message, Transport::kAheadSends> messages_;
  std::array<std::shared_ptr<const Mark>, Transport::kAheadSends> left_;
  std::string receiver_;           // the UUID of its device, or empty
  std::shared_ptr<void> landing_;  // the receiver's ring, for rows from other devices; null if the host can read all
  std::shared_ptr<const Mark> last_pushed_;
};

// How one stage pushes rows to a receiver on another device. For the thread that runs the ops.
struct Pusher {
  std::unique_ptr<Queue> queue;                                            // of the sender's device, beside its ops
  std::array<std::shared_ptr<const Mark>, Transport::kAheadSends> pushed;  // when each slot's last rows had left
};

// All channels of this process, by their addresses.
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

// The ends of the channels of one stage in one generation, which its setup and its transport share.
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

  bool is_closed() {
    const std::lock_guard<std::mutex> lock(mutex);
    return closed;
  }

  std::vector<std::string> addresses;        // [stages], of `in`
  std::vector<std::shared_ptr<Channel>> in;  // [stages], null for stages that send nothing to this one
  std::vector<std::shared_ptr<void>> rings;  // [stages], what is sent; with slots of the receiver's bytes_max
  std::vector<Pusher> pushers;               // [stages], with a queue where the receiver is on another device

  std::mutex mutex;
  bool closed = false;                        // by this stage
  std::vector<std::shared_ptr<Channel>> out;  // [stages], found by Connect
};

class LocalTransport : public Transport {
 public:
  LocalTransport(std::shared_ptr<Ends> ends, Queue& queue) : ends_(std::move(ends)), queue_(queue) {}
  // Waits until nothing here reads the senders' rings, as they may be freed then.
  ~LocalTransport() override {
    ends_->Close();
    if (last_read_ != nullptr) last_read_->Wait();
  }

  absl::Status Send(int stage, ConstTensor rows) override {
    Channel& channel = Peer(ends_->out, stage);
    Pusher& pusher = ends_->pushers[stage];
    const int64_t bytes = rows.bytes();
    GF_CHECK(bytes > 0 && bytes <= channel.bytes_max()) << bytes << " bytes, the limit is " << channel.bytes_max();
    int slot;
    std::shared_ptr<const Mark> left;
    if (!channel.TakeSlot(&slot, &left)) return Fail(Lost(stage));
    const bool pushes = pusher.queue != nullptr;
    const std::shared_ptr<const Mark>& free = pushes ? pusher.pushed[slot] : left;
    if (free != nullptr) queue_.WaitFor(*free);
    char* const place = Slot(ends_->rings[stage], channel.bytes_max(), slot);
    queue_.Copy(rows.data, place, bytes);
    Message message{place, bytes, queue_.Record()};
    if (pushes) message = Push(pusher, channel, slot, message, left.get());
    return channel.Push(std::move(message)) ? absl::OkStatus() : Fail(Lost(stage));
  }

  absl::Status Recv(int stage, Tensor rows) override {
    GF_CHECK_GT(rows.bytes(), 0);
    Channel& channel = Peer(ends_->in, stage);
    Message message;
    if (!channel.Front(&message)) return Fail(Lost(stage));
    if (message.bytes != rows.bytes()) {
      return Fail(absl::InternalError(
          absl::StrCat("stage ", stage, " sent a message of ", message.bytes, " bytes, expected ", rows.bytes())));
    }
    queue_.WaitFor(*message.written);
    queue_.Copy(message.data, rows.data, message.bytes);
    last_read_ = queue_.Record();
    channel.Pop(last_read_);
    return absl::OkStatus();
  }

  absl::Status status() const override {
    return ends_->is_closed() ? absl::UnavailableError("the group has ended") : absl::OkStatus();
  }
  void Abort() override { ends_->Close(); }

 private:
  // Copies a message of the sender's ring to the receiver's, once its ops have left the slot. Returns where it is then.
  static Message Push(Pusher& pusher, Channel& channel, int slot, const Message& message, const Mark* left) {
    pusher.queue->WaitFor(*message.written);
    if (left != nullptr) pusher.queue->WaitFor(*left);
    pusher.queue->Copy(message.data, channel.landing(slot), message.bytes);
    pusher.pushed[slot] = pusher.queue->Record();
    channel.set_last_pushed(pusher.pushed[slot]);
    return {channel.landing(slot), message.bytes, pusher.pushed[slot]};
  }
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
  Queue& queue_;
  std::shared_ptr<const Mark> last_read_;
};

class LocalSetup : public TransportSetup {
 public:
  LocalSetup(std::vector<StageTraffic> traffic, Backend& backend)
      : traffic_(std::move(traffic)), backend_(backend), ends_(std::make_shared<Ends>()) {
    ends_->addresses.resize(traffic_.size());
    ends_->in.resize(traffic_.size());
    ends_->rings.resize(traffic_.size());
    ends_->pushers.resize(traffic_.size());
    ends_->out.resize(traffic_.size());
  }
  ~LocalSetup() override {
    if (!connected_) ends_->Close();
  }

  // Makes the rings and the channels that come here.
  absl::Status Open() {
    for (size_t peer = 0; peer < traffic_.size(); ++peer) {
      if (traffic_[peer].send_bytes_max > 0) {
        GF_ASSIGN_OR_RETURN(ends_->rings[peer], AllocateRing(backend_, traffic_[peer].send_bytes_max));
      }
      if (traffic_[peer].receive_bytes_max == 0) continue;
      ends_->in[peer] = std::make_shared<Channel>(traffic_[peer].receive_bytes_max);
      GF_RETURN_IF_ERROR(ends_->in[peer]->AllocateLanding(backend_));
      ends_->addresses[peer] = Registry::Get().Add(ends_->in[peer]);
    }
    return absl::OkStatus();
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
    return std::make_unique<LocalTransport>(ends_, backend_.queue());
  }

  void Abort() override { ends_->Close(); }

 private:
  absl::Status Attach(const std::vector<std::string>& addresses, Clock::time_point deadline) {
    if (addresses.size() != traffic_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(addresses.size(), " addresses for a group of ", traffic_.size(), " stages"));
    }
    for (size_t peer = 0; peer < addresses.size(); ++peer) {
      if (traffic_[peer].send_bytes_max == 0) continue;
      std::shared_ptr<Channel> channel = Registry::Get().Find(addresses[peer]);
      if (channel == nullptr || channel->bytes_max() != traffic_[peer].send_bytes_max ||
          !channel->AttachSender(ends_->rings[peer])) {
        return absl::UnavailableError(absl::StrCat("stage ", peer, " is not at its address \"", addresses[peer], "\""));
      }
      if (channel->IsBetweenDevices(backend_)) ends_->pushers[peer].queue = backend_.MakeQueue();
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

  const std::vector<StageTraffic> traffic_;
  Backend& backend_;
  const std::shared_ptr<Ends> ends_;
  bool connected_ = false;
};

class LocalTransportFactory : public TransportFactory {
 public:
  const char* kind() const override { return kLocalTransport; }
  absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(const std::string& /*key*/, int stage,
                                                        const std::vector<StageTraffic>& traffic,
                                                        Backend& backend) override {
    GF_CHECK(stage >= 0 && stage < static_cast<int>(traffic.size()) && !traffic[stage]);
    auto setup = std::make_unique<LocalSetup>(traffic, backend);
    GF_RETURN_IF_ERROR(setup->Open());
    return setup;
  }
};

}  // namespace

std::unique_ptr<TransportFactory> MakeLocalTransportFactory() { return std::make_unique<LocalTransportFactory>(); }

}  // namespace goldfinch
