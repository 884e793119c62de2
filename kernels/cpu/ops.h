// The CPU kernels behind CpuBackend, dispatched at run time to the best instruction set. Arguments are those of the ops
// in backend.h, and have been checked.
#ifndef GOLDFINCH_KERNELS_CPU_OPS_H_
#define GOLDFINCH_KERNELS_CPU_OPS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/sampling.h"

namespace goldfinch::cpu {

// Resources that all kernels share.
struct Context {
  explicit Context(int threads) : pool(threads), scratch(threads), sample_scratch(threads) {}

  ThreadPool pool;
  std::vector<Scratch> scratch;  // one for each thread
  std::vector<sampling::SampleScratch> sample_scratch;
  // Kept to reuse their memory.
  std::vector<const float*> prev_rows;  // in ops with token shift: the row before each row
  std::vector<int64_t> positions;       // the position of each row of an op
};

// The row of a position of a sequence, counted over all pages of the pool.
inline int64_t PagedRow(const RowSpan& span, int64_t position, int64_t page_tokens) {
  return span.pages[position / page_tokens] * page_tokens + position % page_tokens;
}
// The same in the pages of kept rows.
inline int64_t KeptRow(const RowSpan& span, int64_t position, int64_t page_tokens) {
  return span.kept_pages[position / page_tokens] * page_tokens + position % page_tokens;
}

void Embed(Context& context, ConstTensor table, absl::Span<const int32_t> ids, Tensor out);
void GroupNorm(Context& context, ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate,
               Tensor out);
void MatMul(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out);
void QuantizedMatMul(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out);
void TokenShift(Context& context, ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out);
void DdLerp(Context& context, ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out);
void WkvForward(Context& context, ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus,
                RowSpans spans, Tensor state, const WkvOptions& options, Tensor out);
void Convert(Context& context, ConstTensor from, Tensor to);
void GoldAppend(Context& context, absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache);
void GoldKeyTableRows(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                      Matrix key_x0, Tensor table);
void GoldMixTableRows(Context& context, absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0,
                      ConstTensor mix_lora, Matrix mix_down, Tensor table);
void GoldAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                   const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out);
void GoldMakeKeysValues(Context& context, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                        const GoldCache& cache, int head_size, const KvCache& kv);
// Not yet rounded up to the multiple that GoldSharedRows asks for.
int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int64_t page_tokens);
void GoldMakeSharedRows(Context& context, RowSpans spans, const GoldSharedWeights& shared,
                        absl::Span<const GoldKvWeights> layers, const GoldCache& cache, const GoldSharedRows& rows);
void GoldSharedAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                         absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows, int head_size,
                         Tensor out);
void Rope(Context& context, Tensor x, RowSpans spans, int head_size, double base);
void KvAppend(Context& context, ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache);
void KvAttention(Context& context, ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out);
void Sample(Context& context, ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes,
            absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens);

// The instruction set that the kernels run with, as Highway names it: "AVX3".
const char* TargetName();

}  // namespace goldfinch::cpu

#endif  // GOLDFINCH_KERNELS_CPU_OPS_H_
