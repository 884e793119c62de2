// The layer kinds as data: how each is recognized, loaded and computed. A new architecture is a new struct, one line in
// TimeMixKinds and one forward function.
#ifndef GOLDFINCH_WORKER_MODEL_LAYERS_H_
#define GOLDFINCH_WORKER_MODEL_LAYERS_H_

#include <cstdint>
#include <string>
#include <variant>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/model/model_config.h"
#include "worker/model/weight_loader.h"
#include "worker/model/workspace.h"

namespace goldfinch {

class GoldTiers;

// D = model width, N = head size, H = D / N heads, m = LoRA rank (read from each tensor), F = channel mix width.

// Eagle, RWKV-5.0 to 5.2 (arXiv 2404.05892 section 4.1.1).
struct EagleWeights {
  ConstTensor mix;                // [4, D] k, v, r, g (without gate [3, D]): weight of prev(x)
  Matrix key, value, receptance;  // [D, D]
  Matrix gate;                    // [D, D]; RWKV-5.0 has none
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
  double rope_base = 0;  // 0: none
};

// Llama-like attention.
struct LlamaWeights {
  Matrix query, key, value, output;  // [D, D]
  double rope_base = 0;              // 0: none
};

using TimeMixWeights =
    std::variant<EagleWeights, FinchWeights, FinchC2Weights, GoldWeights, GptAlphaWeights, LlamaWeights>;

// All RWKV channel mixers: relu(x_k W_k)^2 W_v, gated by sigmoid(x_r W_r).
struct RwkvChannelMix {
  ConstTensor mix;    // [2, D] k, r: weight of prev(x)
  Matrix key;         // [F, D]
  Matrix value;       // [D, F]
  Matrix receptance;  // [D, D]
};

// (silu(x W1) * x W3) W2.
struct LlamaChannelMix {
  Matrix gate, up;  // w1, w3 [F, D]
  Matrix down;      // w2 [D, F]
};

using ChannelMixWeights = std::variant<RwkvChannelMix, LlamaChannelMix>;

struct TimeMixKind {
  const char* name;       // "finch_c2"
  const char* tmix;       // its name in the authors' configs: "x060c2"
  bool has_shift;         // keeps the last input row
  bool has_wkv;           // keeps a recurrent state
  bool has_kv_cache;      // keeps keys and values of every token
  bool reads_gold_cache;  // attends to the compressed cache
  // Whether the tensors "<prefix>*" are of this kind. Kinds are tried in the order of the table.
  bool (*matches)(const Checkpoint& checkpoint, const std::string& prefix);
  TimeMixWeights (*load)(WeightLoader& loader, int64_t width, int head_size, const ModelConfig& config);
};

absl::Span<const TimeMixKind> TimeMixKinds();

ChannelMixWeights LoadChannelMix(WeightLoader& loader, int64_t width);
// Whether the channel mix of the tensors "<prefix>*" keeps its last input row.
bool ChannelMixHasShift(const Checkpoint& checkpoint, const std::string& prefix);

// What a layer's forward pass sees of the state of all sequences (worker/stage/sequence_state.h owns it). Parts that
// its kind does not keep are empty.
struct LayerState {
  Tensor time_shift;     // [slots, D] fp32
  Tensor channel_shift;  // [slots, D] fp32
  Tensor wkv;            // [slots, H, N, N] fp32
  KvCache kv;
};

// What the layers of one call share.
struct LayerContext {
  Backend& backend;
  Workspace& workspace;
  int head_size;
  RowSpans spans;
  GoldTiers* gold_tiers = nullptr;  // of GOLD layers, and
  int gold_layer = 0;               // which of the stage's GOLD layers it is
};

// residual += TimeMix(x), x = LN1(residual). x is of the back end's type of activations, the residual fp32. Uses the
// workspace; gives back what it took.
void TimeMixForward(const LayerContext& context, const TimeMixWeights& weights, ConstTensor x, const LayerState& state,
                    Tensor residual);
// residual += ChannelMix(x), x = LN2(residual).
void ChannelMixForward(const LayerContext& context, const ChannelMixWeights& weights, ConstTensor x,
                       const LayerState& state, Tensor residual);

// How many activations of workspace a row of these takes at most.
int64_t ActivationElements(const TimeMixWeights& weights, int64_t width);
int64_t ActivationElements(const ChannelMixWeights& weights, int64_t width);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_LAYERS_H_
