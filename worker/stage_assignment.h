// What a Form assigns to a worker: its stage with layers, limits and the stages that it exchanges rows with. Pure.
#ifndef GOLDFINCH_WORKER_STAGE_ASSIGNMENT_H_
#define GOLDFINCH_WORKER_STAGE_ASSIGNMENT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "base/sampling.h"
#include "worker/model/model.h"
#include "worker/stage/stage.h"
#include "worker/transport/transport.h"

namespace goldfinch {

namespace cluster::v1 {
class Form;
}  // namespace cluster::v1

// The stages that a stage exchanges rows with. Rows flow only to later stages. A stage sends compressed rows first, in
// the order of the stages, and then hidden rows; it receives them in the same order.
struct StageLinks {
  int hidden_from = -1;            // the stage before; -1: this is the first
  int hidden_to = -1;              // the stage after; -1: this is the last
  int compressed_from = -1;        // the stage with the boundary; -1: no compressed rows come
  std::vector<int> compressed_to;  // all later stages, if this stage has the boundary

  bool operator==(const StageLinks&) const = default;
};

struct StageAssignment {
  uint64_t generation = 0;
  std::string transport_key;
  int stage = 0;  // which of the `stages` this is
  int stages = 0;
  int first_layer = 0;
  int last_layer = 0;  // one past the last
  StageOptions options;
  StageLinks links;
  // The most hidden rows that one step receives or sends: HiddenRowsMax of base/stage_extent.h.
  int64_t hidden_rows_max = 0;
  std::shared_ptr<const SamplerVocabulary> vocabulary;  // null except in the last stage

  // What this stage exchanges with each of the stages: [stages].
  std::vector<StageTraffic> Traffic(const ModelShape& shape) const;
};

// INVALID_ARGUMENT names the field of Form, its value and its limits.
absl::StatusOr<StageAssignment> AssignStage(const cluster::v1::Form& form, const ModelShape& shape, DType cache_dtype);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_ASSIGNMENT_H_
