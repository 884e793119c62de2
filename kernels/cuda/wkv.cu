// Linear attention (WKV). Three paths; an H100's 3 TB/s, 132 multiprocessors and 1.755 GHz are assumed below, and time
// is per head (of 64) and token.
//
// Row by row (wkv_recurrence.h): decoding, spans of fewer than 16 rows, fp32 activations, other head sizes. One pass
// over the state, 2 x 16 KB, in 16-byte loads that are all on their way at once; r, k, w, v and out are 640 bytes more.
// 128 sequences of 32 heads: 137 MB, 46 us at 3 TB/s. A warp issues some 500 instructions, a fifth of that time.
// Predicted: 50 us, 12 ns.
//
// By chunks (wkv_chunk.h): spans of 16 rows and more, fp16 and bf16. With bf16:
//   memory: 640 bytes, 0.21 ns
//   issue: a chunk of 16 rows takes some 740 warp instructions to prepare and 4 x 260 to use, 111 a token: 0.12 ns
//   exponentials: 3 an element, 192 of 16 a clock: 0.05 ns
//   matrix units: 80 products of 16 x 8 x 16 a chunk, 20 kFLOP a token: 0.03 ns
// Predicted: 0.28 ns for 8 sequences of 8192 rows and 32 heads, 256 blocks, of which a multiprocessor has but two to
// hide latency with. fp16's products are three for one, its factors two, and two blocks fit: 0.4 ns.
//
// By segments: where heads and sequences are too few for all multiprocessors. The states are made first, k, w and v
// read twice: 384 bytes more, 0.34 ns in all; a scan moves 4 x 16 KB for each segment of a head, through L2, 8 us with
// its launches. Predicted: 0.45 ns for one sequence of 8192 rows and 32 heads, 12 segments of 704 rows.
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

// --- By chunks
// -------------------------------------------------------------------------------------------------------

constexpr int kChunkedRowsMin = kChunkRows;  // of a span: fewer are no more work row by row
constexpr int64_t kSegmentRowsMin = 256;     // with fewer, starting kernels is most of the time

// How many segments a span is cut into. One, unless a single block would be at the longest span when all others have
// long been done: twice as long, for the states of segments are work of their own.
struct SegmentRule {
  bool cut = false;
  int64_t rows = kSegmentRowsMin;  // of a segment, at least

  int64_t Segments(int64_t span_rows) const { return cut ? std::max<int64_t>(1, span_rows / rows) : 1; }
};

// `blocks`: that run at once.
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
                                          ChunkShared<T, false>::kBlocks * context.multiprocessors());
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
           {dim3(static_cast<unsigned>(count * x.heads)), dim3(kChunkThreads), sizeof(ChunkShared<T, kStates>)}, x,
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
