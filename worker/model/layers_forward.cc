// What each layer kind computes, one op a line; equations as in the papers named in layers.h.
#include <variant>

#include "worker/model/layers.h"
#include "worker/stage/gold_tiers.h"

namespace goldfinch {
namespace {

constexpr float kLayerNormEpsilon = 1e-5f;
// 1e-5 * head_size_divisor^2 with divisor 8. Eagle's y / 8 before a norm with 1e-5 is the same.
constexpr float kHeadNormEpsilon = 64e-5f;

// One call of one time mixer: shapes of its tensors and the way to take them.
class TimeMix {
 public:
  TimeMix(const LayerContext& context, ConstTensor x, const LayerState& state, Tensor residual)
      : context_(context),
        backend_(context.backend),
        x_(x),
        state_(state),
        residual_(residual),
        frame_(context.workspace) {}

  void operator()(const EagleWeights& w) {
    const int64_t targets = w.mix.dim(0);
    const Tensor shifted = Take({targets, rows(), width()});
    backend_.TokenShift(x_, context_.spans, state_.time_shift, w.mix, shifted);
    const Tensor k = Product(Part(shifted, 0), w.key);
    const Tensor v = Product(Part(shifted, 1), w.value);
    const Tensor r = Product(Part(shifted, 2), w.receptance);
    const Tensor y = Rows(width());
    backend_.WkvForward(r, k, v, w.decay, w.bonus, context_.spans, state_.wkv, {}, y);
    const Tensor gate = w.gate ? Product(Part(shifted, 3), w.gate, {.activation = Activation::kSilu}) : Tensor{};
    backend_.GroupNorm(y, heads(), w.ln_x, kHeadNormEpsilon, gate, y);
    Output(y, w.output);
  }

  void operator()(const FinchWeights& w) {
    const Tensor shifted = DdLerp(w.shift);
    const Tensor decay = Lora(Part(shifted, 0), w.decay_down, w.decay_up, {.bias = w.decay});
    const Tensor k = Product(Part(shifted, 1), w.key);
    const Tensor v = Product(Part(shifted, 2), w.value);
    const Tensor r = Product(Part(shifted, 3), w.receptance);
    const Tensor gate = Product(Part(shifted, 4), w.gate, {.activation = Activation::kSilu});
    const Tensor y = Rows(width());
    backend_.WkvForward(r, k, v, decay, w.bonus, context_.spans, state_.wkv, {}, y);
    backend_.GroupNorm(y, heads(), w.ln_x, kHeadNormEpsilon, gate, y);
    Output(y, w.output);
  }

  void operator()(const FinchC2Weights& w) {
    const Tensor shifted = DdLerp(w.shift);
    const Tensor r = Product(Part(shifted, 0), w.receptance);
    const Tensor k = Product(Part(shifted, 1), w.key);
    const Tensor v = Product(Part(shifted, 2), w.value);
    const Tensor decay = Lora(Part(shifted, 3), w.decay_down, w.decay_up, {.bias = w.decay});
    const bool use_v2 = static_cast<bool>(w.value2_down);
    const Tensor y = Rows(width());
    if (use_v2) {  // y starts as v2
      backend_.MatMul(Part(shifted, 4), w.value, {}, y);
      Lora(Part(shifted, 4), w.value2_down, w.value2_up, {.accumulate = true}, y);
    }
    backend_.WkvForward(r, k, v, decay, w.bonus, context_.spans, state_.wkv,
                        {.one_minus_decay_keys = w.one_minus_w, .accumulate = use_v2}, y);
    backend_.GroupNorm(y, 1, w.ln_x, kLayerNormEpsilon, {}, y);
    Output(y, w.output);
  }

  void operator()(const GoldWeights& w) {
    const Tensor q = Product(Part(DdLerp(w.shift), 0), w.query);
    backend_.GroupNorm(q, 1, w.ln_query, kLayerNormEpsilon, {}, q);
    if (w.kv.rope_base != 0) backend_.Rope(q, context_.spans, context_.head_size, w.kv.rope_base);
    const Tensor y = Rows(width());
    context_.gold_tiers->Attend(q, context_.spans, context_.gold_layer, context_.workspace, y);
    backend_.GroupNorm(y, 1, w.ln_x, kLayerNormEpsilon, {}, y);
    Output(y, w.output);
  }

  void operator()(const GptAlphaWeights& w) {
    const Tensor shifted = DdLerp(w.shift);
    const Tensor q = Product(Part(shifted, 0), w.query);
    const Tensor k = Product(Part(shifted, 1), w.key);
    const Tensor v = Product(Part(shifted, 2), w.value);
    backend_.GroupNorm(q, 1, w.ln_query, kLayerNormEpsilon, {}, q);
    backend_.GroupNorm(k, 1, w.ln_key, kLayerNormEpsilon, {}, k);
    backend_.GroupNorm(v, 1, w.ln_value, kLayerNormEpsilon, {}, v);
    const Tensor y = Attend(q, k, v, w.rope_base);
    backend_.GroupNorm(y, 1, w.ln_x, kLayerNormEpsilon, {}, y);
    Output(y, w.output);
  }

  void operator()(const LlamaWeights& w) {
    const Tensor q = Product(x_, w.query);
    const Tensor k = Product(x_, w.key);
    const Tensor v = Product(x_, w.value);
    Output(Attend(q, k, v, w.rope_base), w.output);
  }

 private:
  int64_t rows() const { return x_.dim(0); }
  int64_t width() const { return x_.dim(1); }
  int heads() const { return static_cast<int>(width() / context_.head_size); }

  Tensor Take(const Shape& shape) { return context_.workspace.Take(shape, backend_.activation_dtype()); }
  Tensor Rows(int64_t columns) { return Take({rows(), columns}); }
  // Target g of shifted rows [G, rows, D].
  static ConstTensor Part(const Tensor& shifted, int64_t g) { return Slice(shifted, g); }

  Tensor DdLerp(const DdLerpWeights& w) {
    const Tensor shifted = Take({w.mix.dim(0), rows(), width()});
    backend_.DdLerp(x_, context_.spans, state_.time_shift, w, shifted);
    return shifted;
  }

  Tensor Product(ConstTensor x, const Matrix& weight, const Epilogue& epilogue = {}) {
    const Tensor out = Rows(weight.out());
    backend_.MatMul(x, weight, epilogue, out);
    return out;
  }

  // tanh(x down) up.
  void Lora(ConstTensor x, const Matrix& down, const Matrix& up, const Epilogue& epilogue, Tensor out) {
    backend_.MatMul(Product(x, down, {.activation = Activation::kTanh}), up, epilogue, out);
  }
  Tensor Lora(ConstTensor x, const Matrix& down, const Matrix& up, const Epilogue& epilogue) {
    const Tensor out = Rows(up.out());
    Lora(x, down, up, epilogue, out);
    return out;
  }

  Tensor Attend(Tensor q, Tensor k, Tensor v, double rope_base) {
    if (rope_base != 0) {
      backend_.Rope(q, context_.spans, context_.head_size, rope_base);
      backend_.Rope(k, context_.spans, context_.head_size, rope_base);
    }
    backend_.KvAppend(k, v, context_.spans, state_.kv);
    const Tensor y = Rows(width());
    backend_.KvAttention(q, context_.spans, state_.kv, context_.head_size, y);
    return y;
  }

  void Output(ConstTensor y, const Matrix& output) { backend_.MatMul(y, output, {.accumulate = true}, residual_); }

  const LayerContext& context_;
  Backend& backend_;
  const ConstTensor x_;
  const LayerState& state_;
  const Tensor residual_;
  const Workspace::Frame frame_;
};

// Outputs of the LoRAs that a mixer takes from the workspace.
struct LoraElements {
  int64_t operator()(const FinchWeights& w) const { return w.decay_down.out(); }
  int64_t operator()(const FinchC2Weights& w) const {
    return w.decay_down.out() + (w.value2_down ? w.value2_down.out() : 0);
  }
  template <class Other>
  int64_t operator()(const Other&) const {
    return 0;
  }
};

}  // namespace

int64_t ActivationElements(const TimeMixWeights& weights, int64_t width) {
  constexpr int64_t kMostRows = 12;  // Finch: x, five shifted inputs, decay, k, v, r, gate, y
  return kMostRows * width + std::visit(LoraElements(), weights);
}

int64_t ActivationElements(const ChannelMixWeights& weights, int64_t width) {
  const auto* rwkv = std::get_if<RwkvChannelMix>(&weights);
  const int64_t hidden = rwkv != nullptr ? rwkv->key.out() : std::get<LlamaChannelMix>(weights).up.out();
  return 4 * width + hidden;  // x, two shifted inputs, gate
}

void TimeMixForward(const LayerContext& context, const TimeMixWeights& weights, ConstTensor x, const LayerState& state,
                    Tensor residual) {
  std::visit(TimeMix(context, x, state, residual), weights);
}

void ChannelMixForward(const LayerContext& context, const ChannelMixWeights& weights, ConstTensor x,
                       const LayerState& state, Tensor residual) {
  const Workspace::Frame frame(context.workspace);
  Backend& backend = context.backend;
  const int64_t rows = x.dim(0), width = x.dim(1);
  const auto take = [&](const Shape& shape) { return context.workspace.Take(shape, backend.activation_dtype()); };
  if (const auto* w = std::get_if<RwkvChannelMix>(&weights)) {
    const Tensor shifted = take({2, rows, width});
    backend.TokenShift(x, context.spans, state.channel_shift, w->mix, shifted);
    const ConstTensor xk = Slice(shifted, 0), xr = Slice(shifted, 1);
    const Tensor gate = take({rows, width});
    const Tensor hidden = take({rows, w->key.out()});
    backend.MatMul(xr, w->receptance, {.activation = Activation::kSigmoid}, gate);
    backend.MatMul(xk, w->key, {.activation = Activation::kRelu2}, hidden);
    backend.MatMul(hidden, w->value, {.multiply = gate, .accumulate = true}, residual);
  } else {
    const auto& llama = std::get<LlamaChannelMix>(weights);
    const Tensor hidden = take({rows, llama.up.out()});
    backend.MatMul(x, llama.up, {}, hidden);
    backend.MatMul(x, llama.gate, {.activation = Activation::kSilu, .multiply = hidden}, hidden);
    backend.MatMul(hidden, llama.down, {.accumulate = true}, residual);
  }
}

}  // namespace goldfinch
