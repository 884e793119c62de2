#include "tests/parity/reference_model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>

namespace goldfinch {
namespace {

// Row-major [rows, width]; one row a token.
struct Rows {
  Rows(int64_t rows_in, int64_t width_in) : rows(rows_in), width(width_in), values(rows_in * width_in) {}
  double* operator[](int64_t row) { return values.data() + row * width; }
  const double* operator[](int64_t row) const { return values.data() + row * width; }

  int64_t rows;
  int64_t width;
  std::vector<double> values;
};

Rows Each(const Rows& x, const std::function<double(double)>& f) {
  Rows out = x;
  for (double& value : out.values) value = f(value);
  return out;
}

Rows Each(const Rows& x, const Rows& y, const std::function<double(double, double)>& f) {
  Rows out = x;
  for (size_t i = 0; i < out.values.size(); ++i) out.values[i] = f(x.values[i], y.values[i]);
  return out;
}

Rows Sum(const Rows& x, const Rows& y) {
  return Each(x, y, [](double a, double b) { return a + b; });
}

Rows Product(const Rows& x, const Rows& y) {
  return Each(x, y, [](double a, double b) { return a * b; });
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double Silu(double x) { return x * Sigmoid(x); }
double Tanh(double x) { return std::tanh(x); }

Rows Previous(const Rows& x) {
  Rows out(x.rows, x.width);
  for (int64_t t = 1; t < x.rows; ++t) std::copy(x[t - 1], x[t], out[t]);
  return out;
}

// x + (prev(x) - x) * mix, mix one row or one a token.
Rows Lerp(const Rows& x, const Rows& mix) {
  const Rows previous = Previous(x);
  Rows out(x.rows, x.width);
  for (int64_t t = 0; t < x.rows; ++t) {
    const double* weight = mix[mix.rows == 1 ? 0 : t];
    for (int64_t i = 0; i < x.width; ++i) out[t][i] = x[t][i] + (previous[t][i] - x[t][i]) * weight[i];
  }
  return out;
}

// Columns [begin, end).
Rows Columns(const Rows& x, int64_t begin, int64_t end) {
  Rows out(x.rows, end - begin);
  for (int64_t t = 0; t < x.rows; ++t) std::copy(x[t] + begin, x[t] + end, out[t]);
  return out;
}

Rows SideBySide(const Rows& a, const Rows& b) {
  Rows out(a.rows, a.width + b.width);
  for (int64_t t = 0; t < a.rows; ++t) std::copy(b[t], b[t] + b.width, std::copy(a[t], a[t] + a.width, out[t]));
  return out;
}

// a / (sqrt(mean(a^2)) + 1e-8).
Rows Rms(const Rows& x) {
  Rows out = x;
  for (int64_t t = 0; t < x.rows; ++t) {
    double squares = 0;
    for (int64_t i = 0; i < x.width; ++i) squares += x[t][i] * x[t][i];
    const double root = std::sqrt(squares / static_cast<double>(x.width)) + 1e-8;
    for (int64_t i = 0; i < x.width; ++i) out[t][i] = x[t][i] / root;
  }
  return out;
}

// Adjacent pairs within each head, by position * base^(-2i/N).
Rows Rotate(const Rows& x, int64_t head_size, double base) {
  if (base == 0) return x;
  Rows out = x;
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t i = 0; i < x.width; i += 2) {
      const double exponent = static_cast<double>(i % head_size) / static_cast<double>(head_size);
      const double angle = static_cast<double>(t) * std::pow(base, -exponent);
      out[t][i] = x[t][i] * std::cos(angle) - x[t][i + 1] * std::sin(angle);
      out[t][i + 1] = x[t][i] * std::sin(angle) + x[t][i + 1] * std::cos(angle);
    }
  }
  return out;
}

// Causal softmax attention, scale 1/sqrt(N).
Rows Attend(const Rows& q, const Rows& k, const Rows& v, int64_t head_size) {
  Rows out(q.rows, q.width);
  for (int64_t head = 0; head < q.width; head += head_size) {
    for (int64_t t = 0; t < q.rows; ++t) {
      std::vector<double> scores(t + 1);
      for (int64_t s = 0; s <= t; ++s) {
        for (int64_t i = head; i < head + head_size; ++i) scores[s] += q[t][i] * k[s][i];
        scores[s] /= std::sqrt(static_cast<double>(head_size));
      }
      const double highest = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      for (double& score : scores) total += score = std::exp(score - highest);
      for (int64_t s = 0; s <= t; ++s) {
        for (int64_t i = head; i < head + head_size; ++i) out[t][i] += scores[s] / total * v[s][i];
      }
    }
  }
  return out;
}

class Reference {
 public:
  Reference(const ReferenceWeights& weights, const ReferenceConfig& config) : weights_(weights), config_(config) {}

  ReferenceOutput Run(const std::vector<int32_t>& tokens) {
    const ReferenceTensor& table = Get("emb.weight");
    width_ = table.shape[1];
    Rows x(static_cast<int64_t>(tokens.size()), width_);
    for (int64_t t = 0; t < x.rows; ++t) std::copy_n(table.values.data() + tokens[t] * width_, width_, x[t]);
    x = LayerNorm(x, "blocks.0.ln0", 1, 1e-5);
    const Rows x0 = x;

    ReferenceOutput output;
    Rows kk(0, 0);  // the shared key row, once there is a GOLD layer
    for (int layer = 0; weights_.contains("blocks." + std::to_string(layer) + ".ln1.weight"); ++layer) {
      prefix_ = "blocks." + std::to_string(layer) + ".";
      const bool gold = Has("att.time_maa_kv_w1");
      if (gold && kk.rows == 0) {
        const Rows c = Linear(x, "w_kv_cache_a.weight");
        output.compressed = c.values;
        kk = Rms(Linear(SideBySide(x0, c), "w_kv_cache_b.weight"));
      }
      const Rows normed = LayerNorm(x, prefix_ + "ln1", 1, 1e-5);
      x = Sum(x, gold ? Gold(normed, x0, kk) : TimeMix(normed));
      x = Sum(x, ChannelMix(LayerNorm(x, prefix_ + "ln2", 1, 1e-5)));
    }
    output.logits = Linear(LayerNorm(x, "ln_out", 1, 1e-5), "head.weight").values;
    return output;
  }

 private:
  bool Has(const std::string& name) const { return weights_.contains(prefix_ + name); }

  // Takes full names.
  const ReferenceTensor& Get(const std::string& name) const {
    const auto found = weights_.find(name);
    if (found == weights_.end()) {
      std::fprintf(stderr, "the reference has no tensor %s\n", name.c_str());
      std::abort();
    }
    return found->second;
  }

  // x W^T, W [out, in]. Full names.
  Rows Linear(const Rows& x, const std::string& name) const {
    const ReferenceTensor& w = Get(name);
    Rows out(x.rows, w.shape[0]);
    for (int64_t t = 0; t < x.rows; ++t) {
      const double* from = x[t];
      for (int64_t o = 0; o < out.width; ++o) {
        const double* row = w.values.data() + o * x.width;
        double sum = 0;
        for (int64_t i = 0; i < x.width; ++i) sum += from[i] * row[i];
        out[t][o] = sum;
      }
    }
    return out;
  }

  // x W, W the part `group` of a stack of [in, out].
  static Rows Times(const Rows& x, const ReferenceTensor& w, int64_t group = 0) {
    const int64_t out_width = w.shape.back();
    const double* part = w.values.data() + group * x.width * out_width;
    Rows out(x.rows, out_width);
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int64_t i = 0; i < x.width; ++i) {
        for (int64_t o = 0; o < out_width; ++o) out[t][o] += x[t][i] * part[i * out_width + o];
      }
    }
    return out;
  }

  // Over each of `groups` parts of a row. Full names.
  Rows LayerNorm(const Rows& x, const std::string& name, int64_t groups, double epsilon) const {
    const std::vector<double>& weight = Get(name + ".weight").values;
    const std::vector<double>& bias = Get(name + ".bias").values;
    const int64_t n = x.width / groups;
    Rows out = x;
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int64_t begin = 0; begin < x.width; begin += n) {
        double mean = 0, variance = 0;
        for (int64_t i = begin; i < begin + n; ++i) mean += x[t][i] / static_cast<double>(n);
        for (int64_t i = begin; i < begin + n; ++i) variance += std::pow(x[t][i] - mean, 2) / static_cast<double>(n);
        for (int64_t i = begin; i < begin + n; ++i) {
          out[t][i] = (x[t][i] - mean) / std::sqrt(variance + epsilon) * weight[i] + bias[i];
        }
      }
    }
    return out;
  }

  // Short names: of the layer's time mixer.
  const ReferenceTensor& Att(const std::string& name) const { return Get(prefix_ + "att." + name); }
  Rows AttRow(const std::string& name) const {
    const ReferenceTensor& tensor = Att(name);
    Rows row(1, static_cast<int64_t>(tensor.values.size()));
    row.values = tensor.values;
    return row;
  }
  Rows AttLinear(const Rows& x, const std::string& name) const {
    return Linear(x, prefix_ + "att." + name + ".weight");
  }
  Rows AttNorm(const Rows& x, const std::string& name) const { return LayerNorm(x, prefix_ + "att." + name, 1, 1e-5); }
  // tanh(x w1) w2.
  Rows AttLora(const Rows& x, const std::string& name) const {
    return Times(Each(Times(x, Att(name + "_w1")), Tanh), Att(name + "_w2"));
  }

  // Data-dependent shift to the targets time_maa_<name>, in the order in which they stand in the LoRA.
  std::vector<Rows> DdLerp(const Rows& x, const std::vector<std::string>& names, const std::string& lora) const {
    const Rows hidden = Each(Times(Lerp(x, AttRow("time_maa_x")), Att(lora + "_w1")), Tanh);
    const int64_t rank = hidden.width / static_cast<int64_t>(names.size());
    std::vector<Rows> shifted;
    for (size_t g = 0; g < names.size(); ++g) {
      const int64_t group = static_cast<int64_t>(g);
      Rows mix = Times(Columns(hidden, group * rank, (group + 1) * rank), Att(lora + "_w2"), group);
      const Rows constant = AttRow("time_maa_" + names[g]);
      for (int64_t t = 0; t < mix.rows; ++t) {
        for (int64_t i = 0; i < mix.width; ++i) mix[t][i] += constant[0][i];
      }
      shifted.push_back(Lerp(x, mix));
    }
    return shifted;
  }

  // y_t = r_t (S + diag(u) k_t^T v_t); S = diag(exp(-exp(w_t))) S + k_t^T v_t.
  Rows Wkv(const Rows& r, const Rows& k, const Rows& v, const Rows& w, const std::vector<double>& u) const {
    const int64_t n = config_.head_size;
    Rows y(r.rows, r.width);
    for (int64_t head = 0; head < r.width; head += n) {
      std::vector<double> state(n * n);  // [key, value]
      if (Has("att.time_state")) {       // [H, value, key]
        const double* initial = Att("time_state").values.data() + head * n;
        for (int64_t key = 0; key < n; ++key) {
          for (int64_t value = 0; value < n; ++value) state[key * n + value] = initial[value * n + key];
        }
      }
      for (int64_t t = 0; t < r.rows; ++t) {
        for (int64_t key = 0; key < n; ++key) {
          const int64_t i = head + key;
          const double decay = std::exp(-std::exp(w[t][i]));
          for (int64_t value = 0; value < n; ++value) {
            double& s = state[key * n + value];
            const double kv = k[t][i] * v[t][head + value];
            y[t][head + value] += r[t][i] * (s + u[i] * kv);
            s = decay * s + kv;
          }
        }
      }
    }
    return y;
  }

  Rows PlusRow(Rows x, const std::vector<double>& row) const {
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int64_t i = 0; i < x.width; ++i) x[t][i] += row[i];
    }
    return x;
  }

  Rows TimeMix(const Rows& x) const {
    if (Has("att.wq.weight")) return Llama(x);
    if (Has("att.ln_r.weight")) return GptAlpha(x);
    if (Has("att.time_mix_k")) return Eagle(x);
    if (Has("att.gate.weight")) return Finch(x);
    return FinchC2(x);
  }

  Rows Eagle(const Rows& x) const {
    const auto mixed = [&](const char* name) {
      return Lerp(x, Each(AttRow(name), [](double mix) { return 1 - mix; }));
    };
    const auto per_channel = [&](std::vector<double> values) {
      if (static_cast<int64_t>(values.size()) == width_) return values;
      std::vector<double> spread;
      for (double value : values) spread.insert(spread.end(), config_.head_size, value);
      return spread;
    };
    std::vector<double> bonus;
    if (Has("att.time_faaaa")) {
      bonus = Att("time_faaaa").values;
    } else {
      for (double value : per_channel(Att("time_first").values)) bonus.push_back(std::exp(value));
    }
    const Rows r = AttLinear(mixed("time_mix_r"), "receptance");
    const Rows k = AttLinear(mixed("time_mix_k"), "key");
    const Rows v = AttLinear(mixed("time_mix_v"), "value");
    const Rows w = PlusRow(Rows(x.rows, x.width), per_channel(Att("time_decay").values));
    Rows y = Each(Wkv(r, k, v, w, bonus), [](double value) { return value / 8; });
    y = LayerNorm(y, prefix_ + "att.ln_x", width_ / config_.head_size, 1e-5);
    if (Has("att.gate.weight")) y = Product(y, Each(AttLinear(mixed("time_mix_g"), "gate"), Silu));
    return AttLinear(y, "output");
  }

  Rows Finch(const Rows& x) const {
    const std::vector<Rows> shifted = DdLerp(x, {"w", "k", "v", "r", "g"}, "time_maa");
    const Rows w = PlusRow(AttLora(shifted[0], "time_decay"), Att("time_decay").values);
    const Rows k = AttLinear(shifted[1], "key");
    const Rows v = AttLinear(shifted[2], "value");
    const Rows r = AttLinear(shifted[3], "receptance");
    const Rows gate = Each(AttLinear(shifted[4], "gate"), Silu);
    const Rows y = Wkv(r, k, v, w, Att("time_faaaa").values);
    return AttLinear(Product(LayerNorm(y, prefix_ + "att.ln_x", width_ / config_.head_size, 64e-5), gate), "output");
  }

  Rows FinchC2(const Rows& x) const {
    std::vector<std::string> targets = {"r", "k", "v", "w"};
    if (Has("att.time_maa_v2")) targets.emplace_back("v2");
    const std::vector<Rows> shifted = DdLerp(x, targets, "time_maa");
    const Rows w = PlusRow(AttLora(shifted[3], "time_decay"), Att("time_decay").values);
    const Rows r = AttLinear(shifted[0], "receptance");
    Rows k = AttLinear(shifted[1], "key");
    if (config_.use_one_minus_w) {
      k = Each(k, w, [](double key, double decay) { return key * (1 - std::exp(-std::exp(decay))); });
    }
    const Rows v = AttLinear(shifted[2], "value");
    const bool use_v2 = config_.use_v2 && Has("att.time_value2_w1");
    Rows y = Wkv(r, k, v, w, use_v2 ? std::vector<double>(width_) : Att("time_faaaa").values);
    if (use_v2) y = Sum(y, Sum(AttLinear(shifted[4], "value"), AttLora(shifted[4], "time_value2")));
    return AttLinear(AttNorm(y, "ln_x"), "output");
  }

  Rows Gold(const Rows& x, const Rows& x0, const Rows& kk) const {
    Rows q = AttLinear(DdLerp(x, {"q"}, "time_maa_q")[0], "query");
    q = Rotate(AttNorm(q, "ln_q"), config_.head_size, config_.rope_base);

    const Rows xo = Rms(x0);
    const Rows hidden = Each(Times(Lerp(xo, AttRow("time_maa_v_cache")), Att("time_maa_kv_w1")), Tanh);
    const int64_t rank = hidden.width / 2;
    const auto mix = [&](int64_t group, const char* constant) {
      return PlusRow(Times(Columns(hidden, group * rank, (group + 1) * rank), Att("time_maa_kv_w2"), group),
                     Att(constant).values);
    };
    Rows k = Lerp(kk, mix(0, "time_maa_k"));
    Rows v = Lerp(xo, mix(1, "time_maa_v"));
    k = Sum(k, AttLora(k, "time_key"));
    v = Sum(v, AttLora(v, "time_value"));
    k = Rotate(AttNorm(k, "ln_k"), config_.head_size, config_.rope_base);
    v = AttNorm(v, "ln_v");
    return AttLinear(AttNorm(Attend(q, k, v, config_.head_size), "ln_x"), "output");
  }

  Rows GptAlpha(const Rows& x) const {
    const std::vector<Rows> shifted = DdLerp(x, {"r", "k", "v"}, "time_maa");
    const Rows q = Rotate(AttNorm(AttLinear(shifted[0], "query"), "ln_r"), config_.head_size, config_.rope_base);
    const Rows k = Rotate(AttNorm(AttLinear(shifted[1], "key"), "ln_k"), config_.head_size, config_.rope_base);
    const Rows v = AttNorm(AttLinear(shifted[2], "value"), "ln_v");
    return AttLinear(AttNorm(Attend(q, k, v, config_.head_size), "ln_x"), "output");
  }

  Rows Llama(const Rows& x) const {
    const Rows q = Rotate(AttLinear(x, "wq"), config_.head_size, config_.rope_base);
    const Rows k = Rotate(AttLinear(x, "wk"), config_.head_size, config_.rope_base);
    return AttLinear(Attend(q, k, AttLinear(x, "wv"), config_.head_size), "wo");
  }

  Rows ChannelMix(const Rows& x) const {
    const std::string ffn = prefix_ + "ffn.";
    if (Has("ffn.w1.weight")) {
      const Rows hidden = Product(Each(Linear(x, ffn + "w1.weight"), Silu), Linear(x, ffn + "w3.weight"));
      return Linear(hidden, ffn + "w2.weight");
    }
    const bool eagle = Has("ffn.time_mix_k");
    const auto mixed = [&](const char* name) {
      Rows mix(1, width_);
      mix.values = Get(ffn + (eagle ? "time_mix_" : "time_maa_") + name).values;
      return Lerp(x, eagle ? Each(mix, [](double value) { return 1 - value; }) : mix);
    };
    const auto squared_relu = [](double value) { return value > 0 ? value * value : 0; };
    const Rows hidden = Each(Linear(mixed("k"), ffn + "key.weight"), squared_relu);
    const Rows gate = Each(Linear(mixed("r"), ffn + "receptance.weight"), Sigmoid);
    return Product(gate, Linear(hidden, ffn + "value.weight"));
  }

  const ReferenceWeights& weights_;
  const ReferenceConfig& config_;
  int64_t width_ = 0;
  std::string prefix_;
};

}  // namespace

ReferenceOutput RunReference(const ReferenceWeights& weights, const ReferenceConfig& config,
                             const std::vector<int32_t>& tokens) {
  return Reference(weights, config).Run(tokens);
}

}  // namespace goldfinch
