#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/wkv.cc"
#include <algorithm>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

// One token of one head, V vectors of value columns: y += r (S + diag(u) k^T v), S = diag(decay) S + k^T v.
template <int V, bool kBonus>
HWY_INLINE void WkvToken(const float* HWY_RESTRICT r, const float* HWY_RESTRICT k, const float* HWY_RESTRICT v,
                         const float* HWY_RESTRICT decay, const float* HWY_RESTRICT bonus, size_t head_size,
                         float* HWY_RESTRICT state, float* HWY_RESTRICT y) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  VF vv[V], sum[V];
  for (int c = 0; c < V; ++c) {
    vv[c] = hn::LoadU(df, v + c * lanes);
    sum[c] = hn::Zero(df);
  }
  for (size_t i = 0; i < head_size; ++i) {
    const VF ri = hn::Set(df, r[i]), ki = hn::Set(df, k[i]), di = hn::Set(df, decay[i]);
    float* row = state + i * head_size;
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c) {
      const VF s = hn::LoadU(df, row + c * lanes);
      const VF kv = hn::Mul(ki, vv[c]);
      if constexpr (kBonus) {
        sum[c] = hn::MulAdd(ri, hn::MulAdd(hn::Set(df, bonus[i]), kv, s), sum[c]);
      } else {
        sum[c] = hn::MulAdd(ri, s, sum[c]);
      }
      hn::StoreU(hn::MulAdd(di, s, kv), df, row + c * lanes);
    }
  }
  for (int c = 0; c < V; ++c) hn::StoreU(sum[c], df, y + c * lanes);
}

template <int V>
HWY_INLINE void WkvTokenColumns(const float* r, const float* k, const float* v, const float* decay, const float* bonus,
                                size_t head_size, float* state, float* y) {
  const size_t step = V * hn::Lanes(DF());
  for (size_t column = 0; column < head_size; column += step) {
    if (bonus != nullptr) {
      WkvToken<V, true>(r, k, v + column, decay, bonus, head_size, state + column, y + column);
    } else {
      WkvToken<V, false>(r, k, v + column, decay, bonus, head_size, state + column, y + column);
    }
  }
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
        float* decay = context.scratch[thread].Floats(head_size);
        float* key = context.scratch[thread].Floats(head_size);
        float* y = context.scratch[thread].Floats(head_size);
        const RowSpan& span = spans[task / heads];
        const int64_t head = task % heads;
        float* head_state = state.f32() + (span.slot * heads + head) * head_size * head_size;
        const float* head_bonus = bonus ? bonus.f32() + head * head_size : nullptr;
        for (int64_t row = span.row_begin; row < span.row_begin + span.row_count; ++row) {
          const int64_t at = row * width + head * head_size;
          const float* wr = w.f32() + row * w_stride + head * head_size;
          for (int64_t i = 0; i < head_size; i += hn::Lanes(df)) {
            const VF rate = hn::Neg(Exp(hn::LoadU(df, wr + i)));
            VF kv = hn::LoadU(df, k.f32() + at + i);
            // expm1 keeps the digits of 1 - decay where the decay is near 1.
            if (options.one_minus_decay_keys) kv = hn::Mul(kv, hn::Neg(hn::Expm1(df, rate)));
            hn::StoreU(hn::Exp(df, rate), df, decay + i);
            hn::StoreU(kv, df, key + i);
          }
          const float* rr = r.f32() + at;
          const float* vr = v.f32() + at;
          // head_size is a multiple of 16, so some width fits.
          if (head_size % (4 * hn::Lanes(df)) == 0) {
            WkvTokenColumns<4>(rr, key, vr, decay, head_bonus, head_size, head_state, y);
          } else if (head_size % (2 * hn::Lanes(df)) == 0) {
            WkvTokenColumns<2>(rr, key, vr, decay, head_bonus, head_size, head_state, y);
          } else {
            WkvTokenColumns<1>(rr, key, vr, decay, head_bonus, head_size, head_state, y);
          }
          float* to = out.f32() + at;
          for (int64_t i = 0; i < head_size; i += hn::Lanes(df)) {
            const VF value = hn::LoadU(df, y + i);
            hn::StoreU(options.accumulate ? hn::Add(hn::LoadU(df, to + i), value) : value, df, to + i);
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
