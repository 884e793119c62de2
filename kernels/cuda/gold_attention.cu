// Attention over the compressed cache: keys and values of a chunk of positions are rebuilt into scratch memory
// (gold_rebuilder.h) and attended to (attend.h), one chunk after the other, so that what is rebuilt stays in the L2
// cache. Counts and predictions: docs/cuda-predictions.md.
#include <cstdint>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_rebuilder.h"
#include "kernels/cuda/gold_shared.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

// Attention to chunks that the rebuilder make(device_spans, steady) rebuilds. upload(spans) sends spans to the device
// with the page tables that the rebuilder needs.
template <typename Upload, typename Make>
void AttendToChunks(Context& context, ConstTensor q, RowSpans spans, const GoldKvWeights& weights, int head_size,
                    Tensor out, Upload upload, Make make) {
  const int64_t width = q.dim(1);
  for (const std::vector<RowSpan>& cut : CutRows(spans, AttentionRowsMax(width))) {
    const Context::Frame frame(context);
    const DeviceSpan* device_spans = upload(cut);
    Rebuilder rebuilder = make(device_spans, IsDecodeStep(cut));
    const bool leaves_norms = rebuilder.LeavesNorms();
    Attention attention(context, q, cut, device_spans, head_size, q.dtype,
                        leaves_norms ? UnfinishedNorms{weights.ln_key, weights.ln_value} : UnfinishedNorms{}, out,
                        rebuilder.ChunkPositions());
    std::vector<PositionRun> runs;
    for (int i = 0; i < static_cast<int>(cut.size()); ++i) runs.push_back({i, 0, cut[i].position + cut[i].row_count});
    for (const RebuiltChunk& chunk : CutChunks(runs, rebuilder.ChunkPositions())) {
      const Context::Frame chunk_frame(context);
      std::vector<AttendPart> parts;
      int64_t row = 0;
      for (const PositionRun& run : chunk) {
        parts.push_back({run.span, run.begin, run.end, row + 1});
        row += 1 + run.end - run.begin;
      }
      const Rebuilder::Rows rows = rebuilder.Rebuild(chunk);
      StoredKeys stored{rows.sides[0], rows.sides[1], q.dtype, 0, rows.factors};
      if (!leaves_norms) {
        void* finished[2] = {rows.sides[0], rows.sides[1]};
        if (rows.dtype != q.dtype) {
          for (void*& side : finished) side = context.Scratch(rows.count * width * SizeOf(q.dtype));
        }
        rebuilder.Finish(rows, finished[0], finished[1], q.dtype, false);
        stored.keys = finished[0];
        stored.values = finished[1];
      }
      attention.Add(stored, parts);
    }
    attention.Finish();
  }
}

}  // namespace

void GoldAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                   const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out) {
  AttendToChunks(
      context, q, spans, weights, head_size, out,
      [&](RowSpans cut) { return context.UploadSpans(cut, cache.page_tokens()); },
      [&](const DeviceSpan* device_spans, bool steady) {
        return Rebuilder(context, device_spans, shared, weights, cache, /*kept_tokens=*/0, head_size, steady);
      });
}

void AttendToRebuilt(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                     const GoldKvWeights& weights, const SharedPages& pages, int head_size, Tensor out) {
  AttendToChunks(
      context, q, spans, weights, head_size, out,
      [&](RowSpans cut) { return context.UploadSpans(cut, 0, pages.page_tokens); },
      [&](const DeviceSpan* device_spans, bool steady) {
        return Rebuilder(context, device_spans, shared, weights, pages, head_size, steady);
      });
}

void GoldMakeKeysValues(Context& context, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                        const GoldCache& cache, int head_size, const KvCache& kv) {
  const Context::Frame frame(context);
  const DeviceSpan* device_spans = context.UploadSpans(spans, cache.page_tokens(), kv.page_tokens());
  Rebuilder rebuilder(context, device_spans, shared, weights, cache, kv.page_tokens(), head_size, IsDecodeStep(spans));
  for (const RebuiltChunk& chunk : CutChunks(RunsOf(spans), rebuilder.ChunkPositions())) {
    const Context::Frame chunk_frame(context);
    rebuilder.Finish(rebuilder.Rebuild(chunk), kv.keys.data, kv.values.data, kv.keys.dtype, true);
  }
}

}  // namespace goldfinch::cuda
