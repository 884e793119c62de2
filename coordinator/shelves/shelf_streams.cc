#include "coordinator/shelves/shelf_streams.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace goldfinch {
namespace {

using cluster::v1::FromShelf;
using cluster::v1::ToShelf;

}  // namespace

void ShelfStreams::AddWorker(uint64_t worker, std::string token) {
  const std::lock_guard<std::mutex> lock(mutex_);
  tokens_[token] = worker;
  workers_[worker].token = std::move(token);
}

void ShelfStreams::RemoveWorker(uint64_t worker) {
  std::shared_ptr<Stream> stream;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = workers_.find(worker);
    if (found == workers_.end()) return;
    tokens_.erase(found->second.token);
    stream = std::move(found->second.stream);
    workers_.erase(found);
    changed_.notify_all();
  }
  if (stream != nullptr) stream->link->Close();
}

std::optional<uint64_t> ShelfStreams::WorkerOf(const std::string& token) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = tokens_.find(token);
  return found == tokens_.end() ? std::nullopt : std::optional<uint64_t>(found->second);
}

bool ShelfStreams::Opened(uint64_t worker, std::shared_ptr<ShelfLink> link) {
  std::shared_ptr<Stream> older;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = workers_.find(worker);
    if (found == workers_.end()) return false;
    auto stream = std::make_shared<Stream>();
    stream->worker = worker;
    stream->link = std::move(link);
    streams_[stream->link.get()] = stream;
    older = std::exchange(found->second.stream, std::move(stream));
    changed_.notify_all();
  }
  if (older != nullptr) older->link->Close();
  return true;
}

void ShelfStreams::Received(const ShelfLink* link, FromShelf message) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = streams_.find(link);
  if (found == streams_.end()) return;
  Stream& stream = *found->second;
  // Nobody handles what nobody has asked for, so that soon nothing more is read of it; who uses the stream next closes
  // it.
  if (!stream.leased) {
    stream.has_unexpected_message = true;
    return;
  }
  stream.inbox.push_back(std::move(message));
  stream.progress = Clock::now();
  changed_.notify_all();
}

void ShelfStreams::Written(const ShelfLink* link, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = streams_.find(link);
  if (found == streams_.end()) return;
  found->second->unwritten -= bytes;
  found->second->progress = Clock::now();
  changed_.notify_all();
}

void ShelfStreams::Closed(const ShelfLink* link) {
  std::shared_ptr<ShelfLink> last;  // destroyed when nothing is locked
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = streams_.find(link);
  if (found == streams_.end()) return;
  const std::shared_ptr<Stream> stream = std::move(found->second);
  streams_.erase(found);
  last = stream->link;
  stream->closed = true;
  const auto worker = workers_.find(stream->worker);
  if (worker != workers_.end() && worker->second.stream == stream) worker->second.stream = nullptr;
  changed_.notify_all();
}

void ShelfStreams::CloseAll() {
  std::vector<std::shared_ptr<Stream>> streams;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [link, stream] : streams_) {
      stream->closed = true;
      streams.push_back(stream);
    }
    workers_.clear();
    tokens_.clear();
    changed_.notify_all();
  }
  for (const std::shared_ptr<Stream>& stream : streams) stream->link->Close();
}

void ShelfStreams::Wake() {
  const std::lock_guard<std::mutex> lock(mutex_);
  changed_.notify_all();
}

absl::Status ShelfStreams::Await(std::unique_lock<std::mutex>& lock, const std::string& name,
                                 const std::atomic<bool>& cancelled, const Clock::time_point* progress,
                                 absl::FunctionRef<bool()> ready) {
  const Clock::time_point begin = Clock::now();
  const auto timeout =
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(stall_timeout_seconds_));
  for (;;) {
    if (cancelled) return absl::CancelledError(absl::StrCat("the move from or to worker ", name, " was given up"));
    if (ready()) return absl::OkStatus();
    const Clock::time_point since = progress == nullptr ? begin : std::max(begin, *progress);
    if (Clock::now() >= since + timeout) {
      return absl::DeadlineExceededError(
          absl::StrCat("nothing has come from worker ", name, " for ", stall_timeout_seconds_, " s (stall timeout)"));
    }
    changed_.wait_until(lock, since + timeout);
  }
}

absl::StatusOr<std::unique_ptr<ShelfLease>> ShelfStreams::Lease(const ShelfStage& stage, bool urgent,
                                                                const std::atomic<bool>& cancelled) {
  for (;;) {
    std::shared_ptr<Stream> stream;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto worker_of = [&]() -> Worker* {
        const auto found = workers_.find(stage.worker);
        return found == workers_.end() ? nullptr : &found->second;
      };
      if (Worker* const worker = worker_of(); worker != nullptr && urgent) ++worker->urgent;
      changed_.notify_all();  // those who pause
      Clock::time_point progress = Clock::now();
      const absl::Status status = Await(lock, stage.name, cancelled, &progress, [&] {
        const Worker* const worker = worker_of();
        if (worker == nullptr) return true;
        // What others get done with the stream is no reason to give up.
        if (worker->stream != nullptr) progress = std::max(progress, worker->stream->progress);
        return worker->stream != nullptr && !worker->stream->leased && (urgent || worker->urgent == 0);
      });
      Worker* const worker = worker_of();
      if (worker != nullptr && urgent) --worker->urgent;
      changed_.notify_all();
      GF_RETURN_IF_ERROR(status);
      if (worker == nullptr) return absl::UnavailableError(absl::StrCat("worker ", stage.name, " is gone"));
      stream = worker->stream;
      if (!stream->has_unexpected_message) {
        stream->leased = true;
        return std::unique_ptr<ShelfLease>(new ShelfLease(this, std::move(stream), stage.name, cancelled));
      }
      worker->stream = nullptr;
    }
    stream->link->Close();
  }
}

ShelfLease::~ShelfLease() {
  int handled = unhandled_ ? 1 : 0;
  {
    const std::lock_guard<std::mutex> lock(streams_->mutex_);
    if (!stream_->inbox.empty()) broken_ = true;
    handled += static_cast<int>(stream_->inbox.size());
    stream_->inbox.clear();
    stream_->leased = false;
    if (broken_) {
      const auto worker = streams_->workers_.find(stream_->worker);
      if (worker != streams_->workers_.end() && worker->second.stream == stream_) worker->second.stream = nullptr;
    }
    streams_->changed_.notify_all();
  }
  if (broken_) {
    stream_->link->Close();
  } else {
    for (; handled > 0; --handled) stream_->link->Handled();
  }
}

void ShelfLease::Send(const ToShelf& message) {
  {
    const std::lock_guard<std::mutex> lock(streams_->mutex_);
    stream_->unwritten += static_cast<int64_t>(message.ByteSizeLong());
  }
  stream_->link->Send(message);
}

bool ShelfLease::HasRoom() const {
  const std::lock_guard<std::mutex> lock(streams_->mutex_);
  return stream_->unwritten < streams_->bytes_max_;
}

std::optional<FromShelf> ShelfLease::TryNext() {
  if (std::exchange(unhandled_, false)) stream_->link->Handled();
  const std::lock_guard<std::mutex> lock(streams_->mutex_);
  if (stream_->inbox.empty()) return std::nullopt;
  std::optional<FromShelf> message = std::move(stream_->inbox.front());
  stream_->inbox.pop_front();
  unhandled_ = true;
  return message;
}

absl::StatusOr<FromShelf> ShelfLease::Next() {
  for (;;) {
    if (std::optional<FromShelf> message = TryNext()) return *std::move(message);
    GF_RETURN_IF_ERROR(Await(/*for_room=*/false));
  }
}

absl::Status ShelfLease::AwaitRoom() { return Await(/*for_room=*/true); }

absl::Status ShelfLease::Await(bool for_room) {
  std::unique_lock<std::mutex> lock(streams_->mutex_);
  GF_RETURN_IF_ERROR(streams_->Await(lock, name_, *cancelled_, &stream_->progress, [&] {
    return !stream_->inbox.empty() || stream_->closed || (for_room && stream_->unwritten < streams_->bytes_max_);
  }));
  if (!stream_->closed || !stream_->inbox.empty()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("the Contexts stream of worker ", name_, " has ended"));
}

void ShelfLease::Pause(double seconds) {
  std::unique_lock<std::mutex> lock(streams_->mutex_);
  const auto until = ShelfStreams::Clock::now() + std::chrono::duration<double>(seconds);
  streams_->changed_.wait_until(lock, std::chrono::time_point_cast<ShelfStreams::Clock::duration>(until), [&] {
    const auto worker = streams_->workers_.find(stream_->worker);
    return *cancelled_ || stream_->closed || worker == streams_->workers_.end() || worker->second.urgent > 0;
  });
}

}  // namespace goldfinch
