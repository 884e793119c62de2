#include "worker/model/time_state.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "worker/model/weight_loader.h"

namespace goldfinch {
namespace {

constexpr char kSuffix[] = ".time_state";

std::string NameOf(const WkvLayer& layer) { return absl::StrCat("blocks.", layer.layer, ".att", kSuffix); }

absl::Status CheckTensor(const CheckpointTensor& tensor, const WkvLayer& layer) {
  const Shape expected = {layer.heads, layer.head_size, layer.head_size};
  if (tensor.data.shape != expected) {
    return absl::InvalidArgumentError(absl::StrCat(tensor.name, " is ", tensor.data.shape.ToString(),
                                                   ", the WKV state of this model's layer is ", expected.ToString()));
  }
  const DType dtype = tensor.data.dtype;
  if (tensor.scales || (dtype != DType::kF32 && dtype != DType::kBf16 && dtype != DType::kF16)) {
    return absl::InvalidArgumentError(absl::StrCat(tensor.name, " is ", Name(dtype), ", expected f32, bf16 or f16"));
  }
  return absl::OkStatus();
}

absl::Status CheckFinite(const std::string& name, const std::vector<float>& values, int64_t head_size) {
  const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  if (bad == values.end()) return absl::OkStatus();
  const int64_t at = bad - values.begin();
  return absl::InvalidArgumentError(absl::StrCat(name, " has ", *bad, " at [", at / (head_size * head_size), ", ",
                                                 at / head_size % head_size, ", ", at % head_size,
                                                 "], it must be finite"));
}

}  // namespace

std::vector<float> WkvOfTimeState(absl::Span<const float> time_state, int64_t heads, int64_t head_size) {
  const int64_t n = head_size;
  GF_CHECK_EQ(static_cast<int64_t>(time_state.size()), heads * n * n);
  std::vector<float> wkv(time_state.size());
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t value = 0; value < n; ++value) {
      for (int64_t key = 0; key < n; ++key) {
        wkv[(head * n + key) * n + value] = time_state[(head * n + value) * n + key];
      }
    }
  }
  return wkv;
}

bool HoldsTimeStatesAlone(const Checkpoint& file) {
  return std::all_of(file.tensors().begin(), file.tensors().end(),
                     [](const CheckpointTensor& tensor) { return tensor.name.ends_with(kSuffix); });
}

absl::StatusOr<std::vector<std::vector<float>>> ReadTimeStates(const Checkpoint& file,
                                                               absl::Span<const WkvLayer> layers) {
  const auto error = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", what...));
  };
  std::vector<std::string> expected;
  for (const WkvLayer& layer : layers) expected.push_back(NameOf(layer));
  for (const CheckpointTensor& tensor : file.tensors()) {
    if (std::find(expected.begin(), expected.end(), tensor.name) != expected.end()) continue;
    if (!tensor.name.ends_with(kSuffix)) {
      return error("holds ", tensor.name, ", which is no part of a tuned state: expected ", expected.front(),
                   " and so on alone");
    }
    return error("holds ", tensor.name, ", and this model has WKV states in ", layers.size(), " layers, ",
                 layers.front().layer, " to ", layers.back().layer);
  }
  std::vector<std::vector<float>> states;
  for (size_t i = 0; i < layers.size(); ++i) {
    const CheckpointTensor* const tensor = file.Find(expected[i]);
    if (tensor == nullptr) {
      return error("has no ", expected[i], ": it has ", file.tensors().size(), " states, this model needs ",
                   layers.size());
    }
    absl::Status status = CheckTensor(*tensor, layers[i]);
    std::vector<float> values;
    if (status.ok()) {
      values = ToFloats(tensor->data);
      status = CheckFinite(tensor->name, values, layers[i].head_size);
    }
    if (!status.ok()) return error(std::string(status.message()));
    states.push_back(WkvOfTimeState(values, layers[i].heads, layers[i].head_size));
  }
  return states;
}

}  // namespace goldfinch
