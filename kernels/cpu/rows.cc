// Ops that move rows: embedding look-up and writes to the paged caches.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rows.cc"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

void EmbedTarget(Context& context, ConstTensor table, absl::Span<const int32_t> ids, Tensor out) {
  const int64_t width = table.dim(1);
  context.pool.ParallelFor(
      ids.size(), [&](int64_t row, int) HWY_ATTR { Widen(table, ids[row] * width, width, out.f32() + row * width); },
      width);
}

// Quantizes a row to kInt8 of the compressed cache, as CompressedRowWidth defines it.
void QuantizeRow(const float* x, int64_t width, int8_t* to) {
  const DF df;
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<int8_t, DF> d8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  // Compared as integers, a NaN is above infinity, and infinity above all numbers.
  auto bits = hn::Zero(du);
  for (int64_t i = 0; i < width; i += lanes) {
    bits = hn::Max(bits, hn::BitCast(du, hn::Abs(LoadN(x + i, width - i))));
  }
  const float largest = hn::GetLane(hn::BitCast(df, hn::MaxOfLanes(du, bits)));
  const float wanted = std::isfinite(largest) ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
  Bf16 stored;
  NarrowRow(&wanted, 1, &stored);
  float scale;
  WidenRow(&stored, 1, &scale);
  std::memcpy(to + width, &stored, sizeof(stored));
  if (!(scale > 0)) {
    std::memset(to, 0, width);
    return;
  }
  const VF limit = hn::Set(df, 127.f), divisor = hn::Set(df, scale);
  for (int64_t i = 0; i < width; i += lanes) {
    const VF quotient = hn::Div(LoadN(x + i, width - i), divisor);
    const auto q = hn::DemoteTo(d8, hn::NearestInt(hn::Max(hn::Neg(limit), hn::Min(limit, quotient))));
    HWY_ALIGN int8_t buffer[hn::MaxLanes(df)];
    hn::Store(q, d8, buffer);
    std::memcpy(to + i, buffer, std::min(lanes, width - i));
  }
}

void ConvertTarget(Context& context, ConstTensor from, Tensor to) {
  const int64_t rows = from.dim(0), width = from.shape.elements() / std::max<int64_t>(rows, 1);
  const int64_t to_width = to.shape.elements() / std::max<int64_t>(rows, 1);
  context.pool.ParallelFor(
      rows,
      [&](int64_t row, int) HWY_ATTR {
        if (to.dtype == DType::kInt8) {
          QuantizeRow(from.f32() + row * width, width, static_cast<int8_t*>(to.data) + row * to_width);
        } else {
          Narrow(from.f32() + row * width, width, to, row * width);
        }
      },
      width);
}

void AppendTarget(ConstTensor rows, RowSpans spans, Tensor pages) {
  const int64_t width = rows.dim(1), page_tokens = pages.dim(1), row_bytes = width * SizeOf(pages.dtype);
  for (const RowSpan& span : spans) {
    for (int i = 0; i < span.row_count; ++i) {
      const int64_t from = span.row_begin + i, to = PagedRow(span, span.position + i, page_tokens);
      if (rows.dtype == pages.dtype) {
        std::memcpy(static_cast<char*>(pages.data) + to * row_bytes,
                    static_cast<const char*>(rows.data) + from * row_bytes, row_bytes);
      } else {
        Narrow(rows.f32() + from * width, width, pages, to * width);
      }
    }
  }
}

void AppendIds(absl::Span<const int32_t> ids, RowSpans spans, Tensor pages) {
  const int64_t page_tokens = pages.dim(1);
  for (const RowSpan& span : spans) {
    for (int i = 0; i < span.row_count; ++i) {
      const int64_t at = PagedRow(span, span.position + i, page_tokens);
      const int32_t id = ids[span.row_begin + i];
      if (pages.dtype == DType::kU16) {
        static_cast<uint16_t*>(pages.data)[at] = static_cast<uint16_t>(id);
      } else {
        static_cast<int32_t*>(pages.data)[at] = id;
      }
    }
  }
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(EmbedTarget);
HWY_EXPORT(ConvertTarget);
HWY_EXPORT(AppendTarget);
HWY_EXPORT(AppendIds);

void Embed(Context& context, ConstTensor table, absl::Span<const int32_t> ids, Tensor out) {
  HWY_DYNAMIC_DISPATCH(EmbedTarget)(context, table, ids, out);
}

void Convert(Context& context, ConstTensor from, Tensor to) { HWY_DYNAMIC_DISPATCH(ConvertTarget)(context, from, to); }

void GoldAppend(Context&, absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache) {
  HWY_DYNAMIC_DISPATCH(AppendTarget)(c, spans, cache.c);
  HWY_DYNAMIC_DISPATCH(AppendIds)(ids, spans, cache.ids);
}

void KvAppend(Context&, ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache) {
  HWY_DYNAMIC_DISPATCH(AppendTarget)(k, spans, cache.keys);
  HWY_DYNAMIC_DISPATCH(AppendTarget)(v, spans, cache.values);
}

}  // namespace goldfinch::cpu
#endif
