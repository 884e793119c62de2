// Workers in the coordinator's own process, connected to it without sockets.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_EMBEDDED_WORKERS_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_EMBEDDED_WORKERS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/worker_options.h"

namespace goldfinch {

class Worker;
class WorkerListener;

// The options of one of `count` workers of a process: its name, by which the coordinator makes it stage `index`, and
// what memory it may use, which is its own.
WorkerOptions EmbeddedWorkerOptions(int index, int count, int64_t memory_bytes);

class EmbeddedWorkers {
 public:
  // `coordinator` must outlive this object. A worker that the coordinator drops registers again, unless the coordinator
  // has refused it: then `on_refused` is called with the reason, on any thread.
  EmbeddedWorkers(WorkerListener& coordinator, std::function<void(absl::Status)> on_refused);
  // Ends the workers' streams.
  ~EmbeddedWorkers();

  void Add(std::unique_ptr<Worker> worker, const std::string& name);
  // The first fault of a worker's device, after which its process cannot use it any more; else OK.
  absl::Status device_status() const;
  // Simulates the worker's death and its replacement by a new one.
  void Kill(size_t index);

 private:
  class Link;

  WorkerListener& coordinator_;
  const std::function<void(absl::Status)> on_refused_;
  std::vector<std::shared_ptr<Link>> links_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_EMBEDDED_WORKERS_H_
