#include "clients/cli/load_test/load_test_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/check.h"

namespace goldfinch {

double PortableRandom::Exponential() { return -std::log1p(-Uniform()); }

double PortableRandom::Normal() {
  // The Box-Muller transform; 1 - Uniform() is never 0.
  const double radius = std::sqrt(-2 * std::log(1 - Uniform()));
  return radius * std::cos(2 * std::numbers::pi * Uniform());
}

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(const std::string& flag, const std::string& text) {
  const auto refuse = [&](const std::string& reason) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " is \"", text, "\", ", reason));
  };
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  std::vector<double> numbers;
  for (size_t i = 1; i < parts.size(); ++i) {
    if (!absl::SimpleAtod(parts[i], &numbers.emplace_back())) return refuse(absl::StrCat(parts[i], " is not a number"));
  }
  const auto is = [&](const char* name, size_t count) { return parts[0] == name && numbers.size() == count; };
  LengthDistribution result;
  if (is("fixed", 1)) {
    result.kind_ = Kind::kFixed;
  } else if (is("uniform", 2)) {
    result.kind_ = Kind::kUniform;
  } else if (is("lognormal", 2)) {
    result.kind_ = Kind::kLognormal;
  } else {
    return refuse("expected fixed:N, uniform:A:B or lognormal:MEDIAN:SIGMA");
  }
  const size_t lengths = result.kind_ == Kind::kUniform ? 2 : 1;
  for (size_t i = 0; i < lengths; ++i) {
    const double length = numbers[i];
    if (!(length >= 1 && length <= static_cast<double>(kLengthTokensMax)) || length != std::floor(length)) {
      return refuse(absl::StrCat("lengths are whole numbers from 1 to ", kLengthTokensMax));
    }
  }
  result.a_ = numbers[0];
  if (numbers.size() == 2) result.b_ = numbers[1];
  if (result.kind_ == Kind::kUniform && result.a_ > result.b_) return refuse("A is above B");
  if (result.kind_ == Kind::kLognormal && !(result.b_ >= 0 && result.b_ <= 10)) return refuse("SIGMA is from 0 to 10");
  return result;
}

int64_t LengthDistribution::Draw(PortableRandom& random) const {
  double length = a_;
  if (kind_ == Kind::kUniform) length = std::floor(a_ + random.Uniform() * (b_ - a_ + 1));
  if (kind_ == Kind::kLognormal) length = std::round(a_ * std::exp(b_ * random.Normal()));
  return static_cast<int64_t>(std::clamp(length, 1.0, static_cast<double>(kLengthTokensMax)));
}

ScheduledRequest LoadSchedule::Next() {
  seconds_ += random_.Exponential() / rate_;
  ScheduledRequest request;
  request.number = number_++;
  request.start_seconds = seconds_;
  request.prompt_tokens = prompt_.Draw(random_);
  request.output_tokens = output_.Draw(random_);
  request.seed = random_.Bits();
  return request;
}

// The finalizer of SplitMix64.
uint64_t MixSeed(uint64_t seed, uint64_t number) {
  uint64_t mixed = seed + (number + 1) * 0x9E3779B97F4A7C15u;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
  return mixed ^ (mixed >> 31);
}

std::vector<uint32_t> PromptIds(const ScheduledRequest& request, int64_t vocab_size) {
  GF_CHECK(vocab_size >= 2 && vocab_size <= int64_t{1} << 32) << "vocabulary of " << vocab_size;
  PortableRandom random(request.seed);
  std::vector<uint32_t> ids(request.prompt_tokens);
  for (uint32_t& id : ids) id = 1 + static_cast<uint32_t>(random.Uniform() * static_cast<double>(vocab_size - 1));
  return ids;
}

}  // namespace goldfinch
