// A context in a file, exported or a tuned state (tuned_state.h), for a model on this machine.
#ifndef GOLDFINCH_CLIENTS_CLI_LOCAL_LOCAL_CONTEXT_H_
#define GOLDFINCH_CLIENTS_CLI_LOCAL_LOCAL_CONTEXT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/store/segment.h"
#include "worker/stage/engine.h"
#include "worker/stage/saved_segment.h"

namespace goldfinch {

// What contexts of this engine's model are like, as a coordinator would describe it.
ContextModel ContextModelOf(Engine& engine);

class LocalContext {
 public:
  // Reads and checks the file, which must be of the engine's model: FAILED_PRECONDITION names both. INVALID_ARGUMENT
  // names the limit if it has more tokens than a sequence may have; else as ReadExchangeFile or TunedStateExchange. The
  // engine outlives it.
  static absl::StatusOr<std::unique_ptr<LocalContext>> Read(const std::string& path, Engine& engine);

  int64_t tokens() const { return segment_.end; }
  // Those that follow its last token; empty if the file does not have them.
  absl::Span<const float> logits() const { return logits_; }
  // A new sequence that goes on from its end: its slot. Errors are those of Stage::Restore.
  absl::StatusOr<int> Open() const;

 private:
  LocalContext(Engine& engine, SavedSegment segment, std::vector<float> logits)
      : engine_(engine), segment_(std::move(segment)), logits_(std::move(logits)) {}

  Engine& engine_;
  const SavedSegment segment_;
  const std::vector<float> logits_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOCAL_LOCAL_CONTEXT_H_
