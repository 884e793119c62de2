#include "base/stage_memory.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/stage_extent.h"
#include "base/units.h"

namespace goldfinch {
namespace {

constexpr int64_t kFloat = 4;  // bytes

StageExtent ExtentOf(const ModelMemory& model, const StageSettings& settings) {
  const int layers = static_cast<int>(model.layers.size());
  return {.model_layers = layers,
          .finch_layers = layers - model.gold_layers,
          .first_layer = settings.first_layer,
          .last_layer = settings.last_layer};
}

int64_t RowsMax(const ModelMemory& model, const StageSettings& settings) {
  return StepRowsMax(settings.max_step_tokens, settings.max_sequences, model.gold_layers);
}

int64_t PageBytes(const ModelMemory& model, const StageSettings& settings) {
  int64_t bytes = ExtentOf(model, settings).has_gold() ? model.compressed_bytes_per_token : 0;
  for (int i = settings.first_layer; i < settings.last_layer; ++i) bytes += model.layers[i].cache_bytes_per_token;
  return bytes * kCachePageTokens;
}

int64_t Pages(const StageSettings& settings) {
  return CachePagesToReserve(settings.cache_tokens, settings.max_sequences);
}

// The most that one Forward takes: rows of the Finch side and of the GOLD side, and what the largest layer needs.
int64_t ActivationBytes(const ModelMemory& model, const StageSettings& settings) {
  const int64_t tokens = settings.max_step_tokens, rows = RowsMax(model, settings);
  int64_t layer_bytes = 0;
  for (int i = settings.first_layer; i < settings.last_layer; ++i) {
    layer_bytes = std::max(layer_bytes, model.layers[i].activation_bytes);
  }
  // The residual stream and what is made of it outside the layers is fp32.
  const int64_t logits = ExtentOf(model, settings).has_head() ? model.vocab_size : 0;
  const int64_t side_rows = model.uses_side_rows ? tokens : 0;
  const int64_t floats = (tokens + rows + side_rows) * model.width + 2 * tokens * model.compressed_width +
                         settings.max_logit_rows * (model.width + logits);
  constexpr int64_t kRounding = 64 * 1024;  // every tensor is rounded up to 64 bytes
  return rows * layer_bytes + floats * kFloat + kRounding;
}

// A channel carries hidden rows, compressed rows or both, one after the other. Where the stage before has GOLD layers,
// it may have the boundary as well, which is not known here: then one channel too many is counted.
int64_t ChannelBytes(const StageExtent& stage, const StageSettings& settings, int64_t hidden_bytes,
                     int64_t compressed_bytes) {
  int64_t bytes = 0;
  const auto add = [&bytes](int64_t message_bytes) {
    bytes += kChannelMessages * ((message_bytes + kMessageAlignment - 1) / kMessageAlignment * kMessageAlignment);
  };
  const int64_t both_bytes = std::max(hidden_bytes, compressed_bytes);
  if (stage.receives_hidden()) add(stage.follows_boundary() ? both_bytes : hidden_bytes);
  if (stage.receives_compressed() && !stage.follows_boundary()) add(compressed_bytes);
  if (stage.sends_hidden()) add(stage.has_boundary() ? both_bytes : hidden_bytes);
  for (int later = 1; stage.has_boundary() && later < settings.later_stages; ++later) add(compressed_bytes);
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
          {"snapshots", snapshots},
          {"activations", activations},
          {"received rows", received_rows},
          {"channels", channels},
          {"back end", back_end}};
}

StageMemory PlanStageMemory(const ModelMemory& model, const StageSettings& settings) {
  const StageExtent stage = ExtentOf(model, settings);
  const int64_t slots = settings.max_sequences, rows = RowsMax(model, settings), pages = Pages(settings);
  StageMemory memory;
  for (int i = settings.first_layer; i < settings.last_layer; ++i) {
    const LayerMemory& layer = model.layers[i];
    memory.weights += layer.weight_bytes;
    memory.tables += layer.table_bytes;
    memory.shift_states += layer.shift_bytes * slots;
    memory.wkv_states += layer.wkv_bytes * slots;
    memory.key_value_caches += layer.cache_bytes_per_token * kCachePageTokens * pages;
  }
  if (stage.has_embedding()) memory.weights += model.embedding_bytes;
  if (stage.has_head()) memory.weights += model.head_bytes;
  if (stage.has_boundary()) memory.tail_rows = slots * TokenShiftReach(model.gold_layers) * model.width * kFloat;
  if (stage.has_gold()) {
    memory.weights += model.gold_shared_bytes;
    memory.tables += model.key_table_bytes;
    memory.compressed_cache = model.compressed_bytes_per_token * kCachePageTokens * pages;
    memory.kept_rows = settings.kept_bytes;
  }
  memory.snapshots = model.snapshot_copies * SnapshotCopyBytes(model, settings);
  memory.activations = ActivationBytes(model, settings);
  const int64_t hidden_bytes =
      HiddenRowsMax(settings.max_step_tokens, settings.max_sequences, model.gold_layers, model.uses_side_rows) *
      model.width * kFloat;
  const int64_t compressed_bytes = settings.max_step_tokens * model.compressed_row_bytes;
  if (stage.receives_hidden()) memory.received_rows += hidden_bytes;
  if (stage.receives_compressed()) memory.received_rows += compressed_bytes;
  memory.channels = ChannelBytes(stage, settings, hidden_bytes, compressed_bytes);
  memory.back_end = model.back_end_bytes + model.back_end_bytes_per_row * rows;
  if (stage.has_head()) memory.back_end += model.back_end_bytes_per_logit_row * settings.max_logit_rows;
  return memory;
}

int64_t SnapshotCopyBytes(const ModelMemory& model, const StageSettings& settings) {
  const StageExtent stage = ExtentOf(model, settings);
  constexpr int64_t kPartsMax = 3;  // of a layer: two shift rows and a state
  int64_t bytes = 0;
  for (int i = settings.first_layer; i < settings.last_layer; ++i) {
    bytes += model.layers[i].shift_bytes + model.layers[i].wkv_bytes + kPartsMax * kSnapshotAlignment;
  }
  if (stage.has_boundary()) {
    bytes += TokenShiftReach(model.gold_layers) * model.width * kFloat + kSnapshotAlignment;  // tail rows
  }
  if (stage.has_head()) bytes += model.vocab_size * kFloat + kSnapshotAlignment;
  return bytes;
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
  const StageExtent stage = ExtentOf(model, settings);
  if (!stage.has_gold()) return 0;
  const int64_t all = Pages(settings) * kCachePageTokens * stage.gold_layers() * 2 * model.width * kFloat;
  return std::clamp<int64_t>(limit_bytes - PlanStageMemory(model, settings).total(), 0, all);
}

int64_t GoldLoraRank(const ModelMemory& model, int layer) {
  return model.vocab_size > 0 ? model.layers[layer].table_bytes / (2 * kFloat * model.vocab_size) : 0;
}

KeptTokenBytes KeptBytesPerToken(const ModelMemory& model, int first_layer, int last_layer) {
  const StageExtent stage = ExtentOf(model, {.first_layer = first_layer, .last_layer = last_layer});
  const int64_t numbers = model.vocab_size * model.width;
  if (!stage.has_gold() || numbers == 0) return {};
  const auto activation_bytes = static_cast<double>(model.key_table_bytes / numbers);
  const auto width = static_cast<double>(model.width);
  double shared = width;  // the key row that all layers share, and the inner rows of each layer's LoRAs
  for (int i = stage.gold_begin(); i < last_layer; ++i) shared += 3 * static_cast<double>(GoldLoraRank(model, i));
  return {.shared = shared * activation_bytes, .full = 2 * width * stage.gold_layers() * activation_bytes};
}

KeptTokens ShareKeptBytes(const KeptTokenBytes& per_token, int64_t bytes, int64_t tokens) {
  const auto all = static_cast<double>(tokens), left = static_cast<double>(std::max<int64_t>(bytes, 0));
  const double shared = per_token.shared, full = per_token.full;
  if (full <= shared) {  // one layer: the shared tier saves nothing
    const double kept = full > 0 ? std::min(all, left / full) : all;
    return {.compressed = all - kept, .shared = 0, .full = kept};
  }
  const double kept = shared > 0 ? std::min(all, left / shared) : all;
  const double rest = left - kept * shared, raised = std::min(kept, rest / (full - shared));
  return {.compressed = all - kept, .shared = kept - raised, .full = raised};
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
                      " may be used: lower max_model_len, max_sequences or max_step_tokens, raise "
                      "gpu_memory_utilization or memory, or use more workers");
}

}  // namespace goldfinch
