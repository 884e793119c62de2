#include "clients/cli/embedded_workers.h"

#include <mutex>
#include <utility>

#include "coordinator/worker_link.h"
#include "protos/cluster.pb.h"
#include "worker/worker.h"

namespace goldfinch {

// One worker, and its stream while it has one. The coordinator's thread calls Send and Close, the node's threads say
// what goes the other way; neither holds a lock of ours while it calls the other side.
class EmbeddedWorkers::Link : public std::enable_shared_from_this<Link> {
 public:
  Link(EmbeddedWorkers& workers, std::unique_ptr<Worker> node, std::string name)
      : coordinator_(workers.coordinator_),
        on_refused_(workers.on_refused_),
        node_(std::move(node)),
        name_(std::move(name)) {}

  void Connect() {
    const auto stream = std::make_shared<Stream>(weak_from_this());
    const uint64_t worker = coordinator_.Connected(stream, name_);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ended_) return;
      stream_ = stream.get();
      worker_ = worker;
    }
    node_->Connected([&coordinator = coordinator_, worker](const cluster::v1::FromWorker& message) {
      coordinator.Received(worker, message);
    });
  }

  // Ends the stream if it is this one (null: whichever), and begins another unless `last`.
  void Drop(const WorkerLink* stream, bool last) {
    uint64_t worker = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ended_ || (stream != nullptr && stream != stream_)) return;
      stream_ = nullptr;
      ended_ = last;
      worker = worker_;
    }
    node_->Disconnected();
    coordinator_.Disconnected(worker);
    const absl::Status refused = node_->refused();
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
    }
    node_->Received(message);
  }

  WorkerListener& coordinator_;
  const std::function<void(absl::Status)> on_refused_;
  const std::unique_ptr<Worker> node_;
  const std::string name_;
  std::mutex mutex_;
  const WorkerLink* stream_ = nullptr;  // guarded by mutex_; null: none
  uint64_t worker_ = 0;                 // guarded by mutex_
  bool ended_ = false;                  // guarded by mutex_
};

EmbeddedWorkers::EmbeddedWorkers(WorkerListener& coordinator, std::function<void(absl::Status)> on_refused)
    : coordinator_(coordinator), on_refused_(std::move(on_refused)) {}

EmbeddedWorkers::~EmbeddedWorkers() {
  for (const std::shared_ptr<Link>& link : links_) link->Drop(nullptr, /*last=*/true);
}

void EmbeddedWorkers::Add(std::unique_ptr<Worker> node, const std::string& name) {
  links_.push_back(std::make_shared<Link>(*this, std::move(node), name));
  links_.back()->Connect();
}

void EmbeddedWorkers::Kill(size_t index) { links_[index]->Drop(nullptr, /*last=*/false); }

}  // namespace goldfinch
