#include "base/sampling.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/check.h"
#include "base/status.h"

namespace goldfinch {
namespace {

constexpr double kTemperatureMax = 100;
constexpr double kBiasMax = 100;

absl::Status CheckRange(absl::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", the limits are ", low, " and ", high));
}

absl::Status CheckId(absl::string_view field, size_t index, int32_t id, int64_t vocab) {
  if (id >= 0 && id < vocab) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, "[", index, "] is of id ", id, ", the vocabulary has ids 0 to ", vocab - 1));
}

}  // namespace

bool RepeatsFreely(std::string_view text) {
  return !text.empty() && std::string_view(" \t0123456789").find(text) != std::string_view::npos;
}

SamplerVocabulary::SamplerVocabulary(std::vector<bool> sampleable, std::vector<bool> repeats_freely)
    : sampleable_(std::move(sampleable)), repeats_freely_(std::move(repeats_freely)) {
  GF_CHECK_EQ(sampleable_.size(), repeats_freely_.size());
  const auto last = std::find(sampleable_.rbegin(), sampleable_.rend(), true);
  GF_CHECK(last != sampleable_.rend()) << "no id is sampleable";
  limit_ = sampleable_.rend() - last;
  for (int32_t id = 0; id < limit_; ++id) {
    if (!sampleable_[id]) holes_.push_back(id);
  }
}

absl::Status Validate(const SamplingOptions& options, const SamplerVocabulary& vocabulary) {
  GF_RETURN_IF_ERROR(CheckRange("temperature", options.temperature, 0, kTemperatureMax));
  GF_RETURN_IF_ERROR(CheckRange("top_p", options.top_p, 0, 1));
  GF_RETURN_IF_ERROR(CheckRange("min_p", options.min_p, 0, 1));
  GF_RETURN_IF_ERROR(CheckRange("presence_penalty", options.presence_penalty, -kBiasMax, kBiasMax));
  GF_RETURN_IF_ERROR(CheckRange("frequency_penalty", options.frequency_penalty, -kBiasMax, kBiasMax));
  GF_RETURN_IF_ERROR(CheckRange("penalty_decay", options.penalty_decay, 0, 1));
  if (options.top_k < 0) {
    return absl::InvalidArgumentError(absl::StrCat("top_k is ", options.top_k, ", the lower limit is 0 (keep all)"));
  }
  if (options.logprobs) GF_RETURN_IF_ERROR(CheckRange("logprobs", *options.logprobs, 0, kLogprobsMax));

  for (size_t i = 0; i < options.logit_bias.size(); ++i) {
    const LogitBias& entry = options.logit_bias[i];
    GF_RETURN_IF_ERROR(CheckId("logit_bias", i, entry.id, vocabulary.size()));
    GF_RETURN_IF_ERROR(CheckRange(absl::StrCat("logit_bias[", i, "].bias"), entry.bias, -kBiasMax, kBiasMax));
  }
  for (size_t i = 0; i < options.banned_tokens.size(); ++i) {
    GF_RETURN_IF_ERROR(CheckId("banned_tokens", i, options.banned_tokens[i], vocabulary.size()));
  }
  const int64_t sampleable = vocabulary.limit() - static_cast<int64_t>(vocabulary.holes().size());
  if (static_cast<int64_t>(options.banned_tokens.size()) < sampleable) return absl::OkStatus();
  std::vector<int32_t> banned = options.banned_tokens;
  std::sort(banned.begin(), banned.end());
  banned.erase(std::unique(banned.begin(), banned.end()), banned.end());
  if (std::count_if(banned.begin(), banned.end(), [&](int32_t id) { return vocabulary.sampleable(id); }) < sampleable) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("banned_tokens has all ", sampleable, " tokens, one must be left"));
}

}  // namespace goldfinch
