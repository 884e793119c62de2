// Which layers of a model a stage of the pipeline runs, and what follows from that alone: the parts of the model that
// it holds, the state that it keeps, and the rows that it exchanges with other stages. Pure.
//
// A model is `finch_layers` recurrent or ordinary layers, the Finch side, and then GOLD layers up to `model_layers`; a
// model without GOLD layers is all Finch side. The boundary lies between the two: the stage of the last Finch-side
// layer makes the compressed row of every token, which every stage with GOLD layers keeps together with the id.
#ifndef GOLDFINCH_BASE_STAGE_EXTENT_H_
#define GOLDFINCH_BASE_STAGE_EXTENT_H_

#include <algorithm>
#include <cstdint>

#include "absl/types/span.h"

namespace goldfinch {

// The most layers of a model; protos/cluster.proto says so too.
inline constexpr int kModelLayersMax = 1024;

// How far back, in rows, the token shifts of `gold_layers` layers reach: each layer has two shifts.
constexpr int64_t TokenShiftReach(int gold_layers) { return int64_t{2} * gold_layers; }

// Rows of the largest step: those of its tokens, and of every sequence the rows of earlier steps that the pre-fill rule
// adds (worker/stage/prefill_rule.h).
constexpr int64_t StepRowsMax(int64_t max_step_tokens, int64_t max_sequences, int gold_layers) {
  return max_step_tokens + TokenShiftReach(gold_layers) * max_sequences;
}

// Rows of the largest message of hidden rows: a step's, or, if Finch-side layers hand side rows on, the rows and then
// the side rows of its tokens.
constexpr int64_t HiddenRowsMax(int64_t max_step_tokens, int64_t max_sequences, int gold_layers, bool uses_side_rows) {
  return std::max(StepRowsMax(max_step_tokens, max_sequences, gold_layers),
                  uses_side_rows ? 2 * max_step_tokens : int64_t{0});
}

struct StageExtent {
  int model_layers = 0;
  int finch_layers = 0;  // of the model: layers before the first GOLD layer
  int first_layer = 0;
  int last_layer = 0;  // one after the last

  bool operator==(const StageExtent&) const = default;

  // ---- Place in the pipeline
  bool is_first() const { return first_layer == 0; }
  bool is_last() const { return last_layer == model_layers; }

  // ---- Layers
  bool has_layer(int layer) const { return layer >= first_layer && layer < last_layer; }
  // [first_layer, finch_end()) are the stage's Finch-side layers, [gold_begin(), last_layer) its GOLD layers. Either
  // range may be empty: finch_end() <= first_layer, gold_begin() >= last_layer.
  int finch_end() const { return std::min(last_layer, finch_layers); }
  int gold_begin() const { return std::max(first_layer, finch_layers); }
  int gold_layers() const { return std::max(0, last_layer - gold_begin()); }
  // GOLD layers of the stages before this one.
  int gold_layers_before() const { return std::max(0, first_layer - finch_layers); }
  bool has_gold() const { return last_layer > finch_layers; }
  // It has the last Finch-side layer of a model with GOLD layers: it makes compressed rows and keeps tail rows.
  bool has_boundary() const { return finch_layers < model_layers && has_layer(finch_layers - 1); }

  // ---- Parts of the model outside its layers
  // Embedding and ids: the first stage embeds ids; GOLD layers make keys and values from them.
  bool has_embedding() const { return is_first() || has_gold(); }
  bool reads_ids() const { return has_embedding(); }
  bool has_head() const { return is_last(); }

  // ---- Rows from and to other stages
  // Hidden rows come from the stage before. To a stage whose layers are all GOLD these are the rows that the pre-fill
  // rule wants, to others the rows of every token.
  bool receives_hidden() const { return !is_first(); }
  bool receives_gold_hidden() const { return !is_first() && first_layer >= finch_layers; }
  bool sends_hidden() const { return !is_last(); }
  // Side rows, in a model whose kinds use them, follow the hidden rows between stages with Finch-side layers.
  bool receives_side() const { return receives_hidden() && first_layer < finch_layers; }
  bool sends_side() const { return sends_hidden() && last_layer < finch_layers; }
  // Compressed rows come from the stage with the boundary, and go from it to every later stage.
  bool receives_compressed() const { return has_gold() && !has_boundary(); }
  bool sends_compressed() const { return has_boundary() && !is_last(); }
  // They come from the stage directly before.
  bool follows_boundary() const { return has_gold() && first_layer == finch_layers; }
};

// The extent of stage `stage` of the pipeline whose stages begin with `first_layers`, which ascend from 0.
inline StageExtent StageExtentAt(absl::Span<const int> first_layers, int stage, int model_layers, int finch_layers) {
  const bool last = stage + 1 == static_cast<int>(first_layers.size());
  return {.model_layers = model_layers,
          .finch_layers = finch_layers,
          .first_layer = first_layers[stage],
          .last_layer = last ? model_layers : first_layers[stage + 1]};
}

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_STAGE_EXTENT_H_
