#include "base/stage_memory.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/units.h"

namespace goldfinch {
namespace {

constexpr int64_t kFloat = 4;  // bytes

// What of the model a stage has.
struct Extent {
  Extent(const ModelMemory& model, const StageSettings& settings)
      : finch(static_cast<int>(model.layers.size()) - model.gold_layers),
        first(settings.first_layer == 0),
        last(settings.last_layer == static_cast<int>(model.layers.size())),
        gold(settings.last_layer > finch),
        boundary(model.gold_layers > 0 && settings.first_layer < finch && settings.last_layer >= finch),
        receives_compressed(gold && settings.first_layer >= finch),
        after_boundary(gold && settings.first_layer == finch) {}

  const int finch;  // layers before the first GOLD layer
  const bool first;
  const bool last;
  const bool gold;
  const bool boundary;             // has the last Finch-side layer of a model with GOLD layers
  const bool receives_compressed;  // that layer is another stage's
  const bool after_boundary;       // that of the stage before
};

int64_t PageBytes(const ModelMemory& model, const StageSettings& settings) {
  int64_t bytes = Extent(model, settings).gold ? model.compressed_bytes_per_token : 0;
  for (int i = settings.first_layer; i < settings.last_layer; ++i) bytes += model.layers[i].cache_bytes_per_token;
  return bytes * kCachePageTokens;
}

int64_t Pages(const StageSettings& settings) {
  return (settings.cache_tokens + kCachePageTokens - 1) / kCachePageTokens + settings.max_sequences;
}

// What one Forward takes at most: rows of the Finch side and of the GOLD side, and what their largest layer needs.
int64_t ActivationBytes(const ModelMemory& model, const StageSettings& settings) {
  const int64_t tokens = settings.max_step_tokens, rows = StepRowsMax(model, settings);
  int64_t layer_bytes = 0;
  for (int i = settings.first_layer; i < settings.last_layer; ++i) {
    layer_bytes = std::max(layer_bytes, model.layers[i].activation_bytes);
  }
  // The residual stream and what is made of it outside the layers is fp32.
  const int64_t logits = Extent(model, settings).last ? model.vocab_size : 0;
  const int64_t floats = (tokens + rows) * model.width + 2 * tokens * model.compressed_width +
                         settings.max_logit_rows * (model.width + logits);
  constexpr int64_t kRounding = 64 * 1024;  // every tensor is rounded up to 64 bytes
  return rows * layer_bytes + floats * kFloat + kRounding;
}

// A channel carries hidden rows, compressed rows or both, one after the other. Where the stage before has GOLD layers,
// it may have the last Finch-side layer as well, which is not known here: then one channel too many is counted.
int64_t ChannelBytes(const Extent& stage, const StageSettings& settings, int64_t hidden_bytes,
                     int64_t compressed_bytes) {
  int64_t bytes = 0;
  const auto add = [&bytes](int64_t message_bytes) {
    bytes += kChannelMessages * ((message_bytes + kMessageAlignment - 1) / kMessageAlignment * kMessageAlignment);
  };
  if (!stage.first) add(stage.after_boundary ? std::max(hidden_bytes, compressed_bytes) : hidden_bytes);
  if (stage.receives_compressed && !stage.after_boundary) add(compressed_bytes);
  if (!stage.last) add(stage.boundary ? std::max(hidden_bytes, compressed_bytes) : hidden_bytes);
  for (int later = 1; stage.boundary && later < settings.later_stages; ++later) add(compressed_bytes);
  return bytes;
}

}  // namespace

int64_t StageMemory::total() const {
  int64_t bytes = 0;
  for (const MemoryPart& part : Parts()) bytes += part.bytes;
  return bytes;
}

std::vector<MemoryPart> StageMemory::Parts() const {
  return {{"weights", weights},
          {"tables", tables},
          {"shift states", shift_states},
          {"WKV states", wkv_states},
          {"tail rows", tail_rows},
          {"key/value caches", key_value_caches},
          {"compressed cache", compressed_cache},
          {"kept rows", kept_rows},
          {"activations", activations},
          {"received rows", received_rows},
          {"channels", channels},
          {"back end", back_end}};
}

int64_t StepRowsMax(const ModelMemory& model, const StageSettings& settings) {
  return settings.max_step_tokens + int64_t{2} * model.gold_layers * settings.max_sequences;
}

StageMemory PlanStageMemory(const ModelMemory& model, const StageSettings& settings) {
  const Extent stage(model, settings);
  const int64_t slots = settings.max_sequences, rows = StepRowsMax(model, settings), pages = Pages(settings);
  StageMemory memory;
  for (int i = settings.first_layer; i < settings.last_layer; ++i) {
    const LayerMemory& layer = model.layers[i];
    memory.weights += layer.weight_bytes;
    memory.tables += layer.table_bytes;
    memory.shift_states += layer.shift_bytes * slots;
    memory.wkv_states += layer.wkv_bytes * slots;
    memory.key_value_caches += layer.cache_bytes_per_token * kCachePageTokens * pages;
  }
  if (stage.first || stage.gold) memory.weights += model.embedding_bytes;
  if (stage.last) memory.weights += model.head_bytes;
  if (stage.boundary) memory.tail_rows = slots * 2 * model.gold_layers * model.width * kFloat;
  if (stage.gold) {
    memory.weights += model.gold_shared_bytes;
    memory.tables += model.key_table_bytes;
    memory.compressed_cache = model.compressed_bytes_per_token * kCachePageTokens * pages;
    memory.kept_rows = settings.kept_bytes;
  }
  memory.activations = ActivationBytes(model, settings);
  const int64_t hidden_bytes = rows * model.width * kFloat;
  const int64_t compressed_bytes = settings.max_step_tokens * model.compressed_row_bytes;
  if (!stage.first) memory.received_rows += hidden_bytes;
  if (stage.receives_compressed) memory.received_rows += compressed_bytes;
  memory.channels = ChannelBytes(stage, settings, hidden_bytes, compressed_bytes);
  memory.back_end = model.back_end_bytes + model.back_end_bytes_per_row * rows;
  if (stage.last) memory.back_end += model.back_end_bytes_per_logit_row * settings.max_logit_rows;
  return memory;
}

int64_t CacheTokensThatFit(const ModelMemory& model, StageSettings settings, int64_t limit_bytes) {
  settings.cache_tokens = 0;
  const int64_t left = limit_bytes - PlanStageMemory(model, settings).total();
  if (left < 0) return -1;
  const int64_t page_bytes = PageBytes(model, settings);
  return page_bytes == 0 ? std::numeric_limits<int64_t>::max() : left / page_bytes * kCachePageTokens;
}

int64_t KeptBytes(const ModelMemory& model, StageSettings settings, int64_t limit_bytes) {
  settings.kept_bytes = 0;
  const Extent stage(model, settings);
  if (!stage.gold) return 0;
  const int64_t layers = settings.last_layer - std::max(settings.first_layer, stage.finch);
  const int64_t all = Pages(settings) * kCachePageTokens * layers * 2 * model.width * kFloat;
  return std::clamp<int64_t>(limit_bytes - PlanStageMemory(model, settings).total(), 0, all);
}

std::string ToString(const StageMemory& memory) {
  std::string text;
  for (const MemoryPart& part : memory.Parts()) {
    if (part.bytes > 0) absl::StrAppend(&text, text.empty() ? "" : ", ", part.name, " ", HumanBytes(part.bytes));
  }
  return text;
}

std::vector<std::string> MemoryTable(const StageMemory& memory, int64_t limit_bytes) {
  std::vector<std::string> lines;
  const auto add = [&lines](const char* name, int64_t bytes) {
    lines.push_back(absl::StrFormat("%-18s%10s", name, HumanBytes(bytes)));
  };
  for (const MemoryPart& part : memory.Parts()) {
    if (part.bytes > 0) add(part.name, part.bytes);
  }
  add("in all", memory.total());
  if (limit_bytes > 0) add("left", limit_bytes - memory.total());
  return lines;
}

std::string MemoryShortage(const StageMemory& memory, int64_t limit_bytes) {
  return absl::StrCat(HumanBytes(memory.total()), " are needed (", ToString(memory), "), ", HumanBytes(limit_bytes),
                      " may be used: lower --max-model-len, --max-num-seqs or --max-num-batched-tokens, raise "
                      "--gpu-memory-utilization or --memory, or use more workers");
}

}  // namespace goldfinch
