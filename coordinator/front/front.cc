#include "coordinator/front/front.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "base/status.h"
#include "coordinator/front/loop.h"

namespace goldfinch {
namespace {

// For files, workers and everything else that is no connection; two fronts share what is left.
constexpr int kOtherDescriptors = 128;
constexpr int kDescriptorsOfConnection = 3, kFronts = 2;

// A thread relays some gigabytes a second; there is more than one for the sake of TLS.
int Threads() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 8, 1, 4); }

}  // namespace

absl::StatusOr<std::unique_ptr<Front>> Front::Start(FrontOptions options, OnConnection on_connection) {
  FrontLimits& limits = options.limits;
  const int descriptors = std::max(RaiseDescriptorLimit() - kOtherDescriptors, kDescriptorsOfConnection * kFronts);
  const int connections_max = std::min(limits.connections_max, descriptors / (kDescriptorsOfConnection * kFronts));
  limits.calls_max = std::max(limits.calls_max, 2 * limits.calls_per_address_max);
  // A longest message must have its place in the pool, beside its prefix and what other streams have begun.
  const int64_t longest = limits.message_bytes_max + H2Guard::kStreamWindow;
  limits.total_bytes_max = std::max(limits.total_bytes_max, 2 * longest);
  limits.connection_bytes_max = std::max(limits.connection_bytes_max, longest);
  GF_ASSIGN_OR_RETURN(std::unique_ptr<ServerTls> tls, ServerTls::Open(options.tls));
  GF_ASSIGN_OR_RETURN(std::vector<Listener> listeners, Listener::Open(options.hosts, options.port));
  auto shared = std::make_unique<FrontShared>(std::move(options), std::move(on_connection), connections_max);
  shared->tls = std::move(tls);
  std::unique_ptr<Front> front(new Front(std::move(shared)));
  front->port_ = listeners[0].port();
  std::vector<FrontLoop*> loops;
  for (int i = 0; i < Threads(); ++i) {
    front->loops_.push_back(std::make_unique<FrontLoop>(front->shared_.get()));
    loops.push_back(front->loops_.back().get());
  }
  loops[0]->Accept(std::move(listeners), loops);
  return front;
}

Front::Front(std::unique_ptr<FrontShared> shared) : shared_(std::move(shared)) {}

Front::~Front() { Shutdown(0); }

void Front::ReloadTls() {
  if (shared_->tls != nullptr) shared_->tls->Reload();
}

void Front::StopListening() {
  // The first loop gives connections to the others, so it must stop first.
  for (const auto& loop : loops_) loop->StopAccepting();
}

void Front::Shutdown(double seconds) {
  if (loops_.empty()) return;
  StopListening();
  for (const auto& loop : loops_) loop->End(seconds);
  // A connection may leave a note for another loop as long as it lives.
  for (const auto& loop : loops_) loop->Join();
  loops_.clear();
}

}  // namespace goldfinch
