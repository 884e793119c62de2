// How long a Step takes, learned from the Steps before it. Pure.
#ifndef GOLDFINCH_COORDINATOR_STEP_COST_H_
#define GOLDFINCH_COORDINATOR_STEP_COST_H_

#include <array>
#include <cstdint>

namespace goldfinch {

// What of a model decides which positions a row attends to.
struct AttentionShape {
  // Some layers keep keys and values: every row attends to all positions up to its own.
  bool every_row = false;
  // For GOLD layers: the rows before the first wanted logits that they run, too (the pre-fill rule,
  // worker/stage/prefill_rule.h). < 0: the model has no GOLD layers.
  int gold_rows_before = -1;
};

// What a Step has to do, in the units that its time grows with.
struct StepWork {
  double rows = 0;      // tokens
  double attended = 0;  // pairs of a row and a position that it attends to
  double derived = 0;   // positions whose rows GOLD layers derive for the first time

  StepWork& operator+=(const StepWork& other) {
    rows += other.rows;
    attended += other.attended;
    derived += other.derived;
    return *this;
  }
};

// The work of a chunk [begin, end) of one sequence whose last `logit_rows` rows want logits. `derived_until`: what GOLD
// layers have derived of it before.
StepWork ChunkWork(const AttentionShape& shape, int64_t begin, int64_t end, int64_t logit_rows, int64_t derived_until);

// seconds = step + row * rows + attend * attended + derive * derived, with coefficients that follow what is measured:
// each is corrected by its part of the Step's error. So a Step of decoding says nothing about the time of a row, and a
// long prompt nothing about that of a position. Not thread-safe.
class StepCost {
 public:
  // `row_seconds`: what the planner thinks that a token of a prompt takes; the other coefficients begin at usual ratios
  // to it.
  explicit StepCost(double row_seconds);

  double Seconds(const StepWork& work) const;
  double step_seconds() const { return coefficients_[0]; }
  double row_seconds() const { return coefficients_[1]; }

  // A Step of this work took so long in the slowest stage. `seconds` that are not positive are ignored.
  void Measured(const StepWork& work, double seconds);

 private:
  static std::array<double, 4> Terms(const StepWork& work) { return {1, work.rows, work.attended, work.derived}; }

  std::array<double, 4> coefficients_;
  int measured_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STEP_COST_H_
