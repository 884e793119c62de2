#include "coordinator/scheduler/step_cost.h"

#include <algorithm>
#include <cmath>

namespace goldfinch {
namespace {

// Ratios to the time of a row, of models from a million to a billion parameters; they need only be of the right order.
constexpr double kStepRows = 10, kAttendRows = 1e-4;
constexpr double kRowSecondsUnknown = 1e-4;

// Standard deviations, relative to the values: of what is not known at all, of one Step's time around the model, and of
// what the coefficients change by from one Step to the next.
constexpr double kUnknown = 300, kNoise = 0.15, kDrift = 0.02;
// One Step that was held up by something else must not spoil what many have taught: an error counts up to so many
// standard deviations.
constexpr double kErrorMax = 3;
// Coefficients stay positive, at least this part of what they began as, and go on drifting as if they were no smaller
// than this part: so none is ever stuck.
constexpr double kSmallest = 1e-6, kDriftSmallest = 1e-2;
constexpr double kSecondsMin = 1e-6;

// The sum of begin + 1, ..., end: the positions that the rows [begin, end) attend to.
double Triangle(int64_t begin, int64_t end) {
  return static_cast<double>(end - begin) * (static_cast<double>(begin) + static_cast<double>(end) + 1) / 2;
}

}  // namespace

StepWork ChunkWork(const AttentionShape& shape, int64_t begin, int64_t end, int64_t logit_rows, bool decodes) {
  StepWork work;
  work.rows = static_cast<double>(end - begin);
  if (shape.every_row) work.attended += Triangle(begin, end);
  if (shape.gold_rows_before >= 0 && logit_rows > 0) {
    const int64_t before = decodes ? 0 : shape.gold_rows_before;
    work.attended += Triangle(std::max<int64_t>(end - logit_rows - before, 0), end);
  }
  return work;
}

StepCost::StepCost(double row_seconds) {
  const double row = row_seconds > 0 ? row_seconds : kRowSecondsUnknown;
  begun_ = coefficients_ = {kStepRows * row, row, kAttendRows * row};
  for (int i = 0; i < kTerms; ++i) covariance_[i][i] = std::pow(kUnknown * coefficients_[i], 2);
}

double StepCost::Seconds(const StepWork& work) const {
  const Terms terms = TermsOf(work);
  double seconds = 0;
  for (int i = 0; i < kTerms; ++i) seconds += coefficients_[i] * terms[i];
  return seconds;
}

void StepCost::Measured(const StepWork& work, double seconds) {
  if (!(seconds >= kSecondsMin) || !std::isfinite(seconds) || !(work.rows > 0)) return;
  measured_ = std::min(measured_ + 1, kKnownSteps);
  const Terms terms = TermsOf(work);
  // covariance * terms, and the variance of the expected time.
  Terms spread{};
  double variance = 0;
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) spread[i] += covariance_[i][j] * terms[j];
    variance += spread[i] * terms[i];
  }
  const double expected = Seconds(work);
  // Rounding may have left less than nothing.
  variance = std::max(variance, 0.0) + std::pow(kNoise * std::max(std::min(seconds, expected), kSecondsMin), 2);
  const double largest = kErrorMax * std::sqrt(variance);
  const double error = std::clamp(seconds - expected, -largest, largest);
  for (int i = 0; i < kTerms; ++i) {
    coefficients_[i] = std::max(coefficients_[i] + spread[i] / variance * error, kSmallest * begun_[i]);
  }
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) covariance_[i][j] -= spread[i] * spread[j] / variance;
    covariance_[i][i] += std::pow(kDrift * std::max(coefficients_[i], kDriftSmallest * begun_[i]), 2);
  }
}

}  // namespace goldfinch
