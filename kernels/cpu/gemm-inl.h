// Matrix products for one thread, included once per SIMD target (see Highway's foreach_target).
//
// Every output element is one fixed sequence of fp32 operations, whatever the number of rows and columns computed with
// it:
//   kOutIn: for each block of kBlockIn inputs, one fused multiply-add chain per vector lane, then a fixed tree over the
//           lanes; blocks are added in order.
//   kInOut: one fused multiply-add chain over the inputs in order.
// For few rows the weights are read in place; for more rows a panel of weights is first widened to fp32, which changes
// no bit of the result.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/scratch.h"
#include "kernels/tensor.h"

#if defined(GOLDFINCH_KERNELS_CPU_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GOLDFINCH_KERNELS_CPU_GEMM_INL_H_
#undef GOLDFINCH_KERNELS_CPU_GEMM_INL_H_
#else
#define GOLDFINCH_KERNELS_CPU_GEMM_INL_H_
#endif

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int kColumns = 4;                            // columns of a dot-product tile
constexpr int kRows = HWY_TARGET <= HWY_AVX3 ? 6 : 2;  // rows of a tile: as many as registers hold sums for
constexpr int64_t kInPlaceRows = 4 * kRows;  // up to so many rows, widening the weights again for each tile is faster
constexpr int64_t kBlockIn = 1024;           // inputs between two sums over lanes: six rows of x fit the L1 cache
constexpr int64_t kBlockOut = 64;            // columns of a panel: 64 x 1024 floats fit the L2 cache
constexpr int64_t kBlockRows = 86 * 6;       // rows that share a widened panel; a step of 512 tokens fits one block

// Sums the lanes of four vectors into four neighboring floats, always in the same order.
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> SumFour(VF a, VF b, VF c, VF d) {
  const DF df;
  const hn::Repartition<double, DF> dd;
  // Within 16-byte blocks: [a0+a2, b0+b2, a1+a3, b1+b3], then [sum a, sum b, sum c, sum d].
  const VF ab = hn::Add(hn::InterleaveLower(df, a, b), hn::InterleaveUpper(df, a, b));
  const VF cd = hn::Add(hn::InterleaveLower(df, c, d), hn::InterleaveUpper(df, c, d));
  const VF low = hn::BitCast(df, hn::InterleaveLower(dd, hn::BitCast(dd, ab), hn::BitCast(dd, cd)));
  const VF high = hn::BitCast(df, hn::InterleaveUpper(dd, hn::BitCast(dd, ab), hn::BitCast(dd, cd)));
  const VF blocks = hn::Add(low, high);
#if HWY_TARGET <= HWY_AVX3
  const hn::Half<DF> d256;
  const hn::Half<decltype(d256)> d128;
  const auto sum256 = hn::Add(hn::LowerHalf(d256, blocks), hn::UpperHalf(d256, blocks));
  return hn::Add(hn::LowerHalf(d128, sum256), hn::UpperHalf(d128, sum256));
#elif HWY_TARGET <= HWY_AVX2
  const hn::Half<DF> d128;
  return hn::Add(hn::LowerHalf(d128, blocks), hn::UpperHalf(d128, blocks));
#else
  return blocks;
#endif
}

// out[r * ldo + c] (+)= dot(x + r * ldx, w[c], k) for R rows and four columns. `ahead` is the distance from a column to
// the one that is read next in its place, which is prefetched, or 0 if that is in a cache already. The hardware alone
// prefetches too little.
template <int R, typename T>
HWY_INLINE void DotTile(const float* HWY_RESTRICT x, size_t ldx, const T* const (&w)[kColumns], size_t ahead, size_t k,
                        bool add, float* HWY_RESTRICT out, size_t ldo) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  VF sum[R][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) sum[r][c] = hn::Zero(df);
  }
  size_t i = 0;
  for (; i + lanes <= k; i += lanes) {
    if (ahead != 0) {
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) hwy::Prefetch(w[c] + ahead + i);
    }
    VF wv[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) wv[c] = LoadFloats(w[c] + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const VF xv = hn::LoadU(df, x + r * ldx + i);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sum[r][c] = hn::MulAdd(xv, wv[c], sum[r][c]);
    }
  }
  if (i < k) {
    VF wv[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) wv[c] = LoadFloatsPartial(w[c] + i, k - i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const VF xv = LoadFloatsPartial(x + r * ldx + i, k - i);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sum[r][c] = hn::MulAdd(xv, wv[c], sum[r][c]);
    }
  }
  const hn::FixedTag<float, 4> d4;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    auto total = SumFour(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    if (add) total = hn::Add(total, hn::LoadU(d4, out + r * ldo));
    hn::StoreU(total, d4, out + r * ldo);
  }
}

// Products of all rows with the columns w[0 .. columns), which are ldw apart. `out` has room for whole tiles of
// columns.
template <typename T>
inline void DotBlock(const float* x, size_t ldx, size_t rows, const T* w, size_t ldw, size_t columns, size_t k,
                     bool add, float* out, size_t ldo) {
  for (size_t r = 0; r < rows;) {
    const size_t count = rows - r < kRows ? rows - r : kRows;
    const float* xr = x + r * ldx;
    const size_t ahead = std::is_same_v<T, float> || r > 0 ? 0 : kColumns * ldw;
    for (size_t c = 0; c < columns; c += kColumns) {
      // Columns after the end repeat the last one; their sums go to the padding of `out`.
      const T* columns_of_tile[kColumns];
      for (size_t i = 0; i < kColumns; ++i) columns_of_tile[i] = w + (c + i < columns ? c + i : columns - 1) * ldw;
      float* o = out + r * ldo + c;
      switch (count) {
        case 1:
          DotTile<1>(xr, ldx, columns_of_tile, ahead, k, add, o, ldo);
          break;
        case 2:
          DotTile<2>(xr, ldx, columns_of_tile, ahead, k, add, o, ldo);
          break;
        default:
          if constexpr (kRows > 2) {
            switch (count) {
              case 3:
                DotTile<3>(xr, ldx, columns_of_tile, ahead, k, add, o, ldo);
                break;
              case 4:
                DotTile<4>(xr, ldx, columns_of_tile, ahead, k, add, o, ldo);
                break;
              case 5:
                DotTile<5>(xr, ldx, columns_of_tile, ahead, k, add, o, ldo);
                break;
              default:
                DotTile<6>(xr, ldx, columns_of_tile, ahead, k, add, o, ldo);
            }
          }
      }
    }
    r += count;
  }
}

// out[r, 0 .. V * lanes) (+)= x[r, 0 .. k) times w [k, ldw], R rows and V vectors of columns.
template <int R, int V, typename T>
HWY_INLINE void AxpyTile(const float* HWY_RESTRICT x, size_t ldx, const T* HWY_RESTRICT w, size_t ldw, size_t k,
                         bool add, float* HWY_RESTRICT out, size_t ldo) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  VF sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c) sum[r][c] = add ? hn::LoadU(df, out + r * ldo + c * lanes) : hn::Zero(df);
  }
  for (size_t i = 0; i < k; ++i) {
    VF wv[V];
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c) wv[c] = LoadFloats(w + i * ldw + c * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const VF xv = hn::Set(df, x[r * ldx + i]);
#pragma GCC unroll 4
      for (int c = 0; c < V; ++c) sum[r][c] = hn::MulAdd(xv, wv[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c) hn::StoreU(sum[r][c], df, out + r * ldo + c * lanes);
  }
}

// out[rows, kBlockOut] (+)= x[rows, k] times w[k, ldw], kBlockOut columns.
template <typename T>
inline void AxpyBlock(const float* x, size_t ldx, size_t rows, const T* w, size_t ldw, size_t k, bool add, float* out,
                      size_t ldo) {
  constexpr int kVectors = 4;
  const size_t step = kVectors * hn::Lanes(DF());
  for (size_t r = 0; r < rows;) {
    const size_t count = rows - r < kRows ? rows - r : kRows;
    for (size_t c = 0; c < kBlockOut; c += step) {
      const float* xr = x + r * ldx;
      float* o = out + r * ldo + c;
      if (count == kRows) {
        AxpyTile<kRows, kVectors>(xr, ldx, w + c, ldw, k, add, o, ldo);
      } else {
        for (size_t i = 0; i < count; ++i)
          AxpyTile<1, kVectors>(xr + i * ldx, ldx, w + c, ldw, k, add, o + i * ldo, ldo);
      }
    }
    r += count;
  }
}

// Copies columns [column, column + count) of w [k, ldw] into a panel [k, kBlockOut] of fp32, zeros beyond count.
template <typename T>
inline void WidenColumns(const T* w, size_t ldw, size_t k, size_t column, size_t count, float* panel) {
  for (size_t i = 0; i < k; ++i) {
    WidenRow(w + i * ldw + column, count, panel + i * kBlockOut);
    for (size_t c = count; c < kBlockOut; ++c) panel[i * kBlockOut + c] = 0;
  }
}

// tile[rows, kBlockOut] = x[rows, in] times columns [column, column + count) of the weight; count <= kBlockOut and
// rows <= kBlockRows. Panels are taken from `scratch`.
template <typename T>
inline void ProductTile(const float* x, size_t ldx, size_t rows, const T* w, bool out_in, int64_t in, int64_t out,
                        int64_t column, int64_t count, Scratch& scratch, float* tile) {
  const Scratch::Frame frame(scratch);
  const int64_t block = in < kBlockIn ? in : kBlockIn;
  const bool in_place = std::is_same_v<T, float> || rows <= static_cast<size_t>(kInPlaceRows);
  // With an odd stride the columns of a tile do not compete for the same cache sets.
  const int64_t stride = block + 16;
  float* panel = out_in && in_place ? nullptr : scratch.Floats(stride * kBlockOut);
  for (int64_t i = 0; i < in; i += block) {
    const int64_t k = in - i < block ? in - i : block;
    if (!out_in && rows <= kRows && count == kBlockOut) {
      AxpyBlock(x + i, ldx, rows, w + i * out + column, out, k, i > 0, tile, kBlockOut);
    } else if (!out_in) {
      WidenColumns(w + i * out, out, k, column, count, panel);
      AxpyBlock(x + i, ldx, rows, static_cast<const float*>(panel), kBlockOut, k, i > 0, tile, kBlockOut);
    } else if (in_place) {
      DotBlock(x + i, ldx, rows, w + column * in + i, in, count, k, i > 0, tile, kBlockOut);
    } else {
      for (int64_t c = 0; c < count; ++c) WidenRow(w + (column + c) * in + i, k, panel + c * stride);
      DotBlock(x + i, ldx, rows, static_cast<const float*>(panel), stride, count, k, i > 0, tile, kBlockOut);
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // GOLDFINCH_KERNELS_CPU_GEMM_INL_H_
