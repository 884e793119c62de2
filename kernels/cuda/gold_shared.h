// Tier T2: the order of what is kept beside the compressed cache, and what its two files share.
//
// A page holds, each section from a multiple of 256 bytes on:
//   kk [page_tokens, D] act                       rms(W_b [x0; c])
//   inputs [page_tokens] KeptInput                the id, and what makes xo of its row of the embedding
//   of each layer: tanh rows [page_tokens, 2m + m_k + m_v] act    of the mix (key, value), key and value LoRAs
//                  factors [page_tokens, 4] fp32  as StoredKeys::row_factors, where CanFuse holds for every layer
// At D = 2048, 8 layers and ranks of 32 and 64 in 16 bits that is 4096 + 16 + 8 * (384 + 16) = 7312 bytes a position,
// 1/9 of the keys and values of those layers (65,536), which a page of T3's keys and values of one layer (8192) holds.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/device.h"

namespace goldfinch::cuda {

// xo = rms(LN0(emb)) is, by columns, weight * (emb * scale - offset) + bias * rms.
struct alignas(16) KeptInput {
  float scale;
  float offset;
  float rms;
  int32_t id;
};

// The pages, with what a kernel needs of one layer.
struct SharedPages {
  char* data;
  int64_t page_bytes;
  int64_t page_tokens;
  int64_t inputs_at;  // within a page
  int64_t tanh_at;
  int64_t factors_at;
  int tanh_width;  // 2m + m_k + m_v

  // Of row `row` of the pool, as page * page_tokens + place.
  __device__ char* Page(int64_t row) const { return data + row / page_tokens * page_bytes; }
  template <typename Act>
  __device__ Act* Key(int64_t row, int64_t width) const {
    return reinterpret_cast<Act*>(Page(row)) + row % page_tokens * width;
  }
  __device__ KeptInput* Input(int64_t row) const {
    return reinterpret_cast<KeptInput*>(Page(row) + inputs_at) + row % page_tokens;
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

// True where the kernels of gold_rebuild.h can do a layer: all matrices of one 16-bit type, rows of whole 16-byte
// pieces, sizes within their limits.
bool CanFuse(const GoldSharedWeights& shared, const GoldKvWeights& weights, int head_size);

// GoldSharedAttention the plain way, for every type and size: keys and values of a chunk of positions are rebuilt from
// the kept rows into scratch memory and attended to, as in gold_attention.cu.
void AttendToRebuilt(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                     const GoldKvWeights& weights, const SharedPages& pages, int head_size, Tensor out);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_H_
