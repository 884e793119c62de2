// What a load test sends and when: a function of its seed alone, so that two servers can be given the same load.
#ifndef GOLDFINCH_CLIENTS_CLI_LOAD_TEST_PLAN_H_
#define GOLDFINCH_CLIENTS_CLI_LOAD_TEST_PLAN_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace goldfinch {

inline constexpr int64_t kLengthTokensMax = int64_t{1} << 22;

// The same numbers everywhere, which the standard's distributions do not promise.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  uint64_t Bits() { return engine_(); }
  double Uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }  // [0, 1)
  double Exponential();                                                        // mean 1
  double Normal();                                                             // mean 0, deviation 1

 private:
  std::mt19937_64 engine_;
};

// Of a number of tokens, in [1, kLengthTokensMax].
class LengthDistribution {
 public:
  // "fixed:N", "uniform:A:B" with both ends, or "lognormal:MEDIAN:SIGMA", cut off at the limits, where SIGMA is the
  // deviation of the logarithm. INVALID_ARGUMENT names `flag`.
  static absl::StatusOr<LengthDistribution> Parse(const std::string& flag, const std::string& text);

  int64_t Draw(Random& random) const;

 private:
  enum class Kind { kFixed, kUniform, kLognormal };

  Kind kind_ = Kind::kFixed;
  double a_ = 1;
  double b_ = 0;
};

struct PlannedRequest {
  int64_t number = 0;
  double start_seconds = 0;  // from the start of the test
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  uint64_t seed = 0;  // of its prompt and its draws
};

// Poisson arrivals: what comes does not wait for what has been answered.
class LoadPlan {
 public:
  LoadPlan(double rate, const LengthDistribution& prompt, const LengthDistribution& output, uint64_t seed)
      : rate_(rate), prompt_(prompt), output_(output), random_(seed) {}

  PlannedRequest Next();

 private:
  const double rate_;  // requests a second
  const LengthDistribution prompt_;
  const LengthDistribution output_;
  Random random_;
  int64_t number_ = 0;
  double seconds_ = 0;
};

// Ids in [1, vocab_size): 0 would end a text.
std::vector<uint32_t> PromptIds(const PlannedRequest& request, int64_t vocab_size);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOAD_TEST_PLAN_H_
