#include "coordinator/shelves/segment_mover.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/token_bucket.h"
#include "coordinator/shelves/segment_moves.h"
#include "coordinator/shelves/shelf_streams.h"

namespace goldfinch {
namespace {

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// So much may go to the store at once after a pause.
constexpr double kBurstSeconds = 0.05;

}  // namespace

class SegmentMover::State {
 public:
  explicit State(const MoverOptions& options)
      : options_(options),
        streams_(options.move_bytes_max, options.stall_timeout_seconds),
        rate_(options.save_bytes_per_second, options.save_bytes_per_second * kBurstSeconds, Now()) {
    GF_CHECK_GT(options.threads, 0);
  }

  ~State() {
    std::vector<std::thread> threads;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      for (Move& move : moves_) move.cancelled = true;
      threads = std::move(threads_);
      changed_.notify_all();
    }
    streams_.CloseAll();
    for (std::thread& thread : threads) thread.join();
  }

  void SetGroup(int replica, ShelfGroup group) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool added = groups_.emplace(replica, std::make_shared<const ShelfGroup>(std::move(group))).second;
    GF_CHECK(added) << "replica " << replica << " has a group";
  }

  void GenerationEnded(int replica) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = groups_.find(replica);
      if (found == groups_.end()) return;
      for (Move& move : moves_) {
        if (move.group == found->second) move.cancelled = true;
      }
      groups_.erase(found);
      changed_.notify_all();
    }
    streams_.Wake();
  }

  template <class Segment>
  void Enqueue(Segment segment, SegmentStore* store, MoveDone done) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Move& move = moves_.emplace_back();
    const auto group = groups_.find(segment.replica);
    if (stopping_) {
      move.refusal = absl::CancelledError("no more segments are moved");
    } else if (group == groups_.end()) {
      move.refusal = absl::FailedPreconditionError(absl::StrCat("replica ", segment.replica, " has no group"));
    } else if (static_cast<int64_t>(moves_.size()) - running_ > options_.waiting_max) {
      move.refusal =
          absl::ResourceExhaustedError(absl::StrCat(options_.waiting_max, " moves of segments wait, the limit"));
    } else {
      move.group = group->second;
    }
    move.segment = std::move(segment);
    move.store = store;
    move.done = std::move(done);
    // The callbacks of the last moves may ask for more, on a thread that sees to it.
    while (!stopping_ && static_cast<int>(threads_.size()) < options_.threads)
      threads_.emplace_back([this] { Work(); });
    changed_.notify_all();
  }

  ShelfStreams& streams() { return streams_; }

 private:
  struct Move {
    std::variant<SegmentToSave, SegmentToBring> segment;
    SegmentStore* store = nullptr;
    MoveDone done;
    std::shared_ptr<const ShelfGroup> group;
    absl::Status refusal;  // why it is not run
    bool running = false;
    std::atomic<bool> cancelled = false;

    bool saves() const { return segment.index() == 0; }
  };
  using Moves = std::list<Move>;

  // What is over before it begins goes first, then what is brought. To be called with mutex_ held.
  Moves::iterator NextMove() {
    const auto first = [&](auto wanted) {
      return std::find_if(moves_.begin(), moves_.end(),
                          [&](const Move& move) { return !move.running && wanted(move); });
    };
    auto next = first([](const Move& move) { return move.cancelled || !move.refusal.ok(); });
    if (next == moves_.end()) next = first([](const Move& move) { return !move.saves(); });
    if (next == moves_.end() && saving_ < std::max(1, options_.threads - 1)) {
      next = first([](const Move&) { return true; });
    }
    return next;
  }

  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      const Moves::iterator move = NextMove();
      if (move == moves_.end()) {
        if (stopping_) return;
        changed_.wait(lock);
        continue;
      }
      move->running = true;
      ++running_;
      saving_ += move->saves() ? 1 : 0;
      lock.unlock();
      MoveResult result = Run(*move);
      // It is not under way any more when its callback hears of it.
      std::exchange(move->done, nullptr)(std::move(result));
      lock.lock();
      --running_;
      saving_ -= move->saves() ? 1 : 0;
      moves_.erase(move);
      changed_.notify_all();
    }
  }

  MoveResult Run(const Move& move) {
    if (!move.refusal.ok()) return {move.refusal};
    const double begin = Now();
    MoveRun run{&streams_, move.group.get(), &move.cancelled,
                [this](ShelfLease* lease, int64_t bytes) { Pace(lease, bytes); }};
    absl::Status status = absl::CancelledError("the group has ended");
    if (!move.cancelled) {
      status = move.saves() ? RunSave(std::get<SegmentToSave>(move.segment), move.store, &run)
                            : RunBring(std::get<SegmentToBring>(move.segment), move.store, &run);
    }
    if (move.cancelled && !status.ok()) status = absl::CancelledError("the group has ended");
    return {std::move(status), run.bytes, Now() - begin};
  }

  void Pace(ShelfLease* lease, int64_t bytes) {
    if (options_.save_bytes_per_second <= 0) return;
    double seconds = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      rate_.Spend(static_cast<double>(bytes), Now());
      seconds = rate_.SecondsUntil(0, Now());
    }
    if (seconds <= 0) return;
    if (lease != nullptr) return lease->Pause(seconds);
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return stopping_; });
  }

  const MoverOptions options_;
  ShelfStreams streams_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  bool stopping_ = false;
  std::map<int, std::shared_ptr<const ShelfGroup>> groups_;
  Moves moves_;  // that wait or run, oldest first
  int running_ = 0, saving_ = 0;
  TokenBucket rate_;
  std::vector<std::thread> threads_;
};

SegmentMover::SegmentMover(const MoverOptions& options) : state_(std::make_unique<State>(options)) {}

SegmentMover::~SegmentMover() = default;

void SegmentMover::SetGroup(int replica, ShelfGroup group) { state_->SetGroup(replica, std::move(group)); }

void SegmentMover::GenerationEnded(int replica) { state_->GenerationEnded(replica); }

void SegmentMover::Save(SegmentToSave segment, SegmentStore* store, MoveDone done) {
  state_->Enqueue(std::move(segment), store, std::move(done));
}

void SegmentMover::Bring(SegmentToBring segment, SegmentStore* store, MoveDone done) {
  state_->Enqueue(std::move(segment), store, std::move(done));
}

void SegmentMover::AddWorker(uint64_t worker, std::string token) {
  state_->streams().AddWorker(worker, std::move(token));
}

void SegmentMover::RemoveWorker(uint64_t worker) { state_->streams().RemoveWorker(worker); }

std::optional<uint64_t> SegmentMover::WorkerOf(const std::string& token) const {
  return state_->streams().WorkerOf(token);
}

bool SegmentMover::Opened(uint64_t worker, std::shared_ptr<ShelfLink> link) {
  return state_->streams().Opened(worker, std::move(link));
}

void SegmentMover::Received(const ShelfLink* link, cluster::v1::FromShelf message) {
  state_->streams().Received(link, std::move(message));
}

void SegmentMover::Written(const ShelfLink* link, int64_t bytes) { state_->streams().Written(link, bytes); }

void SegmentMover::Closed(const ShelfLink* link) { state_->streams().Closed(link); }

}  // namespace goldfinch
