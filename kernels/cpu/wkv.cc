#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/wkv.cc"
#include <algorithm>

#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

// Tokens of a head that are prefetched, and whose exponentials are computed, before the recurrence runs over them.
constexpr int64_t kBlockTokens = 16;
constexpr int kMaxVectors = HWY_TARGET <= HWY_AVX3 ? 4 : 2;  // of a row of the state at once: as many as registers hold

// A block of tokens of one head.
struct HeadBlock {
  int64_t tokens;
  int64_t head_size;
  int64_t stride;  // floats from token to token in r, v and out
  const float* r;  // [tokens, head_size], like v and out
  const float* v;
  const float* key;  // [tokens, head_size], dense, like decay
  const float* decay;
  const float* bonus;  // [head_size], or null
  float* state;        // [head_size (key), head_size (value)]
  float* out;
  bool accumulate;
};

// y = r (S + diag(u) k^T v), S = diag(decay) S + k^T v for T tokens and V vectors of value columns. An element of the
// state is loaded once for all T tokens and updated by them in order, so that the result does not depend on T.
template <int T, int V, bool kBonus>
void WkvTokens(const HeadBlock& block, int64_t token, int64_t column) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  const int64_t n = block.head_size;
  const float* HWY_RESTRICT r = block.r + token * block.stride;
  const float* HWY_RESTRICT key = block.key + token * n;
  const float* HWY_RESTRICT decay = block.decay + token * n;
  float* HWY_RESTRICT state = block.state + column;
  VF v[T][V], sum[T][V];
#pragma GCC unroll 2
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c) {
      v[t][c] = hn::LoadU(df, block.v + (token + t) * block.stride + column + c * lanes);
      sum[t][c] = hn::Zero(df);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    VF s[V];
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c) s[c] = hn::LoadU(df, state + i * n + c * lanes);
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
      const VF ri = hn::Set(df, r[t * block.stride + i]);
      const VF ki = hn::Set(df, key[t * n + i]), di = hn::Set(df, decay[t * n + i]);
#pragma GCC unroll 4
      for (int c = 0; c < V; ++c) {
        const VF kv = hn::Mul(ki, v[t][c]);
        if constexpr (kBonus) {
          sum[t][c] = hn::MulAdd(ri, hn::MulAdd(hn::Set(df, block.bonus[i]), kv, s[c]), sum[t][c]);
        } else {
          sum[t][c] = hn::MulAdd(ri, s[c], sum[t][c]);
        }
        s[c] = hn::MulAdd(di, s[c], kv);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c) hn::StoreU(s[c], df, state + i * n + c * lanes);
  }
#pragma GCC unroll 2
  for (int t = 0; t < T; ++t) {
    float* out = block.out + (token + t) * block.stride + column;
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c) {
      float* to = out + c * lanes;
      hn::StoreU(block.accumulate ? hn::Add(hn::LoadU(df, to), sum[t][c]) : sum[t][c], df, to);
    }
  }
}

template <int V, bool kBonus>
void WkvBlock(const HeadBlock& block) {
  const int64_t step = V * hn::Lanes(DF());
  int64_t token = 0;
  for (; token + 2 <= block.tokens; token += 2) {
    for (int64_t column = 0; column < block.head_size; column += step) WkvTokens<2, V, kBonus>(block, token, column);
  }
  if (token == block.tokens) return;
  for (int64_t column = 0; column < block.head_size; column += step) WkvTokens<1, V, kBonus>(block, token, column);
}

template <bool kBonus>
void WkvBlockOfWidth(const HeadBlock& block) {
  const int64_t lanes = hn::Lanes(DF());
  if constexpr (kMaxVectors == 4) {
    if (block.head_size % (4 * lanes) == 0) return WkvBlock<4, kBonus>(block);
  }
  // head_size is a multiple of 16, so some width fits.
  if (block.head_size % (2 * lanes) == 0) return WkvBlock<2, kBonus>(block);
  WkvBlock<1, kBonus>(block);
}

void WkvTarget(Context& context, ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus,
               RowSpans spans, Tensor state, const WkvOptions& options, Tensor out) {
  const DF df;
  const int64_t width = r.dim(1), heads = state.dim(1), head_size = state.dim(2);
  const int64_t w_stride = w.dim(0) == 1 ? 0 : width;
  context.pool.ParallelFor(
      static_cast<int64_t>(spans.size()) * heads,
      [&](int64_t task, int thread) HWY_ATTR {
        const Scratch::Frame frame(context.scratch[thread]);
        float* decay = context.scratch[thread].Floats(kBlockTokens * head_size);
        float* key = context.scratch[thread].Floats(kBlockTokens * head_size);
        const RowSpan& span = spans[task / heads];
        const int64_t head = task % heads;
        HeadBlock block{.tokens = 0,
                        .head_size = head_size,
                        .stride = width,
                        .r = nullptr,
                        .v = nullptr,
                        .key = key,
                        .decay = decay,
                        .bonus = bonus ? bonus.f32() + head * head_size : nullptr,
                        .state = state.f32() + (span.slot * heads + head) * head_size * head_size,
                        .out = nullptr,
                        .accumulate = options.accumulate};
        for (int64_t begin = 0; begin < span.row_count; begin += kBlockTokens) {
          block.tokens = std::min(kBlockTokens, span.row_count - begin);
          const int64_t row = span.row_begin + begin, at = row * width + head * head_size;
          block.r = r.f32() + at;
          block.v = v.f32() + at;
          block.out = out.f32() + at;
          for (int64_t t = 0; t < block.tokens; ++t) {
            const float* wr = w.f32() + (row + t) * w_stride + head * head_size;
            const float* kr = k.f32() + at + t * width;
            for (int64_t i = 0; i < head_size; i += hn::Lanes(df)) {
              // The hardware does not prefetch from one row to the next: a head's parts of them lie on different pages.
              hwy::Prefetch(block.r + t * width + i);
              hwy::Prefetch(block.v + t * width + i);
              hwy::Prefetch(block.out + t * width + i);
              const VF rate = hn::Neg(Exp(hn::LoadU(df, wr + i)));
              VF kv = hn::LoadU(df, kr + i);
              // expm1 keeps the digits of 1 - decay when the decay is near 1.
              if (options.one_minus_decay_keys) kv = hn::Mul(kv, hn::Neg(hn::Expm1(df, rate)));
              hn::StoreU(hn::Exp(df, rate), df, decay + t * head_size + i);
              hn::StoreU(kv, df, key + t * head_size + i);
            }
          }
          if (block.bonus != nullptr) {
            WkvBlockOfWidth<true>(block);
          } else {
            WkvBlockOfWidth<false>(block);
          }
        }
      },
      3 * head_size * head_size * r.dim(0) / std::max<int64_t>(1, spans.size()));
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(WkvTarget);

void WkvForward(Context& context, ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus,
                RowSpans spans, Tensor state, const WkvOptions& options, Tensor out) {
  HWY_DYNAMIC_DISPATCH(WkvTarget)(context, r, k, v, w, bonus, spans, state, options, out);
}

}  // namespace goldfinch::cpu
#endif
