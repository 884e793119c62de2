#include "clients/cli/serve/embedded_workers.h"

#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "clients/cli/serve/embedded_shelf.h"
#include "coordinator/membership/worker_link.h"
#include "coordinator/shelves/shelf_link.h"
#include "protos/cluster.pb.h"
#include "worker/worker.h"

namespace goldfinch {

WorkerOptions EmbeddedWorkerOptions(int index, int count, int64_t memory_bytes) {
  WorkerOptions options;
  // The coordinator seats workers in the order of their names: all numbers have as many digits.
  const std::string number = absl::StrCat(index), last = absl::StrCat(count - 1);
  options.name = absl::StrCat("stage ", std::string(last.size() - number.size(), '0'), number);
  options.memory_bytes = memory_bytes;
  // The coordinator lets several workers share a GPU if each was given its part.
  options.place.memory_given = true;
  return options;
}

// One worker, and its stream while it has one. The coordinator's thread calls Send and Close, the worker's threads send
// the answers; mutex_ is never held while either side is called.
class EmbeddedWorkers::Link : public std::enable_shared_from_this<Link> {
 public:
  Link(EmbeddedWorkers& workers, std::unique_ptr<Worker> worker, std::string name)
      : coordinator_(workers.coordinator_),
        on_refused_(workers.on_refused_),
        embedded_(std::move(worker)),
        name_(std::move(name)) {}

  void Connect() {
    const auto stream = std::make_shared<Stream>(weak_from_this());
    const uint64_t id = coordinator_.Connected(stream, name_);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ended_) return;
      stream_ = stream.get();
      id_ = id;
    }
    embedded_->Connected([&coordinator = coordinator_, id](const cluster::v1::FromWorker& message) {
      coordinator.Received(id, message);
    });
  }

  absl::Status device_status() const { return embedded_->device_status(); }

  // Ends the stream if it is this one (null: any), and begins another unless `last`.
  void Drop(const WorkerLink* stream, bool last) {
    uint64_t id = 0;
    std::unique_ptr<EmbeddedShelf> shelf;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ended_ || (stream != nullptr && stream != stream_)) return;
      shelf = std::move(shelf_);
      stream_ = nullptr;
      ended_ = last;
      id = id_;
    }
    shelf = nullptr;  // waits for its thread
    embedded_->Disconnected();
    coordinator_.Disconnected(id);
    const absl::Status refused = embedded_->refused();
    if (!last && refused.ok()) return Connect();
    if (!refused.ok() && on_refused_) on_refused_(refused);
  }

 private:
  class Stream : public WorkerLink {
   public:
    explicit Stream(std::weak_ptr<Link> link) : link_(std::move(link)) {}
    void Send(const cluster::v1::ToWorker& message) override {
      if (const std::shared_ptr<Link> link = link_.lock()) link->Deliver(this, message);
    }
    void Close() override {
      if (const std::shared_ptr<Link> link = link_.lock()) link->Drop(this, /*last=*/false);
    }

   private:
    const std::weak_ptr<Link> link_;
  };

  void Deliver(const WorkerLink* stream, const cluster::v1::ToWorker& message) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ended_ || stream != stream_) return;
      if (message.has_welcome() && !message.welcome().contexts_token().empty() && coordinator_.shelves() != nullptr) {
        shelf_ = std::make_unique<EmbeddedShelf>(embedded_->shelf(), *coordinator_.shelves(),
                                                 message.welcome().contexts_token());
      }
    }
    embedded_->Received(message);
  }

  WorkerListener& coordinator_;
  const std::function<void(absl::Status)> on_refused_;
  const std::unique_ptr<Worker> embedded_;
  const std::string name_;
  std::mutex mutex_;
  const WorkerLink* stream_ = nullptr;  // guarded by mutex_; null: none
  uint64_t id_ = 0;                     // what the coordinator calls the worker; guarded by mutex_
  bool ended_ = false;                  // guarded by mutex_
  std::unique_ptr<EmbeddedShelf>
      shelf_;  // guarded by mutex_; its Contexts stream, once the coordinator has welcomed it
};

EmbeddedWorkers::EmbeddedWorkers(WorkerListener& coordinator, std::function<void(absl::Status)> on_refused)
    : coordinator_(coordinator), on_refused_(std::move(on_refused)) {}

EmbeddedWorkers::~EmbeddedWorkers() {
  for (const std::shared_ptr<Link>& link : links_) link->Drop(nullptr, /*last=*/true);
}

void EmbeddedWorkers::Add(std::unique_ptr<Worker> worker, const std::string& name) {
  links_.push_back(std::make_shared<Link>(*this, std::move(worker), name));
  links_.back()->Connect();
}

absl::Status EmbeddedWorkers::device_status() const {
  for (const std::shared_ptr<Link>& link : links_) {
    if (absl::Status status = link->device_status(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

void EmbeddedWorkers::Kill(size_t index) { links_[index]->Drop(nullptr, /*last=*/false); }

}  // namespace goldfinch
