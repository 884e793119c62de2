// What each layer kind computes, one op a line. The equations are those of the papers that layers.h names.
#include "worker/model/layers.h"

namespace goldfinch {
namespace {

constexpr float kLayerNormEpsilon = 1e-5f;
// 1e-5 * head_size_divisor^2 with divisor 8. Eagle's y / 8 before a norm with 1e-5 is the same.
constexpr float kHeadNormEpsilon = 64e-5f;

// One call of one mix: the shapes of its tensors, and the steps that several kinds share.
class Mix {
 public:
  Mix(const LayerContext& context, ConstTensor x, const LayerState& state, Tensor residual)
      : context_(context),
        backend_(context.backend),
        x_(x),
        state_(state),
        residual_(residual),
        frame_(context.workspace) {}

  RowSpans spans() const { return context_.spans; }
  int64_t rows() const { return x_.dim(0); }
  int64_t width() const { return x_.dim(1); }
  int heads() const { return static_cast<int>(width() / context_.head_size); }

  Tensor Take(const Shape& shape) { return context_.workspace.Take(shape, backend_.activation_dtype()); }
  Tensor Rows(int64_t columns) { return Take({rows(), columns}); }

  // [G, rows, D]: Slice takes one target.
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

  // out = tanh(x down) up.
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

 private:
  const LayerContext& context_;
  Backend& backend_;
  const ConstTensor x_;
  const LayerState& state_;
  const Tensor residual_;
  const Workspace::Frame frame_;
};

}  // namespace

void Forward(const LayerContext& context, const EagleWeights& w, ConstTensor x, const LayerState& state,
             Tensor residual) {
  Mix mix(context, x, state, residual);
  Backend& backend = context.backend;
  const int64_t targets = w.mix.dim(0);
  const Tensor shifted = mix.Take({targets, mix.rows(), mix.width()});
  backend.TokenShift(x, mix.spans(), state.time_shift, w.mix, shifted);
  const Tensor k = mix.Product(Slice(shifted, 0), w.key);
  const Tensor v = mix.Product(Slice(shifted, 1), w.value);
  const Tensor r = mix.Product(Slice(shifted, 2), w.receptance);
  const Tensor y = mix.Rows(mix.width());
  backend.WkvForward(r, k, v, w.decay, w.bonus, mix.spans(), state.wkv, {}, y);
  const Tensor gate = w.gate ? mix.Product(Slice(shifted, 3), w.gate, {.activation = Activation::kSilu}) : Tensor{};
  backend.GroupNorm(y, mix.heads(), w.ln_x, kHeadNormEpsilon, gate, y);
  mix.Output(y, w.output);
}

void Forward(const LayerContext& context, const FinchWeights& w, ConstTensor x, const LayerState& state,
             Tensor residual) {
  Mix mix(context, x, state, residual);
  Backend& backend = context.backend;
  const Tensor shifted = mix.DdLerp(w.shift);
  const Tensor decay = mix.Lora(Slice(shifted, 0), w.decay_down, w.decay_up, {.bias = w.decay});
  const Tensor k = mix.Product(Slice(shifted, 1), w.key);
  const Tensor v = mix.Product(Slice(shifted, 2), w.value);
  const Tensor r = mix.Product(Slice(shifted, 3), w.receptance);
  const Tensor gate = mix.Product(Slice(shifted, 4), w.gate, {.activation = Activation::kSilu});
  const Tensor y = mix.Rows(mix.width());
  backend.WkvForward(r, k, v, decay, w.bonus, mix.spans(), state.wkv, {}, y);
  backend.GroupNorm(y, mix.heads(), w.ln_x, kHeadNormEpsilon, gate, y);
  mix.Output(y, w.output);
}

void Forward(const LayerContext& context, const FinchC2Weights& w, ConstTensor x, const LayerState& state,
             Tensor residual) {
  Mix mix(context, x, state, residual);
  Backend& backend = context.backend;
  const Tensor shifted = mix.DdLerp(w.shift);
  const Tensor r = mix.Product(Slice(shifted, 0), w.receptance);
  const Tensor k = mix.Product(Slice(shifted, 1), w.key);
  const Tensor v = mix.Product(Slice(shifted, 2), w.value);
  const Tensor decay = mix.Lora(Slice(shifted, 3), w.decay_down, w.decay_up, {.bias = w.decay});
  const bool use_v2 = static_cast<bool>(w.value2_down);
  const Tensor y = mix.Rows(mix.width());
  if (use_v2) {  // y starts as v2
    backend.MatMul(Slice(shifted, 4), w.value, {}, y);
    mix.Lora(Slice(shifted, 4), w.value2_down, w.value2_up, {.accumulate = true}, y);
  }
  backend.WkvForward(r, k, v, decay, w.bonus, mix.spans(), state.wkv,
                     {.one_minus_decay_keys = w.one_minus_w, .accumulate = use_v2}, y);
  backend.GroupNorm(y, 1, w.ln_x, kLayerNormEpsilon, {}, y);
  mix.Output(y, w.output);
}

void Forward(const LayerContext& context, const GoldWeights& w, ConstTensor x, const LayerState& state,
             Tensor residual) {
  Mix mix(context, x, state, residual);
  Backend& backend = context.backend;
  const Tensor q = mix.Product(Slice(mix.DdLerp(w.shift), 0), w.query);
  backend.GroupNorm(q, 1, w.ln_query, kLayerNormEpsilon, {}, q);
  if (w.kv.rope_base != 0) backend.Rope(q, mix.spans(), context.head_size, w.kv.rope_base);
  const Tensor y = mix.Rows(mix.width());
  context.gold_attention->Attend(q, mix.spans(), context.gold_layer, context.workspace, y);
  backend.GroupNorm(y, 1, w.ln_x, kLayerNormEpsilon, {}, y);
  mix.Output(y, w.output);
}

void Forward(const LayerContext& context, const GptAlphaWeights& w, ConstTensor x, const LayerState& state,
             Tensor residual) {
  Mix mix(context, x, state, residual);
  Backend& backend = context.backend;
  const Tensor shifted = mix.DdLerp(w.shift);
  const Tensor q = mix.Product(Slice(shifted, 0), w.query);
  const Tensor k = mix.Product(Slice(shifted, 1), w.key);
  const Tensor v = mix.Product(Slice(shifted, 2), w.value);
  backend.GroupNorm(q, 1, w.ln_query, kLayerNormEpsilon, {}, q);
  backend.GroupNorm(k, 1, w.ln_key, kLayerNormEpsilon, {}, k);
  backend.GroupNorm(v, 1, w.ln_value, kLayerNormEpsilon, {}, v);
  const Tensor y = mix.Attend(q, k, v, w.rope_base);
  backend.GroupNorm(y, 1, w.ln_x, kLayerNormEpsilon, {}, y);
  mix.Output(y, w.output);
}

void Forward(const LayerContext& context, const LlamaWeights& w, ConstTensor x, const LayerState& state,
             Tensor residual) {
  Mix mix(context, x, state, residual);
  const Tensor q = mix.Product(x, w.query);
  const Tensor k = mix.Product(x, w.key);
  const Tensor v = mix.Product(x, w.value);
  mix.Output(mix.Attend(q, k, v, w.rope_base), w.output);
}

void Forward(const LayerContext& context, const RwkvChannelMix& w, ConstTensor x, const LayerState& state,
             Tensor residual) {
  Mix mix(context, x, state, residual);
  Backend& backend = context.backend;
  const Tensor shifted = mix.Take({2, mix.rows(), mix.width()});
  backend.TokenShift(x, mix.spans(), state.channel_shift, w.mix, shifted);
  const Tensor gate = mix.Product(Slice(shifted, 1), w.receptance, {.activation = Activation::kSigmoid});
  const Tensor hidden = mix.Product(Slice(shifted, 0), w.key, {.activation = Activation::kRelu2});
  backend.MatMul(hidden, w.value, {.multiply = gate, .accumulate = true}, residual);
}

void Forward(const LayerContext& context, const LlamaChannelMix& w, ConstTensor x, const LayerState& state,
             Tensor residual) {
  Mix mix(context, x, state, residual);
  const Tensor hidden = mix.Product(x, w.up);
  context.backend.MatMul(x, w.gate, {.activation = Activation::kSilu, .multiply = hidden}, hidden);
  mix.Output(hidden, w.down);
}

namespace {

// Finch takes the most rows of D: x, five shifted inputs, decay, k, v, r, gate, y.
constexpr int64_t kTimeMixRows = 12;
// x, two shifted inputs, gate.
constexpr int64_t kChannelMixRows = 4;

}  // namespace

template <class Weights>
int64_t Activations(const Weights&, int64_t width) {
  return kTimeMixRows * width;
}
template <>
int64_t Activations(const FinchWeights& w, int64_t width) {
  return kTimeMixRows * width + w.decay_down.out();
}
template <>
int64_t Activations(const FinchC2Weights& w, int64_t width) {
  return kTimeMixRows * width + w.decay_down.out() + (w.value2_down ? w.value2_down.out() : 0);
}
template <>
int64_t Activations(const RwkvChannelMix& w, int64_t width) {
  return kChannelMixRows * width + w.key.out();
}
template <>
int64_t Activations(const LlamaChannelMix& w, int64_t width) {
  return kChannelMixRows * width + w.up.out();
}
template int64_t Activations(const EagleWeights&, int64_t);
template int64_t Activations(const GoldWeights&, int64_t);
template int64_t Activations(const GptAlphaWeights&, int64_t);
template int64_t Activations(const LlamaWeights&, int64_t);

}  // namespace goldfinch
