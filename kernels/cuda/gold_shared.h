// The shared tier: how a page of shared rows is laid out, and what the files that fill and read it have in common.
//
// A page holds these sections, each of which begins at a multiple of 256 bytes:
//   kk [page_tokens, D] act                       rms(W_b [x0; c])
//   inputs [page_tokens] SharedRowInput           the id, and what makes xo of its row of the embedding
// and for each layer
//   tanh rows [page_tokens, 2m + m_k + m_v] act   of the mix (key, value), key and value LoRAs
//   factors [page_tokens, 4] fp32                 as StoredKeys::row_factors, where CanFuse holds for every layer
// With D = 2048, 8 layers and ranks of 32 and 64 in 16 bits a position takes 4096 + 16 + 8 * (384 + 16) = 7312 bytes.
// The full tier keeps 8192 bytes of keys and values for each layer, so 65,536: nine times as many.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/device.h"

namespace goldfinch::cuda {

// xo = rms(LN0(emb)) is, by columns, weight * (emb * scale - offset) + bias * rms.
struct alignas(16) SharedRowInput {
  float scale;
  float offset;
  float rms;
  int32_t id;
};

// The pages of a pool, and where one layer's sections are in them.
struct SharedPages {
  char* data;
  int64_t page_bytes;
  int64_t page_tokens;
  int64_t inputs_at;  // within a page
  int64_t tanh_at;
  int64_t factors_at;
  int tanh_width;  // 2m + m_k + m_v

  // `row` is a row of the pool: page * page_tokens + row of the page.
  __device__ char* Page(int64_t row) const { return data + row / page_tokens * page_bytes; }
  template <typename Act>
  __device__ Act* Key(int64_t row, int64_t width) const {
    return reinterpret_cast<Act*>(Page(row)) + row % page_tokens * width;
  }
  __device__ SharedRowInput* Input(int64_t row) const {
    return reinterpret_cast<SharedRowInput*>(Page(row) + inputs_at) + row % page_tokens;
  }
  template <typename Act>
  __device__ Act* Tanh(int64_t row) const {
    return reinterpret_cast<Act*>(Page(row) + tanh_at) + row % page_tokens * tanh_width;
  }
  __device__ float* Factors(int64_t row) const {
    return reinterpret_cast<float*>(Page(row) + factors_at) + 4 * (row % page_tokens);
  }
};

SharedPages PagesOf(const GoldSharedRows& rows, int64_t width, absl::Span<const GoldKvWeights> layers, int layer,
                    DType act);

// Whether the fused kernels (gold_fused.h) can rebuild a layer: all its matrices are of one 16-bit type, rows are whole
// 16-byte pieces, and sizes are within the kernels' limits.
bool CanFuse(const GoldSharedWeights& shared, const GoldKvWeights& weights, int head_size);

// GoldSharedAttention for every type and size: keys and values of a chunk of positions are rebuilt from the shared rows
// into scratch memory and attended to, as in gold_attention.cu.
void AttendToRebuilt(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                     const GoldKvWeights& weights, const SharedPages& pages, int head_size, Tensor out);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_H_
