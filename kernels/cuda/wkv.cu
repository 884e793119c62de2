// Linear attention (WKV), in three ways. Predictions: docs/cuda-predictions.md.
//
// Row by row (wkv_recurrence.h): decoding, spans of fewer than 16 rows, fp32 activations, other head sizes. One pass
// over the state, in 16-byte loads that are all under way at once.
//
// By chunks (wkv_chunk.h): spans of 16 rows and more, fp16 and bf16.
//
// By segments: by chunks where there are too few heads and sequences for all multiprocessors. Sequences are cut into
// segments; a first pass makes what each segment adds to the state, a scan makes the states that the segments begin
// with, and a second pass makes the outputs.
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/wkv_chunk.h"
#include "kernels/cuda/wkv_recurrence.h"

namespace goldfinch::cuda {
namespace {

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

template <typename T>
void RunRows(Context& context, const WkvTensors<T>& x, bool aligned, const DeviceSpan* spans, int span_count) {
  const auto stream = static_cast<Stream>(context.stream());
  const dim3 heads(static_cast<unsigned>(span_count * x.heads));
  const auto run = [&](auto keys) {
    constexpr int kKeys = decltype(keys)::value;
    Launch(stream, WkvRowsKernel<T, kKeys>, {heads, dim3(kKeys / 2 * kWarp)}, x, spans);
  };
  if (aligned && x.head_size == 16) return run(std::integral_constant<int, 2>());
  if (aligned && x.head_size == 32) return run(std::integral_constant<int, 4>());
  if (aligned && x.head_size == 64) return run(std::integral_constant<int, 8>());
  if (aligned && x.head_size == 128) return run(std::integral_constant<int, 16>());
  Launch(stream, WkvRowsAnyKernel<T>,
         {dim3(heads.x, static_cast<unsigned>(CeilDiv(x.head_size, kAnyThreads))), dim3(kAnyThreads),
          4 * static_cast<size_t>(x.head_size) * sizeof(float)},
         x, spans);
}

// --- By chunks -------------------------------------------------------------------------------------------------------

constexpr int kChunkedRowsMin = kChunkRows;  // of a span: fewer are no more work row by row
constexpr int64_t kSegmentRowsMin = 256;     // with fewer, most of the time goes to starting kernels

// How many segments a span is cut into. It is one, unless the longest span would keep one block busy for at least twice
// as long as all the work takes if it is spread over the device: the states of segments are additional work.
struct SegmentRule {
  bool cut = false;
  int64_t rows = kSegmentRowsMin;  // of a segment, at least

  int64_t Segments(int64_t span_rows) const { return cut ? std::max<int64_t>(1, span_rows / rows) : 1; }
};

// `blocks` run at once.
SegmentRule ChooseSegments(RowSpans spans, int64_t heads, int64_t multiprocessors, int64_t blocks) {
  int64_t longest = 0, all = 0;
  for (const RowSpan& span : spans) {
    longest = std::max<int64_t>(longest, span.row_count);
    all += span.row_count * heads;
  }
  return {.cut = longest * multiprocessors >= 2 * all, .rows = std::max(kSegmentRowsMin, CeilDiv(all, blocks))};
}

template <typename T>
void RunChunks(Context& context, const WkvTensors<T>& x, RowSpans spans) {
  const auto stream = static_cast<Stream>(context.stream());
  const int64_t state_size = int64_t{x.heads} * kStateSize, decay_size = int64_t{x.heads} * kChunkHeadSize;
  const SegmentRule rule = ChooseSegments(spans, x.heads, context.multiprocessors(),
                                          WkvChunkShared<T, false>::kBlocks * context.multiprocessors());
  std::vector<WkvSegment> states, outputs;
  std::vector<WkvScan> scans;
  for (const RowSpan& span : spans) {
    float* const state = x.state + span.slot * state_size;
    const int64_t wanted = rule.Segments(span.row_count);
    // Whole tiles each.
    const int64_t rows = CeilDiv(CeilDiv<int64_t>(span.row_count, wanted), int64_t{kTileRows}) * kTileRows;
    const int64_t count = CeilDiv<int64_t>(span.row_count, rows);
    float* const starts = count > 1 ? context.Scratch<float>(count * state_size) : state;
    float* const decay = count > 1 ? context.Scratch<float>(count * decay_size) : nullptr;
    for (int64_t i = 0; i < count; ++i) {
      const auto begin = static_cast<int32_t>(i * rows);
      const WkvSegment segment{.row_begin = span.row_begin + begin,
                               .row_count = std::min(static_cast<int32_t>(rows), span.row_count - begin),
                               .from = starts + i * state_size,
                               .to = i + 1 == count ? state : nullptr,
                               .decay = nullptr};
      outputs.push_back(segment);
      if (i + 1 == count) continue;
      states.push_back(segment);
      states.back().from = nullptr;
      states.back().to = starts + (i + 1) * state_size;
      states.back().decay = decay + (i + 1) * decay_size;
    }
    if (count > 1) {
      scans.push_back({.state = state, .starts = starts, .decay = decay, .segments = static_cast<int32_t>(count)});
    }
  }
  const size_t state_count = states.size(), output_count = outputs.size();
  states.insert(states.end(), outputs.begin(), outputs.end());
  const WkvSegment* const segments = context.Upload(absl::MakeConstSpan(states));
  const auto run = [&](auto states_only, const WkvSegment* from, size_t count) {
    constexpr bool kStates = decltype(states_only)::value;
    Launch(stream, x.one_minus_decay_keys ? WkvChunksKernel<T, kStates, true> : WkvChunksKernel<T, kStates, false>,
           {dim3(static_cast<unsigned>(count * x.heads)), dim3(kChunkThreads), sizeof(WkvChunkShared<T, kStates>)}, x,
           from);
  };
  if (!scans.empty()) {
    run(std::true_type(), segments, state_count);
    const WkvScan* const device_scans = context.Upload(absl::MakeConstSpan(scans));
    Launch(stream, WkvScanKernel,
           {dim3(static_cast<unsigned>(state_size / (4 * kScanThreads)), static_cast<unsigned>(scans.size())),
            dim3(kScanThreads)},
           device_scans, x.heads);
  }
  run(std::false_type(), segments + state_count, output_count);
}

}  // namespace

void WkvForward(Context& context, ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus,
                RowSpans spans, Tensor state, const WkvOptions& options, Tensor out) {
  const Context::Frame frame(context);
  const bool constant = w.dtype == DType::kF32 && w.dim(0) == 1;
  const bool aligned = Aligned(r.data) && Aligned(k.data) && Aligned(v.data) && Aligned(w.data) &&
                       Aligned(state.data) && Aligned(out.data);
  VisitFloatType(context.activation_dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const WkvTensors<T> x{.r = static_cast<const T*>(r.data),
                          .k = static_cast<const T*>(k.data),
                          .v = static_cast<const T*>(v.data),
                          .w = constant ? nullptr : static_cast<const T*>(w.data),
                          .constant_w = constant ? w.f32() : nullptr,
                          .bonus = bonus ? bonus.f32() : nullptr,
                          .state = state.f32(),
                          .out = static_cast<T*>(out.data),
                          .heads = static_cast<int>(state.dim(1)),
                          .head_size = static_cast<int>(state.dim(2)),
                          .one_minus_decay_keys = options.one_minus_decay_keys,
                          .accumulate = options.accumulate};
    std::vector<RowSpan> few, many;
    for (const RowSpan& span : spans) {
      const bool chunked =
          sizeof(T) == 2 && aligned && x.head_size == kChunkHeadSize && span.row_count >= kChunkedRowsMin;
      (chunked ? many : few).push_back(span);
    }
    if (!few.empty()) RunRows(context, x, aligned, context.UploadSpans(few, 0), static_cast<int>(few.size()));
    if constexpr (sizeof(T) == 2) {
      if (!many.empty()) RunChunks(context, x, many);
    }
  });
}

}  // namespace goldfinch::cuda
