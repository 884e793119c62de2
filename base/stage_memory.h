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
// Copies of snapshots that a stage makes on a device, from where they go to the host while it goes on, and what each
// part of a copy begins at a multiple of.
inline constexpr int64_t kSnapshotCopies = 2;
inline constexpr int64_t kSnapshotAlignment = 256;

struct LayerMemory {
  int64_t weight_bytes = 0;
  int64_t table_bytes = 0;            // tables by token id that are computed from weights
  int64_t shift_bytes = 0;            // per sequence
  int64_t wkv_bytes = 0;              // per sequence
  int64_t cache_bytes_per_token = 0;  // keys and values; GOLD layers share the compressed cache
  int64_t activation_bytes = 0;       // per row of a step, while the layer runs

  bool operator==(const LayerMemory&) const = default;
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
  int64_t snapshot_copies = 0;               // kSnapshotCopies on a device that saves snapshots

  bool operator==(const ModelMemory&) const = default;
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
  int64_t snapshots = 0;  // copies on their way to the host
  int64_t activations = 0;
  int64_t received_rows = 0;  // what one step receives from other stages
  int64_t channels = 0;       // rows on their way to and from other stages
  int64_t back_end = 0;

  int64_t total() const;
  // All parts, in the order above.
  std::vector<MemoryPart> Parts() const;
};

StageMemory PlanStageMemory(const ModelMemory& model, const StageSettings& settings);

// What one copy of a snapshot takes: what the stage has of a sequence whatever its length, and in the last stage the
// logits of one token.
int64_t SnapshotCopyBytes(const ModelMemory& model, const StageSettings& settings);

// The most tokens, in whole pages, whose caches fit into `limit_bytes` beside the rest; settings.cache_tokens is
// ignored. Returns -1 if the rest does not fit, and the largest number if the stage has no caches.
int64_t CacheTokensThatFit(const ModelMemory& model, StageSettings settings, int64_t limit_bytes);

// What is left of `limit_bytes` for the kept rows of GOLD layers alone: at most what keys and values in fp32 of every
// position in the caches take. Kept rows also use the compressed cache where no sequence does.
int64_t KeptBytes(const ModelMemory& model, StageSettings settings, int64_t limit_bytes);

// The inner rows of a GOLD layer's LoRAs for its mix, its keys and its values have about as many numbers each: those of
// the mix are counted, as the layer's table has two rows of them for each token id.
int64_t GoldLoraRank(const ModelMemory& model, int layer);

// What the GOLD layers of a stage keep of a token at the two tiers that keep rows, in bytes; worker/stage/gold_tiers.h
// rounds it up to blocks. Zeros for a stage without GOLD layers.
struct KeptTokenBytes {
  double shared = 0;  // not whole numbers: products of what a worker has said may be large
  double full = 0;
};
KeptTokenBytes KeptBytesPerToken(const ModelMemory& model, int first_layer, int last_layer);

// How many of `tokens` tokens have which tier if they share `bytes`. The shared tier for all goes before the full tier
// for some.
struct KeptTokens {
  double compressed = 0;
  double shared = 0;
  double full = 0;
};
KeptTokens ShareKeptBytes(const KeptTokenBytes& per_token, int64_t bytes, int64_t tokens);

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
