#include "worker/model/foreign_models.h"

#include <algorithm>
#include <string>
#include <vector>

#include "worker/model/time_state.h"

namespace goldfinch {
namespace {

bool EndsWithAny(std::string_view name, const std::vector<std::string_view>& ends) {
  return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return name.ends_with(end); });
}

// Whether a tensor's name ends with one of these.
bool HasAny(const Checkpoint& checkpoint, const std::vector<std::string_view>& ends) {
  return std::any_of(checkpoint.tensors().begin(), checkpoint.tensors().end(),
                     [&](const CheckpointTensor& tensor) { return EndsWithAny(tensor.name, ends); });
}

bool HasOnly(const Checkpoint& checkpoint, const std::vector<std::string_view>& ends) {
  return std::all_of(checkpoint.tensors().begin(), checkpoint.tensors().end(),
                     [&](const CheckpointTensor& tensor) { return EndsWithAny(tensor.name, ends); });
}

struct Foreign {
  bool (*matches)(const Checkpoint& checkpoint);
  std::string_view what;
};

constexpr Foreign kForeign[] = {
    {[](const Checkpoint& file) { return HoldsTimeStatesAlone(file); },
     "holds a tuned initial state (time_state of each layer) and no model: open the model that it was tuned for, and "
     "use it as a context (docs/CONTEXTS.md)"},
    {[](const Checkpoint& file) {
       return HasOnly(file, {"lora_A", "lora_B", "lora_A.weight", "lora_B.weight", "lora_A.default.weight",
                             "lora_B.default.weight"});
     },
     "holds LoRA adapters and no model: merge them into the model that they were trained for, and open that"},
    {[](const Checkpoint& file) { return HasAny(file, {".r_k"}) && HasAny(file, {".k_k"}) && HasAny(file, {".k_a"}); },
     "is an RWKV-7 (Goose) model, which this version does not compute: take a Finch (RWKV-6) or Eagle (RWKV-5) model, "
     "or one of the GoldFinch family"},
    // Eagle, which shares these names, normalizes its heads.
    {[](const Checkpoint& file) {
       return HasAny(file, {".att.time_first"}) && HasAny(file, {".att.time_mix_k"}) && !HasAny(file, {".ln_x.weight"});
     },
     "is an RWKV-4 model, which this version does not compute: take a Finch (RWKV-6) or Eagle (RWKV-5) model, or one "
     "of the GoldFinch family"},
    {[](const Checkpoint& file) { return HasAny(file, {".self_attn.q_proj.weight"}); },
     "is a transformer with the tensor names of Hugging Face (self_attn.q_proj), which this version does not read: its "
     "Llama-like layers are those of the GoldFinch authors' code (att.wq)"},
};

}  // namespace

std::string_view ForeignModel(const Checkpoint& checkpoint) {
  for (const Foreign& foreign : kForeign) {
    if (foreign.matches(checkpoint)) return foreign.what;
  }
  return {};
}

}  // namespace goldfinch
