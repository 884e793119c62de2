// Every kernel of a device beside what the device can do, both measured in the same run: bytes moved against the rate
// of a copy, multiply-adds against that of a large product. Inputs are random, and several sets of them take turns, so
// that no cache has them; runs are queued without waiting, so that the time of launching is hidden where it can be.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "nlohmann/json.hpp"
#include "tests/gpu/bench.h"

namespace goldfinch {
namespace {

constexpr int64_t kHeadSize = 64;
constexpr int64_t kVocab = 65536;
constexpr int64_t kPageTokens = 64;
constexpr int64_t kMixRank = 32;   // of the released models, as are
constexpr int64_t kLoraRank = 64;  // those of keys and values
constexpr int64_t kDdLerpTargets = 5;

// --- Recurrent layers ------------------------------------------------------------------------------------------------

struct WkvInputs {
  WkvInputs(Memory& memory, int64_t rows, int64_t width)
      : r(memory.Act({rows, width})),
        k(memory.Act({rows, width})),
        v(memory.Act({rows, width})),
        w(memory.Act({rows, width}, -6, -0.5)),
        out(memory.Act({rows, width})) {}
  Tensor r, k, v, w, out;
};

void WkvPrefill(Bench& bench, int64_t batch, int64_t width, const Goal& goal) {
  const int64_t tokens = bench.Size(8192, 40), rows = batch * tokens, heads = width / kHeadSize;
  const std::string name = absl::StrCat("WKV pre-fill B=", batch, " T=", tokens, " D=", width);
  if (!bench.Wants(name)) return;
  Memory memory(bench.backend());
  const double bytes = 5.0 * static_cast<double>(rows * width) * bench.act_bytes();
  const int sets = bench.Sets(bytes);
  std::vector<WkvInputs> inputs;
  for (int i = 0; i < sets; ++i) inputs.emplace_back(memory, rows, width);
  const Tensor state = memory.F32({batch, heads, kHeadSize, kHeadSize});
  const Tensor bonus = memory.F32({heads, kHeadSize});
  std::vector<RowSpan> spans;
  for (int64_t i = 0; i < batch; ++i) {
    spans.push_back({static_cast<int32_t>(i), static_cast<int32_t>(i * tokens), static_cast<int32_t>(tokens), 0});
  }
  bench.Measure(name, memory, sets, inputs[0].out, {.bytes = bytes, .units = static_cast<double>(rows * heads)}, goal,
                [&](int set) {
                  const WkvInputs& in = inputs[set];
                  bench.backend().WkvForward(in.r, in.k, in.v, in.w, bonus, spans, state, {}, in.out);
                });
}

void WkvDecode(Bench& bench, int64_t width, const Goal& goal) {
  const int64_t sequences = bench.Size(128, 3), heads = width / kHeadSize;
  const std::string name = absl::StrCat("WKV decode, ", sequences, " sequences D=", width);
  if (!bench.Wants(name)) return;
  Memory memory(bench.backend());
  // The rows are not counted.
  const double bytes = 2.0 * 4 * static_cast<double>(sequences * width * kHeadSize);
  const int sets = bench.Sets(bytes);
  const WkvInputs in(memory, sequences, width);
  const Tensor state = memory.F32({sets * sequences, heads, kHeadSize, kHeadSize});
  const Tensor bonus = memory.F32({heads, kHeadSize});
  std::vector<std::vector<RowSpan>> spans(sets);
  for (int set = 0; set < sets; ++set) {
    for (int64_t i = 0; i < sequences; ++i) {
      spans[set].push_back({static_cast<int32_t>(set * sequences + i), static_cast<int32_t>(i), 1, 0});
    }
  }
  bench.Measure(name, memory, sets, in.out, {.bytes = bytes}, goal, [&](int set) {
    bench.backend().WkvForward(in.r, in.k, in.v, in.w, bonus, spans[set], state, {}, in.out);
  });
}

struct RowsInOut {
  Tensor x;
  Tensor gate;
  Tensor out;
};

void DdLerp(Bench& bench, int64_t full_rows, int64_t width, const Goal& goal) {
  const int64_t rows = bench.Size(full_rows, 20);
  const std::string name = absl::StrCat("ddlerp and LoRA, 5 targets, ", rows, " rows D=", width);
  if (!bench.Wants(name)) return;
  Memory memory(bench.backend());
  constexpr int64_t kTargets = kDdLerpTargets;
  const auto elements = static_cast<double>(rows * width);
  const double bytes = (1 + kTargets) * elements * bench.act_bytes();
  const int sets = bench.Sets(bytes);
  std::vector<RowsInOut> inputs(sets);
  for (RowsInOut& in : inputs) {
    in.x = memory.Act({rows, width});
    in.out = memory.New(bench.act(), {kTargets, rows, width});
  }
  const Tensor shift = memory.F32({1, width});
  const DdLerpWeights weights = {.mix_x = memory.F32({width}, 0, 1),
                                 .down = {memory.Weight({width, kTargets * kMixRank}, width), Matrix::Layout::kInOut},
                                 .up = memory.Weight({kTargets, kMixRank, width}, kMixRank),
                                 .mix = memory.F32({kTargets, width}, 0, 1)};
  const RowSpan span{0, 0, static_cast<int32_t>(rows), 0};
  const Work work{.bytes = bytes, .operations = 4 * elements * kTargets * kMixRank};
  bench.Measure(name, memory, sets, inputs[0].out, work, goal, [&](int set) {
    bench.backend().DdLerp(inputs[set].x, {&span, 1}, shift, weights, inputs[set].out);
  });
}

void TokenShift(Bench& bench, int64_t full_rows, int64_t width, const Goal& goal) {
  const int64_t rows = bench.Size(full_rows, 20), targets = 2;
  const std::string name = absl::StrCat("TokenShift, 2 targets, ", rows, " rows D=", width);
  if (!bench.Wants(name)) return;
  Memory memory(bench.backend());
  const double bytes = static_cast<double>((1 + targets) * rows * width) * bench.act_bytes();
  const int sets = bench.Sets(bytes);
  std::vector<RowsInOut> inputs(sets);
  for (RowsInOut& in : inputs) {
    in.x = memory.Act({rows, width});
    in.out = memory.New(bench.act(), {targets, rows, width});
  }
  const Tensor shift = memory.F32({1, width}), mix = memory.F32({targets, width}, 0, 1);
  const RowSpan span{0, 0, static_cast<int32_t>(rows), 0};
  bench.Measure(name, memory, sets, inputs[0].out, {.bytes = bytes}, goal, [&](int set) {
    bench.backend().TokenShift(inputs[set].x, {&span, 1}, shift, mix, inputs[set].out);
  });
}

// `groups` 1: a LayerNorm, of the residual stream, which is fp32.
void Norm(Bench& bench, int64_t full_rows, int64_t width, int groups, bool gated, const Goal& goal) {
  const int64_t rows = bench.Size(full_rows, 20);
  const std::string name =
      absl::StrCat(groups == 1 ? "LayerNorm of fp32" : "GroupNorm", gated ? ", gate, " : ", ", rows, " rows D=", width);
  if (!bench.Wants(name)) return;
  Memory memory(bench.backend());
  const DType from = groups == 1 ? DType::kF32 : bench.act();
  const double element_bytes = static_cast<double>(SizeOf(from)) + (gated ? 2 : 1) * bench.act_bytes();
  const double bytes = static_cast<double>(rows * width) * element_bytes;
  const int sets = bench.Sets(bytes);
  std::vector<RowsInOut> inputs(sets);
  for (RowsInOut& in : inputs) {
    in.x = memory.Random(from, {rows, width});
    if (gated) in.gate = memory.Act({rows, width});
    in.out = memory.New(bench.act(), {rows, width});
  }
  const NormWeights norm = memory.Norm(width);
  bench.Measure(name, memory, sets, inputs[0].out, {.bytes = bytes}, goal, [&](int set) {
    bench.backend().GroupNorm(inputs[set].x, groups, norm, 1e-5F, inputs[set].gate, inputs[set].out);
  });
}

// --- Attention -------------------------------------------------------------------------------------------------------

// Sequences of equal length over one pool, their pages in no order.
class Pool {
 public:
  explicit Pool(int64_t positions) : table_(positions / kPageTokens) {
    for (size_t i = 0; i < table_.size(); ++i) table_[i] = static_cast<int32_t>(i);
    for (size_t i = table_.size(); i > 1; --i) std::swap(table_[i - 1], table_[RandomBits()[i] % i]);
  }

  int64_t pages() const { return static_cast<int64_t>(table_.size()); }
  int64_t positions() const { return pages() * kPageTokens; }
  // The newest `rows` positions of a sequence.
  RowSpan Newest(int64_t sequence, int64_t positions, int64_t rows) const {
    const int32_t* table = table_.data() + sequence * (positions / kPageTokens);
    return {static_cast<int32_t>(sequence), 0, static_cast<int32_t>(rows), positions - rows, table, table};
  }

 private:
  std::vector<int32_t> table_;
};

struct GoldModel {
  GoldModel(Memory& memory, Bench& bench, const Pool& pool, int64_t width, int layer_count) : width(width) {
    const int64_t vocab = bench.Size(kVocab, 500), compressed = width / 16;
    shared = {.embedding = memory.Weight({vocab, width}, 3),
              .ln0 = memory.Norm(width),
              .key_compressed = {memory.Weight({width, compressed}, compressed)},
              .key_table = memory.Act({vocab, width})};
    const auto lora_down = [&] { return Matrix{memory.Weight({width, kLoraRank}, width), Matrix::Layout::kInOut}; };
    const auto lora_up = [&] { return Matrix{memory.Weight({kLoraRank, width}, kLoraRank), Matrix::Layout::kInOut}; };
    for (int i = 0; i < layer_count; ++i) {
      layers.push_back({.mix_lora = memory.F32({width}, 0, 1),
                        .mix_key = memory.F32({width}, 0, 1),
                        .mix_value = memory.F32({width}, 0, 1),
                        .mix_down = {memory.Weight({width, 2 * kMixRank}, width), Matrix::Layout::kInOut},
                        .mix_up = memory.Weight({2, kMixRank, width}, kMixRank),
                        .key_down = lora_down(),
                        .key_up = lora_up(),
                        .value_down = lora_down(),
                        .value_up = lora_up(),
                        .ln_key = memory.Norm(width),
                        .ln_value = memory.Norm(width),
                        .mix_table = memory.F32({vocab, 2, 2 * kMixRank})});
    }
    cache = {.ids = memory.Random(DType::kU16, {pool.pages(), kPageTokens}, 0, static_cast<double>(vocab) - 1),
             .c = memory.Random(DType::kBf16, {pool.pages(), kPageTokens, compressed})};
  }

  // Rebuilds keys and values of so many positions from an id, its rows of embedding, key table and mix table, and c.
  Work Rebuild(int64_t positions, double act_bytes) const {
    const auto d = static_cast<double>(width), n = static_cast<double>(positions);
    const double bytes = 2 + d * 2 + d * act_bytes + 2 * 2 * kMixRank * 4 + d / 16 * 2;
    const double multiply_adds = d * d / 16 + 2 * kMixRank * d + 4 * kLoraRank * d;
    return {.bytes = n * bytes, .operations = n * 2 * multiply_adds};
  }

  // Attends to shared rows: for each position an id, its row of the embedding, kk, tanh rows and statistics.
  Work Attend(int64_t positions, int64_t rows, double act_bytes) const {
    const auto d = static_cast<double>(width), n = static_cast<double>(positions);
    const double tanh_width = 2 * kMixRank + 2 * kLoraRank;
    const double bytes = 4 + d * 2 + (d + tanh_width) * act_bytes + 4 * 4;
    const double multiply_adds = 2 * kMixRank * d + static_cast<double>(rows) * 2 * d;
    return {.bytes = n * bytes, .operations = n * 2 * multiply_adds};
  }

  int64_t width;
  GoldSharedWeights shared;
  std::vector<GoldKvWeights> layers;
  GoldCache cache;
};

// The pool's positions as the shared tier keeps them, for all layers of the model.
GoldSharedRows KeepAll(Memory& memory, Bench& bench, const Pool& pool, const GoldModel& model) {
  Backend& backend = bench.backend();
  GoldSharedRows rows{.pages = pool.pages(), .page_tokens = kPageTokens};
  rows.page_bytes = backend.GoldSharedPageBytes(model.width, model.layers, kHeadSize, kPageTokens);
  const Tensor data = memory.New(DType::kF32, {rows.pages * rows.page_bytes / 4});
  if (!memory.status().ok()) return rows;
  rows.data = data.data;
  const RowSpan span = pool.Newest(0, pool.positions(), pool.positions());
  backend.GoldMakeSharedRows({&span, 1}, model.shared, model.layers, model.cache, kHeadSize, rows);
  return rows;
}

double KeyValueBytes(int64_t positions, int64_t width) { return 2.0 * 2 * static_cast<double>(positions * width); }

KvCache MakeKvCache(Memory& memory, const Pool& pool, int64_t width) {
  return {.keys = memory.Random(DType::kBf16, {pool.pages(), kPageTokens, width}),
          .values = memory.Random(DType::kBf16, {pool.pages(), kPageTokens, width})};
}

// One query row; the first length fills the pool.
void GoldAttention(Bench& bench, int64_t width, const std::vector<int64_t>& lengths, bool aims) {
  const std::string what = absl::StrCat("GOLD D=", width);
  if (!bench.Wants(what)) return;
  Memory memory(bench.backend());
  const Pool pool(*std::max_element(lengths.begin(), lengths.end()));
  const GoldModel model(memory, bench, pool, width, 1);
  const KvCache kv = MakeKvCache(memory, pool, width);
  const Tensor q = memory.Act({1, width}), out = memory.New(bench.act(), {1, width});
  const GoldSharedRows kept = KeepAll(memory, bench, pool, model);
  Backend& backend = bench.backend();
  for (int64_t length : lengths) {
    const auto sets = static_cast<int>(std::max<int64_t>(1, pool.positions() / length));
    const std::string where = absl::StrCat(what, ", ", Thousands(length), " positions, 1 row, ");
    const double t3 = bench.Measure(
        where + "full", memory, sets, out, {.bytes = KeyValueBytes(length, width)}, aims ? Goal::Ceiling(0.85) : Goal(),
        [&](int set) {
          const RowSpan span = pool.Newest(set, length, 1);
          backend.GoldMakeKeysValues({&span, 1}, model.shared, model.layers[0], model.cache, kHeadSize, kv);
          backend.KvAttention(q, {&span, 1}, kv, kHeadSize, out);
        });
    bench.Measure(where + "shared", memory, sets, out, model.Attend(length, 1, bench.act_bytes()),
                  aims && t3 > 0 ? Goal::Times(1.0, t3) : Goal(), [&](int set) {
                    const RowSpan span = pool.Newest(set, length, 1);
                    backend.GoldMakeSharedRows({&span, 1}, model.shared, model.layers, model.cache, kHeadSize, kept);
                    backend.GoldSharedAttention(q, {&span, 1}, model.shared, model.layers, 0, kept, kHeadSize, out);
                  });
    bench.Measure(where + "compressed", memory, sets, out, model.Rebuild(length, bench.act_bytes()),
                  aims && t3 > 0 ? Goal::Times(1.5, t3) : Goal(), [&](int set) {
                    const RowSpan span = pool.Newest(set, length, 1);
                    backend.GoldAttention(q, {&span, 1}, model.shared, model.layers[0], model.cache, kHeadSize, out);
                  });
  }
  const int64_t length = *std::min_element(lengths.begin(), lengths.end());
  Work work = model.Rebuild(length, bench.act_bytes());
  work.bytes += KeyValueBytes(length, width);
  const auto sets = static_cast<int>(pool.positions() / length);
  bench.Measure(absl::StrCat(what, ", keys and values of ", Thousands(length), " positions"), memory, sets, kv.keys,
                work, {}, [&](int set) {
                  const RowSpan span = pool.Newest(set, length, length);
                  backend.GoldMakeKeysValues({&span, 1}, model.shared, model.layers[0], model.cache, kHeadSize, kv);
                });
  work = model.Rebuild(length, bench.act_bytes());
  work.bytes += static_cast<double>(length * kept.page_bytes) / kPageTokens;
  bench.Measure(absl::StrCat(what, ", kept rows of ", Thousands(length), " positions"), memory, sets, {}, work, {},
                [&](int set) {
                  const RowSpan span = pool.Newest(set, length, length);
                  backend.GoldMakeSharedRows({&span, 1}, model.shared, model.layers, model.cache, kHeadSize, kept);
                });
}

// What a long prompt's pre-fill ends with: a few rows through every GOLD layer over all positions.
void GoldTail(Bench& bench, int64_t width, const Goal& goal) {
  const int64_t length = bench.Size(int64_t{1} << 20, 256), rows = 9;
  constexpr int kLayers = 8;
  const std::string name = absl::StrCat("GOLD tail, ", kLayers, " layers of ", rows, " rows, ", Thousands(length));
  if (!bench.Wants(name)) return;
  Memory memory(bench.backend());
  const Pool pool(length);
  const GoldModel model(memory, bench, pool, width, kLayers);
  const Tensor q = memory.Act({rows, width}), out = memory.New(bench.act(), {rows, width});
  Work work = model.Rebuild(length, bench.act_bytes());
  work.bytes *= kLayers;
  work.operations *= kLayers;
  const RowSpan span = pool.Newest(0, length, rows);
  bench.Measure(name, memory, 1, out, work, goal, [&](int) {
    for (const GoldKvWeights& layer : model.layers) {
      bench.backend().GoldAttention(q, {&span, 1}, model.shared, layer, model.cache, kHeadSize, out);
    }
  });
  const GoldSharedRows kept = KeepAll(memory, bench, pool, model);
  work = model.Attend(length, rows, bench.act_bytes());
  work.bytes *= kLayers;
  work.operations *= kLayers;
  bench.Measure(name + ", shared tier", memory, 1, out, work, goal, [&](int) {
    for (int layer = 0; layer < kLayers; ++layer) {
      bench.backend().GoldSharedAttention(q, {&span, 1}, model.shared, model.layers, layer, kept, kHeadSize, out);
    }
  });
}

void KvDecode(Bench& bench, int64_t width) {
  const int64_t batch = bench.Size(64, 3), length = bench.Size(4096, 128);
  const std::string name = absl::StrCat("KvAttention, ", batch, " sequences of ", Thousands(length), " D=", width);
  if (!bench.Wants(name)) return;
  Memory memory(bench.backend());
  const Pool pool(batch * length);
  const KvCache kv = MakeKvCache(memory, pool, width);
  const Tensor q = memory.Act({batch, width}), out = memory.New(bench.act(), {batch, width});
  std::vector<RowSpan> spans;
  for (int64_t i = 0; i < batch; ++i) {
    spans.push_back(pool.Newest(i, length, 1));
    spans.back().row_begin = static_cast<int32_t>(i);
  }
  bench.Measure(name, memory, 1, out, {.bytes = KeyValueBytes(batch * length, width)}, {},
                [&](int) { bench.backend().KvAttention(q, spans, kv, kHeadSize, out); });
}

void Rope(Bench& bench, int64_t full_rows, int64_t width) {
  const int64_t rows = bench.Size(full_rows, 20);
  const std::string name = absl::StrCat("Rope, ", rows, " rows D=", width);
  if (!bench.Wants(name)) return;
  Memory memory(bench.backend());
  const double bytes = 2.0 * static_cast<double>(rows * width) * bench.act_bytes();
  const int sets = bench.Sets(bytes);
  std::vector<Tensor> x(sets);
  for (Tensor& tensor : x) tensor = memory.Act({rows, width});
  const RowSpan span{0, 0, static_cast<int32_t>(rows), 1'000'000};
  bench.Measure(name, memory, sets, x[0], {.bytes = bytes}, {}, [&](int set) {
    bench.backend().Rope(x[set], {&span, 1}, kHeadSize, 10000);
  });
}

// --- Products and sampling -------------------------------------------------------------------------------------------

void MatMul(Bench& bench, int64_t rows, int64_t full_in, int64_t full_out) {
  const int64_t in = bench.Size(full_in, 64), columns = bench.Size(full_out, 96);
  const std::string name = absl::StrCat("MatMul, ", rows, " rows ", full_in, "x", full_out);
  if (!bench.Wants(name)) return;
  Memory memory(bench.backend());
  const double weight_bytes = 2.0 * static_cast<double>(in * columns);
  const int sets = bench.Sets(weight_bytes);
  std::vector<Matrix> weights(sets);
  for (Matrix& weight : weights) weight.data = memory.Weight({columns, in}, in);
  const Tensor x = memory.Act({rows, in}), out = memory.New(bench.act(), {rows, columns});
  const Work work{.bytes = weight_bytes + static_cast<double>(rows * (in + columns)) * bench.act_bytes(),
                  .operations = 2.0 * static_cast<double>(rows * in * columns)};
  bench.Measure(name, memory, sets, out, work, {}, [&](int set) { bench.backend().MatMul(x, weights[set], {}, out); });
}

// Waits for its result, so that the time of one call is all in it.
void Sample(Bench& bench, int64_t full_rows) {
  const int64_t rows = bench.Size(full_rows, 2), vocab = bench.Size(kVocab, 700);
  const std::string name = absl::StrCat("Sample, top_p 0.9, ", rows, " rows of ", vocab);
  if (!bench.Wants(name)) return;
  Memory memory(bench.backend());
  const double bytes = 4.0 * static_cast<double>(rows * vocab);
  const int sets = bench.Sets(bytes);
  std::vector<Tensor> logits(sets);
  for (Tensor& tensor : logits) tensor = memory.F32({rows, vocab}, -10, 10);
  std::vector<LogitChange> changes;
  for (int32_t i = 0; i < 64; ++i) changes.push_back({10 * i, -0.5});
  std::vector<SampleRow> how;
  for (int64_t i = 0; i < rows; ++i) {
    how.push_back({.top_p = 0.9, .uniform = (static_cast<double>(i) + 0.5) / static_cast<double>(rows)});
    how.back().changes = changes;
  }
  std::vector<int32_t> tokens(rows);
  bench.Measure(name, memory, sets, {}, {.bytes = bytes}, {}, [&](int set) {
    bench.backend().Sample(logits[set], vocab, {}, how, absl::MakeSpan(tokens));
    GF_CHECK_GE(*std::min_element(tokens.begin(), tokens.end()), 0);
  });
}

// What launching costs: as many ops as a decode step of 24 layers has, each shorter than its launch.
void Launching(Bench& bench, int64_t width) {
  const int64_t ops = bench.Size(300, 3);
  for (const bool repeats : {false, true}) {
    const std::string name =
        absl::StrCat("a step of ", ops, " ops of 1 row, ", repeats ? "repeated" : "launched one by one");
    if (!bench.Wants(name)) continue;
    Memory memory(bench.backend());
    const Tensor x = memory.F32({1, width}), out = memory.New(bench.act(), {1, width});
    const NormWeights norm = memory.Norm(width);
    bench.Measure(name, memory, 1, out, {}, {}, [&](int) {
      bench.backend().Submit(repeats, [&] {
        for (int64_t i = 0; i < ops; ++i) bench.backend().GroupNorm(x, 1, norm, 1e-5F, {}, out);
      });
    });
  }
}

// --- The table -------------------------------------------------------------------------------------------------------

void RowKernels(Bench& bench, int64_t rows, int64_t width, bool aims) {
  const Goal goal = aims ? Goal::Ceiling(0.75) : Goal();
  const int groups = static_cast<int>(width / kHeadSize);
  DdLerp(bench, rows, width, goal);
  Norm(bench, rows, width, groups, /*gated=*/true, goal);
  Norm(bench, rows, width, groups, /*gated=*/false, goal);
  Norm(bench, rows, width, 1, /*gated=*/true, goal);
  Norm(bench, rows, width, 1, /*gated=*/false, goal);
  TokenShift(bench, rows, width, goal);
}

void Run(Bench& bench) {
  bench.MeasureCeilings();
  const auto positions = [&](int64_t full) { return bench.Size(full, 256); };
  const int64_t width = bench.Size(2048, 128);

  WkvPrefill(bench, 1, width, Goal::Nanoseconds(0.5));
  WkvPrefill(bench, 8, width, Goal::Nanoseconds(0.5));
  WkvDecode(bench, width, Goal::Ceiling(0.8));
  RowKernels(bench, 8192, width, /*aims=*/true);
  GoldAttention(bench, width, {positions(32 << 10), positions(128 << 10), positions(1 << 20)}, /*aims=*/true);
  GoldTail(bench, width, Goal::Seconds(0.06));

  for (int64_t rows : {1, 8, 64, 4096}) {
    const int64_t some_rows = std::min(rows, bench.Size(4096, 70));
    MatMul(bench, some_rows, 2048, 2048);
    MatMul(bench, some_rows, 2048, 7168);
  }
  Launching(bench, width);
  Sample(bench, 256);
  Sample(bench, 1);
  KvDecode(bench, width);
  Rope(bench, 8192, width);
  if (bench.Size(1, 0) == 0) return;
  for (int64_t wide : {4096, 8192}) {
    WkvPrefill(bench, 1, wide, {});
    WkvDecode(bench, wide, {});
    RowKernels(bench, wide == 4096 ? 4096 : 2048, wide, /*aims=*/false);
    GoldAttention(bench, wide, {32 << 10, (512 << 20) / wide}, /*aims=*/false);
    KvDecode(bench, wide);
    Rope(bench, 4096, wide);
  }
}

int Main(int argc, char** argv) {
  BenchOptions options;
  CLI::App app{"Measures every kernel beside what the device can do. Without a device: says SKIPPED, and why."};
  AddBenchFlags(app, options);
  CLI11_PARSE(app, argc, argv);

  std::unique_ptr<Backend> backend;
  nlohmann::json json;
  if (options.device == "cpu") {
    backend = MakeCpuBackend(/*threads=*/0);
  } else if (auto made = MakeCudaBackend({.activation_dtype = DType::kBf16}); made.ok()) {
    backend = *std::move(made);
  } else {
    absl::PrintF("SKIPPED: %s\n", made.status().message());
    json = {{"skipped", std::string(made.status().message())}};
  }
  if (backend != nullptr) {
    Bench bench(*backend, options);
    Run(bench);
    json = bench.Json();
  }
  return ExitStatus(WriteJson(options.json, json));
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) { return goldfinch::Main(argc, argv); }
