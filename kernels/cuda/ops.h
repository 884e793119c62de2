// The ops of CudaBackend, each with the file that has its kernels. Arguments are those of backend.h; the caller has
// checked shapes; tensors are in device memory. All ops only queue their work, but for Sample, which waits for its
// tokens.
#ifndef GOLDFINCH_KERNELS_CUDA_OPS_H_
#define GOLDFINCH_KERNELS_CUDA_OPS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/context.h"

namespace goldfinch::cuda {

// rows.cu
void Embed(Context& context, ConstTensor table, absl::Span<const int32_t> ids, Tensor out);
void CopyRows(Context& context, ConstTensor from, absl::Span<const RowCopy> copies, Tensor to);
void Convert(Context& context, ConstTensor from, Tensor to);
void GoldAppend(Context& context, absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache);
void KvAppend(Context& context, ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache);
// group_norm.cu
void GroupNorm(Context& context, ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate,
               Tensor out);
// matmul.cu
void MatMul(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out);
// token_shift.cu
void TokenShift(Context& context, ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out);
void DdLerp(Context& context, ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out);
// wkv.cu
void WkvForward(Context& context, ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus,
                RowSpans spans, Tensor state, const WkvOptions& options, Tensor out);
// gold_tables.cu, gold_attention.cu
void GoldKeyTableRows(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                      Matrix key_x0, Tensor table);
void GoldMixTableRows(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                      ConstTensor mix_lora, Matrix mix_down, Tensor table);
void GoldAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                   const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out);
void GoldMakeKeysValues(Context& context, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                        const GoldCache& cache, int head_size, const KvCache& kv);
// gold_shared.cu
int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int64_t page_tokens, DType act);
void GoldMakeSharedRows(Context& context, RowSpans spans, const GoldSharedWeights& shared,
                        absl::Span<const GoldKvWeights> layers, const GoldCache& cache, int head_size,
                        const GoldSharedRows& rows);
void GoldSharedAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                         absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows, int head_size,
                         Tensor out);
// rope.cu, kv_attention.cu
void Rope(Context& context, Tensor x, RowSpans spans, int head_size, double base);
void KvAttention(Context& context, ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out);
// sample.cu
constexpr int64_t kSampleVocabMax = int64_t{1} << 18;
void Sample(Context& context, ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes,
            absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_OPS_H_
