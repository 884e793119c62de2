// How each layer kind is recognized and read from a checkpoint.
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/model/layers.h"

namespace goldfinch {
namespace {

constexpr double kLlamaRopeBase = 10000;

bool Has(const Checkpoint& file, const std::string& prefix, const char* name) {
  return file.Find(prefix + name) != nullptr;
}

// maa_w1 [D, G*m], maa_w2 [G, m, D] and the mixes of G targets.
DdLerpWeights LoadDdLerp(WeightLoader& loader, int64_t width, const char* down, const char* up,
                         const std::vector<std::string>& mixes) {
  const auto targets = static_cast<int64_t>(mixes.size());
  DdLerpWeights weights;
  weights.mix_x = loader.Vector("time_maa_x", width);
  weights.mix = loader.Stack(mixes, width);
  // A single target's factor has no group axis in the file.
  const int64_t rank = loader.Dim(up, targets == 1 ? 0 : 1);
  weights.down = loader.Lora(down, width, targets * rank);
  weights.up = targets == 1 ? loader.Raw(up, {rank, width}) : loader.Raw(up, {targets, rank, width});
  weights.up.shape = {targets, rank, width};
  return weights;
}

void LoadLora(WeightLoader& loader, const std::string& name, int64_t width, Matrix* down, Matrix* up) {
  *down = loader.Lora(name + "_w1", width, -1);
  *up = loader.Lora(name + "_w2", down->data ? down->out() : -1, width);
}

// --- Eagle ----------------------------------------------------------------------------------------------------------

bool IsEagle(const Checkpoint& file, const std::string& prefix) { return Has(file, prefix, "time_mix_k"); }

// RWKV-5.0 and 5.1 have one decay and one bonus per head, the bonus as its logarithm under the name time_first.
std::any LoadEagle(WeightLoader& loader, int64_t width, int head_size, const ModelConfig&) {
  EagleWeights w;
  const int64_t heads = width / head_size;
  const bool has_gate = loader.Has("gate.weight");
  std::vector<float> mix;
  for (const char* name : {"time_mix_k", "time_mix_v", "time_mix_r", "time_mix_g"}) {
    if (!has_gate && std::string_view(name) == "time_mix_g") continue;
    // Eagle weighs x, later kinds weigh prev(x).
    for (float value : loader.Values(name, width)) mix.push_back(1 - value);
  }
  w.mix = loader.Floats(mix, {has_gate ? 4 : 3, width});
  w.key = loader.Linear("key.weight", width, width);
  w.value = loader.Linear("value.weight", width, width);
  w.receptance = loader.Linear("receptance.weight", width, width);
  if (has_gate) w.gate = loader.Linear("gate.weight", width, width);
  w.output = loader.Linear("output.weight", width, width);

  const auto per_channel = [&](const char* name) {
    const CheckpointTensor* tensor = loader.Peek(name);
    const bool per_head = tensor != nullptr && tensor->data.shape.elements() == heads;
    std::vector<float> values = loader.Values(name, per_head ? heads : width);
    if (!per_head || values.empty()) return values;
    std::vector<float> spread(width);
    for (int64_t i = 0; i < width; ++i) spread[i] = values[i / head_size];
    return spread;
  };
  w.decay = loader.Floats(per_channel("time_decay"), {1, width});
  if (loader.Has("time_faaaa")) {
    w.bonus = loader.Floats(per_channel("time_faaaa"), {heads, head_size});
  } else {
    std::vector<float> bonus = per_channel("time_first");
    for (float& value : bonus) value = std::exp(value);
    w.bonus = loader.Floats(bonus, {heads, head_size});
  }
  w.ln_x = loader.Norm("ln_x", width);
  return w;
}

// --- Finch ----------------------------------------------------------------------------------------------------------

bool IsFinch(const Checkpoint& file, const std::string& prefix) {
  return Has(file, prefix, "time_maa_w1") && Has(file, prefix, "gate.weight");
}

std::any LoadFinch(WeightLoader& loader, int64_t width, int head_size, const ModelConfig&) {
  FinchWeights w;
  w.shift = LoadDdLerp(loader, width, "time_maa_w1", "time_maa_w2",
                       {"time_maa_w", "time_maa_k", "time_maa_v", "time_maa_r", "time_maa_g"});
  w.receptance = loader.Linear("receptance.weight", width, width);
  w.key = loader.Linear("key.weight", width, width);
  w.value = loader.Linear("value.weight", width, width);
  w.gate = loader.Linear("gate.weight", width, width);
  w.output = loader.Linear("output.weight", width, width);
  w.decay = loader.Vector("time_decay", width);
  LoadLora(loader, "time_decay", width, &w.decay_down, &w.decay_up);
  w.bonus = loader.Vector("time_faaaa", width);
  w.bonus.shape = {width / head_size, head_size};
  w.ln_x = loader.Norm("ln_x", width);
  return w;
}

// --- Finch-C2 -------------------------------------------------------------------------------------------------------

bool IsFinchC2(const Checkpoint& file, const std::string& prefix) {
  return Has(file, prefix, "time_value2_w1") ||
         (Has(file, prefix, "time_maa_w1") && Has(file, prefix, "time_decay_w1") && !Has(file, prefix, "gate.weight"));
}

std::any LoadFinchC2(WeightLoader& loader, int64_t width, int head_size, const ModelConfig& config) {
  FinchC2Weights w;
  // One of its tensors without the others is an error, not an ablation.
  const bool has_v2 = loader.Has("time_maa_v2") || loader.Has("time_value2_w1") || loader.Has("time_value2_w2");
  const bool use_v2 = config.use_v2 && has_v2;
  std::vector<std::string> mixes = {"time_maa_r", "time_maa_k", "time_maa_v", "time_maa_w"};
  if (use_v2 || loader.Has("time_maa_v2")) mixes.emplace_back("time_maa_v2");
  w.shift = LoadDdLerp(loader, width, "time_maa_w1", "time_maa_w2", mixes);
  w.receptance = loader.Linear("receptance.weight", width, width);
  w.key = loader.Linear("key.weight", width, width);
  w.value = loader.Linear("value.weight", width, width);
  w.output = loader.Linear("output.weight", width, width);
  w.decay = loader.Vector("time_decay", width);
  LoadLora(loader, "time_decay", width, &w.decay_down, &w.decay_up);
  if (use_v2) {
    LoadLora(loader, "time_value2", width, &w.value2_down, &w.value2_up);
    loader.Ignore("time_faaaa");  // in the files, but used only without v2
  } else {
    w.bonus = loader.Vector("time_faaaa", width);
    w.bonus.shape = {width / head_size, head_size};
    loader.Ignore("time_value2_w1");
    loader.Ignore("time_value2_w2");
  }
  w.one_minus_w = config.use_one_minus_w;
  w.ln_x = loader.Norm("ln_x", width);
  return w;
}

// --- GOLD -----------------------------------------------------------------------------------------------------------

bool IsGold(const Checkpoint& file, const std::string& prefix) { return Has(file, prefix, "time_maa_kv_w1"); }

std::any LoadGold(WeightLoader& loader, int64_t width, int, const ModelConfig& config) {
  GoldWeights w;
  w.shift = LoadDdLerp(loader, width, "time_maa_q_w1", "time_maa_q_w2", {"time_maa_q"});
  w.query = loader.Linear("query.weight", width, width);
  w.output = loader.Linear("output.weight", width, width);
  w.ln_query = loader.Norm("ln_q", width);
  w.ln_x = loader.Norm("ln_x", width);
  w.kv.mix_lora = loader.Vector("time_maa_v_cache", width);
  w.kv.mix_key = loader.Vector("time_maa_k", width);
  w.kv.mix_value = loader.Vector("time_maa_v", width);
  const int64_t rank = loader.Dim("time_maa_kv_w2", 1);
  w.kv.mix_down = loader.Lora("time_maa_kv_w1", width, 2 * rank);
  w.kv.mix_up = loader.Raw("time_maa_kv_w2", {2, rank, width});
  LoadLora(loader, "time_key", width, &w.kv.key_down, &w.kv.key_up);
  LoadLora(loader, "time_value", width, &w.kv.value_down, &w.kv.value_up);
  w.kv.ln_key = loader.Norm("ln_k", width);
  w.kv.ln_value = loader.Norm("ln_v", width);
  w.kv.rope_base = config.rope_base.value_or(0);
  return w;
}

// --- GPTAlpha -------------------------------------------------------------------------------------------------------

bool IsGptAlpha(const Checkpoint& file, const std::string& prefix) { return Has(file, prefix, "ln_r.weight"); }

std::any LoadGptAlpha(WeightLoader& loader, int64_t width, int, const ModelConfig& config) {
  GptAlphaWeights w;
  w.shift = LoadDdLerp(loader, width, "time_maa_w1", "time_maa_w2", {"time_maa_r", "time_maa_k", "time_maa_v"});
  w.query = loader.Linear("query.weight", width, width);
  w.key = loader.Linear("key.weight", width, width);
  w.value = loader.Linear("value.weight", width, width);
  w.output = loader.Linear("output.weight", width, width);
  w.ln_query = loader.Norm("ln_r", width);
  w.ln_key = loader.Norm("ln_k", width);
  w.ln_value = loader.Norm("ln_v", width);
  w.ln_x = loader.Norm("ln_x", width);
  w.rope_base = config.rope_base.value_or(0);
  return w;
}

// --- Llama-like -----------------------------------------------------------------------------------------------------

bool IsLlama(const Checkpoint& file, const std::string& prefix) { return Has(file, prefix, "wq.weight"); }

std::any LoadLlama(WeightLoader& loader, int64_t width, int, const ModelConfig& config) {
  LlamaWeights w;
  w.query = loader.Linear("wq.weight", width, width);
  w.key = loader.Linear("wk.weight", width, width);
  w.value = loader.Linear("wv.weight", width, width);
  w.output = loader.Linear("wo.weight", width, width);
  w.rope_base = config.rope_base.value_or(kLlamaRopeBase);
  return w;
}

// --- Channel mixes --------------------------------------------------------------------------------------------------

bool IsLlamaChannelMix(const Checkpoint& file, const std::string& prefix) { return Has(file, prefix, "w1.weight"); }

std::any LoadLlamaChannelMix(WeightLoader& loader, int64_t width) {
  LlamaChannelMix w;
  const int64_t hidden = loader.Dim("w1.weight", 0);
  w.gate = loader.Linear("w1.weight", hidden, width);
  w.up = loader.Linear("w3.weight", hidden, width);
  w.down = loader.Linear("w2.weight", width, hidden);
  return w;
}

// Tried last: what lacks its tensors is told so by name.
bool IsRwkvChannelMix(const Checkpoint&, const std::string&) { return true; }

std::any LoadRwkvChannelMix(WeightLoader& loader, int64_t width) {
  RwkvChannelMix w;
  const int64_t hidden = loader.Dim("key.weight", 0);
  if (loader.Has("time_mix_k")) {  // Eagle weighs x, later kinds weigh prev(x)
    std::vector<float> mix;
    for (const char* name : {"time_mix_k", "time_mix_r"}) {
      for (float value : loader.Values(name, width)) mix.push_back(1 - value);
    }
    w.mix = loader.Floats(mix, {2, width});
  } else {
    w.mix = loader.Stack({"time_maa_k", "time_maa_r"}, width);
  }
  w.key = loader.Linear("key.weight", hidden, width);
  w.value = loader.Linear("value.weight", width, hidden);
  w.receptance = loader.Linear("receptance.weight", width, width);
  return w;
}

// --- The tables -----------------------------------------------------------------------------------------------------

template <class Weights>
void ForwardAny(const LayerContext& context, const std::any& weights, ConstTensor x, const LayerState& state,
                Tensor residual) {
  Forward(context, *std::any_cast<Weights>(&weights), x, state, residual);
}

template <class Weights>
int64_t ActivationsAny(const std::any& weights, int64_t width) {
  return Activations(*std::any_cast<Weights>(&weights), width);
}

// The line of a kind, with the functions that its weights' type decides.
template <class Weights, class Kind>
constexpr Kind WithWeights(Kind kind) {
  kind.forward = ForwardAny<Weights>;
  kind.activations = ActivationsAny<Weights>;
  return kind;
}
template <class Weights>
constexpr TimeMixKind Line(TimeMixKind kind) {
  return WithWeights<Weights>(kind);
}
template <class Weights>
constexpr ChannelMixKind ChannelLine(ChannelMixKind kind) {
  return WithWeights<Weights>(kind);
}

constexpr TimeMixKind kTimeMixKinds[] = {
    Line<GoldWeights>({.name = "gold",
                       .tmix = "gold",
                       .has_shift = true,
                       .reads_gold_cache = true,
                       .matches = IsGold,
                       .load = LoadGold}),
    Line<GptAlphaWeights>({.name = "gptalpha",
                           .tmix = "gptalpha",
                           .has_shift = true,
                           .has_kv_cache = true,
                           .matches = IsGptAlpha,
                           .load = LoadGptAlpha}),
    Line<FinchWeights>(
        {.name = "finch", .tmix = "x060", .has_shift = true, .has_wkv = true, .matches = IsFinch, .load = LoadFinch}),
    Line<FinchC2Weights>({.name = "finch_c2",
                          .tmix = "x060c2",
                          .has_shift = true,
                          .has_wkv = true,
                          .matches = IsFinchC2,
                          .load = LoadFinchC2}),
    Line<EagleWeights>(
        {.name = "eagle", .tmix = "x052", .has_shift = true, .has_wkv = true, .matches = IsEagle, .load = LoadEagle}),
    Line<LlamaWeights>({.name = "llama", .tmix = "llama", .has_kv_cache = true, .matches = IsLlama, .load = LoadLlama}),
};

constexpr ChannelMixKind kChannelMixKinds[] = {
    ChannelLine<LlamaChannelMix>({.name = "llama", .matches = IsLlamaChannelMix, .load = LoadLlamaChannelMix}),
    ChannelLine<RwkvChannelMix>(
        {.name = "rwkv", .has_shift = true, .matches = IsRwkvChannelMix, .load = LoadRwkvChannelMix}),
};

}  // namespace

absl::Span<const TimeMixKind> TimeMixKinds() { return kTimeMixKinds; }
absl::Span<const ChannelMixKind> ChannelMixKinds() { return kChannelMixKinds; }

}  // namespace goldfinch
