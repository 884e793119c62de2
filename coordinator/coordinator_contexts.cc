// Coordinator: contexts by name. What is asked waits in the queue of the coordinator's thread; the keeper answers.
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "coordinator/coordinator.h"
#include "coordinator/keeper/context_directory.h"

namespace goldfinch {

// What was kept by name is read when the first group is ready that keeps anything.
absl::Status Coordinator::NamesKnown() const {
  if (store_threads_ == nullptr || !numerics_.empty()) return absl::OkStatus();
  return absl::UnavailableError("contexts are not there yet: no group of workers that keeps them has been ready");
}

// Takes a request over a context, or one that is to be kept under a name.
void Coordinator::SubmitNamed(uint64_t number, Request request, std::shared_ptr<RequestSink> sink, double now) {
  if (request.keep_as && !options_.prefix_cache) {
    return sink->OnDone(absl::FailedPreconditionError("contexts cannot be kept: the server has no_prefix_cache set"),
                        {});
  }
  if (const absl::Status known = NamesKnown(); !known.ok()) return sink->OnDone(known, {});
  auto resolved = keeper_.Resolve(&request, sink, options_.membership.partition.max_sequence_tokens, now);
  if (!resolved.ok()) return sink->OnDone(resolved.status(), {});
  scheduler_.Submit(number, std::move(request), *std::move(resolved), now);
}

void Coordinator::GetContext(const std::string& name_space, GetContextQuery query, Answer<NamedContext> answer) {
  Post([this, name_space, query = std::move(query), answer = std::move(answer)](double) mutable {
    if (absl::Status known = NamesKnown(); !known.ok()) return answer(std::move(known));
    answer(keeper_.GetContext(name_space, query));
  });
}

void Coordinator::ListContexts(const std::string& name_space, ListContextsQuery query,
                               Answer<NamedContextPage> answer) {
  Post([this, name_space, query = std::move(query), answer = std::move(answer)](double) mutable {
    if (absl::Status known = NamesKnown(); !known.ok()) return answer(std::move(known));
    answer(keeper_.ListContexts(name_space, query));
  });
}

void Coordinator::ForkContext(const std::string& name_space, ForkContextQuery query, Answer<NamedContext> answer) {
  Post([this, name_space, query = std::move(query), answer = std::move(answer)](double now) mutable {
    if (absl::Status known = NamesKnown(); !known.ok()) return answer(std::move(known));
    answer(keeper_.ForkContext(name_space, query, now));
  });
}

void Coordinator::RenameContext(const std::string& name_space, RenameContextQuery query, Answer<NamedContext> answer) {
  Post([this, name_space, query = std::move(query), answer = std::move(answer)](double) mutable {
    if (absl::Status known = NamesKnown(); !known.ok()) return answer(std::move(known));
    answer(keeper_.RenameContext(name_space, query));
  });
}

void Coordinator::PinContext(const std::string& name_space, PinContextQuery query, Answer<NamedContext> answer) {
  Post([this, name_space, query = std::move(query), answer = std::move(answer)](double) mutable {
    if (absl::Status known = NamesKnown(); !known.ok()) return answer(std::move(known));
    answer(keeper_.PinContext(name_space, query));
  });
}

void Coordinator::DeleteContext(const std::string& name_space, DeleteContextQuery query, Answer<std::string> answer) {
  Post([this, name_space, query = std::move(query), answer = std::move(answer)](double) mutable {
    if (absl::Status known = NamesKnown(); !known.ok()) return answer(std::move(known));
    answer(keeper_.DeleteContext(name_space, query));
  });
}

}  // namespace goldfinch
