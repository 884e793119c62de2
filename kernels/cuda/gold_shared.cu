// Attention over shared rows: flash decoding (arXiv 2311.01282) in which tiles of keys and values are made from kk, the
// embedding and the LoRAs' tanh rows in registers, and never stored. Predictions: docs/cuda-predictions.md.
//
// The statistics of the norms are stored, so that columns of keys and values are independent and each warp has the 64
// of one head. With q' = q * weight of the key norm:
//   score = scale_k (q' . kx + (up_k q') . h_k) - sum(q') mean_k scale_k
//   out   = (sum p scale_v vx + (sum p scale_v h_v) up_v - sum p mean_v scale_v) * weight + bias
// so that the LoRAs' up sides meet the query before the positions and the sums after them, and only the mix is done for
// each position:
//   kx = kk + (prev(kk) - kk) * (mix_key + h_mix up_mix), 16 positions by 64 columns as accumulators of mma.m16n8k16,
//        which are the fragments of the next product, q' kx^T;
//   vx = likewise of xo = weight (emb scale - offset) + bias rms, with columns as rows of the accumulators, so that
//        they are the fragments of p vx.
//
// FoldKernel makes q' and up_k q' (gold_shared_split.h), SharedRowsKernel goes through the positions
// (gold_shared_attend.h), MergeKernel adds up the splits and does the rest (gold_shared_split.h).
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_rebuilder.h"
#include "kernels/cuda/gold_shared.h"
#include "kernels/cuda/gold_shared_attend.h"
#include "kernels/cuda/gold_shared_split.h"
#include "kernels/cuda/gold_shared_tile.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

using shared_rows::kGroupHeads;
using shared_rows::kHead;
using shared_rows::kLoraRank;
using shared_rows::kQueryRows;

// How the query rows are cut into tiles, and the positions into splits.
struct Division {
  std::vector<shared_rows::QueryTile> tiles;
  int splits = 0;
  int32_t slot_rows = 0;  // a slot for each row of a tile and split
  int32_t tile_rows_max = 0;
};

Division Divide(RowSpans spans, int groups, int multiprocessors) {
  Division division;
  int64_t length_max = 0;
  for (int i = 0; i < static_cast<int>(spans.size()); ++i) {
    const RowSpan& span = spans[i];
    for (int row = 0; row < span.row_count; row += kQueryRows) {
      division.tiles.push_back({i, span.row_begin + row, std::min(span.row_count - row, kQueryRows), 0});
    }
    length_max = std::max(length_max, span.position + span.row_count);
  }
  // One wave of blocks that fills the device, or else several, so that an uneven last one does not matter. Lengths are
  // taken as the next power of two, so that launches stay the same from token to token.
  const auto blocks = static_cast<int64_t>(division.tiles.size()) * groups;
  const int64_t at_once = int64_t{shared_rows::kBlocksPerUnit} * multiprocessors;
  const int64_t wanted = at_once >= 4 * blocks ? at_once / blocks : CeilDiv(4 * at_once, blocks);
  const auto bucket = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(length_max)));
  division.splits = static_cast<int>(std::min(wanted, CeilDiv<int64_t>(bucket, shared_rows::kSplitUnit)));
  for (shared_rows::QueryTile& tile : division.tiles) {
    tile.slot_row = division.slot_rows;
    division.slot_rows += division.splits * tile.rows;
    division.tile_rows_max = std::max(division.tile_rows_max, tile.rows);
  }
  return division;
}

template <typename T>
void Attend(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
            const GoldKvWeights& weights, const SharedPages& pages, Tensor out) {
  const Context::Frame frame(context);
  const auto stream = static_cast<Stream>(context.stream());
  const int64_t width = q.dim(1), rows = int64_t{spans.back().row_begin} + spans.back().row_count;
  const int heads = static_cast<int>(width / kHead), groups = CeilDiv(heads, kGroupHeads);
  const Division division = Divide(spans, groups, context.multiprocessors());
  const int64_t slot_rows = division.slot_rows;
  const auto lora_rank = static_cast<int>(weights.key_up.in());
  T* queries = context.Scratch<T>(rows * heads * (kHead + kLoraRank));
  Launch(stream, shared_rows::FoldKernel<T>,
         {dim3(static_cast<unsigned>(heads), static_cast<unsigned>(rows - spans[0].row_begin)),
          dim3(shared_rows::kSmallThreads)},
         static_cast<const T*>(q.data), spans[0].row_begin, weights.ln_key.weight.f32(),
         static_cast<const T*>(weights.key_up.data.data), lora_rank, width, queries);
  const shared_rows::Arguments a{.tiles = context.Upload(absl::MakeConstSpan(division.tiles)),
                                 .spans = context.UploadSpans(spans, 0, pages.page_tokens),
                                 .pages = pages,
                                 .splits = division.splits,
                                 .groups = groups,
                                 .heads = heads,
                                 .mix_rank = static_cast<int>(weights.mix_up.dim(1)),
                                 .lora_rank = lora_rank,
                                 .width = width,
                                 .score_scale = kScoreUnit / std::sqrt(static_cast<float>(kHead)),
                                 .queries = queries,
                                 .embedding = shared.embedding.data,
                                 .ln0_weight = shared.ln0.weight.f32(),
                                 .ln0_bias = shared.ln0.bias.f32(),
                                 .mix_key = weights.mix_key.f32(),
                                 .mix_value = weights.mix_value.f32(),
                                 .mix_up = weights.mix_up.data,
                                 .value_up = weights.value_up.data.data,
                                 .value_weight = weights.ln_value.weight.f32(),
                                 .value_bias = weights.ln_value.bias.f32(),
                                 .slot_values = context.Scratch<float>(slot_rows * width),
                                 .slot_loras = context.Scratch<float>(slot_rows * heads * kLoraRank),
                                 .slot_maxima = context.Scratch<float>(slot_rows * heads),
                                 .slot_sums = context.Scratch<float>(slot_rows * heads),
                                 .slot_offsets = context.Scratch<float>(slot_rows * heads)};
  const auto tile_count = static_cast<unsigned>(division.tiles.size());
  Launch(stream, shared_rows::SharedRowsKernel<T>,
         {dim3(static_cast<unsigned>(groups * division.splits), tile_count), dim3(shared_rows::kThreads),
          sizeof(shared_rows::SharedMemory<T>)},
         a);
  Launch(stream, shared_rows::MergeKernel<T>,
         {dim3(static_cast<unsigned>(heads), static_cast<unsigned>(division.tile_rows_max), tile_count),
          dim3(shared_rows::kSmallThreads), 5 * shared_rows::kSmallThreads * sizeof(float)},
         a, static_cast<T*>(out.data));
}

// Whether these kernels can attend to the layer. They need what CanFuse asks for, of all layers, because the rows of
// all were made together; and sizes within limits of their own.
bool CanAttend(const Context& context, ConstTensor q, const GoldSharedWeights& shared,
               absl::Span<const GoldKvWeights> layers, const GoldKvWeights& weights, int head_size) {
  if (q.dtype != shared.embedding.dtype || head_size != kHead || weights.rope_base != 0) return false;
  if (weights.mix_up.dim(1) > shared_rows::kMixRank || weights.key_up.in() > kLoraRank) return false;
  if (static_cast<int64_t>(sizeof(shared_rows::SharedMemory<uint16_t>)) > context.facts().shared_bytes) return false;
  return std::all_of(layers.begin(), layers.end(),
                     [&](const GoldKvWeights& layer) { return CanFuse(shared, layer, head_size); });
}

int64_t SectionBytes(int64_t bytes) { return CeilDiv<int64_t>(bytes, 256) * 256; }

// Places the sections of a page; returns its size.
int64_t PlaceSections(int64_t width, absl::Span<const GoldKvWeights> layers, int layer, int64_t page_tokens, DType act,
                      SharedPages& pages) {
  int64_t used = SectionBytes(page_tokens * width * SizeOf(act));
  pages.inputs_at = used;
  used += SectionBytes(page_tokens * static_cast<int64_t>(sizeof(SharedRowInput)));
  for (int i = 0; i < static_cast<int>(layers.size()); ++i) {
    const int64_t tanh_width = 2 * layers[i].mix_up.dim(1) + layers[i].key_up.in() + layers[i].value_up.in();
    const int64_t tanh_bytes = SectionBytes(page_tokens * tanh_width * SizeOf(act));
    if (i == layer) {
      pages.tanh_width = static_cast<int>(tanh_width);
      pages.tanh_at = used;
      pages.factors_at = used + tanh_bytes;
    }
    used += tanh_bytes + SectionBytes(page_tokens * 4 * static_cast<int64_t>(sizeof(float)));
  }
  return used;
}

}  // namespace

SharedPages PagesOf(const GoldSharedRows& rows, int64_t width, absl::Span<const GoldKvWeights> layers, int layer,
                    DType act) {
  SharedPages pages{};
  pages.data = static_cast<char*>(rows.data);
  pages.page_bytes = rows.page_bytes;
  pages.page_tokens = rows.page_tokens;
  PlaceSections(width, layers, layer, rows.page_tokens, act, pages);
  return pages;
}

int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int64_t page_tokens, DType act) {
  SharedPages pages{};
  return PlaceSections(width, layers, 0, page_tokens, act, pages);
}

void GoldMakeSharedRows(Context& context, RowSpans spans, const GoldSharedWeights& shared,
                        absl::Span<const GoldKvWeights> layers, const GoldCache& cache, int head_size,
                        const GoldSharedRows& rows) {
  const Context::Frame frame(context);
  const DeviceSpan* device_spans = context.UploadSpans(spans, cache.page_tokens(), rows.page_tokens);
  Rebuilder rebuilder(context, device_spans, shared, layers[0], cache, rows.page_tokens, head_size,
                      IsDecodeStep(spans));
  std::vector<SharedPages> pages;
  for (int i = 0; i < static_cast<int>(layers.size()); ++i) {
    pages.push_back(PagesOf(rows, shared.embedding.dim(1), layers, i, context.activation_dtype()));
  }
  for (const RebuiltChunk& chunk : CutChunks(RunsOf(spans), rebuilder.ChunkPositions())) {
    rebuilder.MakeSharedRows(chunk, layers, pages);
  }
}

void GoldSharedAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                         absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows, int head_size,
                         Tensor out) {
  const int64_t width = q.dim(1);
  const GoldKvWeights& weights = layers[layer];
  const SharedPages pages = PagesOf(rows, width, layers, layer, context.activation_dtype());
  if (!CanAttend(context, q, shared, layers, weights, head_size)) {
    AttendToRebuilt(context, q, spans, shared, weights, pages, head_size, out);
    return;
  }
  for (const std::vector<RowSpan>& cut : CutRows(spans, AttentionRowsMax(width))) {
    if (q.dtype == DType::kF16) {
      Attend<f16_t>(context, q, cut, shared, weights, pages, out);
    } else {
      Attend<bf16_t>(context, q, cut, shared, weights, pages, out);
    }
  }
}

}  // namespace goldfinch::cuda
