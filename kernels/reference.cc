#include "kernels/reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace goldfinch::reference {
namespace {

constexpr double kLayerNormEpsilon = 1e-5;

int64_t Size(const Values& x) { return static_cast<int64_t>(x.size()); }

// Columns [begin, begin + count) of x [rows, width].
Values Columns(const Values& x, int64_t width, int64_t begin, int64_t count) {
  Values part;
  for (int64_t row = 0; row < Size(x); row += width) {
    part.insert(part.end(), x.begin() + row + begin, x.begin() + row + begin + count);
  }
  return part;
}

Values Part(const Values& x, int64_t begin, int64_t count) {
  return Values(x.begin() + begin, x.begin() + begin + count);
}

Values Tanh(Values x) { return Activate(Activation::kTanh, std::move(x)); }

std::vector<int32_t> AllIds(const GoldLayer& layer) {
  std::vector<int32_t> ids(layer.embedding.size() / layer.width);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

// x + tanh(x down) up.
Values PlusLora(const Values& x, const Weight& down, const Weight& up) {
  return Add(x, Product(Tanh(Product(x, down)), up));
}

}  // namespace

Values Add(const Values& a, const Values& b) {
  Values sum(a.size());
  for (size_t i = 0; i < a.size(); ++i) sum[i] = a[i] + b[i];
  return sum;
}

Values Multiply(const Values& a, const Values& b) {
  Values product(a.size());
  for (size_t i = 0; i < a.size(); ++i) product[i] = a[i] * b[i];
  return product;
}

double Activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu2:
      return x > 0 ? x * x : 0;
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
  }
  return x;
}

Values Activate(Activation activation, Values x) {
  for (double& value : x) value = Activate(activation, value);
  return x;
}

Values Product(const Values& x, const Weight& weight) {
  const int64_t in = weight.in, out = weight.out, rows = Size(x) / in;
  const bool out_in = weight.layout == Matrix::Layout::kOutIn;
  Values result(rows * out);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t o = 0; o < out; ++o) {
      const double* w = weight.data.data() + (out_in ? o * in : o);
      const int64_t step = out_in ? 1 : out;
      double sum = 0;
      for (int64_t i = 0; i < in; ++i) sum += x[row * in + i] * w[i * step];
      result[row * out + o] = sum;
    }
  }
  return result;
}

Values GroupNorm(const Values& x, int64_t width, int groups, const Norm& norm, double epsilon) {
  const int64_t size = width / groups;
  const auto count = static_cast<double>(size);
  Values result(x.size());
  for (int64_t begin = 0; begin < Size(x); begin += size) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < size; ++i) mean += x[begin + i] / count;
    for (int64_t i = 0; i < size; ++i) variance += (x[begin + i] - mean) * (x[begin + i] - mean) / count;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t column = (begin + i) % width;
      result[begin + i] =
          (x[begin + i] - mean) / std::sqrt(variance + epsilon) * norm.weight[column] + norm.bias[column];
    }
  }
  return result;
}

Values Rms(const Values& x, int64_t width) {
  Values result(x.size());
  for (int64_t begin = 0; begin < Size(x); begin += width) {
    double square = 0;
    for (int64_t i = 0; i < width; ++i) square += x[begin + i] * x[begin + i] / static_cast<double>(width);
    for (int64_t i = 0; i < width; ++i) result[begin + i] = x[begin + i] / (std::sqrt(square) + 1e-8);
  }
  return result;
}

Values Prev(const Values& x, const Values& before) {
  Values prev = before;
  prev.insert(prev.end(), x.begin(), x.end());
  prev.resize(x.size());
  return prev;
}

Values Lerp(const Values& x, const Values& prev, const Values& mix) {
  Values result(x.size());
  for (size_t i = 0; i < x.size(); ++i) result[i] = x[i] + (prev[i] - x[i]) * mix[i % mix.size()];
  return result;
}

Values LerpEach(const Values& x, const Values& prev, const Values& amount) {
  Values result(x.size());
  for (size_t i = 0; i < x.size(); ++i) result[i] = x[i] + (prev[i] - x[i]) * amount[i];
  return result;
}

std::vector<Values> DdLerp(const Values& x, const Values& prev, const DdLerpWeights& weights) {
  const int64_t width = Size(weights.mix_x), targets = Size(weights.mix) / width;
  const int64_t rank = weights.down.out / targets;
  const Values hidden = Tanh(Product(Lerp(x, prev, weights.mix_x), weights.down));
  std::vector<Values> result;
  for (int64_t g = 0; g < targets; ++g) {
    const Weight up{Part(weights.up, g * rank * width, rank * width), rank, width, Matrix::Layout::kInOut};
    Values amount = Product(Columns(hidden, targets * rank, g * rank, rank), up);
    for (size_t i = 0; i < amount.size(); ++i) amount[i] += weights.mix[g * width + i % width];
    result.push_back(LerpEach(x, prev, amount));
  }
  return result;
}

Values Wkv(const Values& r, const Values& k, const Values& v, const Values& w, const Values& bonus, int64_t heads,
           int64_t head_size, bool one_minus_decay_keys, Values& state) {
  const int64_t width = heads * head_size, rows = Size(r) / width;
  Values y(r.size());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t i = 0; i < head_size; ++i) {
        const int64_t column = head * head_size + i, at = row * width + column;
        const double rate = std::exp(w[at % w.size()]), decay = std::exp(-rate);
        const double key = one_minus_decay_keys ? k[at] * -std::expm1(-rate) : k[at];
        const double u = bonus.empty() ? 0 : bonus[column];
        for (int64_t j = 0; j < head_size; ++j) {
          const int64_t to = row * width + head * head_size + j;
          double& s = state[column * head_size + j];
          y[to] += r[at] * (s + u * key * v[to]);
          s = decay * s + key * v[to];
        }
      }
    }
  }
  return y;
}

Values Rope(const Values& x, int64_t width, int head_size, int64_t position, double base) {
  Values result(x.size());
  for (int64_t at = 0; at < Size(x); at += 2) {
    const int64_t row = at / width, i = at % width % head_size / 2;
    const double angle =
        static_cast<double>(position + row) * std::pow(base, -2.0 * static_cast<double>(i) / head_size);
    result[at] = x[at] * std::cos(angle) - x[at + 1] * std::sin(angle);
    result[at + 1] = x[at] * std::sin(angle) + x[at + 1] * std::cos(angle);
  }
  return result;
}

Values Attention(const Values& q, const Values& keys, const Values& values, int64_t width, int head_size,
                 int64_t position) {
  Values result(q.size());
  for (int64_t at = 0; at < Size(q); at += head_size) {
    const int64_t seen = position + at / width + 1, column = at % width;
    Values p(seen);
    for (int64_t t = 0; t < seen; ++t) {
      for (int i = 0; i < head_size; ++i) p[t] += q[at + i] * keys[t * width + column + i] / std::sqrt(head_size);
    }
    const double maximum = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (double& value : p) {
      value = std::exp(value - maximum);
      sum += value;
    }
    for (int64_t t = 0; t < seen; ++t) {
      for (int i = 0; i < head_size; ++i) result[at + i] += p[t] / sum * values[t * width + column + i];
    }
  }
  return result;
}

Values GoldInputs(const GoldLayer& layer, const std::vector<int32_t>& ids) {
  Values rows;
  for (int32_t id : ids) {
    const auto row = layer.embedding.begin() + id * layer.width;
    rows.insert(rows.end(), row, row + layer.width);
  }
  return GroupNorm(rows, layer.width, 1, layer.ln0, kLayerNormEpsilon);
}

Values GoldKeyTable(const GoldLayer& layer) { return Product(GoldInputs(layer, AllIds(layer)), layer.key_x0); }

Values GoldMixTable(const GoldLayer& layer) {
  const std::vector<int32_t> ids = AllIds(layer);
  const Values xo = Rms(GoldInputs(layer, ids), layer.width);
  const Values zero(xo.size());
  // Both are linear, so `own` is the mix of a row after a row of zeros, and `next` that of a row of zeros after it.
  const Values own = Product(Lerp(xo, zero, layer.mix_lora), layer.mix_down);
  const Values next = Product(Lerp(zero, xo, layer.mix_lora), layer.mix_down);
  Values table;
  for (size_t id = 0; id < ids.size(); ++id) {
    for (const Values* rows : {&own, &next}) {
      const auto row = rows->begin() + id * layer.mix_down.out;
      table.insert(table.end(), row, row + layer.mix_down.out);
    }
  }
  return table;
}

KeysValues GoldMakeKeysValues(const GoldLayer& layer, const std::vector<int32_t>& ids, const Values& c) {
  const int64_t width = layer.width, rank = layer.mix_down.out / 2;
  const Values zero(width);
  const Values x0 = GoldInputs(layer, ids);
  const Values kk = Rms(Add(Product(x0, layer.key_x0), Product(c, layer.key_compressed)), width);
  const Values xo = Rms(x0, width);
  const Values prev_kk = Prev(kk, zero), prev_xo = Prev(xo, zero);
  // The LoRA of both mixes is that of ddlerp over xo, but its key half mixes kk instead.
  const Values hidden = Tanh(Product(Lerp(xo, prev_xo, layer.mix_lora), layer.mix_down));
  const auto amount = [&](int group, const Values& mix) {
    const Weight up{Part(layer.mix_up, group * rank * width, rank * width), rank, width, Matrix::Layout::kInOut};
    Values sum = Product(Columns(hidden, 2 * rank, group * rank, rank), up);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += mix[i % width];
    return sum;
  };
  Values k = LerpEach(kk, prev_kk, amount(0, layer.mix_key));
  Values v = LerpEach(xo, prev_xo, amount(1, layer.mix_value));
  k = GroupNorm(PlusLora(k, layer.key_down, layer.key_up), width, 1, layer.ln_key, kLayerNormEpsilon);
  v = GroupNorm(PlusLora(v, layer.value_down, layer.value_up), width, 1, layer.ln_value, kLayerNormEpsilon);
  if (layer.rope_base != 0) k = Rope(k, width, layer.head_size, 0, layer.rope_base);
  return {std::move(k), std::move(v)};
}

Values TokenProbabilities(const Values& logits, int64_t limit, const std::vector<int32_t>& holes,
                          const SampleRow& row) {
  Values scores = logits;
  for (const LogitChange& change : row.changes) {
    scores[change.id] = static_cast<float>(scores[change.id] + change.amount);
  }
  std::vector<bool> out(logits.size());
  for (size_t id = limit; id < out.size(); ++id) out[id] = true;
  for (int32_t id : holes) out[id] = true;
  for (int32_t id : row.banned) out[id] = true;
  std::vector<int32_t> best_first;
  for (size_t id = 0; id < out.size(); ++id) {
    if (!out[id]) best_first.push_back(static_cast<int32_t>(id));
  }
  std::stable_sort(best_first.begin(), best_first.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });

  const double best = scores[best_first[0]];
  Values probabilities(logits.size());
  if (row.temperature == 0) {
    probabilities[best_first[0]] = 1;
    return probabilities;
  }
  double total = 0;
  for (int32_t id : best_first) total += std::exp(scores[id] - best);
  // Every cut keeps the first entries of the list.
  const size_t count = best_first.size();
  size_t top_p = 0, min_p = 0;
  for (double sum = 0; top_p < count; ++top_p) {
    const bool reached = top_p > 0 && row.top_p < 1 && sum >= row.top_p;
    if (reached && scores[best_first[top_p]] < scores[best_first[top_p - 1]]) break;
    sum += std::exp(scores[best_first[top_p]] - best) / total;
  }
  while (min_p < count && std::exp(scores[best_first[min_p]] - best) >= row.min_p) ++min_p;
  const size_t top_k = row.top_k == 0 ? count : std::min<size_t>(row.top_k, count);
  const size_t kept = std::min({top_p, top_k, min_p});

  double kept_total = 0;
  for (size_t i = 0; i < kept; ++i) {
    probabilities[best_first[i]] = std::exp((scores[best_first[i]] - best) / row.temperature);
    kept_total += probabilities[best_first[i]];
  }
  for (double& probability : probabilities) probability /= kept_total;
  return probabilities;
}

}  // namespace goldfinch::reference
