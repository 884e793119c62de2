#include "clients/cli/serve/embedded_shelf.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include "coordinator/shelves/shelf_link.h"
#include "protos/cluster.pb.h"
#include "worker/shelf_session.h"

namespace goldfinch {
namespace {

using cluster::v1::FromShelf;
using cluster::v1::ToShelf;

constexpr int kUnhandledMax = 4;  // messages that the coordinator has not handled

}  // namespace

// What goes both ways. The coordinator calls the methods of ShelfLink, the shelf's thread the others.
class EmbeddedShelf::Link final : public ShelfLink {
 public:
  void Send(const ToShelf& message) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return;
    queue_.push_back(message);
    changed_.notify_all();
  }
  void Close() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    queue_.clear();
    changed_.notify_all();
  }
  void Handled() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    --unhandled_;
    changed_.notify_all();
  }

  // The next message to the shelf; none once the stream is closed.
  std::optional<ToShelf> Next() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    if (closed_) return std::nullopt;
    std::optional<ToShelf> message = std::move(queue_.front());
    queue_.pop_front();
    return message;
  }
  bool open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return !closed_;
  }
  // Waits until the coordinator may get another message. False once the stream is closed.
  bool AwaitRoom() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || unhandled_ < kUnhandledMax; });
    ++unhandled_;
    return !closed_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<ToShelf> queue_;
  int unhandled_ = 0;
  bool closed_ = false;
};

EmbeddedShelf::EmbeddedShelf(ContextShelf& shelf, ShelfListener& coordinator, std::string token)
    : shelf_(shelf), coordinator_(coordinator), token_(std::move(token)), thread_([this] { Run(); }) {}

EmbeddedShelf::~EmbeddedShelf() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    if (link_ != nullptr) link_->Close();
  }
  thread_.join();
}

void EmbeddedShelf::Run() {
  for (;;) {
    const auto link = std::make_shared<Link>();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return;
      link_ = link;
    }
    const std::optional<uint64_t> worker = coordinator_.WorkerOf(token_);
    if (!worker || !coordinator_.Opened(*worker, link)) return;
    {
      const auto send = [&](const FromShelf& message) {
        if (!link->AwaitRoom()) return false;
        coordinator_.Received(link.get(), message);
        return true;
      };
      ShelfSession session(shelf_, send, [&] { return link->open(); });
      while (const std::optional<ToShelf> message = link->Next()) {
        coordinator_.Written(link.get(), static_cast<int64_t>(message->ByteSizeLong()));
        if (!session.Handle(*message)) break;
      }
    }
    coordinator_.Closed(link.get());
  }
}

}  // namespace goldfinch
