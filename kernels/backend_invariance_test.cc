// Batch invariance, bit for bit: the rows of a sequence give the same results whatever rows share their calls, however
// the sequence is cut into calls, and whatever the number of threads.
#include <algorithm>
#include <cmath>
#include <functional>

#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

struct Piece {
  int sequence;
  int64_t begin;
  int64_t count;
};
using Plan = std::vector<std::vector<Piece>>;  // one entry a call

struct Call {
  std::vector<Piece> pieces;
  std::vector<RowSpan> spans = {};
  int64_t rows = 0;

  // The call's rows of `sequences`.
  Values Gather(const std::vector<Values>& sequences, int64_t width) const {
    Values gathered;
    for (const Piece& piece : pieces) {
      const auto begin = sequences[piece.sequence].begin() + piece.begin * width;
      gathered.insert(gathered.end(), begin, begin + piece.count * width);
    }
    return gathered;
  }
};

// An op, or a few that belong together, over sequences of rows.
struct SequenceOp {
  int64_t width = 0;  // of an output row
  int64_t targets = 1;
  std::function<void(Device&)> begin = {};                // uploads weights and fresh states
  std::function<Tensor(Device&, const Call&)> call = {};  // [targets, rows, width]
  std::vector<Tensor> states = {};                        // set by `begin`
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
                            .pages = paging == nullptr ? nullptr : paging->table(piece.sequence)});
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

// Calls with pieces of some of the sequences, in any order. As decoding does it for the first rows: one row each.
Plan Cut(Random& random, const std::vector<int64_t>& lengths, int64_t single_rows) {
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
  const auto check = [&](int threads, const Plan& plan, const std::string& what) {
    const Outcome actual = Run(t.MakeDevice(threads), op, lengths, plan, paging);
    const std::string where = what + " on " + std::to_string(threads) + " threads";
    for (size_t i = 0; i < expected.rows.size(); ++i) {
      ExpectSame(actual.rows[i], expected.rows[i], where + ", rows " + std::to_string(i));
    }
    for (size_t i = 0; i < expected.states.size(); ++i) {
      ExpectSame(actual.states[i], expected.states[i], where + ", state " + std::to_string(i));
    }
  };
  check(2, Whole(lengths), "whole");
  check(3, Whole(lengths), "whole");
  check(1, OneByOne(lengths), "one by one");
  check(3, OneByOne(lengths), "one by one");
  check(1, Cut(t.random, lengths, 30), "one row, then cut");
  check(2, Cut(t.random, lengths, 0), "cut");
  check(3, Cut(t.random, lengths, 0), "cut");
}

const std::vector<int64_t> kLengths = {1, 83, 570};
const std::vector<int64_t> kShortLengths = {1, 7, 83, 210};

std::vector<Values> Rows(Random& random, const std::vector<int64_t>& lengths, int64_t width) {
  std::vector<Values> sequences;
  sequences.reserve(lengths.size());
  for (int64_t length : lengths) sequences.push_back(random.Normal(length * width, 1));
  return sequences;
}

// --- Rows -----------------------------------------------------------------------------------------------------------

TEST_P(BackendTest, MatMulIsInvariant) {
  struct Sizes {
    int64_t in, out;
  };
  for (Matrix::Layout layout : {Matrix::Layout::kOutIn, Matrix::Layout::kInOut}) {
    for (const Sizes& sizes : {Sizes{1030, 72}, Sizes{65, 17}, Sizes{40, 130}}) {
      const int64_t in = sizes.in, out = sizes.out;
      const std::vector<Values> x = Rows(random, kLengths, in);
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
        const Tensor result = device.New({call.rows, out});
        device->MatMul(device.Put(call.Gather(x, in), {call.rows, in}), matrix,
                       {.activation = Activation::kSilu, .bias = bias_tensor}, result);
        return result;
      };
      ExpectInvariant(*this, op, kLengths);
    }
  }
}

TEST_P(BackendTest, GroupNormIsInvariant) {
  const int64_t width = 210;
  const std::vector<Values> x = Rows(random, kLengths, width), gate = Rows(random, kLengths, width);
  const reference::Norm norm{random.Normal(width, 1), random.Normal(width, 1)};
  NormWeights weights;
  SequenceOp op{.width = width};
  op.begin = [&](Device& device) { weights = device.Put(norm); };
  op.call = [&](Device& device, const Call& call) {
    const Shape shape{call.rows, width};
    const Tensor out = device.New(shape);
    device->GroupNorm(device.Put(call.Gather(x, width), shape), 3, weights, 1e-5f,
                      device.Put(call.Gather(gate, width), shape), out);
    return out;
  };
  ExpectInvariant(*this, op, kLengths);
}

TEST_P(BackendTest, RopeIsInvariant) {
  const int64_t width = 64;
  const std::vector<Values> x = Rows(random, kLengths, width);
  SequenceOp op{.width = width};
  op.begin = [](Device&) {};
  op.call = [&](Device& device, const Call& call) {
    const Tensor rows = device.Put(call.Gather(x, width), {call.rows, width});
    device->Rope(rows, call.spans, 32, 10000);
    return rows;
  };
  ExpectInvariant(*this, op, kLengths);
}

TEST_P(BackendTest, GoldKeyTableRowsIsInvariant) {
  const int64_t width = 80, vocab = 300;
  const reference::GoldLayer layer = RandomGoldLayer(random, {.width = width, .vocab = vocab}, weight_dtype());
  const std::vector<int64_t> lengths = {1, 60, 239};
  // The rows of the sequences are all ids, in order.
  const auto id = [&](const Piece& piece, int64_t i) {
    return static_cast<int32_t>(i + piece.begin + (piece.sequence > 0 ? 1 : 0) + (piece.sequence > 1 ? 60 : 0));
  };
  Tensor embedding;
  Matrix key_x0;
  NormWeights ln0;
  SequenceOp op{.width = width};
  op.begin = [&](Device& device) {
    embedding = device.Put(layer.embedding, {vocab, width}, weight_dtype());
    key_x0 = device.Put(layer.key_x0, weight_dtype());
    ln0 = device.Put(layer.ln0);
  };
  op.call = [&](Device& device, const Call& call) {
    std::vector<int32_t> ids;
    for (const Piece& piece : call.pieces) {
      for (int64_t i = 0; i < piece.count; ++i) ids.push_back(id(piece, i));
    }
    const Tensor table = device.New({vocab, width}), out = device.New({call.rows, width});
    device->GoldKeyTableRows(ids, embedding, ln0, key_x0, table);
    device->Embed(table, ids, out);
    return out;
  };
  ExpectInvariant(*this, op, lengths);
}

// --- States ---------------------------------------------------------------------------------------------------------

TEST_P(BackendTest, TokenShiftIsInvariant) {
  const int64_t width = 70, targets = 3, slots = 6;
  const std::vector<Values> x = Rows(random, kLengths, width);
  const Values shift = random.Normal(slots * width, 1), mix = random.Uniform(targets * width, 0, 1);
  Tensor mix_tensor;
  SequenceOp op{.width = width, .targets = targets};
  op.begin = [&](Device& device) {
    op.states = {device.Put(shift, {slots, width})};
    mix_tensor = device.Put(mix, {targets, width});
  };
  op.call = [&](Device& device, const Call& call) {
    const Tensor out = device.New({targets, call.rows, width});
    device->TokenShift(device.Put(call.Gather(x, width), {call.rows, width}), call.spans, op.states[0], mix_tensor,
                       out);
    return out;
  };
  ExpectInvariant(*this, op, kLengths);
}

TEST_P(BackendTest, DdLerpIsInvariant) {
  const int64_t width = 136, targets = 5, rank = 12, slots = 6;
  const std::vector<Values> x = Rows(random, kLengths, width);
  const Values shift = random.Normal(slots * width, 1), mix_x = random.Uniform(width, 0, 1);
  const Values mix = random.Uniform(targets * width, 0, 1);
  const reference::Weight down{random.Normal(width * targets * rank, 0.1, weight_dtype()), width, targets * rank,
                               Matrix::Layout::kInOut};
  const Values up = random.Normal(targets * rank * width, 0.3, weight_dtype());
  DdLerpWeights weights;
  SequenceOp op{.width = width, .targets = targets};
  op.begin = [&](Device& device) {
    op.states = {device.Put(shift, {slots, width})};
    weights = {.mix_x = device.Put(mix_x, {width}),
               .down = device.Put(down, weight_dtype()),
               .up = device.Put(up, {targets, rank, width}, weight_dtype()),
               .mix = device.Put(mix, {targets, width})};
  };
  op.call = [&](Device& device, const Call& call) {
    const Tensor out = device.New({targets, call.rows, width});
    device->DdLerp(device.Put(call.Gather(x, width), {call.rows, width}), call.spans, op.states[0], weights, out);
    return out;
  };
  ExpectInvariant(*this, op, kLengths);
}

TEST_P(BackendTest, WkvIsInvariant) {
  for (int64_t head_size : {16, 32, 64}) {
    const int64_t heads = 2, width = heads * head_size, slots = 6;
    const std::vector<Values> r = Rows(random, kLengths, width), k = Rows(random, kLengths, width);
    const std::vector<Values> v = Rows(random, kLengths, width), w = Rows(random, kLengths, width);
    const Values state = random.Normal(slots * width * head_size, 1), bonus = random.Normal(width, 1);
    Tensor bonus_tensor;
    SequenceOp op{.width = width};
    op.begin = [&](Device& device) {
      op.states = {device.Put(state, {slots, heads, head_size, head_size})};
      bonus_tensor = device.Put(bonus, {heads, head_size});
    };
    op.call = [&](Device& device, const Call& call) {
      const Shape shape{call.rows, width};
      const Tensor out = device.New(shape);
      const auto put = [&](const std::vector<Values>& rows) { return device.Put(call.Gather(rows, width), shape); };
      device->WkvForward(put(r), put(k), put(v), put(w), bonus_tensor, call.spans, op.states[0],
                         {.one_minus_decay_keys = head_size == 32}, out);
      return out;
    };
    ExpectInvariant(*this, op, kLengths);
  }
}

// --- Attention ------------------------------------------------------------------------------------------------------

void ExpectKvAttentionInvariant(BackendTest& t, const std::vector<int64_t>& lengths, int64_t width, int head_size) {
  const int64_t page_tokens = 37;
  const std::vector<Values> q = Rows(t.random, lengths, width), k = Rows(t.random, lengths, width);
  const std::vector<Values> v = Rows(t.random, lengths, width);
  const Paging paging(t.random, page_tokens, lengths);
  SequenceOp op{.width = width};
  op.begin = [&](Device& device) {
    const Shape shape{paging.pages(), page_tokens, width};
    op.states = {device.New(t.cache_dtype(), shape), device.New(t.cache_dtype(), shape)};
  };
  op.call = [&](Device& device, const Call& call) {
    const Shape shape{call.rows, width};
    const KvCache cache{op.states[0], op.states[1]};
    const Tensor out = device.New(shape);
    device->KvAppend(device.Put(call.Gather(k, width), shape), device.Put(call.Gather(v, width), shape), call.spans,
                     cache);
    device->KvAttention(device.Put(call.Gather(q, width), shape), call.spans, cache, head_size, out);
    return out;
  };
  ExpectInvariant(t, op, lengths, &paging);
}

TEST_P(BackendTest, KvAttentionIsInvariant) {
  ExpectKvAttentionInvariant(*this, kLengths, 64, 32);
  ExpectKvAttentionInvariant(*this, kShortLengths, 96, 48);
}

// So many rows that back ends have to attend to the context in several steps.
TEST_P(BackendTest, KvAttentionOfManyRowsIsInvariant) {
  if (GetParam().thorough) ExpectKvAttentionInvariant(*this, {1500, 3}, 256, 128);
}

TEST_P(BackendTest, GoldAttentionIsInvariant) {
  const int64_t width = 64, page_tokens = 37;
  const reference::GoldLayer layer =
      RandomGoldLayer(random, {.width = width, .head_size = 32, .rope_base = 10000}, weight_dtype());
  const std::vector<Values> q = Rows(random, kShortLengths, width), c = Rows(random, kShortLengths, width / 16);
  std::vector<Values> ids;
  ids.reserve(kShortLengths.size());
  for (int64_t length : kShortLengths) ids.push_back(IdValues(random.Ids(length, 100)));
  const Paging paging(random, page_tokens, kShortLengths);
  GoldShared shared;
  GoldKvWeights weights;
  SequenceOp op{.width = width};
  op.begin = [&](Device& device) {
    op.states = {device.New(DType::kU16, {paging.pages(), page_tokens}),
                 device.New(cache_dtype(), {paging.pages(), page_tokens, width / 16})};
    shared = PutGoldShared(device, layer, weight_dtype());
    weights = PutGoldWeights(device, layer, weight_dtype());
  };
  op.call = [&](Device& device, const Call& call) {
    const GoldCache cache{op.states[0], op.states[1]};
    const Values call_ids = call.Gather(ids, 1);
    const Tensor out = device.New({call.rows, width});
    device->GoldAppend(std::vector<int32_t>(call_ids.begin(), call_ids.end()),
                       device.Put(call.Gather(c, width / 16), {call.rows, width / 16}), call.spans, cache);
    device->GoldAttention(device.Put(call.Gather(q, width), {call.rows, width}), call.spans, shared, weights, cache, 32,
                          out);
    return out;
  };
  ExpectInvariant(*this, op, kShortLengths, &paging);
}

}  // namespace
}  // namespace goldfinch
