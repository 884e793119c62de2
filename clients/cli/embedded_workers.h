// Workers in the coordinator's own process, linked to it without sockets.
#ifndef GOLDFINCH_CLIENTS_CLI_EMBEDDED_WORKERS_H_
#define GOLDFINCH_CLIENTS_CLI_EMBEDDED_WORKERS_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace goldfinch {

class Worker;
class WorkerListener;

class EmbeddedWorkers {
 public:
  // `coordinator` must outlive this object. A worker that the coordinator drops registers again, but for one that it
  // refuses: `on_refused` (any thread) is then called with the reason.
  EmbeddedWorkers(WorkerListener& coordinator, std::function<void(absl::Status)> on_refused);
  // The workers' streams end.
  ~EmbeddedWorkers();

  void Add(std::unique_ptr<Worker> node, const std::string& name);
  // As if the worker had died, and a new one had come in its place.
  void Kill(size_t index);

 private:
  class Link;

  WorkerListener& coordinator_;
  const std::function<void(absl::Status)> on_refused_;
  std::vector<std::shared_ptr<Link>> links_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_EMBEDDED_WORKERS_H_
