#include "kernels/backend.h"

#include "base/check.h"
#include "kernels/quantize.h"

namespace goldfinch {
namespace {

void CheckShape(const ConstTensor& tensor, const Shape& shape, const char* what) {
  GF_CHECK(tensor.shape == shape) << what << " is " << tensor.shape.ToString() << ", expected " << shape.ToString();
}

void CheckTensor(const ConstTensor& tensor, DType dtype, const Shape& shape, const char* what) {
  CheckShape(tensor, shape, what);
  GF_CHECK(tensor.dtype == dtype) << what << " is " << Name(tensor.dtype) << ", expected " << Name(dtype);
}

void CheckFloats(const ConstTensor& tensor, const Shape& shape, const char* what) {
  CheckTensor(tensor, DType::kF32, shape, what);
}

// fp32, or the type of activations.
void CheckFloatsOr(const ConstTensor& tensor, DType act, const Shape& shape, const char* what) {
  CheckTensor(tensor, tensor.dtype == DType::kF32 ? DType::kF32 : act, shape, what);
}

void CheckNorm(const NormWeights& norm, int64_t width) {
  CheckFloats(norm.weight, {width}, "norm weight");
  CheckFloats(norm.bias, {width}, "norm bias");
}

// The spans are in order and cover every row.
void CheckSpans(RowSpans spans, int64_t rows) {
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

void CheckSlots(RowSpans spans, const Tensor& state) {
  for (const RowSpan& span : spans) GF_CHECK_LT(span.slot, state.dim(0));
}

void CheckHeads(int64_t width, int head_size) {
  GF_CHECK(head_size > 0 && head_size <= 1024) << "head size " << head_size;
  GF_CHECK_EQ(head_size % 16, 0);
  GF_CHECK_EQ(width % head_size, 0);
}

// Each span has a page table, and the entries for its positions are pages of a pool of `pages` pages. `from_start`:
// also the entries for all positions before the span.
void CheckPages(RowSpans spans, int64_t pages, int64_t page_tokens, bool from_start,
                const int32_t* RowSpan::*table = &RowSpan::pages) {
  for (const RowSpan& span : spans) {
    GF_CHECK(span.*table != nullptr) << (table == &RowSpan::pages ? "no pages" : "no kept pages");
    int64_t end = span.position + span.row_count;
    if (table == &RowSpan::kept_pages) end = std::min(end, span.kept_end);
    for (int64_t i = from_start ? 0 : span.position / page_tokens; i * page_tokens < end; ++i) {
      const int32_t page = (span.*table)[i];
      GF_CHECK(page >= 0 && page < pages) << "page " << page << " of " << pages;
    }
  }
}

void CheckIds(absl::Span<const int32_t> ids, int64_t limit) {
  for (int32_t id : ids) GF_CHECK(id >= 0 && id < limit) << "id " << id << ", the limit is " << limit;
}

void CheckLora(const Matrix& down, const Matrix& up, int64_t width) {
  CheckShape(down.data, {width, down.out()}, "LoRA down");
  CheckShape(up.data, {down.out(), width}, "LoRA up");
}

void CheckShift(const ConstTensor& x, RowSpans spans, const Tensor& shift, const ConstTensor& mix, const Tensor& out,
                DType act) {
  CheckSpans(spans, x.dim(0));
  CheckSlots(spans, shift);
  CheckTensor(x, act, {x.dim(0), x.dim(1)}, "shift input");
  CheckFloats(shift, {shift.dim(0), x.dim(1)}, "shift state");
  CheckFloats(mix, {mix.dim(0), x.dim(1)}, "mix");
  CheckTensor(out, act, {mix.dim(0), x.dim(0), x.dim(1)}, "shifted rows");
}

void CheckGoldWeights(const GoldSharedWeights& shared, const GoldKvWeights& weights, DType act) {
  const int64_t width = shared.embedding.dim(1), vocab = shared.embedding.dim(0), rank = weights.mix_up.dim(1);
  CheckNorm(shared.ln0, width);
  CheckTensor(shared.key_table, act, {vocab, width}, "key table");
  for (ConstTensor mix : {weights.mix_lora, weights.mix_key, weights.mix_value}) CheckFloats(mix, {width}, "mix");
  CheckShape(weights.mix_up, {2, rank, width}, "mix LoRA up");
  CheckShape(weights.mix_down.data, {width, 2 * rank}, "mix LoRA down");
  CheckFloats(weights.mix_table, {vocab, 2, 2 * rank}, "mix table");
  CheckLora(weights.key_down, weights.key_up, width);
  CheckLora(weights.value_down, weights.value_up, width);
  CheckNorm(weights.ln_key, width);
  CheckNorm(weights.ln_value, width);
}

void CheckGoldInputs(RowSpans spans, const GoldSharedWeights& shared, const GoldCache& cache) {
  CheckPages(spans, cache.ids.dim(0), cache.page_tokens(), true);
  const int64_t c_width = shared.key_compressed.in();
  CheckShape(shared.key_compressed.data, {shared.embedding.dim(1), c_width}, "key projection of c");
  CheckShape(cache.c, {cache.ids.dim(0), cache.page_tokens(), CompressedRowWidth(cache.c.dtype, c_width)},
             "compressed cache");
}

void CheckSharedRows(const Backend& backend, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
                     int head_size, const GoldSharedRows& rows) {
  const int64_t width = shared.embedding.dim(1);
  CheckHeads(width, head_size);
  for (const GoldKvWeights& layer : layers) CheckGoldWeights(shared, layer, backend.activation_dtype());
  GF_CHECK_GE(rows.page_tokens, 1);
  const int64_t least = backend.GoldSharedPageBytes(width, layers, head_size, rows.page_tokens);
  GF_CHECK(rows.page_bytes >= least && rows.page_bytes % 256 == 0)
      << "kept pages of " << rows.page_bytes << " bytes, expected a multiple of 256 from " << least << " on";
  GF_CHECK_EQ(reinterpret_cast<uintptr_t>(rows.data) % 256, 0u) << "kept rows are not aligned";
}

void CheckQuantized(const Matrix& weight) {
  const DType dtype = weight.data.dtype;
  const int64_t out = weight.out(), in = weight.in();
  const bool by_input = weight.layout == Matrix::Layout::kInOut;
  GF_CHECK(by_input ? CanQuantizeByInput(out, in) : CanQuantize(out, in)) << weight.data.shape.ToString();
  const ConstTensor scales = by_input ? QuantizedRowScales(dtype, out, in) : QuantizedScales(dtype, out, in);
  CheckTensor(weight.scales, scales.dtype, scales.shape, "scales");
}

// For ops whose spans count positions, not rows of a tensor.
int64_t PositionCount(RowSpans spans) {
  return spans.empty() ? 0 : int64_t{spans.back().row_begin} + spans.back().row_count;
}

}  // namespace

void Backend::Embed(ConstTensor table, absl::Span<const int32_t> ids, Tensor out) {
  CheckFloats(out, {static_cast<int64_t>(ids.size()), table.dim(1)}, "embedding output");
  CheckIds(ids, table.dim(0));
  if (!ids.empty()) DoEmbed(table, ids, out);
}

void Backend::CopyRows(ConstTensor from, absl::Span<const RowCopy> copies, Tensor to) {
  CheckFloatsOr(from, activation_dtype_, {from.dim(0), to.dim(1)}, "rows to copy");
  CheckFloatsOr(to, activation_dtype_, {to.dim(0), from.dim(1)}, "place of the copied rows");
  for (const RowCopy& copy : copies) {
    GF_CHECK(copy.from >= 0 && copy.from < from.dim(0)) << "row " << copy.from << " of " << from.dim(0);
    GF_CHECK(copy.to >= 0 && copy.to < to.dim(0)) << "row " << copy.to << " of " << to.dim(0);
  }
  if (!copies.empty()) DoCopyRows(from, copies, to);
}

void Backend::Convert(ConstTensor from, Tensor to) {
  if (to.dtype == DType::kInt8) {
    CheckFloatsOr(from, activation_dtype_, {to.dim(0), from.dim(1)}, "conversion input");
    CheckShape(to, {from.dim(0), CompressedRowWidth(to.dtype, from.dim(1))}, "8-bit rows");
  } else {
    CheckFloatsOr(from, activation_dtype_, to.shape, "conversion input");
  }
  if (from.shape.elements() > 0) DoConvert(from, to);
}

void Backend::GroupNorm(ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate, Tensor out) {
  CheckNorm(norm, x.dim(1));
  CheckFloatsOr(x, activation_dtype_, {x.dim(0), x.dim(1)}, "norm input");
  CheckFloatsOr(out, activation_dtype_, x.shape, "norm output");
  if (gate) CheckTensor(gate, activation_dtype_, x.shape, "norm gate");
  GF_CHECK_GE(groups, 1);
  GF_CHECK_EQ(x.dim(1) % groups, 0);
  if (x.dim(0) > 0) DoGroupNorm(x, groups, norm, epsilon, gate, out);
}

void Backend::MatMul(ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) {
  if (IsQuantized(weight.data.dtype)) {
    GF_CHECK(multiplies_quantized()) << Describe() << " does not multiply " << Name(weight.data.dtype);
    CheckQuantized(weight);
  }
  CheckFloatsOr(x, activation_dtype_, {x.dim(0), weight.in()}, "product input");
  CheckFloatsOr(out, activation_dtype_, {x.dim(0), weight.out()}, "product output");
  if (epilogue.bias) CheckFloats(epilogue.bias, {weight.out()}, "product bias");
  if (epilogue.multiply) CheckFloatsOr(epilogue.multiply, activation_dtype_, out.shape, "product multiplier");
  if (x.dim(0) > 0) DoMatMul(x, weight, epilogue, out);
}

void Backend::TokenShift(ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out) {
  CheckShift(x, spans, shift, mix, out, activation_dtype_);
  if (!spans.empty()) DoTokenShift(x, spans, shift, mix, out);
}

void Backend::DdLerp(ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out) {
  CheckShift(x, spans, shift, weights.mix, out, activation_dtype_);
  const int64_t width = x.dim(1), targets = weights.mix.dim(0), rank = weights.up.dim(1);
  CheckFloats(weights.mix_x, {width}, "mix_x");
  CheckShape(weights.up, {targets, rank, width}, "LoRA up");
  CheckShape(weights.down.data, {width, targets * rank}, "LoRA down");
  if (!spans.empty()) DoDdLerp(x, spans, shift, weights, out);
}

void Backend::WkvForward(ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus, RowSpans spans,
                         Tensor state, const WkvOptions& options, Tensor out) {
  const int64_t rows = r.dim(0), width = r.dim(1), heads = state.dim(1), head_size = state.dim(2);
  CheckSpans(spans, rows);
  CheckSlots(spans, state);
  CheckHeads(width, static_cast<int>(head_size));
  GF_CHECK_EQ(heads * head_size, width);
  CheckFloats(state, {state.dim(0), heads, head_size, head_size}, "WKV state");
  CheckTensor(r, activation_dtype_, {rows, width}, "r");
  CheckTensor(k, activation_dtype_, r.shape, "k");
  CheckTensor(v, activation_dtype_, r.shape, "v");
  if (w.dtype == DType::kF32 && w.dim(0) == 1) {
    CheckFloats(w, {1, width}, "w");
  } else {
    CheckTensor(w, activation_dtype_, {rows, width}, "w");
  }
  if (bonus) CheckFloats(bonus, {heads, head_size}, "bonus");
  CheckTensor(out, activation_dtype_, r.shape, "wkv output");
  if (!spans.empty()) DoWkvForward(r, k, v, w, bonus, spans, state, options, out);
}

void Backend::GoldAppend(absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache) {
  CheckSpans(spans, c.dim(0));
  CheckPages(spans, cache.ids.dim(0), cache.page_tokens(), false);
  GF_CHECK_EQ(static_cast<int64_t>(ids.size()), c.dim(0));
  CheckShape(cache.c, {cache.ids.dim(0), cache.page_tokens(), c.dim(1)}, "compressed cache");
  const bool rounds = cache.c.dtype != DType::kInt8;  // Convert makes rows of 8 bits
  GF_CHECK(c.dtype == cache.c.dtype || (rounds && (c.dtype == DType::kF32 || c.dtype == activation_dtype_)))
      << "rows of " << Name(c.dtype) << " into a cache of " << Name(cache.c.dtype);
  GF_CHECK(cache.ids.dtype == DType::kU16 || cache.ids.dtype == DType::kI32) << Name(cache.ids.dtype);
  CheckIds(ids, cache.ids.dtype == DType::kU16 ? int64_t{1} << 16 : int64_t{1} << 31);
  if (!spans.empty()) DoGoldAppend(ids, c, spans, cache);
}

void Backend::GoldKeyTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, Matrix key_x0,
                               Tensor table) {
  const int64_t width = embedding.dim(1);
  CheckNorm(ln0, width);
  CheckShape(key_x0.data, {width, width}, "key projection of x0");
  CheckTensor(table, activation_dtype_, {embedding.dim(0), width}, "key table");
  CheckIds(ids, table.dim(0));
  if (!ids.empty()) DoGoldKeyTableRows(ids, embedding, ln0, key_x0, table);
}

void Backend::GoldMixTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                               ConstTensor mix_lora, Matrix mix_down, Tensor table) {
  const int64_t width = embedding.dim(1);
  CheckNorm(ln0, width);
  CheckFloats(mix_lora, {width}, "mix");
  CheckShape(mix_down.data, {width, mix_down.out()}, "mix LoRA down");
  CheckFloats(table, {embedding.dim(0), 2, mix_down.out()}, "mix table");
  CheckIds(ids, table.dim(0));
  if (!ids.empty()) DoGoldMixTableRows(ids, embedding, ln0, mix_lora, mix_down, table);
}

void Backend::GoldAttention(ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                            const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out) {
  CheckSpans(spans, q.dim(0));
  CheckGoldInputs(spans, shared, cache);
  CheckHeads(q.dim(1), head_size);
  CheckTensor(q, activation_dtype_, {q.dim(0), shared.embedding.dim(1)}, "queries");
  CheckTensor(out, activation_dtype_, q.shape, "attention output");
  CheckGoldWeights(shared, weights, activation_dtype_);
  if (!spans.empty()) DoGoldAttention(q, spans, shared, weights, cache, head_size, out);
}

void Backend::GoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                                 const GoldCache& cache, int head_size, const KvCache& kv) {
  CheckSpans(spans, PositionCount(spans));
  CheckGoldInputs(spans, shared, cache);
  CheckHeads(shared.embedding.dim(1), head_size);
  CheckShape(kv.keys, {kv.keys.dim(0), kv.page_tokens(), shared.embedding.dim(1)}, "key cache");
  CheckTensor(kv.values, kv.keys.dtype, kv.keys.shape, "value cache");
  CheckPages(spans, kv.keys.dim(0), kv.page_tokens(), false, &RowSpan::kept_pages);
  CheckGoldWeights(shared, weights, activation_dtype_);
  if (!spans.empty()) DoGoldMakeKeysValues(spans, shared, weights, cache, head_size, kv);
}

void Backend::GoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared,
                                 absl::Span<const GoldKvWeights> layers, const GoldCache& cache, int head_size,
                                 const GoldSharedRows& rows) {
  CheckSpans(spans, PositionCount(spans));
  CheckGoldInputs(spans, shared, cache);
  CheckSharedRows(*this, shared, layers, head_size, rows);
  CheckPages(spans, rows.pages, rows.page_tokens, false, &RowSpan::kept_pages);
  if (!spans.empty()) DoGoldMakeSharedRows(spans, shared, layers, cache, head_size, rows);
}

void Backend::GoldSharedAttention(ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                                  absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows,
                                  int head_size, Tensor out) {
  CheckSpans(spans, q.dim(0));
  CheckSharedRows(*this, shared, layers, head_size, rows);
  CheckPages(spans, rows.pages, rows.page_tokens, true, &RowSpan::kept_pages);
  if (rows.rest != nullptr) {
    GF_CHECK(shares_in_part());
    CheckGoldInputs(spans, shared, *rows.rest);
  } else {
    for (const RowSpan& span : spans) GF_CHECK_GE(span.kept_end, span.position + span.row_count);
  }
  GF_CHECK(layer >= 0 && layer < static_cast<int>(layers.size())) << "layer " << layer << " of " << layers.size();
  CheckTensor(q, activation_dtype_, {q.dim(0), shared.embedding.dim(1)}, "queries");
  CheckTensor(out, activation_dtype_, q.shape, "attention output");
  if (!spans.empty()) DoGoldSharedAttention(q, spans, shared, layers, layer, rows, head_size, out);
}

void Backend::Rope(Tensor x, RowSpans spans, int head_size, double base) {
  CheckSpans(spans, x.dim(0));
  CheckHeads(x.dim(1), head_size);
  CheckTensor(x, activation_dtype_, {x.dim(0), x.dim(1)}, "rows to rotate");
  if (!spans.empty()) DoRope(x, spans, head_size, base);
}

void Backend::KvAppend(ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache) {
  CheckSpans(spans, k.dim(0));
  CheckPages(spans, cache.keys.dim(0), cache.page_tokens(), false);
  CheckTensor(k, activation_dtype_, {k.dim(0), cache.keys.dim(2)}, "k");
  CheckTensor(v, activation_dtype_, k.shape, "v");
  CheckTensor(cache.values, cache.keys.dtype, cache.keys.shape, "value cache");
  if (!spans.empty()) DoKvAppend(k, v, spans, cache);
}

void Backend::KvAttention(ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out) {
  CheckSpans(spans, q.dim(0));
  CheckPages(spans, cache.keys.dim(0), cache.page_tokens(), true);
  CheckHeads(q.dim(1), head_size);
  CheckTensor(q, activation_dtype_, {q.dim(0), cache.keys.dim(2)}, "queries");
  CheckTensor(out, activation_dtype_, q.shape, "attention output");
  CheckTensor(cache.values, cache.keys.dtype, cache.keys.shape, "value cache");
  if (!spans.empty()) DoKvAttention(q, spans, cache, head_size, out);
}

void Backend::Sample(ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes,
                     absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens) {
  const auto count = static_cast<int64_t>(rows.size());
  CheckFloats(logits, {count, logits.dim(1)}, "logits");
  GF_CHECK_EQ(static_cast<int64_t>(tokens.size()), count);
  GF_CHECK(limit >= 1 && limit <= logits.dim(1)) << "limit " << limit;
  CheckIds(holes, logits.dim(1));
  for (const SampleRow& row : rows) {
    GF_CHECK(row.uniform >= 0 && row.uniform < 1) << row.uniform;
    GF_CHECK(row.temperature >= 0 && row.top_k >= 0);
    CheckIds(row.banned, logits.dim(1));
    for (const LogitChange& change : row.changes) CheckIds({&change.id, 1}, logits.dim(1));
  }
  if (!rows.empty()) DoSample(logits, limit, holes, rows, tokens);
}

}  // namespace goldfinch
