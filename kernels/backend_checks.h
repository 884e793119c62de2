// What every back end CHECKs of an op's arguments: shapes, types, ranges of what lies in host memory. `act` is the type
// of activations. Arguments as in backend.h.
#ifndef GOLDFINCH_KERNELS_BACKEND_CHECKS_H_
#define GOLDFINCH_KERNELS_BACKEND_CHECKS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/backend.h"

namespace goldfinch::checks {

void Copy(ConstTensor from, Tensor to);
void Embed(ConstTensor table, absl::Span<const int32_t> ids, Tensor out);
void CopyRows(ConstTensor from, absl::Span<const RowCopy> copies, Tensor to, DType act);
void Convert(ConstTensor from, Tensor to, DType act);
void GroupNorm(ConstTensor x, int groups, NormWeights norm, ConstTensor gate, Tensor out, DType act);
void MatMul(ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out, DType act);
void TokenShift(ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out, DType act);
void DdLerp(ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out, DType act);
void WkvForward(ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus, RowSpans spans,
                Tensor state, Tensor out, DType act);
void GoldAppend(absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache, DType act);
void GoldKeyTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, Matrix key_x0,
                      Tensor table, DType act);
void GoldMixTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, ConstTensor mix_lora,
                      Matrix mix_down, Tensor table);
void GoldAttention(ConstTensor q, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                   const GoldCache& cache, int head_size, Tensor out, DType act);
void GoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                        const GoldCache& cache, int head_size, const KvCache& kv, DType act);
void GoldMakeSharedRows(const Backend& backend, RowSpans spans, const GoldSharedWeights& shared,
                        absl::Span<const GoldKvWeights> layers, const GoldCache& cache, int head_size,
                        const GoldSharedRows& rows);
void GoldSharedAttention(const Backend& backend, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                         absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows, int head_size,
                         Tensor out);
void Rope(Tensor x, RowSpans spans, int head_size, DType act);
void KvAppend(ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache, DType act);
void KvAttention(ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out, DType act);
void Sample(ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes, absl::Span<const SampleRow> rows,
            absl::Span<int32_t> tokens);

}  // namespace goldfinch::checks

#endif  // GOLDFINCH_KERNELS_BACKEND_CHECKS_H_
