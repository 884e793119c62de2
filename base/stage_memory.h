// What a stage of the pipeline takes of its device's memory, part by part. Pure. A worker reserves what is planned
// here, and the coordinator partitions the layers with the same formulas, so that both agree.
#ifndef GOLDFINCH_BASE_STAGE_MEMORY_H_
#define GOLDFINCH_BASE_STAGE_MEMORY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/cache_page.h"

namespace goldfinch {

// Messages that either end of a channel between two stages may hold, each in whole units of kMessageAlignment.
inline constexpr int64_t kChannelMessages = 4;
inline constexpr int64_t kMessageAlignment = 4096;

struct LayerMemory {
  int64_t weight_bytes = 0;
  int64_t table_bytes = 0;            // tables by token id that are computed from weights
  int64_t shift_bytes = 0;            // per sequence
  int64_t wkv_bytes = 0;              // per sequence
  int64_t cache_bytes_per_token = 0;  // keys and values; GOLD layers share the compressed cache
  int64_t activation_bytes = 0;       // per row of a step, while the layer runs
};

// A model as one kind of device keeps it.
struct ModelMemory {
  std::vector<LayerMemory> layers;
  int gold_layers = 0;  // the last ones
  int64_t width = 0;    // D
  int64_t vocab_size = 0;
  bool uses_side_rows = false;             // Finch-side layers hand a second row of every token on, fp32
  int64_t compressed_width = 0;            // numbers in a row of the compressed cache
  int64_t compressed_row_bytes = 0;        // bytes of such a row
  int64_t compressed_bytes_per_token = 0;  // the row and the id
  int64_t embedding_bytes = 0;             // in the first stage and in every stage with GOLD layers
  int64_t gold_shared_bytes = 0;           // weights that every stage with GOLD layers has
  int64_t key_table_bytes = 0;             // a table by token id that every stage with GOLD layers has
  int64_t head_bytes = 0;                  // in the last stage
  // What the back end takes for itself: libraries, and scratch memory of ops.
  int64_t back_end_bytes = 0;
  int64_t back_end_bytes_per_row = 0;        // per row of the largest step
  int64_t back_end_bytes_per_logit_row = 0;  // in the last stage
};

struct StageSettings {
  int first_layer = 0;
  int last_layer = 0;    // one after the last
  int later_stages = 0;  // of the pipeline
  int64_t max_sequences = 1;
  int64_t cache_tokens = 0;     // over all sequences, plus one partly filled page for each sequence
  int64_t max_step_tokens = 1;  // the most tokens of one step
  int64_t max_logit_rows = 1;   // the most tokens of one step that need logits
  int64_t kept_bytes = 0;       // for the kept rows of GOLD layers (see KeptBytes)
};

struct MemoryPart {
  const char* name;  // "key/value caches"
  int64_t bytes;
};

struct StageMemory {
  int64_t weights = 0;
  int64_t tables = 0;  // by token id
  int64_t shift_states = 0;
  int64_t wkv_states = 0;
  int64_t tail_rows = 0;         // the newest Finch-side output rows of every sequence
  int64_t key_value_caches = 0;  // for ordinary attention layers
  int64_t compressed_cache = 0;
  int64_t kept_rows = 0;
  int64_t activations = 0;
  int64_t received_rows = 0;  // what one step receives from other stages
  int64_t channels = 0;       // rows on their way to and from other stages
  int64_t back_end = 0;

  int64_t total() const;
  // All parts, in the order above.
  std::vector<MemoryPart> Parts() const;
};

StageMemory PlanStageMemory(const ModelMemory& model, const StageSettings& settings);

// The most tokens, in whole pages, whose caches fit into `limit_bytes` beside the rest; settings.cache_tokens is
// ignored. Returns -1 if the rest does not fit, and the largest number if the stage has no caches.
int64_t CacheTokensThatFit(const ModelMemory& model, StageSettings settings, int64_t limit_bytes);

// What is left of `limit_bytes` for the kept rows of GOLD layers: at most what keys and values in fp32 of every
// position in the caches take.
int64_t KeptBytes(const ModelMemory& model, StageSettings settings, int64_t limit_bytes);

// "weights 3.14 GB, tables 268 MB, ...": the parts that are not empty.
std::string ToString(const StageMemory& memory);
// A line for each part that is not empty, then one for the sum, and if `limit_bytes` is above 0, one for what is left
// of it.
std::vector<std::string> MemoryTable(const StageMemory& memory, int64_t limit_bytes);
// Says why a stage does not fit: "3.41 GB are needed (weights ...), 2 GB may be used: lower ...". Names the fields that
// help; the program translates them to its flags.
std::string MemoryShortage(const StageMemory& memory, int64_t limit_bytes);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_STAGE_MEMORY_H_
