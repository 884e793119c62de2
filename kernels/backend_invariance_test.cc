// Batch invariance: the rows of a sequence give the same results whatever rows share their calls, however the sequence
// is cut into calls, and whatever the number of threads: bit for bit if Case::bit_invariant, else to the tolerance.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>

#include "kernels/backend_test_util.h"
#include "kernels/paged_test_util.h"

namespace goldfinch {
namespace {

struct Piece {
  int sequence;
  int64_t begin;
  int64_t count;
};
using Plan = std::vector<std::vector<Piece>>;  // one entry for each call

struct Call {
  std::vector<Piece> pieces;
  std::vector<RowSpan> spans = {};
  int64_t rows = 0;

  // The rows of `sequences` that are in this call.
  Values Gather(const std::vector<Values>& sequences, int64_t width) const {
    Values gathered;
    for (const Piece& piece : pieces) {
      const auto begin = sequences[piece.sequence].begin() + piece.begin * width;
      gathered.insert(gathered.end(), begin, begin + piece.count * width);
    }
    return gathered;
  }
  // The same rows on the device, in the type of activations.
  Tensor Put(Device& device, const std::vector<Values>& sequences, int64_t width) const {
    return device.Put(Gather(sequences, width), {rows, width}, device->activation_dtype());
  }
};

// An op, or a few that belong together, over sequences of rows.
struct SequenceOp {
  int64_t width = 0;  // width of an output row
  int64_t targets = 1;
  std::function<void(Device&)> begin = {};                // uploads weights and fresh states
  std::function<Tensor(Device&, const Call&)> call = {};  // [targets, rows, width]
  std::vector<Tensor> states = {};                        // set by `begin`
  bool copied_states = true;  // the states are copies of inputs, not results: exact on every back end
};

struct Outcome {
  std::vector<Values> rows;  // by sequence and target
  std::vector<Values> states;
};

Outcome Run(Device device, SequenceOp& op, const std::vector<int64_t>& lengths, const Plan& plan,
            const Paging* paging) {
  Outcome outcome;
  for (int64_t length : lengths) outcome.rows.insert(outcome.rows.end(), op.targets, Values(length * op.width));
  op.begin(device);
  for (const std::vector<Piece>& pieces : plan) {
    Call call{.pieces = pieces};
    for (const Piece& piece : pieces) {
      call.spans.push_back({.slot = 2 * piece.sequence + 1,
                            .row_begin = static_cast<int32_t>(call.rows),
                            .row_count = static_cast<int32_t>(piece.count),
                            .position = piece.begin,
                            .pages = paging == nullptr ? nullptr : paging->table(piece.sequence),
                            .kept_pages = paging == nullptr ? nullptr : paging->table(piece.sequence)});
      call.rows += piece.count;
    }
    const Values out = device.Get(op.call(device, call));
    for (size_t i = 0; i < pieces.size(); ++i) {
      for (int64_t target = 0; target < op.targets; ++target) {
        const auto from = out.begin() + (target * call.rows + call.spans[i].row_begin) * op.width;
        Values& rows = outcome.rows[pieces[i].sequence * op.targets + target];
        std::copy(from, from + pieces[i].count * op.width, rows.begin() + pieces[i].begin * op.width);
      }
    }
  }
  for (const Tensor& state : op.states) outcome.states.push_back(device.Get(state));
  return outcome;
}

Plan Whole(const std::vector<int64_t>& lengths) {
  Plan plan(1);
  for (size_t i = 0; i < lengths.size(); ++i) plan[0].push_back({static_cast<int>(i), 0, lengths[i]});
  return plan;
}

Plan OneByOne(const std::vector<int64_t>& lengths) {
  Plan plan;
  for (size_t i = 0; i < lengths.size(); ++i) plan.push_back({{static_cast<int>(i), 0, lengths[i]}});
  return plan;
}

// Calls with pieces of some of the sequences, in any order. The first `single_rows` rows of a sequence come one in each
// call, as in decoding.
Plan Cut(TestRandom& random, const std::vector<int64_t>& lengths, int64_t single_rows) {
  constexpr int64_t kCounts[] = {1, 2, 3, 5, 6, 7, 11, 16, 64, 65, 130, 400};
  std::vector<int64_t> done(lengths.size());
  Plan plan;
  while (done != lengths) {
    std::vector<Piece> pieces;
    for (int sequence : random.Permutation(static_cast<int64_t>(lengths.size()))) {
      const int64_t left = lengths[sequence] - done[sequence];
      if (left == 0 || random.Below(4) == 0) continue;
      const int64_t count =
          done[sequence] < single_rows ? 1 : std::min(left, kCounts[random.Below(std::size(kCounts))]);
      pieces.push_back({sequence, done[sequence], count});
      done[sequence] += count;
    }
    if (!pieces.empty()) plan.push_back(pieces);
  }
  return plan;
}

void ExpectInvariant(BackendTest& t, SequenceOp& op, const std::vector<int64_t>& lengths,
                     const Paging* paging = nullptr) {
  const Outcome expected = Run(t.MakeDevice(1), op, lengths, Whole(lengths), paging);
  const auto expect_alike = [&](const Values& actual, const Values& before, bool copied, const std::string& what) {
    if (copied || t.GetParam().bit_invariant) {
      ExpectSame(actual, before, what);
    } else {
      ExpectClose(actual, before, op.width, 2 * t.tolerance(), what);  // each may be that far from the exact result
    }
  };
  const auto check = [&](int threads, const Plan& plan, const std::string& what) {
    const Outcome actual = Run(t.MakeDevice(threads), op, lengths, plan, paging);
    const std::string where = what + " on " + std::to_string(threads) + " threads";
    for (size_t i = 0; i < expected.rows.size(); ++i) {
      expect_alike(actual.rows[i], expected.rows[i], false, where + ", rows " + std::to_string(i));
    }
    for (size_t i = 0; i < expected.states.size(); ++i) {
      expect_alike(actual.states[i], expected.states[i], op.copied_states, where + ", state " + std::to_string(i));
    }
  };
  check(1, OneByOne(lengths), "one by one");
  check(1, Cut(t.random, lengths, t.slow() ? 10 : 30), "one row, then cut");
  check(2, Cut(t.random, lengths, 0), "cut");
  if (t.slow()) return;
  check(2, Whole(lengths), "whole");
  check(3, Whole(lengths), "whole");
  check(3, OneByOne(lengths), "one by one");
  check(3, Cut(t.random, lengths, 0), "cut");
}

std::vector<int64_t> LongLengths(const BackendTest& t) {
  return t.slow() ? std::vector<int64_t>{1, 19, 70} : std::vector<int64_t>{1, 83, 570};
}
std::vector<int64_t> ShortLengths(const BackendTest& t) {
  return t.slow() ? std::vector<int64_t>{1, 7, 70} : std::vector<int64_t>{1, 7, 83, 210};
}

// Random rows in the type of activations.
std::vector<Values> Rows(BackendTest& t, const std::vector<int64_t>& lengths, int64_t width) {
  std::vector<Values> sequences;
  sequences.reserve(lengths.size());
  for (int64_t length : lengths) sequences.push_back(t.random.Normal(length * width, 1, t.act()));
  return sequences;
}

// --- Rows -----------------------------------------------------------------------------------------------------------

TEST_P(BackendTest, MatMulIsInvariant) {
  const std::vector<int64_t> lengths = LongLengths(*this);
  struct Sizes {
    int64_t in, out;
  };
  for (Matrix::Layout layout : {Matrix::Layout::kOutIn, Matrix::Layout::kInOut}) {
    for (const Sizes& sizes : {Sizes{1030, 72}, Sizes{65, 17}, Sizes{40, 130}}) {
      if (TooSlow(90 * sizes.in * sizes.out)) continue;
      const int64_t in = sizes.in, out = sizes.out;
      const std::vector<Values> x = Rows(*this, lengths, in);
      const reference::Weight weight{random.Normal(in * out, 1 / std::sqrt(in), weight_dtype()), in, out, layout};
      const Values bias = random.Normal(out, 1);
      Matrix matrix;
      Tensor bias_tensor;
      SequenceOp op{.width = out};
      op.begin = [&](Device& device) {
        matrix = device.Put(weight, weight_dtype());
        bias_tensor = device.Put(bias, {out});
      };
      op.call = [&](Device& device, const Call& call) {
        const Tensor result = device.New(act(), {call.rows, out});
        device->MatMul(call.Put(device, x, in), matrix, {.activation = Activation::kSilu, .bias = bias_tensor}, result);
        return result;
      };
      ExpectInvariant(*this, op, lengths);
    }
  }
}

TEST_P(BackendTest, GroupNormIsInvariant) {
  const std::vector<int64_t> lengths = LongLengths(*this);
  const int64_t width = 210;
  const std::vector<Values> x = Rows(*this, lengths, width), gate = Rows(*this, lengths, width);
  const reference::Norm norm{random.Normal(width, 1), random.Normal(width, 1)};
  NormWeights weights;
  SequenceOp op{.width = width};
  op.begin = [&](Device& device) { weights = device.Put(norm); };
  op.call = [&](Device& device, const Call& call) {
    const Shape shape{call.rows, width};
    const Tensor out = device.New(act(), shape);
    device->GroupNorm(call.Put(device, x, width), 3, weights, 1e-5f, call.Put(device, gate, width), out);
    return out;
  };
  ExpectInvariant(*this, op, lengths);
}

TEST_P(BackendTest, RopeIsInvariant) {
  const std::vector<int64_t> lengths = LongLengths(*this);
  const int64_t width = 64;
  const std::vector<Values> x = Rows(*this, lengths, width);
  SequenceOp op{.width = width};
  op.begin = [](Device&) {};
  op.call = [&](Device& device, const Call& call) {
    const Tensor rows = call.Put(device, x, width);
    device->Rope(rows, call.spans, 32, 10000);
    return rows;
  };
  ExpectInvariant(*this, op, lengths);
}

TEST_P(BackendTest, GoldTableRowsAreInvariant) {
  const int64_t width = slow() ? 32 : 80, vocab = slow() ? 101 : 300;
  const reference::GoldLayer layer = RandomGoldLayer(random, {.width = width, .vocab = vocab}, weight_dtype());
  const int64_t mix_width = 2 * layer.mix_down.out;
  const std::vector<int64_t> lengths = {1, 60, vocab - 61};
  // The rows of the sequences, one after another, are all ids in order.
  const auto id = [&](const Piece& piece, int64_t i) {
    return static_cast<int32_t>(i + piece.begin + (piece.sequence > 0 ? 1 : 0) + (piece.sequence > 1 ? 60 : 0));
  };
  Tensor embedding, mix_lora;
  Matrix key_x0, mix_down;
  NormWeights ln0;
  SequenceOp op;
  op.begin = [&](Device& device) {
    embedding = device.Put(layer.embedding, {vocab, width}, weight_dtype());
    key_x0 = device.Put(layer.key_x0, weight_dtype());
    ln0 = device.Put(layer.ln0);
    mix_lora = device.Put(layer.mix_lora, {width});
    mix_down = device.Put(layer.mix_down, weight_dtype());
  };
  const auto read = [&](Device& device, const Call& call, bool keys) {
    std::vector<int32_t> ids;
    for (const Piece& piece : call.pieces) {
      for (int64_t i = 0; i < piece.count; ++i) ids.push_back(id(piece, i));
    }
    Tensor table = keys ? device.New(act(), {vocab, width}) : device.New({vocab, 2, layer.mix_down.out});
    if (keys) {
      device->GoldKeyTableRows(ids, embedding, ln0, key_x0, table);
    } else {
      device->GoldMixTableRows(ids, embedding, ln0, mix_lora, mix_down, table);
      table.shape = {vocab, mix_width};
    }
    const Tensor out = device.New({call.rows, table.dim(1)});
    device->Embed(table, ids, out);
    return out;
  };
  op.width = width;
  op.call = [&](Device& device, const Call& call) { return read(device, call, true); };
  ExpectInvariant(*this, op, lengths);
  op.width = mix_width;
  op.call = [&](Device& device, const Call& call) { return read(device, call, false); };
  ExpectInvariant(*this, op, lengths);
}

// --- States ---------------------------------------------------------------------------------------------------------

TEST_P(BackendTest, TokenShiftIsInvariant) {
  const std::vector<int64_t> lengths = LongLengths(*this);
  const int64_t width = 70, targets = 3, slots = 6;
  const std::vector<Values> x = Rows(*this, lengths, width);
  const Values shift = random.Normal(slots * width, 1), mix = random.Uniform(targets * width, 0, 1);
  Tensor mix_tensor;
  SequenceOp op{.width = width, .targets = targets};
  op.begin = [&](Device& device) {
    op.states = {device.Put(shift, {slots, width})};
    mix_tensor = device.Put(mix, {targets, width});
  };
  op.call = [&](Device& device, const Call& call) {
    const Tensor out = device.New(act(), {targets, call.rows, width});
    device->TokenShift(call.Put(device, x, width), call.spans, op.states[0], mix_tensor, out);
    return out;
  };
  ExpectInvariant(*this, op, lengths);
}

void ExpectDdLerpInvariant(BackendTest& t, int64_t width, int64_t rank) {
  const std::vector<int64_t> lengths = LongLengths(t);
  const int64_t targets = 5, slots = 6;
  const std::vector<Values> x = Rows(t, lengths, width);
  const Values shift = t.random.Normal(slots * width, 1), mix_x = t.random.Uniform(width, 0, 1);
  const Values mix = t.random.Uniform(targets * width, 0, 1);
  const reference::Weight down{t.random.Normal(width * targets * rank, 0.1, t.weight_dtype()), width, targets * rank,
                               Matrix::Layout::kInOut};
  const Values up = t.random.Normal(targets * rank * width, 0.3, t.weight_dtype());
  DdLerpWeights weights;
  SequenceOp op{.width = width, .targets = targets};
  op.begin = [&](Device& device) {
    op.states = {device.Put(shift, {slots, width})};
    weights = {.mix_x = device.Put(mix_x, {width}),
               .down = device.Put(down, t.weight_dtype()),
               .up = device.Put(up, {targets, rank, width}, t.weight_dtype()),
               .mix = device.Put(mix, {targets, width})};
  };
  op.call = [&](Device& device, const Call& call) {
    const Tensor out = device.New(t.act(), {targets, call.rows, width});
    device->DdLerp(call.Put(device, x, width), call.spans, op.states[0], weights, out);
    return out;
  };
  ExpectInvariant(t, op, lengths);
}

TEST_P(BackendTest, DdLerpIsInvariant) {
  ExpectDdLerpInvariant(*this, 136, 12);
  if (!slow()) ExpectDdLerpInvariant(*this, 576, 32);  // sizes that blocks of rows and columns divide
}

TEST_P(BackendTest, WkvIsInvariant) {
  const std::vector<int64_t> lengths = LongLengths(*this);
  for (int64_t head_size : {16, 32, 64}) {
    const int64_t heads = 2, width = heads * head_size, slots = 6;
    const std::vector<Values> r = Rows(*this, lengths, width), k = Rows(*this, lengths, width);
    const std::vector<Values> v = Rows(*this, lengths, width), w = Rows(*this, lengths, width);
    const Values state = random.Normal(slots * width * head_size, 1), bonus = random.Normal(width, 1);
    Tensor bonus_tensor;
    SequenceOp op{.width = width, .copied_states = false};
    op.begin = [&](Device& device) {
      op.states = {device.Put(state, {slots, heads, head_size, head_size})};
      bonus_tensor = device.Put(bonus, {heads, head_size});
    };
    op.call = [&](Device& device, const Call& call) {
      const Shape shape{call.rows, width};
      const Tensor out = device.New(act(), shape);
      const auto put = [&](const std::vector<Values>& rows) { return call.Put(device, rows, width); };
      device->WkvForward(put(r), put(k), put(v), put(w), bonus_tensor, call.spans, op.states[0],
                         {.one_minus_decay_keys = head_size == 32}, out);
      return out;
    };
    ExpectInvariant(*this, op, lengths);
  }
}

// --- Attention ------------------------------------------------------------------------------------------------------

void ExpectKvAttentionInvariant(BackendTest& t, const std::vector<int64_t>& lengths, int64_t width, int head_size) {
  const int64_t page_tokens = 37;
  const std::vector<Values> q = Rows(t, lengths, width), k = Rows(t, lengths, width);
  const std::vector<Values> v = Rows(t, lengths, width);
  const Paging paging(t.random, page_tokens, lengths);
  SequenceOp op{.width = width};
  op.begin = [&](Device& device) {
    const Shape shape{paging.pages(), page_tokens, width};
    op.states = {device.New(t.cache_dtype(), shape), device.New(t.cache_dtype(), shape)};
  };
  op.call = [&](Device& device, const Call& call) {
    const Shape shape{call.rows, width};
    const KvCache cache{op.states[0], op.states[1]};
    const Tensor out = device.New(t.act(), shape);
    device->KvAppend(call.Put(device, k, width), call.Put(device, v, width), call.spans, cache);
    device->KvAttention(call.Put(device, q, width), call.spans, cache, head_size, out);
    return out;
  };
  ExpectInvariant(t, op, lengths, &paging);
}

TEST_P(BackendTest, KvAttentionIsInvariant) {
  ExpectKvAttentionInvariant(*this, LongLengths(*this), 64, 32);
  ExpectKvAttentionInvariant(*this, ShortLengths(*this), 96, 48);
}

// So many rows that back ends must attend to the context in several parts.
TEST_P(BackendTest, KvAttentionOfManyRowsIsInvariant) {
  if (GetParam().thorough) ExpectKvAttentionInvariant(*this, {1500, 3}, 256, 128);
}

// Rows that are kept as the cache grows, and attention over them.
enum class Kept : uint8_t { kNothing, kRows, kKeysValues };

// Ops over a cache that grows from call to call.
void ExpectGoldAttentionInvariant(BackendTest& t, Kept kept) {
  const std::vector<int64_t> lengths = ShortLengths(t);
  const int64_t width = 64, page_tokens = kept == Kept::kRows ? 48 : 37;
  const reference::GoldLayer layer =
      RandomGoldLayer(t.random, {.width = width, .head_size = 32, .rope_base = 10000}, t.weight_dtype());
  const std::vector<Values> q = Rows(t, lengths, width), c = Rows(t, lengths, width / 16);
  std::vector<Values> ids;
  ids.reserve(lengths.size());
  for (int64_t length : lengths) ids.push_back(IdValues(t.random.Ids(length, 100)));
  const Paging paging(t.random, page_tokens, lengths);
  GoldSharedWeights shared;
  GoldKvWeights weights;
  std::vector<GoldKvWeights> layers;  // three layers, of which the second is used
  KvCache kv;
  GoldSharedRows rows;
  SequenceOp op{.width = width};
  op.begin = [&](Device& device) {
    const Shape shape{paging.pages(), page_tokens, width};
    op.states = {device.New(DType::kU16, {paging.pages(), page_tokens}),
                 device.New(t.cache_dtype(), {paging.pages(), page_tokens, width / 16})};
    kv = {device.New(t.cache_dtype(), shape), device.New(t.cache_dtype(), shape)};
    shared = PutGoldShared(device, layer, t.weight_dtype());
    weights = PutGoldWeights(device, layer, t.weight_dtype());
    if (kept != Kept::kRows) return;
    layers = {weights, weights, weights};
    rows = {.pages = paging.pages(), .page_tokens = page_tokens};
    rows.page_bytes = device->GoldSharedPageBytes(width, layers, 32, page_tokens);
    const Tensor memory = device.New({(rows.pages * rows.page_bytes + 256) / 4});
    rows.data = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data) + 255) / 256 * 256);
  };
  op.call = [&](Device& device, const Call& call) {
    const GoldCache cache{op.states[0], op.states[1]};
    const Values call_ids = call.Gather(ids, 1);
    const Tensor queries = call.Put(device, q, width), out = device.New(t.act(), {call.rows, width});
    device->GoldAppend(std::vector<int32_t>(call_ids.begin(), call_ids.end()), call.Put(device, c, width / 16),
                       call.spans, cache);
    if (kept == Kept::kRows) {
      device->GoldMakeSharedRows(call.spans, shared, layers, cache, 32, rows);
      device->GoldSharedAttention(queries, call.spans, shared, layers, 1, rows, 32, out);
    } else if (kept == Kept::kKeysValues) {
      device->GoldMakeKeysValues(call.spans, shared, weights, cache, 32, kv);
      device->KvAttention(queries, call.spans, kv, 32, out);
    } else {
      device->GoldAttention(queries, call.spans, shared, weights, cache, 32, out);
    }
    return out;
  };
  ExpectInvariant(t, op, lengths, &paging);
}

TEST_P(BackendTest, GoldAttentionIsInvariant) { ExpectGoldAttentionInvariant(*this, Kept::kNothing); }

TEST_P(BackendTest, GoldKeptRowsAreInvariant) {
  if (!slow()) ExpectGoldAttentionInvariant(*this, Kept::kRows);
}

TEST_P(BackendTest, GoldMakeKeysValuesAreInvariant) { ExpectGoldAttentionInvariant(*this, Kept::kKeysValues); }

}  // namespace
}  // namespace goldfinch
