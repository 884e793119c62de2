// How long a Step takes, learned from the Steps before it. Pure.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_STEP_COST_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_STEP_COST_H_

#include <array>
#include <cstdint>

namespace goldfinch {

// What of a model decides which positions a row attends to.
struct AttentionShape {
  // Some layers keep keys and values: every row attends to all positions up to its own.
  bool every_row = false;
  // In a model with GOLD layers, the rows before the first wanted logits that these layers run, too (the pre-fill rule,
  // worker/stage/prefill_rule.h). < 0: the model has no GOLD layers.
  int64_t gold_rows_before = -1;
};

// What a Step has to do, in the units that its time grows with.
struct StepWork {
  double rows = 0;      // tokens
  double attended = 0;  // pairs of a row and a position that it attends to

  StepWork& operator+=(const StepWork& other) {
    rows += other.rows;
    attended += other.attended;
    return *this;
  }
  friend StepWork operator+(StepWork a, const StepWork& b) { return a += b; }
};

// The work of a chunk, positions [begin, end) of one sequence, whose last `logit_rows` rows want logits. `decodes`: the
// chunk's row follows rows of the sequence that have had logits, so that GOLD layers run it alone.
StepWork ChunkWork(const AttentionShape& shape, int64_t begin, int64_t end, int64_t logit_rows, bool decodes = false);

// seconds = step + row * rows + attend * attended. A Kalman filter follows the three coefficients: what a Step says of
// each of them counts by how uncertain it is, so Steps of decoding say little of the time of a row, and prompts little
// of that of a position. Not thread-safe.
class StepCost {
 public:
  // `row_seconds`: what the planner thinks that a token of a prompt takes, or 0; the other coefficients begin at usual
  // ratios to it. It is enough if they are right to within a factor of a hundred.
  explicit StepCost(double row_seconds);

  double Seconds(const StepWork& work) const;
  double step_seconds() const { return coefficients_[0]; }
  double row_seconds() const { return coefficients_[1]; }
  // Whether enough has been measured to rely on it.
  bool known() const { return measured_ >= kKnownSteps; }

  // A Step of this work took so long in the slowest stage. Work without rows and `seconds` of less than a microsecond
  // say nothing and are ignored.
  void Measured(const StepWork& work, double seconds);

 private:
  static constexpr int kTerms = 3;
  static constexpr int kKnownSteps = 8;
  using Terms = std::array<double, kTerms>;

  static Terms TermsOf(const StepWork& work) { return {1, work.rows, work.attended}; }

  Terms begun_;  // what they began as: their scale
  Terms coefficients_;
  std::array<Terms, kTerms> covariance_{};
  int measured_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_STEP_COST_H_
