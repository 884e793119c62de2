#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/kv_attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

void KvAttentionTarget(Context& context, ConstTensor q, RowSpans spans, const KvCache& cache, int head_size,
                       Tensor out) {
  const int64_t width = q.dim(1), page_tokens = cache.page_tokens();
  const auto load_tile = [&](const RowSpan& span, int64_t first, int64_t count, Scratch& scratch, const float** k,
                             const float** v) HWY_ATTR {
    const int64_t in_page = first % page_tokens;
    if (cache.keys.dtype == DType::kF32 && in_page + count <= page_tokens) {  // where they are
      const int64_t at = PagedRow(span, first, page_tokens) * width;
      *k = cache.keys.f32() + at;
      *v = cache.values.f32() + at;
      return;
    }
    float* keys = scratch.Floats(count * width);
    float* values = scratch.Floats(count * width);
    for (int64_t i = 0; i < count;) {
      const int64_t position = first + i, in_page = position % page_tokens;
      const int64_t run = std::min(count - i, page_tokens - in_page);
      const int64_t at = PagedRow(span, position, page_tokens) * width;
      Widen(cache.keys, at, run * width, keys + i * width);
      Widen(cache.values, at, run * width, values + i * width);
      i += run;
    }
    *k = keys;
    *v = values;
  };
  TiledAttention(context, q, spans, head_size, load_tile, out);
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(KvAttentionTarget);

void KvAttention(Context& context, ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out) {
  HWY_DYNAMIC_DISPATCH(KvAttentionTarget)(context, q, spans, cache, head_size, out);
}

}  // namespace goldfinch::cpu
#endif
