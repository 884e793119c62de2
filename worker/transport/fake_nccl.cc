#include "worker/transport/fake_nccl.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/emulation/emulation.h"
#include "kernels/cuda/emulation/stream.h"

namespace goldfinch {
namespace {

// How often a communicator has to be polled until it has finished with a call.
constexpr int kPolls = 2;

struct Comm;

// One side of a transfer. Its work runs with the lock of all streams held; `placed` and `place` are guarded by
// State::mutex.
struct Transfer {
  Comm* comm = nullptr;
  void* data = nullptr;
  size_t bytes = 0;
  emulation::Stream* stream = nullptr;
  bool placed = false;
  int64_t place = 0;
  bool arrived = false;  // at the head of its stream
  bool done = false;
};

struct Pair {
  bool joined[2] = {};
  std::deque<std::shared_ptr<Transfer>> transfers[2];  // by rank: the first of one rank meets the first of the other
};

struct Comm {
  std::shared_ptr<Pair> pair;
  int rank = 0;
  int polls_left = kPolls;
  std::shared_ptr<Transfer> to_place;
  std::atomic<bool> aborted = false;
  std::atomic<int> inside = 0;
};

struct State {
  std::mutex mutex;
  FakeNcclFaults faults;
  int64_t ids = 0;
  int live = 0;
  std::map<std::string, std::shared_ptr<Pair>> pairs;
  std::vector<std::unique_ptr<Comm>> comms;  // ended ones too, so that calls on them are detected
};

State& Get() {
  static auto& state = *new State;
  return state;
}

// Lives as long as a call on a communicator, and checks that the call is allowed.
class Inside {
 public:
  explicit Inside(NcclComm comm) : comm_(*static_cast<Comm*>(comm)) {
    GF_CHECK_EQ(comm_.inside.fetch_add(1), 0) << "two threads inside a communicator";
    GF_CHECK(!comm_.aborted) << "a communicator that was ended";
  }
  ~Inside() { --comm_.inside; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  Comm* operator->() const { return &comm_; }
  Comm& operator*() const { return comm_; }

 private:
  Comm& comm_;
};

// Returns the other side of a transfer once it is in its stream, else null.
std::shared_ptr<Transfer> Other(const Transfer& transfer) {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (state.faults.loses_transfers) return nullptr;
  const auto& mine = transfer.comm->pair->transfers[transfer.comm->rank];
  const auto& others = transfer.comm->pair->transfers[1 - transfer.comm->rank];
  const auto at = std::find_if(mine.begin(), mine.end(), [&](const auto& one) { return one.get() == &transfer; });
  const auto index = at - mine.begin();
  if (index >= static_cast<int64_t>(others.size())) return nullptr;
  const std::shared_ptr<Transfer>& other = others[index];
  return other->placed && !other->comm->aborted ? other : nullptr;
}

// Does a transfer's work and returns whether it is done. Both sides have to be at the heads of their streams; then the
// receiver copies the bytes. Sides of different sizes never meet.
bool Run(Transfer& transfer) {
  if (transfer.done || transfer.comm->aborted) return true;
  transfer.arrived = true;
  const std::shared_ptr<Transfer> other = Other(transfer);
  if (other == nullptr) return false;
  if (!other->done) other->stream->RunTo(other->place);
  if (transfer.done) return true;
  if (!other->arrived || other->bytes != transfer.bytes) return false;
  const bool receives = transfer.comm->rank == 1;
  if (!receives) return false;
  const emulation::Access access;
  std::memcpy(transfer.data, other->data, transfer.bytes);
  transfer.done = other->done = true;
  return true;
}

int Begin(void* data, size_t count, int type, int rank, int peer, NcclComm handle, void* stream) {
  const Inside comm(handle);
  GF_CHECK(type == kNcclBytes && comm->rank == rank && peer == 1 - rank && stream != nullptr);
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  GF_CHECK(comm->polls_left == 0 && comm->to_place == nullptr) << "a communicator that has not finished with a call";
  comm->to_place = std::make_shared<Transfer>();
  *comm->to_place = {&*comm, data, count, static_cast<emulation::Stream*>(stream)};
  comm->polls_left = kPolls;
  return kNcclInProgress;
}

int GetVersion(int* version) {
  *version = 22800;
  return kNcclSuccess;
}

int GetUniqueId(NcclUniqueId* id) {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  *id = {};
  ++state.ids;
  std::memcpy(id->bytes, &state.ids, sizeof(state.ids));
  return kNcclSuccess;
}

int CommInitRankConfig(NcclComm* comm, int ranks, NcclUniqueId id, int rank, NcclConfig* config) {
  GF_CHECK(ranks == 2 && (rank == 0 || rank == 1));
  GF_CHECK(config->size == 48 && config->magic == 0xcafebeef && config->version == 21800 && config->blocking == 0);
  GF_CHECK(config->max_ctas > 0 && config->min_ctas == INT_MIN && config->net_name == nullptr &&
           config->traffic_class == INT_MIN);
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (state.faults.init_error != 0) return state.faults.init_error;
  std::shared_ptr<Pair>& pair = state.pairs[std::string(id.bytes, sizeof(id.bytes))];
  if (pair == nullptr) pair = std::make_shared<Pair>();
  GF_CHECK(!pair->joined[rank]);
  pair->joined[rank] = true;
  auto made = std::make_unique<Comm>();
  made->pair = pair;
  made->rank = rank;
  *comm = made.get();
  state.comms.push_back(std::move(made));
  ++state.live;
  return kNcclInProgress;
}

int CommGetAsyncError(NcclComm handle, int* error) {
  const Inside comm(handle);
  State& state = Get();
  std::shared_ptr<Transfer> placed;
  {
    const std::lock_guard<std::mutex> lock(state.mutex);
    *error = kNcclInProgress;
    if (state.faults.async_error != 0) *error = state.faults.async_error;
    if (state.faults.async_error != 0 || state.faults.never_connects) return kNcclSuccess;
    if (!comm->pair->joined[0] || !comm->pair->joined[1]) return kNcclSuccess;
    if (comm->polls_left > 0) --comm->polls_left;
    if (comm->polls_left > 0) return kNcclSuccess;
    *error = kNcclSuccess;
    placed = std::exchange(comm->to_place, nullptr);
    if (placed == nullptr) return kNcclSuccess;
    comm->pair->transfers[comm->rank].push_back(placed);
  }
  // Without the lock, as Run takes it while the lock of the streams is held.
  const int64_t place = placed->stream->Push([placed] { return Run(*placed); });
  const std::lock_guard<std::mutex> lock(state.mutex);
  placed->place = place;
  placed->placed = true;
  return kNcclSuccess;
}

int CommAbort(NcclComm handle) {
  const Inside comm(handle);
  comm->aborted = true;
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  --state.live;
  return kNcclSuccess;
}

int Send(const void* from, size_t count, int type, int peer, NcclComm comm, void* stream) {
  return Begin(const_cast<void*>(from), count, type, 0, peer, comm, stream);
}
int Recv(void* to, size_t count, int type, int peer, NcclComm comm, void* stream) {
  return Begin(to, count, type, 1, peer, comm, stream);
}

const char* GetErrorString(int result) { return result == kNcclInvalidUsage ? "invalid usage" : "some error"; }
const char* GetLastError(NcclComm /*comm*/) { return "what went wrong"; }

}  // namespace

NcclApi FakeNccl() {
  return {GetVersion, GetUniqueId, CommInitRankConfig, CommGetAsyncError, CommAbort,
          Send,       Recv,        GetErrorString,     GetLastError};
}

void SetFakeNcclFaults(const FakeNcclFaults& faults) {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.faults = faults;
}

int LiveFakeNcclComms() {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  return state.live;
}

}  // namespace goldfinch
