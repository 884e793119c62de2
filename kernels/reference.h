// Every Backend op in plain double code, straight from the equations: what the tests compare kernels with. It shares no
// code with any kernel, and is simple rather than fast.
//
// Rows lie back to back in one vector. An op with state takes the rows of one sequence; the caller loops over the
// spans.
#ifndef GOLDFINCH_KERNELS_REFERENCE_H_
#define GOLDFINCH_KERNELS_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace goldfinch::reference {

using Values = std::vector<double>;

struct Weight {
  Values data;
  int64_t in = 0;
  int64_t out = 0;
  Matrix::Layout layout = Matrix::Layout::kOutIn;
};

struct Norm {
  Values weight;
  Values bias;
};

// --- Rows and products ----------------------------------------------------------------------------------------------

Values Add(const Values& a, const Values& b);
Values Multiply(const Values& a, const Values& b);
double Activate(Activation activation, double x);
Values Activate(Activation activation, Values x);
// [rows, out] = x [rows, in] times the weight.
Values Product(const Values& x, const Weight& weight);
// LayerNorm over each of `groups` equal parts of every row, then weight and bias [width].
Values GroupNorm(const Values& x, int64_t width, int groups, const Norm& norm, double epsilon);
// x / (sqrt(mean(x^2)) + 1e-8) of every row.
Values Rms(const Values& x, int64_t width);

// --- Token shift ----------------------------------------------------------------------------------------------------

// The row before each row: `before` [width], then all rows of x except the last.
Values Prev(const Values& x, const Values& before);
// x + (prev - x) * mix, mix [width].
Values Lerp(const Values& x, const Values& prev, const Values& mix);
// x + (prev - x) * amount, where amount has the shape of x.
Values LerpEach(const Values& x, const Values& prev, const Values& amount);

// h = tanh((x + (prev - x) * mix_x) down), one group of `rank` columns after another;
// out[g] = x + (prev - x) * (mix[g] + h_g up[g]).
struct DdLerpWeights {
  Values mix_x;  // [width]
  Weight down;   // [width, targets * rank]
  Values up;     // [targets, rank, width]
  Values mix;    // [targets, width]
};
// One entry for each target, [rows, width].
std::vector<Values> DdLerp(const Values& x, const Values& prev, const DdLerpWeights& weights);

// --- Linear attention -----------------------------------------------------------------------------------------------

// Rows of one sequence; w is [rows, width] or [1, width], bonus [heads, head_size] or empty, state [heads, key, value]
// is updated.
Values Wkv(const Values& r, const Values& k, const Values& v, const Values& w, const Values& bonus, int64_t heads,
           int64_t head_size, bool one_minus_decay_keys, Values& state);

// --- Attention ------------------------------------------------------------------------------------------------------

// Rotates the rows of x, the first of which is at `position`.
Values Rope(const Values& x, int64_t width, int head_size, int64_t position, double base);
// Rows of q are at position, position + 1, ...; keys and values [positions, width] from position 0.
Values Attention(const Values& q, const Values& keys, const Values& values, int64_t width, int head_size,
                 int64_t position);

struct GoldLayer {
  int64_t width = 0;
  int head_size = 0;
  Values embedding;  // [vocab, width]
  Norm ln0;
  Weight key_x0;          // the columns of W_b that x0 is multiplied by
  Weight key_compressed;  // the columns of W_b that c is multiplied by
  Values mix_lora, mix_key, mix_value;
  Weight mix_down;
  Values mix_up;  // [2, rank, width]
  Weight key_down, key_up, value_down, value_up;
  Norm ln_key, ln_value;
  double rope_base = 0;
};
// x0 = LN0(emb[id]) for every id.
Values GoldInputs(const GoldLayer& layer, const std::vector<int32_t>& ids);
// [vocab, width]: key_x0 times x0.
Values GoldKeyTable(const GoldLayer& layer);
// [vocab, 2, 2 rank]: with xo = rms(x0), (xo * (1 - mix_lora)) mix_down and (xo * mix_lora) mix_down.
Values GoldMixTable(const GoldLayer& layer);
// Keys and values of positions 0 .. ids.size() from ids and c [positions, width / 16].
struct KeysValues {
  Values keys;
  Values values;
};
KeysValues GoldMakeKeysValues(const GoldLayer& layer, const std::vector<int32_t>& ids, const Values& c);

// --- Sampling -------------------------------------------------------------------------------------------------------

// The probability of every id after steps 1 to 4 of kernels/sample_row.h; 0 if the id cannot be drawn. Logits are exact
// in fp32, and so are scores, by which the cuts decide which ids are equal.
Values TokenProbabilities(const Values& logits, int64_t limit, const std::vector<int32_t>& holes, const SampleRow& row);

}  // namespace goldfinch::reference

#endif  // GOLDFINCH_KERNELS_REFERENCE_H_
