// Models and workers for tests of the planner.
#ifndef GOLDFINCH_COORDINATOR_PLANNER_PLANNER_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_PLANNER_PLANNER_TEST_UTIL_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "coordinator/planner/model_description.h"
#include "coordinator/planner/planner.h"
#include "protos/cluster.pb.h"

namespace goldfinch {

// By default the released size. Two thirds of the layers are Finch-C2, the others GOLD.
inline cluster::v1::Described Released(int layers = 24, int64_t width = 2048) {
  constexpr int64_t kVocab = 65536, kRank = 64;
  const int finch = layers * 2 / 3;
  const auto of_width = [&](int64_t bytes) { return bytes * (width / 2048) * (width / 2048); };
  cluster::v1::Described model;
  cluster::v1::ModelMemory& memory = *model.mutable_memory();
  for (int i = 0; i < layers; ++i) {
    const bool gold = i >= finch;
    const int64_t weight_bytes = of_width(gold ? 84'000'000 : 101'000'000), wkv_bytes = gold ? 0 : width * 64 * 4;
    cluster::v1::LayerDescription& layer = *model.add_layers();
    layer.set_weight_bytes(weight_bytes);
    layer.set_state_bytes(wkv_bytes + 2 * width * 4);
    layer.set_prefill_flops(gold ? 0 : 1.01e8);
    layer.set_decode_bytes(static_cast<double>(weight_bytes + wkv_bytes));
    cluster::v1::LayerMemory& to = *memory.add_layers();
    to.set_weight_bytes(weight_bytes);
    to.set_table_bytes(gold ? kVocab * 2 * kRank * 4 : 0);
    to.set_shift_bytes(2 * width * 4);
    to.set_wkv_bytes(wkv_bytes);
    to.set_activation_bytes(160'000);
  }
  model.set_gold_layers(layers - finch);
  model.set_width(width);
  model.set_vocab_size(kVocab);
  model.set_compressed_width(width / 16);
  model.set_compressed_bytes_per_token(width / 8 + 2);
  model.set_head_bytes(kVocab * width * 2);
  memory.set_compressed_row_bytes(width / 8);
  memory.set_embedding_bytes(kVocab * width * 2);
  memory.set_head_bytes(kVocab * width * 2);
  memory.set_gold_shared_bytes(of_width(9'000'000));
  memory.set_key_table_bytes(kVocab * width * 4);
  return model;
}

// Two CPU cores.
inline const WorkerResources kMachine{22'700'000'000, 1.7e11, 2.6e10};

inline PartitionOptions ReleasedOptions() {
  PartitionOptions options;
  options.max_sequences = 64;
  options.max_sequence_tokens = 1 << 20;
  options.max_step_tokens = 512;
  options.max_logit_rows = 128;
  return options;
}

// All workers keep the model alike.
inline absl::StatusOr<Partition> PartitionFor(const cluster::v1::Described& model, std::vector<WorkerResources> workers,
                                              const PartitionOptions& options) {
  const ModelMemory memory = ReadModelMemory(model);
  for (WorkerResources& worker : workers) worker.model = &memory;
  return PartitionLayers(model, workers, options);
}

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_PLANNER_PLANNER_TEST_UTIL_H_
