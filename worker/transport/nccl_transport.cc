// Channels between CUDA devices by NCCL: a communicator of two for each direction between two stages, in which the
// sender is rank 0. Sends and receives are on streams of their own, beside the back end's ops, through rings of slots
// in device memory; marks tie the two together.
//
// Communicators do not block: a call that the library has not finished with is asked after until it has. One thread,
// the watchdog, asks for errors, keeps the time, and alone ends communicators, never while a thread is inside one.
#include "worker/transport/nccl_transport.h"

#include <dlfcn.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_library.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kVersionMin = 21800;
constexpr int kSender = 0, kReceiver = 1;  // ranks
constexpr int kSlots = Transport::kAheadSends;
// A receive holds its multiprocessors while it waits for the sender, beside the ops; rows of a Step need few.
constexpr int kMultiprocessorsMax = 4;
constexpr std::chrono::microseconds kAskTime(20);    // while a call is under way
constexpr std::chrono::milliseconds kWatchTime(5);   // while messages are
constexpr std::chrono::milliseconds kIdleTime(100);  // else

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

std::string VersionText(int version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
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

  // Of the thread that sends and receives.
  int64_t messages = 0;
  std::array<std::shared_ptr<const Mark>, kSlots> slot_free;  // where the slot's last use ends

  std::mutex library;  // held inside the library
  NcclComm comm = nullptr;

  // With Group::mutex_: ends of transfers that are under way, and since when the first has been the first.
  std::deque<std::shared_ptr<const Mark>> under_way;
  Clock::time_point first_since;
};

// The communicators of one stage in one generation.
class Group {
 public:
  Group(const NcclApi& api, double timeout_seconds, Backend& backend)
      : api_(api), timeout_seconds_(timeout_seconds), queue_(backend.queue()) {}
  ~Group() { End(); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  // What there is before the peers are known: rings, and the ids that they need, in `addresses` [stages].
  absl::Status Open(const std::vector<StageTraffic>& edges, Backend& backend, std::vector<std::string>* addresses) {
    stages_ = edges.size();
    addresses->resize(stages_);
    for (size_t peer = 0; peer < stages_; ++peer) {
      for (const bool sends : {false, true}) {
        const int64_t bytes_max = sends ? edges[peer].send_bytes_max : edges[peer].receive_bytes_max;
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
  // Returns when no communicator is left.
  void End() {
    Abort();
    if (watchdog_.joinable()) watchdog_.join();
  }

 private:
  // The first error is final; the watchdog ends the communicators then. Returns the final one.
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
                      "; it takes one stage a GPU: stages that share one run in one process (goldfinch serve) or use "
                      "--transport gloo");
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

  // A call into the library. Its result, or that of the communicator's end if it has been ended.
  int Enter(Channel& channel, absl::FunctionRef<int()> call) {
    channel.queue->stream();  // the thread's device
    const std::lock_guard<std::mutex> lock(channel.library);
    // With the library's lock, so that no communicator is made after the watchdog has ended all.
    if (!status().ok()) return kNcclInvalidUsage;
    return call();
  }
  // Waits until the library has finished with a call that returned `result`.
  absl::Status Settle(Channel& channel, const std::string& what, int result, Clock::time_point deadline,
                      double limit_seconds) {
    while (result == kNcclInProgress) {
      if (Clock::now() >= deadline) {
        return absl::UnavailableError(absl::StrCat("NCCL did not ", what, " within ", limit_seconds, " s"));
      }
      std::this_thread::sleep_for(kAskTime);
      result = Enter(channel, [&] { return AskError(channel); });
    }
    if (result == kNcclSuccess) return absl::OkStatus();
    GF_RETURN_IF_ERROR(status());
    const std::lock_guard<std::mutex> lock(channel.library);
    return ErrorOf(what, channel.comm, result);
  }
  int AskError(const Channel& channel) {
    int error = kNcclSuccess;
    const int result = api_.CommGetAsyncError(channel.comm, &error);
    return result == kNcclSuccess ? error : result;
  }
  // Sleeps until the mark is reached or something has failed.
  absl::Status WaitFor(const Mark& mark) {
    while (!mark.reached()) {
      GF_RETURN_IF_ERROR(status());
      std::this_thread::sleep_for(kAskTime);
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
  // The transfer is in the stream once this returns.
  absl::Status Transfer(Channel& channel, char* slot, int64_t bytes) {
    const int result = BeginTransfer(channel, slot, bytes);
    return Settle(channel, absl::StrCat("queue a transfer ", channel.name()), result,
                  Clock::now() + Seconds(timeout_seconds_), timeout_seconds_);
  }
  // The end of the transfer that was queued last; the watchdog looks after it.
  std::shared_ptr<const Mark> Track(Channel& channel) {
    std::shared_ptr<const Mark> mark = channel.queue->Record();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (channel.under_way.empty()) channel.first_since = Clock::now();
    channel.under_way.push_back(mark);
    return mark;
  }

  // Every call is begun on all channels before any is waited for, so that stages need no common order.
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
    // The first transfer makes the connection, which takes long and may hold up the host: not in the first Step.
    constexpr int64_t kWarmBytes = 1;
    const std::shared_ptr<const Mark> rings_are_zero = queue_.Record();
    for (size_t i = 0; i < channels_.size(); ++i) {
      channels_[i]->queue->WaitFor(*rings_are_zero);
      results[i] = BeginTransfer(*channels_[i], channels_[i]->slot(0), kWarmBytes);
    }
    for (size_t i = 0; i < channels_.size(); ++i) {
      GF_RETURN_IF_ERROR(Settle(*channels_[i], absl::StrCat("warm the way ", channels_[i]->name()), results[i],
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
        std::this_thread::sleep_for(kAskTime);
      }
    }
    return status();
  }

  void Watch() {
    bool busy = false;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (changed_.wait_for(lock, busy ? kWatchTime : kIdleTime, [this] { return !status_.ok(); })) break;
      }
      busy = false;
      for (const auto& channel : channels_) {
        Finish(Check(*channel, &busy)).IgnoreError();
      }
    }
    // What callers wait for has its error by now.
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
      // Who is inside will see for itself.
      if (lock.owns_lock() && channel.comm != nullptr) {
        const int error = AskError(channel);
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
  Queue& queue_;  // of the ops
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

  const char* kind() const override { return "nccl"; }
  absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(uint64_t /*generation*/, int stage,
                                                        const std::vector<StageTraffic>& edges,
                                                        Backend& backend) override {
    GF_CHECK(stage >= 0 && stage < static_cast<int>(edges.size()) && !edges[stage]);
    auto group = std::make_shared<Group>(api_, timeout_seconds_, backend);
    std::vector<std::string> addresses;
    GF_RETURN_IF_ERROR(group->Open(edges, backend, &addresses));
    return std::make_unique<NcclSetup>(std::move(group), std::move(addresses));
  }

 private:
  const NcclApi api_;
  const double timeout_seconds_;
};

}  // namespace

absl::StatusOr<NcclApi> OpenNccl() {
  constexpr char kLibrary[] = "libnccl.so.2";
  GF_ASSIGN_OR_RETURN(void* const handle, cuda::OpenCudaLibrary(kLibrary));
  NcclApi api;
  std::string missing;
  const auto load = [&](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(handle, name));
    if (*function == nullptr) missing = name;
  };
  load("ncclGetVersion", &api.GetVersion);
  load("ncclGetUniqueId", &api.GetUniqueId);
  load("ncclCommInitRankConfig", &api.CommInitRankConfig);
  load("ncclCommGetAsyncError", &api.CommGetAsyncError);
  load("ncclCommAbort", &api.CommAbort);
  load("ncclSend", &api.Send);
  load("ncclRecv", &api.Recv);
  load("ncclGetErrorString", &api.GetErrorString);
  load("ncclGetLastError", &api.GetLastError);
  if (!missing.empty()) {
    return absl::UnavailableError(
        absl::StrCat(kLibrary, " has no ", missing, ": it is older than ", VersionText(kVersionMin)));
  }
  int version = 0;
  if (api.GetVersion(&version) != kNcclSuccess || version < kVersionMin) {
    return absl::UnavailableError(
        absl::StrCat(kLibrary, " is NCCL ", VersionText(version), ", the least is ", VersionText(kVersionMin)));
  }
  return api;
}

std::unique_ptr<TransportFactory> MakeNcclTransportFactory(const NcclApi& api, double timeout_seconds) {
  return std::make_unique<NcclTransportFactory>(api, timeout_seconds);
}

absl::StatusOr<std::unique_ptr<TransportFactory>> MakeNcclTransportFactory(double timeout_seconds) {
  GF_ASSIGN_OR_RETURN(const NcclApi api, OpenNccl());
  return MakeNcclTransportFactory(api, timeout_seconds);
}

}  // namespace goldfinch
