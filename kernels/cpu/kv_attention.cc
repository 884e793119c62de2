#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/kv_attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

// Stored keys and values: a source of tiles (attend-inl.h).
class StoredTiles {
 public:
  explicit StoredTiles(const KvCache& cache) : cache_(cache) {}

  bool Find(const RowSpan& span, int64_t first, int64_t count, const float** keys, const float** values) const {
    const int64_t page_tokens = cache_.page_tokens();
    if (cache_.keys.dtype != DType::kF32 || first % page_tokens + count > page_tokens) return false;
    const int64_t at = PagedRow(span, first, page_tokens) * cache_.keys.dim(2);
    *keys = cache_.keys.f32() + at;
    *values = cache_.values.f32() + at;
    return true;
  }

  void Make(Made what, const RowSpan& span, int64_t first, int64_t count, Scratch&, float* to) const {
    const int64_t page_tokens = cache_.page_tokens(), width = cache_.keys.dim(2);
    for (int64_t i = 0; i < count;) {
      const int64_t position = first + i, run = std::min(count - i, page_tokens - position % page_tokens);
      Widen(what == Made::kKeys ? cache_.keys : cache_.values, PagedRow(span, position, page_tokens) * width,
            run * width, to + i * width);
      i += run;
    }
  }

 private:
  const KvCache& cache_;
};

void KvAttentionTarget(Context& context, ConstTensor q, RowSpans spans, const KvCache& cache, int head_size,
                       Tensor out) {
  TiledAttention(context, q, spans, head_size, StoredTiles(cache), out);
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
