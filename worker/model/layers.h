// The layer kinds as data: how each is recognized, loaded and computed. A new kind is a struct for its weights, a line
// in TimeMixKinds or ChannelMixKinds (layers_load.cc) with the functions that recognize and load it, and one forward
// function (layers_forward.cc). Nothing else knows a kind by its name, with two exceptions: the code for what
// GOLD layers need beside their forward function (caches, tables, memory) reads GoldWeights (model_memory.cc, and
// stage.cc and stage_forward.cc in worker/stage), and random_model.cc makes models of given kinds.
#ifndef GOLDFINCH_WORKER_MODEL_LAYERS_H_
#define GOLDFINCH_WORKER_MODEL_LAYERS_H_

#include <any>
#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/model/model_config.h"
#include "worker/model/weight_loader.h"
#include "worker/model/workspace.h"

namespace goldfinch {

// ---- Weights ----
// D = model width, N = head size, H = D / N heads, m = LoRA rank (read from each tensor), F = channel mix width.

// Eagle, RWKV-5.0 to 5.2 (arXiv 2404.05892 section 4.1.1).
struct EagleWeights {
  ConstTensor mix;                // [4, D] k, v, r, g, or [3, D] without a gate: the weight of prev(x)
  Matrix key, value, receptance;  // [D, D]
  Matrix gate;                    // [D, D]; empty in RWKV-5.0
  Matrix output;                  // [D, D]
  ConstTensor decay;              // [1, D]: w
  ConstTensor bonus;              // [H, N]: u
  NormWeights ln_x;
};

// Finch, RWKV-6 (arXiv 2404.05892 section 4.1.2).
struct FinchWeights {
  DdLerpWeights shift;                          // 5 targets: w, k, v, r, g
  Matrix receptance, key, value, gate, output;  // [D, D]
  ConstTensor decay;                            // [D]
  Matrix decay_down, decay_up;                  // [D, m], [m, D]
  ConstTensor bonus;                            // [H, N]: u
  NormWeights ln_x;
};

// Finch-C2 (arXiv 2407.12077 section 3.1).
struct FinchC2Weights {
  DdLerpWeights shift;                    // 5 targets: r, k, v, w, v2; 4 in checkpoints without v2
  Matrix receptance, key, value, output;  // [D, D]
  ConstTensor decay;                      // [D]
  Matrix decay_down, decay_up;            // [D, m], [m, D]
  Matrix value2_down, value2_up;          // [D, m], [m, D]; empty without v2
  ConstTensor bonus;                      // [H, N]: u; only without v2
  bool one_minus_w = true;
  NormWeights ln_x;
};

// GOLD (arXiv 2407.12077 section 3.3).
struct GoldWeights {
  DdLerpWeights shift;   // 1 target: q
  Matrix query, output;  // [D, D]
  NormWeights ln_query, ln_x;
  GoldKvWeights kv;
};

// GPTAlpha (arXiv 2407.12077 section 3.2).
struct GptAlphaWeights {
  DdLerpWeights shift;               // 3 targets: r, k, v
  Matrix query, key, value, output;  // [D, D]
  NormWeights ln_query, ln_key, ln_value, ln_x;
  double rope_base = 0;  // 0: no rotary embedding
};

// Llama-like attention.
struct LlamaWeights {
  Matrix query, key, value, output;  // [D, D]
  double rope_base = 0;              // 0: no rotary embedding
};

// The channel mix of all RWKV models and of GOLD: relu(x_k W_k)^2 W_v, gated by sigmoid(x_r W_r).
struct RwkvChannelMix {
  ConstTensor mix;    // [2, D] k, r: the weight of prev(x)
  Matrix key;         // [F, D]
  Matrix value;       // [D, F]
  Matrix receptance;  // [D, D]
};

// (silu(x W1) * x W3) W2.
struct LlamaChannelMix {
  Matrix gate, up;  // w1, w3 [F, D]
  Matrix down;      // w2 [D, F]
};

// ---- What a forward function gets ----

// What a layer's forward pass sees of the state of all sequences (worker/stage/sequence_state.h owns it). Parts that
// its kinds do not keep are empty.
struct LayerState {
  Tensor time_shift;     // [slots, D] fp32
  Tensor channel_shift;  // [slots, D] fp32
  Tensor wkv;            // [slots, H, N, N] fp32
  KvCache kv;
};

// The attention of a stage's GOLD layers over its compressed cache, whatever the stage keeps beside the cache.
class GoldAttention {
 public:
  virtual ~GoldAttention() = default;
  // Causal attention of each row over its sequence's positions up to its own, for GOLD layer `layer` of the stage. May
  // take workspace for the time of the call.
  virtual void Attend(ConstTensor q,  // [rows, D] act
                      RowSpans spans, int layer, Workspace& workspace,
                      Tensor out) = 0;  // [rows, D] act
};

// What the layers of one call share.
struct LayerContext {
  Backend& backend;
  Workspace& workspace;
  int head_size;
  RowSpans spans;
  GoldAttention* gold_attention = nullptr;  // for GOLD layers
  int gold_layer = 0;                       // which of the stage's GOLD layers this one is
  // [rows, D] fp32, if a kind of the model has uses_side_rows: what an earlier layer wrote for these rows. The first
  // layer of such a kind writes it, later ones read it; it crosses layers and stages (RWKV-7's first values).
  Tensor side = {};
};

// residual += mix(x), x the normed residual. x is of the back end's type of activations, the residual is fp32. A
// forward function gives back the workspace that it took. The weights are of the type that the kind's load returned.
using MixForward = void (*)(const LayerContext& context, const std::any& weights, ConstTensor x,
                            const LayerState& state, Tensor residual);

// ---- Kinds ----

struct TimeMixKind {
  const char* name = "";          // "finch_c2"
  const char* tmix = "";          // its name in the authors' configs: "x060c2"
  bool has_shift = false;         // keeps the last input row
  bool has_wkv = false;           // keeps a recurrent state
  bool has_kv_cache = false;      // keeps keys and values of every token
  bool reads_gold_cache = false;  // attends to the compressed cache; only the last layers may
  bool uses_side_rows = false;    // writes or reads LayerContext::side; not with reads_gold_cache
  // Whether the tensors "<prefix>*" are of this kind. Kinds are tried in the order of the table.
  bool (*matches)(const Checkpoint& checkpoint, const std::string& prefix) = nullptr;
  std::any (*load)(WeightLoader& loader, int64_t width, int head_size, const ModelConfig& config) = nullptr;
  MixForward forward = nullptr;
  // The most activations of workspace that a row takes.
  int64_t (*activations)(const std::any& weights, int64_t width) = nullptr;
};

struct ChannelMixKind {
  const char* name = "";   // "rwkv"
  bool has_shift = false;  // keeps the last input row
  bool (*matches)(const Checkpoint& checkpoint, const std::string& prefix) = nullptr;
  std::any (*load)(WeightLoader& loader, int64_t width) = nullptr;
  MixForward forward = nullptr;
  int64_t (*activations)(const std::any& weights, int64_t width) = nullptr;
};

// In the order in which they are tried; the last channel mix matches everything.
absl::Span<const TimeMixKind> TimeMixKinds();
absl::Span<const ChannelMixKind> ChannelMixKinds();

// The forward functions, a line a kind, for the tables.
void Forward(const LayerContext&, const EagleWeights&, ConstTensor x, const LayerState&, Tensor residual);
void Forward(const LayerContext&, const FinchWeights&, ConstTensor x, const LayerState&, Tensor residual);
void Forward(const LayerContext&, const FinchC2Weights&, ConstTensor x, const LayerState&, Tensor residual);
void Forward(const LayerContext&, const GoldWeights&, ConstTensor x, const LayerState&, Tensor residual);
void Forward(const LayerContext&, const GptAlphaWeights&, ConstTensor x, const LayerState&, Tensor residual);
void Forward(const LayerContext&, const LlamaWeights&, ConstTensor x, const LayerState&, Tensor residual);
void Forward(const LayerContext&, const RwkvChannelMix&, ConstTensor x, const LayerState&, Tensor residual);
void Forward(const LayerContext&, const LlamaChannelMix&, ConstTensor x, const LayerState&, Tensor residual);
// The most activations of workspace that a row of it takes.
template <class Weights>
int64_t Activations(const Weights& weights, int64_t width);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_LAYERS_H_
