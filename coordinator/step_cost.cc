#include "coordinator/step_cost.h"

#include <algorithm>
#include <cmath>

namespace goldfinch {
namespace {

// Ratios to the time of a row, of models from a million to a billion parameters; they need only be of the right order.
constexpr double kStepRows = 10, kAttendRows = 1e-4, kDeriveRows = 1e-2;
constexpr double kRowSecondsMin = 1e-9;

// How much of an error is corrected at once: more at first, when nothing is known.
constexpr int kFirstSteps = 8;
constexpr double kFirstRate = 0.7, kRate = 0.2;
// One Step that was held up by something else must not spoil what many have taught.
constexpr double kErrorMin = -0.5, kErrorMax = 1, kFirstErrorMax = 10;

// The sum of begin + 1, ..., end: the positions that the rows [begin, end) attend to.
double Triangle(int64_t begin, int64_t end) {
  return static_cast<double>(end - begin) * (static_cast<double>(begin) + static_cast<double>(end) + 1) / 2;
}

}  // namespace

StepWork ChunkWork(const AttentionShape& shape, int64_t begin, int64_t end, int64_t logit_rows, int64_t derived_until) {
  StepWork work;
  work.rows = static_cast<double>(end - begin);
  if (shape.every_row) work.attended += Triangle(begin, end);
  if (shape.gold_rows_before >= 0 && logit_rows > 0) {
    const int64_t first = std::max<int64_t>(end - logit_rows - shape.gold_rows_before, 0);
    work.attended += Triangle(first, end);
    work.derived += static_cast<double>(std::max<int64_t>(end - derived_until, 0));
  }
  return work;
}

StepCost::StepCost(double row_seconds) {
  const double row = std::max(row_seconds, kRowSecondsMin);
  coefficients_ = {kStepRows * row, row, kAttendRows * row, kDeriveRows * row};
}

double StepCost::Seconds(const StepWork& work) const {
  const std::array<double, 4> terms = Terms(work);
  double seconds = 0;
  for (size_t i = 0; i < terms.size(); ++i) seconds += coefficients_[i] * terms[i];
  return seconds;
}

void StepCost::Measured(const StepWork& work, double seconds) {
  if (!(seconds > 0) || !std::isfinite(seconds)) return;
  const double expected = Seconds(work);
  const bool first = measured_ < kFirstSteps;
  measured_ += first ? 1 : 0;
  const double error = std::clamp(seconds / expected - 1, kErrorMin, first ? kFirstErrorMax : kErrorMax);
  const std::array<double, 4> terms = Terms(work);
  // With shares s_i of the expected time, factors 1 + g s_i change it by g times the sum of s_i squared.
  double squares = 0;
  for (size_t i = 0; i < terms.size(); ++i) {
    const double share = coefficients_[i] * terms[i] / expected;
    squares += share * share;
  }
  const double gain = (first ? kFirstRate : kRate) * error / squares;
  for (size_t i = 0; i < terms.size(); ++i) {
    const double share = coefficients_[i] * terms[i] / expected;
    coefficients_[i] *= std::max(1 + gain * share, 0.1);
  }
}

}  // namespace goldfinch
