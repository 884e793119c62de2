// What the shelves of a group's workers hold of a sequence, by layer of the model.
#ifndef GOLDFINCH_COORDINATOR_SHELVES_SHELF_GROUP_H_
#define GOLDFINCH_COORDINATOR_SHELVES_SHELF_GROUP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/store/segment.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
class Joined;
}  // namespace cluster::v1

// What one stage keeps.
struct ShelfStage {
  uint64_t worker = 0;  // as the coordinator numbers it
  std::string name;     // for messages
  // Ascending by (layer, kind), as in ContextModel. A stage with kRows has the ids of the compressed cache beside them,
  // under the number of the same layer.
  std::vector<ContextPart> parts;
  bool has_logits = false;  // it is the last one
};

// The stages of a replica's group, and what they keep together.
struct ShelfGroup {
  ContextModel model;    // with the parts of all stages
  int logits_layer = 0;  // under whose number the logits are: the last one
  std::vector<ShelfStage> stages;
};

// What a stage that has the layers [first_layer, last_layer) says that it saves; empty if it says nothing. `message` is
// within the limits of coordinator/membership/worker_messages.h. INVALID_ARGUMENT if it is not what must be saved of
// these layers: a part too many or one twice, or sizes that do not add up to those of the model.
absl::StatusOr<ShelfStage> ReadShelfStage(const cluster::v1::Joined& message, const cluster::v1::Described& model,
                                          int first_layer, int last_layer);

// The whole of a group, from its stages in their order. INVALID_ARGUMENT if stages disagree on a part.
absl::StatusOr<ShelfGroup> MakeShelfGroup(ContextIdentity identity, int64_t vocab_size, int layers,
                                          std::vector<ShelfStage> stages);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SHELVES_SHELF_GROUP_H_
