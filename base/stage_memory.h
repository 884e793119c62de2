// What a stage of the pipeline takes of its device's memory, part by part. Pure. A worker reserves what is planned
// here, and the coordinator cuts the layers by the same sums, so that both count alike.
#ifndef GOLDFINCH_BASE_STAGE_MEMORY_H_
#define GOLDFINCH_BASE_STAGE_MEMORY_H_

#include <cstdint>
#include <string>
#include <vector>

namespace goldfinch {

// Positions of one page of the caches.
inline constexpr int64_t kCachePageTokens = 64;
// Messages that either end of a channel between two stages may hold, each in whole units of kMessageAlignment.
inline constexpr int64_t kChannelMessages = 4;
inline constexpr int64_t kMessageAlignment = 4096;

struct LayerMemory {
  int64_t weight_bytes = 0;
  int64_t table_bytes = 0;            // made of weights, by token id
  int64_t shift_bytes = 0;            // of a sequence
  int64_t wkv_bytes = 0;              // of a sequence
  int64_t cache_bytes_per_token = 0;  // keys and values; GOLD layers share the compressed cache
  int64_t activation_bytes = 0;       // of a row of a step, while the layer runs
};

// A model as one kind of device keeps it.
struct ModelMemory {
  std::vector<LayerMemory> layers;
  int gold_layers = 0;  // the last ones
  int64_t width = 0;    // D
  int64_t vocab_size = 0;
  int64_t compressed_width = 0;            // numbers of a row of the compressed cache
  int64_t compressed_row_bytes = 0;        // of such a row
  int64_t compressed_bytes_per_token = 0;  // row and id
  int64_t embedding_bytes = 0;             // in the first stage and in every stage with GOLD layers
  int64_t gold_shared_bytes = 0;           // weights of every stage with GOLD layers
  int64_t key_table_bytes = 0;             // likewise, by token id
  int64_t head_bytes = 0;                  // in the last stage
  // What the back end takes for itself: libraries, scratch memory of ops.
  int64_t back_end_bytes = 0;
  int64_t back_end_bytes_per_row = 0;        // of the largest step
  int64_t back_end_bytes_per_logit_row = 0;  // in the last stage
};

struct StageSettings {
  int first_layer = 0;
  int last_layer = 0;    // one after the last
  int later_stages = 0;  // of the pipeline
  int64_t max_sequences = 1;
  int64_t cache_tokens = 0;     // over all sequences; each may leave a page partly empty besides
  int64_t max_step_tokens = 1;  // of one step
  int64_t max_logit_rows = 1;
  int64_t kept_bytes = 0;  // for what GOLD layers keep beside the compressed cache (see KeptBytes)
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
  int64_t tail_rows = 0;         // the newest Finch-side rows of every sequence
  int64_t key_value_caches = 0;  // of ordinary attention
  int64_t compressed_cache = 0;
  int64_t kept_rows = 0;
  int64_t activations = 0;
  int64_t received_rows = 0;  // of a step, from other stages
  int64_t channels = 0;       // to and from other stages: rows on their way
  int64_t back_end = 0;

  int64_t total() const;
  // All of them, in the order above.
  std::vector<MemoryPart> Parts() const;
};

// A step may hold rows of every sequence besides those of its tokens: the pre-fill rule's.
int64_t StepRowsMax(const ModelMemory& model, const StageSettings& settings);
StageMemory PlanStageMemory(const ModelMemory& model, const StageSettings& settings);

// The most tokens, in whole pages, whose caches fit `limit_bytes` beside the rest; the settings' own are not looked at.
// -1 if the rest does not fit; the largest number if the stage has no caches.
int64_t CacheTokensThatFit(const ModelMemory& model, StageSettings settings, int64_t limit_bytes);

// What is left of `limit_bytes` for rows that GOLD layers keep, at most keys and values of every position in the
// caches, in fp32.
int64_t KeptBytes(const ModelMemory& model, StageSettings settings, int64_t limit_bytes);

// "weights 3.14 GB, tables 268 MB, ...": parts that are not empty.
std::string ToString(const StageMemory& memory);
// A line for each of them, then the sum, and what is left of `limit_bytes` if that is given (above 0).
std::vector<std::string> MemoryTable(const StageMemory& memory, int64_t limit_bytes);
// Why it cannot be: "3.41 GB are needed (weights ...), 2 GB may be used; lower ...", with the flags that help.
std::string MemoryShortage(const StageMemory& memory, int64_t limit_bytes);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_STAGE_MEMORY_H_
