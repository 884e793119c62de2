#include "kernels/backend_checks.h"

#include "base/check.h"
#include "kernels/quantize.h"

namespace goldfinch::checks {
namespace {

void HasShape(const ConstTensor& tensor, const Shape& shape, const char* what) {
  GF_CHECK(tensor.shape == shape) << what << " is " << tensor.shape.ToString() << ", expected " << shape.ToString();
}

void Is(const ConstTensor& tensor, DType dtype, const Shape& shape, const char* what) {
  HasShape(tensor, shape, what);
  GF_CHECK(tensor.dtype == dtype) << what << " is " << Name(tensor.dtype) << ", expected " << Name(dtype);
}

void Floats(const ConstTensor& tensor, const Shape& shape, const char* what) { Is(tensor, DType::kF32, shape, what); }

void FloatsOr(const ConstTensor& tensor, DType act, const Shape& shape, const char* what) {
  Is(tensor, tensor.dtype == DType::kF32 ? DType::kF32 : act, shape, what);
}

void Norm(const NormWeights& norm, int64_t width) {
  Floats(norm.weight, {width}, "norm weight");
  Floats(norm.bias, {width}, "norm bias");
}

// In order, covering every row.
void Spans(RowSpans spans, int64_t rows) {
  int64_t row = 0;
  for (const RowSpan& span : spans) {
    GF_CHECK_EQ(span.row_begin, row);
    GF_CHECK_GE(span.row_count, 1);
    GF_CHECK_GE(span.slot, 0);
    GF_CHECK_GE(span.position, 0);
    row += span.row_count;
  }
  GF_CHECK_EQ(row, rows);
}

void Slots(RowSpans spans, const Tensor& state) {
  for (const RowSpan& span : spans) GF_CHECK_LT(span.slot, state.dim(0));
}

void Heads(int64_t width, int head_size) {
  GF_CHECK(head_size > 0 && head_size <= 1024) << "head size " << head_size;
  GF_CHECK_EQ(head_size % 16, 0);
  GF_CHECK_EQ(width % head_size, 0);
}

// Every page that holds positions [from, to) of each span, `from` 0 or the span's own position, is one of the pool.
void Pages(RowSpans spans, int64_t pages, int64_t page_tokens, bool from_start,
           const int32_t* RowSpan::*table = &RowSpan::pages) {
  for (const RowSpan& span : spans) {
    GF_CHECK(span.*table != nullptr) << (table == &RowSpan::pages ? "no pages" : "no kept pages");
    const int64_t end = span.position + span.row_count;
    for (int64_t i = from_start ? 0 : span.position / page_tokens; i * page_tokens < end; ++i) {
      const int32_t page = (span.*table)[i];
      GF_CHECK(page >= 0 && page < pages) << "page " << page << " of " << pages;
    }
  }
}

void Ids(absl::Span<const int32_t> ids, int64_t limit) {
  for (int32_t id : ids) GF_CHECK(id >= 0 && id < limit) << "id " << id << ", the limit is " << limit;
}

void Lora(const Matrix& down, const Matrix& up, int64_t width) {
  HasShape(down.data, {width, down.out()}, "LoRA down");
  HasShape(up.data, {down.out(), width}, "LoRA up");
}

void ShiftOp(const ConstTensor& x, RowSpans spans, const Tensor& shift, const ConstTensor& mix, const Tensor& out,
             DType act) {
  Spans(spans, x.dim(0));
  Slots(spans, shift);
  Is(x, act, {x.dim(0), x.dim(1)}, "shift input");
  Floats(shift, {shift.dim(0), x.dim(1)}, "shift state");
  Floats(mix, {mix.dim(0), x.dim(1)}, "mix");
  Is(out, act, {mix.dim(0), x.dim(0), x.dim(1)}, "shifted rows");
}

void GoldWeights(const GoldSharedWeights& shared, const GoldKvWeights& weights, DType act) {
  const int64_t width = shared.embedding.dim(1), vocab = shared.embedding.dim(0), rank = weights.mix_up.dim(1);
  Norm(shared.ln0, width);
  Is(shared.key_table, act, {vocab, width}, "key table");
  for (ConstTensor mix : {weights.mix_lora, weights.mix_key, weights.mix_value}) Floats(mix, {width}, "mix");
  HasShape(weights.mix_up, {2, rank, width}, "mix LoRA up");
  HasShape(weights.mix_down.data, {width, 2 * rank}, "mix LoRA down");
  Floats(weights.mix_table, {vocab, 2, 2 * rank}, "mix table");
  Lora(weights.key_down, weights.key_up, width);
  Lora(weights.value_down, weights.value_up, width);
  Norm(weights.ln_key, width);
  Norm(weights.ln_value, width);
}

void GoldInputs(RowSpans spans, const GoldSharedWeights& shared, const GoldCache& cache) {
  Pages(spans, cache.ids.dim(0), cache.page_tokens(), true);
  const int64_t c_width = shared.key_compressed.in();
  HasShape(shared.key_compressed.data, {shared.embedding.dim(1), c_width}, "key projection of c");
  HasShape(cache.c, {cache.ids.dim(0), cache.page_tokens(), CompressedRowWidth(cache.c.dtype, c_width)},
           "compressed cache");
}

void KeptRows(const Backend& backend, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
              int head_size, const GoldSharedRows& rows) {
  const int64_t width = shared.embedding.dim(1);
  Heads(width, head_size);
  for (const GoldKvWeights& layer : layers) GoldWeights(shared, layer, backend.activation_dtype());
  GF_CHECK_GE(rows.page_tokens, 1);
  const int64_t least = backend.GoldSharedPageBytes(width, layers, head_size, rows.page_tokens);
  GF_CHECK(rows.page_bytes >= least && rows.page_bytes % 256 == 0)
      << "kept pages of " << rows.page_bytes << " bytes, expected a multiple of 256 from " << least << " on";
  GF_CHECK_EQ(reinterpret_cast<uintptr_t>(rows.data) % 256, 0u) << "kept rows are not aligned";
}

// Positions, not rows of a tensor.
int64_t PositionCount(RowSpans spans) {
  return spans.empty() ? 0 : int64_t{spans.back().row_begin} + spans.back().row_count;
}

}  // namespace

void Copy(ConstTensor from, Tensor to) { Is(from, to.dtype, to.shape, "copy"); }

void Embed(ConstTensor table, absl::Span<const int32_t> ids, Tensor out) {
  Floats(out, {static_cast<int64_t>(ids.size()), table.dim(1)}, "embedding output");
  Ids(ids, table.dim(0));
}

void CopyRows(ConstTensor from, absl::Span<const RowCopy> copies, Tensor to, DType act) {
  FloatsOr(from, act, {from.dim(0), to.dim(1)}, "rows to copy");
  FloatsOr(to, act, {to.dim(0), from.dim(1)}, "place of the copied rows");
  for (const RowCopy& copy : copies) {
    GF_CHECK(copy.from >= 0 && copy.from < from.dim(0)) << "row " << copy.from << " of " << from.dim(0);
    GF_CHECK(copy.to >= 0 && copy.to < to.dim(0)) << "row " << copy.to << " of " << to.dim(0);
  }
}

void Convert(ConstTensor from, Tensor to, DType act) {
  if (to.dtype == DType::kInt8) {
    FloatsOr(from, act, {to.dim(0), from.dim(1)}, "conversion input");
    HasShape(to, {from.dim(0), CompressedRowWidth(to.dtype, from.dim(1))}, "8-bit rows");
  } else {
    FloatsOr(from, act, to.shape, "conversion input");
  }
}

void GroupNorm(ConstTensor x, int groups, NormWeights norm, ConstTensor gate, Tensor out, DType act) {
  Norm(norm, x.dim(1));
  FloatsOr(x, act, {x.dim(0), x.dim(1)}, "norm input");
  FloatsOr(out, act, x.shape, "norm output");
  if (gate) Is(gate, act, x.shape, "norm gate");
  GF_CHECK_GE(groups, 1);
  GF_CHECK_EQ(x.dim(1) % groups, 0);
}

void MatMul(ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out, DType act) {
  if (IsQuantized(weight.data.dtype)) {
    const DType dtype = weight.data.dtype;
    const int64_t out = weight.out(), in = weight.in();
    const bool by_input = weight.layout == Matrix::Layout::kInOut;
    GF_CHECK(by_input ? CanQuantizeByInput(out, in) : CanQuantize(out, in)) << weight.data.shape.ToString();
    const ConstTensor scales = by_input ? QuantizedRowScales(dtype, out, in) : QuantizedScales(dtype, out, in);
    Is(weight.scales, scales.dtype, scales.shape, "scales");
  }
  FloatsOr(x, act, {x.dim(0), weight.in()}, "product input");
  FloatsOr(out, act, {x.dim(0), weight.out()}, "product output");
  if (epilogue.bias) Floats(epilogue.bias, {weight.out()}, "product bias");
  if (epilogue.multiply) FloatsOr(epilogue.multiply, act, out.shape, "product multiplier");
}

void TokenShift(ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out, DType act) {
  ShiftOp(x, spans, shift, mix, out, act);
}

void DdLerp(ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out, DType act) {
  ShiftOp(x, spans, shift, weights.mix, out, act);
  const int64_t width = x.dim(1), targets = weights.mix.dim(0), rank = weights.up.dim(1);
  Floats(weights.mix_x, {width}, "mix_x");
  HasShape(weights.up, {targets, rank, width}, "LoRA up");
  HasShape(weights.down.data, {width, targets * rank}, "LoRA down");
}

void WkvForward(ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus, RowSpans spans,
                Tensor state, Tensor out, DType act) {
  const int64_t rows = r.dim(0), width = r.dim(1), heads = state.dim(1), head_size = state.dim(2);
  Spans(spans, rows);
  Slots(spans, state);
  Heads(width, static_cast<int>(head_size));
  GF_CHECK_EQ(heads * head_size, width);
  Floats(state, {state.dim(0), heads, head_size, head_size}, "WKV state");
  Is(r, act, {rows, width}, "r");
  Is(k, act, r.shape, "k");
  Is(v, act, r.shape, "v");
  if (w.dtype == DType::kF32 && w.dim(0) == 1) {
    Floats(w, {1, width}, "w");
  } else {
    Is(w, act, {rows, width}, "w");
  }
  if (bonus) Floats(bonus, {heads, head_size}, "bonus");
  Is(out, act, r.shape, "wkv output");
}

void GoldAppend(absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache, DType act) {
  Spans(spans, c.dim(0));
  Pages(spans, cache.ids.dim(0), cache.page_tokens(), false);
  GF_CHECK_EQ(static_cast<int64_t>(ids.size()), c.dim(0));
  HasShape(cache.c, {cache.ids.dim(0), cache.page_tokens(), c.dim(1)}, "compressed cache");
  const bool rounds = cache.c.dtype != DType::kInt8;  // Convert makes rows of 8 bits
  GF_CHECK(c.dtype == cache.c.dtype || (rounds && (c.dtype == DType::kF32 || c.dtype == act)))
      << "rows of " << Name(c.dtype) << " into a cache of " << Name(cache.c.dtype);
  GF_CHECK(cache.ids.dtype == DType::kU16 || cache.ids.dtype == DType::kI32) << Name(cache.ids.dtype);
  Ids(ids, cache.ids.dtype == DType::kU16 ? int64_t{1} << 16 : int64_t{1} << 31);
}

void GoldKeyTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, Matrix key_x0,
                      Tensor table, DType act) {
  const int64_t width = embedding.dim(1);
  Norm(ln0, width);
  HasShape(key_x0.data, {width, width}, "key projection of x0");
  Is(table, act, {embedding.dim(0), width}, "key table");
  Ids(ids, table.dim(0));
}

void GoldMixTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, ConstTensor mix_lora,
                      Matrix mix_down, Tensor table) {
  const int64_t width = embedding.dim(1);
  Norm(ln0, width);
  Floats(mix_lora, {width}, "mix");
  HasShape(mix_down.data, {width, mix_down.out()}, "mix LoRA down");
  Floats(table, {embedding.dim(0), 2, mix_down.out()}, "mix table");
  Ids(ids, table.dim(0));
}

void GoldAttention(ConstTensor q, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                   const GoldCache& cache, int head_size, Tensor out, DType act) {
  Spans(spans, q.dim(0));
  GoldInputs(spans, shared, cache);
  Heads(q.dim(1), head_size);
  Is(q, act, {q.dim(0), shared.embedding.dim(1)}, "queries");
  Is(out, act, q.shape, "attention output");
  GoldWeights(shared, weights, act);
}

void GoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                        const GoldCache& cache, int head_size, const KvCache& kv, DType act) {
  Spans(spans, PositionCount(spans));
  GoldInputs(spans, shared, cache);
  Heads(shared.embedding.dim(1), head_size);
  HasShape(kv.keys, {kv.keys.dim(0), kv.page_tokens(), shared.embedding.dim(1)}, "key cache");
  Is(kv.values, kv.keys.dtype, kv.keys.shape, "value cache");
  Pages(spans, kv.keys.dim(0), kv.page_tokens(), false, &RowSpan::kept);
  GoldWeights(shared, weights, act);
}

void GoldMakeSharedRows(const Backend& backend, RowSpans spans, const GoldSharedWeights& shared,
                        absl::Span<const GoldKvWeights> layers, const GoldCache& cache, int head_size,
                        const GoldSharedRows& rows) {
  Spans(spans, PositionCount(spans));
  GoldInputs(spans, shared, cache);
  KeptRows(backend, shared, layers, head_size, rows);
  Pages(spans, rows.pages, rows.page_tokens, false, &RowSpan::kept);
}

void GoldSharedAttention(const Backend& backend, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                         absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows, int head_size,
                         Tensor out) {
  Spans(spans, q.dim(0));
  KeptRows(backend, shared, layers, head_size, rows);
  Pages(spans, rows.pages, rows.page_tokens, true, &RowSpan::kept);
  GF_CHECK(layer >= 0 && layer < static_cast<int>(layers.size())) << "layer " << layer << " of " << layers.size();
  Is(q, backend.activation_dtype(), {q.dim(0), shared.embedding.dim(1)}, "queries");
  Is(out, backend.activation_dtype(), q.shape, "attention output");
}

void Rope(Tensor x, RowSpans spans, int head_size, DType act) {
  Spans(spans, x.dim(0));
  Heads(x.dim(1), head_size);
  Is(x, act, {x.dim(0), x.dim(1)}, "rows to rotate");
}

void KvAppend(ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache, DType act) {
  Spans(spans, k.dim(0));
  Pages(spans, cache.keys.dim(0), cache.page_tokens(), false);
  Is(k, act, {k.dim(0), cache.keys.dim(2)}, "k");
  Is(v, act, k.shape, "v");
  Is(cache.values, cache.keys.dtype, cache.keys.shape, "value cache");
}

void KvAttention(ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out, DType act) {
  Spans(spans, q.dim(0));
  Pages(spans, cache.keys.dim(0), cache.page_tokens(), true);
  Heads(q.dim(1), head_size);
  Is(q, act, {q.dim(0), cache.keys.dim(2)}, "queries");
  Is(out, act, q.shape, "attention output");
  Is(cache.values, cache.keys.dtype, cache.keys.shape, "value cache");
}

void Sample(ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes, absl::Span<const SampleRow> rows,
            absl::Span<int32_t> tokens) {
  const auto count = static_cast<int64_t>(rows.size());
  Floats(logits, {count, logits.dim(1)}, "logits");
  GF_CHECK_EQ(static_cast<int64_t>(tokens.size()), count);
  GF_CHECK(limit >= 1 && limit <= logits.dim(1)) << "limit " << limit;
  Ids(holes, logits.dim(1));
  for (const SampleRow& row : rows) {
    GF_CHECK(row.uniform >= 0 && row.uniform < 1) << row.uniform;
    GF_CHECK(row.temperature >= 0 && row.top_k >= 0);
    Ids(row.banned, logits.dim(1));
    for (const LogitChange& change : row.changes) Ids({&change.id, 1}, logits.dim(1));
  }
}

}  // namespace goldfinch::checks
