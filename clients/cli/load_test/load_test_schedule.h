// What a load test sends, and when. It depends on the seed alone, so that two servers can be given the same load.
#ifndef GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_SCHEDULE_H_
#define GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_SCHEDULE_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace goldfinch {

inline constexpr int64_t kLengthTokensMax = int64_t{1} << 22;

// Draws the same numbers on every platform, which the distributions of the standard library do not promise.
class PortableRandom {
 public:
  explicit PortableRandom(uint64_t seed) : engine_(seed) {}

  uint64_t Bits() { return engine_(); }
  double Uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }  // [0, 1)
  double Exponential();                                                        // mean 1
  double Normal();                                                             // mean 0, deviation 1

 private:
  std::mt19937_64 engine_;
};

// A distribution of lengths, in tokens, [1, kLengthTokensMax].
class LengthDistribution {
 public:
  // "fixed:N", "uniform:A:B" (A and B included) or "lognormal:MEDIAN:SIGMA" (SIGMA is the standard deviation of the
  // logarithm; lengths are clamped to the limits). INVALID_ARGUMENT names `flag`.
  static absl::StatusOr<LengthDistribution> Parse(const std::string& flag, const std::string& text);

  int64_t Draw(PortableRandom& random) const;

 private:
  enum class Kind { kFixed, kUniform, kLognormal };

  Kind kind_ = Kind::kFixed;
  double a_ = 1;
  double b_ = 0;
};

struct ScheduledRequest {
  int64_t number = 0;
  double start_seconds = 0;  // from the start of the test
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  uint64_t seed = 0;  // for its prompt, and for the server's draws
};

// Requests arrive as a Poisson process: none waits for an earlier one's answer.
class LoadSchedule {
 public:
  LoadSchedule(double rate, const LengthDistribution& prompt, const LengthDistribution& output, uint64_t seed)
      : rate_(rate), prompt_(prompt), output_(output), random_(seed) {}

  ScheduledRequest Next();

 private:
  const double rate_;  // requests a second
  const LengthDistribution prompt_;
  const LengthDistribution output_;
  PortableRandom random_;
  int64_t number_ = 0;
  double seconds_ = 0;
};

// A seed that depends on both numbers; other numbers give unrelated seeds.
uint64_t MixSeed(uint64_t seed, uint64_t number);

// The request's prompt: random ids in [1, vocab_size). 0 is left out, as it ends a text.
std::vector<uint32_t> PromptIds(const ScheduledRequest& request, int64_t vocab_size);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_SCHEDULE_H_
