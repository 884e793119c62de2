// The transport between CUDA devices, by NCCL. Each direction between two stages has a communicator of two ranks, of
// which the sender is rank 0. Transfers run on streams of their own, beside the back end's ops, and go through rings of
// slots in device memory; marks order the two against each other.
//
// Communicators do not block: a call returns while it is in progress, and is polled until the library has finished with
// it. One thread, the watchdog, polls for errors, keeps the time, and is the only one to end communicators, which it
// never does while another thread is inside a call on the same communicator.

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "base/transports.h"
#include "worker/transport/nccl_api.h"
#include "worker/transport/transport.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSender = 0, kReceiver = 1;  // ranks
constexpr int kSlots = Transport::kAheadSends;
// A receive occupies its multiprocessors while it waits for the sender, and the ops lack them; the rows of a step need
// only a few.
constexpr int kMultiprocessorsMax = 4;
constexpr std::chrono::microseconds kPollTime(20);      // between polls while a call is in progress
constexpr std::chrono::milliseconds kBusyWatchTime(5);  // between the watchdog's rounds while transfers are in progress
constexpr std::chrono::milliseconds kIdleWatchTime(100);  // between its rounds otherwise

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// One direction between this stage and another.
struct Channel {
  Channel(int peer, bool sends, int64_t bytes_max) : peer(peer), sends(sends), bytes_max(bytes_max) {}

  char* slot(int64_t message) const { return static_cast<char*>(ring.get()) + message % kSlots * slot_bytes(); }
  int64_t slot_bytes() const { return (bytes_max + 255) / 256 * 256; }
  std::string name() const { return absl::StrCat(sends ? "to" : "from", " stage ", peer); }

  const int peer;
  const bool sends;
  const int64_t bytes_max;
  NcclUniqueId id = {};  // made by the receiver
  std::shared_ptr<void> ring;
  std::unique_ptr<Queue> queue;

  // Only the thread that sends and receives uses these.
  int64_t messages = 0;
  std::array<std::shared_ptr<const Mark>, kSlots> slot_free;  // the end of each slot's last use

  std::mutex library;  // held during calls on `comm`
  NcclComm comm = nullptr;

  // Guarded by Group::mutex_: the ends of transfers in progress, and since when the first of them has been the first.
  std::deque<std::shared_ptr<const Mark>> under_way;
  Clock::time_point first_since;
};

// The channels of one stage in one generation. Setup and transport share it.
class Group {
 public:
  Group(const NcclApi& api, double timeout_seconds, Backend& backend)
      : api_(api), timeout_seconds_(timeout_seconds), queue_(backend.queue()) {}
  ~Group() { End(); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  // Makes what there can be before the peers are known: the rings, and in `addresses` [stages] the ids for the peers.
  absl::Status Open(const std::vector<StageTraffic>& traffic, Backend& backend, std::vector<std::string>* addresses) {
    stages_ = traffic.size();
    addresses->resize(stages_);
    for (size_t peer = 0; peer < stages_; ++peer) {
      for (const bool sends : {false, true}) {
        const int64_t bytes_max = sends ? traffic[peer].send_bytes_max : traffic[peer].receive_bytes_max;
        if (bytes_max == 0) continue;
        auto channel = std::make_unique<Channel>(static_cast<int>(peer), sends, bytes_max);
        const int64_t bytes = kSlots * channel->slot_bytes();
        GF_ASSIGN_OR_RETURN(channel->ring, backend.Allocate(bytes, "rows to and from other stages"));
        channel->queue = backend.MakeQueue();
        if (!sends) {
          if (const int result = api_.GetUniqueId(&channel->id); result != kNcclSuccess) {
            return ErrorOf("make an id for a communicator", nullptr, result);
          }
          (*addresses)[peer].assign(channel->id.bytes, sizeof(channel->id.bytes));
        }
        channels_.push_back(std::move(channel));
      }
    }
    return absl::OkStatus();
  }

  // Connects all channels, as TransportSetup::Connect.
  absl::Status Form(const std::vector<std::string>& addresses, double timeout_seconds) {
    if (addresses.size() != stages_) {
      return absl::InvalidArgumentError(
          absl::StrCat(addresses.size(), " addresses for a group of ", stages_, " stages"));
    }
    for (const auto& channel : channels_) {
      const std::string& address = addresses[channel->peer];
      if (!channel->sends) continue;
      if (address.size() != sizeof(channel->id.bytes)) {
        return Fail(
            absl::UnavailableError(absl::StrCat("stage ", channel->peer, " gives an NCCL id of ", address.size(),
                                                " bytes, expected ", sizeof(channel->id.bytes))));
      }
      std::memcpy(channel->id.bytes, address.data(), address.size());
    }
    watchdog_ = std::thread([this] { Watch(); });
    return Finish(FormChannels(Clock::now() + Seconds(timeout_seconds), timeout_seconds));
  }

  absl::Status Send(int stage, ConstTensor rows) {
    Channel& channel = Find(stage, true, rows.bytes());
    return Finish([&]() -> absl::Status {
      GF_RETURN_IF_ERROR(status());
      char* const slot = channel.slot(channel.messages);
      std::shared_ptr<const Mark>& slot_free = channel.slot_free[channel.messages++ % kSlots];
      if (slot_free != nullptr) GF_RETURN_IF_ERROR(WaitFor(*slot_free));
      queue_.Copy(rows.data, slot, rows.bytes());
      channel.queue->WaitFor(*queue_.Record());
      GF_RETURN_IF_ERROR(Transfer(channel, slot, rows.bytes()));
      slot_free = Track(channel);
      return absl::OkStatus();
    }());
  }

  absl::Status Recv(int stage, Tensor rows) {
    Channel& channel = Find(stage, false, rows.bytes());
    return Finish([&]() -> absl::Status {
      GF_RETURN_IF_ERROR(status());
      char* const slot = channel.slot(channel.messages);
      std::shared_ptr<const Mark>& slot_free = channel.slot_free[channel.messages++ % kSlots];
      if (slot_free != nullptr) channel.queue->WaitFor(*slot_free);
      GF_RETURN_IF_ERROR(Transfer(channel, slot, rows.bytes()));
      queue_.WaitFor(*Track(channel));
      queue_.Copy(slot, rows.data, rows.bytes());
      slot_free = queue_.Record();
      return absl::OkStatus();
    }());
  }

  absl::Status status() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return status_;
  }
  void Abort() { Fail(absl::UnavailableError("the group has ended")).IgnoreError(); }
  // Aborts, and returns when all communicators have ended.
  void End() {
    Abort();
    if (watchdog_.joinable()) watchdog_.join();
  }

 private:
  // Keeps the first error as the final one, upon which the watchdog ends the communicators. Returns the final error.
  absl::Status Fail(absl::Status error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (status_.ok()) status_ = std::move(error);
    changed_.notify_all();
    return status_;
  }
  absl::Status Finish(absl::Status status) { return status.ok() ? status : Fail(std::move(status)); }

  absl::Status ErrorOf(const std::string& what, NcclComm comm, int result) {
    const char* const detail = api_.GetLastError(comm);
    std::string message = absl::StrCat("NCCL cannot ", what, ": ", api_.GetErrorString(result));
    if (detail != nullptr && *detail != '\0') absl::StrAppend(&message, " (", detail, ")");
    if (result == kNcclInvalidUsage) {
      absl::StrAppend(&message,
                      "; NCCL takes one stage a GPU: stages that share a GPU must run in one process, or their "
                      "workers must use the transport \"tcp\"");
    }
    return absl::UnavailableError(message);
  }

  Channel& Find(int stage, bool sends, int64_t bytes) {
    Channel* found = nullptr;
    for (const auto& channel : channels_) {
      if (channel->peer == stage && channel->sends == sends) found = channel.get();
    }
    GF_CHECK(found != nullptr) << "stage " << stage << " is no peer";
    GF_CHECK(bytes > 0 && bytes <= found->bytes_max) << bytes << " bytes, the limit is " << found->bytes_max;
    return *found;
  }

  // Calls the library on the channel's communicator. Returns the call's result, or kNcclInvalidUsage without a call if
  // an error has ended the group.
  int Enter(Channel& channel, absl::FunctionRef<int()> call) {
    channel.queue->stream();  // makes its device the calling thread's device
    const std::lock_guard<std::mutex> lock(channel.library);
    // Checked with the lock held, so that no communicator is made after the watchdog has ended all of them.
    if (!status().ok()) return kNcclInvalidUsage;
    return call();
  }
  // Waits until the library has finished with a call that has returned `result`. `what` is for the message of an error.
  absl::Status Settle(Channel& channel, const std::string& what, int result, Clock::time_point deadline,
                      double limit_seconds) {
    while (result == kNcclInProgress) {
      if (Clock::now() >= deadline) {
        return absl::UnavailableError(absl::StrCat("NCCL did not ", what, " within ", limit_seconds, " s"));
      }
      std::this_thread::sleep_for(kPollTime);
      result = Enter(channel, [&] { return PollError(channel); });
    }
    if (result == kNcclSuccess) return absl::OkStatus();
    GF_RETURN_IF_ERROR(status());
    const std::lock_guard<std::mutex> lock(channel.library);
    return ErrorOf(what, channel.comm, result);
  }
  int PollError(const Channel& channel) {
    int error = kNcclSuccess;
    const int result = api_.CommGetAsyncError(channel.comm, &error);
    return result == kNcclSuccess ? error : result;
  }
  // Waits until the mark is reached or the group has failed.
  absl::Status WaitFor(const Mark& mark) {
    while (!mark.reached()) {
      GF_RETURN_IF_ERROR(status());
      std::this_thread::sleep_for(kPollTime);
    }
    return status();
  }

  int BeginTransfer(Channel& channel, char* slot, int64_t bytes) {
    return Enter(channel, [&] {
      void* const stream = channel.queue->stream();
      const auto count = static_cast<size_t>(bytes);
      return channel.sends ? api_.Send(slot, count, kNcclBytes, kReceiver, channel.comm, stream)
                           : api_.Recv(slot, count, kNcclBytes, kSender, channel.comm, stream);
    });
  }
  // Starts a transfer. It is in the stream once this returns, so that marks recorded after it wait for it.
  absl::Status Transfer(Channel& channel, char* slot, int64_t bytes) {
    const int result = BeginTransfer(channel, slot, bytes);
    return Settle(channel, absl::StrCat("queue a transfer ", channel.name()), result,
                  Clock::now() + Seconds(timeout_seconds_), timeout_seconds_);
  }
  // Returns the end of the transfer that was queued last, and has the watchdog keep its time.
  std::shared_ptr<const Mark> Track(Channel& channel) {
    std::shared_ptr<const Mark> mark = channel.queue->Record();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (channel.under_way.empty()) channel.first_since = Clock::now();
    channel.under_way.push_back(mark);
    return mark;
  }

  // Begins each call on all channels before it waits for any of them, so that stages need not go in the same order.
  absl::Status FormChannels(Clock::time_point deadline, double limit_seconds) {
    std::vector<int> results;
    for (const auto& channel : channels_) {
      results.push_back(Enter(*channel, [&] {
        NcclConfig config;
        config.max_ctas = kMultiprocessorsMax;
        const int rank = channel->sends ? kSender : kReceiver;
        const int result = api_.CommInitRankConfig(&channel->comm, 2, channel->id, rank, &config);
        if (result != kNcclSuccess && result != kNcclInProgress) channel->comm = nullptr;
        return result;
      }));
    }
    for (size_t i = 0; i < channels_.size(); ++i) {
      GF_RETURN_IF_ERROR(
          Settle(*channels_[i], absl::StrCat("connect ", channels_[i]->name()), results[i], deadline, limit_seconds));
    }
    // The first transfer of a communicator makes its connection, which takes long and may block the host. So each sends
    // a byte now, and the first step is not delayed.
    constexpr int64_t kFirstBytes = 1;
    const std::shared_ptr<const Mark> rings_are_zero = queue_.Record();
    for (size_t i = 0; i < channels_.size(); ++i) {
      channels_[i]->queue->WaitFor(*rings_are_zero);
      results[i] = BeginTransfer(*channels_[i], channels_[i]->slot(0), kFirstBytes);
    }
    for (size_t i = 0; i < channels_.size(); ++i) {
      GF_RETURN_IF_ERROR(Settle(*channels_[i], absl::StrCat("transfer a first byte ", channels_[i]->name()), results[i],
                                deadline, limit_seconds));
    }
    for (const auto& channel : channels_) {
      const std::shared_ptr<const Mark> mark = channel->queue->Record();
      while (!mark->reached()) {
        GF_RETURN_IF_ERROR(status());
        if (Clock::now() >= deadline) {
          return absl::UnavailableError(
              absl::StrCat("nothing came through ", channel->name(), " within ", limit_seconds, " s"));
        }
        std::this_thread::sleep_for(kPollTime);
      }
    }
    return status();
  }

  void Watch() {
    bool busy = false;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (changed_.wait_for(lock, busy ? kBusyWatchTime : kIdleWatchTime, [this] { return !status_.ok(); })) break;
      }
      busy = false;
      for (const auto& channel : channels_) {
        Finish(Check(*channel, &busy)).IgnoreError();
      }
    }
    // Callers find status_ set when their transfers end by what follows.
    for (const auto& channel : channels_) {
      channel->queue->stream();
      const std::lock_guard<std::mutex> lock(channel->library);
      if (channel->comm != nullptr) api_.CommAbort(channel->comm);
      channel->comm = nullptr;
    }
  }

  absl::Status Check(Channel& channel, bool* busy) {
    {
      std::unique_lock<std::mutex> lock(channel.library, std::try_to_lock);
      // If another thread is inside a call, it sees the error itself.
      if (lock.owns_lock() && channel.comm != nullptr) {
        const int error = PollError(channel);
        if (error != kNcclSuccess && error != kNcclInProgress) {
          return ErrorOf(absl::StrCat("go on with transfers ", channel.name()), channel.comm, error);
        }
      }
    }
    std::shared_ptr<const Mark> first;
    for (;;) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (first != nullptr) {
          channel.under_way.pop_front();
          channel.first_since = Clock::now();
        }
        if (channel.under_way.empty()) return absl::OkStatus();
        first = channel.under_way.front();
      }
      if (!first->reached()) break;
    }
    *busy = true;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (Clock::now() - channel.first_since < Seconds(timeout_seconds_)) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat("a transfer ", channel.name(), " has made no progress for ", timeout_seconds_, " s"));
  }

  const NcclApi api_;
  const double timeout_seconds_;
  Queue& queue_;  // the back end's ops
  size_t stages_ = 0;
  std::vector<std::unique_ptr<Channel>> channels_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  absl::Status status_;

  std::thread watchdog_;
};

class NcclTransport : public Transport {
 public:
  explicit NcclTransport(std::shared_ptr<Group> group) : group_(std::move(group)) {}
  ~NcclTransport() override { group_->End(); }
  absl::Status Send(int stage, ConstTensor rows) override { return group_->Send(stage, rows); }
  absl::Status Recv(int stage, Tensor rows) override { return group_->Recv(stage, rows); }
  absl::Status status() const override { return group_->status(); }
  void Abort() override { group_->Abort(); }

 private:
  const std::shared_ptr<Group> group_;
};

class NcclSetup : public TransportSetup {
 public:
  NcclSetup(std::shared_ptr<Group> group, std::vector<std::string> addresses)
      : addresses_(std::move(addresses)), group_(std::move(group)) {}

  const std::vector<std::string>& addresses() const override { return addresses_; }
  absl::StatusOr<std::unique_ptr<Transport>> Connect(const std::vector<std::string>& addresses,
                                                     double timeout_seconds) override {
    GF_RETURN_IF_ERROR(group_->Form(addresses, timeout_seconds));
    return std::make_unique<NcclTransport>(group_);
  }
  void Abort() override { group_->Abort(); }

 private:
  const std::vector<std::string> addresses_;
  const std::shared_ptr<Group> group_;
};

class NcclTransportFactory : public TransportFactory {
 public:
  NcclTransportFactory(const NcclApi& api, double timeout_seconds) : api_(api), timeout_seconds_(timeout_seconds) {}

  const char* kind() const override { return kNcclTransport; }
  absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(const std::string& /*key*/, int stage,
                                                        const std::vector<StageTraffic>& traffic,
                                                        Backend& backend) override {
    GF_CHECK(stage >= 0 && stage < static_cast<int>(traffic.size()) && !traffic[stage]);
    auto group = std::make_shared<Group>(api_, timeout_seconds_, backend);
    std::vector<std::string> addresses;
    GF_RETURN_IF_ERROR(group->Open(traffic, backend, &addresses));
    return std::make_unique<NcclSetup>(std::move(group), std::move(addresses));
  }

 private:
  const NcclApi api_;
  const double timeout_seconds_;
};

}  // namespace

std::unique_ptr<TransportFactory> MakeNcclTransportFactory(const NcclApi& api, double timeout_seconds) {
  return std::make_unique<NcclTransportFactory>(api, timeout_seconds);
}

absl::StatusOr<std::unique_ptr<TransportFactory>> MakeNcclTransportFactory(double timeout_seconds) {
  GF_ASSIGN_OR_RETURN(const NcclApi api, OpenNccl());
  return MakeNcclTransportFactory(api, timeout_seconds);
}

}  // namespace goldfinch
